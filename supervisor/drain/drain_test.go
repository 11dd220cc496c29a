package drain

import (
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/moult/moult/supervisor/observe"
)

const ms = time.Millisecond

// answered waits for its client's next request, for two seconds.
var answered = observe.Conn{State: observe.Established, LastSent: 2000 * ms, LastRecv: 2100 * ms, LastAck: 2000 * ms, DataSegsIn: 2, DataSegsOut: 2}

func TestIdle(t *testing.T) {
	const after = time.Second
	for _, c := range []struct {
		name   string
		change func(*observe.Conn)
		want   bool
	}{
		{"answered two seconds ago", func(*observe.Conn) {}, true},
		{"exactly as long ago as is asked for", func(c *observe.Conn) { c.LastSent = after }, true},
		{"answered just now", func(c *observe.Conn) { c.LastSent = 999 * ms }, false},
		{"asked after the answer", func(c *observe.Conn) { c.LastRecv = 1500 * ms }, false},
		{"asked just now", func(c *observe.Conn) { c.LastRecv = 0 }, false},
		{"a request not read yet", func(c *observe.Conn) { c.RecvQ = 1 }, false},
		{"an answer on its way", func(c *observe.Conn) { c.SendQ = 1 }, false},
		{"the client has said goodbye", func(c *observe.Conn) { c.State = observe.CloseWait }, false},
		{"answered within the tick of the request", func(c *observe.Conn) { c.LastRecv, c.LastAck = 2000*ms, 1960*ms }, true},
		{"asked within the tick of the answer, no word since", func(c *observe.Conn) { c.LastRecv, c.LastAck = 2000*ms, 2000*ms }, false},
		{"the same, acknowledged much later", func(c *observe.Conn) { c.LastRecv, c.LastAck = 2000*ms, 1000*ms }, false},
		{"the first request, answered within its tick", func(c *observe.Conn) { c.LastRecv, c.DataSegsIn, c.DataSegsOut = 2000*ms, 1, 1 }, true},
		{"never a word", func(c *observe.Conn) { c.LastRecv, c.LastAck, c.DataSegsIn, c.DataSegsOut = 2000*ms, 1960*ms, 0, 0 }, false},
		{"a request within the tick of the connection", func(c *observe.Conn) { c.LastRecv, c.DataSegsIn, c.DataSegsOut = 2000*ms, 1, 0 }, false},
	} {
		conn := answered
		c.change(&conn)
		if got := Idle(conn, after); got != c.want {
			t.Errorf("%s: idle is %v", c.name, got)
		}
	}
}

// at is an idle connection to local; its client's port tells it from others.
func at(local string, client uint16, inode uint64) observe.Conn {
	c := answered
	c.Local, c.Inode = netip.MustParseAddrPort(local), inode
	c.Remote = netip.AddrPortFrom(netip.MustParseAddr("192.0.2.9"), client)
	return c
}

func busy(c observe.Conn) observe.Conn {
	c.RecvQ = 1
	return c
}

func on(addresses ...string) *Connections {
	var list []netip.AddrPort
	for _, a := range addresses {
		list = append(list, netip.MustParseAddrPort(a))
	}
	return On(list)
}

func set(inodes ...uint64) map[uint64]struct{} {
	s := map[uint64]struct{}{}
	for _, inode := range inodes {
		s[inode] = struct{}{}
	}
	return s
}

func (c *Connections) want(t *testing.T, what string, busy, idle int) {
	t.Helper()
	if b, i := c.Count(time.Second); b != busy || i != idle {
		t.Errorf("%s: %d are busy, %d idle; want %d and %d", what, b, i, busy, idle)
	}
}

// A stranger at another address of the same port is nobody's business.
func TestWhichAddressesAreTheWorkers(t *testing.T) {
	for _, c := range []struct {
		bound, local string
		ours         bool
	}{
		{"127.0.0.1:80", "127.0.0.1:80", true},
		{"127.0.0.1:80", "127.0.0.2:80", false},
		{"127.0.0.1:80", "127.0.0.1:81", false},
		{"0.0.0.0:80", "127.0.0.2:80", true},
		{"0.0.0.0:80", "127.0.0.2:81", false},
		{"0.0.0.0:80", "[::1]:80", false},
		{"[::]:80", "127.0.0.2:80", true},
		{"[::]:80", "[2001:db8::1]:80", true},
		{"[::1]:80", "[::1]:80", true},
		{"[::1]:80", "[2001:db8::1]:80", false},
		{"[::1]:80", "127.0.0.1:80", false},
		{"[::ffff:127.0.0.1]:80", "127.0.0.1:80", true},
		{"[::ffff:127.0.0.1]:80", "127.0.0.2:80", false},
		{"[::ffff:0.0.0.0]:80", "[::1]:80", false},
		{"[fe80::1%2]:80", "[fe80::1]:80", true},
		{"[fe80::1]:80", "[fe80::1%eth0]:80", true},
	} {
		conns := on("192.0.2.1:1", c.bound)
		conns.See([]observe.Conn{busy(at(c.local, 1, 7))})
		if n, _ := conns.Count(time.Second); (n == 1) != c.ours {
			t.Errorf("bound to %s, a connection to %s: %d counted", c.bound, c.local, n)
		}
	}
}

func TestConnectionsAreThoseOfTheFirstLook(t *testing.T) {
	const local = "127.0.0.1:80"
	one, two, later := at(local, 1, 11), busy(at(local, 2, 12)), at(local, 3, 13)
	queued := busy(at(local, 4, 0)) // that nobody has accepted yet
	c := on(local)
	c.want(t, "before the first look", 0, 0)
	c.See([]observe.Conn{one, two, queued})
	c.want(t, "the first", 2, 1)
	c.See([]observe.Conn{one, two, later})
	c.want(t, "one has gone, one has come", 1, 1)
	c.See([]observe.Conn{busy(one), later})
	c.want(t, "an idle one got a request", 1, 0)
	c.See([]observe.Conn{later})
	c.want(t, "all that there were have gone", 0, 0)
	c.See([]observe.Conn{one, two})
	c.want(t, "a client has used its port again", 0, 0)

	c = on(local)
	c.See([]observe.Conn{queued})
	accepted := queued
	accepted.Inode = 14
	c.See([]observe.Conn{accepted})
	c.want(t, "one was accepted meanwhile", 1, 0)
	again := accepted
	again.Inode = 15
	c.See([]observe.Conn{again})
	c.want(t, "its client has used the port again at once", 0, 0)
}

func TestConnectionsOfOthersAreDropped(t *testing.T) {
	const local = "127.0.0.1:80"
	c := on(local)
	c.See([]observe.Conn{at(local, 1, 11), at(local, 2, 12), at(local, 3, 13)})
	if !c.Unknown() {
		t.Error("of connections that nobody was found to have it is known whose they are")
	}
	c.Mine(set(11, 99))
	c.Theirs(set(11, 12)) // 11 was passed on, and both have it
	c.want(t, "one is another's, one is nobody's", 0, 2)
	if !c.Unknown() {
		t.Error("13 is nobody's, and yet known")
	}
	c.Mine(set(11, 13))
	if c.Unknown() {
		t.Error("all are the worker's, and yet unknown")
	}
	c.See([]observe.Conn{at(local, 1, 11), at(local, 2, 12), at(local, 3, 13)})
	c.want(t, "what was another's stays so", 0, 2)
}

func TestEndListsEachIdleConnectionOnce(t *testing.T) {
	const local = "127.0.0.1:80"
	all := []observe.Conn{at(local, 1, 11), busy(at(local, 2, 12)), at(local, 3, 13)}
	c := on(local)
	c.See(all)
	ends := func(what string, want ...uint64) {
		t.Helper()
		if got := slices.Sorted(maps.Keys(c.End(time.Second))); !slices.Equal(got, want) {
			t.Errorf("%s: %v are ended, want %v", what, got, want)
		}
	}
	ends("nothing is known to be the worker's")
	c.Mine(set(11, 12))
	if n := len(c.End(time.Minute)); n != 0 {
		t.Errorf("%d are ended that have not been idle for so long", n)
	}
	ends("one is idle and the worker's", 11)
	c.See(all)
	ends("it was helped before")
	all[1] = at(local, 2, 12)
	c.See(all)
	ends("the other has become idle", 12)
}
