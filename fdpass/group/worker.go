package group

import (
	"net/netip"

	"github.com/moult/moult/fdpass"
)

// A WorkerSocket is what is known of a socket that a worker has made itself.
type WorkerSocket struct {
	Inode     uint64
	UID       int    // whose it is: only one user's sockets share an address
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

// Binding reads the address that the worker gave to bind(2). It is false where
// the address does not fit the socket, which is the kernel's to refuse.
func (w WorkerSocket) Binding(sockaddr []byte) (fdpass.Binding, bool) {
	at, ok := fdpass.ParseSockaddr(sockaddr)
	b := fdpass.Binding{Network: w.Network, Addr: at, V6Only: w.V6Only, Device: w.Device}
	return b.Exact(), ok && at.Addr().Is6() == w.IPv6
}

// Bound is the Binding that a bound socket has.
func (w WorkerSocket) Bound() fdpass.Binding {
	return fdpass.Binding{Network: w.Network, Addr: w.Local, V6Only: w.V6Only, Device: w.Device}.Exact()
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
