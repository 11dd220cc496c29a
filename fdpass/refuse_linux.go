package fdpass

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// refuse sends new clients to a member whose queue is full, where the kernel
// drops their SYN, while handshakes under way and queued connections go on in
// the others. When the sockets are closed the client's next try, a second
// later, is refused. (A socket filter would do the same, but asks for
// CAP_NET_ADMIN on newer kernels.)
func (s *Socket) refuse() error {
	if s.network != "tcp" || len(s.members) == 0 {
		return nil
	}
	if s.addr.ReusePort {
		return nil // a program would steer the connections of others too
	}
	if i := slices.IndexFunc(s.members, func(m *Member) bool { return m.foreign }); i >= 0 {
		return s.leaveToOwner(s.members[i])
	}
	if s.how != Steered {
		if err := s.startLateGroup(); err != nil {
			return err
		}
	}
	if err := s.Verify(); err != nil {
		return err
	}
	sink, err := s.openSink()
	if err != nil {
		return fmt.Errorf("cannot turn new clients away on %s: %w", s.bound, err)
	}
	s.serving = []*Member{sink}
	return s.attach(s.serving)
}

// leaveToOwner lets new clients wait in the queue of the socket that outlives
// us, for whoever is started on it next.
func (s *Socket) leaveToOwner(first *Member) error {
	if s.how != Steered {
		return nil
	}
	if err := s.Verify(); err != nil {
		return err
	}
	s.serving = []*Member{first}
	return s.attach(s.serving)
}

// startLateGroup lets others join a socket that was shared until now. The
// kernel takes no program for it before one has.
func (s *Socket) startLateGroup() error {
	if err := steeringWorks(); err != nil {
		return err
	}
	first := s.members[0]
	if err := enableReusePort(first.fd); err != nil {
		return os.NewSyscallError("setsockopt SO_REUSEPORT", err)
	}
	s.how, s.serving = Steered, []*Member{first}
	return nil
}

// openSink makes a spare the member with the full queue.
func (s *Socket) openSink() (*Member, error) {
	sink, err := s.takeSpare()
	if err != nil {
		return nil, err
	}
	// With a queue of none the kernel takes the first SYN for a flood and
	// says so in its log.
	err = listenAgain(sink.fd, 1)
	const full = 2 // one more than its length
	for n := 1; n <= full && err == nil; n++ {
		err = s.fill(sink, n)
	}
	sink.spare = err != nil
	return sink, err
}

// fill puts the n-th connection into a queue. Reset, it is no connection any
// more that anybody could wait for; its place in the queue stays taken until
// somebody accepts it.
func (s *Socket) fill(m *Member, n int) error {
	p, err := s.StartProbe(m)
	if err != nil {
		return err
	}
	defer p.Close()
	const patience = time.Second
	for begin := time.Now(); time.Since(begin) < patience; time.Sleep(time.Millisecond) {
		queued, err := queueLength(m.fd)
		if err != nil {
			return err
		}
		if queued >= n {
			return os.NewSyscallError("setsockopt SO_LINGER",
				unix.SetsockoptLinger(p.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}))
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
