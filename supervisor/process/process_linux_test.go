package process

import (
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/moult/moult/supervisor/observe"
)

// family starts sleepers in all ways in which they can belong to a worker, or
// not: of its group; in a session of their own with its mark; known by a socket
// alone; marked as another worker's; by nothing at all; marked as one that has just
// been started with the same socket. It ends with its stdin.
const family = `
sleep 1000 3<&- & echo group $!
setsid sleep 1000 3<&- & echo marked $!
setsid env -i sleep 1000 & echo holder $!
MOULT_WORKER=another sleep 1000 3<&- & echo other $!
setsid env -i sleep 1000 3<&- & echo stranger $!
MOULT_WORKER=$0 setsid sleep 1000 & echo next $!
read x
exit 0`

func startFamily(t *testing.T) (c *child, pids map[string]int, inode uint64) {
	t.Helper()
	must(t, BecomeSubreaper())
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	f, err := ln.(*net.TCPListener).File()
	must(t, err)
	ln.Close()
	defer f.Close()
	var st unix.Stat_t
	must(t, unix.Fstat(int(f.Fd()), &st))
	c = start(t, []*os.File{f}, "sh", "-c", family, NewMark())
	return c, c.sleepers(t, 6), st.Ino
}

// names are those of the pids in a list, sorted.
func names(pids map[string]int, list []int) string {
	var found []string
	for name, pid := range pids {
		if slices.Contains(list, pid) {
			found = append(found, name)
		}
	}
	slices.Sort(found)
	return strings.Join(found, " ")
}

func TestWhatAWorkerLeavesBehind(t *testing.T) {
	c, pids, inode := startFamily(t)
	others := Others{Mains: []int{c.PID}, Marks: []string{c.Mark, "another"}}
	inodes := []uint64{inode}
	want := func(what string, list []int, want string) {
		t.Helper()
		if names := names(pids, list); names != want {
			t.Errorf("%s: %q, want %q", what, names, want)
		}
	}
	pids["main"] = c.PID
	want("its tree", c.Tree(others, inodes), "group holder main marked next other stranger")
	c.stdin.Close()
	if s := c.ended(t); s != (Status{}) {
		t.Errorf("it ended with %+v", s)
	}
	want("its tree, as a zombie", c.Tree(others, inodes), "group holder marked")
	want("what it has left", c.Left(others, inodes), "group holder marked")
	if !isZombie(c.PID) {
		t.Error("looking has taken the zombie away")
	}
	c.Reap()
	if isZombie(c.PID) {
		t.Error("the zombie is there still")
	}
	want("after the reap", c.Left(others, inodes), "group holder marked")
	// What was found is known by its start time, whatever it has let go of.
	want("without the socket", c.Left(others, nil), "group holder marked")
	want("one is another's main process", c.Left(Others{Mains: []int{pids["holder"]}, Marks: others.Marks}, nil), "group marked")

	must(t, c.SignalTree(syscall.SIGTERM, false))
	for _, name := range []string{"group", "marked"} {
		eventually(t, name+" has ended", func() bool { return isZombie(pids[name]) })
	}
	for _, name := range []string{"holder", "other", "stranger", "next"} { // the first by the last look
		if isZombie(pids[name]) {
			t.Errorf("%s was signalled", name)
		}
	}
	want("in the end", c.Left(others, nil), "")
}

// Until the main process is reaped, its pid is its own and its group's.
func TestSignalTreeReachesTheGroup(t *testing.T) {
	c, pids, _ := startFamily(t)
	if err := c.SignalTree(syscall.SIGTERM, false); err != nil {
		t.Error(err)
	}
	if s := c.ended(t); s != (Status{Signal: syscall.SIGTERM}) {
		t.Errorf("it ended with %+v", s)
	}
	eventually(t, "its group has ended", func() bool { return isZombie(pids["group"]) && isZombie(pids["other"]) })
	if isZombie(pids["marked"]) || isZombie(pids["stranger"]) {
		t.Error("another session was signalled")
	}
}

func init() {
	// tells says which signals it gets.
	roles["tells"] = func() {
		got := make(chan os.Signal, 8)
		signal.Notify(got, syscall.SIGTERM, syscall.SIGUSR1)
		fmt.Println("up")
		for s := range got {
			fmt.Println(s)
		}
	}
}

func began(t *testing.T, pid int) uint64 {
	t.Helper()
	p, err := observe.ReadProc(pid)
	must(t, err)
	return p.StartTime
}

// gone is a worker that is reaped, with others behind it.
func gone(t *testing.T, behind ...*child) *Process {
	t.Helper()
	p := New(nobody, -1, os.Getpid(), NewMark())
	p.reaped, p.left = true, map[int]uint64{}
	for _, c := range behind {
		p.left[c.PID] = began(t, c.PID)
	}
	return p
}

func TestSignalTreeTellsNewcomersAlone(t *testing.T) {
	one, two := play(t, "tells"), play(t, "tells")
	one.line(t)
	two.line(t)
	p := gone(t, one)
	must(t, p.SignalTree(syscall.SIGTERM, true))
	want := func(c *child, signal string) {
		t.Helper()
		if got := c.line(t); got != signal {
			t.Errorf("pid %d got %q, want %q", c.PID, got, signal)
		}
	}
	want(one, "terminated")
	p.left[two.PID] = began(t, two.PID)
	must(t, p.SignalTree(syscall.SIGTERM, true))
	want(two, "terminated")
	must(t, p.SignalTree(syscall.SIGUSR1, false))
	want(one, "user defined signal 1") // and no second TERM before
	want(two, "user defined signal 1")
}

// A pid says nothing without the time at which its process began.
func TestAPidThatWasUsedAgainIsLeftAlone(t *testing.T) {
	c := play(t, "stay")
	p := gone(t, c)
	p.left[c.PID]++
	must(t, p.SignalTree(syscall.SIGKILL, false))
	if _, _, ended := Ended(c.PID); ended || p.knows(c.PID) {
		t.Error("it is known by its pid alone")
	}
}

func init() {
	// reuse is the same with a pid that is used again indeed. It is the first
	// process of a pid namespace, and so the parent of all orphans.
	roles["reuse"] = func() {
		if err := reusePID(); err != nil {
			fmt.Println(err)
		}
	}
}

func TestAPidThatIsUsedAgain(t *testing.T) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), roleVariable+"=reuse", "GORACE=atexit_sleep_ms=0")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	if os.Geteuid() != 0 || strings.HasPrefix(string(out), "here: ") {
		t.Skipf("no pid can be chosen %s(%v)", out, err)
	}
	if err != nil || len(out) > 0 {
		t.Errorf("%s%v", out, err)
	}
}

func reusePID() error {
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("here: %w", err)
	}
	run := func(session bool, script string) (*exec.Cmd, error) {
		cmd := exec.Command("sh", "-c", script)
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: !session, Setsid: session}
		return cmd, cmd.Start()
	}
	main, err := run(false, "setsid sleep 1000 & sleep 1000 & kill -KILL $$")
	if err != nil {
		return err
	}
	p := New(main.Process.Pid, -1, os.Getpid(), NewMark())
	for ok := false; !ok; time.Sleep(time.Millisecond) {
		_, _, ok = Ended(p.PID)
	}
	orphans := func(n int) (pids []int) { // that sleep, once there are so many
		for len(pids) < n {
			pids = slices.DeleteFunc(observe.Children(os.Getpid()), func(pid int) bool {
				q, err := observe.ReadProc(pid)
				return err != nil || q.Comm != "sleep"
			})
		}
		return pids
	}
	orphans(2)
	left := p.Left(Others{}, nil)
	if len(left) != 1 {
		return fmt.Errorf("%d left behind, want the one of its group", len(left))
	}
	p.Reap()
	// Its group has to be gone before its number is used again.
	if err := p.SignalTree(syscall.SIGKILL, false); err != nil {
		return err
	}
	wait(left[0], 0)
	if err := os.WriteFile("/proc/sys/kernel/ns_last_pid", []byte(strconv.Itoa(p.PID-1)), 0); err != nil {
		return fmt.Errorf("here: %w", err)
	}
	again, err := run(true, "(sleep 1000 &); while :; do sleep 1000; done")
	if err != nil {
		return err
	}
	if again.Process.Pid != p.PID {
		return fmt.Errorf("here: pid %d, not %d", again.Process.Pid, p.PID)
	}
	orphans(2) // the helper in its session, and one of the stranger's group
	if left := p.Left(Others{}, nil); len(left) != 0 {
		return fmt.Errorf("%v of a stranger is taken for left behind", left)
	}
	p.left = map[int]uint64{p.PID: 1}
	if err := p.SignalTree(syscall.SIGKILL, false); err != nil {
		return err
	}
	if err := p.Signal(syscall.SIGKILL); err != syscall.ESRCH {
		return fmt.Errorf("a signal to what was reaped: %v", err)
	}
	if p.Reap(); p.knows(p.PID) || len(observe.Tree(p.PID)) == 0 {
		return fmt.Errorf("the stranger with the pid of the worker was ended")
	}
	return nil
}

func TestEnded(t *testing.T) {
	for _, c := range []struct {
		script string
		want   Status
	}{
		{"exit 0", Status{}},
		{"exit 7", Status{Code: 7}},
		{"exit 143", Status{Code: 143}},
		{"kill -TERM $$", Status{Signal: syscall.SIGTERM}},
		{"kill -KILL $$", Status{Signal: syscall.SIGKILL}},
		{"ulimit -c 0; kill -ABRT $$", Status{Signal: syscall.SIGABRT}},
	} {
		p := start(t, nil, "sh", "-c", "read x; "+c.script)
		if pid, _, ok := Ended(p.PID); ok || pid != 0 {
			t.Errorf("%s: before it ends: %d, %v", c.script, pid, ok)
		}
		p.stdin.Close()
		if s := p.ended(t); s.Code != c.want.Code || s.Signal != c.want.Signal {
			t.Errorf("%s: %+v, want %+v", c.script, s, c.want)
		}
		if pid, s, ok := Ended(p.PID); pid != p.PID || !ok || s.Signal != c.want.Signal {
			t.Errorf("%s: a second look: %d, %+v, %v", c.script, pid, s, ok)
		}
		if pid, s, ok := Ended(0); pid != p.PID || !ok || s.Code != c.want.Code {
			t.Errorf("%s: among all: %d, %+v, %v", c.script, pid, s, ok)
		}
		p.Reap()
		if pid, _, ok := Ended(p.PID); ok {
			t.Errorf("%s: after the reap: %d", c.script, pid)
		}
	}
}

// A core is only dumped where the system likes it, so that this one is made up:
// si_code is CLD_EXITED, CLD_KILLED or CLD_DUMPED.
func TestStatusOfACoreDump(t *testing.T) {
	for code, want := range map[uint32]Status{1: {Code: 11}, 2: {Signal: syscall.SIGSEGV}, 3: {Signal: syscall.SIGSEGV, Core: true}} {
		var info unix.Siginfo
		raw := (*[unsafe.Sizeof(info)]byte)(unsafe.Pointer(&info))
		union := unsafe.Sizeof(uintptr(0)) + 8 // behind three ints
		for offset, n := range map[uintptr]uint32{8: code, union: 42, union + 8: 11} {
			binary.NativeEndian.PutUint32(raw[offset:], n)
		}
		if pid, s := readSiginfo(&info); pid != 42 || s != want {
			t.Errorf("code %d: pid %d, %+v, want %+v", code, pid, s, want)
		}
	}
}

func TestSignalAndReap(t *testing.T) {
	c := play(t, "tells")
	c.line(t)
	if c.Reap(); c.Signal(syscall.SIGUSR1) != nil || c.line(t) != "user defined signal 1" {
		t.Error("a process that runs was reaped, or does not hear")
	}
	if !isBeingStarted(os.Getpid()) || isBeingStarted(c.PID) {
		t.Error("a copy of this process is mistaken")
	}
	if MarkOf(c.PID) != c.Mark || MarkOf(os.Getpid()) != "" || MarkOf(nobody) != "" {
		t.Error("marks are mistaken")
	}
	must(t, c.Signal(syscall.SIGKILL))
	c.ended(t)
	if c.Reap(); isZombie(c.PID) || c.Signal(0) != syscall.ESRCH {
		t.Error("the zombie is there still, or its pid is signalled")
	}
}

func TestWatchExit(t *testing.T) {
	var calls atomic.Int32
	one, two := play(t, "stay"), play(t, "stay")
	stop, err := WatchExit(one.PID, func() { calls.Add(1) })
	must(t, err)
	stopped, err := WatchExit(two.PID, func() { calls.Add(100) })
	must(t, err)
	stopped()
	stopped()
	two.stdin.Close()
	two.ended(t)
	if calls.Load() != 0 {
		t.Error("it is told of a process that runs, or that is not watched any more")
	}
	one.stdin.Close()
	eventually(t, "the end is noticed", func() bool { return calls.Load() == 1 })
	stop()
	late, err := WatchExit(one.PID, func() { calls.Add(1) }) // a zombie has ended
	must(t, err)
	eventually(t, "the end before is noticed", func() bool { return calls.Load() == 2 })
	late()
	one.ended(t)
	one.Reap()
	if _, err := WatchExit(one.PID, nil); err == nil {
		t.Error("nobody is watched")
	}
	if n := calls.Load(); n != 2 {
		t.Errorf("%d calls in the end, want 2", n)
	}
}
