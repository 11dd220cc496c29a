package fdpass

import (
	"encoding/binary"
	"net"
	"net/netip"
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

// target is the same for our own sockets.
func (b Binding) target() inetTarget {
	ip := b.Addr.Addr()
	t := inetTarget{ip: net.IP(ip.AsSlice()), zone: ip.Zone(), port: int(b.Addr.Port()), family: syscall.AF_INET}
	if ip.Is6() {
		t.family, t.v6only = syscall.AF_INET6, b.V6Only
	}
	return t
}

// A WorkerSocket is what is known of a socket that a worker has made itself.
type WorkerSocket struct {
	Inode     uint64
	Network   string // "tcp", "udp", "unix" for a stream; anything else is left alone and ""
	IPv6      bool
	V6Only    bool
	ReuseAddr bool // what the worker itself has set
	ReusePort bool
	Device    int
	Local     netip.AddrPort // port 0: not bound
	Name      []byte         // unix: the sockaddr that it is bound to
	Elsewhere bool           // in another network namespace than the master's sockets
	Client    bool           // it will connect, not listen (IP_BIND_ADDRESS_NO_PORT)
}

// Binding reads the address that the worker gave to bind(2) (struct sockaddr_in
// and sockaddr_in6 of linux/in.h and in6.h). It is false where the address does
// not fit the socket, which is the kernel's to refuse.
func (w WorkerSocket) Binding(sockaddr []byte) (Binding, bool) {
	const family, v4Size, v6Size = 2, 16, 24 // bytes; the scope behind is optional
	b := Binding{Network: w.Network, V6Only: w.V6Only, Device: w.Device}
	if len(sockaddr) < family {
		return b, false
	}
	switch binary.NativeEndian.Uint16(sockaddr) {
	case syscall.AF_INET:
		if w.IPv6 || len(sockaddr) < v4Size {
			return b, false
		}
		b.Addr = netip.AddrPortFrom(netip.AddrFrom4([4]byte(sockaddr[4:8])), binary.BigEndian.Uint16(sockaddr[2:]))
	case syscall.AF_INET6:
		if !w.IPv6 || len(sockaddr) < v6Size {
			return b, false
		}
		ip := netip.AddrFrom16([16]byte(sockaddr[8:24]))
		if len(sockaddr) >= v6Size+4 {
			if scope := binary.NativeEndian.Uint32(sockaddr[v6Size:]); scope != 0 && ip.IsLinkLocalUnicast() {
				ip = ip.WithZone(strconv.Itoa(int(scope)))
			}
		}
		b.Addr = netip.AddrPortFrom(ip, binary.BigEndian.Uint16(sockaddr[2:]))
	default:
		return b, false
	}
	return b.Exact(), true
}

// Bound is the Binding that a bound socket has.
func (w WorkerSocket) Bound() Binding {
	return Binding{Network: w.Network, Addr: w.Local, V6Only: w.V6Only, Device: w.Device}.Exact()
}

// Binding is the address of an inet socket in the form that bind(2) had. It is
// false for unix sockets, and where the kernel does not tell.
func (s *Socket) Binding() (Binding, bool) {
	if s.IsUnix() || len(s.members) == 0 {
		return Binding{}, false
	}
	t, err := s.target()
	if err != nil {
		return Binding{}, false
	}
	ip, ok := netip.AddrFromSlice(t.ip)
	b := Binding{Network: s.network, Addr: netip.AddrPortFrom(ip.WithZone(t.zone), uint16(t.port)), V6Only: t.v6only, Device: s.device}
	return b.Exact(), ok
}

// SockOption is one setsockopt(2) that a worker has made.
type SockOption struct {
	Level, Name int
	Value       []byte
}

// Repeats tells that o is what an earlier one set, whatever the value.
func (o SockOption) Repeats(earlier SockOption) bool {
	return o.Level == earlier.Level && o.Name == earlier.Name
}
