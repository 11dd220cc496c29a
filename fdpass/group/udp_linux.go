package group

import (
	"errors"
	"slices"
	"syscall"

	"golang.org/x/net/bpf"

	"github.com/moult/moult/fdpass"
)

// A udpGroup is a UDP address that the workers bind themselves, in which each
// has a socket of its own. A socket is in the kernel's array as soon as it is
// bound, and until nobody has it any more: shutdown(2) changes nothing.
type udpGroup struct{ array }

func newUDP(g address) *udpGroup {
	return &udpGroup{array{address: g, program: func(indices []int, _ []probeRule) []bpf.Instruction { return datagramProgram(indices) }}}
}

// PrepareDatagram makes the first socket of a UDP address fit to be joined by
// others; the worker binds it afterwards. fd is a duplicate of it and stays the
// caller's. The error wraps EADDRINUSE where somebody else has the address; the
// socket is as it was then.
//
// A socket that has a program finds the address taken only by those that are
// in no group with it, so that the address is tried with another one before.
// The option is off again for the bind, so that whatever else has the address,
// or one that overlaps it, is a conflict.
func PrepareDatagram(fd int, b fdpass.Binding) error {
	try, err := b.Bind(nil)
	switch {
	case err == nil:
		closeDescriptor(try)
	case errors.Is(err, syscall.EADDRINUSE):
		return err // what else may be wrong shows at the bind itself
	}
	undo := restore(fd)
	err = inTurn(
		reusePort(fd, 1),
		func() error { return attach(fd, datagramProgram([]int{0})) },
		reusePort(fd, 0))
	if err != nil {
		undo()
	}
	return err
}

// Permit implements Inet. SO_REUSEADDR is left alone: with it any program might
// bind the port too, and take the packets.
func (g *udpGroup) Permit(fd int) error {
	if len(g.members) == 0 {
		return PrepareDatagram(fd, g.at)
	}
	return reusePort(fd, 1)()
}

// Adopt implements Inet.
func (g *udpGroup) Adopt(fd, gen, _ int) (*Member, error) {
	m, err := newMember(fd)
	if err != nil {
		return nil, err
	}
	m.own, m.gen, m.users = true, gen, 1
	first := len(g.members) == 0
	if first {
		err = reusePort(fd, 1)()
	}
	if err == nil {
		g.members = append(g.members, m)
		err = g.attach(g.serving)
	}
	if err != nil {
		g.remove(m)
		closeDescriptor(fd)
		return nil, err
	}
	g.compact(g.shut)
	return m, nil
}

// Resume implements Inet: there is nothing to listen to.
func (g *udpGroup) Resume(*Member, int) error { return nil }

// Verify implements Group: nothing happens there without us.
func (g *udpGroup) Verify() error { return nil }

// Join implements Group.
func (g *udpGroup) Join(gen int) (*Member, error) {
	i := slices.IndexFunc(g.members, func(m *Member) bool { return m.spare })
	if i < 0 {
		if len(g.members) == 0 {
			return nil, g.cannotJoin(gen, errNobody)
		}
		m, err := g.bindMember(nil)
		if err != nil {
			return nil, g.cannotJoin(gen, err)
		}
		g.members = append(g.members, m)
		i = len(g.members) - 1
	}
	m := g.members[i]
	m.spare, m.gen = false, gen
	m.users++
	_ = m.Fresh() // of a descriptor that is open: it does not fail
	return m, nil
}

// Steer implements Group.
func (g *udpGroup) Steer(serving []*Member) error {
	if g.refused {
		return nil
	}
	if err := g.attach(serving); err != nil {
		return g.cannotSteer(err)
	}
	g.serving = slices.Clone(serving)
	g.trim()
	return nil
}

// Leave implements Group. The socket stays where it is, unused, where to close
// it would move a member that serves: a datagram that arrives before the program
// has followed is lost. It is closed when the next generation has joined and
// does not serve yet (compact), or when all that would be left serve, so that
// it does not matter whom the kernel chooses meanwhile.
func (g *udpGroup) Leave(m *Member) {
	if m.users--; m.users > 0 {
		return
	}
	g.stopServing(m)
	m.spare = true
	if !slices.ContainsFunc(g.members, func(m *Member) bool { return !m.spare }) {
		g.closeMembers() // nobody serves the address any more
		return
	}
	g.trim()
}

func (g *udpGroup) trim() {
	for len(g.members) > 1 {
		last := g.members[len(g.members)-1]
		if !last.closable() {
			break
		}
		g.shut(last)
	}
	i := slices.IndexFunc(g.members, (*Member).closable)
	if i < 0 || len(g.members) == 1 {
		return
	}
	if spare := g.members[i]; !slices.ContainsFunc(g.members, func(m *Member) bool { return m != spare && !g.isServing(m) }) {
		g.shut(spare)
	}
}

// shut closes the socket of a worker that is gone, which takes it out of the
// array.
func (g *udpGroup) shut(m *Member) {
	m.close()
	g.remove(m)
	_ = g.attach(g.serving)
}

// Refuse implements Group. Nobody can turn a datagram away.
func (g *udpGroup) Refuse() error {
	g.refused = true
	return nil
}
