package fdpass

import (
	"errors"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// Verify follows what happened to the group without us: a worker that called
// shutdown(2) on its listener has taken it out of the kernel's array. A member
// that serves, or that came from outside, is put back, at the end of the array.
// It is cheap (one getsockopt for each member) and is called at every look
// while something drains.
func (s *Socket) Verify() error {
	if s.how != Steered {
		return nil
	}
	return s.takeOut(s.departed(), 0)
}

func (s *Socket) departed() []*Member {
	if s.network == "udp" {
		return nil // shutdown(2) changes nothing there
	}
	var gone []*Member
	for _, m := range s.members {
		if !isListening(m.fd) {
			gone = append(gone, m)
		}
	}
	return gone
}

// takeOut removes members that listen no more from the mirror and attaches the
// program anew. More is the number of other changes in the meantime.
func (s *Socket) takeOut(gone []*Member, more int) error {
	if len(gone) == 0 {
		return nil
	}
	s.taint(gone, len(gone)+more)
	for _, m := range gone {
		s.remove(m)
	}
	var err error
	for _, m := range gone {
		err = errors.Join(err, s.putBack(m))
	}
	s.clearTaint()
	return errors.Join(err, s.attach(s.serving))
}

// taint marks the members whose place is not known after some changes in an
// order that nobody saw. Only the last ones move, as many as there were changes,
// each into the place of one that left; and whoever moves into the place of a
// tainted one is tainted.
func (s *Socket) taint(gone []*Member, changes int) {
	if changes == 1 && !gone[0].tainted {
		return
	}
	for _, m := range s.members[max(len(s.members)-changes, 0):] {
		m.tainted = true
	}
}

// clearTaint knows that one tainted member alone has but one place to be.
func (s *Socket) clearTaint() {
	if t := s.tainted(); len(t) == 1 {
		t[0].tainted = false
	}
}

func (s *Socket) tainted() []*Member {
	var list []*Member
	for _, m := range s.members {
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
func (s *Socket) putBack(m *Member) error {
	m.tainted = false
	if m.own {
		s.stopServing(m) // the worker may do with its own as it likes
		return nil
	}
	if !m.foreign && !slices.Contains(s.serving, m) {
		return nil
	}
	t, err := s.target()
	if err != nil {
		return err
	}
	sa, err := t.sockaddr()
	if err != nil {
		return err
	}
	_ = syscall.Bind(m.fd, sa)
	if err := listenAgain(m.fd, s.backlog); err != nil {
		s.stopServing(m)
		return err
	}
	s.members = append(s.members, m)
	return nil
}

// sortOut finds out where tainted spares are: the program gives a connection to
// one index, and the queue of one of them fills, on which nobody else accepts.
// What it cannot find out stays tainted.
func (s *Socket) sortOut() {
	spares := s.tainted()
	if slices.ContainsFunc(spares, func(m *Member) bool { return !m.spare }) {
		return
	}
	at := map[int]*Member{}
	for _, m := range spares {
		if found := s.knock(m, spares); found != nil {
			at[s.index(m)] = found
		}
	}
	if len(at) != len(spares) || len(s.departed()) > 0 {
		return
	}
	for i, m := range at {
		s.members[i], m.tainted = m, false
	}
}

// knock sends a connection to the place where m should be and returns who gets
// it.
func (s *Socket) knock(m *Member, spares []*Member) *Member {
	p, err := s.StartProbe(m)
	if err != nil {
		return nil
	}
	defer p.Close()
	const patience = 100 // milliseconds; on loopback it takes microseconds
	set := make([]unix.PollFd, len(spares))
	for i, x := range spares {
		set[i] = unix.PollFd{Fd: int32(x.fd), Events: unix.POLLIN}
	}
	if n, err := unix.Poll(set, patience); err != nil || n != 1 {
		return nil
	}
	i := slices.IndexFunc(set, func(p unix.PollFd) bool { return p.Revents != 0 })
	if conn, _, err := unix.Accept4(spares[i].fd, unix.SOCK_CLOEXEC); err == nil {
		closeDescriptor(conn)
	}
	return spares[i]
}
