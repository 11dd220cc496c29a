//go:build linux

package testkit

import (
	"fmt"
	"net"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Steps of the worker "binds" for what is lost easily when the master makes a
// socket in the place of the worker's.

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
func (b *binder) listenTuned(value string, _ []string) {
	number, address, _ := strings.Cut(value, ",")
	flags, err := strconv.Atoi(number)
	host, lookup := net.ResolveTCPAddr("tcp6", address)
	if err != nil || lookup != nil {
		Fail("tuned %q: %v, %v", value, err, lookup)
	}
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|flags, 0)
	for _, o := range tuned {
		if err == nil {
			err = unix.SetsockoptInt(fd, o.level, o.option, o.value)
		}
	}
	if err == nil {
		err = unix.BindToDevice(fd, "lo")
	}
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrInet6{Port: host.Port, Addr: [16]byte(host.IP)})
	}
	if err == nil {
		err = unix.Listen(fd, 100)
	}
	if err != nil {
		Fail("%s: %v", address, err)
	}
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

// call connects from a port of its own, "PORT,ADDR", says hello and closes.
func (b *binder) call(value string, _ []string) {
	port, address, _ := strings.Cut(value, ",")
	from, err := net.ResolveTCPAddr("tcp4", "127.0.0.1:"+port)
	check(err)
	conn, err := (&net.Dialer{LocalAddr: from}).Dial("tcp4", address)
	check(err)
	fmt.Fprint(conn, "hello")
	conn.Close()
}

// listenLate binds N sockets with SO_REUSEPORT alone, from "N,ADDR", before the
// first of them listens.
func (b *binder) listenLate(value string, _ []string) {
	n, address, _ := strings.Cut(value, ",")
	count, err := strconv.Atoi(n)
	host, lookup := net.ResolveTCPAddr("tcp4", address)
	if err != nil || lookup != nil {
		Fail("late %q: %v, %v", value, err, lookup)
	}
	var fds []int
	for range count {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
		}
		if err == nil {
			err = unix.Bind(fd, &unix.SockaddrInet4{Port: host.Port, Addr: [4]byte(host.IP.To4())})
		}
		if err != nil {
			Fail("%s: %v", address, err)
		}
		fds = append(fds, fd)
	}
	for _, fd := range fds {
		if err := unix.Listen(fd, 100); err != nil {
			Fail("listen: %v", err)
		}
		b.serve(ListenerOf(fd))
	}
}

// hide keeps other processes of the same user from looking into this one.
func (b *binder) hide(string, []string) {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		Fail("cannot hide: %v", err)
	}
}
