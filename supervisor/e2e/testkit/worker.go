//go:build linux

package testkit

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/moult/moult/supervisor/cli/demo/load"
	"golang.org/x/sys/unix"
)

// The workers that the test binary plays. They take their sockets by systemd's
// protocol with code of their own, not moult's, so that a mistake there cannot
// hide behind itself.

// Manners say how a worker behaves. Options on the command line: delay=D and
// die=D (how long it takes to start, how long it lives), code=N (exit code),
// n=N (how many children).
type Manners struct {
	delay, die time.Duration
	code, N    int
}

var Workers = map[string]func(Manners){
	"graceful":     serveGracefully,
	"plain":        servePlainly,
	"stubborn":     func(m Manners) { signal.Ignore(syscall.SIGTERM); servePlainly(m) },
	"exit":         func(m Manners) { os.Exit(m.code) },
	"killed":       func(Manners) { unix.Kill(os.Getpid(), syscall.SIGKILL); select {} },
	"shuts":        serveUntilShut,
	"unlinks":      serveUntilUnlinked,
	"relisten":     func(m Manners) { listenAgain(5); serveGracefully(m) },
	"silent":       func(Manners) { select {} },
	"prefork":      servePreforked,
	"daemonizes":   func(m Manners) { startApart(); serveGracefully(m) },
	"lingers":      func(Manners) { signal.Ignore(syscall.SIGTERM); select {} },
	"notifies":     func(m Manners) { notifyFromChild(); serveGracefully(m) },
	"says-ready":   func(Manners) { sayReady() },
	"ready-silent": func(Manners) { sayReady(); select {} },
	"udp":          echoDatagrams,
	"orphans":      func(m Manners) { leaveOrphans(m.N); serveGracefully(m) },
}

func playWorker(name string, options []string) {
	if name == "plan" {
		name, options = readPlan(options[0])
	}
	if name == "sh" {
		becomeShellCommand(strings.Join(options, " "))
	}
	recordInheritance()
	if name == "binds" {
		bindAndServe(options)
	}
	play, known := Workers[name]
	if !known {
		Fail("unknown worker %q", name)
	}
	m := parseManners(options)
	time.Sleep(m.delay)
	play(m)
}

// check ends the worker at an error.
func check(err error) {
	if err != nil {
		Fail("%v", err)
	}
}

func Fail(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "worker: "+format+"\n", args...)
	os.Exit(99)
}

func readPlan(file string) (string, []string) {
	content, err := os.ReadFile(file)
	fields := strings.Fields(string(content))
	if err != nil || len(fields) == 0 {
		Fail("cannot read plan %s: %v", file, err)
	}
	return fields[0], fields[1:]
}

func becomeShellCommand(line string) {
	Fail("%v", syscall.Exec("/bin/sh", []string{"sh", "-c", line}, os.Environ()))
}

func parseManners(options []string) (m Manners) {
	for _, option := range options {
		key, value, _ := strings.Cut(option, "=")
		var err error
		switch key {
		case "delay":
			m.delay, err = time.ParseDuration(value)
		case "die":
			m.die, err = time.ParseDuration(value)
		case "code":
			m.code, err = strconv.Atoi(value)
		case "n":
			m.N, err = strconv.Atoi(value)
		default:
			err = fmt.Errorf("unknown option")
		}
		if err != nil {
			Fail("option %q: %v", option, err)
		}
	}
	return m
}

// Self is what a worker found when it began; GET /self returns it as JSON.
type Self struct {
	PID, UID, GID  int
	Groups         []int
	Umask          string
	Args, Env      []string
	Dir            string
	Descriptors    map[int]string // as inherited, before the worker opened any
	Nonblocking    []int          // those of them that have O_NONBLOCK
	Blocked, Ignor string         // signal sets, from /proc/self/status
}

var inherited Self

func recordInheritance() {
	dir, _ := os.Readlink("/proc/self/cwd") // os.Getwd believes PWD
	groups, _ := os.Getgroups()
	pid := os.Getpid()
	inherited = Self{
		PID: pid, UID: os.Getuid(), GID: os.Getgid(), Groups: groups, Dir: dir,
		Args: os.Args, Env: os.Environ(), Descriptors: map[int]string{},
		Umask:   StatusField(pid, "Umask"),
		Blocked: StatusField(pid, "SigBlk"), Ignor: StatusField(pid, "SigIgn"),
	}
	for fd, target := range Descriptors(pid) {
		// The Go runtime's own, and the directory that is being read.
		if strings.HasPrefix(target, "anon_inode:") || strings.HasPrefix(target, "/proc/") || strings.HasPrefix(target, "/sys/fs/cgroup/") {
			continue
		}
		inherited.Descriptors[fd] = target
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err == nil && flags&unix.O_NONBLOCK != 0 {
			inherited.Nonblocking = append(inherited.Nonblocking, fd)
		}
	}
	slices.Sort(inherited.Nonblocking)
}

// sockets are the descriptors handed over by systemd's protocol.
func sockets() (fds []int) {
	if pid := os.Getenv("LISTEN_PID"); pid != "" && pid != strconv.Itoa(os.Getpid()) {
		Fail("LISTEN_PID is %s, and I am %d", pid, os.Getpid())
	}
	n, err := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	if err != nil {
		Fail("LISTEN_FDS: %v", err)
	}
	for i := range n {
		unix.CloseOnExec(3 + i)
		fds = append(fds, 3+i)
	}
	return fds
}

func listeners() (all []net.Listener) {
	for _, fd := range sockets() {
		if kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE); err != nil || kind != unix.SOCK_STREAM {
			continue
		}
		file := os.NewFile(uintptr(fd), "listener")
		listener, err := net.FileListener(file)
		if err != nil {
			Fail("descriptor %d: %v", fd, err)
		}
		file.Close()
		all = append(all, listener)
	}
	return all
}

func listenAgain(backlog int) {
	for _, fd := range sockets() {
		if err := unix.Listen(fd, backlog); err != nil {
			Fail("listen: %v", err)
		}
	}
}

var slowRequests atomic.Int64 // GET /busy returns it

// signalsSeen are those that GET /signals tells of.
var signalsSeen struct {
	sync.Mutex
	names []string
}

func watchSignals() {
	caught := make(chan os.Signal, 16)
	signal.Notify(caught, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH, syscall.SIGHUP)
	go func() {
		for s := range caught {
			signalsSeen.Lock()
			signalsSeen.names = append(signalsSeen.names, unix.SignalName(s.(syscall.Signal)))
			signalsSeen.Unlock()
		}
	}()
}

func Answer(w http.ResponseWriter, r *http.Request) {
	w.Header().Set(load.GenerationHeader, os.Getenv("MOULT_GENERATION"))
	w.Header().Set("Worker-Pid", strconv.Itoa(os.Getpid()))
	switch r.URL.Path {
	case "/self":
		json.NewEncoder(w).Encode(inherited)
		return
	case "/busy":
		fmt.Fprint(w, slowRequests.Load())
		return
	case "/signals":
		signalsSeen.Lock()
		defer signalsSeen.Unlock()
		json.NewEncoder(w).Encode(signalsSeen.names)
		return
	}
	if d, err := time.ParseDuration(r.URL.Query().Get("sleep")); err == nil {
		slowRequests.Add(1)
		time.Sleep(d)
		slowRequests.Add(-1)
	}
	fmt.Fprintf(w, "%s %d\n", os.Getenv("MOULT_GENERATION"), os.Getpid())
}

// startServing serves every listener, and lets the worker die when its manners
// say so.
func startServing(m Manners) *http.Server {
	watchSignals()
	server := &http.Server{Handler: http.HandlerFunc(Answer)}
	for _, listener := range listeners() {
		go server.Serve(listener)
	}
	if m.die > 0 {
		time.AfterFunc(m.die, func() { os.Exit(m.code) })
	}
	return server
}

func servePlainly(m Manners) {
	startServing(m)
	select {}
}

func termination() <-chan os.Signal {
	told := make(chan os.Signal, 1)
	signal.Notify(told, syscall.SIGTERM)
	return told
}

func serveGracefully(m Manners) {
	told := termination()
	server := startServing(m)
	<-told
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	server.Shutdown(ctx)
}

// serveUntilShut takes the listening socket down for everybody who holds it,
// as some servers do when they leave.
func serveUntilShut(m Manners) {
	told := termination()
	held, err := unix.Dup(sockets()[0])
	if err != nil {
		Fail("dup: %v", err)
	}
	unix.CloseOnExec(held)
	startServing(m)
	<-told
	unix.Shutdown(held, unix.SHUT_RDWR)
}

// serveUntilUnlinked removes the name of its unix socket when it leaves.
func serveUntilUnlinked(m Manners) {
	told := termination()
	name, err := unix.Getsockname(sockets()[0])
	path, isUnix := name.(*unix.SockaddrUnix)
	if err != nil || !isUnix {
		Fail("no unix socket: %v", err)
	}
	startServing(m)
	<-told
	// The name that the socket was bound to may have been a temporary one.
	os.Remove(path.Name)
	os.Remove(os.Getenv("E2E_UNLINK"))
}

// again is this binary as another worker, with the same sockets at 3, 4, ….
func again(name string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", workerPrefix+name)
	cmd.Env = slices.DeleteFunc(os.Environ(), func(kv string) bool { return strings.HasPrefix(kv, "LISTEN_PID=") })
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	for _, fd := range sockets() {
		duplicate, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			Fail("dup: %v", err)
		}
		cmd.ExtraFiles = append(cmd.ExtraFiles, os.NewFile(uintptr(duplicate), "socket"))
	}
	return cmd
}

// servePreforked only starts and ends the children that accept.
func servePreforked(m Manners) {
	told := termination()
	var all []*exec.Cmd
	for range max(m.N, 2) {
		child := again("graceful")
		check(child.Start())
		all = append(all, child)
	}
	<-told
	for _, child := range all {
		child.Process.Signal(syscall.SIGTERM)
	}
	for _, child := range all {
		child.Wait()
	}
}

// startApart leaves a child in a session of its own that holds the sockets and
// does not listen to TERM.
func startApart() {
	child := again("lingers")
	child.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	check(child.Start())
}

// notifyFromChild has READY=1 sent by a process that is gone at once.
func notifyFromChild() {
	check(again("says-ready").Run())
}

func sayReady() {
	conn, err := net.Dial("unixgram", os.Getenv("NOTIFY_SOCKET"))
	if err != nil {
		Fail("cannot say ready: %v", err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("READY=1")); err != nil {
		Fail("cannot say ready: %v", err)
	}
}

// leaveOrphans starts processes whose parent leaves before they do.
func leaveOrphans(n int) {
	line := strings.Repeat("(sleep 0.05 &) ; ", n)
	check(exec.Command("/bin/sh", "-c", line+"true").Run())
}

func echoDatagrams(Manners) {
	file := os.NewFile(uintptr(sockets()[0]), "socket")
	conn, err := net.FilePacketConn(file)
	check(err)
	buffer := make([]byte, 2048)
	for {
		n, peer, err := conn.ReadFrom(buffer)
		check(err)
		conn.WriteTo(fmt.Appendf(nil, "%s %s", os.Getenv("MOULT_GENERATION"), buffer[:n]), peer)
	}
}
