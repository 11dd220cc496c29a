package fdpass

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"github.com/moult/moult/fdpass/intercept"
)

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
