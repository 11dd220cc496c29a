package fdpass

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"syscall"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// A group is the set of a TCP address's members in the kernel's SO_REUSEPORT
// array. A member's index there is its order of listen(2); when one leaves,
// the last takes its place. Socket.members mirrors the array.
//
// Between a departure and the next attach the program still names the old
// indices. So that this never matters, the end of the array is kept for
// spares, one for each member that may leave on its own (a worker may shut its
// listener down while it drains): whoever leaves, a spare moves, and a serving
// member keeps its index.

// mayGroup tells whether the first socket of this address shall be made fit
// for a group.
func (s *Socket) mayGroup() bool {
	return !s.share && !s.addr.ReusePort && steeringWorks() == nil
}

// tryGroup makes a group of the socket that was just opened, or says why it is
// shared.
func (s *Socket) tryGroup() error {
	switch {
	case s.share:
		return nil
	case s.addr.ReusePort:
		s.why = "reuseport=1 lets other programs into the group, so that members cannot be told apart"
		return nil
	}
	if err := steeringWorks(); err != nil {
		s.why = "this kernel does not steer: " + err.Error()
		return nil
	}
	s.how = Steered
	if err := s.startGroup(); err != nil {
		if !s.members[0].foreign {
			return err
		}
		s.how = Shared
		s.why = "the socket that was passed cannot join a group: " + err.Error()
	}
	return nil
}

// startGroup makes the first socket fit to be joined. One that was opened here
// already is (listenFirst). One from outside has to prove that others may join
// it: type and owner decide, and both are its maker's.
func (s *Socket) startGroup() error {
	first := s.members[0]
	first.spare = !first.own
	if _, err := s.target(); err != nil || !first.foreign {
		return err
	}
	before, err := unix.GetsockoptInt(first.fd, unix.SOL_SOCKET, unix.SO_REUSEPORT)
	if err == nil {
		err = setReusePort(first.fd, 1)
	}
	if err != nil {
		return os.NewSyscallError("SO_REUSEPORT", err)
	}
	if err := s.joinForeign(); err != nil {
		_ = setReusePort(first.fd, before)
		return err
	}
	return nil
}

// joinForeign adds a second member. The kernel makes a group of a socket that
// listens already only when somebody joins it, so that the program comes after
// the member; until then new connections would be spread. Where the master may,
// it has the member drop them for that moment: the client's next SYN comes after
// a second.
func (s *Socket) joinForeign() error {
	t, err := s.target()
	if err != nil {
		return err
	}
	m, err := s.bindInetWith(t, true, dropAll)
	if err != nil {
		return err
	}
	m.spare = true
	s.members = append(s.members, m)
	if err := s.attach(nil); err != nil {
		s.members = s.members[:1]
		closeDescriptor(m.fd)
		return err
	}
	_ = unix.SetsockoptInt(m.fd, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0)
	return nil
}

// dropAll makes a socket drop every packet. Newer kernels ask for
// CAP_NET_ADMIN; without it the moment is a risk that is taken.
func dropAll(fd int) {
	drop := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K}}
	_ = unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &drop[0]})
}

// listenFirst begins to listen on an address that nobody else listens on.
//
// Bound with SO_REUSEADDR alone, two masters that start in the same moment are
// both let in; who listens second is told, unless both have SO_REUSEPORT by
// then. So the option is off while listen(2) looks. It was on before, for the
// program: the kernel makes a group of a socket that has the option and does
// not listen yet, and keeps it. And it is on afterwards, for those that join.
func (s *Socket) listenFirst(fd int) error {
	listen := func() error { return os.NewSyscallError("listen", syscall.Listen(fd, s.backlog)) }
	if !s.mayGroup() {
		return listen()
	}
	return inTurn(reusePort(fd, 1), attachTo(fd), reusePort(fd, 0), listen, reusePort(fd, 1))
}

func inTurn(steps ...func() error) error {
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func setReusePort(fd, on int) error {
	return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, on)
}

func (s *Socket) joinGroup() (*Member, error) {
	if err := s.Verify(); err != nil {
		return nil, err
	}
	m, err := s.takeSpare()
	if err != nil {
		return nil, err
	}
	m.spare = false
	if err := s.fillSpares(); err != nil {
		m.spare = true
		return nil, err
	}
	return m, nil
}

// takeSpare prefers the lowest index, so that spares gather at the end of the
// array, where they can be closed.
func (s *Socket) takeSpare() (*Member, error) {
	s.sortOut()
	for range 3 { // a member that leaves at this very moment taints what is added
		for _, m := range s.members {
			if m.spare && !m.tainted {
				return m, m.makeFresh()
			}
		}
		if err := s.addSpare(); err != nil {
			return nil, err
		}
	}
	return nil, errors.New("its sockets come and go too fast")
}

// makeFresh undoes what a worker before may have changed: systemd hands out
// blocking sockets, and servers in Python rely on it.
func (m *Member) makeFresh() error {
	return os.NewSyscallError("fcntl", syscall.SetNonblock(m.fd, false))
}

// addSpare puts a socket at the end of the kernel's array. The program that is
// attached names other members, so nothing reaches it yet.
func (s *Socket) addSpare() error {
	t, err := s.target()
	if err != nil {
		return err
	}
	m, err := s.bindInet(t, len(s.members) > 0)
	if err != nil {
		return err
	}
	m.spare = true
	s.members = append(s.members, m)
	// Whoever left while this one came did so before or after it: one change
	// more whose order is not known.
	return s.takeOut(s.departed(), 1)
}

// fillSpares sees to it that the array ends with as many spares as there are
// members that a worker holds and that get no new connections.
func (s *Socket) fillSpares() error {
	for want := s.leaving() - s.tailSpares(); want > 0; want-- {
		if err := s.addSpare(); err != nil {
			return err
		}
	}
	return nil
}

// keepDatagrams leaves the socket of a worker that is gone where it is, unused.
// To close it would move a member that serves, and a datagram that arrives
// before the program has followed is lost. It is closed when the next generation
// has joined and does not serve yet (compact).
func (s *Socket) keepDatagrams(m *Member) {
	s.stopServing(m)
	m.spare = true
	s.trim()
}

// leaving counts the members whose workers may shut them down; nobody can do
// that to a datagram socket.
func (s *Socket) leaving() int {
	n := 0
	if s.network == "udp" {
		return n
	}
	for _, m := range s.members {
		if !m.spare && !s.Serving(m) {
			n++
		}
	}
	return n
}

func (s *Socket) tailSpares() int {
	n := 0
	for i := len(s.members) - 1; i >= 0 && s.members[i].spare; i-- {
		n++
	}
	return n
}

// trim closes the spares at the end of the array that are not wanted any more:
// taking the last one away moves no other.
func (s *Socket) trim() {
	for n := s.tailSpares() - s.leaving(); n > 0 && len(s.members) > 1; n-- {
		last := s.members[len(s.members)-1]
		if last.foreign || !last.spare {
			return
		}
		s.shut(last)
	}
}

// shut takes a member out of the kernel's array, even where a stray process
// still holds a duplicate of it, and out of the mirror.
func (s *Socket) shut(m *Member) {
	if s.network == "udp" {
		// A datagram socket leaves when nobody has it any more: its worker
		// is gone.
		closeDescriptor(m.fd)
		s.remove(m)
		_ = s.attach(s.serving)
		return
	}
	_ = syscall.Shutdown(m.fd, syscall.SHUT_RDWR)
	_ = s.Verify()
	closeDescriptor(m.fd)
}

// target is the exact address that the first member got: a name is not looked
// up again, and port 0 is not chosen again.
func (s *Socket) target() (inetTarget, error) {
	if s.at != nil {
		return *s.at, nil
	}
	t, err := targetOf(s.members[0].fd)
	if err == nil {
		s.at = &t
	}
	return t, err
}

func targetOf(fd int) (inetTarget, error) {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return inetTarget{}, os.NewSyscallError("getsockname", err)
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return inetTarget{ip: net.IP(sa.Addr[:]), port: sa.Port, family: unix.AF_INET}, nil
	case *unix.SockaddrInet6:
		only, err := unix.GetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY)
		t := inetTarget{ip: net.IP(sa.Addr[:]), port: sa.Port, family: unix.AF_INET6, v6only: only == 1}
		if sa.ZoneId != 0 {
			t.zone = strconv.Itoa(int(sa.ZoneId))
		}
		return t, err
	}
	return inetTarget{}, fmt.Errorf("a socket of family %T cannot be steered", sa)
}

// steerGroup puts the spares in place before the switch, which is the last that
// can fail.
func (s *Socket) steerGroup() error {
	if err := s.Verify(); err != nil {
		return err
	}
	if err := s.fillSpares(); err != nil {
		return err
	}
	if err := s.attach(s.serving); err != nil {
		return err
	}
	s.trim()
	return nil
}

// attach puts the program for these members in force, with a rule for each
// probe. Before anybody serves, connections wait in the first member.
func (s *Socket) attach(serving []*Member) error {
	if len(s.members) == 0 {
		return nil
	}
	indices := make([]int, 0, len(serving))
	for _, m := range serving {
		i := s.index(m)
		if i < 0 {
			return fmt.Errorf("socket %d listens no more", m.inode)
		}
		indices = append(indices, i)
	}
	if len(indices) == 0 {
		indices = append(indices, 0)
	}
	var rules []probeRule
	for _, p := range s.probes {
		if i := s.index(p.member); i >= 0 {
			rules = append(rules, probeRule{from: p.from, index: i})
		}
	}
	program := steeringProgram(indices, rules)
	if s.network == "udp" {
		program = datagramProgram(indices)
	}
	// The program is the group's, and any member's descriptor will do. A
	// worker may have locked its own (SO_LOCK_FILTER).
	var err error
	for _, m := range s.members {
		if err = attach(m.fd, program); !errors.Is(err, unix.EPERM) {
			return err
		}
	}
	return err
}

func attachProgram(fd int, indices []int, rules []probeRule) error {
	return attach(fd, steeringProgram(indices, rules))
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

func (s *Socket) index(m *Member) int { return slices.Index(s.members, m) }

// leaveGroup takes a member out whose worker is gone.
func (s *Socket) leaveGroup(m *Member) {
	_ = s.Verify() // a member that cannot be put back is out, which is what is wanted
	switch {
	case s.index(m) < 0: // it had left by itself
		s.stopServing(m)
		closeDescriptor(m.fd)
		return
	case m.foreign:
		m.spare, m.users = true, 0
		return
	case s.network == "udp":
		s.keepDatagrams(m)
		return
	}
	if last := s.members[len(s.members)-1]; last != m && !last.spare {
		_ = s.addSpare() // without it the last one moves, and is found again by attach
	}
	s.stopServing(m)
	s.shut(m)
	s.trim()
}

// Barrier waits until every CPU that ran an old program is done with the
// packet it had in hand: what Steer or Refuse turned away cannot arrive any
// more. It takes some ten milliseconds. Where a container forbids the call, the
// waiting for handshakes and queues that follows has to do.
func Barrier() {
	const cmdGlobal = 1 << 0 // MEMBARRIER_CMD_GLOBAL, linux/membarrier.h
	_, _, _ = unix.Syscall(unix.SYS_MEMBARRIER, cmdGlobal, 0, 0)
}
