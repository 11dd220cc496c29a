package fdpass

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"syscall"
)

// Open opens what a is about: binds and listens, or takes over the descriptor
// that the process was started with. The caller closes the Socket. The first
// worker's Join returns the socket that was opened here.
//
// An address that somebody else holds is an error that wraps
// syscall.EADDRINUSE, although all members of a group carry SO_REUSEPORT.
func Open(a Address, opt Options) (*Socket, error) {
	s := &Socket{addr: a, how: Shared, backlog: a.Backlog, share: opt.Share}
	if s.backlog == 0 {
		s.backlog = DefaultBacklog
	}
	if err := s.open(); err != nil {
		s.Close()
		return nil, fmt.Errorf("cannot listen on %s (%s): %w", a.Name, a.String(), err)
	}
	return s, nil
}

func (s *Socket) open() error {
	switch s.addr.Network {
	case "fd", "systemd":
		return s.openInherited()
	case "unix", "unixgram":
		return s.openUnix()
	}
	return s.openInet()
}

// inetTarget is one way to bind an inet address.
type inetTarget struct {
	ip     net.IP // nil: every address
	zone   string
	port   int
	family int
	v6only bool
}

// resolve turns host and port into what to bind. As with Go's net package an
// empty host is one socket for IPv4 and IPv6 where the system has IPv6.
func resolve(a Address) (inetTarget, error) {
	t := inetTarget{port: a.Port, family: syscall.AF_INET6, v6only: a.V6Only}
	kind := a.Network[len(a.Network)-1]
	if kind == '4' {
		t.family = syscall.AF_INET
	}
	if kind == '6' {
		t.v6only = true
	}
	if a.Host == "" {
		if kind != '6' && !t.v6only && !haveIPv6() {
			t.family = syscall.AF_INET
		}
		return t, nil
	}
	ip, err := net.ResolveIPAddr("ip"+ipVersion(kind), a.Host)
	if err != nil {
		return t, err
	}
	t.ip, t.zone = ip.IP, ip.Zone
	if v4 := ip.IP.To4(); v4 != nil {
		t.ip, t.family, t.v6only = v4, syscall.AF_INET, false
	}
	return t, nil
}

func ipVersion(kind byte) string {
	if kind == '4' || kind == '6' {
		return string(kind)
	}
	return ""
}

// haveIPv6 tells whether an IPv6 socket can be made and bound at all; a kernel
// with ipv6.disable=1 makes none.
func haveIPv6() bool {
	fd, err := newSocket(syscall.AF_INET6, syscall.SOCK_DGRAM, 0)
	if err != nil {
		return false
	}
	defer closeDescriptor(fd)
	return syscall.Bind(fd, &syscall.SockaddrInet6{Addr: [16]byte{15: 1}}) == nil
}

func (t inetTarget) sockaddr() (syscall.Sockaddr, error) {
	if t.family == syscall.AF_INET {
		sa := &syscall.SockaddrInet4{Port: t.port}
		copy(sa.Addr[:], t.ip.To4())
		return sa, nil
	}
	sa := &syscall.SockaddrInet6{Port: t.port}
	copy(sa.Addr[:], t.ip.To16())
	if t.zone != "" {
		zone, err := zoneIndex(t.zone)
		if err != nil {
			return nil, err
		}
		sa.ZoneId = zone
	}
	return sa, nil
}

func zoneIndex(zone string) (uint32, error) {
	if n, err := strconv.ParseUint(zone, 10, 32); err == nil {
		return uint32(n), nil
	}
	i, err := net.InterfaceByName(zone)
	if err != nil {
		return 0, fmt.Errorf("no network interface %q: %w", zone, err)
	}
	return uint32(i.Index), nil
}

func (s *Socket) openInet() error {
	t, err := resolve(s.addr)
	if err != nil {
		return err
	}
	s.network = s.addr.Network[:3]
	first, err := s.bindInet(t, false)
	if err != nil {
		return err
	}
	s.members = append(s.members, first)
	if s.bound, err = boundAddress(first.fd); err != nil {
		return err
	}
	if s.network == "tcp" {
		return s.tryGroup()
	}
	return nil
}

// bindInet makes one socket of an inet address, listening if it is TCP.
//
// The first one binds and listens without SO_REUSEPORT, so that an address in
// use is an error as everywhere else (listenFirst); all others carry the option
// from the start (join) and so can only follow a first one of the same user.
func (s *Socket) bindInet(t inetTarget, join bool) (*Member, error) {
	return s.bindInetWith(t, join, s.disguise)
}

// bindInetWith calls prepare with the new descriptor before it is bound.
func (s *Socket) bindInetWith(t inetTarget, join bool, prepare func(fd int)) (*Member, error) {
	kind, proto := syscall.SOCK_STREAM, syscall.IPPROTO_TCP
	if s.network == "udp" {
		kind, proto = syscall.SOCK_DGRAM, syscall.IPPROTO_UDP
	}
	fd, err := newSocket(t.family, kind, proto)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	prepare(fd)
	if err := s.bindInetTo(fd, t, join); err != nil {
		closeDescriptor(fd)
		return nil, err
	}
	return s.newMember(fd)
}

func (s *Socket) bindInetTo(fd int, t inetTarget, join bool) error {
	if err := setInetOptions(fd, t, s.network == "tcp"); err != nil {
		return err
	}
	if join || s.addr.ReusePort {
		if err := enableReusePort(fd); err != nil {
			return os.NewSyscallError("setsockopt SO_REUSEPORT", err)
		}
	}
	sa, err := t.sockaddr()
	if err != nil {
		return err
	}
	if err := syscall.Bind(fd, sa); err != nil {
		return os.NewSyscallError("bind", err)
	}
	if s.network != "tcp" {
		return nil
	}
	if !join {
		return s.listenFirst(fd)
	}
	return listenAgain(fd, s.backlog)
}

func setInetOptions(fd int, t inetTarget, stream bool) error {
	if t.family == syscall.AF_INET6 {
		only := 0
		if t.v6only {
			only = 1
		}
		if err := syscall.SetsockoptInt(fd, syscall.IPPROTO_IPV6, syscall.IPV6_V6ONLY, only); err != nil {
			return os.NewSyscallError("setsockopt IPV6_V6ONLY", err)
		}
	}
	if !stream {
		// SO_REUSEADDR on a datagram socket would let a second program
		// bind the same port and take its packets.
		return nil
	}
	return os.NewSyscallError("setsockopt SO_REUSEADDR",
		syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1))
}

func (s *Socket) newMember(fd int) (*Member, error) {
	inode, err := inodeOf(fd)
	if err != nil {
		closeDescriptor(fd)
		return nil, err
	}
	return &Member{socket: s, fd: fd, inode: inode}, nil
}

// openInherited takes a socket that the process was started with: fd://N by
// number, systemd://NAME by the name that LISTEN_FDNAMES gives it.
func (s *Socket) openInherited() error {
	fd := s.addr.FD
	if s.addr.Network == "systemd" {
		var err error
		if fd, err = activated(s.addr.Unit); err != nil {
			return err
		}
	}
	syscall.CloseOnExec(fd)
	kind, err := syscall.GetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_TYPE)
	if errors.Is(err, syscall.EBADF) {
		return fmt.Errorf("descriptor %d is not open; whoever starts moult has to pass it", fd)
	}
	if err != nil {
		return fmt.Errorf("descriptor %d is not a socket: %w", fd, err)
	}
	// The owner may use the descriptor for other ends (systemd's is shared
	// by every --listen systemd:// of that name), so the member has its own.
	own, err := dupCloexec(fd)
	if err != nil {
		return err
	}
	m, err := s.newMember(own)
	if err != nil {
		return err
	}
	m.foreign = true
	s.members = append(s.members, m)
	return s.adopt(m, kind)
}

// adopt finds out what kind of socket came from outside.
func (s *Socket) adopt(m *Member, kind int) error {
	sa, err := syscall.Getsockname(m.fd)
	if err != nil {
		return os.NewSyscallError("getsockname", err)
	}
	stream := kind == syscall.SOCK_STREAM
	if !stream && kind != syscall.SOCK_DGRAM {
		return errors.New("it is neither a stream nor a datagram socket")
	}
	switch _, unix := sa.(*syscall.SockaddrUnix); {
	case unix && stream:
		s.network = "unix"
	case unix:
		s.network = "unixgram"
	case stream:
		s.network = "tcp"
	default:
		s.network = "udp"
	}
	if s.bound, err = boundAddress(m.fd); err != nil {
		return err
	}
	if stream && !isListening(m.fd) {
		if err := syscall.Listen(m.fd, s.backlog); err != nil {
			return os.NewSyscallError("listen", err)
		}
	}
	if s.network == "tcp" {
		return s.tryGroup()
	}
	return nil
}

// boundAddress is the socket's own name as programs write it.
func boundAddress(fd int) (string, error) {
	sa, err := syscall.Getsockname(fd)
	if err != nil {
		return "", os.NewSyscallError("getsockname", err)
	}
	switch sa := sa.(type) {
	case *syscall.SockaddrInet4:
		return net.JoinHostPort(net.IP(sa.Addr[:]).String(), strconv.Itoa(sa.Port)), nil
	case *syscall.SockaddrInet6:
		ip := net.IPAddr{IP: net.IP(sa.Addr[:])}
		if sa.ZoneId != 0 {
			ip.Zone = strconv.Itoa(int(sa.ZoneId))
		}
		return net.JoinHostPort(ip.String(), strconv.Itoa(sa.Port)), nil
	case *syscall.SockaddrUnix:
		return sa.Name, nil
	}
	return "", fmt.Errorf("a socket of family %T cannot be served", sa)
}
