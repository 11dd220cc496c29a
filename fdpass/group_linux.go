package fdpass

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"sync"
	"syscall"

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

// startGroup attaches the first program. The socket from outside has to prove
// that others may join it: type and owner decide, and both are its maker's.
func (s *Socket) startGroup() error {
	first := s.members[0]
	if !first.foreign {
		first.spare = true
		return s.attach([]*Member{first})
	}
	if err := enableReusePort(first.fd); err != nil {
		return os.NewSyscallError("setsockopt SO_REUSEPORT", err)
	}
	if err := s.attach([]*Member{first}); err != nil {
		return err
	}
	s.serving = []*Member{first}
	probe, err := s.openMember()
	if err != nil {
		return err
	}
	probe.spare = true
	s.members = append(s.members, probe)
	first.spare = true
	return nil
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
	return m, s.fillSpares()
}

// takeSpare prefers the lowest index, so that spares gather at the end of the
// array, where they can be closed.
func (s *Socket) takeSpare() (*Member, error) {
	for _, m := range s.members {
		if m.spare && !m.tainted {
			return m, m.makeFresh()
		}
	}
	m, err := s.openMember()
	if err != nil {
		return nil, err
	}
	s.members = append(s.members, m)
	return m, nil
}

// makeFresh undoes what a worker before may have changed: systemd hands out
// blocking sockets, and servers in Python rely on it.
func (m *Member) makeFresh() error {
	return os.NewSyscallError("fcntl", syscall.SetNonblock(m.fd, false))
}

// fillSpares sees to it that the array ends with as many spares as there are
// members that a worker holds and that get no new connections.
func (s *Socket) fillSpares() error {
	leaving := 0
	for _, m := range s.members {
		if !m.spare && !s.Serving(m) {
			leaving++
		}
	}
	for have := s.tailSpares(); have < leaving; have++ {
		m, err := s.openMember()
		if err != nil {
			return err
		}
		m.spare = true
		s.members = append(s.members, m)
	}
	return nil
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
	leaving := 0
	for _, m := range s.members {
		if !m.spare && !s.Serving(m) {
			leaving++
		}
	}
	for n := s.tailSpares(); n > leaving && len(s.members) > 1; n-- {
		last := s.members[len(s.members)-1]
		if last.foreign {
			return
		}
		closeDescriptor(last.fd)
		s.members = s.members[:len(s.members)-1]
	}
}

// openMember adds a socket to the kernel's array. The program that is attached
// names other members, so nothing reaches it yet.
func (s *Socket) openMember() (*Member, error) {
	t, err := s.target()
	if err != nil {
		return nil, err
	}
	m, err := s.bindInet(t, true)
	if err != nil {
		return nil, err
	}
	return m, nil
}

// target is the exact address that the first member got: a name is not looked
// up again, and port 0 is not chosen again.
func (s *Socket) target() (inetTarget, error) {
	sa, err := unix.Getsockname(s.members[0].fd)
	if err != nil {
		return inetTarget{}, os.NewSyscallError("getsockname", err)
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return inetTarget{ip: net.IP(sa.Addr[:]), port: sa.Port, family: unix.AF_INET}, nil
	case *unix.SockaddrInet6:
		only, err := unix.GetsockoptInt(s.members[0].fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY)
		t := inetTarget{ip: net.IP(sa.Addr[:]), port: sa.Port, family: unix.AF_INET6, v6only: only == 1}
		if sa.ZoneId != 0 {
			t.zone = strconv.Itoa(int(sa.ZoneId))
		}
		return t, err
	}
	return inetTarget{}, fmt.Errorf("a socket of family %T cannot be steered", sa)
}

func (s *Socket) steerGroup() error {
	if err := s.Verify(); err != nil {
		return err
	}
	if err := s.attach(s.serving); err != nil {
		return err
	}
	s.trim()
	return s.fillSpares()
}

// attach puts the program for these members in force.
func (s *Socket) attach(serving []*Member) error {
	indices := make([]int, 0, len(serving))
	for _, m := range serving {
		i := s.index(m)
		if i < 0 {
			return fmt.Errorf("socket %d listens no more", m.inode)
		}
		indices = append(indices, i)
	}
	var rule *probeRule
	if s.probe != nil {
		rule = &probeRule{from: s.probe.from, index: s.index(s.probe.member)}
	}
	program, err := steeringProgram(indices, rule)
	if err != nil {
		return err
	}
	fprog := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	return os.NewSyscallError("setsockopt SO_ATTACH_REUSEPORT_CBPF",
		unix.SetsockoptSockFprog(s.members[0].fd, unix.SOL_SOCKET, unix.SO_ATTACH_REUSEPORT_CBPF, &fprog))
}

func (s *Socket) index(m *Member) int {
	for i, x := range s.members {
		if x == m {
			return i
		}
	}
	return -1
}

// Verify follows what happened to the group without us: a worker that called
// shutdown(2) on its listener has taken it out of the kernel's array. Such a
// member is put back at the end of the array, as a spare if nobody holds it.
// It is cheap (one getsockopt for each member) and is called at every look
// while something drains.
func (s *Socket) Verify() error {
	if s.how != Steered {
		return nil
	}
	var gone []*Member
	for _, m := range s.members {
		if !isListening(m.fd) {
			gone = append(gone, m)
		}
	}
	if len(gone) == 0 {
		return nil
	}
	return s.takeOut(gone)
}

// takeOut removes members that listen no more from the mirror and attaches the
// program anew. Where several left since the last look, nobody knows in which
// order, so that the spares that moved are not told apart: they are not used.
func (s *Socket) takeOut(gone []*Member) error {
	for _, m := range gone {
		s.remove(m)
	}
	if len(gone) > 1 {
		for _, m := range s.members {
			m.tainted = m.tainted || m.spare
		}
	}
	var serving []*Member
	for _, m := range s.serving {
		if s.index(m) >= 0 {
			serving = append(serving, m)
		}
	}
	for _, m := range gone {
		if s.Serving(m) {
			// A serving worker's queue must exist again at once, for
			// its replacement: it is the same socket, at the end.
			if err := syscall.Listen(m.fd, s.backlog); err != nil {
				return os.NewSyscallError("listen", err)
			}
			s.members = append(s.members, m)
			serving = append(serving, m)
		}
	}
	s.serving = serving
	if len(s.members) == 0 || len(serving) == 0 {
		return nil
	}
	return s.attach(serving)
}

// leaveGroup takes a member out whose worker is gone: shut down first, so that
// it is out even if a stray process still holds a duplicate of it.
func (s *Socket) leaveGroup(m *Member) {
	_ = s.Verify()      // a member that cannot be put back is out, which is what is wanted
	if s.index(m) < 0 { // it had left by itself
		closeDescriptor(m.fd)
		return
	}
	if m.foreign {
		m.spare, m.users = true, 0
		return
	}
	if last := s.members[len(s.members)-1]; last != m && !last.spare {
		if spare, err := s.openMember(); err == nil {
			spare.spare = true
			s.members = append(s.members, spare)
		}
	}
	_ = syscall.Shutdown(m.fd, syscall.SHUT_RDWR)
	closeDescriptor(m.fd)
	s.remove(m)
	if len(s.members) > 0 && len(s.serving) > 0 && s.allListed(s.serving) {
		_ = s.attach(s.serving)
	}
	s.trim()
}

func (s *Socket) allListed(members []*Member) bool {
	for _, m := range members {
		if s.index(m) < 0 {
			return false
		}
	}
	return true
}

// refuse sends new clients to a member whose queue is full, where the kernel
// drops their SYN, while handshakes under way and queued connections go on in
// the others. When the sockets are closed the client's next try, a second
// later, is refused. (A socket filter would do the same, but asks for
// CAP_NET_ADMIN on newer kernels.)
func (s *Socket) refuse() error {
	if s.network != "tcp" || len(s.members) == 0 {
		return nil
	}
	if first := s.members[0]; first.foreign {
		return s.leaveToOwner(first)
	}
	if s.how != Steered {
		if err := s.startLateGroup(); err != nil {
			return err
		}
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
	s.serving = []*Member{first}
	return s.attach(s.serving)
}

// startLateGroup makes a group of a socket that was shared until now.
func (s *Socket) startLateGroup() error {
	if err := steeringWorks(); err != nil {
		return err
	}
	first := s.members[0]
	if err := enableReusePort(first.fd); err != nil {
		return os.NewSyscallError("setsockopt SO_REUSEPORT", err)
	}
	s.how, s.serving = Steered, []*Member{first}
	return s.attach(s.serving)
}

// openSink adds a member with a queue of one and fills it.
func (s *Socket) openSink() (*Member, error) {
	sink, err := s.openMember()
	if err != nil {
		return nil, err
	}
	s.members = append(s.members, sink)
	if err := listenAgain(sink.fd, 0); err != nil {
		return nil, err
	}
	p, err := s.StartProbe(sink)
	if err != nil {
		return nil, err
	}
	// Reset, it is no connection any more that anybody could wait for; its
	// place in the queue stays taken until somebody accepts it.
	_ = unix.SetsockoptLinger(p.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	p.Close()
	return sink, nil
}

// Barrier waits until every CPU that ran an old program is done with the
// packet it had in hand: what Steer or Refuse turned away cannot arrive any
// more. It takes some ten milliseconds. Where a container forbids the call, the
// waiting for handshakes and queues that follows has to do.
func Barrier() {
	const cmdGlobal = 1 << 0 // MEMBARRIER_CMD_GLOBAL, linux/membarrier.h
	_, _, _ = unix.Syscall(unix.SYS_MEMBARRIER, cmdGlobal, 0, 0)
}

// steeringWorks tries the whole mechanism once on two loopback sockets:
// kernels that only look like Linux (gVisor among them) accept the option and
// do not steer.
var steeringWorks = sync.OnceValue(selfTest)

func selfTest() error {
	s := &Socket{addr: Address{Name: "self-test", Network: "tcp"}, network: "tcp", how: Steered, backlog: 2}
	defer s.Close()
	loopback := inetTarget{ip: net.IPv4(127, 0, 0, 1), family: unix.AF_INET}
	for range 2 {
		m, err := s.bindTestMember(loopback)
		if err != nil {
			return err
		}
		s.members = append(s.members, m)
		if loopback, err = s.target(); err != nil {
			return err
		}
	}
	for _, m := range s.members {
		if err := s.attach([]*Member{m}); err != nil {
			return err
		}
		if err := s.reaches(m); err != nil {
			return err
		}
	}
	return nil
}

// bindTestMember differs from bindInet in that it must not ask whether
// steering works.
func (s *Socket) bindTestMember(t inetTarget) (*Member, error) {
	fd, err := newSocket(t.family, unix.SOCK_STREAM, unix.IPPROTO_TCP)
	if err != nil {
		return nil, err
	}
	sa, err := t.sockaddr()
	for _, step := range []func() error{
		func() error { return err },
		func() error { return enableReusePort(fd) },
		func() error { return syscall.Bind(fd, sa) },
		func() error { return syscall.Listen(fd, s.backlog) },
	} {
		if err := step(); err != nil {
			closeDescriptor(fd)
			return nil, err
		}
	}
	return s.newMember(fd)
}

// reaches connects to the group and looks in whose queue the connection is.
func (s *Socket) reaches(m *Member) error {
	t, err := s.target()
	if err != nil {
		return err
	}
	sa, err := t.sockaddr()
	if err != nil {
		return err
	}
	client, err := newSocket(t.family, unix.SOCK_STREAM, unix.IPPROTO_TCP)
	if err != nil {
		return err
	}
	defer closeDescriptor(client)
	if err := syscall.Connect(client, sa); err != nil {
		return os.NewSyscallError("connect", err)
	}
	info, err := unix.GetsockoptTCPInfo(m.fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return os.NewSyscallError("getsockopt TCP_INFO", err)
	}
	if info.Unacked == 0 { // of a listening socket: connections in its queue
		return errors.New("a connection reached another member than the program named")
	}
	return nil
}
