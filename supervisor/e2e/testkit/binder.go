//go:build linux

package testkit

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The worker "binds" knows nothing of a master: it binds its own addresses.
// What it does is a list of steps, done in their order. It says on stderr, one
// line each, with its generation in second place, what it has bound ("bound 1
// 127.0.0.1:80") and what came of what it tried.
type binder struct {
	told     chan os.Signal
	server   *http.Server
	children []*exec.Cmd
	idle     []*os.File // listening sockets that are passed on

	mu   sync.Mutex
	open []net.Listener
}

var steps map[string]func(b *binder, value string, rest []string)

// The table cannot be a value: one of the steps starts the worker anew.
func init() {
	steps = map[string]func(b *binder, value string, rest []string){
		"tcp":     func(b *binder, value string, _ []string) { b.listen("tcp", value) },
		"tcp4":    func(b *binder, value string, _ []string) { b.listen("tcp4", value) },
		"tcp6":    func(b *binder, value string, _ []string) { b.listen("tcp6", value) }, // v6only
		"unix":    func(b *binder, value string, _ []string) { b.listen("unix", value) },
		"udp":     func(b *binder, value string, _ []string) { b.echo(value) },
		"idle":    (*binder).listenIdly,  // and does not accept
		"backlog": (*binder).listenShort, // N,ADDR
		"threads": (*binder).listenOnThreads,
		"free":    (*binder).isFree,
		"try":     (*binder).try,
		"close":   func(b *binder, _ string, _ []string) { b.closeLast() },
		"remove":  func(_ *binder, value string, _ []string) { os.Remove(value) },
		"mode":    (*binder).changeMode, // MODE,PATH
		"wait":    func(_ *binder, value string, _ []string) { waitAtPipe(value) },
		"drop":    func(*binder, string, []string) { becomeNobody() },
		"fork":    (*binder).fork,      // N: the rest is done by N children instead
		"daemon":  (*binder).daemonize, // GATE: the parent leaves there, not at once
		"inherit": (*binder).inherit,   // N sockets, from descriptor 3 on
		"uring":   func(b *binder, value string, _ []string) { b.serve(listenByRing(value)) },
		"flip":    (*binder).flip, // HOST,ALLOWED,FORBIDDEN: ports
		"many":    (*binder).many, // HOST,LIMIT
		"alarms":  (*binder).amongAlarms,
		"tuned":   (*binder).listenTuned, // FLAGS,ADDR
		"late":    (*binder).listenLate,  // N,ADDR
		"call":    (*binder).call,        // PORT,ADDR
		"hide":    (*binder).hide,

		"gated":    (*binder).listenAfter,         // GATE,ADDR
		"relative": (*binder).listenFromElsewhere, // PATH
		"nameless": (*binder).listenNameless,
		"device":   (*binder).listenOnDevice, // DEVICE,ADDR
		"ports":    (*binder).listenOnPorts,  // HOST,FIRST,N
		"anyports": (*binder).anyPorts,       // HOST,LIMIT
		"clients":  (*binder).openClients,
		"resolve":  (*binder).resolve,
		"hunt":     (*binder).hunt, // ADDR,ADDR
		"test":     (*binder).test,
		"pass":     (*binder).passOn, // GATE,ADDR
		"receive":  (*binder).receive,
		"smuggle":  (*binder).smuggle,
		"send":     (*binder).send,
		"seize":    (*binder).seize,
		"exit":     (*binder).exit, // CODE
	}
}

// bindAndServe does the steps, and then serves until TERM, of which it dies
// where the last step, "end=HOW", says nothing better.
func bindAndServe(options []string) {
	b, all := new(binder), options
	b.server = &http.Server{Handler: http.HandlerFunc(b.answer)}
	last := len(options) - 1
	end, told := strings.CutPrefix(options[last], "end=")
	if told {
		b.told = make(chan os.Signal, 1)
		signal.Notify(b.told, syscall.SIGTERM)
		options = options[:last]
	}
	for i, option := range options {
		key, value, _ := strings.Cut(option, "=")
		step, known := steps[key]
		if !known {
			Fail("unknown step %q", option)
		}
		step(b, value, all[i+1:])
		if key == "fork" {
			break
		}
	}
	if told {
		b.end(end)
	}
	select {}
}

func say(what string, words ...any) {
	line := fmt.Sprint(what, " ", os.Getenv("MOULT_GENERATION"))
	for _, word := range words {
		line += " " + fmt.Sprint(word)
	}
	fmt.Fprintln(os.Stderr, line)
}

// errnoName is "ok" for nil.
func errnoName(err error) string {
	var errno syscall.Errno
	switch {
	case err == nil:
		return "ok"
	case errors.As(err, &errno):
		return unix.ErrnoName(errno)
	default:
		return strings.ReplaceAll(err.Error(), " ", "-")
	}
}

func (b *binder) serve(listener net.Listener) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.open = append(b.open, listener)
	say("bound", listener.Addr())
	go b.server.Serve(listener)
}

func (b *binder) listen(network, address string) {
	listener, err := net.Listen(network, address)
	check(err)
	b.serve(listener)
}

// listenIdly leaves accepting to a daemon; nothing here waits on the socket.
func (b *binder) listenIdly(address string, _ []string) {
	b.idle = append(b.idle, os.NewFile(uintptr(listeningSocket(address, 128)), "socket"))
	say("bound", address)
}

func (b *binder) closeLast() net.Addr {
	b.mu.Lock()
	defer b.mu.Unlock()
	last := len(b.open) - 1
	listener := b.open[last]
	b.open = b.open[:last]
	listener.Close()
	return listener.Addr()
}

// answer is every worker's, and has some pages on which the worker binds while
// it serves.
func (b *binder) answer(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/close":
		b.closeLast()
	case "/again":
		address := b.closeLast()
		b.listen(address.Network(), address.String())
	case "/lookup":
		if err := lookUp(); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
	}
	Answer(w, r)
}

// lookUp binds a netlink socket, as getaddrinfo does each time.
func lookUp() error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("cannot bind a netlink socket: %w", err)
	}
	getent, err := exec.LookPath("getent")
	if err != nil {
		return nil
	}
	return exec.Command(getent, "ahosts", "localhost").Run()
}

// end waits for TERM and leaves in the given way.
func (b *binder) end(how string) {
	<-b.told
	for _, child := range b.children {
		child.Process.Signal(syscall.SIGTERM)
	}
	switch how {
	case "graceful":
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		b.server.Shutdown(ctx)
	case "shut":
		b.shut()
	default:
		Fail("unknown end %q", how)
	}
	for _, child := range b.children {
		child.Wait()
	}
	os.Exit(0)
}

// shut takes the listening sockets down for everybody who holds them, and
// serves what is in hand.
func (b *binder) shut() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, listener := range b.open {
		raw, err := listener.(syscall.Conn).SyscallConn()
		check(err)
		raw.Control(func(fd uintptr) { unix.Shutdown(int(fd), unix.SHUT_RDWR) })
	}
	for slowRequests.Load() > 0 {
		time.Sleep(time.Millisecond)
	}
}

// listenShort makes the shortest queue that a server asks for in practice.
func (b *binder) listenShort(value string, _ []string) {
	length, address, _ := strings.Cut(value, ",")
	backlog, err := strconv.Atoi(length)
	if err != nil {
		Fail("backlog %q", value)
	}
	b.serve(ListenerOf(listeningSocket(address, backlog)))
}

// listeningSocket is a blocking one on an IPv4 address.
func listeningSocket(address string, backlog int) int {
	host, err := net.ResolveTCPAddr("tcp4", address)
	check(err)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrInet4{Port: host.Port, Addr: [4]byte(host.IP.To4())})
	}
	if err == nil {
		err = unix.Listen(fd, backlog)
	}
	if err != nil {
		Fail("%s: %v", address, err)
	}
	return fd
}

func ListenerOf(fd int) net.Listener {
	file := os.NewFile(uintptr(fd), "socket")
	defer file.Close()
	listener, err := net.FileListener(file)
	if err != nil {
		Fail("descriptor %d: %v", fd, err)
	}
	return listener
}

// listenOnThreads opens N sockets on one address, each on a thread of its own,
// from "N,ADDR".
func (b *binder) listenOnThreads(value string, _ []string) {
	n, address, _ := strings.Cut(value, ",")
	count, err := strconv.Atoi(n)
	if err != nil {
		Fail("threads %q", value)
	}
	config := net.ListenConfig{Control: reusePort}
	var all sync.WaitGroup
	for range count {
		all.Go(func() {
			runtime.LockOSThread()
			listener, err := config.Listen(context.Background(), "tcp", address)
			check(err)
			b.serve(listener)
		})
	}
	all.Wait()
}

func reusePort(_, _ string, c syscall.RawConn) error {
	var failed error
	err := c.Control(func(fd uintptr) {
		failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
	})
	return errors.Join(err, failed)
}

// isFree looks whether an address is, as some servers do before they bind it:
// once by bind alone and once by listen.
func (b *binder) isFree(address string, _ []string) {
	host, err := net.ResolveTCPAddr("tcp4", address)
	check(err)
	for range 2 {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
			err = unix.Bind(fd, &unix.SockaddrInet4{Port: host.Port, Addr: [4]byte(host.IP.To4())})
		}
		if err != nil {
			Fail("%s is not free: %v", address, err)
		}
		unix.Close(fd)
		listener, err := net.Listen("tcp4", address)
		if err != nil {
			Fail("%s is not free: %v", address, err)
		}
		listener.Close()
	}
}

// try says what a bind and listen came to, and closes the socket.
func (b *binder) try(address string, _ []string) {
	listener, err := net.Listen("tcp", address)
	if err == nil {
		listener.Close()
	}
	say("tried", address, errnoName(err))
}

func (b *binder) changeMode(value string, _ []string) {
	mode, path, _ := strings.Cut(value, ",")
	bits, err := strconv.ParseUint(mode, 8, 32)
	if err == nil {
		err = os.Chmod(path, os.FileMode(bits))
	}
	if err != nil {
		Fail("mode: %v", err)
	}
}

// waitAtPipe returns when the test lets this one worker pass.
func waitAtPipe(path string) {
	pipe, err := os.Open(path)
	if err == nil {
		say("waits")
		_, err = pipe.Read(make([]byte, 1))
		pipe.Close()
	}
	check(err)
}

func becomeNobody() {
	const nobody = 65534
	if err := errors.Join(syscall.Setgroups(nil), syscall.Setgid(nobody), syscall.Setuid(nobody)); err != nil {
		Fail("cannot drop privileges: %v", err)
	}
}

// child is this worker again, to do other steps.
func child(options []string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", append([]string{workerPrefix + "binds"}, options...)...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return cmd
}

func (b *binder) fork(value string, rest []string) {
	n, err := strconv.Atoi(value)
	if err != nil {
		Fail("fork %q", value)
	}
	for range n {
		cmd := child(rest)
		check(cmd.Start())
		b.children = append(b.children, cmd)
	}
}

// daemonize goes on in a session of its own, with what it has bound, for a step
// "inherit"; the process that was started leaves.
func (b *binder) daemonize(gate string, rest []string) {
	cmd := child(rest)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.ExtraFiles = b.idle
	check(cmd.Start())
	if gate != "" {
		waitAtPipe(gate)
	}
	syscall.Exit(0) // at once, also where os.Exit waits for the race detector
}

func (b *binder) inherit(value string, _ []string) {
	n, err := strconv.Atoi(value)
	if err != nil {
		Fail("inherit %q", value)
	}
	for i := range n {
		b.serve(ListenerOf(3 + i))
	}
}
