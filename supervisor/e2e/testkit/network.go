//go:build linux

package testkit

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	ServerHost = "10.201.7.1"
	ClientHost = "10.201.7.2"
)

// namespace is a network namespace with one interface, whose other end this
// process holds.
type namespace struct {
	handle *os.File
	Wire   *os.File // packets in and out of its interface
}

// FarApart makes two namespaces that are delay apart, each way.
func FarApart(t testing.TB, delay time.Duration) (server, client *namespace) {
	t.Helper()
	server, client = NewNamespace(t, ServerHost, ClientHost), NewNamespace(t, ClientHost, ServerHost)
	go carry(server.Wire, client.Wire, delay)
	go carry(client.Wire, server.Wire, delay)
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

func NewNamespace(t testing.TB, host, peer string) *namespace {
	t.Helper()
	ip := RequireProgram(t, "ip")
	made := make(chan error, 1)
	n := new(namespace)
	go func() {
		// The thread is never given back: it ends with this goroutine, in
		// the namespace that it has made.
		runtime.LockOSThread()
		made <- n.make(ip, host, peer)
	}()
	if err := <-made; err != nil {
		Skip(t, fmt.Sprintf("cannot make a network namespace with a tun device: %v", err))
	}
	t.Cleanup(func() { n.Wire.Close(); n.handle.Close() })
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
	if n.Wire, err = openTun("moult0"); err != nil {
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

// Enter calls f on a thread in the namespace; what f starts is in it too.
func (n *namespace) Enter(t testing.TB, f func()) {
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

// StartFarClients starts clients in a namespace, which open a new connection
// for each request.
func StartFarClients(t testing.TB, side *namespace, address string, clients int) *Loop {
	return Repeat(t, clients, 0, func() (func() error, error) {
		runtime.LockOSThread() // sockets belong to the thread's namespace
		err := unix.Setns(int(side.handle.Fd()), unix.CLONE_NEWNET)
		return func() error { return askFar(address) }, err
	})
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
