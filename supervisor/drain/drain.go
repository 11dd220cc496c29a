// Package drain judges the connections of a worker that gets no new ones any
// more: which are still in use, which wait for their clients. It looks at
// nothing itself.
package drain

import (
	"net/netip"
	"time"

	"github.com/moult/moult/supervisor/observe"
)

// Connections follows those that a worker has when it gets no new ones: all that
// there are on its addresses at that moment, less those that turn out to be
// another worker's.
//
// A connection that cannot be attributed counts as the worker's: between
// accept(2) taking it off the queue and its descriptor appearing in /proc it
// belongs to nobody, and this is the moment not to overlook it.
type Connections struct {
	addresses []netip.AddrPort
	conns     map[observe.Peer]*connection
	began     bool
}

type connection struct {
	observe.Conn
	mine bool // found among the worker's descriptors
	help bool // was helped along: what does not work once will not work later
}

// On follows the connections of these addresses; an unspecified one means all of
// its port, that of IPv4 all of IPv4.
func On(addresses []netip.AddrPort) *Connections {
	return &Connections{addresses: addresses, conns: map[observe.Peer]*connection{}}
}

// See takes in all connections of the addresses' ports. What has come since the
// first time is another worker's.
func (c *Connections) See(all []observe.Conn) {
	now := make(map[observe.Peer]*connection, len(c.conns))
	for _, conn := range all {
		if !c.ours(conn.Local) {
			continue
		}
		key := observe.Peer{Local: conn.Local, Remote: conn.Remote}
		have := c.conns[key]
		if have == nil || have.isAnother(conn) {
			if c.began {
				continue
			}
			have = &connection{}
		}
		have.Conn = conn
		now[key] = have
	}
	c.conns, c.began = now, true
}

// isAnother tells that a client has used its port once more: a connection that
// was accepted has one socket for as long as anybody has it.
func (c *connection) isAnother(conn observe.Conn) bool {
	return c.Inode != 0 && conn.Inode != 0 && c.Inode != conn.Inode
}

func (c *Connections) ours(local netip.AddrPort) bool {
	for _, a := range c.addresses {
		ip := a.Addr().Unmap().WithZone("")
		all := ip.IsUnspecified() && (ip.Is6() || local.Addr().Is4())
		if a.Port() == local.Port() && (all || ip == local.Addr().WithZone("")) {
			return true
		}
	}
	return false
}

// Unknown tells whether there are connections of which it is not known that they
// are the worker's.
func (c *Connections) Unknown() bool {
	for _, conn := range c.conns {
		if !conn.mine {
			return true
		}
	}
	return false
}

// Mine notes which of them the worker's processes hold.
func (c *Connections) Mine(inodes map[uint64]struct{}) {
	for _, conn := range c.conns {
		_, conn.mine = inodes[conn.Inode]
	}
}

// Theirs drops those that others hold.
func (c *Connections) Theirs(inodes map[uint64]struct{}) {
	for key, conn := range c.conns {
		if _, held := inodes[conn.Inode]; held && !conn.mine {
			delete(c.conns, key)
		}
	}
}

// Count tells how many are in use, and how many have been idle for some time.
func (c *Connections) Count(after time.Duration) (busy, idle int) {
	for _, conn := range c.conns {
		if Idle(conn.Conn, after) {
			idle++
		} else {
			busy++
		}
	}
	return busy, idle
}

// End lists the inodes of idle connections that shall be ended, each once.
func (c *Connections) End(after time.Duration) map[uint64]struct{} {
	end := map[uint64]struct{}{}
	for _, conn := range c.conns {
		if conn.mine && !conn.help && Idle(conn.Conn, after) {
			conn.help = true
			end[conn.Inode] = struct{}{}
		}
	}
	return end
}

// Idle tells whether a connection waits for its client's next request: nothing
// is under way in either direction, and the last that happened was an answer.
//
// The kernel's times have a jiffy's granularity, in which a fast answer and the
// request before it look simultaneous, but so does an answer and the request
// after it. What tells them apart is the acknowledgement: a client that says
// nothing more acknowledges the answer by itself, within the time that
// acknowledgements are delayed. At the start of a connection it does so at once;
// but where only one segment has come in at all, what was sent after it is its
// answer.
func Idle(c observe.Conn, after time.Duration) bool {
	const delayedAck = 300 * time.Millisecond
	switch {
	case c.State != observe.Established || c.RecvQ > 0 || c.SendQ > 0 || min(c.LastSent, c.LastRecv) < after:
		return false
	case c.LastSent != c.LastRecv:
		return c.LastSent < c.LastRecv
	case c.DataSegsOut == 0: // both are the time at which the connection began
		return false
	case c.DataSegsIn == 1:
		return true
	}
	return c.LastAck < c.LastSent && c.LastSent-c.LastAck < delayedAck
}
