package intercept

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Descriptors that a puppet starts with.
const (
	puppetSocket = 3 // for the descriptor of the filter
	puppetCue    = 4 // what its own children wait for
)

func init() {
	roles["puppet"] = playPuppet
	roles["grandchild"] = playGrandchild
}

// playPuppet installs a filter and does what it is told on standard input, on
// a thread that is not the leader; each answer is a line. "change" is done by
// another thread at once.
func playPuppet() {
	s := &stage{traps: Traps{Unlink: len(os.Args) > 1, Options: len(os.Args) > 1}}
	lines := make(chan []string)
	go onThrowAwayThread(func() {
		fd, _, err := Install(s.traps)
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		_ = unix.Sendmsg(puppetSocket, []byte{0}, unix.UnixRights(fd), nil, 0)
		unix.Close(fd)
		unix.Close(puppetSocket)
		fmt.Println(unix.Gettid())
		for words := range lines {
			fmt.Println(s.act(words[0], words[1:]))
		}
		os.Exit(0)
	})
	input := bufio.NewScanner(os.Stdin)
	for input.Scan() {
		words := strings.Fields(input.Text())
		if words[0] == "change" {
			s.fill(words[1])
			fmt.Println("changed")
			continue
		}
		lines <- words
	}
	close(lines)
	select {}
}

// stage is the puppet's memory.
type stage struct {
	traps  Traps
	mutex  sync.Mutex // of the buffer, among threads; the kernel looks any time
	buffer [256]byte
}

func (s *stage) fill(text string) int {
	data, err := hex.DecodeString(text)
	if err != nil {
		panic(err)
	}
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return copy(s.buffer[:], data)
}

func (s *stage) act(verb string, words []string) any {
	n := make([]uintptr, len(words))
	for i, w := range words {
		v, _ := strconv.ParseInt(w, 0, 64)
		n[i] = uintptr(v)
	}
	call := func(nr uintptr, args ...uintptr) any {
		var a [5]uintptr
		copy(a[:], args)
		r, _, errno := unix.Syscall6(nr, a[0], a[1], a[2], a[3], a[4], 0)
		if errno != 0 {
			return "errno " + strconv.Itoa(int(errno))
		}
		return r
	}
	buffer := uintptr(unsafe.Pointer(&s.buffer))
	switch verb {
	case "socket":
		return call(unix.SYS_SOCKET, n...)
	case "bind": // FD, address in hex
		return call(unix.SYS_BIND, n[0], buffer, uintptr(s.fill(words[1])))
	case "rawbind": // FD, length, address or the buffer
		return call(unix.SYS_BIND, n[0], append(n[2:], buffer)[0], n[1])
	case "listen":
		return call(unix.SYS_LISTEN, n...)
	case "setsockopt": // FD, level, option, value in hex
		return call(unix.SYS_SETSOCKOPT, n[0], n[1], n[2], buffer, uintptr(s.fill(words[3])))
	case "unlink":
		return result(unix.Unlink(words[0]))
	case "unlinkat":
		return result(unix.Unlinkat(int(n[0]), words[1], int(n[2])))
	case "unlinkedge":
		return unlinkAtEdge(words[0] + strings.Repeat("\x00", int(n[1])))
	case "inode":
		var st unix.Stat_t
		_ = unix.Fstat(int(n[0]), &st)
		return st.Ino
	case "alarms": // interrupt system calls
		return handleAlarms()
	case "hide":
		return result(unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0))
	case "install":
		_, _, err := Install(s.traps)
		return result(err)
	case "spawn":
		return spawn()
	}
	return "no such verb"
}

func result(err error) string {
	if err == nil {
		return "0"
	}
	return err.Error()
}

// unlinkAtEdge has the path end where the memory ends.
func unlinkAtEdge(path string) any {
	page := os.Getpagesize()
	memory, err := unix.Mmap(-1, 0, 2*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return err
	}
	if err := unix.Mprotect(memory[page:], unix.PROT_NONE); err != nil {
		return err
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_MUNMAP, uintptr(unsafe.Pointer(&memory[page])), uintptr(page), 0); errno != 0 {
		return errno
	}
	start := page - len(path)
	copy(memory[start:], path)
	at := unix.AT_FDCWD
	_, _, errno := unix.Syscall(unix.SYS_UNLINKAT, uintptr(at), uintptr(unsafe.Pointer(&memory[start])), 0)
	return int(errno)
}

// handleAlarms takes SA_RESTART out of what the runtime has set up.
func handleAlarms() any {
	signal.Notify(make(chan os.Signal, 1), unix.SIGALRM)
	var action struct {
		handler, flags, restorer uintptr
		mask                     uint64
	}
	const restart, size = 0x10000000, 8
	pointer := uintptr(unsafe.Pointer(&action))
	_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(unix.SIGALRM), 0, pointer, size, 0, 0)
	if errno != 0 || action.flags&restart == 0 {
		return "no handler"
	}
	action.flags &^= restart
	_, _, errno = unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(unix.SIGALRM), pointer, 0, size, 0, 0)
	return int(errno)
}

func spawn() any {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{roleVariable + "=grandchild"}
	cmd.ExtraFiles = []*os.File{os.NewFile(puppetCue, "cue")}
	if err := cmd.Start(); err != nil {
		return err
	}
	return cmd.Process.Pid
}

// playGrandchild binds once, on its cue.
func playGrandchild() {
	if _, err := os.NewFile(3, "cue").Read(make([]byte, 1)); err != nil {
		os.Exit(1)
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err == nil {
		err = unix.Bind(fd, loopback())
	}
	if err != nil {
		os.Exit(1)
	}
}

// puppet is a program under interception that does what the test tells it.
type puppet struct {
	t     testing.TB
	cmd   *exec.Cmd
	tid   int
	in    *os.File
	cue   *os.File
	out   *bufio.Scanner
	calls *Listener
}

// startPuppet starts one that traps everything if all is set, in new
// namespaces if there are any flags.
func startPuppet(t testing.TB, all bool, namespaces uintptr) *puppet {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	theirs := os.NewFile(uintptr(pair[1]), "socket")
	stdin, in, err := os.Pipe()
	must(t, err)
	out, stdout, err := os.Pipe()
	must(t, err)
	cueRead, cue, err := os.Pipe()
	must(t, err)
	path, err := os.Executable()
	must(t, err)
	cmd := exec.Command(path)
	if all {
		cmd.Args = append(cmd.Args, "all")
	}
	cmd.Env = append(os.Environ(), roleVariable+"=puppet")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{theirs, cueRead}
	cmd.SysProcAttr = inNamespaces(namespaces)
	err = cmd.Start()
	for _, f := range []*os.File{theirs, stdin, stdout, cueRead} {
		f.Close()
	}
	p := &puppet{t: t, cmd: cmd, in: in, cue: cue, out: bufio.NewScanner(out)}
	t.Cleanup(func() {
		p.end()
		in.Close()
		cue.Close()
		out.Close()
		unix.Close(pair[0])
		if p.calls != nil {
			p.calls.Close()
		}
	})
	if err != nil && namespaces != 0 {
		t.Skipf("no namespaces here: %v", err)
	}
	must(t, err)
	p.receive(pair[0])
	return p
}

func inNamespaces(flags uintptr) *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{Cloneflags: flags}
	if flags&unix.CLONE_NEWUSER != 0 {
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	return attr
}

func (p *puppet) receive(socket int) {
	p.t.Helper()
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(socket, make([]byte, 1), oob, unix.MSG_CMSG_CLOEXEC)
	must(p.t, err)
	if n == 0 {
		p.t.Fatalf("no filter: %s", p.result())
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	must(p.t, err)
	fds, err := unix.ParseUnixRights(&messages[0])
	must(p.t, err)
	p.calls, err = Listen(os.NewFile(uintptr(fds[0]), "notify"))
	must(p.t, err)
	p.tid, err = strconv.Atoi(p.result())
	must(p.t, err)
}

func (p *puppet) end() {
	if p.cmd.Process != nil && p.cmd.ProcessState == nil {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
	}
}

// do tells it to do something, whose result is not waited for.
func (p *puppet) do(format string, args ...any) {
	p.t.Helper()
	_, err := fmt.Fprintf(p.in, format+"\n", args...)
	must(p.t, err)
}

func (p *puppet) result() string {
	p.t.Helper()
	if !p.out.Scan() {
		p.t.Fatal("the puppet has no answer")
	}
	return p.out.Text()
}

// number does something that is not stopped.
func (p *puppet) number(format string, args ...any) int {
	p.t.Helper()
	p.do(format, args...)
	n, err := strconv.Atoi(p.result())
	must(p.t, err)
	return n
}

func (p *puppet) socket() int {
	p.t.Helper()
	return p.number("socket %d %d %d", unix.AF_INET, unix.SOCK_STREAM, 0)
}

// next is the next call, of the kind that was expected.
func (p *puppet) next(kind Kind) *Call {
	p.t.Helper()
	c, err := p.calls.Next()
	must(p.t, err)
	if c.Kind != kind || c.Err != nil {
		p.t.Fatalf("call %d (%v), want %d", c.Kind, c.Err, kind)
	}
	return c
}

// finds checks the result of the call that was answered.
func (p *puppet) finds(want string) {
	p.t.Helper()
	if got := p.result(); got != want {
		p.t.Fatalf("the puppet finds %q, want %q", got, want)
	}
}

func failure(errno syscall.Errno) string { return "errno " + strconv.Itoa(int(errno)) }

// loopbackAddress is a struct sockaddr_in of 127.0.0.1 in hex.
func loopbackAddress(port int) string {
	family := uint16(unix.AF_INET)
	native := *(*[2]byte)(unsafe.Pointer(&family))
	return hex.EncodeToString(native[:]) + fmt.Sprintf("%04x", port) + "7f000001" + strings.Repeat("00", 8)
}
