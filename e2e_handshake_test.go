//go:build linux

package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Handshakes under way at the switch: clients that are 80 ms away. On loopback
// a handshake is over before anything else can happen, so client and server
// get a network namespace each, and every packet between them is carried by
// this process, late.

const (
	serverHost = "10.201.7.1"
	clientHost = "10.201.7.2"
)

func TestHandshakesUnderWayAtTheSwitch(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root may make a network namespace")
	}
	serverSide, clientSide := farApart(t, 40*time.Millisecond)
	address := net.JoinHostPort(serverHost, "8080")
	var m *master
	serverSide.enter(t, func() { m = run(t, []string{"-l", address}, worker("plain")) })
	m.waitServing(1)
	clients := startFarClients(t, clientSide, address, 24)
	clients.flow(t)
	for range times(10, 3, 100) {
		m.upgrade()
		clients.flow(t)
	}
	m.waitState(m.generation()-1, "gone")
	requests, failures := clients.stop()
	if len(failures) > 0 || requests == 0 {
		t.Errorf("%d requests, %d failures, the first: %v", requests, len(failures), failures[:min(3, len(failures))])
	}
	m.stop()
}

// namespace is a network namespace with one interface, whose other end this
// process holds.
type namespace struct {
	handle *os.File
	wire   *os.File // packets in and out of its interface
}

// farApart makes two namespaces that are delay apart, each way.
func farApart(t *testing.T, delay time.Duration) (server, client *namespace) {
	t.Helper()
	server, client = newNamespace(t, serverHost, clientHost), newNamespace(t, clientHost, serverHost)
	go carry(server.wire, client.wire, delay)
	go carry(client.wire, server.wire, delay)
	return server, client
}

// carry hands packets on in their order, each after its delay, until from is
// closed.
func carry(from, to *os.File, delay time.Duration) {
	type packet struct {
		due  time.Time
		data []byte
	}
	packets := make(chan packet, 65536)
	go func() {
		for p := range packets {
			time.Sleep(time.Until(p.due))
			to.Write(p.data)
		}
	}()
	defer close(packets)
	buffer := make([]byte, 65536)
	for {
		n, err := from.Read(buffer)
		if err != nil {
			return
		}
		packets <- packet{time.Now().Add(delay), append([]byte(nil), buffer[:n]...)}
	}
}

func newNamespace(t *testing.T, host, peer string) *namespace {
	t.Helper()
	ip := requireProgram(t, "ip")
	made := make(chan error, 1)
	n := new(namespace)
	go func() {
		// The thread is never given back: it ends with this goroutine, in
		// the namespace that it has made.
		runtime.LockOSThread()
		made <- n.make(ip, host, peer)
	}()
	if err := <-made; err != nil {
		skip(t, fmt.Sprintf("cannot make a network namespace with a tun device: %v", err))
	}
	t.Cleanup(func() { n.wire.Close(); n.handle.Close() })
	return n
}

func (n *namespace) make(ip, host, peer string) error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return err
	}
	handle, err := os.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()))
	if err != nil {
		return err
	}
	n.handle = handle
	if n.wire, err = openTun("moult0"); err != nil {
		return err
	}
	for _, line := range [][]string{
		{"link", "set", "lo", "up"},
		{"address", "add", host, "peer", peer, "dev", "moult0"},
		{"link", "set", "moult0", "up"},
	} {
		if output, err := exec.Command(ip, line...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %v: %w: %s", line, err, output)
		}
	}
	return nil
}

func openTun(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	request, err := unix.NewIfreq(name)
	if err == nil {
		request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// enter calls f on a thread in the namespace; what f starts is in it too.
func (n *namespace) enter(t *testing.T, f func()) {
	t.Helper()
	entered := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		err := unix.Setns(int(n.handle.Fd()), unix.CLONE_NEWNET)
		defer func() { entered <- err }() // also if f ends the goroutine
		if err == nil {
			f()
		}
	}()
	if err := <-entered; err != nil {
		t.Fatal(err)
	}
}

// farClients ask in a closed loop, a new connection per request.
type farClients struct {
	running  sync.WaitGroup
	over     atomic.Bool
	requests atomic.Int64
	mu       sync.Mutex
	failures []error
}

func startFarClients(t *testing.T, side *namespace, address string, n int) *farClients {
	c := new(farClients)
	for range n {
		c.running.Go(func() {
			runtime.LockOSThread() // sockets belong to the thread's namespace
			if err := unix.Setns(int(side.handle.Fd()), unix.CLONE_NEWNET); err != nil {
				c.failed(err)
				return
			}
			for !c.over.Load() {
				if err := askFar(address); err != nil {
					c.failed(err)
				}
				c.requests.Add(1)
			}
		})
	}
	t.Cleanup(func() { c.stop() })
	return c
}

func (c *farClients) failed(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failures = append(c.failures, err)
}

// flow waits for some more requests.
func (c *farClients) flow(t *testing.T) {
	t.Helper()
	before := c.requests.Load()
	until(t, "far clients get answers", func() error { return atLeast(int(c.requests.Load()-before), 24) })
}

func (c *farClients) stop() (int64, []error) {
	c.over.Store(true)
	c.running.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.requests.Load(), c.failures
}

// askFar dials by system calls, since net may open the socket on another
// thread, and so in another namespace.
func askFar(address string) error {
	host, err := net.ResolveTCPAddr("tcp4", address)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	file := os.NewFile(uintptr(fd), "client")
	defer file.Close()
	limit := unix.Timeval{Sec: 10}
	unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit)
	unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit)
	peer := &unix.SockaddrInet4{Port: host.Port, Addr: [4]byte(host.IP.To4())}
	for err = unix.EINTR; err == unix.EINTR; {
		err = unix.Connect(fd, peer)
	}
	if err != nil && err != unix.EISCONN {
		return fmt.Errorf("connect: %w", err)
	}
	conn, err := net.FileConn(file)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	response, _, err := exchange(conn, "/")
	if err == nil && response.StatusCode != 200 {
		err = fmt.Errorf("status %s", response.Status)
	}
	return err
}

// A client that never finishes its handshake holds an upgrade up for a few
// seconds at most.
func TestHandshakeThatNeverEnds(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root may make a network namespace")
	}
	t.Parallel()
	side := newNamespace(t, serverHost, clientHost)
	address := net.JoinHostPort(serverHost, "8080")
	var m *master
	side.enter(t, func() { m = run(t, []string{"-l", address}, worker("graceful")) })
	m.waitServing(1)
	answered := make(chan struct{}, 1)
	go readSynAcks(side.wire, answered)
	if _, err := side.wire.Write(syn(40000, 8080)); err != nil {
		t.Fatal(err)
	}
	select {
	case <-answered:
	case <-time.After(patience):
		t.Fatal("the SYN was not answered")
	}
	began := time.Now()
	m.signal(syscall.SIGHUP)
	m.waitServing(2)
	m.waitState(1, "gone")
	if took := time.Since(began); took > 8*time.Second {
		t.Errorf("the old generation left after %v only", took)
	}
	m.stop()
}

// readSynAcks reads packets until the wire is closed, and tells of the first
// SYN+ACK.
func readSynAcks(wire *os.File, answered chan<- struct{}) {
	buffer := make([]byte, 65536)
	for {
		n, err := wire.Read(buffer)
		if err != nil {
			return
		}
		const tcp, flags, synAck = 6, 20 + 13, 0x12
		if n > flags && buffer[0] == 0x45 && buffer[9] == tcp && buffer[flags]&0x3f == synAck {
			select {
			case answered <- struct{}{}:
			default:
			}
		}
	}
}

// syn is an IPv4 packet with the first segment of a handshake, from the
// client's host to the server's.
func syn(from, to uint16) []byte {
	source, destination := [4]byte(net.ParseIP(clientHost).To4()), [4]byte(net.ParseIP(serverHost).To4())
	ip := append([]byte{0x45, 0, 0, 40, 0, 1, 0, 0, 64, 6, 0, 0}, append(source[:], destination[:]...)...)
	put16(ip[10:], checksum(ip))
	tcp := []byte{0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 5 << 4, 2, 0xff, 0xff, 0, 0, 0, 0}
	put16(tcp, from)
	put16(tcp[2:], to)
	pseudo := append(append(source[:], destination[:]...), 0, 6, 0, 20)
	put16(tcp[16:], checksum(append(pseudo, tcp...)))
	return append(ip, tcp...)
}

func put16(b []byte, v uint16) { b[0], b[1] = byte(v>>8), byte(v) }

// checksum is the internet checksum of RFC 1071, of an even number of bytes.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
