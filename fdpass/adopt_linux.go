package fdpass

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A learned Socket is an address that a worker has bound itself: its members
// are the workers' own sockets, of which the master holds duplicates. The
// supervisor calls BindOwn when a worker calls bind(2) and Adopt when it calls
// listen(2); what comes after is the same as for an address that the master
// has opened.

// Learn returns the Socket for what a worker binds. It has no members before
// the first Adopt.
func Learn(b Binding, opt Options) *Socket {
	spec := b.String()
	s := &Socket{
		addr: Address{Name: spec, Spec: spec, Network: b.Network, Host: b.Addr.Addr().String(), Port: int(b.Addr.Port()), UID: -1, GID: -1},
		how:  Shared, network: b.Network, bound: spec, share: opt.Share, learned: true, device: b.Device,
	}
	if b.Network == "tcp" {
		s.backlog = DefaultBacklog
	}
	return s
}

// InspectSocket looks at a duplicate of a worker's socket, which stays the
// caller's.
func InspectSocket(fd int) (WorkerSocket, error) {
	inode, err := inodeOf(fd)
	if err != nil {
		return WorkerSocket{}, err
	}
	w := WorkerSocket{Inode: inode}
	option := func(level, name int) int {
		n, _ := unix.GetsockoptInt(fd, level, name)
		return n
	}
	kind, protocol := option(unix.SOL_SOCKET, unix.SO_TYPE), option(unix.SOL_SOCKET, unix.SO_PROTOCOL)
	domain := option(unix.SOL_SOCKET, unix.SO_DOMAIN)
	inet := domain == unix.AF_INET || domain == unix.AF_INET6
	switch {
	case inet && kind == unix.SOCK_STREAM && protocol == unix.IPPROTO_TCP:
		w.Network = "tcp"
	case inet && kind == unix.SOCK_DGRAM && protocol == unix.IPPROTO_UDP:
		w.Network = "udp"
	case domain == unix.AF_UNIX && kind == unix.SOCK_STREAM:
		w.Network = "unix"
		w.Name = rawName(fd)
		return w, nil
	default:
		return w, nil
	}
	w.Elsewhere = namespaceOf(fd) != ownNamespace()
	w.IPv6 = domain == unix.AF_INET6
	w.V6Only = w.IPv6 && option(unix.IPPROTO_IPV6, unix.IPV6_V6ONLY) == 1
	w.ReuseAddr = option(unix.SOL_SOCKET, unix.SO_REUSEADDR) == 1
	w.ReusePort = option(unix.SOL_SOCKET, unix.SO_REUSEPORT) == 1
	w.Device = option(unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX)
	w.Client = option(unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT) == 1
	w.Local, err = localAddress(fd)
	return w, err
}

// rawName is getsockname(2) byte for byte, as the worker gave it to bind(2):
// relative to wherever, abstract, with or without the final NUL.
func rawName(fd int) []byte {
	var sa unix.RawSockaddrAny
	size := uint32(unix.SizeofSockaddrAny)
	_, _, errno := unix.Syscall(unix.SYS_GETSOCKNAME, uintptr(fd), uintptr(unsafe.Pointer(&sa)), uintptr(unsafe.Pointer(&size)))
	if errno != 0 || size > unix.SizeofSockaddrAny {
		return nil
	}
	return slices.Clone(unsafe.Slice((*byte)(unsafe.Pointer(&sa)), size))
}

func localAddress(fd int) (netip.AddrPort, error) {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return netip.AddrPort{}, os.NewSyscallError("getsockname", err)
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port)), nil
	case *unix.SockaddrInet6:
		ip := netip.AddrFrom16(sa.Addr)
		if sa.ZoneId != 0 {
			ip = ip.WithZone(strconv.Itoa(int(sa.ZoneId)))
		}
		return netip.AddrPortFrom(ip, uint16(sa.Port)), nil
	}
	return netip.AddrPort{}, fmt.Errorf("a socket of family %T has no port", sa)
}

// namespaceOf names the network namespace of a socket, which is that of the thread
// that made it, whoever has it by now; 0 before Linux 5.14, which does not tell.
func namespaceOf(fd int) uint64 {
	cookie, _ := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	return cookie
}

var ownNamespace = sync.OnceValue(func() uint64 {
	fd, err := newSocket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return 0
	}
	defer closeDescriptor(fd)
	return namespaceOf(fd)
})

// V6OnlyByDefault tells whether new IPv6 sockets take no IPv4.
func V6OnlyByDefault() bool {
	text, err := os.ReadFile("/proc/sys/net/ipv6/bindv6only")
	return err == nil && strings.TrimSpace(string(text)) == "1"
}

// Recall notes what the worker has set on a socket that cannot be looked at.
func (w *WorkerSocket) Recall(o SockOption) {
	if o.Level == unix.SOL_SOCKET && o.Name == unix.SO_BINDTODEVICE {
		w.Device = deviceNamed(o.Value)
		return
	}
	if len(o.Value) < 4 {
		return
	}
	number := binary.NativeEndian.Uint32(o.Value)
	on := number != 0
	switch {
	case o.Level == unix.SOL_SOCKET && o.Name == unix.SO_BINDTOIFINDEX:
		w.Device = int(number)
	case o.Level == unix.IPPROTO_IP && o.Name == unix.IP_BIND_ADDRESS_NO_PORT:
		w.Client = on
	case o.Level == unix.IPPROTO_IPV6 && o.Name == unix.IPV6_V6ONLY:
		w.V6Only = w.IPv6 && on
	case o.Level == unix.SOL_SOCKET && o.Name == unix.SO_REUSEADDR:
		w.ReuseAddr = on
	case o.Level == unix.SOL_SOCKET && o.Name == unix.SO_REUSEPORT:
		w.ReusePort = on
	}
}

// StandIn makes a socket that can take the place of a worker's own, where the
// master may not have a duplicate of that: unbound, with the same options. The
// caller closes it.
func (w WorkerSocket) StandIn(options []SockOption) (int, error) {
	family, kind, protocol := unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_TCP
	switch {
	case w.Network == "unix":
		family, protocol = unix.AF_UNIX, 0
	case w.IPv6:
		family = unix.AF_INET6
	}
	if w.Network == "udp" {
		kind, protocol = unix.SOCK_DGRAM, unix.IPPROTO_UDP
	}
	fd, err := newSocket(family, kind, protocol)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	for _, o := range options {
		// What cannot be repeated is a matter of comfort: buffer sizes.
		err := unix.SetsockoptString(fd, o.Level, o.Name, string(o.Value))
		if err != nil && o.confines() {
			closeDescriptor(fd)
			return -1, os.NewSyscallError("setsockopt SO_BINDTODEVICE", err)
		}
	}
	return fd, nil
}

// confines tells that a socket without the option would be open to more clients.
func (o SockOption) confines() bool {
	return o.Level == unix.SOL_SOCKET && (o.Name == unix.SO_BINDTODEVICE || o.Name == unix.SO_BINDTOIFINDEX)
}

// deviceNamed is the index of an interface, 0 for no name.
func deviceNamed(name []byte) int {
	name, _, _ = bytes.Cut(name, []byte{0})
	device, err := net.InterfaceByName(string(name))
	if err != nil {
		return 0
	}
	return device.Index
}

// BindOwn binds fd, a duplicate of a worker's socket, to b on the worker's
// behalf. It stays the caller's. The error is the errno that bind(2) gave.
//
// The first socket of an address is bound without SO_REUSEPORT: whatever else
// has the address, or one that overlaps it, is a conflict. Later ones join the
// group: with the option, and of its owner. So do others of ours that are bound
// already and do not listen yet, which join tells.
func (s *Socket) BindOwn(fd int, b Binding, join bool) error {
	sa, err := b.target().sockaddr()
	if err != nil {
		return unix.EADDRNOTAVAIL
	}
	if len(s.members) == 0 && !join {
		return s.bindFirstOwn(fd, sa)
	}
	if err := s.prepareToJoin(fd); err != nil {
		return err
	}
	return syscall.Bind(fd, sa)
}

// bindFirstOwn turns the option on afterwards, for those that join before this
// one listens, as SO_REUSEADDR lets it listen beside them (listenFirst). A worker
// that is refused finds its socket as it was, and may try another address.
func (s *Socket) bindFirstOwn(fd int, sa syscall.Sockaddr) error {
	asked, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT)
	if err != nil {
		return err
	}
	bind := func() error { return syscall.Bind(fd, sa) }
	switch {
	case s.network == "tcp":
		err = inTurn(reusePort(fd, 0), bind, reusePort(fd, 1), reuseAddr(fd))
	case s.mayGroup():
		// Whoever joins later finds the program in force, as in listenFirst.
		// A socket that has one cannot join others any more, so that the
		// address is tried with another one before.
		try := func() error { return tryDatagrams(sa) }
		err = inTurn(try, reusePort(fd, 1), attachTo(fd), reusePort(fd, 0), bind, reusePort(fd, 1))
	default:
		err = inTurn(reusePort(fd, 0), bind)
	}
	if err != nil {
		_ = setReusePort(fd, asked)
	}
	return err
}

// tryDatagrams binds an address for a moment. That an address is another one's
// is all that it looks for: what else may be wrong shows at the bind itself.
func tryDatagrams(sa syscall.Sockaddr) error {
	family := unix.AF_INET
	if _, v6 := sa.(*syscall.SockaddrInet6); v6 {
		family = unix.AF_INET6
	}
	fd, err := newSocket(family, unix.SOCK_DGRAM, unix.IPPROTO_UDP)
	if err != nil {
		return nil
	}
	defer closeDescriptor(fd)
	if errors.Is(syscall.Bind(fd, sa), unix.EADDRINUSE) {
		return unix.EADDRINUSE
	}
	return nil
}

func reuseAddr(fd int) func() error {
	return func() error {
		return os.NewSyscallError("setsockopt SO_REUSEADDR", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
	}
}

func reusePort(fd, on int) func() error {
	return func() error { return os.NewSyscallError("setsockopt SO_REUSEPORT", setReusePort(fd, on)) }
}

func attachTo(fd int) func() error { return func() error { return attachProgram(fd, []int{0}, nil) } }

// prepareToJoin makes a socket fit for a group that is there.
func (s *Socket) prepareToJoin(fd int) error {
	if s.network == "tcp" {
		if err := reuseAddr(fd)(); err != nil {
			return err
		}
	}
	s.changeOwner(fd)
	return enableReusePort(fd)
}

// changeOwner gives a socket the owner of the others: the kernel lets nobody
// else into a group. Where the master may not, bind(2) says so.
func (s *Socket) changeOwner(fd int) {
	var own, first unix.Stat_t
	if len(s.members) == 0 || unix.Fstat(fd, &own) != nil || unix.Fstat(s.members[0].fd, &first) != nil || own.Uid == first.Uid {
		return
	}
	_ = unix.Fchown(fd, int(first.Uid), -1)
}

// disguise makes one of our own sockets fit for a group of workers' sockets,
// wherever those may be bound.
func (s *Socket) disguise(fd int) {
	if !s.learned || len(s.members) == 0 {
		return
	}
	s.changeOwner(fd)
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_FREEBIND, 1)
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_FREEBIND, 1)
	if s.device != 0 {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX, s.device)
	}
}

// Adopt makes a member for a worker of generation gen of the worker's own
// socket, which begins to listen here; a datagram socket was bound the moment
// before. fd is a duplicate of it, or the socket
// that stands in for it; it belongs to the member, and is closed with an error,
// which wraps the errno that listen(2) gave. The queue is not shorter than
// DefaultBacklog. New connections reach it when Steer names it, or at once
// where there is no other.
func (s *Socket) Adopt(fd, gen, backlog int) (*Member, error) {
	m, err := s.newMember(fd)
	if err != nil {
		return nil, err
	}
	m.own, m.gen, m.users = true, gen, 1
	if s.network == "tcp" {
		s.backlog = max(s.backlog, backlog)
	}
	if len(s.members) == 0 {
		err = s.adoptFirst(m)
	} else {
		err = s.adoptNext(m)
	}
	if err != nil {
		s.stopServing(m)
		s.remove(m)
		closeDescriptor(fd)
		return nil, err
	}
	return m, nil
}

func (s *Socket) adoptFirst(m *Member) error {
	if s.network == "tcp" {
		if err := s.listenFirst(m.fd); err != nil {
			return err
		}
	}
	s.members = append(s.members, m)
	return s.tryGroup()
}

func (s *Socket) adoptNext(m *Member) error {
	if s.how != Steered {
		return errors.Join(unix.EADDRINUSE, errors.New("the address has one socket for all"))
	}
	if err := s.Verify(); err != nil {
		return err
	}
	if s.network == "tcp" {
		if err := s.prepareToJoin(m.fd); err != nil {
			return err
		}
		if err := m.listen(s.backlog); err != nil {
			return err
		}
	}
	s.members = append(s.members, m)
	err := s.takeOut(s.departed(), 1)
	s.compact()
	return err
}

// compact closes spares that are not at the end of the array. The last member
// takes the place of each, which is done where it gets no connections.
func (s *Socket) compact() {
	for i := 0; i < len(s.members)-1; {
		last := s.members[len(s.members)-1]
		if last.spare || s.Serving(last) {
			return
		}
		if m := s.members[i]; m.spare && !m.foreign && !m.tainted {
			s.shut(m)
			continue
		}
		i++
	}
}

// Listening tells whether a member of a group is in it still: a worker that
// calls shutdown(2) on its listener takes it out.
func (s *Socket) Listening(m *Member) bool { return s.how != Steered || s.index(m) >= 0 }

// Resume has a worker's socket listen again that it had shut down.
func (s *Socket) Resume(m *Member, backlog int) error {
	if m.foreign {
		return nil // its maker knows how long the queue shall be
	}
	s.backlog = max(s.backlog, backlog)
	if s.Listening(m) {
		return m.listen(s.backlog)
	}
	if len(s.members) > 0 {
		return s.adoptNext(m)
	}
	return s.adoptFirst(m)
}

// Claim prepares a member for the worker that gets it in place of a socket of
// its own, which was non-blocking or not.
func (m *Member) Claim(nonblock bool) error {
	return os.NewSyscallError("fcntl", syscall.SetNonblock(m.fd, nonblock))
}
