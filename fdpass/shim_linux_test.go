package fdpass

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/moult/moult/fdpass/intercept"
	"golang.org/x/sys/unix"
)

// reportVariable names the file that a worker describes itself in.
const reportVariable = "FDPASS_TEST_REPORT"

// report is how a worker finds itself.
type report struct {
	PID, PGID, UID, GID, Umask int
	Groups                     []int
	Dir                        string
	Args, Env                  []string
	FDs                        map[int]string
}

func init() {
	roles["report"] = writeReport
	roles["start"] = startAndWait
}

func writeReport() {
	r := report{FDs: map[int]string{}}
	for fd := range 1024 { // before anything else opens one
		if to := linkOf(fd); to != "" {
			r.FDs[fd] = to
		}
	}
	r.PID, r.PGID, r.UID, r.GID = os.Getpid(), syscall.Getpgrp(), os.Getuid(), os.Getgid()
	r.Umask = syscall.Umask(0)
	r.Groups, _ = os.Getgroups()
	r.Dir, _ = syscall.Getwd()
	r.Args, r.Env = os.Args, os.Environ()
	text, err := json.Marshal(r)
	if err == nil {
		err = os.WriteFile(os.Getenv(reportVariable), text, 0o666)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// startAndWait is a master that a test has started under special conditions.
func startAndWait() {
	s, err := Program{Command: os.Args[1:], Env: []string{"PATH=" + os.Getenv("PATH")}}.Start()
	if err == nil {
		err = s.Result()
	}
	var status syscall.WaitStatus
	if err == nil {
		_, err = syscall.Wait4(s.PID(), &status, 0, nil)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(status.ExitStatus())
}

func ownBinary(t testing.TB) string {
	t.Helper()
	path, err := os.Executable()
	must(t, err)
	return path
}

// run starts p, waits for its end and returns what Result said.
func run(t testing.TB, p Program) (syscall.WaitStatus, error) {
	t.Helper()
	before := openDescriptors(t)
	s, err := p.Start()
	must(t, err)
	err = s.Result()
	status := waitFor(t, s.PID())
	if now := openDescriptors(t); now != before {
		t.Errorf("%d descriptors leaked", now-before)
	}
	return status, err
}

// reportOf runs the test binary as the worker that p describes.
func reportOf(t testing.TB, p Program, args ...string) (report, int) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "report")
	must(t, os.WriteFile(file, nil, 0o600))
	must(t, os.Chmod(file, 0o666))
	openTo(t, file)
	p.Command = append([]string{ownBinary(t)}, args...)
	p.Env = append(p.Env, roleVariable+"=report", reportVariable+"="+file)
	s, err := p.Start()
	must(t, err)
	must(t, s.Result())
	if filter := s.Interception(); filter != nil {
		defer filter.Close()
	}
	if status := waitFor(t, s.PID()); status != 0 {
		t.Fatalf("the worker ended with %v", status)
	}
	text, err := os.ReadFile(file)
	must(t, err)
	var r report
	must(t, json.Unmarshal(text, &r))
	return r, s.PID()
}

// openTo lets every user reach a file in the test's own directory.
func openTo(t testing.TB, file string) {
	t.Helper()
	for dir := filepath.Dir(file); strings.HasPrefix(dir, os.TempDir()+"/"); dir = filepath.Dir(dir) {
		must(t, os.Chmod(dir, 0o755))
	}
}

func TestShimGivesExactlyWhatWasAsked(t *testing.T) {
	a := mustOpen(t, "tcp://127.0.0.1:0", Options{})
	b := mustOpen(t, "udp://127.0.0.1:0", Options{})
	members := []*Member{mustJoin(t, a, 1), mustJoin(t, b, 1)}

	// Something that the master's starter has left open.
	stray, err := unix.Open("/dev/null", unix.O_RDONLY, 0)
	must(t, err)
	defer closeDescriptor(stray)
	high, err := unix.FcntlInt(uintptr(stray), unix.F_DUPFD, 200)
	must(t, err)
	defer closeDescriptor(high)

	umask := 0o027
	args := []string{"", "two words", "--flag", "\xff\xfe", "{x}"}
	r, pid := reportOf(t, Program{
		Env:     []string{"A=1", "EMPTY=", "BYTES=\xff", "LISTEN_FDS=2"},
		Members: members, ListenPID: true, Umask: &umask, Dir: "/",
	}, args...)

	if r.PID != pid || r.PGID != pid {
		t.Errorf("pid %d, group %d; the master was told %d", r.PID, r.PGID, pid)
	}
	if r.Umask != umask || r.Dir != "/" {
		t.Errorf("umask %#o, directory %q", r.Umask, r.Dir)
	}
	if len(r.Args) != 1+len(args) || r.Args[0] != ownBinary(t) || r.Args[2] != "two words" || r.Args[1] != "" {
		t.Errorf("arguments: %q", r.Args)
	}
	var env []string
	for _, kv := range r.Env {
		if !strings.HasPrefix(kv, "FDPASS_TEST_") {
			env = append(env, kv)
		}
	}
	slices.Sort(env)
	// JSON, the report's form, writes a byte that is no UTF-8 as U+FFFD.
	want := []string{"A=1", "BYTES=\ufffd", "EMPTY=", "LISTEN_FDS=2", "LISTEN_PID=" + strconv.Itoa(pid), "PWD=/"}
	if !slices.Equal(env, want) {
		t.Errorf("environment: %q, want %q", env, want)
	}
	wantFDs := map[int]string{
		0: "/dev/null", 1: linkOf(1), 2: linkOf(2),
		3: fmt.Sprintf("socket:[%d]", members[0].Inode()),
		4: fmt.Sprintf("socket:[%d]", members[1].Inode()),
	}
	for fd, to := range r.FDs {
		// What the worker's own runtime opens is its business.
		if wantFDs[fd] != to && !strings.HasPrefix(to, "anon_inode:") && !strings.HasPrefix(to, "/sys/") {
			t.Errorf("descriptor %d: %s, want %q", fd, to, wantFDs[fd])
		}
	}
	for fd, to := range wantFDs {
		if r.FDs[fd] != to {
			t.Errorf("descriptor %d: %q, want %s", fd, r.FDs[fd], to)
		}
	}
}

func TestShimPassesBytesUnchanged(t *testing.T) {
	file := filepath.Join(t.TempDir(), "out")
	status, err := run(t, Program{
		Command: []string{"/bin/sh", "-c", `printf '%s|%s' "$1" "$BYTES" >"$OUT"`, "sh", "\xff\xfe\n"},
		Env:     []string{"BYTES=\xf0\x80", "OUT=" + file, "PATH=/bin:/usr/bin"},
	})
	if err != nil || status != 0 {
		t.Fatal(err, status)
	}
	if got, err := os.ReadFile(file); string(got) != "\xff\xfe\n|\xf0\x80" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestShimEntersAnyDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "odd \xff name")
	must(t, os.Mkdir(dir, 0o755))
	file := filepath.Join(dir, "out")
	_, err := run(t, Program{Command: []string{"/bin/sh", "-c", "echo x >out"}, Dir: dir})
	if _, statErr := os.Stat(file); err != nil || statErr != nil {
		t.Error(err, statErr)
	}
	_, err = run(t, Program{Command: []string{"/bin/true"}, Dir: dir + "/gone", DirMayFail: true})
	if err != nil {
		t.Errorf("a directory that may be missing: %v", err)
	}
}

func TestStartErrors(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		must(t, os.WriteFile(path, []byte(text), mode))
		return path
	}
	noMode := file("nomode", "#!/bin/sh\n", 0o644)
	noFormat := file("noformat", "\x00\x01", 0o755)
	noInterpreter := file("nointerpreter", "#!/nowhere/sh\n", 0o755)
	good := file("good", "#!/bin/sh\nexit 7\n", 0o755)
	for _, test := range []struct {
		name  string
		p     Program
		step  string
		errno syscall.Errno
		note  string
		code  int
	}{
		{"not there", Program{Command: []string{dir + "/none"}}, stepExecute, syscall.ENOENT, "", 127},
		{"not in PATH", Program{Command: []string{"none"}, Env: []string{"PATH=" + dir}}, stepExecute, syscall.ENOENT, "", 127},
		{"empty", Program{Command: []string{""}, Env: []string{"PATH=" + dir}}, stepExecute, syscall.ENOENT, "", 127},
		{"no PATH", Program{Command: []string{"good"}, Dir: dir}, stepExecute, syscall.ENOENT, "", 127},
		{"not executable", Program{Command: []string{noMode}}, stepExecute, syscall.EACCES, "mode", 126},
		{"not executable, by PATH", Program{Command: []string{"nomode"}, Env: []string{"PATH=" + dir}}, stepExecute, syscall.EACCES, "mode", 126},
		{"wrong format", Program{Command: []string{noFormat}}, stepExecute, syscall.ENOEXEC, "not a program", 126},
		{"no interpreter", Program{Command: []string{noInterpreter}}, stepExecute, syscall.ENOENT, "interpreter", 126},
		{"directory", Program{Command: []string{dir}}, stepExecute, syscall.EACCES, "directory", 126},
		{"file as directory", Program{Command: []string{good + "/x"}}, stepExecute, syscall.ENOENT, "", 127},
		{"no such directory", Program{Command: []string{good}, Dir: dir + "/none"}, "enter directory", syscall.ENOENT, "", 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			status, err := run(t, test.p)
			var e *StartError
			if !errors.As(err, &e) {
				t.Fatalf("%v, want a StartError", err)
			}
			if e.Step != test.step || e.Err != test.errno || (test.note == "") != (e.Note == "") || !strings.Contains(e.Note, test.note) {
				t.Errorf("%#v: %v", e, e)
			}
			if e.ExitCode() != test.code || status.ExitStatus() != test.code {
				t.Errorf("exit code %d, the shim's %d; want %d", e.ExitCode(), status.ExitStatus(), test.code)
			}
			if !errors.Is(err, test.errno) || !strings.HasPrefix(err.Error(), "cannot "+test.step) {
				t.Error(err)
			}
		})
	}
	status, err := run(t, Program{Command: []string{"good"}, Env: []string{"PATH=/nowhere:" + noMode + ":" + dir}})
	if err != nil || status.ExitStatus() != 7 {
		t.Errorf("later in PATH: %v, %v", err, status)
	}
}

func TestResultOfAShimThatDies(t *testing.T) {
	s, err := Program{Command: []string{"/bin/sleep", "60"}}.Start()
	must(t, err)
	must(t, syscall.Kill(s.PID(), syscall.SIGKILL))
	if err := s.Result(); err != nil {
		t.Errorf("%v; the status tells", err)
	}
	if status := waitFor(t, s.PID()); !status.Signaled() {
		t.Errorf("status %v", status)
	}
}

func TestCommandIsLookedUpAsTheWorker(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "w"), []byte("#!/bin/sh\nexit 5\n"), 0o755))
	for _, p := range []Program{
		{Command: []string{"./w"}, Dir: dir},
		{Command: []string{"w"}, Dir: dir, Env: []string{"PATH=:/nowhere"}},
		{Command: []string{"w"}, Env: []string{"PATH=" + dir}},
	} {
		if status, err := run(t, p); err != nil || status.ExitStatus() != 5 {
			t.Errorf("%q: %v, %v", p.Command, err, status)
		}
	}
}

func TestUnknownUser(t *testing.T) {
	if c, err := LookupCredential("no-such-user", ""); err == nil || c != nil {
		t.Errorf("%v, %v", c, err)
	}
	if c, err := LookupCredential("", "no-such-group"); err == nil || c != nil {
		t.Errorf("%v, %v", c, err)
	}
	// Numbers need no entry, as in an image without /etc/passwd; but then
	// nobody knows the group.
	if c, err := LookupCredential("4242", "4243"); err != nil || c.UID != 4242 || c.GID != 4243 || len(c.Groups) != 1 || c.Groups[0] != 4243 {
		t.Errorf("4242:4243: %+v, %v", c, err)
	}
	if c, err := LookupCredential("4242", ""); err == nil || c != nil {
		t.Errorf("4242 without a group: %+v, %v", c, err)
	}
	if c, err := LookupCredential("", ""); err != nil || c != nil {
		t.Errorf("%v, %v", c, err)
	}
}

func TestBecomeSomebodyElse(t *testing.T) {
	c, err := LookupCredential("nobody", "")
	if err != nil {
		t.Skip(err)
	}
	if os.Geteuid() != 0 {
		c.UID, c.GID = os.Geteuid()+1, os.Getegid()+1 // certainly somebody else
		status, err := run(t, Program{Command: []string{"/bin/true"}, Credential: c})
		var e *StartError
		if !errors.As(err, &e) || e.Err != syscall.EPERM || status.ExitStatus() != 1 || !strings.Contains(e.Note, "root") {
			t.Errorf("%v, %v", err, status)
		}
		return
	}
	openTo(t, ownBinary(t))
	r, _ := reportOf(t, Program{Credential: c, Env: []string{"HOME=/root", "USER=root"}})
	if r.UID != c.UID || r.GID != c.GID || !slices.Equal(r.Groups, c.Groups) {
		t.Errorf("%d:%d %v, want %d:%d %v", r.UID, r.GID, r.Groups, c.UID, c.GID, c.Groups)
	}
	for _, want := range []string{"HOME=" + c.Home, "USER=nobody", "LOGNAME=nobody"} {
		if !slices.Contains(r.Env, want) {
			t.Errorf("%s is missing in %q", want, r.Env)
		}
	}
	locked := t.TempDir() + "/locked"
	must(t, os.Mkdir(locked, 0o700))
	openTo(t, locked)
	_, err = run(t, Program{Command: []string{"/bin/true"}, Credential: c, Dir: locked})
	if !errors.Is(err, syscall.EACCES) {
		t.Errorf("a directory that the user may not enter: %v", err)
	}
}

func TestOnlyTheGroupChanges(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root may")
	}
	r, _ := reportOf(t, Program{Credential: &Credential{UID: -1, GID: 65533, Groups: []int{65533}}, Env: []string{"HOME=/h"}})
	if r.UID != 0 || r.GID != 65533 || !slices.Equal(r.Groups, []int{65533}) || !slices.Contains(r.Env, "HOME=/h") {
		t.Errorf("%+v", r)
	}
}

func TestOneselfNeedsNoRight(t *testing.T) {
	c := &Credential{UID: os.Geteuid(), GID: os.Getegid(), Groups: []int{os.Getegid()}, User: "me", Home: "/h"}
	if r, _ := reportOf(t, Program{Credential: c}); r.UID != c.UID || !slices.Contains(r.Env, "HOME=/h") {
		t.Errorf("%+v", r)
	}
}

// signalsOf starts a worker and returns what it blocks and ignores.
func signalsOf(t testing.TB, keepHUP bool) (blocked, ignored uint64) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "status")
	// Not by way of a shell, which unblocks signals itself.
	status, err := run(t, Program{Command: []string{"/bin/cp", "/proc/self/status", file}, KeepHUP: keepHUP})
	if err != nil || status != 0 {
		t.Fatal(err, status)
	}
	text, err := os.ReadFile(file)
	must(t, err)
	return mask(t, string(text), "SigBlk"), mask(t, string(text), "SigIgn")
}

func mask(t testing.TB, status, field string) uint64 {
	t.Helper()
	_, rest, ok := strings.Cut(status, "\n"+field+":\t")
	if !ok {
		t.Fatalf("no %s in %q", field, status)
	}
	n, err := strconv.ParseUint(rest[:16], 16, 64)
	must(t, err)
	return n
}

func TestShimResetsSignals(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	signal.Ignore(syscall.SIGINT, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGPIPE)
	defer signal.Reset(syscall.SIGINT, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGPIPE)
	var term, before unix.Sigset_t
	term.Val[0] = 1 << (unix.SIGTERM - 1)
	must(t, unix.PthreadSigmask(unix.SIG_BLOCK, &term, &before))
	defer func() { _ = unix.PthreadSigmask(unix.SIG_SETMASK, &before, nil) }()

	// Without the shim a child has what its parent has, or the test is empty.
	out, err := exec.Command("cat", "/proc/self/status").Output()
	must(t, err)
	if mask(t, string(out), "SigBlk") == 0 || mask(t, string(out), "SigIgn") == 0 {
		t.Fatal("nothing is blocked or ignored here")
	}
	if blocked, ignored := signalsOf(t, false); blocked != 0 || ignored != 0 {
		t.Errorf("blocked %#x, ignored %#x", blocked, ignored)
	}
	if blocked, ignored := signalsOf(t, true); blocked != 0 || ignored != 1<<(syscall.SIGHUP-1) {
		t.Errorf("under nohup: blocked %#x, ignored %#x, want SIGHUP alone", blocked, ignored)
	}
}

func TestWorkerHasTheStartersLimit(t *testing.T) {
	const limit = "321" // below the hard limit, to which Go's runtime raises itself
	cmd := exec.Command("/bin/sh", "-c", `ulimit -Sn `+limit+`; exec "$0" /bin/sh -c 'ulimit -Sn'`, ownBinary(t))
	cmd.Env = append(os.Environ(), roleVariable+"=start")
	out, err := cmd.CombinedOutput()
	if err != nil || strings.TrimSpace(string(out)) != limit {
		t.Errorf("the worker has %q, want %s: %v", out, limit, err)
	}
}

func TestShimIsAskedForTwice(t *testing.T) {
	// The name alone, or the variable alone, is nobody's order.
	for _, cmd := range []*exec.Cmd{
		{Path: ownBinary(t), Args: []string{shimName, "-test.run=^$"}},
		{Path: ownBinary(t), Args: []string{"x", "-test.run=^$"}, Env: []string{shimVariable + `={"status":3}`}},
	} {
		if cmd.Env == nil {
			cmd.Env = []string{"A=1"}
		}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	}
	bad := &exec.Cmd{Path: ownBinary(t), Args: []string{shimName, "/bin/true"}, Env: []string{shimVariable + "=no"}}
	if out, err := bad.CombinedOutput(); err == nil || !strings.Contains(string(out), "cannot read the order") {
		t.Errorf("%v: %s", err, out)
	}
}

func BenchmarkStartThroughShim(b *testing.B) {
	for b.Loop() {
		s, err := Program{Command: []string{"/bin/true"}}.Start()
		must(b, err)
		must(b, s.Result())
		waitFor(b, s.PID())
	}
}

func BenchmarkStartDirectly(b *testing.B) {
	for b.Loop() {
		must(b, exec.Command("/bin/true").Run())
	}
}

func init() {
	roles["bind"] = bindOnce
	roles["master"] = startIntercepted
	roles["privileges"] = func() { os.Exit(privileges()) }
}

// privileges is no_new_privs, times 16, and the seccomp mode of the thread.
func privileges() int {
	noNewPrivs, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0)
	if err != nil {
		return -1
	}
	text, err := os.ReadFile("/proc/thread-self/status")
	_, mode, found := strings.Cut(string(text), "\nSeccomp:\t")
	if err != nil || !found {
		return -1
	}
	return noNewPrivs<<4 | int(mode[0]-'0')
}

// bindOnce ends with the errno that it got.
func bindOnce() {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
	}
	os.Exit(int(errnoOf(err)))
}

// startIntercepted is a master under conditions that a test has chosen: it
// writes down how its worker failed to start, and has its exit code.
func startIntercepted() {
	s, err := Program{Command: os.Args[1:], Intercept: &intercept.Traps{}}.Start()
	if err == nil {
		err = s.Result()
	}
	var failed *StartError
	if !errors.As(err, &failed) || s.Interception() != nil {
		fmt.Fprintln(os.Stderr, err, "is no StartError")
		os.Exit(2)
	}
	if err := os.WriteFile(os.Getenv(reportVariable), []byte(err.Error()), 0o666); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	os.Exit(failed.ExitCode())
}

// role is the test binary in a role that a test gives it.
func role(t testing.TB, name string, args ...string) Program {
	t.Helper()
	return Program{Command: append([]string{ownBinary(t)}, args...), Env: []string{roleVariable + "=" + name}}
}

// startListening starts p and listens to its filter.
func startListening(t testing.TB, p Program) (*Started, *intercept.Listener) {
	t.Helper()
	s, err := p.Start()
	must(t, err)
	must(t, s.Result())
	if s.Interception() == nil {
		t.Fatal("no descriptor of the filter")
	}
	l, err := intercept.Listen(s.Interception())
	must(t, err)
	t.Cleanup(func() { l.Close() })
	return s, l
}

func needsInterception(t testing.TB) {
	t.Helper()
	if err := intercept.Works(); err != nil {
		t.Skip(err)
	}
}

func TestShimHandsTheFilterOver(t *testing.T) {
	needsInterception(t)
	before := openDescriptors(t)
	kept, err := os.Open(ownBinary(t))
	must(t, err)
	for _, k := range []*os.File{nil, kept} {
		p := role(t, "bind")
		p.Intercept, p.Kept = &intercept.Traps{}, k
		s, l := startListening(t, p)
		c, err := l.Next()
		must(t, err)
		if c.Kind != intercept.Bind || c.PID != s.PID() {
			t.Errorf("call %d of process %d, want a bind of %d", c.Kind, c.PID, s.PID())
		}
		must(t, c.Answer(syscall.EADDRINUSE))
		if status := waitFor(t, s.PID()); status.ExitStatus() != int(syscall.EADDRINUSE) {
			t.Errorf("the worker ended with %v", status)
		}
		if _, err := l.Next(); err != io.EOF {
			t.Errorf("%v, want the end", err)
		}
		l.Close()
	}
	kept.Close()
	if now := openDescriptors(t); now != before {
		t.Errorf("%d descriptors leaked", now-before)
	}
}

func TestInterceptedWorkerFindsNoMore(t *testing.T) {
	needsInterception(t)
	r, _ := reportOf(t, Program{Intercept: &intercept.Traps{}})
	for fd, to := range r.FDs {
		// What the worker's own runtime opens is its business.
		if fd > 2 && !strings.HasPrefix(to, "anon_inode:[event") && !strings.HasPrefix(to, "/sys/") {
			t.Errorf("descriptor %d is open: %s", fd, to)
		}
	}
	for _, e := range r.Env {
		if strings.HasPrefix(e, shimVariable) {
			t.Errorf("%s is left", e)
		}
	}
}

func TestNoInterceptionUnasked(t *testing.T) {
	s, err := role(t, "privileges").Start()
	must(t, err)
	must(t, s.Result())
	if s.Interception() != nil {
		t.Error("a filter that nobody asked for")
	}
	if status := waitFor(t, s.PID()); status.ExitStatus() != privileges() {
		t.Errorf("the worker ended with %v", status)
	}
}

// Root's workers keep setuid programs even as another user: the filter comes
// before the change.
func TestRootNeedsNoNoNewPrivs(t *testing.T) {
	needsInterception(t)
	const filtered = 2 // SECCOMP_MODE_FILTER
	want, p := 1<<4|filtered, role(t, "privileges")
	if os.Geteuid() == 0 {
		want, p.Credential = filtered, &Credential{UID: 65534, GID: 65534, Groups: []int{65534}}
		openTo(t, ownBinary(t))
	}
	if !intercept.NeedsNoNewPrivs() {
		want = privileges() | filtered
	}
	p.Intercept = &intercept.Traps{}
	s, _ := startListening(t, p)
	if status := waitFor(t, s.PID()); status.ExitStatus() != want {
		t.Errorf("no_new_privs<<4|seccomp is %#x, want %#x", status.ExitStatus(), want)
	}
}

// masterFails has a master start command under interception, and returns what
// it says.
func masterFails(t testing.TB, p Program) (text string, code int) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "report")
	must(t, os.WriteFile(file, nil, 0o600))
	must(t, os.Chmod(file, 0o666))
	openTo(t, file)
	p.Env = append(p.Env, reportVariable+"="+file)
	s, err := p.Start()
	must(t, err)
	must(t, s.Result())
	if f := s.Interception(); f != nil {
		defer f.Close()
	}
	status := waitFor(t, s.PID())
	said, err := os.ReadFile(file)
	must(t, err)
	return string(said), status.ExitStatus()
}

func TestInterceptionUnderInterception(t *testing.T) {
	needsInterception(t)
	p := role(t, "master", "./server")
	p.Intercept = &intercept.Traps{}
	text, code := masterFails(t, p)
	for _, part := range []string{"cannot intercept bind and listen of ./server: ", "another moult", "use --listen"} {
		if !strings.Contains(text, part) || code != 1 {
			t.Errorf("code %d, %q misses %q", code, text, part)
		}
	}
}

// narrowProgram is as much of a 32-bit ELF file as is looked at.
func narrowProgram(t testing.TB) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "narrow")
	must(t, os.WriteFile(file, []byte("\x7fELF\x01\x01\x01"+strings.Repeat("\x00", 45)), 0o755))
	return file
}

func TestNarrowProgramIsRefused(t *testing.T) {
	needsInterception(t)
	file := narrowProgram(t)
	open, err := os.Open(file)
	must(t, err)
	defer open.Close()
	for _, p := range []Program{
		{Command: []string{file}},
		{Command: []string{"narrow"}, Env: []string{"PATH=/nowhere:" + filepath.Dir(file)}},
		{Command: []string{"./narrow"}, Dir: filepath.Dir(file)},
		{Command: []string{"other"}, Kept: open},
	} {
		p.Intercept = &intercept.Traps{}
		status, err := run(t, p)
		var e *StartError
		if !errors.As(err, &e) || e.ExitCode() != 126 || status.ExitStatus() != 126 || e.Note != "a 32-bit program cannot be intercepted; use --listen" {
			t.Errorf("%q: %v, %v", p.Command, err, status)
		}
		p.Intercept = nil
		if _, err := run(t, p); !errors.Is(err, syscall.ENOEXEC) && !errors.Is(err, syscall.EACCES) {
			t.Errorf("%q, not intercepted: %v", p.Command, err)
		}
	}
	var e *StartError
	if err := CheckIntercepted(file); !errors.As(err, &e) || e.ExitCode() != 126 {
		t.Errorf("beforehand: %v", err)
	}
	must(t, CheckIntercepted(ownBinary(t)))
	must(t, CheckIntercepted("/nowhere/program"))
}

func TestSetuidProgramIsRefusedToOrdinaryUsers(t *testing.T) {
	needsInterception(t)
	if os.Geteuid() != 0 {
		t.Skip("needs root, to make a setuid program for somebody else")
	}
	file := filepath.Join(t.TempDir(), "setuid")
	content, err := os.ReadFile("/bin/true")
	must(t, err)
	must(t, os.WriteFile(file, content, 0o755))
	must(t, unix.Chmod(file, 0o4755))
	openTo(t, file)
	openTo(t, ownBinary(t))
	var fs unix.Statfs_t
	must(t, unix.Statfs(file, &fs))
	if fs.Flags&unix.ST_NOSUID != 0 {
		t.Skip("setuid means nothing in the folder for temporary files")
	}
	must(t, CheckIntercepted(file))
	p := role(t, "master", file)
	p.Credential = &Credential{UID: 65534, GID: 65534, Groups: []int{65534}}
	text, code := masterFails(t, p)
	want := "cannot execute " + file + ": operation not permitted (it is setuid, which does not work under interception (no_new_privs): run moult as root or use --listen)"
	if code != 126 || text != want {
		t.Errorf("code %d, %q; want %q", code, text, want)
	}

	// As root no_new_privs is not needed, whoever the worker becomes.
	asRoot := Program{Command: []string{file}, Credential: p.Credential, Intercept: &intercept.Traps{}}
	s, _ := startListening(t, asRoot)
	if status := waitFor(t, s.PID()); status != 0 {
		t.Errorf("the worker ended with %v", status)
	}
}

func TestFilterWithoutRoomForItsDescriptor(t *testing.T) {
	needsInterception(t)
	p := role(t, "bind")
	p.Intercept = &intercept.Traps{}
	s, err := p.Start()
	must(t, err)
	var limit syscall.Rlimit
	must(t, syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit))
	must(t, syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: 0, Max: limit.Max}))
	err = s.Result()
	must(t, syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit))
	var e *StartError
	if !errors.As(err, &e) || e.Err != syscall.EMFILE || e.ExitCode() != 1 || s.Interception() != nil {
		t.Errorf("%v", err)
	}
	if status := waitFor(t, s.PID()); status.ExitStatus() != int(syscall.ENOSYS) {
		t.Errorf("the worker ended with %v", status)
	}
}

func TestInterceptedShimThatDies(t *testing.T) {
	needsInterception(t)
	s, err := Program{Command: []string{"/bin/sleep", "60"}, Intercept: &intercept.Traps{}}.Start()
	must(t, err)
	must(t, syscall.Kill(s.PID(), syscall.SIGKILL))
	if err := s.Result(); err != nil {
		t.Errorf("%v; the status tells", err)
	}
	if f := s.Interception(); f != nil { // it came that far
		f.Close()
	}
	if status := waitFor(t, s.PID()); !status.Signaled() {
		t.Errorf("status %v", status)
	}
}

func BenchmarkStartIntercepted(b *testing.B) {
	needsInterception(b)
	for b.Loop() {
		s, err := Program{Command: []string{"/bin/true"}, Intercept: &intercept.Traps{}}.Start()
		must(b, err)
		must(b, s.Result())
		s.Interception().Close()
		waitFor(b, s.PID())
	}
}
