package observe

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// passed is the descriptor of the socket that a helper gets.
const passed = 3

func init() {
	for name, wait := range map[string]func(){
		"epoll":     acceptByRuntime,
		"accept":    func() { unix.Accept(passed) },
		"recv":      func() { unix.Recvfrom(passed, make([]byte, 1), 0) },
		"poll":      func() { unix.Poll([]unix.PollFd{{Fd: 0}, {Fd: passed, Events: unix.POLLIN}}, -1) },
		"ppoll":     func() { unix.Ppoll([]unix.PollFd{{Fd: passed, Events: unix.POLLIN}}, nil, nil) },
		"poll-out":  func() { unix.Poll([]unix.PollFd{{Fd: passed, Events: unix.POLLPRI}}, -1) },
		"select":    func() { unix.Select(passed+1, readSet(passed), nil, nil, nil) },
		"pselect":   func() { unix.Pselect(passed+1, readSet(passed), nil, nil, nil, nil) },
		"select-no": func() { unix.Select(passed+1, &unix.FdSet{}, nil, readSet(passed), nil) },
		"idle":      func() { select {} },
		"ring":      holdRing,
		"epoll-out": func() { watch(unix.EPOLLOUT); fmt.Println("watching"); select {} },
		"stale":     func() { watch(unix.EPOLLIN); unix.Close(passed); fmt.Println("watching"); select {} },
		"parent":    beParent,
		"leaderless": func() {
			unix.RawSyscall(unix.SYS_EXIT, 0, 0, 0)
		},
	} {
		helpers[name] = func() { playWorker(wait) }
	}
	for name, wait := range map[string]func(fds []int){
		"epoll": epollOn, "poll": pollOn, "select": selectOn, "accept": acceptOn,
	} {
		helpers[name+"-many"] = func() { playWorker(func() { wait(given()) }) }
		helpers[name+"-but-last"] = func() { playWorker(func() { wait(given()[:len(given())-1]) }) }
	}
	helpers["observer"] = playObserver
}

// playWorker does what a worker does until its standard input ends. The main
// goroutine is the main thread's, so the tests know where to look.
func playWorker(wait func()) {
	runtime.LockOSThread()
	if uid, err := strconv.Atoi(os.Getenv("OBSERVE_TEST_UID")); err == nil {
		must(syscall.Setuid(uid))
	}
	go func() {
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	fmt.Println("up")
	for {
		wait()
	}
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

// accepted keeps connections open: one that nothing refers to is closed by the
// garbage collector.
var accepted []net.Conn

func acceptByRuntime() {
	f := os.NewFile(passed, "listener")
	l, err := net.FileListener(f)
	must(err)
	must(f.Close())
	for {
		c, err := l.Accept()
		must(err)
		accepted = append(accepted, c)
	}
}

func readSet(fd int) *unix.FdSet {
	set := &unix.FdSet{}
	set.Set(fd)
	return set
}

func watch(events uint32) {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	must(err)
	must(unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, passed, &unix.EpollEvent{Events: events}))
}

// given lists the descriptors that startWith has passed on.
func given() []int {
	count, err := strconv.Atoi(os.Getenv("OBSERVE_TEST_SOCKETS"))
	must(err)
	fds := make([]int, count)
	for i := range fds {
		fds[i] = passed + i
	}
	return fds
}

func epollOn(fds []int) {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	must(err)
	for _, fd := range fds {
		must(unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN}))
	}
	select {}
}

func pollOn(fds []int) {
	var set []unix.PollFd
	for _, fd := range fds {
		set = append(set, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
	}
	unix.Poll(set, -1)
}

func selectOn(fds []int) {
	set := &unix.FdSet{}
	for _, fd := range fds {
		set.Set(fd)
	}
	unix.Select(fds[len(fds)-1]+1, set, nil, nil, nil)
}

func acceptOn(fds []int) {
	for _, fd := range fds {
		go func() {
			for {
				unix.Accept(fd)
			}
		}()
	}
	select {}
}

// holdRing sets an io_uring up and does nothing with it.
func holdRing() {
	var params [120]byte // struct io_uring_params
	_, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, 4, uintptr(addressOf(&params)), 0)
	if errno != 0 {
		os.Exit(0)
	}
	select {}
}

// beParent leaves accepting to a child, whose pid it says.
func beParent() {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), helperVariable+"=accept")
	listener := os.NewFile(passed, "listener")
	cmd.ExtraFiles = []*os.File{listener}
	stdin, err := cmd.StdinPipe()
	must(err)
	defer stdin.Close()
	must(cmd.Start())
	must(listener.Close())
	fmt.Println(cmd.Process.Pid)
	select {}
}

// worker is a helper process that runs.
type worker struct {
	pid    int
	stdin  io.Closer
	stdout *bufio.Reader
	cmd    *exec.Cmd
}

// start runs a helper with fd as its descriptor 3 (none where fd is negative)
// and returns when it is up; it ends with the test.
func start(t testing.TB, name string, fd int, env ...string) *worker {
	t.Helper()
	if fd < 0 {
		return startWith(t, name, nil, env...)
	}
	return startWith(t, name, []int{fd}, env...)
}

// startWith is start with several sockets, from descriptor 3 on.
func startWith(t testing.TB, name string, fds []int, env ...string) *worker {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(append(os.Environ(), helperVariable+"="+name, fmt.Sprint("OBSERVE_TEST_SOCKETS=", len(fds))), env...)
	cmd.Stderr = os.Stderr
	for _, fd := range fds {
		dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		check(t, err)
		f := os.NewFile(uintptr(dup), "socket")
		defer f.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
	}
	stdin, err := cmd.StdinPipe()
	check(t, err)
	stdout, err := cmd.StdoutPipe()
	check(t, err)
	check(t, cmd.Start())
	w := &worker{pid: cmd.Process.Pid, stdin: stdin, stdout: bufio.NewReader(stdout), cmd: cmd}
	t.Cleanup(w.end)
	if line := w.line(t); line != "up" {
		t.Fatalf("helper %s said %q", name, line)
	}
	return w
}

func (w *worker) line(t testing.TB) string {
	t.Helper()
	line, err := w.stdout.ReadString('\n')
	check(t, err)
	return strings.TrimSpace(line)
}

// end kills by way of the end of file first, so that children go too.
func (w *worker) end() {
	w.stdin.Close()
	w.cmd.Process.Kill()
	w.cmd.Wait()
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// listen opens a blocking listening socket, as the master does; it is closed
// with the test.
func listen(t testing.TB, sa unix.Sockaddr, kind int, before ...func(fd int)) int {
	t.Helper()
	family := unix.AF_INET
	switch sa.(type) {
	case *unix.SockaddrInet6:
		family = unix.AF_INET6
	case *unix.SockaddrUnix:
		family = unix.AF_UNIX
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
	check(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	for _, f := range before {
		f(fd)
	}
	check(t, unix.Bind(fd, sa))
	if kind == unix.SOCK_STREAM {
		check(t, unix.Listen(fd, 4096))
	}
	return fd
}

var loopback = [4]byte{127, 0, 0, 1}

func listenTCP(t testing.TB) (fd int, port uint16) {
	t.Helper()
	fd = listen(t, &unix.SockaddrInet4{Addr: loopback}, unix.SOCK_STREAM)
	return fd, portOf(t, fd)
}

func listenMany(t testing.TB, count int) (fds []int, inodes []uint64) {
	t.Helper()
	for range count {
		fd, _ := listenTCP(t)
		fds, inodes = append(fds, fd), append(inodes, inodeOf(t, fd))
	}
	return fds, inodes
}

func portOf(t testing.TB, fd int) uint16 {
	t.Helper()
	sa, err := unix.Getsockname(fd)
	check(t, err)
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return uint16(sa.Port)
	case *unix.SockaddrInet6:
		return uint16(sa.Port)
	}
	t.Fatalf("no port in %v", sa)
	return 0
}

func inodeOf(t testing.TB, fd int) uint64 {
	t.Helper()
	var st unix.Stat_t
	check(t, unix.Fstat(fd, &st))
	return st.Ino
}

// dial connects and keeps the connection for the test.
func dial(t testing.TB, network, address string) net.Conn {
	t.Helper()
	c, err := net.Dial(network, address)
	check(t, err)
	t.Cleanup(func() { c.Close() })
	return c
}

func onPort(port uint16) string { return fmt.Sprintf("127.0.0.1:%d", port) }

// eventually waits for a fact, at most ten seconds.
func eventually(t testing.TB, what string, fact func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !fact() {
		if time.Now().After(deadline) {
			t.Fatalf("not within ten seconds: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}
