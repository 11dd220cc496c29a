package fdpass

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"github.com/moult/moult/fdpass/intercept"
)

// The shim is moult's own binary between fork and exec: it is started in the
// worker's place, does what only the worker's own process can do, and becomes
// the worker. Master and shim are always the same build (it is started from
// /proc/self/exe), so the wire between them needs no versions:
//
//	argv          shimName, the command, its arguments
//	shimVariable  JSON of shimOrder
//	status pipe   descriptor shimOrder.Status: closed by execve, or JSON of
//	              StartError and then closed. With interception a socket, on
//	              which the descriptor of the filter comes first, with a
//	              newline
const (
	shimName     = "moult-shim"
	shimVariable = "MOULT_SHIM"
)

type shimOrder struct {
	Status     int         `json:"status"`
	ListenPID  bool        `json:"listen_pid,omitempty"`
	Credential *Credential `json:"credential,omitempty"`
	Umask      *int        `json:"umask,omitempty"`
	Dir        []byte      `json:"dir,omitempty"` // as bytes: a name need not be UTF-8
	DirMayFail bool        `json:"dir_may_fail,omitempty"`
	KeepHUP    bool        `json:"keep_hup,omitempty"`
	Kept       bool        `json:"kept,omitempty"`

	Intercept *intercept.Traps `json:"intercept,omitempty"`
}

// Program is a worker to be started.
type Program struct {
	Command    []string // Command[0] is looked up in the PATH of Env, after Dir and Credential hold
	Env        []string
	Members    []*Member // descriptors 3, 4, …
	ListenPID  bool      // set LISTEN_PID to the worker's own pid
	Credential *Credential
	Umask      *int
	Dir        string
	DirMayFail bool // stay in the master's directory if Dir is gone
	KeepHUP    bool // leave SIGHUP ignored if it is (nohup)

	// Kept is run in place of what Command[0] names, if not nil: an
	// executable that is open, wherever its file may be by now. It stays
	// the caller's.
	Kept *os.File

	// Intercept, if not nil, has bind and listen of the worker and its
	// descendants stopped, and these beyond. See Started.Interception.
	Intercept *intercept.Traps
}

// StartError says why a program could not be started: which step failed on
// what.
type StartError struct {
	Step string        `json:"step"` // "execute", "enter directory", "become user", …
	What string        `json:"what"`
	Note string        `json:"note,omitempty"`
	Err  syscall.Errno `json:"errno"`
}

func (e *StartError) Error() string {
	msg := fmt.Sprintf("cannot %s %s: %v", e.Step, e.What, e.Err)
	if e.Note != "" {
		msg += " (" + e.Note + ")"
	}
	return msg
}

// Unwrap returns the error number.
func (e *StartError) Unwrap() error { return e.Err }

// ExitCode is what a shell would exit with: 127 for a command that does not
// exist, 126 for one that cannot be executed, 1 for all else.
func (e *StartError) ExitCode() int {
	switch {
	case e.Step != stepExecute:
		return 1
	case e.Err == syscall.ENOENT && e.Note == "":
		return 127
	}
	return 126
}

const (
	stepExecute   = "execute"
	stepIntercept = "intercept"
)

// Started is a program on its way.
type Started struct {
	pid          int
	status       *os.File
	intercepted  bool
	interception *os.File
}

// PID is the process id: the shim's, and then the program's.
func (s *Started) PID() int { return s.pid }

// Start forks. The result is in when Result returns; nobody but the caller
// waits for the process.
func (p Program) Start() (*Started, error) {
	r, w, err := p.openStatus()
	if err != nil {
		return nil, fmt.Errorf("cannot start %s: %w", p.Command[0], err)
	}
	defer w.Close()
	started, err := p.start(w)
	if err != nil {
		r.Close()
		return nil, fmt.Errorf("cannot start %s: %w", p.Command[0], err)
	}
	started.status, started.intercepted = r, p.Intercept != nil
	return started, nil
}

func (p Program) openStatus() (r, w *os.File, err error) {
	if p.Intercept == nil {
		return os.Pipe()
	}
	return openStatusPair()
}

func (p Program) start(status *os.File) (*Started, error) {
	cmd := &exec.Cmd{
		Path:        ownExecutable(),
		Args:        append([]string{shimName}, p.Command...),
		Stdout:      os.Stdout,
		Stderr:      os.Stderr,
		SysProcAttr: &syscall.SysProcAttr{Setpgid: true},
	}
	for _, m := range p.Members {
		if m.socket.how == Steered && m.users == 1 {
			// Whoever had it before may have made it non-blocking.
			if err := m.makeFresh(); err != nil {
				return nil, err
			}
		}
		f, err := m.Duplicate()
		if err != nil {
			return nil, err
		}
		defer f.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
	}
	cmd.ExtraFiles = append(cmd.ExtraFiles, status)
	if p.Kept != nil {
		cmd.ExtraFiles = append(cmd.ExtraFiles, p.Kept)
	}
	order, err := json.Marshal(shimOrder{
		Status: listenFDsStart + len(p.Members), ListenPID: p.ListenPID, Credential: p.Credential,
		Umask: p.Umask, Dir: []byte(p.Dir), DirMayFail: p.DirMayFail, KeepHUP: p.KeepHUP,
		Kept: p.Kept != nil, Intercept: p.Intercept,
	})
	if err != nil {
		return nil, err
	}
	cmd.Env = append(append([]string{}, p.Env...), shimVariable+"="+string(order))
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	pid := cmd.Process.Pid
	return &Started{pid: pid}, cmd.Process.Release()
}

// Result waits until the program runs (nil) or could not be started (a
// *StartError), and ends the wait when the process dies. It is called once.
func (s *Started) Result() error {
	defer s.status.Close()
	if s.intercepted {
		return s.interceptedResult()
	}
	return failureIn(s.status)
}

func failureIn(status io.Reader) error {
	var e StartError
	if err := json.NewDecoder(status).Decode(&e); err != nil {
		return nil // closed by execve, or by a death that has a status of its own
	}
	return &e
}

// interceptedResult keeps the descriptor only of what runs.
func (s *Started) interceptedResult() error {
	status := &statusReader{file: s.status}
	err := failureIn(status)
	if err == nil && status.lost != 0 {
		err = &StartError{
			Step: stepIntercept, What: "the worker", Err: status.lost,
			Note: "the descriptor of its filter did not arrive; raise the limit of open files",
		}
	}
	if err != nil && status.descriptor != nil {
		status.descriptor.Close()
		return err
	}
	s.interception = status.descriptor
	return err
}

// Interception is for intercept.Listen, once Result has returned without an
// error. It is the caller's, who closes it; nil without Program.Intercept, and
// of a worker that died on its way.
func (s *Started) Interception() *os.File { return s.interception }

// CheckIntercepted tells beforehand why the executable at path could not run
// under interception, or nil; it does not look path up in PATH.
func CheckIntercepted(path string) error {
	if failed := (interception{on: true, noNewPrivs: intercept.NeedsNoNewPrivs()}).refuses(path); failed != nil {
		return failed
	}
	return nil
}

// ownExecutable is the running image, not what stands at its path by now: a
// replaced binary must not be the shim of the old master.
func ownExecutable() string {
	if runtime.GOOS == "linux" {
		if _, err := os.Stat("/proc/self/exe"); err == nil {
			return "/proc/self/exe"
		}
	}
	path, err := os.Executable()
	if err != nil {
		return os.Args[0]
	}
	return path
}

// RunShimIfAsked does the shim's work, and does not return, where this process
// was started as one. It comes first in main, before any flag is parsed: every
// start of a worker waits for it.
func RunShimIfAsked() {
	if os.Args[0] != shimName || len(os.Args) < 2 {
		return
	}
	order, asked := os.LookupEnv(shimVariable)
	if !asked {
		return
	}
	o, err := parseShimOrder(order)
	if err != nil {
		fmt.Fprintln(os.Stderr, "moult: cannot read the order of the master:", err)
		os.Exit(1)
	}
	runtime.LockOSThread() // mask and ids belong to the thread that execs
	failed := o.become(os.Args[1:])
	status := os.NewFile(uintptr(o.Status), "status")
	_ = json.NewEncoder(status).Encode(failed)
	os.Exit(failed.ExitCode())
}

// parseShimOrder returns the zero order with an error.
func parseShimOrder(text string) (shimOrder, error) {
	var o shimOrder
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		return shimOrder{}, err
	}
	if o.Status < listenFDsStart {
		return shimOrder{}, fmt.Errorf("descriptor %d cannot be the status pipe", o.Status)
	}
	return o, nil
}

// become turns this process into the worker; it returns only what stopped it.
func (o shimOrder) become(argv []string) *StartError {
	closeFrom(o.Status)
	os.Unsetenv(shimVariable)
	if o.ListenPID {
		os.Setenv("LISTEN_PID", strconv.Itoa(os.Getpid()))
	}
	if o.Umask != nil {
		syscall.Umask(*o.Umask)
	}
	filtered, failed := o.intercept(argv[0])
	if failed != nil {
		return failed
	}
	if err := o.Credential.assume(); err != nil {
		return err
	}
	if err := o.enter(); err != nil {
		return err
	}
	resetSignals(o.KeepHUP)
	if o.Kept {
		return o.executeKept(argv, filtered)
	}
	return execute(argv, filtered)
}

// interception is what a filter on this process rules out; the zero value rules
// nothing out.
type interception struct{ on, noNewPrivs bool }

// intercept comes before the change of the user: root needs no no_new_privs.
func (o shimOrder) intercept(command string) (interception, *StartError) {
	if o.Intercept == nil {
		return interception{}, nil
	}
	fail := func(err error, note string) (interception, *StartError) {
		return interception{}, &StartError{
			Step: stepIntercept, What: "bind and listen of " + command, Err: errnoOf(err), Note: note,
		}
	}
	fd, noNewPrivs, err := intercept.Install(*o.Intercept)
	if err != nil {
		note := "use --listen"
		var reason *intercept.Unsupported
		if errors.As(err, &reason) {
			note = reason.Reason + "; " + note
		}
		return fail(err, note)
	}
	defer closeDescriptor(fd)
	if err := sendDescriptor(o.Status, fd); err != nil {
		return fail(err, "the master does not take its descriptor")
	}
	return interception{on: true, noNewPrivs: noNewPrivs}, nil
}

// refuses tells why the filter and the file at path do not go together.
func (i interception) refuses(path string) *StartError {
	if !i.on {
		return nil
	}
	var reason *intercept.Unsupported
	if !errors.As(intercept.CheckProgram(path, i.noNewPrivs), &reason) {
		return nil
	}
	e := &StartError{Step: stepExecute, What: path, Err: syscall.EOPNOTSUPP, Note: reason.Reason + "; use --listen"}
	if reason.Err != nil {
		e.Err, e.Note = errnoOf(reason.Err), reason.Reason+": run moult as root or use --listen"
	}
	return e
}

// executeKept becomes the program on the descriptor behind the status pipe.
// After a change of the user the kernel hides /proc/self from the process
// itself; being dumpable again, as it will be after execve, opens it.
func (o shimOrder) executeKept(argv []string, filtered interception) *StartError {
	makeDumpable()
	path := "/proc/self/fd/" + strconv.Itoa(o.Status+1)
	if failed := filtered.refuses(path); failed != nil {
		return failed
	}
	return refusal(path, errnoOf(syscall.Exec(path, argv, os.Environ())))
}

// assume changes the ids in the one order that works: the groups while there
// is the right to, the user last.
func (c *Credential) assume() *StartError {
	if c == nil {
		return nil
	}
	if err := c.setIDs(); err != nil {
		return err
	}
	if c.User != "" {
		os.Setenv("HOME", c.Home)
		os.Setenv("USER", c.User)
		os.Setenv("LOGNAME", c.User)
	}
	return nil
}

func (c *Credential) setIDs() *StartError {
	if c.alreadyHeld() {
		return nil
	}
	fail := func(step, what string, err error) *StartError {
		e := &StartError{Step: step, What: what, Err: errnoOf(err)}
		if e.Err == syscall.EPERM {
			e.Note = "only root may"
		}
		return e
	}
	if err := syscall.Setgroups(c.Groups); err != nil {
		return fail("set the groups of", c.name(), err)
	}
	if c.GID >= 0 {
		if err := syscall.Setgid(c.GID); err != nil {
			return fail("become group", strconv.Itoa(c.GID), err)
		}
	}
	if c.UID >= 0 {
		if err := syscall.Setuid(c.UID); err != nil {
			return fail("become user", c.name(), err)
		}
	}
	return nil
}

// alreadyHeld lets an ordinary user name itself.
func (c *Credential) alreadyHeld() bool {
	return os.Geteuid() != 0 &&
		(c.UID < 0 || c.UID == os.Geteuid()) && (c.GID < 0 || c.GID == os.Getegid())
}

func (c *Credential) name() string {
	if c.User != "" {
		return c.User
	}
	return "gid " + strconv.Itoa(c.GID)
}

func (o shimOrder) enter() *StartError {
	dir := string(o.Dir)
	if dir == "" {
		return nil
	}
	if err := syscall.Chdir(dir); err != nil {
		if o.DirMayFail {
			return nil
		}
		return &StartError{Step: "enter directory", What: dir, Err: errnoOf(err)}
	}
	if filepath.IsAbs(dir) {
		os.Setenv("PWD", dir)
	} else {
		os.Unsetenv("PWD")
	}
	return nil
}

// execute looks the command up as a shell does and becomes it. The first
// refusal other than "not there" is what the caller hears, if nothing runs.
func execute(argv []string, filtered interception) *StartError {
	failed := &StartError{Step: stepExecute, What: argv[0], Err: syscall.ENOENT}
	for _, path := range candidates(argv[0]) {
		if refused := filtered.refuses(path); refused != nil {
			return refused
		}
		err := syscall.Exec(path, argv, os.Environ())
		if err == nil || errors.Is(err, syscall.ENOTDIR) {
			continue
		}
		// A folder of PATH that the user may not enter (root's, after
		// --user) hides whether the command is there: it is looked for in
		// the next one.
		_, unseen := os.Stat(path)
		searched := !strings.Contains(argv[0], "/")
		if unseen != nil && (errors.Is(err, syscall.ENOENT) || searched && errors.Is(err, syscall.EACCES)) {
			continue
		}
		if failed.Err == syscall.ENOENT && failed.Note == "" {
			failed = refusal(path, errnoOf(err))
		}
	}
	return failed
}

func candidates(command string) []string {
	if strings.Contains(command, "/") {
		return []string{command}
	}
	if command == "" {
		return nil
	}
	list, set := os.LookupEnv("PATH")
	if !set {
		list = "/bin:/usr/bin" // as execvp(3), which leaves the directory out
	}
	var paths []string
	for _, dir := range strings.Split(list, ":") {
		if dir == "" {
			dir = "."
		}
		paths = append(paths, dir+"/"+command)
	}
	return paths
}

func refusal(path string, errno syscall.Errno) *StartError {
	e := &StartError{Step: stepExecute, What: path, Err: errno}
	switch info, err := os.Stat(path); {
	case err == nil && info.IsDir():
		e.Note = "it is a directory"
	case errno == syscall.ENOENT:
		e.Note = "the file is there, but not the interpreter or loader that it names"
	case errno == syscall.ENOEXEC:
		e.Note = "not a program for this machine, or a script without #! line"
	case errno == syscall.EACCES:
		e.Note = "check its mode with ls -l, and its file system for noexec"
	}
	return e
}

func errnoOf(err error) syscall.Errno {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return syscall.EINVAL
}
