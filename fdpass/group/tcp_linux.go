package group

import (
	"errors"
	"os"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/moult/moult/fdpass"
)

// A tcpGroup is a TCP address in which each worker has a socket of its own.
//
// Between a departure and the next attach the program still names the old
// indices. So that this never matters, the end of the array is kept for
// spares, one for each member that may leave on its own (a worker may shut its
// listener down while it drains): whoever leaves, a spare moves, and a serving
// member keeps its index. At rest there are none.
type tcpGroup struct{ array }

func newTCP(g address) *tcpGroup {
	return &tcpGroup{array{address: g, program: steeringProgram}}
}

// whyNotSteered tells why a TCP address gets one socket for all; "" where it is
// steered.
func whyNotSteered(a fdpass.Address) string {
	if a.ReusePort {
		return "reuseport=1 lets other programs into the group, so that members cannot be told apart"
	}
	if err := SelfTest(); err != nil {
		return doesNotSteer(err)
	}
	return ""
}

func openTCP(a fdpass.Address) (Group, error) {
	shared, err := openSocket(a, func(fd int) error { return listenFirst(fd, a.QueueLength()) })
	if err != nil {
		return nil, err
	}
	g := newTCP(*shared)
	g.how, g.members[0].spare = Steered, true
	return g, nil
}

// bindFirst opens an address again that all members have left. What only workers
// bind is theirs to bind.
func (g *tcpGroup) bindFirst() (*Member, error) {
	if g.learned {
		return nil, errNobody
	}
	fd, err := g.at.Bind(nil)
	if err != nil {
		return nil, err
	}
	if err := listenFirst(fd, g.backlog); err != nil {
		closeDescriptor(fd)
		return nil, err
	}
	m, err := newMember(fd)
	if err == nil {
		m.spare = true
	}
	return m, err
}

// listenFirst begins to listen on an address that nobody else listens on.
//
// Bound with SO_REUSEADDR alone, two masters that start in the same moment are
// both let in; who listens second is told, unless both have SO_REUSEPORT by
// then. So the option is off while listen(2) looks. It was on before, for the
// program: the kernel makes a group of a socket that has the option and does
// not listen yet, and keeps it, however the socket was bound. And it is on
// afterwards, for those that join.
func listenFirst(fd, backlog int) error {
	return inTurn(
		reusePort(fd, 1),
		func() error { return attach(fd, steeringProgram([]int{0}, nil)) },
		reusePort(fd, 0),
		func() error { return os.NewSyscallError("listen", syscall.Listen(fd, backlog)) },
		reusePort(fd, 1))
}

// steerPassed has others join a socket from outside, or tells in the group's
// description why they cannot: its type and its owner are its maker's choice.
func steerPassed(shared *sharedGroup) Group {
	if err := SelfTest(); err != nil {
		shared.why = doesNotSteer(err)
		return shared
	}
	g := newTCP(shared.address)
	first := g.members[0]
	first.spare = true
	undo := restore(first.fd)
	if err := inTurn(reusePort(first.fd, 1), g.joinForeign); err != nil {
		undo()
		first.spare = false
		shared.why = "the socket that was passed cannot join a group: " + err.Error()
		return shared
	}
	g.how, first.common = Steered, false
	return g
}

// joinForeign adds a second member. The kernel makes a group of a socket that
// listens already only when somebody joins it, so that the program comes after
// the member; until then new connections would be spread. Where the master may,
// it has the member drop them for that moment: the client's next SYN comes after
// a second.
func (g *tcpGroup) joinForeign() error {
	m, err := g.bindMember(dropAll)
	if err != nil {
		return err
	}
	g.members = append(g.members, m)
	if err := g.attach(nil); err != nil {
		g.remove(m)
		m.close()
		return err
	}
	dropNothing(m.fd)
	g.trim()
	return nil
}

// dropAll makes a socket drop every packet. Newer kernels ask for
// CAP_NET_ADMIN; without it the moment is a risk that is taken.
func dropAll(fd int) {
	drop := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K}}
	_ = unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &drop[0]})
}

func dropNothing(fd int) { _ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0) }

// Permit implements Inet.
func (g *tcpGroup) Permit(fd int) error { return inTurn(reuseAddr(fd, 1), reusePort(fd, 1)) }

// Adopt implements Inet.
func (g *tcpGroup) Adopt(fd, gen, backlog int) (*Member, error) {
	m, err := newMember(fd)
	if err != nil {
		return nil, err
	}
	if isListening(fd) {
		closeDescriptor(fd)
		return nil, ErrListens
	}
	m.own, m.gen, m.users = true, gen, 1
	undo := restore(fd)
	if err := g.enter(m, backlog); err != nil {
		undo()
		closeDescriptor(fd)
		return nil, err
	}
	return m, nil
}

// enter has a worker's socket listen, as the first of its address or beside
// others. SO_REUSEADDR lets the first one listen beside siblings that are bound
// and do not listen yet, and those that come later be bound beside its old
// connections.
func (g *tcpGroup) enter(m *Member, backlog int) error {
	g.backlog = max(g.backlog, backlog)
	if err := g.Verify(); err != nil {
		return err
	}
	if len(g.members) == 0 {
		err := g.listenFirstOwn(m.fd)
		if err == nil {
			g.members = append(g.members, m)
		}
		return err
	}
	if err := inTurn(reuseAddr(m.fd, 1), reusePort(m.fd, 1), func() error { return m.listen(g.backlog) }); err != nil {
		return err
	}
	g.members = append(g.members, m)
	// It is in, whatever becomes of those that have left meanwhile: the next
	// look tells.
	_ = g.takeOut(g.departed(), 1)
	g.compact(g.shut)
	return nil
}

// listenFirstOwn is listenFirst for a worker's socket. One that has asked for
// SO_REUSEPORT alone may have siblings that are bound by that alone: they are a
// conflict while the option is off, and so they are for a socket that is in a
// group already. It listens as it would without us, and the program comes after.
func (g *tcpGroup) listenFirstOwn(fd int) error {
	port, _ := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT)
	addr, _ := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR)
	if port == 0 || addr != 0 {
		return inTurn(reuseAddr(fd, 1), func() error { return listenFirst(fd, g.backlog) })
	}
	return inTurn(
		func() error { return os.NewSyscallError("listen", syscall.Listen(fd, g.backlog)) },
		func() error { return attach(fd, steeringProgram([]int{0}, nil)) },
		reuseAddr(fd, 1))
}

// Resume implements Inet.
func (g *tcpGroup) Resume(m *Member, backlog int) error {
	if m.foreign {
		return nil // its maker knows how long the queue shall be
	}
	if g.Listening(m) && isListening(m.fd) {
		g.backlog = max(g.backlog, backlog)
		return m.listen(g.backlog)
	}
	return g.enter(m, backlog)
}

// Relisten implements Group.
func (g *tcpGroup) Relisten(m *Member) error {
	if !m.foreign && !isListening(m.fd) {
		// Listening again would put it into the kernel's array unseen.
		return errors.New("cannot restore the queue of " + g.addr.Name + ": the worker has shut its socket down")
	}
	return g.array.Relisten(m)
}

// Join implements Group.
func (g *tcpGroup) Join(gen int) (*Member, error) {
	m, err := g.join()
	if err != nil {
		return nil, g.cannotJoin(gen, err)
	}
	m.gen = gen
	m.users++
	return m, nil
}

func (g *tcpGroup) join() (*Member, error) {
	if err := g.Verify(); err != nil {
		return nil, err
	}
	m, err := g.takeSpare()
	if err != nil {
		return nil, err
	}
	m.spare = false
	if err := g.fillSpares(); err != nil {
		m.spare = true
		g.trim()
		return nil, err
	}
	_ = m.Fresh() // of a descriptor that is open: it does not fail
	return m, nil
}

// takeSpare prefers the lowest index, so that spares gather at the end of the
// array, where they can be closed.
func (g *tcpGroup) takeSpare() (*Member, error) {
	g.sortOut()
	for range 3 { // a member that leaves at this very moment taints what is added
		for _, m := range g.members {
			if m.spare && !m.tainted {
				return m, nil
			}
		}
		if err := g.addSpare(); err != nil {
			return nil, err
		}
	}
	return nil, errors.New("its sockets come and go too fast")
}

// addSpare puts a socket at the end of the kernel's array. The program that is
// attached names other members, so nothing reaches it yet.
func (g *tcpGroup) addSpare() error {
	bind := func() (*Member, error) { return g.bindMember(nil) }
	if len(g.members) == 0 {
		bind = g.bindFirst
	}
	m, err := bind()
	if err != nil {
		return err
	}
	g.members = append(g.members, m)
	// Whoever left while this one came did so before or after it: one change
	// more whose order is not known.
	return g.takeOut(g.departed(), 1)
}

// fillSpares sees to it that the array ends with as many spares as there are
// members that a worker holds and that get no new connections.
func (g *tcpGroup) fillSpares() error {
	for want := g.leaving() - g.tailSpares(); want > 0; want-- {
		if err := g.addSpare(); err != nil {
			return err
		}
	}
	return nil
}

// trim closes the spares at the end of the array that are not wanted any more:
// taking the last one away moves no other.
func (g *tcpGroup) trim() {
	for n := g.tailSpares() - g.leaving(); n > 0 && len(g.members) > 1; n-- {
		last := g.members[len(g.members)-1]
		if last.foreign || !last.spare {
			return
		}
		g.shut(last)
	}
}

// shut takes a member out of the kernel's array, even where a stray process
// still holds a duplicate of it, and out of the mirror.
func (g *tcpGroup) shut(m *Member) {
	for range 3 { // a stray process that calls listen(2) again at this very moment
		_ = syscall.Shutdown(m.fd, syscall.SHUT_RDWR)
		_ = g.Verify()
		if g.index(m) < 0 {
			break
		}
	}
	g.remove(m)
	m.close()
}

// Steer implements Group. The spares are put in place before the switch, which
// is the last that can fail.
func (g *tcpGroup) Steer(serving []*Member) error {
	if g.refused {
		return nil
	}
	before := g.serving
	g.serving = slices.Clone(serving)
	err := inTurn(g.Verify, g.fillSpares, func() error { return g.attach(serving) })
	if err != nil {
		g.serving = before
		return g.cannotSteer(err)
	}
	g.settle()
	return nil
}

// Leave implements Group.
func (g *tcpGroup) Leave(m *Member) {
	if m.users--; m.users > 0 {
		return
	}
	_ = g.Verify() // a member that cannot be put back is out, which is what is wanted
	switch {
	case g.index(m) < 0: // it had left by itself
		g.stopServing(m)
		m.close()
	case m.foreign:
		m.spare, m.users = true, 0
	default:
		if last := g.members[len(g.members)-1]; last != m && !last.spare {
			_ = g.addSpare() // without it the last one moves, and is found again by attach
		}
		g.stopServing(m)
		g.shut(m)
	}
	g.settle()
}

// settle closes the spares that nobody needs, also those in front of members
// that serve, once no worker is on its way out or in.
func (g *tcpGroup) settle() {
	g.trim()
	for range len(g.members) {
		if g.leaving() > 0 || g.refused || len(g.probes) > 0 {
			return
		}
		g.sortOut()
		i := slices.IndexFunc(g.members, (*Member).closable)
		if i < 0 || len(g.members) == 1 || len(g.tainted()) > 0 || g.moveDown(g.members[i]) != nil {
			return
		}
		g.trim()
	}
}

// moveDown closes a spare in front of a member that serves: the last one, which
// takes its place. Until the program follows, the kernel finds nobody at the old
// index and chooses among all. Where all that are left serve, that is right.
// Otherwise the program names the new index first, and the spare, as long as it
// is there, has a full queue: a client that comes in these microseconds is not
// heard, and its next SYN, a second later, is.
func (g *tcpGroup) moveDown(spare *Member) error {
	last := g.members[len(g.members)-1]
	if !g.isServing(last) {
		return errNobody
	}
	others := slices.ContainsFunc(g.members, func(m *Member) bool { return m != spare && !g.isServing(m) })
	if others {
		if err := g.makeFull(spare); err != nil {
			return err
		}
		var indices []int
		for _, m := range g.serving {
			if m == last {
				m = spare
			}
			indices = append(indices, g.index(m))
		}
		if err := g.attachIndices(indices); err != nil {
			return errors.Join(err, g.attach(g.serving))
		}
	}
	g.shut(spare)
	return nil
}
