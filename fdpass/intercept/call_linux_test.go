package intercept

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func inodeOf(t testing.TB, fd int) uint64 {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Fstat(fd, &st))
	return st.Ino
}

func TestDuplicateIsTheWorkersSocket(t *testing.T) {
	p := startPuppet(t, false, 0)
	fd := p.socket()
	inode := uint64(p.number("inode %d", fd))

	p.do("bind %d %s", fd, loopbackAddress(0))
	c := p.next(Bind)
	if c.FD != fd || c.TID != p.tid || c.PID != p.cmd.Process.Pid {
		t.Errorf("call of thread %d of process %d on %d; want %d, %d, %d", c.TID, c.PID, c.FD, p.tid, p.cmd.Process.Pid, fd)
	}
	if got := hex.EncodeToString(c.Address); got != loopbackAddress(0) {
		t.Errorf("address %s", got)
	}
	if !Duplicates() {
		t.Skip("pidfd_getfd is refused here")
	}
	dup, err := c.Duplicate()
	must(t, err)
	defer unix.Close(dup)
	seen, err := c.Inode()
	must(t, err)
	if seen != inode || inodeOf(t, dup) != inode {
		t.Errorf("inode %d, of the duplicate %d, want %d", seen, inodeOf(t, dup), inode)
	}
	if flags, err := unix.FcntlInt(uintptr(dup), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("the duplicate is not close-on-exec: %#x, %v", flags, err)
	}
	must(t, unix.Bind(dup, loopback()))
	must(t, c.Answer(0))
	p.finds("0")
}

func TestAnswerIsTheErrno(t *testing.T) {
	p := startPuppet(t, false, 0)
	fd := p.socket()
	p.do("bind %d %s", fd, loopbackAddress(0))
	c := p.next(Bind)
	must(t, c.Answer(unix.EADDRINUSE))
	p.finds(failure(unix.EADDRINUSE))
	if err := c.Answer(0); !errors.Is(err, ErrGone) {
		t.Errorf("a second answer: %v", err)
	}
}

func TestProceed(t *testing.T) {
	p := startPuppet(t, false, 0)
	fd := p.socket()
	for _, want := range []string{"0", failure(unix.EINVAL)} { // bound twice
		p.do("bind %d %s", fd, loopbackAddress(0))
		must(t, p.next(Bind).Proceed())
		p.finds(want)
	}
}

func TestReplacedSocketListens(t *testing.T) {
	for _, cloexec := range []bool{true, false} {
		t.Run(fmt.Sprint(cloexec), func(t *testing.T) {
			p := startPuppet(t, false, 0)
			fd := p.socket()
			own, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
			must(t, err)
			defer unix.Close(own)
			must(t, unix.Bind(own, loopback()))

			p.do("bind %d %s", fd, loopbackAddress(0))
			c := p.next(Bind)
			must(t, c.Replace(own, cloexec))
			must(t, c.Answer(0))
			p.finds("0")

			p.do("listen %d 7", fd)
			c = p.next(ListenCall)
			if c.Backlog != 7 || c.FD != fd || c.PID != p.cmd.Process.Pid {
				t.Errorf("listen of %d on %d with %d", c.PID, c.FD, c.Backlog)
			}
			if inode, err := c.Inode(); err != nil || inode != inodeOf(t, own) {
				t.Errorf("inode %d, %v; want %d", inode, err, inodeOf(t, own))
			}
			nonblock, closes, err := c.Flags()
			if err != nil || !nonblock || closes != cloexec {
				t.Errorf("non-blocking %t, close-on-exec %t, %v", nonblock, closes, err)
			}
			must(t, c.Proceed())
			p.finds("0")
			dial(t, own)
		})
	}
}

func dial(t testing.TB, socket int) {
	t.Helper()
	bound, err := unix.Getsockname(socket)
	must(t, err)
	conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", bound.(*unix.SockaddrInet4).Port))
	must(t, err)
	conn.Close()
}

func TestProtocolAndFlags(t *testing.T) {
	p := startPuppet(t, false, 0)
	tests := []struct {
		family, kind int
		want         string
	}{
		{unix.AF_INET, unix.SOCK_STREAM | unix.SOCK_CLOEXEC, "TCP"},
		{unix.AF_INET6, unix.SOCK_STREAM, "TCPv6"},
		{unix.AF_INET, unix.SOCK_DGRAM | unix.SOCK_NONBLOCK, "UDP"},
		{unix.AF_INET6, unix.SOCK_DGRAM, "UDPv6"},
		{unix.AF_UNIX, unix.SOCK_STREAM | unix.SOCK_NONBLOCK | unix.SOCK_CLOEXEC, "UNIX-STREAM"},
		{unix.AF_UNIX, unix.SOCK_DGRAM, "UNIX"},
	}
	for _, test := range tests {
		p.do("socket %d %d 0", test.family, test.kind)
		fd, err := strconv.Atoi(p.result())
		if err != nil {
			t.Logf("no %s here", test.want)
			continue
		}
		p.do("listen %d 1", fd)
		c := p.next(ListenCall)
		if got, err := c.Protocol(); err != nil || got != test.want {
			t.Errorf("%s is %q, %v", test.want, got, err)
		}
		nonblock, cloexec, err := c.Flags()
		if err != nil || nonblock != (test.kind&unix.SOCK_NONBLOCK != 0) || cloexec != (test.kind&unix.SOCK_CLOEXEC != 0) {
			t.Errorf("%s: non-blocking %t, close-on-exec %t, %v", test.want, nonblock, cloexec, err)
		}
		must(t, c.Answer(unix.EOPNOTSUPP))
		p.finds(failure(unix.EOPNOTSUPP))
	}
}

func TestCallsOnWhatIsNoSocket(t *testing.T) {
	p := startPuppet(t, false, 0)
	for fd, want := range map[int]error{0: unix.ENOTSOCK, 999: unix.EBADF, -1: unix.EBADF} {
		p.do("listen %d 1", fd)
		c := p.next(ListenCall)
		if c.FD != fd {
			t.Errorf("descriptor %d is called %d", fd, c.FD)
		}
		if _, err := c.Inode(); !errors.Is(err, want) {
			t.Errorf("inode of %d: %v", fd, err)
		}
		if _, err := c.Protocol(); !errors.Is(err, want) {
			t.Errorf("protocol of %d: %v", fd, err)
		}
		if _, err := c.Duplicate(); Duplicates() && fd != 0 && !errors.Is(err, unix.EBADF) {
			t.Errorf("duplicate of %d: %v", fd, err)
		}
		must(t, c.Proceed())
		p.finds(failure(want.(unix.Errno)))
	}
}

// The kernel reads the address after the answer, the worker may change it
// before: what was looked at and what is bound would differ.
func TestAddressIsReadOnce(t *testing.T) {
	p := startPuppet(t, false, 0)
	fd := p.socket()
	p.do("bind %d %s", fd, loopbackAddress(1))
	c := p.next(Bind)
	p.do("change %s", loopbackAddress(0))
	p.finds("changed")
	if got := hex.EncodeToString(c.Address); got != loopbackAddress(1) {
		t.Errorf("the address became %s", got)
	}
	must(t, c.Proceed())
	p.finds("0")
	p.do("listen %d 1", fd)
	c = p.next(ListenCall)
	defer func() { must(t, c.Proceed()) }()
	if !Duplicates() {
		t.Skip("pidfd_getfd is refused here")
	}
	dup, err := c.Duplicate()
	must(t, err)
	defer unix.Close(dup)
	bound, err := unix.Getsockname(dup)
	must(t, err)
	if port := bound.(*unix.SockaddrInet4).Port; port <= 1 {
		t.Errorf("port %d: the memory had not changed", port)
	}
}

func TestKilledWhileItWaits(t *testing.T) {
	p := startPuppet(t, false, 0)
	p.do("bind %d %s", p.socket(), loopbackAddress(0))
	c := p.next(Bind)
	if !c.Alive() {
		t.Error("it waits and is not alive")
	}
	p.end()
	if c.Alive() {
		t.Error("it is gone and alive")
	}
	_, duplicate := c.Duplicate()
	_, inode := c.Inode()
	_, _, flags := c.Flags()
	_, protocol := c.Protocol()
	for what, err := range map[string]error{
		"answer": c.Answer(0), "proceed": c.Proceed(), "replace": c.Replace(0, false),
		"duplicate": duplicate, "inode": inode, "flags": flags, "protocol": protocol,
	} {
		if !errors.Is(err, ErrGone) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if c.SharesNetwork() || c.SharesFiles() || c.MayBindLowPorts() {
		t.Error("who is gone shares something")
	}
	if _, err := p.calls.Next(); err != io.EOF {
		t.Errorf("%v, want the end", err)
	}
}

// Without WAIT_KILLABLE_RECV the first signal would end the wait and, as the
// handler does not restart, bind(2) would fail with EINTR, which it never does.
func TestSignalsDoNotInterrupt(t *testing.T) {
	p := startPuppet(t, false, 0)
	if n := p.number("alarms"); n != 0 {
		t.Fatal(n)
	}
	fd := p.socket()
	for range 5 {
		p.do("bind %d %s", fd, loopbackAddress(0))
		c := p.next(Bind)
		for range 20 {
			must(t, unix.Tgkill(c.PID, c.TID, unix.SIGALRM))
		}
		eventually(t, "a pending signal", func() bool {
			pending, err := c.status("SigPnd")
			bits, _ := strconv.ParseUint(pending, 16, 64)
			return err != nil || bits&(1<<(unix.SIGALRM-1)) != 0
		})
		if err := c.Answer(unix.EADDRNOTAVAIL); err != nil {
			t.Fatalf("the signal ended the wait: %v", err)
		}
		p.finds(failure(unix.EADDRNOTAVAIL))
	}
}

func TestEndComesWithTheLastProcess(t *testing.T) {
	p := startPuppet(t, false, 0)
	grandchild := p.number("spawn")
	p.end()
	_, err := p.cue.Write([]byte{0})
	must(t, err)
	c := p.next(Bind)
	if c.PID != grandchild {
		t.Errorf("process %d binds, want %d", c.PID, grandchild)
	}
	must(t, c.Proceed())
	if _, err := p.calls.Next(); err != io.EOF {
		t.Errorf("%v, want the end", err)
	}
}

func TestCallsWaitSideBySide(t *testing.T) {
	p := startPuppet(t, false, 0)
	p.number("spawn")
	p.number("spawn")
	_, err := p.cue.Write([]byte{0, 0})
	must(t, err)
	first, second := p.next(Bind), p.next(Bind)
	if first.PID == second.PID {
		t.Errorf("process %d calls twice", first.PID)
	}
	must(t, second.Answer(unix.EACCES))
	if !first.Alive() || second.Alive() {
		t.Error("the answer went to the other")
	}
	must(t, first.Proceed())
}

// The kernel still counts the calls of those who are gone: receiving must
// neither wait for them nor stumble over them.
func TestKilledBeforeTheyWereReceived(t *testing.T) {
	p := startPuppet(t, false, 0)
	var pids []int
	for range 5 {
		pids = append(pids, p.number("spawn"))
	}
	_, err := p.cue.Write(make([]byte, len(pids)))
	must(t, err)
	for _, pid := range pids {
		eventually(t, "a bind", func() bool { return isIn(unix.SYS_BIND, pid) })
		must(t, unix.Kill(pid, unix.SIGKILL))
		eventually(t, "the end of it", func() bool { return isZombie(pid) })
	}
	p.do("listen 0 1")
	must(t, p.next(ListenCall).Answer(0))
	p.finds("0")
	p.end()
	if _, err := p.calls.Next(); err != io.EOF {
		t.Errorf("%v, want the end", err)
	}
}

// isIn tells whether a thread of a process waits in a system call.
func isIn(nr, pid int) bool {
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/syscall", pid))
	for _, thread := range threads {
		if text, err := os.ReadFile(thread); err == nil && strings.HasPrefix(string(text), fmt.Sprint(nr, " ")) {
			return true
		}
	}
	return false
}

// isZombie tells whether the last thread of a process is gone too.
func isZombie(pid int) bool {
	threads, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && len(threads) == 1 && strings.Contains(string(stat), ") Z ")
}

func TestCloseEndsNext(t *testing.T) {
	p := startPuppet(t, false, 0)
	ended := make(chan error)
	go func() {
		_, err := p.calls.Next()
		ended <- err
	}()
	eventually(t, "Next in the poller", func() bool {
		stacks := make([]byte, 1<<20)
		for s := range strings.SplitSeq(string(stacks[:runtime.Stack(stacks, true)]), "\n\n") {
			if strings.Contains(s, "[IO wait") && strings.Contains(s, "(*Listener).receive") {
				return true
			}
		}
		return false
	})
	must(t, p.calls.Close())
	if err := <-ended; !errors.Is(err, os.ErrClosed) {
		t.Errorf("Next returned %v", err)
	}
	if _, err := p.calls.Next(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("and then %v", err)
	}
	p.do("bind %d %s", p.socket(), loopbackAddress(0)) // nobody is there any more
	p.finds(failure(unix.ENOSYS))
}

func TestCloseReleasesWhoWaits(t *testing.T) {
	p := startPuppet(t, false, 0)
	p.do("bind %d %s", p.socket(), loopbackAddress(0))
	c := p.next(Bind)
	must(t, p.calls.Close())
	p.finds(failure(unix.ENOSYS))
	if err := c.Answer(0); !errors.Is(err, os.ErrClosed) {
		t.Errorf("an answer after Close: %v", err)
	}
}

// What getaddrinfo does for each name is not stopped: it has a result while
// nobody answers.
func TestNetlinkPasses(t *testing.T) {
	p := startPuppet(t, false, 0)
	fd := p.number("socket %d %d %d", unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE)
	family := uint16(unix.AF_NETLINK)
	address := fmt.Sprintf("%02x%02x", byte(family), family>>8) + strings.Repeat("00", 10)
	p.do("bind %d %s", fd, address)
	p.finds("0")
}

func TestMPTCPIsRefused(t *testing.T) {
	p := startPuppet(t, false, 0)
	p.do("socket %d %d %d", unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP)
	p.finds(failure(unix.EPROTONOSUPPORT))
}

// These never come up in Next: the call behind them does.
func TestImpossibleArgumentsAreLeftToTheKernel(t *testing.T) {
	p := startPuppet(t, true, 0)
	fd := p.socket()
	steps := []struct{ do, want string }{
		{"rawbind %d 16 0", failure(unix.EFAULT)},
		{"rawbind %d 16 -1", failure(unix.EFAULT)},
		{"rawbind %d 129", failure(unix.EINVAL)},
		{"rawbind %d -1", failure(unix.EINVAL)},
		{"setsockopt %d 1 15 " + strings.Repeat("01000000", 17), "0"},
	}
	for _, s := range steps {
		p.do(s.do, fd)
	}
	p.do("listen %d 1", fd)
	c := p.next(ListenCall)
	for _, s := range steps {
		p.finds(s.want)
	}
	must(t, c.Answer(0))
	p.finds("0")
}

func TestLongestAddress(t *testing.T) {
	p := startPuppet(t, false, 0)
	p.do("rawbind %d 128", p.socket())
	c := p.next(Bind)
	if len(c.Address) != 128 {
		t.Errorf("%d bytes", len(c.Address))
	}
	must(t, c.Answer(unix.EINVAL))
	p.finds(failure(unix.EINVAL))
}

func TestUnlink(t *testing.T) {
	p := startPuppet(t, true, 0)
	long := "/" + strings.Repeat("x", 4094) // PATH_MAX with its NUL
	tests := []struct {
		do, path string
		dir      int
	}{
		{"unlink /nowhere/a", "/nowhere/a", unix.AT_FDCWD},
		{"unlink a", "a", unix.AT_FDCWD},
		{"unlinkat 5 b 0", "b", 5},
		{"unlinkat -100 /c 0", "/c", unix.AT_FDCWD},
		{"unlinkedge /edge 1", "/edge", unix.AT_FDCWD},
		{"unlink " + long, long, unix.AT_FDCWD},
	}
	for _, test := range tests {
		p.do("%s", test.do)
		c := p.next(Unlink)
		if c.Path != test.path || c.FD != test.dir {
			t.Errorf("%.30s: path %.30q of %d", test.do, c.Path, c.FD)
		}
		must(t, c.Answer(0))
		p.finds("0")
	}
	p.do("unlinkat -100 /nowhere/d %d", unix.AT_REMOVEDIR)
	p.finds(unix.ENOENT.Error())
}

func TestImpossiblePathsAreLeftToTheKernel(t *testing.T) {
	p := startPuppet(t, true, 0)
	p.do("unlinkedge /without-end 0")
	p.do("unlink /%s", strings.Repeat("x", 4096))
	p.do("listen 0 1")
	c := p.next(ListenCall)
	p.finds(strconv.Itoa(int(unix.EFAULT)))
	p.finds(unix.ENAMETOOLONG.Error())
	must(t, c.Answer(0))
	p.finds("0")
}

func TestOptions(t *testing.T) {
	p := startPuppet(t, true, 0)
	fd := p.socket()
	p.do("setsockopt %d %d %d 01000000", fd, unix.SOL_SOCKET, unix.SO_REUSEPORT)
	c := p.next(SetOption)
	if c.FD != fd || c.Level != unix.SOL_SOCKET || c.Option != unix.SO_REUSEPORT || string(c.Value) != "\x01\x00\x00\x00" {
		t.Errorf("%d: level %d, option %d, value %q", c.FD, c.Level, c.Option, c.Value)
	}
	must(t, c.Proceed())
	p.finds("0")
	p.do("setsockopt %d %d %d 01000000", fd, unix.IPPROTO_TCP, unix.TCP_NODELAY)
	p.finds("0")
}

func TestNamespaces(t *testing.T) {
	root := os.Geteuid() == 0
	tests := []struct {
		name                string
		flags               uintptr
		network, files, low bool
	}{
		{"none", 0, true, true, root},
		{"network", unix.CLONE_NEWUSER | unix.CLONE_NEWNET, false, true, false},
		{"mounts", unix.CLONE_NEWUSER | unix.CLONE_NEWNS, true, false, false},
		{"user", unix.CLONE_NEWUSER, true, true, false}, // with every capability in its own
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			p := startPuppet(t, false, test.flags)
			p.do("listen 0 1")
			c := p.next(ListenCall)
			if c.SharesNetwork() != test.network || c.SharesFiles() != test.files || c.MayBindLowPorts() != test.low {
				t.Errorf("network %t, files %t, low ports %t", c.SharesNetwork(), c.SharesFiles(), c.MayBindLowPorts())
			}
			must(t, c.Answer(unix.ENOTSOCK))
			p.finds(failure(unix.ENOTSOCK))
		})
	}
}

func TestHiddenMemory(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("nothing is hidden from root")
	}
	p := startPuppet(t, false, 0)
	p.do("hide")
	p.finds("0")
	p.do("bind %d %s", p.socket(), loopbackAddress(0))
	c, err := p.calls.Next()
	must(t, err)
	if c.Kind != Bind || c.Address != nil || !errors.Is(c.Err, unix.EACCES) {
		t.Errorf("%d with address %x: %v", c.Kind, c.Address, c.Err)
	}
	if _, err := c.Duplicate(); !errors.Is(err, unix.EPERM) {
		t.Errorf("duplicate: %v", err)
	}
	must(t, c.Proceed())
	p.finds("0")
}

// BenchmarkCall is a bind that is stopped, looked at and answered.
func BenchmarkCall(b *testing.B) {
	p := startPuppet(b, false, 0)
	fd := p.socket()
	for b.Loop() {
		p.do("bind %d %s", fd, loopbackAddress(0))
		c := p.next(Bind)
		if dup, err := c.Duplicate(); err == nil {
			unix.Close(dup)
		}
		must(b, c.Answer(unix.EADDRINUSE))
		p.finds(failure(unix.EADDRINUSE))
	}
}
