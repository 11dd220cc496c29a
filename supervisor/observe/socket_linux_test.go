package observe

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func queue(t testing.TB, fd int) int {
	t.Helper()
	n, err := AcceptQueue(fd)
	check(t, err)
	return n
}

// accept takes one connection, which closes with the test.
func accept(t testing.TB, fd int) int {
	t.Helper()
	c, _, err := unix.Accept(fd)
	check(t, err)
	unix.CloseOnExec(c)
	t.Cleanup(func() { unix.Close(c) })
	return c
}

func TestAcceptQueue(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	abstract := fmt.Sprintf("@observe-%d-%d", os.Getpid(), time.Now().UnixNano())
	for name, address := range map[string]string{"tcp": "", "path": path, "abstract": abstract} {
		t.Run(name, func(t *testing.T) {
			network, fd := "unix", 0
			if address == "" {
				network = "tcp"
				var port uint16
				fd, port = listenTCP(t)
				address = onPort(port)
			} else {
				fd = listen(t, &unix.SockaddrUnix{Name: address}, unix.SOCK_STREAM)
			}
			for want := range 5 {
				eventually(t, fmt.Sprintf("%d wait", want), func() bool { return queue(t, fd) == want })
				dial(t, network, address)
			}
			accept(t, fd)
			if n := queue(t, fd); n != 4 {
				t.Errorf("after one accept %d wait, want 4", n)
			}
		})
	}
}

func TestAcceptQueueOfOtherSockets(t *testing.T) {
	datagram := listen(t, &unix.SockaddrInet4{Addr: loopback}, unix.SOCK_DGRAM)
	if n := queue(t, datagram); n != 0 {
		t.Errorf("datagram: %d", n)
	}
	fd, port := listenTCP(t)
	dial(t, "tcp", onPort(port))
	conn := accept(t, fd)
	check(t, unix.Shutdown(fd, unix.SHUT_RDWR))
	for _, fd := range []int{conn, fd} {
		if n, err := AcceptQueue(fd); !errors.Is(err, ErrNotListening) || n != 0 || Listening(fd) {
			t.Errorf("no listener: %d, %v", n, err)
		}
	}
	if _, err := AcceptQueue(-1); !errors.Is(err, unix.EBADF) {
		t.Errorf("no descriptor: %v", err)
	}
}

func TestUnixConnections(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	abstract := fmt.Sprintf("@observe-%d-%d", os.Getpid(), time.Now().UnixNano())
	for _, name := range []string{path, abstract} {
		fd := listen(t, &unix.SockaddrUnix{Name: name}, unix.SOCK_STREAM)
		count := func() int {
			n, err := UnixConnections(name)
			check(t, err)
			return n
		}
		for range 3 {
			dial(t, "unix", name)
		}
		for accepted := range 3 {
			if n := count(); n != accepted {
				t.Errorf("%s: %d connections after %d were accepted", name, n, accepted)
			}
			check(t, unix.Shutdown(accept(t, fd), unix.SHUT_RD))
		}
		if n := count(); n != 3 {
			t.Errorf("%s: %d connections while all are half closed, want 3", name, n)
		}
		if n, err := UnixConnections(name + "x"); n != 0 || err != nil {
			t.Errorf("%sx: %d, %v", name, n, err)
		}
	}
	if n, err := UnixConnections(""); n != 0 || err != nil {
		t.Errorf("the sockets without a name: %d, %v", n, err)
	}
}

func TestUnixConnectionsAfterRenameAndClose(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	fd := listen(t, &unix.SockaddrUnix{Name: path}, unix.SOCK_STREAM)
	check(t, os.Rename(path, path+"2"))
	dial(t, "unix", path+"2")
	conn, _, err := unix.Accept(fd)
	check(t, err)
	if n, err := UnixConnections(path); n != 1 || err != nil {
		t.Errorf("by the name it was bound to: %d, %v, want 1", n, err)
	}
	unix.Close(conn)
	if n, err := UnixConnections(path); n != 0 || err != nil {
		t.Errorf("after the server closed: %d, %v, want 0", n, err)
	}
}

func connectionsOn(t testing.TB, info bool, ports ...uint16) []Conn {
	t.Helper()
	list, err := Connections(ports, info)
	check(t, err)
	return list
}

func addrPort(a net.Addr) netip.AddrPort { return a.(*net.TCPAddr).AddrPort() }

func TestConnections(t *testing.T) {
	fd, port := listenTCP(t)
	_, otherPort := listenTCP(t)
	client := dial(t, "tcp", onPort(port))
	dial(t, "tcp", onPort(otherPort))
	conn := accept(t, fd)
	_, err := client.Write([]byte("hello"))
	check(t, err)
	want := Conn{
		Local: addrPort(client.RemoteAddr()), Remote: addrPort(client.LocalAddr()),
		State: Established, Inode: inodeOf(t, conn), RecvQ: 5,
	}
	want.Cookie, err = unix.GetsockoptUint64(conn, unix.SOL_SOCKET, unix.SO_COOKIE)
	check(t, err)
	list := connectionsOn(t, false, port, port)
	if len(list) != 1 || list[0] != want {
		t.Errorf("got %+v, want %+v", list, want)
	}
	check(t, client.(*net.TCPConn).CloseWrite())
	eventually(t, "the connection is half closed", func() bool {
		list := connectionsOn(t, false, port)
		return len(list) == 1 && list[0].State == CloseWait
	})
	if list := connectionsOn(t, false); list != nil {
		t.Errorf("no port asked for: %v", list)
	}
}

func TestConnectionNotYetAccepted(t *testing.T) {
	_, port := listenTCP(t)
	dial(t, "tcp", onPort(port))
	eventually(t, "the connection is listed without an inode", func() bool {
		list := connectionsOn(t, false, port)
		return len(list) == 1 && list[0].Inode == 0
	})
}

func TestConnectionTimes(t *testing.T) {
	fd, port := listenTCP(t)
	client := dial(t, "tcp", onPort(port))
	conn := accept(t, fd)
	one := func() Conn { return connectionsOn(t, true, port)[0] }
	const quiet = 60 * time.Millisecond
	eventually(t, "it has been quiet both ways", func() bool { return one().LastSent > quiet && one().LastRecv > quiet })
	_, err := client.Write([]byte("x"))
	check(t, err)
	eventually(t, "it received later than it sent", func() bool { return one().LastRecv+quiet/2 < one().LastSent })
	eventually(t, "it has been quiet again", func() bool { return one().LastRecv > quiet })
	_, err = unix.Write(conn, []byte("x"))
	check(t, err)
	eventually(t, "it sent later than it received", func() bool {
		c := one()
		return c.LastSent+quiet/2 < c.LastRecv && c.LastAck < c.LastRecv
	})
	if c := connectionsOn(t, false, port)[0]; c.LastSent+c.LastRecv+c.LastAck != 0 {
		t.Errorf("times that were not asked for: %+v", c)
	}
}

// listenV6 skips where there is no IPv6.
func listenV6(t *testing.T, sa *unix.SockaddrInet6, v6only int) int {
	t.Helper()
	if l, err := net.Listen("tcp6", "[::1]:0"); err != nil {
		t.Skip("no IPv6 here")
	} else {
		l.Close()
	}
	return listen(t, sa, unix.SOCK_STREAM, func(fd int) {
		check(t, unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, v6only))
	})
}

func TestConnectionsOfBothFamilies(t *testing.T) {
	fd := listenV6(t, &unix.SockaddrInet6{}, 0)
	port := portOf(t, fd)
	v4 := dial(t, "tcp4", onPort(port))
	v6 := dial(t, "tcp6", fmt.Sprintf("[::1]:%d", port))
	list := connectionsOn(t, false, port)
	for _, client := range []net.Conn{v4, v6} {
		if !slices.ContainsFunc(list, func(c Conn) bool {
			return c.Local == addrPort(client.RemoteAddr()) && c.Remote == addrPort(client.LocalAddr())
		}) {
			t.Errorf("%v is not in %+v", client.LocalAddr(), list)
		}
	}
	if len(list) != 2 {
		t.Errorf("%d connections, want 2", len(list))
	}
}

// The filter is code for a machine inside the kernel: each place in a list of
// ports, and a list that takes more than one request, must match.
func TestConnectionsOnManyPorts(t *testing.T) {
	_, port := listenTCP(t)
	dial(t, "tcp", onPort(port))
	var others []uint16
	for p := uint16(1); p <= 1500; p++ {
		if p != port {
			others = append(others, p)
		}
	}
	for _, n := range []int{0, 1, 2, 3, 1023, 1024, 1500} {
		ports := append(slices.Clone(others[:n]), port)
		if list := connectionsOn(t, false, ports...); len(list) != 1 {
			t.Errorf("after %d other ports: %d connections, want 1", n, len(list))
		}
		ports = append(slices.Clone(others[:n]), port, 65535)
		if list := connectionsOn(t, false, ports...); len(list) != 1 {
			t.Errorf("between %d other ports and one more: %d connections, want 1", n, len(list))
		}
		if list := connectionsOn(t, false, others[:n]...); len(list) != 0 {
			t.Errorf("on %d other ports only: %+v", n, list)
		}
	}
}

func TestConnectionsAgreeWithSS(t *testing.T) {
	ss, err := exec.LookPath("ss")
	if err != nil {
		t.Skip("no ss here")
	}
	fd, port := listenTCP(t)
	for range 20 {
		dial(t, "tcp", onPort(port))
	}
	for range 7 {
		accept(t, fd)
	}
	eventually(t, "all are established", func() bool { return queue(t, fd) == 13 })
	out, err := exec.Command(ss, "-tnHe", "state", "established", fmt.Sprintf("( sport = :%d )", port)).Output()
	check(t, err)
	var theirs, ours []string
	for line := range strings.Lines(string(out)) {
		theirs = append(theirs, strings.Fields(line)[3]) // after two queues and the local end
	}
	for _, c := range connectionsOn(t, false, port) {
		ours = append(ours, c.Remote.String())
	}
	slices.Sort(theirs)
	slices.Sort(ours)
	if !slices.Equal(ours, theirs) {
		t.Errorf("ours %v, those of ss %v", ours, theirs)
	}
}

// deferAccept makes a handshake last until the client sends data: the kernel
// drops the bare acknowledgement, as a slow network would. A filter on the
// client's socket would do it too, but needs CAP_NET_ADMIN on newer kernels.
func deferAccept(t *testing.T, fd int) {
	t.Helper()
	check(t, unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, 30))
}

func handshakesOn(t *testing.T, port uint16) []Peer {
	t.Helper()
	list, err := Handshakes([]uint16{port})
	check(t, err)
	return list
}

func TestHandshakes(t *testing.T) {
	fd, port := listenTCP(t)
	deferAccept(t, fd)
	client := dial(t, "tcp", onPort(port))
	want := Peer{Local: addrPort(client.RemoteAddr()), Remote: addrPort(client.LocalAddr())}
	eventually(t, "the handshake is seen", func() bool { return slices.Equal(handshakesOn(t, port), []Peer{want}) })
	if n := queue(t, fd); n != 0 || len(connectionsOn(t, false, port)) != 0 {
		t.Errorf("it counts as a connection already, %d in the queue", n)
	}
	_, err := client.Write([]byte("x"))
	check(t, err)
	eventually(t, "the handshake is over", func() bool { return len(handshakesOn(t, port)) == 0 })
	if n := queue(t, fd); n != 1 {
		t.Errorf("%d in the queue after the handshake, want 1", n)
	}
}

func TestHandshakesOnSocketOfBothFamilies(t *testing.T) {
	fd := listenV6(t, &unix.SockaddrInet6{}, 0)
	deferAccept(t, fd)
	port := portOf(t, fd)
	v4 := dial(t, "tcp4", onPort(port))
	v6 := dial(t, "tcp6", fmt.Sprintf("[::1]:%d", port))
	eventually(t, "both handshakes are seen, each in its own form", func() bool {
		list := handshakesOn(t, port)
		return len(list) == 2 &&
			slices.Contains(list, Peer{Local: addrPort(v4.RemoteAddr()), Remote: addrPort(v4.LocalAddr())}) &&
			slices.Contains(list, Peer{Local: addrPort(v6.RemoteAddr()), Remote: addrPort(v6.LocalAddr())})
	})
}

func listenersOn(t testing.TB, port uint16) []Listener {
	t.Helper()
	list, err := Listeners(port)
	check(t, err)
	return list
}

func TestListeners(t *testing.T) {
	fd, port := listenTCP(t)
	for range 3 {
		dial(t, "tcp", onPort(port))
	}
	want := Listener{
		Local: netip.MustParseAddrPort(onPort(port)), UID: uint32(os.Getuid()),
		Inode: inodeOf(t, fd), Queue: 3, Backlog: backlog(t),
	}
	eventually(t, fmt.Sprintf("the listener is %+v", want), func() bool {
		return slices.Equal(listenersOn(t, port), []Listener{want})
	})
}

// backlog is what the kernel makes of 4096.
func backlog(t testing.TB) uint32 {
	t.Helper()
	text, err := os.ReadFile("/proc/sys/net/core/somaxconn")
	check(t, err)
	var limit uint32
	_, err = fmt.Sscan(string(text), &limit)
	check(t, err)
	return min(limit, 4096)
}

func TestListenersOfAGroup(t *testing.T) {
	join := func(fd int) { check(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)) }
	first := listen(t, &unix.SockaddrInet4{Addr: loopback}, unix.SOCK_STREAM, join)
	port := portOf(t, first)
	second := listen(t, &unix.SockaddrInet4{Addr: loopback, Port: int(port)}, unix.SOCK_STREAM, join)
	var got []uint64
	for _, l := range listenersOn(t, port) {
		got = append(got, l.Inode)
	}
	want := []uint64{inodeOf(t, first), inodeOf(t, second)}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("inodes %v, want %v", got, want)
	}
}

func TestListenersV6Only(t *testing.T) {
	for v6only, want := range []bool{false, true} {
		fd := listenV6(t, &unix.SockaddrInet6{}, v6only)
		port := portOf(t, fd)
		list := listenersOn(t, port)
		if len(list) != 1 || list[0].V6Only != want || list[0].Local != netip.AddrPortFrom(netip.IPv6Unspecified(), port) {
			t.Errorf("v6only %d: %+v", v6only, list)
		}
	}
}

func TestAttributeOfGarbage(t *testing.T) {
	for _, b := range [][]byte{nil, {1}, {3, 0, 2, 0}, {9, 0, 2, 0, 1}, {255, 255, 2, 0}} {
		if got := attribute(b, 2); got != nil {
			t.Errorf("%v has %v", b, got)
		}
	}
	if got := attribute([]byte{5, 0, 1, 0, 7, 0, 0, 0, 5, 0, 2, 0, 9}, 2); !slices.Equal(got, []byte{9}) {
		t.Errorf("the second attribute is %v", got)
	}
}
