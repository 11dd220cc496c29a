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
