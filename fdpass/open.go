package fdpass

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"syscall"
)

// OpenSocket opens what a is about as one plain socket: it binds and listens, or
// takes over a descriptor that the process was started with. The descriptor
// that it returns is blocking, close-on-exec, and the caller's; nothing removes
// the path of a unix socket when it is closed.
//
// listen, if not nil, is called in place of listen(2) with a TCP socket that was
// bound here.
//
// An address that somebody else holds is an error that wraps
// syscall.EADDRINUSE.
func OpenSocket(a Address, listen func(fd int) error) (int, error) {
	fd, err := openSocket(a, listen)
	if err != nil {
		return -1, fmt.Errorf("cannot listen on %s (%s): %w", a.Name, a.String(), err)
	}
	return fd, nil
}

func openSocket(a Address, listen func(fd int) error) (int, error) {
	switch a.Network {
	case "fd", "systemd":
		return takePassed(a)
	case "unix", "unixgram":
		return openUnix(a)
	}
	return openInet(a, listen)
}

// QueueLength is the length of the accept queue that a asks for.
func (a Address) QueueLength() int {
	if a.Backlog == 0 {
		return DefaultBacklog
	}
	return a.Backlog
}

func (a Address) listen(fd int) error { return listenAgain(fd, a.QueueLength()) }

func openInet(a Address, listen func(fd int) error) (int, error) {
	b, err := Resolve(a)
	if err != nil {
		return -1, err
	}
	fd, err := b.Bind(func(fd int) error {
		if a.ReusePort {
			return os.NewSyscallError("setsockopt SO_REUSEPORT", enableReusePort(fd))
		}
		return nil
	})
	if err != nil || b.Network != "tcp" {
		return fd, err
	}
	if listen == nil {
		listen = a.listen
	}
	if err := listen(fd); err != nil {
		closeDescriptor(fd)
		return -1, err
	}
	return fd, nil
}

// Resolve turns host and port of an inet address into what to bind. As with Go's
// net package an empty host is one socket for IPv4 and IPv6 where the system has
// IPv6. Names are looked up.
func Resolve(a Address) (Binding, error) {
	const protocol = len("tcp")
	b, version := Binding{Network: a.Network[:protocol]}, a.Network[protocol:]
	b.V6Only = a.V6Only || version == "6"
	ip := netip.IPv6Unspecified()
	switch {
	case a.Host != "":
		found, err := net.ResolveIPAddr("ip"+version, a.Host)
		if err != nil {
			return Binding{}, err
		}
		if ip, err = addrOf(*found); err != nil {
			return Binding{}, err
		}
	case version == "4", version == "" && !b.V6Only && !haveIPv6():
		ip = netip.IPv4Unspecified()
	}
	b.Addr = netip.AddrPortFrom(ip, uint16(a.Port))
	return b.Exact(), nil
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

// addrOf numbers the zone, as the kernel does.
func addrOf(found net.IPAddr) (netip.Addr, error) {
	ip, ok := netip.AddrFromSlice(found.IP)
	if !ok {
		return ip, fmt.Errorf("%s is no address", found.String())
	}
	ip = ip.Unmap()
	if found.Zone == "" || ip.Is4() {
		return ip, nil
	}
	if _, err := strconv.ParseUint(found.Zone, 10, 32); err == nil {
		return ip.WithZone(found.Zone), nil
	}
	device, err := net.InterfaceByName(found.Zone)
	if err != nil {
		return ip, fmt.Errorf("no network interface %q: %w", found.Zone, err)
	}
	return ip.WithZone(strconv.Itoa(device.Index)), nil
}

// Bind makes a socket and binds it; prepare, if not nil, is called with it in
// between. TCP gets SO_REUSEADDR, and does not listen yet. The descriptor is the
// caller's; with an error there is none.
func (b Binding) Bind(prepare func(fd int) error) (int, error) {
	kind, protocol, family := syscall.SOCK_STREAM, syscall.IPPROTO_TCP, syscall.AF_INET
	if b.Network == "udp" {
		kind, protocol = syscall.SOCK_DGRAM, syscall.IPPROTO_UDP
	}
	if b.Addr.Addr().Is6() {
		family = syscall.AF_INET6
	}
	fd, err := newSocket(family, kind, protocol)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	err = b.setOptions(fd)
	if err == nil && prepare != nil {
		err = prepare(fd)
	}
	if err == nil {
		err = os.NewSyscallError("bind", syscall.Bind(fd, b.Sockaddr()))
	}
	if err != nil {
		closeDescriptor(fd)
		return -1, err
	}
	return fd, nil
}

func (b Binding) setOptions(fd int) error {
	if b.Addr.Addr().Is6() {
		only := 0
		if b.V6Only {
			only = 1
		}
		if err := syscall.SetsockoptInt(fd, syscall.IPPROTO_IPV6, syscall.IPV6_V6ONLY, only); err != nil {
			return os.NewSyscallError("setsockopt IPV6_V6ONLY", err)
		}
	}
	if b.Network != "tcp" {
		// SO_REUSEADDR on a datagram socket would let a second program
		// bind the same port and take its packets.
		return nil
	}
	return os.NewSyscallError("setsockopt SO_REUSEADDR",
		syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1))
}

// takePassed takes a socket that the process was started with: fd://N by number,
// systemd://NAME by the name that LISTEN_FDNAMES gives it.
//
// The owner may use the descriptor for other ends (systemd's is shared by every
// --listen systemd:// of that name), so that a duplicate is returned.
func takePassed(a Address) (int, error) {
	fd := a.FD
	if a.Network == "systemd" {
		var err error
		if fd, err = activated(a.Unit); err != nil {
			return -1, err
		}
	}
	syscall.CloseOnExec(fd)
	l, err := LocalOf(fd)
	switch {
	case errors.Is(err, syscall.EBADF):
		return -1, fmt.Errorf("descriptor %d is not open; whoever starts moult has to pass it", fd)
	case err != nil:
		return -1, fmt.Errorf("descriptor %d is not a socket: %w", fd, err)
	case l.Network == "":
		return -1, fmt.Errorf("descriptor %d is neither a stream nor a datagram socket", fd)
	}
	if stream := l.Network == "tcp" || l.Network == "unix"; stream && !isListening(fd) {
		if err := a.listen(fd); err != nil {
			return -1, err
		}
	}
	own, err := dupCloexec(fd)
	return own, os.NewSyscallError("fcntl", err)
}
