package start

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/moult/moult/fdpass/intercept"
	"golang.org/x/sys/unix"
)

// roleVariable makes the test binary play a program that a test starts.
const roleVariable = "START_TEST_ROLE"

var roles = map[string]func(){"report": writeReport, "master": startAndWait, "bind": bindTwice}

func TestMain(m *testing.M) {
	RunShimIfAsked()
	if role, ok := roles[os.Getenv(roleVariable)]; ok {
		role()
		syscall.Exit(0) // the race detector would wait a second
	}
	if r, w, err := os.Pipe(); err == nil { // the runtime's poller opens descriptors at first use
		r.Close()
		w.Close()
	}
	os.Exit(m.Run())
}

// report is how a worker finds itself.
type report struct {
	PID, PGID, UID, GID, Umask int
	Groups                     []int
	Dir, Status                string
	Args, Env                  []string
	FDs                        map[int]string
}

func linkOf(fd int) string {
	to, _ := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	return to
}

// writeReport writes to the last descriptor that it was given.
func writeReport() {
	r := report{FDs: map[int]string{}}
	for fd := range 1024 { // before anything else opens one
		if to := linkOf(fd); to != "" {
			r.FDs[fd] = to
		}
	}
	r.PID, r.PGID, r.UID, r.GID, r.Umask = os.Getpid(), syscall.Getpgrp(), os.Getuid(), os.Getgid(), syscall.Umask(0)
	r.Groups, _ = os.Getgroups()
	r.Dir, _ = syscall.Getwd()
	r.Args, r.Env = os.Args, os.Environ()
	status, _ := os.ReadFile("/proc/thread-self/status")
	r.Status = string(status)
	last, _ := strconv.Atoi(os.Getenv("LAST"))
	if err := json.NewEncoder(os.NewFile(uintptr(last), "report")).Encode(r); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// startAndWait is a master under conditions that a test has chosen: it says to
// its last descriptor how its worker failed to start, and has its exit code.
func startAndWait() {
	ResetSignals()
	p := Program{Command: os.Args[1:], Env: without(os.Environ(), roleVariable)}
	if os.Getenv("TRAPS") != "" {
		p.Traps = &intercept.Traps{}
	}
	s, err := p.Start()
	code := 1
	var failed *StartError
	if errors.As(err, &failed) {
		code = failed.ExitCode()
	} else if err == nil {
		var status syscall.WaitStatus
		_, err = syscall.Wait4(s.PID, &status, 0, nil)
		code = status.ExitStatus()
	}
	if last, _ := strconv.Atoi(os.Getenv("LAST")); err != nil && last > 0 {
		_, _ = unix.Write(last, []byte(err.Error()))
	}
	for end := time.Now().Add(5 * time.Second); os.Getenv("ALONE") != "" && filtered(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			code = 99
			break
		}
	}
	syscall.Exit(code)
}

// bindTwice binds in a child of its own, then here, and ends with the sum of
// the errors that it got.
func bindTwice() {
	sum := 0
	if len(os.Args) == 1 {
		child := exec.Command("/proc/self/exe", "alone")
		_ = child.Run()
		sum = child.ProcessState.ExitCode()
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
	}
	syscall.Exit(sum + int(errnoOf(err)))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func ownBinary(t testing.TB) string {
	t.Helper()
	path, err := os.Executable()
	must(t, err)
	return path
}

// play starts the test binary in a role, with a pipe as its last descriptor
// besides.
func play(t testing.TB, name string, p Program, args ...string) (*Started, *os.File) {
	t.Helper()
	in, out, err := os.Pipe()
	must(t, err)
	defer out.Close()
	t.Cleanup(func() { in.Close() })
	p.Command = append([]string{ownBinary(t)}, args...)
	p.Sockets = append(slices.Clone(p.Sockets), int(out.Fd()))
	p.Env = append(p.Env, roleVariable+"="+name, "LAST="+strconv.Itoa(2+len(p.Sockets)))
	s, err := p.Start()
	must(t, err)
	return s, in
}

// master plays a master and returns what it says about its worker.
func master(t testing.TB, p Program, args ...string) (string, int) {
	t.Helper()
	s, said := play(t, "master", p, args...)
	text, err := io.ReadAll(said)
	must(t, err)
	return string(text), end(t, s).ExitStatus()
}

func count(t testing.TB, dir string) int {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	return len(entries)
}

// nothingLeft checks at the end of a test that it left nothing behind: no
// descriptor, no child, no thread with a filter, and the process's own mask and
// directory as before.
func nothingLeft(t testing.TB) {
	t.Helper()
	here, err := os.Getwd()
	must(t, err)
	mask, fds := syscall.Umask(0o022), count(t, "/proc/self/fd")
	syscall.Umask(mask)
	t.Cleanup(func() {
		now := syscall.Umask(mask)
		if dir, err := os.Getwd(); now != mask || dir != here {
			t.Errorf("umask %#o, was %#o; directory %s, was %s, %v", now, mask, dir, here, err)
		}
		if left := count(t, "/proc/self/fd"); left != fds {
			t.Errorf("%d descriptors leaked", left-fds)
		}
		if _, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); err != syscall.ECHILD {
			t.Errorf("a child is left: %v", err)
		}
		end := time.Now().Add(10 * time.Second)
		for filtered() {
			if time.Now().After(end) {
				t.Fatal("a thread keeps the filter")
			}
			time.Sleep(time.Millisecond)
		}
	})
}

// filtered tells whether a thread of this process has a filter.
func filtered() bool {
	threads, _ := filepath.Glob("/proc/self/task/*/status")
	return slices.ContainsFunc(threads, func(thread string) bool {
		text, err := os.ReadFile(thread)
		return err == nil && !strings.Contains(string(text), "Seccomp:\t0")
	})
}

func end(t testing.TB, s *Started) syscall.WaitStatus {
	t.Helper()
	var status syscall.WaitStatus
	for {
		_, err := syscall.Wait4(s.PID, &status, 0, nil)
		if err == nil {
			break
		}
		if err != syscall.EINTR {
			t.Fatal(err)
		}
	}
	unix.Close(s.PidFD)
	if s.Interception != nil {
		s.Interception.Close()
	}
	return status
}

// run starts p and returns its end, or why it did not start.
func run(t testing.TB, p Program) (syscall.WaitStatus, error) {
	t.Helper()
	s, err := p.Start()
	if err != nil {
		return 0, err
	}
	return end(t, s), nil
}

// reportOf runs the test binary as the worker that p describes.
func reportOf(t testing.TB, p Program, args ...string) (report, *Started) {
	t.Helper()
	s, in := play(t, "report", p, args...)
	info, err := os.ReadFile("/proc/self/fdinfo/" + strconv.Itoa(s.PidFD))
	must(t, err)
	if !strings.Contains(string(info), fmt.Sprintf("\nPid:\t%d\n", s.PID)) {
		t.Errorf("the pidfd is not that of %d: %s", s.PID, info)
	}
	var r report
	must(t, json.NewDecoder(in).Decode(&r))
	if status := end(t, s); status != 0 {
		t.Fatalf("the worker ended with %v", status)
	}
	return r, s
}

func needsInterception(t testing.TB) {
	t.Helper()
	if err := intercept.Works(); err != nil {
		t.Skip(err)
	}
}

func keepOwn(t testing.TB) *Kept {
	t.Helper()
	k := Keep(os.Getpid(), ownBinary(t), nil)
	must(t, k.Usable())
	t.Cleanup(k.Close)
	return k
}

func TestWorkerFindsExactlyWhatWasAsked(t *testing.T) {
	needsInterception(t)
	kept := keepOwn(t)
	a, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer a.Close()
	file, err := a.(*net.TCPListener).File()
	must(t, err)
	defer file.Close()
	socket := 0
	raw, err := file.SyscallConn()
	must(t, err)
	must(t, raw.Control(func(fd uintptr) { socket = int(fd) }))
	const many = 40
	for _, number := range []int{0, firstSocket + many + 1} { // what the master's starter has left open
		stray, err := unix.FcntlInt(uintptr(socket), unix.F_DUPFD, number)
		must(t, err)
		defer unix.Close(stray)
	}
	umask, args := 0o027, []string{"", "two words", "--flag", "{x}"}
	for _, test := range []struct {
		name    string
		p       Program
		sharing bool
	}{
		{name: "directly"},
		{"through the shim", Program{ListenPID: true}, false},
		{"intercepted", Program{Traps: &intercept.Traps{}}, false},
		{"intercepted, through the shim", Program{Traps: &intercept.Traps{}, ListenPID: true}, false},
		{"kept", Program{Kept: kept}, false},
		{"kept, through the shim", Program{Kept: kept, ListenPID: true, Traps: &intercept.Traps{}}, false},
		{"without unshare", Program{}, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.sharing {
				unshare = func(int) error { return unix.EPERM }
				defer func() { unshare = unix.Unshare }()
			}
			nothingLeft(t)
			p := test.p
			p.Env, p.Sockets = []string{"A=0", "LISTEN_PID=1", "EMPTY=", "BYTES=\xff", "A=1", shimVariable + "=x"}, slices.Repeat([]int{socket}, many)
			p.Umask, p.Dir = &umask, "/"
			r, s := reportOf(t, p, args...)
			if r.PID != s.PID || r.PGID != s.PID || r.Umask != umask || r.Dir != "/" || s.Path != ownBinary(t) {
				t.Errorf("%+v for %+v", r, s)
			}
			if !slices.Equal(r.Args, append([]string{ownBinary(t)}, args...)) {
				t.Errorf("arguments: %q", r.Args)
			}
			pid, shim := "LISTEN_PID=1", shimVariable+"=x"
			if p.ListenPID {
				pid = "LISTEN_PID=" + strconv.Itoa(s.PID)
			}
			slices.Sort(r.Env)
			// JSON, the report's form, writes a byte that is no UTF-8 as U+FFFD.
			want := []string{"A=1", "BYTES=\ufffd", "EMPTY=", "LAST=43", pid, shim, "PWD=/", roleVariable + "=report"}
			if p.ListenPID || test.sharing {
				want = slices.DeleteFunc(want, func(kv string) bool { return kv == shim })
			}
			if !slices.Equal(r.Env, want) {
				t.Errorf("environment: %q, want %q", r.Env, want)
			}
			wantFDs := map[int]string{0: "/dev/null", 1: linkOf(1), 2: linkOf(2), firstSocket + many: r.FDs[firstSocket+many]}
			for n := range many {
				wantFDs[firstSocket+n] = linkOf(socket)
			}
			for fd, to := range r.FDs {
				// What the worker's own runtime opens is its business.
				if wantFDs[fd] != to && !strings.HasPrefix(to, "anon_inode:[event") && !strings.HasPrefix(to, "/sys/") {
					t.Errorf("descriptor %d: %s, want %q", fd, to, wantFDs[fd])
				}
			}
			for fd, to := range wantFDs {
				if r.FDs[fd] != to {
					t.Errorf("descriptor %d: %q, want %s", fd, r.FDs[fd], to)
				}
			}
			if (p.Traps != nil) != strings.Contains(r.Status, "\nSeccomp:\t2\n") || (p.Traps != nil) != (s.Interception != nil) {
				t.Errorf("seccomp of the worker: %s", r.Status)
			}
			if unblocking, err := unix.FcntlInt(uintptr(socket), unix.F_GETFL, 0); err != nil || unblocking&unix.O_NONBLOCK == 0 {
				t.Errorf("the start made the socket blocking: %v", err)
			}
		})
	}
}

func TestBytesPassUnchanged(t *testing.T) {
	nothingLeft(t)
	dir := filepath.Join(t.TempDir(), "odd \xff name")
	must(t, os.Mkdir(dir, 0o755))
	for _, listenPID := range []bool{false, true} {
		status, err := run(t, Program{
			Command: []string{"/bin/sh", "-c", `printf '%s|%s' "$1" "$BYTES" >out`, "sh", "\xff\xfe\n"},
			Env:     []string{"BYTES=\xf0\x80"}, Dir: dir, ListenPID: listenPID,
		})
		if err != nil || status != 0 {
			t.Fatal(err, status)
		}
		if got, err := os.ReadFile(dir + "/out"); string(got) != "\xff\xfe\n|\xf0\x80" {
			t.Errorf("%q, %v", got, err)
		}
		must(t, os.Remove(dir+"/out"))
	}
}

func TestStartErrors(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		must(t, os.WriteFile(path, []byte(text), mode))
		return path
	}
	noMode, noFormat := file("nomode", "#!/bin/sh\n", 0o644), file("noformat", "\x00\x01", 0o755)
	noInterpreter, good := file("nointerpreter", "#!/nowhere/sh\n", 0o755), file("good", "#!/bin/sh\nexit 7\n", 0o755)
	path := func(list ...string) []string { return []string{"PATH=/none", "PATH=" + strings.Join(list, ":")} }
	for _, test := range []struct {
		name  string
		p     Program
		step  string
		errno syscall.Errno
		note  string
		code  int
	}{
		{"not there", Program{Command: []string{dir + "/none"}}, stepExecute, syscall.ENOENT, "", 127},
		{"not in PATH", Program{Command: []string{"none"}, Env: path(dir)}, stepExecute, syscall.ENOENT, "", 127},
		{"empty", Program{Command: []string{""}, Env: path(dir)}, stepExecute, syscall.ENOENT, "", 127},
		{"no PATH", Program{Command: []string{"good"}, Dir: dir}, stepExecute, syscall.ENOENT, "", 127},
		{"not executable", Program{Command: []string{noMode}}, stepExecute, syscall.EACCES, "mode", 126},
		{"not executable, by PATH", Program{Command: []string{"nomode"}, Env: path(dir, "/bin")}, stepExecute, syscall.EACCES, "mode", 126},
		{"wrong format", Program{Command: []string{noFormat}}, stepExecute, syscall.ENOEXEC, "not a program", 126},
		{"no interpreter", Program{Command: []string{noInterpreter}}, stepExecute, syscall.ENOENT, "interpreter", 126},
		{"directory", Program{Command: []string{dir}}, stepExecute, syscall.EACCES, "directory", 126},
		{"file as directory", Program{Command: []string{good + "/x"}}, stepExecute, syscall.ENOENT, "", 127},
		{"no such directory", Program{Command: []string{good}, Dir: dir + "/none"}, stepEnter, syscall.ENOENT, "", 1},
		{"a file for a directory", Program{Command: []string{good}, Dir: good}, stepEnter, syscall.ENOTDIR, "", 1},
		{"PATH", Program{Command: []string{"good"}, Env: path("/nowhere", noMode, dir)}, "", 0, "", 7},
		{"empty in PATH", Program{Command: []string{"good"}, Env: path("", "/nowhere"), Dir: dir}, "", 0, "", 7},
		{"refused before it is found", Program{Command: []string{"good"}, Env: path("sub", "."), Dir: dir}, "", 0, "", 7},
		{"relative", Program{Command: []string{"./good"}, Dir: dir}, "", 0, "", 7},
		{"directory may fail", Program{Command: []string{good}, Dir: dir + "/none", DirMayFail: true}, "", 0, "", 7},
	} {
		must(t, os.MkdirAll(dir+"/sub/good", 0o755))
		for _, test.p.ListenPID = range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, %t", test.name, test.p.ListenPID), func(t *testing.T) {
				nothingLeft(t)
				status, err := run(t, test.p)
				if test.step == "" {
					if err != nil || status.ExitStatus() != test.code {
						t.Errorf("%v, %v", status, err)
					}
					return
				}
				var e *StartError
				if !errors.As(err, &e) {
					t.Fatalf("%v, want a StartError", err)
				}
				if e.Step != test.step || !errors.Is(err, test.errno) || (test.note == "") != (e.Note == "") || !strings.Contains(e.Note, test.note) ||
					e.ExitCode() != test.code || !strings.HasPrefix(err.Error(), "cannot "+test.step) || strings.Contains(e.What, "/proc") {
					t.Errorf("%#v: %v", e, e)
				}
			})
		}
	}
	if found, err := Look("good", "", path(dir+"/sub", "/nowhere", dir)); found != good || err != nil {
		t.Errorf("%s, %v", found, err)
	}
	if found, err := Look("nomode", dir, path("")); found != "" || err.(*StartError).ExitCode() != 126 {
		t.Errorf("%s, %v", found, err)
	}
}

func TestForkFails(t *testing.T) {
	nothingLeft(t)
	var limit syscall.Rlimit
	must(t, syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit))
	for _, room := range []uint64{0, uint64(count(t, "/proc/self/fd"))} { // none for /dev/null, then none for fork's pipe
		must(t, unix.Prlimit(0, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: room, Max: limit.Max}, nil))
		s, err := Program{Command: []string{"/bin/true"}}.Start()
		must(t, unix.Prlimit(0, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: limit.Cur, Max: limit.Max}, nil))
		var e *StartError
		if s != nil || errors.As(err, &e) || !errors.Is(err, syscall.EMFILE) && !errors.Is(err, syscall.EINVAL) || !strings.HasPrefix(err.Error(), "cannot start /bin/true: ") {
			t.Errorf("room for %d: %v", room, err)
		}
	}
}

func TestLookupCredential(t *testing.T) {
	for _, test := range []struct {
		user, group string
		want        *Credential
		fails       bool
	}{
		{"", "", nil, false},
		{"no-such-user", "", nil, true},
		{"", "no-such-group", nil, true},
		// Numbers need no entry, as in an image without /etc/passwd; but
		// then nobody knows the group.
		{"4242", "4243", &Credential{UID: 4242, GID: 4243, Groups: []int{4243}}, false},
		{"4242", "", nil, true},
	} {
		c, err := LookupCredential(test.user, test.group)
		if fmt.Sprintf("%+v", c) != fmt.Sprintf("%+v", test.want) || (err != nil) != test.fails {
			t.Errorf("%q, %q: %+v, %v", test.user, test.group, c, err)
		}
	}
}

func TestBecomeSomebodyElse(t *testing.T) {
	c, err := LookupCredential("nobody", "")
	if err != nil {
		t.Skip(err)
	}
	needsInterception(t)
	nothingLeft(t)
	if os.Geteuid() != 0 {
		c.UID, c.GID = os.Geteuid()+1, os.Getegid()+1 // certainly somebody else
		_, err := run(t, Program{Command: []string{"/bin/true"}, Credential: c})
		var e *StartError
		if !errors.As(err, &e) || e.Err != syscall.EPERM || e.ExitCode() != 1 || e.Note != "only root may" {
			t.Errorf("%v", err)
		}
		return
	}
	kept, umask := keepOwn(t), 0o07
	dir := t.TempDir()
	openTo(t, dir)
	public, locked := dir+"/public", dir+"/locked"
	must(t, os.Mkdir(locked, 0o700))
	must(t, os.WriteFile(locked+"/w", []byte("#!/bin/sh\nexit 1\n"), 0o755))
	must(t, os.Mkdir(public, 0o755))
	must(t, os.WriteFile(public+"/w", []byte("#!/bin/sh\nexit 5\n"), 0o755))
	for _, listenPID := range []bool{false, true} {
		p := Program{Credential: c, Env: []string{"HOME=/root", "USER=root"}, Kept: kept, ListenPID: listenPID, Umask: &umask, Dir: public, Traps: &intercept.Traps{}}
		r, _ := reportOf(t, p)
		if r.UID != c.UID || r.GID != c.GID || !slices.Equal(r.Groups, c.Groups) || r.Umask != umask || r.Dir != public {
			t.Errorf("%+v, want %+v", r, c)
		}
		for _, want := range []string{"HOME=" + c.Home, "USER=nobody", "LOGNAME=nobody"} {
			if !slices.Contains(r.Env, want) {
				t.Errorf("%s is missing in %q", want, r.Env)
			}
		}
		// The filter comes before the change: setuid programs go on working.
		if !strings.Contains(r.Status, "\nSeccomp:\t2\n") || intercept.NeedsNoNewPrivs() != strings.Contains(r.Status, "\nNoNewPrivs:\t1\n") {
			t.Error(r.Status)
		}
		r, _ = reportOf(t, Program{Credential: &Credential{GID: 65533, Groups: []int{65533}}, Env: []string{"HOME=/h"}, ListenPID: listenPID, Kept: kept})
		if r.UID != 0 || r.GID != 65533 || !slices.Equal(r.Groups, []int{65533}) || !slices.Contains(r.Env, "HOME=/h") {
			t.Errorf("only the group: %+v", r)
		}
		for _, test := range []struct {
			p    Program
			want string
		}{
			{Program{Command: []string{"w"}, Env: []string{"PATH=" + locked + ":" + public}}, ""},
			{Program{Command: []string{"w"}, Env: []string{"PATH=" + locked}}, "cannot execute w: no such file or directory"},
			{Program{Command: []string{locked + "/w"}}, "cannot execute " + locked + "/w: permission denied (check its mode with ls -l, and its file system for noexec)"},
			{Program{Command: []string{"/bin/true"}, Dir: locked}, "cannot enter directory " + locked + ": permission denied"},
		} {
			test.p.Credential, test.p.ListenPID = c, listenPID
			status, err := run(t, test.p)
			if test.want == "" && (err != nil || status.ExitStatus() != 5) || test.want != "" && (err == nil || err.Error() != test.want) {
				t.Errorf("%v, %v; want %q", status, err, test.want)
			}
		}
	}
	// The shim is moult's binary, which may be root's alone.
	must(t, os.Chmod(ownBinary(t), 0o700))
	_, err = run(t, Program{Command: []string{"/bin/true"}, Credential: c, ListenPID: true})
	must(t, errors.Join(err, os.Chmod(ownBinary(t), 0o755)))
}

func TestOneselfNeedsNoRight(t *testing.T) {
	c := &Credential{UID: os.Geteuid(), GID: os.Getegid(), Groups: []int{os.Getegid()}, User: "me", Home: "/h"}
	if r, _ := reportOf(t, Program{Credential: c}); r.UID != c.UID || !slices.Contains(r.Env, "HOME=/h") {
		t.Errorf("%+v", r)
	}
}

func TestSignalsAndLimitsOfTheWorker(t *testing.T) {
	runtime.LockOSThread() // the children inherit the mask of the thread
	defer runtime.UnlockOSThread()
	var blocked, before unix.Sigset_t
	blocked.Val[0] = 1 << (unix.SIGUSR2 - 1)
	must(t, unix.PthreadSigmask(unix.SIG_BLOCK, &blocked, &before))
	defer func() { _ = unix.PthreadSigmask(unix.SIG_SETMASK, &before, nil) }()
	const trap = `trap '' INT QUIT PIPE TERM USR1 CONT TSTP TTIN TTOU HUP 40; exec "$0" "$@"`
	grep := func(field string) []string { return []string{"/bin/grep", "-E", field, "/proc/self/status"} }
	for _, test := range []struct {
		with, worker []string
		plain, want  string // without a master between, and with it
	}{
		{nil, grep("^SigBlk:"), "SigBlk:\t0000000000000800", "SigBlk:\t0000000000000000"},
		{[]string{"/bin/sh", "-c", trap}, grep("^SigIgn:"), "SigIgn:\t00000080003a5207", "SigIgn:\t0000000000000001"}, // nohup's alone
		// Below the hard limit, to which Go's runtime raises itself.
		{[]string{"/bin/sh", "-c", `ulimit -Sn 321; exec "$0" "$@"`}, []string{"/bin/sh", "-c", "ulimit -Sn"}, "321", "321"},
	} {
		for _, between := range [][]string{nil, {ownBinary(t)}} {
			args, want := slices.Concat(test.with, between, test.worker), test.plain
			if between != nil {
				want = test.want
			}
			cmd := exec.Command(args[0], args[1:]...)
			cmd.Env = append(os.Environ(), roleVariable+"=master")
			if out, err := cmd.Output(); err != nil || strings.TrimSpace(string(out)) != want {
				t.Errorf("%q: %s, %v; want %s", args, out, err, want)
			}
		}
	}
}

// With one processor the main goroutine leaves the first thread to the one that
// starts.
func TestFirstThreadHasNoFilter(t *testing.T) {
	needsInterception(t)
	if text, code := master(t, Program{Env: []string{"TRAPS=1", "ALONE=1", "GOMAXPROCS=1"}}, "/bin/true"); code != 0 {
		t.Errorf("%d, %s", code, text)
	}
}

func TestShimIsAskedForTwice(t *testing.T) {
	// The name alone, or the variable alone, is nobody's order.
	for _, cmd := range []*exec.Cmd{
		{Path: ownBinary(t), Args: []string{shimName, "-test.run=^$", "x"}, Env: []string{"A=1"}},
		{Path: ownBinary(t), Args: []string{"x", "-test.run=^$", "x"}, Env: []string{shimVariable + `={"status":3}`}},
	} {
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	}
	bad := &exec.Cmd{Path: ownBinary(t), Args: []string{shimName, "/bin/true", "true"}, Env: []string{shimVariable + "=no"}}
	if out, err := bad.CombinedOutput(); err == nil || !strings.Contains(string(out), "cannot read the order") {
		t.Errorf("%v: %s", err, out)
	}
}

func TestFilterStopsTheWorkerAndItsDescendants(t *testing.T) {
	needsInterception(t)
	nothingLeft(t)
	s, _ := play(t, "bind", Program{Traps: &intercept.Traps{}})
	l, err := intercept.Listen(s.Interception)
	must(t, err)
	s.Interception = nil
	for _, own := range []bool{false, true} {
		c, err := l.Next()
		must(t, err)
		if c.Kind != intercept.Bind || (c.PID == s.PID) != own {
			t.Errorf("call %d of process %d; the worker is %d", c.Kind, c.PID, s.PID)
		}
		must(t, c.Answer(syscall.ENOTTY))
	}
	if status := end(t, s); status.ExitStatus() != 2*int(syscall.ENOTTY) {
		t.Errorf("the worker ended with %v", status)
	}
	if _, err := l.Next(); err != io.EOF {
		t.Errorf("%v, want the end", err)
	}
	must(t, l.Close())
}

func TestManyStarts(t *testing.T) {
	needsInterception(t)
	nothingLeft(t)
	umask := 0o077
	start := func(listenPID bool) {
		status, err := run(t, Program{Command: []string{"/bin/sh", "-c", "exit 3"}, Traps: &intercept.Traps{}, Umask: &umask, Dir: "/", ListenPID: listenPID})
		if err != nil || status.ExitStatus() != 3 {
			t.Error(status, err)
		}
	}
	atOnce := func() {
		var all sync.WaitGroup
		for n := range 32 {
			all.Go(func() { start(n%4 == 0) })
		}
		all.Wait()
	}
	atOnce()
	before := count(t, "/proc/self/task")
	atOnce()
	for range 200 {
		start(false)
	}
	if now := count(t, "/proc/self/task"); now > before+3 { // some are on their way out
		t.Errorf("%d threads, %d before", now, before)
	}
}

func TestRefusedInterception(t *testing.T) {
	needsInterception(t)
	nothingLeft(t)
	dir := t.TempDir()
	narrow := dir + "/narrow" // as much of a 32-bit ELF file as is looked at
	must(t, os.WriteFile(narrow, []byte("\x7fELF\x01\x01\x01"+strings.Repeat("\x00", 45)), 0o755))
	opened, err := openPath(narrow)
	must(t, err)
	kept := &Kept{file: opened, path: narrow}
	defer kept.Close()
	for _, p := range []Program{
		{Command: []string{narrow}},
		{Command: []string{"narrow"}, Env: []string{"PATH=/nowhere:" + dir}},
		{Command: []string{"./narrow"}, Dir: dir},
		{Command: []string{"other"}, Kept: kept},
	} {
		p.Traps = &intercept.Traps{}
		_, err := run(t, p)
		var e *StartError
		if !errors.As(err, &e) || e.ExitCode() != 126 || e.Note != "a 32-bit program cannot be intercepted; use --listen" {
			t.Errorf("%q: %v", p.Command, err)
		}
		p.Traps = nil
		if _, err := run(t, p); !errors.Is(err, syscall.ENOEXEC) && !errors.Is(err, syscall.EACCES) {
			t.Errorf("%q, not intercepted: %v", p.Command, err)
		}
	}
	if err := CheckIntercepted(narrow); err == nil || CheckIntercepted(ownBinary(t)) != nil || CheckIntercepted("/nowhere") != nil {
		t.Errorf("beforehand: %v", err)
	}
	text, code := master(t, Program{Traps: &intercept.Traps{}, Env: []string{"TRAPS=1"}}, "./server", "x")
	for _, part := range []string{"cannot intercept bind and listen of ./server: ", "another moult", "use --listen"} {
		if !strings.Contains(text, part) || code != 1 {
			t.Errorf("code %d, %q misses %q", code, text, part)
		}
	}
	if os.Geteuid() != 0 {
		return
	}
	content, err := os.ReadFile("/bin/true")
	must(t, err)
	must(t, os.WriteFile(dir+"/setuid", content, 0o755))
	must(t, unix.Chmod(dir+"/setuid", 0o4755))
	openTo(t, dir)
	nobody := &Credential{UID: 65534, GID: 65534, Groups: []int{65534}}
	text, code = master(t, Program{Kept: keepOwn(t), Credential: nobody, Env: []string{"TRAPS=1"}}, dir+"/setuid")
	want := "cannot execute " + dir + "/setuid: operation not permitted (it is setuid, which does not work under interception (no_new_privs): run moult as root or use --listen)"
	if code != 126 || text != want {
		t.Errorf("%v, %q; want %q", code, text, want)
	}
	// As root no_new_privs is not needed, whoever the worker becomes.
	if status, err := run(t, Program{Command: []string{dir + "/setuid"}, Credential: nobody, Traps: &intercept.Traps{}}); err != nil || status != 0 {
		t.Error(status, err)
	}
}

// openTo lets every user into a directory of the test.
func openTo(t testing.TB, dir string) {
	t.Helper()
	for ; dir != os.TempDir(); dir = filepath.Dir(dir) {
		must(t, os.Chmod(dir, 0o755))
	}
}

// A file whose lease another process has does not open for up to 45 s, as on a
// file server that does not answer.
func TestHungFileSystemHoldsUpNobodyElse(t *testing.T) {
	nothingLeft(t)
	file := t.TempDir() + "/program"
	content, err := os.ReadFile("/bin/true")
	must(t, err)
	must(t, os.WriteFile(file, content, 0o755))
	f, err := os.Open(file)
	must(t, err)
	defer f.Close()
	if _, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_WRLCK); err != nil {
		t.Skip("no leases here:", err)
	}
	done := make(chan error)
	go func() {
		_, err := run(t, Program{Command: []string{file}})
		done <- err
	}()
	time.Sleep(50 * time.Millisecond) // long enough to hang, and no matter if not
	begun := time.Now()
	for range 3 {
		runtime.GC()
	}
	if _, err := run(t, Program{Command: []string{"/bin/true"}}); err != nil || time.Since(begun) > 5*time.Second {
		t.Errorf("the others waited %v: %v", time.Since(begun), err)
	}
	_, err = unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_UNLCK)
	must(t, err)
	must(t, <-done)
}

func TestKept(t *testing.T) {
	nothingLeft(t)
	dir := t.TempDir()
	sleep, err := os.ReadFile("/bin/sleep")
	must(t, err)
	file := dir + "/sleep"
	must(t, os.WriteFile(file, sleep, 0o755))
	s, err := Program{Command: []string{file, "60"}}.Start()
	must(t, err)
	k, other := Keep(s.PID, s.Path, nil), Keep(s.PID, "/bin/true", nil)
	rolledBack := Keep(s.PID, "/bin/true", k)
	must(t, syscall.Kill(s.PID, syscall.SIGKILL))
	end(t, s)
	must(t, k.Usable())
	must(t, rolledBack.Usable())
	if err := other.Usable(); err == nil || !strings.Contains(err.Error(), "only its interpreter ("+file+") is kept") {
		t.Error(err)
	}
	must(t, os.Remove(file))
	if status, err := run(t, Program{Command: []string{file, "0"}, Kept: k}); err != nil || status != 0 {
		t.Errorf("removed: %v, %v", status, err)
	}
	k.size--
	if err := k.Usable(); err == nil || !strings.Contains(err.Error(), "rewritten in place") {
		t.Error(err)
	}
	for _, k := range []*Kept{k, other, rolledBack, nil} {
		k.Close()
	}
	if k := (*Kept)(nil); k.Usable() == nil || Keep(s.PID, file, nil) != nil {
		t.Error("what is not there is kept")
	}
}

// least is a static program that ends at once, where we know how to write one.
func least(b *testing.B) string {
	b.Helper()
	if runtime.GOARCH != "amd64" {
		return "/bin/true"
	}
	const elf = "\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00" + // 64 bits, little-endian
		"\x02\x00\x3e\x00\x01\x00\x00\x00\x78\x00\x40\x00\x00\x00\x00\x00" + // executable, x86-64, entry 0x400078
		"\x40\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" +
		"\x00\x00\x00\x00\x40\x00\x38\x00\x01\x00\x00\x00\x00\x00\x00\x00" +
		"\x01\x00\x00\x00\x05\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" + // PT_LOAD, r-x
		"\x00\x00\x40\x00\x00\x00\x00\x00\x00\x00\x40\x00\x00\x00\x00\x00" +
		"\x81\x00\x00\x00\x00\x00\x00\x00\x81\x00\x00\x00\x00\x00\x00\x00" +
		"\x00\x10\x00\x00\x00\x00\x00\x00" +
		"\xb8\x3c\x00\x00\x00\x31\xff\x0f\x05" // exit(0)
	file := b.TempDir() + "/least"
	must(b, os.WriteFile(file, []byte(elf), 0o755))
	return file
}

func BenchmarkStart(b *testing.B) {
	command := []string{least(b)}
	b.Run("exec.Cmd", func(b *testing.B) {
		for b.Loop() {
			must(b, (&exec.Cmd{Path: command[0], Args: command}).Run())
		}
	})
	umask := 0o077
	for _, bench := range []struct {
		name string
		p    Program
	}{
		{name: "directly"},
		{"umask", Program{Umask: &umask}},
		{"intercepted", Program{Traps: &intercept.Traps{}}},
		{"LISTEN_PID", Program{ListenPID: true}},
		{"intercepted LISTEN_PID", Program{Traps: &intercept.Traps{}, ListenPID: true}},
	} {
		bench.p.Command = command
		b.Run(bench.name, func(b *testing.B) {
			for b.Loop() {
				_, err := run(b, bench.p)
				must(b, err)
			}
		})
	}
}
