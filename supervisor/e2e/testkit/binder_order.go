//go:build linux

package testkit

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Steps of the worker "binds" that honest servers take, in an order or in
// numbers that are not the usual ones.

func (b *binder) listenOn(fd int) { b.serve(ListenerOf(listening(fd, 128))) }

// listenAfter waits at a gate between bind and listen, "GATE,ADDR".
func (b *binder) listenAfter(s step) {
	fd := boundSocket(s.word(1), unix.SOCK_STREAM)
	waitAtPipe(s.word(0))
	b.listenOn(fd)
}

// listenFromElsewhere binds a path by its last part alone, and has left the
// directory when it listens.
func (b *binder) listenFromElsewhere(s step) {
	folder, name := filepath.Split(s.word(0))
	back, err := os.Getwd()
	check(err)
	check(os.Chdir(folder))
	os.Remove(name)
	fd := boundSocket(name, unix.SOCK_STREAM)
	check(os.Chdir(back))
	b.listenOn(fd)
}

// listenNameless removes the path of its socket before it listens.
func (b *binder) listenNameless(s step) {
	fd := boundSocket(s.word(0), unix.SOCK_STREAM)
	check(os.Remove(s.word(0)))
	b.listenOn(fd)
}

// listenOnDevice serves what comes by one interface, "DEVICE,ADDR".
func (b *binder) listenOnDevice(s step) {
	b.listenOn(boundSocket(s.word(1), unix.SOCK_STREAM, func(fd int) error { return unix.BindToDevice(fd, s.word(0)) }))
}

// listenOnPorts serves N ports in a row, "HOST,FIRST,N".
func (b *binder) listenOnPorts(s step) {
	for i := range s.number(2) {
		b.listen("tcp4", net.JoinHostPort(s.word(0), strconv.Itoa(s.number(1)+i)))
	}
}

// listenLate binds N sockets with SO_REUSEPORT alone, from "N,ADDR", before the
// first of them listens.
func (b *binder) listenLate(s step) {
	var fds []int
	for range s.number(0) {
		fds = append(fds, boundSocket(s.word(1), unix.SOCK_STREAM, func(fd int) error {
			return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
		}))
	}
	for _, fd := range fds {
		b.listenOn(fd)
	}
}

// openClients opens N datagram sockets and binds them to any port, as some
// libraries do with each of theirs.
func (b *binder) openClients(s step) {
	for range s.number(0) {
		boundSocket("0.0.0.0:0", unix.SOCK_DGRAM)
	}
	say("opened", s.number(0))
}

// call connects from a port of its own, "PORT,ADDR", says hello and closes.
func (b *binder) call(s step) {
	conn, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: s.number(0)}}).Dial("tcp4", s.word(1))
	check(err)
	fmt.Fprint(conn, "hello")
	conn.Close()
}

// resolve asks all the time, each question from a port of its own that it has
// drawn, as name servers do. It says how many there were.
func (b *binder) resolve(s step) {
	const open = 50 // at a time
	go func() {
		asked := make([]net.PacketConn, open)
		for n := 1; ; n++ {
			conn, err := net.ListenPacket("udp4", net.JoinHostPort(s.word(0), strconv.Itoa(1024+rand.IntN(64512))))
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
func (b *binder) hunt(s step) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	check(err)
	for _, address := range s.words {
		err := unix.Bind(fd, inet4(address))
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
func (b *binder) test(s step) {
	listener, err := net.Listen("tcp4", s.word(0))
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
	check(unix.Sendmsg(pair, []byte{0}, unix.UnixRights(fd), nil, 0))
}

func receiveSocket(pair int) int {
	control := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(pair, make([]byte, 1), control, unix.MSG_CMSG_CLOEXEC)
	check(err)
	messages, err := unix.ParseSocketControlMessage(control[:n])
	if err != nil || len(messages) != 1 {
		Fail("no socket has come: %v", err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	check(err)
	return fds[0]
}

// passOn sends a listening socket to a child that takes it at a gate, and closes
// its own: "GATE,ADDR".
func (b *binder) passOn(s step) {
	pair, err := withPair(nil, "receive="+s.word(0))
	check(err)
	fd := listening(boundSocket(s.word(1), unix.SOCK_STREAM), 128)
	sendSocket(pair, fd)
	unix.Close(fd)
}

func (b *binder) receive(s step) {
	waitAtPipe(s.word(0))
	b.serve(ListenerOf(receiveSocket(givenPair)))
}

// tuned are options that work on what listens, beyond those that say who may
// have the address.
var tuned = []struct {
	name          string
	level, option int
	value         int
}{
	{"SO_REUSEADDR", unix.SOL_SOCKET, unix.SO_REUSEADDR, 1},
	{"IPV6_V6ONLY", unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1},
	{"SO_RCVBUF", unix.SOL_SOCKET, unix.SO_RCVBUF, 60000},
	{"SO_SNDBUF", unix.SOL_SOCKET, unix.SO_SNDBUF, 50000},
	{"TCP_DEFER_ACCEPT", unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, 3},
	{"TCP_FASTOPEN", unix.IPPROTO_TCP, unix.TCP_FASTOPEN, 17},
	{"IPV6_FREEBIND", unix.IPPROTO_IPV6, unix.IPV6_FREEBIND, 1},
	{"IPV6_RECVPKTINFO", unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1},
}

// listenTuned says what its socket has at the end, from "FLAGS,ADDR" with the
// flags for socket(2).
func (b *binder) listenTuned(s step) {
	host, err := net.ResolveTCPAddr("tcp6", s.word(1))
	check(err)
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|s.number(0), 0)
	check(err)
	for _, o := range tuned {
		check(unix.SetsockoptInt(fd, o.level, o.option, o.value))
	}
	check(unix.BindToDevice(fd, "lo"))
	check(unix.Bind(fd, &unix.SockaddrInet6{Port: host.Port, Addr: [16]byte(host.IP)}))
	check(unix.Listen(fd, 100))
	say("options", optionsOf(fd))
	again := unix.Bind(fd, &unix.SockaddrInet6{Port: host.Port, Addr: [16]byte(host.IP)})
	say("rebound", errnoName(again))
	b.serve(ListenerOf(fd))
}

func optionsOf(fd int) string {
	status, _ := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	own, _ := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	device, _ := unix.GetsockoptString(fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE)
	text := fmt.Sprintf("nonblock=%t cloexec=%t device=%q", status&unix.O_NONBLOCK != 0, own&unix.FD_CLOEXEC != 0, device)
	for _, o := range tuned {
		value, err := unix.GetsockoptInt(fd, o.level, o.option)
		text += fmt.Sprintf(" %s=%d", o.name, value)
		if err != nil {
			text += "(" + err.Error() + ")"
		}
	}
	return text
}
