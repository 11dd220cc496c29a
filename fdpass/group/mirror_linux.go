package group

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"syscall"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/moult/moult/fdpass"
)

// An array is a SO_REUSEPORT group, of which members mirrors what the kernel
// has: a member's index is its order of listen(2), or of bind(2) for datagrams;
// when one leaves, the last takes its place. The program names members by index.
type array struct {
	address
	probes  []*Probe // the program has a rule for each
	program func(indices []int, rules []probeRule) []bpf.Instruction
}

func (g *array) index(m *Member) int { return slices.Index(g.members, m) }

func (g *address) isServing(m *Member) bool { return slices.Contains(g.serving, m) }

// stopServing forgets a member without touching the caller's list.
func (g *address) stopServing(m *Member) {
	g.serving = slices.DeleteFunc(slices.Clone(g.serving), func(x *Member) bool { return x == m })
}

func (g *address) cannotSteer(err error) error {
	return fmt.Errorf("cannot steer new connections on %s: %w", g.addr.Name, err)
}

// Listening implements Inet.
func (g *array) Listening(m *Member) bool { return g.index(m) >= 0 }

// attach puts the program for these members in force, with a rule for each
// probe. Before anybody serves, connections wait in the first member.
func (g *array) attach(serving []*Member) error {
	indices := make([]int, 0, len(serving))
	for _, m := range serving {
		i := g.index(m)
		if i < 0 {
			return fmt.Errorf("socket %d listens no more", m.inode)
		}
		indices = append(indices, i)
	}
	return g.attachIndices(indices)
}

func (g *array) attachIndices(indices []int) error {
	if len(indices) == 0 {
		indices = []int{0}
	}
	var rules []probeRule
	for _, p := range g.probes {
		if i := g.index(p.member); i >= 0 {
			rules = append(rules, probeRule{from: p.from, index: i})
		}
	}
	program := g.program(indices, rules)
	// The program is the group's, and any member's descriptor will do. A
	// worker may have locked its own (SO_LOCK_FILTER).
	var err error
	for _, m := range g.members {
		if err = attach(m.fd, program); !errors.Is(err, unix.EPERM) {
			return err
		}
	}
	return err
}

func attach(fd int, instructions []bpf.Instruction) error {
	program, err := assemble(instructions)
	if err != nil {
		return err
	}
	fprog := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	return os.NewSyscallError("setsockopt SO_ATTACH_REUSEPORT_CBPF",
		unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_REUSEPORT_CBPF, &fprog))
}

// bindMember makes one more socket of the address, which joins those that are
// there. prepare, if not nil, is called before it is bound.
func (g *array) bindMember(prepare func(fd int)) (*Member, error) {
	fd, err := g.at.Bind(func(fd int) error {
		g.disguise(fd)
		if prepare != nil {
			prepare(fd)
		}
		return reusePort(fd, 1)()
	})
	if err != nil {
		return nil, err
	}
	if g.network == "tcp" {
		if err := os.NewSyscallError("listen", syscall.Listen(fd, g.backlog)); err != nil {
			closeDescriptor(fd)
			return nil, err
		}
	}
	m, err := newMember(fd)
	if err == nil {
		m.spare = true
	}
	return m, err
}

// disguise makes a socket of our own fit for a group of workers' sockets: it
// has to belong to the same user, for the kernel lets nobody else in, and may
// have to be bound where only they may be. Where the master may not give it
// away, bind(2) says so.
func (g *array) disguise(fd int) {
	if g.at.Device != 0 {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX, g.at.Device)
	}
	if !g.learned || len(g.members) == 0 {
		return
	}
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_FREEBIND, 1)
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_FREEBIND, 1)
	var own, theirs unix.Stat_t
	if unix.Fstat(fd, &own) == nil && unix.Fstat(g.members[0].fd, &theirs) == nil && own.Uid != theirs.Uid {
		_ = unix.Fchown(fd, int(theirs.Uid), -1)
	}
}

// Verify implements Group. It costs one getsockopt for each member. A member
// that serves, or that came from outside, is put back, at the end of the array.
func (g *array) Verify() error { return g.takeOut(g.departed(), 0) }

func (g *array) departed() []*Member {
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
func (g *array) takeOut(gone []*Member, more int) error {
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
func (g *array) taint(gone []*Member, changes int) {
	if changes == 1 && !gone[0].tainted {
		return
	}
	for _, m := range g.members[max(len(g.members)-changes, 0):] {
		m.tainted = true
	}
}

// clearTaint knows that one tainted member alone has but one place to be.
func (g *array) clearTaint() {
	if t := g.tainted(); len(t) == 1 {
		t[0].tainted = false
	}
}

func (g *array) tainted() []*Member {
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
func (g *array) putBack(m *Member) error {
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

// leaving counts the members whose workers may shut them down.
func (g *array) leaving() int {
	n := 0
	for _, m := range g.members {
		if !m.spare && !g.isServing(m) {
			n++
		}
	}
	return n
}

func (g *array) tailSpares() int {
	n := 0
	for i := len(g.members) - 1; i >= 0 && g.members[i].spare; i-- {
		n++
	}
	return n
}

// compact closes spares that are not at the end of the array. The last member
// takes the place of each, which is done where it gets no connections.
func (g *array) compact(shut func(*Member)) {
	for i := 0; i < len(g.members)-1; {
		last := g.members[len(g.members)-1]
		if last.spare || g.isServing(last) {
			return
		}
		if g.members[i].closable() {
			shut(g.members[i])
			continue
		}
		i++
	}
}

func (m *Member) closable() bool { return m.spare && !m.foreign && !m.tainted }

// Close implements Group.
func (g *array) Close() {
	g.closeMembers()
	g.probes = nil
}

func inTurn(steps ...func() error) error {
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func reusePort(fd, on int) func() error {
	return socketOption(fd, unix.SO_REUSEPORT, on, "SO_REUSEPORT")
}
func reuseAddr(fd, on int) func() error {
	return socketOption(fd, unix.SO_REUSEADDR, on, "SO_REUSEADDR")
}

func socketOption(fd, option, value int, name string) func() error {
	return func() error {
		return os.NewSyscallError("setsockopt "+name, unix.SetsockoptInt(fd, unix.SOL_SOCKET, option, value))
	}
}

// restore returns what gives a worker's socket its two options back: one that
// is refused finds it as it was, and may try another address.
func restore(fd int) func() {
	port, errPort := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT)
	addr, errAddr := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR)
	return func() {
		if errPort == nil {
			_ = reusePort(fd, port)()
		}
		if errAddr == nil {
			_ = reuseAddr(fd, addr)()
		}
	}
}

// LearnInet is the group for an address that a worker binds itself. It has no
// members before the first Adopt. It may have to try steering first (SelfTest).
func LearnInet(b fdpass.Binding, opt Options) Inet {
	g := learnedAddress(b.Network, b.String())
	g.at = b.Exact()
	g.addr.Host, g.addr.Port = b.Addr.Addr().String(), int(b.Addr.Port())
	if opt.Share {
		return &sharedGroup{g}
	}
	if err := SelfTest(); err != nil {
		g.why = doesNotSteer(err)
		return &sharedGroup{g}
	}
	g.how = Steered
	if b.Network == "udp" {
		return newUDP(g)
	}
	return newTCP(g)
}

func doesNotSteer(err error) string { return "this kernel does not steer: " + err.Error() }

// Barrier waits until every CPU that ran an old program is done with the
// packet it had in hand: what Steer or Refuse turned away cannot arrive any
// more. It takes some ten milliseconds. Where a container forbids the call, the
// waiting for handshakes and queues that follows has to do.
func Barrier() {
	const cmdGlobal = 1 << 0 // MEMBARRIER_CMD_GLOBAL, linux/membarrier.h
	_, _, _ = unix.Syscall(unix.SYS_MEMBARRIER, cmdGlobal, 0, 0)
}
