//go:build linux

package testkit

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Steps of the worker "binds" that honest servers take, in an order or in
// numbers that are not the usual ones.

// boundSocket is a new one that does not listen yet, on a path or on an IPv4
// address, without any option.
func boundSocket(address string, kind int) int {
	var name unix.Sockaddr
	family := unix.AF_UNIX
	if strings.Contains(address, ":") {
		host, err := net.ResolveTCPAddr("tcp4", address)
		check(err)
		name, family = &unix.SockaddrInet4{Port: host.Port, Addr: [4]byte(host.IP.To4())}, unix.AF_INET
	} else {
		name = &unix.SockaddrUnix{Name: address}
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = unix.Bind(fd, name)
	}
	if err != nil {
		Fail("%s: %v", address, err)
	}
	return fd
}

func (b *binder) listenOn(fd int) {
	if err := unix.Listen(fd, 128); err != nil {
		Fail("listen: %v", err)
	}
	b.serve(ListenerOf(fd))
}

// listenAfter waits at a gate between bind and listen, "GATE,ADDR".
func (b *binder) listenAfter(value string, _ []string) {
	gate, address, _ := strings.Cut(value, ",")
	fd := boundSocket(address, unix.SOCK_STREAM)
	waitAtPipe(gate)
	b.listenOn(fd)
}

// listenFromElsewhere binds a path by its last part alone, and has left the
// directory when it listens.
func (b *binder) listenFromElsewhere(path string, _ []string) {
	back, err := os.Getwd()
	if err == nil {
		err = os.Chdir(filepath.Dir(path))
	}
	check(err)
	os.Remove(filepath.Base(path))
	fd := boundSocket(filepath.Base(path), unix.SOCK_STREAM)
	check(os.Chdir(back))
	b.listenOn(fd)
}

// listenNameless removes the path of its socket before it listens.
func (b *binder) listenNameless(path string, _ []string) {
	fd := boundSocket(path, unix.SOCK_STREAM)
	check(os.Remove(path))
	b.listenOn(fd)
}

// listenOnDevice serves what comes by one interface, "DEVICE,ADDR".
func (b *binder) listenOnDevice(value string, _ []string) {
	device, address, _ := strings.Cut(value, ",")
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		c.Control(func(fd uintptr) { err = unix.BindToDevice(int(fd), device) })
		return err
	}}
	listener, err := config.Listen(context.Background(), "tcp4", address)
	check(err)
	b.serve(listener)
}

// listenOnPorts serves N ports in a row, "HOST,FIRST,N".
func (b *binder) listenOnPorts(value string, _ []string) {
	var host string
	var first, n int
	if _, err := fmt.Sscanf(strings.ReplaceAll(value, ",", " "), "%s %d %d", &host, &first, &n); err != nil {
		Fail("ports %q: %v", value, err)
	}
	for port := first; port < first+n; port++ {
		b.listen("tcp4", net.JoinHostPort(host, strconv.Itoa(port)))
	}
}

// anyPorts listens on any port again and again, "HOST,LIMIT", and keeps them.
func (b *binder) anyPorts(value string, _ []string) {
	host, limit, _ := strings.Cut(value, ",")
	most, err := strconv.Atoi(limit)
	if err != nil {
		Fail("anyports %q", value)
	}
	n := 0
	for ; n < most; n++ {
		var listener net.Listener
		if listener, err = net.Listen("tcp4", net.JoinHostPort(host, "0")); err != nil {
			break
		}
		b.open = append(b.open, listener)
	}
	say("listens", n, errnoName(err))
}

// openClients opens N datagram sockets and binds them to any port, as some
// libraries do with each of theirs.
func (b *binder) openClients(value string, _ []string) {
	n, err := strconv.Atoi(value)
	if err != nil {
		Fail("clients %q", value)
	}
	for range n {
		boundSocket("0.0.0.0:0", unix.SOCK_DGRAM)
	}
	say("opened", n)
}

// resolve asks all the time, each question from a port of its own that it has
// drawn, as name servers do. It says how many there were.
func (b *binder) resolve(host string, _ []string) {
	const open = 50 // at a time
	go func() {
		asked := make([]net.PacketConn, open)
		for n := 1; ; n++ {
			conn, err := net.ListenPacket("udp4", net.JoinHostPort(host, strconv.Itoa(1024+rand.IntN(64512))))
			if err == nil {
				if oldest := asked[n%open]; oldest != nil {
					oldest.Close()
				}
				asked[n%open] = conn
			}
			if n%500 == 0 {
				say("asked", n)
			}
			time.Sleep(time.Millisecond)
		}
	}()
}

// hunt takes the first of some datagram addresses that is free, with one socket.
func (b *binder) hunt(value string, _ []string) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	check(err)
	for address := range strings.SplitSeq(value, ",") {
		host, err := net.ResolveUDPAddr("udp4", address)
		check(err)
		err = unix.Bind(fd, &unix.SockaddrInet4{Port: host.Port, Addr: [4]byte(host.IP.To4())})
		say("tried", address, errnoName(err))
		if err == nil {
			break
		}
	}
	file := os.NewFile(uintptr(fd), "socket")
	defer file.Close()
	conn, err := net.FilePacketConn(file)
	check(err)
	echoOn(conn)
}

// test listens, and shuts the socket down without closing it.
func (b *binder) test(address string, _ []string) {
	listener, err := net.Listen("tcp4", address)
	check(err)
	tested := binder{open: []net.Listener{listener}}
	tested.shut()
	b.open = append(b.open, listener)
}

// withPair starts a child with one end of a pair of sockets as descriptor 3, and
// returns the other.
func withPair(attributes *syscall.SysProcAttr, steps ...string) (int, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	theirs := os.NewFile(uintptr(pair[1]), "pair")
	defer theirs.Close()
	cmd := child(steps)
	cmd.SysProcAttr = attributes
	cmd.ExtraFiles = []*os.File{theirs}
	return pair[0], cmd.Start()
}

const givenPair = 3

func sendSocket(pair, fd int) {
	if err := unix.Sendmsg(pair, []byte{0}, unix.UnixRights(fd), nil, 0); err != nil {
		Fail("cannot send a socket: %v", err)
	}
}

func receiveSocket(pair int) int {
	control := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(pair, make([]byte, 1), control, unix.MSG_CMSG_CLOEXEC)
	messages, parsed := unix.ParseSocketControlMessage(control[:n])
	if err != nil || parsed != nil || len(messages) != 1 {
		Fail("no socket has come: %v, %v", err, parsed)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		Fail("no socket has come: %v", err)
	}
	return fds[0]
}

// passOn sends a listening socket to a child that takes it at a gate, and closes
// its own: "GATE,ADDR".
func (b *binder) passOn(value string, _ []string) {
	gate, address, _ := strings.Cut(value, ",")
	pair, err := withPair(nil, "receive="+gate)
	check(err)
	fd := listeningSocket(address, 128)
	sendSocket(pair, fd)
	unix.Close(fd)
}

func (b *binder) receive(gate string, _ []string) {
	waitAtPipe(gate)
	b.serve(ListenerOf(receiveSocket(givenPair)))
}

// smuggle has a child bind an address in a network of its own, in which it is
// root, and listens on the socket here.
func (b *binder) smuggle(address string, _ []string) {
	apart := &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
	}
	pair, err := withPair(apart, "send="+address)
	if err != nil {
		say("smuggled", errnoName(err))
		return
	}
	fd := receiveSocket(pair)
	name, err := unix.Getsockname(fd)
	if _, is := name.(*unix.SockaddrInet4); !is {
		Fail("an unexpected socket: %v, %v", name, err)
	}
	say("smuggled", errnoName(unix.Listen(fd, 5)))
}

func (b *binder) send(address string, _ []string) {
	sendSocket(givenPair, boundSocket(address, unix.SOCK_STREAM))
	os.Exit(0)
}

// seize tries an IPv4 address with and without SO_REUSEPORT, and keeps what it
// gets.
func (b *binder) seize(address string, _ []string) {
	for _, control := range []func(string, string, syscall.RawConn) error{nil, reusePort} {
		config := net.ListenConfig{Control: control}
		listener, err := config.Listen(context.Background(), "tcp4", address)
		say("tried", address, errnoName(err))
		if err == nil {
			b.serve(listener)
		}
	}
}

func (b *binder) exit(code string, _ []string) {
	n, err := strconv.Atoi(code)
	if err != nil {
		Fail("exit %q", code)
	}
	syscall.Exit(n)
}
