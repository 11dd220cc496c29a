package observe

import (
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// ErrNotListening is the answer to a question that only a listening socket has
// an answer to; a listener that was shut down is none any more.
var ErrNotListening = errors.New("socket is not listening")

// States of a Conn, as the kernel numbers them.
const (
	Established uint8 = 1 // both ends may send
	CloseWait   uint8 = 8 // the peer has finished sending, the server has not
)

// Conn is one TCP connection, seen from the server's end. IPv4 addresses are in
// their 4-byte form even where the socket is an IPv6 one.
type Conn struct {
	Local, Remote netip.AddrPort
	State         uint8
	// Inode is 0 for a connection that nobody has accepted yet.
	Inode uint64
	// Cookie names the socket for good; the kernel never gives it twice.
	Cookie uint64
	// RecvQ is in bytes not yet read by the server, SendQ in bytes not yet
	// acknowledged by the peer.
	RecvQ, SendQ uint32
	// How long ago data was sent and received and an acknowledgement received,
	// with the granularity of the kernel's clock tick. Zero unless asked for. A
	// connection that never sent or received counts from its beginning.
	LastSent, LastRecv, LastAck time.Duration

	// DataSegsIn and DataSegsOut count the segments with data that have come
	// in and gone out. Zero unless asked for.
	DataSegsIn, DataSegsOut uint32
}

// Peer is a handshake under way: no connection yet, so no socket and no inode.
type Peer struct {
	Local, Remote netip.AddrPort
}

// Listener is one listening TCP socket. Local has the unspecified address "::"
// for a socket that takes both families, unless V6Only.
type Listener struct {
	Local  netip.AddrPort
	V6Only bool
	Device int // index of the interface that it is bound to, 0: none
	// UID is the owner of the socket: two sockets of a SO_REUSEPORT group have
	// the same one.
	UID   uint32
	Inode uint64
	// Queue counts the connections that wait to be accepted, Backlog how many may.
	Queue, Backlog uint32
}

// AcceptQueue returns how many connections wait in the queue of a listening TCP
// or unix socket; 0 for datagram sockets. Handshakes under way are not counted.
// fd stays the caller's. The error is [ErrNotListening] for a stream socket that
// does not listen.
func AcceptQueue(fd int) (int, error) {
	n, err := acceptQueue(fd)
	if err != nil {
		return 0, fmt.Errorf("cannot read the accept queue: %w", err)
	}
	return n, nil
}

// Queue is AcceptQueue, and for a datagram socket the bytes of the first
// datagram that waits to be read.
func Queue(fd int) (int, error) {
	n, err := AcceptQueue(fd)
	if err != nil || n > 0 {
		return n, err
	}
	return firstDatagram(fd), nil
}

// Connections lists the established and half-closed (CLOSE_WAIT) connections
// whose local port is one of ports, both families, those that wait to be
// accepted included. info asks for the times since data last moved as well,
// which makes the answer five times as long.
func Connections(ports []uint16, info bool) ([]Conn, error) {
	list, err := connections(ports, info)
	if err != nil {
		return nil, fmt.Errorf("cannot list TCP connections: %w", err)
	}
	return list, nil
}

// Handshakes lists the peers whose handshake with one of these local ports has
// begun and not ended (SYN_RECV). Those that the kernel answers with a SYN
// cookie leave no trace until they end.
func Handshakes(ports []uint16) ([]Peer, error) {
	list, err := handshakes(ports)
	if err != nil {
		return nil, fmt.Errorf("cannot list TCP handshakes: %w", err)
	}
	return list, nil
}

// Listeners lists the listening TCP sockets on a port, both families, whoever
// owns them.
func Listeners(port uint16) ([]Listener, error) {
	list, err := listeners(port)
	if err != nil {
		return nil, fmt.Errorf("cannot list TCP listeners: %w", err)
	}
	return list, nil
}

// ListenersAmong lists the listening TCP sockets on any port that are among
// these inodes (see [Inodes]).
func ListenersAmong(inodes map[uint64]struct{}) ([]Listener, error) {
	list, err := listenersAmong(inodes)
	if err != nil {
		return nil, fmt.Errorf("cannot list TCP listeners: %w", err)
	}
	return list, nil
}

// UnixConnections counts the accepted stream connections that bear the name
// path: the server's ends, which have their listener's name. The kernel does not
// list those that still wait; [AcceptQueue] counts them. path is what the
// listener was *bound* to, byte for byte; a later rename does not change it. "@x"
// is the abstract name x.
func UnixConnections(path string) (int, error) {
	n, err := unixConnections(path)
	if err != nil {
		return 0, fmt.Errorf("cannot count the connections of %q: %w", path, err)
	}
	return n, nil
}
