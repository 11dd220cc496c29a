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

// step is one of a list: its words are what stands after "=", between commas.
type step struct {
	text  string
	words []string
	rest  []string // the steps after it
}

func newStep(text string, rest []string) (name string, s step) {
	name, value, _ := strings.Cut(text, "=")
	return name, step{text, strings.Split(value, ","), rest}
}

func (s step) word(i int) string {
	if i >= len(s.words) {
		Fail("step %q has too few words", s.text)
	}
	return s.words[i]
}

func (s step) number(i int) int {
	n, err := strconv.Atoi(s.word(i))
	if err != nil {
		Fail("step %q: %v", s.text, err)
	}
	return n
}

var steps map[string]func(b *binder, s step)

// The table cannot be a value: one of the steps starts the worker anew.
func init() {
	listen := func(network string) func(*binder, step) {
		return func(b *binder, s step) { b.listen(network, s.word(0)) }
	}
	steps = map[string]func(*binder, step){
		"tcp": listen("tcp"), "tcp4": listen("tcp4"), "tcp6": listen("tcp6"), "unix": listen("unix"),
		"udp":     (*binder).echo,
		"idle":    (*binder).listenIdly,      // and does not accept
		"backlog": (*binder).listenShort,     // N,ADDR
		"threads": (*binder).listenOnThreads, // N,ADDR
		"free":    (*binder).isFree,
		"try":     (*binder).try,
		"close":   func(b *binder, _ step) { b.closeLast() },
		"remove":  func(_ *binder, s step) { os.Remove(s.word(0)) },
		"mode":    (*binder).changeMode, // MODE,PATH
		"wait":    func(_ *binder, s step) { waitAtPipe(s.word(0)) },
		"drop":    func(*binder, step) { becomeNobody() },
		"fork":    (*binder).fork,      // N: the rest is done by N children instead
		"daemon":  (*binder).daemonize, // GATE: the parent leaves there, not at once
		"inherit": (*binder).inherit,   // N sockets, from descriptor 3 on
		"exit":    func(_ *binder, s step) { syscall.Exit(s.number(0)) },

		"gated":    (*binder).listenAfter,         // GATE,ADDR
		"late":     (*binder).listenLate,          // N,ADDR
		"relative": (*binder).listenFromElsewhere, // PATH
		"nameless": (*binder).listenNameless,
		"device":   (*binder).listenOnDevice, // DEVICE,ADDR
		"ports":    (*binder).listenOnPorts,  // HOST,FIRST,N
		"clients":  (*binder).openClients,
		"resolve":  (*binder).resolve,
		"call":     (*binder).call, // PORT,ADDR
		"hunt":     (*binder).hunt, // ADDR,ADDR
		"test":     (*binder).test,
		"pass":     (*binder).passOn, // GATE,ADDR
		"receive":  (*binder).receive,
		"tuned":    (*binder).listenTuned, // FLAGS,ADDR
		"alarms":   (*binder).amongAlarms, // HOST,N

		"uring":    (*binder).listenByRing,
		"flip":     (*binder).flip, // HOST,ALLOWED,FORBIDDEN: ports
		"many":     (*binder).many, // HOST,LIMIT
		"anyports": (*binder).anyPorts,
		"smuggle":  (*binder).smuggle,
		"send":     (*binder).send,
		"seize":    (*binder).seize,
		"hide":     (*binder).hide,
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
		name, s := newStep(option, all[i+1:])
		do, known := steps[name]
		if !known {
			Fail("unknown step %q", option)
		}
		do(b, s)
		if name == "fork" {
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
func (b *binder) listenIdly(s step) {
	fd := listening(boundSocket(s.word(0), unix.SOCK_STREAM), 128)
	b.idle = append(b.idle, os.NewFile(uintptr(fd), "socket"))
	say("bound", s.word(0))
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
func (b *binder) listenShort(s step) {
	b.serve(ListenerOf(listening(boundSocket(s.word(1), unix.SOCK_STREAM), s.number(0))))
}

// boundSocket is a new one that does not listen yet, on a path or on an IPv4
// address; setUp sees it before it is bound.
func boundSocket(address string, kind int, setUp ...func(fd int) error) int {
	family := unix.AF_UNIX
	var name unix.Sockaddr = &unix.SockaddrUnix{Name: address}
	if strings.Contains(address, ":") {
		family, name = unix.AF_INET, inet4(address)
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
	check(err)
	for _, f := range setUp {
		check(f(fd))
	}
	if err := unix.Bind(fd, name); err != nil {
		Fail("%s: %v", address, err)
	}
	return fd
}

func inet4(address string) *unix.SockaddrInet4 {
	host, err := net.ResolveTCPAddr("tcp4", address)
	check(err)
	return &unix.SockaddrInet4{Port: host.Port, Addr: [4]byte(host.IP.To4())}
}

func listening(fd, backlog int) int {
	check(unix.Listen(fd, backlog))
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
func (b *binder) listenOnThreads(s step) {
	config := net.ListenConfig{Control: reusePort}
	var all sync.WaitGroup
	for range s.number(0) {
		all.Go(func() {
			runtime.LockOSThread()
			listener, err := config.Listen(context.Background(), "tcp", s.word(1))
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
func (b *binder) isFree(s step) {
	for range 2 {
		unix.Close(boundSocket(s.word(0), unix.SOCK_STREAM, func(fd int) error {
			return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
		}))
		listener, err := net.Listen("tcp4", s.word(0))
		if err != nil {
			Fail("%s is not free: %v", s.word(0), err)
		}
		listener.Close()
	}
}

// try says what a bind and listen came to, and closes the socket.
func (b *binder) try(s step) {
	listener, err := net.Listen("tcp", s.word(0))
	if err == nil {
		listener.Close()
	}
	say("tried", s.word(0), errnoName(err))
}

func (b *binder) changeMode(s step) {
	bits, err := strconv.ParseUint(s.word(0), 8, 32)
	check(err)
	check(os.Chmod(s.word(1), os.FileMode(bits)))
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

func (b *binder) fork(s step) {
	for range s.number(0) {
		cmd := child(s.rest)
		check(cmd.Start())
		b.children = append(b.children, cmd)
	}
}

// daemonize goes on in a session of its own, with what it has bound, for a step
// "inherit"; the process that was started leaves.
func (b *binder) daemonize(s step) {
	cmd := child(s.rest)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.ExtraFiles = b.idle
	check(cmd.Start())
	if gate := s.word(0); gate != "" {
		waitAtPipe(gate)
	}
	syscall.Exit(0) // at once, also where os.Exit waits for the race detector
}

func (b *binder) inherit(s step) {
	for i := range s.number(0) {
		b.serve(ListenerOf(3 + i))
	}
}
