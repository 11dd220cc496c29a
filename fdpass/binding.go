package fdpass

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"syscall"
)

// A Binding is what a worker asks bind(2) for on an inet socket, in the exact
// form in which it asks: sockets of equal Bindings can form a group, and those
// of Bindings that merely overlap cannot.
type Binding struct {
	Network string         // "tcp" or "udp"
	Addr    netip.AddrPort // IPv4 in IPv6 stays as it is; a zone is a number
	V6Only  bool           // of an IPv6 socket for all addresses: takes no IPv4
	Device  int            // index of the interface that the socket is tied to; 0: none
}

// String is the address as programs write it: "127.0.0.1:80", "[::]:80".
func (b Binding) String() string { return b.Addr.String() }

// Form is the address with what else tells it from others: "[::]:80 for IPv6
// alone".
func (b Binding) Form() string {
	form := b.String()
	if b.V6Only {
		form += " for IPv6 alone"
	}
	if b.Device != 0 {
		form += " on interface " + strconv.Itoa(b.Device)
	}
	return form
}

// WithPort is the same with another port.
func (b Binding) WithPort(port int) Binding {
	b.Addr = netip.AddrPortFrom(b.Addr.Addr(), uint16(port))
	return b
}

// Overlaps tells whether a client could mean either of two that are not equal.
func (b Binding) Overlaps(o Binding) bool {
	if b == o || b.Network != o.Network || b.Addr.Port() != o.Addr.Port() {
		return false
	}
	if b.Device != o.Device && b.Device != 0 && o.Device != 0 {
		return false
	}
	return b.covers(o) || o.covers(b)
}

// covers tells whether b takes what is meant for o's address.
func (b Binding) covers(o Binding) bool {
	own, other := b.Addr.Addr(), o.Addr.Addr()
	switch {
	case own.Unmap() == other.Unmap():
		return true
	case !own.IsUnspecified():
		return false
	case own.Is4():
		return other.Unmap().Is4() || other.IsUnspecified() && !o.V6Only
	}
	return !b.V6Only || !other.Unmap().Is4()
}

// Exact leaves out what makes no difference: bind(2) itself sets V6ONLY where
// the address decides, and ties a socket to the interface of its zone. All
// Bindings that this package returns are exact.
func (b Binding) Exact() Binding {
	if b.Addr.Addr().Zone() != "" {
		b.Device = 0
	}
	b.V6Only = b.V6Only && b.Addr.Addr().Is6() && b.Addr.Addr().IsUnspecified()
	return b
}

// A Local is the address that a socket is bound to, as getsockname(2) tells it.
type Local struct {
	Network string         // "tcp", "udp", "unix", "unixgram", by family and type; "" for any other
	Addr    netip.AddrPort // inet, as in Binding; port 0: not bound
	Path    string         // unix: "/run/app.sock", "@app" for an abstract name, "" for none
}

// LocalOf asks the kernel, and is the one place that does. fd stays the
// caller's. What is not a socket is an error that wraps the errno; a socket of
// another family is a Local without a network.
func LocalOf(fd int) (Local, error) {
	sa, err := syscall.Getsockname(fd)
	if err != nil {
		return Local{}, os.NewSyscallError("getsockname", err)
	}
	kind, err := syscall.GetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_TYPE)
	if err != nil {
		return Local{}, os.NewSyscallError("getsockopt SO_TYPE", err)
	}
	var l Local
	switch sa := sa.(type) {
	case *syscall.SockaddrUnix:
		l.Path = sa.Name
		l.Network = map[int]string{syscall.SOCK_STREAM: "unix", syscall.SOCK_DGRAM: "unixgram"}[kind]
	case *syscall.SockaddrInet4, *syscall.SockaddrInet6:
		l.Addr = addrPortOf(sa)
		l.Network = map[int]string{syscall.SOCK_STREAM: "tcp", syscall.SOCK_DGRAM: "udp"}[kind]
	}
	return l, nil
}

// String is the address as programs write it.
func (l Local) String() string {
	if l.Addr.IsValid() {
		return l.Addr.String()
	}
	return l.Path
}

// netAddr is the same as package net has it; nil where there is none.
func (l Local) netAddr() net.Addr {
	switch l.Network {
	case "tcp":
		return net.TCPAddrFromAddrPort(l.Addr)
	case "udp":
		return net.UDPAddrFromAddrPort(l.Addr)
	case "unix", "unixgram":
		return &net.UnixAddr{Name: l.Path, Net: l.Network}
	}
	return nil
}

// BindingOf is the Binding that a bound inet socket has. fd stays the caller's.
func BindingOf(fd int) (Binding, error) {
	l, err := LocalOf(fd)
	if err != nil {
		return Binding{}, err
	}
	if l.Network != "tcp" && l.Network != "udp" {
		return Binding{}, fmt.Errorf("a %s socket has no port", l.Network)
	}
	b := Binding{Network: l.Network, Addr: l.Addr, Device: deviceOf(fd)}
	if l.Addr.Addr().Is6() {
		only, err := syscall.GetsockoptInt(fd, syscall.IPPROTO_IPV6, syscall.IPV6_V6ONLY)
		if err != nil {
			return Binding{}, os.NewSyscallError("getsockopt IPV6_V6ONLY", err)
		}
		b.V6Only = only != 0
	}
	return b.Exact(), nil
}

// ParseSockaddr reads the address that another process gives to a system call
// (struct sockaddr_in and sockaddr_in6 of Linux). It is false for other
// families, and for what is too short.
func ParseSockaddr(raw []byte) (netip.AddrPort, bool) {
	const family, v4Size, v6Size, scopeSize = 2, 16, 24, 4 // bytes; the scope behind is optional
	if len(raw) < family {
		return netip.AddrPort{}, false
	}
	port := func() int { return int(binary.BigEndian.Uint16(raw[family:])) }
	switch kind := binary.NativeEndian.Uint16(raw); {
	case kind == syscall.AF_INET && len(raw) >= v4Size:
		return addrPortOf(&syscall.SockaddrInet4{Port: port(), Addr: [4]byte(raw[4:8])}), true
	case kind == syscall.AF_INET6 && len(raw) >= v6Size:
		sa := &syscall.SockaddrInet6{Port: port(), Addr: [16]byte(raw[8:24])}
		if len(raw) >= v6Size+scopeSize {
			sa.ZoneId = binary.NativeEndian.Uint32(raw[v6Size:])
		}
		return addrPortOf(sa), true
	}
	return netip.AddrPort{}, false
}

// addrPortOf keeps the scope where the kernel does: elsewhere it says nothing,
// and would make one address two.
func addrPortOf(sa syscall.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *syscall.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *syscall.SockaddrInet6:
		ip := netip.AddrFrom16(sa.Addr)
		if sa.ZoneId != 0 && (ip.IsLinkLocalUnicast() || ip.IsLinkLocalMulticast() || ip.IsInterfaceLocalMulticast()) {
			ip = ip.WithZone(strconv.FormatUint(uint64(sa.ZoneId), 10))
		}
		return netip.AddrPortFrom(ip, uint16(sa.Port))
	}
	return netip.AddrPort{}
}

// Sockaddr is the address as system calls take it.
func (b Binding) Sockaddr() syscall.Sockaddr {
	ip, port := b.Addr.Addr(), int(b.Addr.Port())
	if ip.Is4() {
		return &syscall.SockaddrInet4{Port: port, Addr: ip.As4()}
	}
	zone, _ := strconv.ParseUint(ip.Zone(), 10, 32)
	return &syscall.SockaddrInet6{Port: port, Addr: ip.As16(), ZoneId: uint32(zone)}
}
