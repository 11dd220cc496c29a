package group

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Refuse implements Group. It sends new clients to a member whose queue is full,
// where the kernel drops their SYN, while handshakes under way and queued
// connections go on in the others. When the sockets are closed the client's next
// try, a second later, is refused. (A socket filter would do the same, but asks
// for CAP_NET_ADMIN on newer kernels.)
func (g *tcpGroup) Refuse() error {
	if g.refused {
		return nil
	}
	g.refused = true
	if len(g.members) == 0 {
		return nil
	}
	if err := g.turnAway(); err != nil {
		return fmt.Errorf("cannot turn new clients away on %s: %w", g.bound, err)
	}
	return nil
}

func (g *tcpGroup) turnAway() error {
	if err := g.Verify(); err != nil {
		return err
	}
	// New clients of a socket that outlives us wait in its queue, for whoever
	// is started on it next.
	to := slices.IndexFunc(g.members, func(m *Member) bool { return m.foreign })
	if to < 0 {
		sink, err := g.takeSpare()
		if err == nil {
			err = g.makeFull(sink)
		}
		if err != nil {
			return err
		}
		sink.spare = false
		to = g.index(sink)
	}
	g.serving = []*Member{g.members[to]}
	return g.attach(g.serving)
}

// refuseTCP lets others join a socket that was shared until now. The kernel
// takes no program for it before one has.
func (g *sharedGroup) refuseTCP() error {
	if err := SelfTest(); err != nil {
		return err
	}
	late := newTCP(g.address)
	late.serving = g.members
	err := inTurn(reusePort(g.members[0].fd, 1), late.turnAway)
	g.members = late.members
	if err != nil {
		return fmt.Errorf("cannot turn new clients away on %s: %w", g.bound, err)
	}
	return nil
}

// makeFull fills the queue of a spare. With an error it is a spare as before.
func (g *tcpGroup) makeFull(spare *Member) error {
	const length, full = 1, 2 // one more than its length
	// With a queue of none the kernel takes the first SYN for a flood and
	// says so in its log.
	err := spare.listen(length)
	for n := 1; n <= full && err == nil; n++ {
		err = g.fill(spare, n)
	}
	if err != nil {
		g.empty(spare)
	}
	return err
}

func (g *tcpGroup) empty(spare *Member) {
	for {
		if n, err := queueLength(spare.fd); n == 0 || err != nil {
			break
		}
		spare.acceptOne()
	}
	_ = spare.listen(g.backlog)
}

// fill puts the n-th connection into a queue. Reset, it is no connection any
// more that anybody could wait for; its place in the queue stays taken until
// somebody accepts it.
func (g *tcpGroup) fill(m *Member, n int) error {
	p, err := g.Probe(m)
	if err != nil {
		return err
	}
	defer p.Close()
	const patience, look = time.Second, time.Millisecond
	client := []unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLOUT}}
	for end := time.Now().Add(patience); time.Now().Before(end); {
		queued, err := queueLength(m.fd)
		if err != nil {
			return err
		}
		if queued >= n {
			return os.NewSyscallError("setsockopt SO_LINGER",
				unix.SetsockoptLinger(p.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}))
		}
		if poll(client, time.Now().Add(look)) > 0 {
			client[0].Fd = -1 // connected here: what is left is to wait for the last packet
		}
	}
	return errors.New("a connection to itself takes longer than a second")
}

// queueLength counts the connections that wait to be accepted: what
// tcpi_unacked means of a socket that listens.
func queueLength(fd int) (int, error) {
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return 0, os.NewSyscallError("getsockopt TCP_INFO", err)
	}
	return int(info.Unacked), nil
}
