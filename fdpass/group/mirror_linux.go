package group

import (
	"errors"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Verify implements Group. It costs one getsockopt for each member. A member
// that serves, or that came from outside, is put back, at the end of the array.
func (g *tcpGroup) Verify() error { return g.takeOut(g.departed(), 0) }

func (g *tcpGroup) departed() []*Member {
	var gone []*Member
	for _, m := range g.members {
		if !isListening(m.fd) {
			gone = append(gone, m)
		}
	}
	return gone
}

// takeOut removes members that listen no more from the mirror and attaches the
// program anew. More is the number of other changes in the meantime.
func (g *tcpGroup) takeOut(gone []*Member, more int) error {
	if len(gone) == 0 {
		return nil
	}
	g.taint(gone, len(gone)+more)
	for _, m := range gone {
		g.remove(m)
	}
	var err error
	for _, m := range gone {
		err = errors.Join(err, g.putBack(m))
	}
	g.clearTaint()
	return errors.Join(err, g.attach(g.serving))
}

// taint marks the members whose place is not known after some changes in an
// order that nobody saw. Only the last ones move, as many as there were changes,
// each into the place of one that left; and whoever moves into the place of a
// tainted one is tainted.
func (g *tcpGroup) taint(gone []*Member, changes int) {
	if changes == 1 && !gone[0].tainted {
		return
	}
	for _, m := range g.members[max(len(g.members)-changes, 0):] {
		m.tainted = true
	}
}

// clearTaint knows that one tainted member alone has but one place to be.
func (g *tcpGroup) clearTaint() {
	if t := g.tainted(); len(t) == 1 {
		t[0].tainted = false
	}
}

func (g *tcpGroup) tainted() []*Member {
	var list []*Member
	for _, m := range g.members {
		if m.tainted {
			list = append(list, m)
		}
	}
	return list
}

// putBack has a member listen again that must not be missing: a queue for the
// serving worker's replacement, a socket that its maker will want again. A port
// that the kernel had chosen was given up by shutdown(2), so it is bound again;
// for all others that is an error (EINVAL) without meaning.
func (g *tcpGroup) putBack(m *Member) error {
	m.tainted = false
	if m.own {
		g.stopServing(m) // the worker may do with its own as it likes
		return nil
	}
	if !m.foreign && !slices.Contains(g.serving, m) {
		return nil
	}
	_ = syscall.Bind(m.fd, g.at.Sockaddr())
	if err := m.listen(g.backlog); err != nil {
		g.stopServing(m)
		return err
	}
	g.members = append(g.members, m)
	return nil
}

// sortOut finds out where tainted spares are: the program gives a connection to
// one index, and the queue of one of them fills, on which nobody else accepts.
// What it cannot find out stays tainted.
func (g *tcpGroup) sortOut() {
	spares := g.tainted()
	if slices.ContainsFunc(spares, func(m *Member) bool { return !m.spare }) {
		return
	}
	at := map[int]*Member{}
	for _, m := range spares {
		if found := g.knock(m, spares); found != nil {
			at[g.index(m)] = found
		}
	}
	if len(at) != len(spares) || len(g.departed()) > 0 {
		return
	}
	for i, m := range at {
		g.members[i], m.tainted = m, false
	}
}

// knock sends a connection to the place where m should be and returns who gets
// it.
func (g *tcpGroup) knock(m *Member, spares []*Member) *Member {
	p, err := g.Probe(m)
	if err != nil {
		return nil
	}
	defer p.Close()
	const patience = 100 * time.Millisecond // on loopback it takes microseconds
	return whoseQueueFills(spares, patience)
}

// whoseQueueFills waits for a connection in one of the queues, which were empty,
// and takes it out. It is nil where none comes, or several do.
func whoseQueueFills(members []*Member, patience time.Duration) *Member {
	set := make([]unix.PollFd, len(members))
	for i, m := range members {
		set[i] = unix.PollFd{Fd: int32(m.fd), Events: unix.POLLIN}
	}
	if poll(set, time.Now().Add(patience)) != 1 {
		return nil
	}
	m := members[slices.IndexFunc(set, func(p unix.PollFd) bool { return p.Revents != 0 })]
	m.acceptOne()
	return m
}

// acceptOne takes a connection out of a queue that is not empty.
func (m *Member) acceptOne() {
	if conn, _, err := unix.Accept4(m.fd, unix.SOCK_CLOEXEC); err == nil {
		closeDescriptor(conn)
	}
}

// poll is poll(2) until a moment, whatever signals the runtime sends itself. It
// returns how many are ready.
func poll(set []unix.PollFd, end time.Time) int {
	for {
		left := max(time.Until(end), 0)
		n, err := unix.Poll(set, int((left+time.Millisecond-1)/time.Millisecond))
		if err != unix.EINTR {
			return n
		}
	}
}
