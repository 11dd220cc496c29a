//go:build linux

package testkit

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Steps of the worker "binds" that no honest server takes.

// echo answers datagrams with the generation and what they said.
func (b *binder) echo(s step) {
	conn, err := net.ListenPacket("udp", s.word(0))
	check(err)
	echoOn(conn)
}

func echoOn(conn net.PacketConn) {
	say("bound", conn.LocalAddr())
	go func() {
		buffer := make([]byte, 2048)
		for {
			n, peer, err := conn.ReadFrom(buffer)
			check(err)
			conn.WriteTo(fmt.Appendf(nil, "%s %s", os.Getenv("MOULT_GENERATION"), buffer[:n]), peer)
		}
	}()
}

// flip binds while another thread changes the port in the address between one
// that is allowed and one that is not.
func (b *binder) flip(s step) {
	allowed, forbidden := uint16(s.number(1)), uint16(s.number(2))
	address := &unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: [4]byte(net.ParseIP(s.word(0)).To4())}
	var over atomic.Bool
	go changePort(address, allowed, forbidden, &over)
	var held, refused, wrong int
	for range 2000 {
		// Whoever reads the address while it changes may get a half of each,
		// the kernel as well: what counts is that no low port is had.
		switch port := bindRaw(address); {
		case port == 0:
			refused++
		case port < 1024:
			wrong++
		default:
			held++
		}
	}
	over.Store(true)
	say("flipped", held, refused, wrong)
}

// changePort writes both ports in turn into an address that another thread
// uses.
func changePort(address *unix.RawSockaddrInet4, first, second uint16, over *atomic.Bool) {
	word := (*uint32)(unsafe.Pointer(address)) // family and port, in one write
	var words [2]uint32
	for i, port := range [2]uint16{first, second} {
		whole := unix.RawSockaddrInet4{Family: unix.AF_INET, Port: port>>8 | port<<8}
		words[i] = *(*uint32)(unsafe.Pointer(&whole))
	}
	for i := 0; !over.Load(); i++ {
		atomic.StoreUint32(word, words[i%2])
	}
}

// bindRaw returns the port on which the new socket listened, 0 if on none.
func bindRaw(address *unix.RawSockaddrInet4) uint16 {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	check(err)
	defer unix.Close(fd)
	_, _, errno := unix.Syscall(unix.SYS_BIND, uintptr(fd), uintptr(unsafe.Pointer(address)), unsafe.Sizeof(*address))
	if errno != 0 || unix.Listen(fd, 1) != nil {
		return 0
	}
	name, err := unix.Getsockname(fd)
	check(err)
	return uint16(name.(*unix.SockaddrInet4).Port)
}

// many listens on port after port, "HOST,LIMIT", and keeps them all.
func (b *binder) many(s step) { b.listenAll(s, 10000) }

// anyPorts listens on any port again and again, "HOST,LIMIT", and keeps them.
func (b *binder) anyPorts(s step) { b.listenAll(s, 0) }

func (b *binder) listenAll(s step, port int) {
	n, err := 0, error(nil)
	for ; n < s.number(1) && err == nil; n++ {
		var listener net.Listener
		if listener, err = net.Listen("tcp4", net.JoinHostPort(s.word(0), strconv.Itoa(port))); err != nil {
			break
		}
		b.open = append(b.open, listener)
		port += min(port, 1)
	}
	say("listens", n, errnoName(err))
}

// amongAlarms binds N ports of HOST, from "HOST,N", on a thread that gets one
// signal after the other, N at least. Each restarts the system call that it
// interrupts: the master may meet one bind twice.
func (b *binder) amongAlarms(s step) {
	n := s.number(1)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	caught := make(chan os.Signal, 1)
	signal.Notify(caught, syscall.SIGALRM)
	var sent atomic.Int64
	var over atomic.Bool
	go alarm(unix.Gettid(), &sent, &over)
	failures := map[string]int{}
	for i := 0; i < n || sent.Load() < int64(n); i++ {
		listener, err := net.Listen("tcp4", net.JoinHostPort(s.word(0), strconv.Itoa(14000+i%n)))
		if err != nil {
			failures[errnoName(err)]++
			continue
		}
		listener.Close()
	}
	over.Store(true)
	say("alarmed", sent.Load(), "times, failed", failures)
}

func alarm(thread int, sent *atomic.Int64, over *atomic.Bool) {
	for !over.Load() {
		unix.Tgkill(os.Getpid(), thread, syscall.SIGALRM)
		sent.Add(1)
		time.Sleep(50 * time.Microsecond)
	}
}

// listenByRing binds and listens by io_uring, which no filter of system calls
// sees.
func (b *binder) listenByRing(s step) {
	fd, err := ringSocket(s.word(0))
	check(err)
	b.serve(ListenerOf(fd))
}

// ringSocket is a listening socket on an IPv4 address, bound by io_uring.
func ringSocket(address string) (int, error) {
	host, err := net.ResolveTCPAddr("tcp4", address)
	if err != nil {
		return -1, err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	port := uint16(host.Port)
	name := &unix.RawSockaddrInet4{Family: unix.AF_INET, Port: port>>8 | port<<8, Addr: [4]byte(host.IP.To4())}
	r, err := newRing()
	if err == nil {
		defer r.close()
		err = r.do(ringEntry{opcode: ringBind, fd: int32(fd), address: uint64(uintptr(unsafe.Pointer(name))), offset: uint64(unsafe.Sizeof(*name))})
	}
	runtime.KeepAlive(name)
	if err == nil {
		err = r.do(ringEntry{opcode: ringListen, fd: int32(fd), length: 128})
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// smuggle has a child bind an address in a network of its own, in which it is
// root, and listens on the socket here.
func (b *binder) smuggle(s step) {
	apart := &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
	}
	pair, err := withPair(apart, "send="+s.word(0))
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

func (b *binder) send(s step) {
	sendSocket(givenPair, boundSocket(s.word(0), unix.SOCK_STREAM))
	os.Exit(0)
}

// seize tries an IPv4 address with and without SO_REUSEPORT, and keeps what it
// gets.
func (b *binder) seize(s step) {
	for _, control := range []func(string, string, syscall.RawConn) error{nil, reusePort} {
		config := net.ListenConfig{Control: control}
		listener, err := config.Listen(context.Background(), "tcp4", s.word(0))
		say("tried", s.word(0), errnoName(err))
		if err == nil {
			b.serve(listener)
		}
	}
}

// hide keeps other processes of the same user from looking into this one.
func (b *binder) hide(step) {
	check(unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0))
}
