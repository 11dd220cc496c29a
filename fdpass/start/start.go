// Package start leads from a Program to a running process.
//
// A thread does what the process would have to do for itself between fork and
// execve, and the process inherits it: a goroutine that is locked to its thread
// looks for the command as the user who will run it, sets the file mode mask,
// empties the signal mask, installs the filter of interception, forks, and ends
// with its thread. So the filter's descriptor is the master's without being
// sent, and no second program has to be loaded.
//
// Only what needs the new process itself goes through moult's own binary, the
// shim: LISTEN_PID, and the file mode mask where a thread may not have its own.
// Hence RunShimIfAsked comes first in main.
package start

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/moult/moult/fdpass/intercept"
)

// Program is a worker to be started. Nothing in it is changed or closed.
type Program struct {
	// Command is the argument list. Command[0] is looked up in the PATH of
	// Env, relative to Dir, as the user of Credential.
	Command []string
	Env     []string // of two values of one variable the last counts

	// Sockets are the caller's descriptors, which the child finds as 3, 4, …
	// They have to stay open until Start has returned. Their flags are left
	// alone, O_NONBLOCK above all, which every process that has the socket
	// shares.
	Sockets []int

	ListenPID  bool        // set LISTEN_PID to the worker's own pid
	Credential *Credential // nil: the master's own
	Umask      *int        // nil: the master's own
	Dir        string      // empty: the master's own
	DirMayFail bool        // stay in the master's directory if Dir cannot be entered

	// Kept is run in place of what Command[0] names, if not nil.
	Kept *Kept

	// Traps, if not nil, has bind and listen of the worker and its
	// descendants stopped, and these beyond. See Started.Interception.
	Traps *intercept.Traps
}

// Started is a program that runs. Its process leads a group of its own.
type Started struct {
	PID   int
	PidFD int // close-on-exec, the caller's to close; -1 where the system has none

	// Interception is for intercept.Listen. It is the caller's to close; nil
	// without Program.Traps.
	Interception *os.File

	// Path is the file that is run, relative to the master's directory if at
	// all.
	Path string
}

const (
	firstSocket = 3 // SD_LISTEN_FDS_START of sd_listen_fds(3)
	notForked   = -2

	stepEnter     = "enter directory"
	stepExecute   = "execute"
	stepIntercept = "intercept"
)

// Start forks, and returns when the program runs or could not be started. The
// error is a *StartError, which says what stopped it, or says that this process
// could not fork; nothing is left behind then, no process and no descriptor.
//
// It waits for every file system on the way, without end if need be, and keeps
// a thread meanwhile: an event loop does not call it, and a caller that has
// given up still ends what comes of it. Nobody but the caller waits for the
// process once it runs, and it may have ended when Start returns. A child that
// failed is reaped here; a goroutine that reaps whatever ends sees some of those.
func (p Program) Start() (*Started, error) {
	var started *Started
	var err error
	onThrowAwayThread(func() { started, err = p.start() })
	var reason *StartError
	if err != nil && !errors.As(err, &reason) {
		return nil, fmt.Errorf("cannot start %s: %w", p.Command[0], err)
	}
	return started, err
}

// launch is a start under way, on a thread that is thrown away afterwards.
type launch struct {
	Program
	user  *Credential // to be assumed; nil: the master's own
	found []candidate
	env   []string
	files []uintptr // of the child, in their order
	kept  int       // our number of Program.Kept, or -1
	shim  bool
}

func (p Program) start() (*Started, error) {
	l := &launch{Program: p, user: p.Credential.toAssume(), kept: -1}
	if err := l.look(); err != nil {
		return nil, err
	}
	null, err := l.open()
	defer closeAll(null, l.kept)
	if err != nil {
		return nil, err
	}
	l.shim = !prepareThread(p.Umask) || p.ListenPID
	filter, err := l.intercept()
	if err != nil {
		return nil, err
	}
	started, err := l.run()
	switch {
	case err != nil:
		closeAll(filter)
	case filter >= 0:
		started.Interception = os.NewFile(uintptr(filter), "seccomp notify")
	}
	return started, err
}

// look asks the file system, as the user, all that execve will ask again: where
// it does not answer, this thread waits. In a child that has not become its
// program yet, the whole Go runtime would wait with it: the child borrows the
// memory of a thread that no garbage collection can interrupt. What is left is a
// file system that stops answering just between this look and execve.
func (l *launch) look() error {
	if err := l.user.borrow(); err != nil {
		return err
	}
	defer giveBack()
	if err := l.setEnv(); err != nil {
		return err
	}
	l.found = l.Kept.candidates()
	if l.Kept == nil {
		l.found = search(l.Command[0], l.Dir, l.env)
	}
	for i := range l.found {
		l.found[i].unfit = intercept.CheckProgram(l.found[i].file, l.Traps != nil && intercept.NeedsNoNewPrivs())
	}
	return nil
}

// setEnv adds the variables that follow from the user and from the directory,
// which can be entered where its "." can be looked up.
func (l *launch) setEnv() error {
	env := append([]string{}, l.Env...)
	if c := l.Credential; c != nil && c.User != "" {
		env = append(env, "HOME="+c.Home, "USER="+c.User, "LOGNAME="+c.User)
	}
	if l.Dir != "" {
		_, err := os.Stat(l.Dir + "/.")
		switch {
		case err == nil && filepath.IsAbs(l.Dir):
			env = append(env, "PWD="+l.Dir)
		case err == nil:
			env = without(env, "PWD")
		case l.DirMayFail:
			l.Dir = ""
		default:
			return &StartError{Step: stepEnter, What: l.Dir, Err: errnoOf(err)}
		}
	}
	l.env = (&exec.Cmd{Env: env}).Environ() // leaves out the values that do not count
	return nil
}

func without(env []string, name string) []string {
	return slices.DeleteFunc(env, func(kv string) bool { return strings.HasPrefix(kv, name+"=") })
}

// open collects the child's descriptors. ForkExec moves them in the child to
// numbers above the highest of them: so a kept program stays where it is if
// /dev/null comes after it.
func (l *launch) open() (null int, err error) {
	above := firstSocket + len(l.Sockets)
	if l.Kept != nil {
		if l.kept, err = dupAbove(int(l.Kept.file.Fd()), above); err != nil {
			return -1, err
		}
		above = l.kept + 1
	}
	low, err := syscall.Open(os.DevNull, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: os.DevNull, Err: err}
	}
	defer closeAll(low)
	null, err = dupAbove(low, above)
	l.files = []uintptr{uintptr(null), uintptr(syscall.Stdout), uintptr(syscall.Stderr)}
	for _, fd := range l.Sockets {
		l.files = append(l.files, uintptr(fd))
	}
	return null, err
}

func closeAll(fds ...int) {
	for _, fd := range fds {
		if fd >= 0 {
			_ = syscall.Close(fd)
		}
	}
}

// intercept comes before the change of the user: root needs no no_new_privs.
// The descriptor is -1 where nobody asked.
func (l *launch) intercept() (int, error) {
	if l.Traps == nil {
		return -1, nil
	}
	fd, _, err := intercept.Install(*l.Traps)
	if err == nil {
		return fd, nil
	}
	note := "use --listen"
	var reason *intercept.Unsupported
	if errors.As(err, &reason) {
		note = reason.Reason + "; " + note
	}
	return -1, &StartError{Step: stepIntercept, What: "bind and listen of " + l.Command[0], Err: errnoOf(err), Note: note}
}

// run tries what was found. The first refusal is what the caller hears, if
// nothing runs.
func (l *launch) run() (*Started, error) {
	failed := notThere(l.Command[0])
	for _, c := range l.found {
		if unfit := c.refusedByFilter(); unfit != nil && l.Traps != nil {
			return nil, unfit
		}
		started, err := l.become(c)
		refused, ok := err.(syscall.Errno)
		switch {
		case err == nil:
			started.Path = c.file
			if l.Kept != nil {
				started.Path = c.path
			}
			return started, nil
		case !ok:
			return nil, err
		case failed.isNotThere():
			failed = c.refused(refused)
		}
	}
	return nil, failed
}

// become returns execve's own refusal as a bare Errno.
func (l *launch) become(c candidate) (*Started, error) {
	path := c.path
	if l.Kept != nil {
		path = descriptorPath(l.kept)
	}
	if l.shim {
		return l.throughShim(path)
	}
	attr := &syscall.ProcAttr{Dir: l.Dir, Env: l.env, Files: l.files, Sys: &syscall.SysProcAttr{Credential: l.user.kernel()}}
	return fork(path, l.Command, attr)
}

// fork takes whatever stops the child for a refusal of execve: all other steps
// have been tried before.
func fork(path string, argv []string, attr *syscall.ProcAttr) (*Started, error) {
	pidFD := notForked
	attr.Sys.Setpgid = true
	askForPidFD(attr.Sys, &pidFD)
	SealDescriptors()
	pid, err := syscall.ForkExec(path, argv, attr)
	switch {
	case err == nil:
		return &Started{PID: pid, PidFD: pidFD}, nil
	case pidFD == notForked:
		return nil, os.NewSyscallError("fork", err)
	}
	return nil, err
}

// throughShim starts the shim and waits until it has become the program at
// path. One that was killed on its way has a status that tells.
func (l *launch) throughShim(path string) (*Started, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	defer w.Close()
	o := order{Status: len(l.files), Kept: l.kept >= 0, ListenPID: l.ListenPID, Umask: l.Umask, Dir: []byte(l.Dir), Credential: l.user}
	text, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	attr := &syscall.ProcAttr{Sys: &syscall.SysProcAttr{}, Files: append(slices.Clone(l.files), w.Fd())}
	if o.Kept {
		attr.Files = append(attr.Files, uintptr(l.kept))
	}
	attr.Env = append(without(slices.Clone(l.env), shimVariable), shimVariable+"="+string(text))
	own := ownExecutable()
	started, err := fork(own, append([]string{shimName, path}, l.Command...), attr)
	w.Close()
	if errno, ok := err.(syscall.Errno); ok {
		return nil, &os.PathError{Op: "execute", Path: own, Err: errno}
	}
	var failed StartError
	if err != nil || json.NewDecoder(r).Decode(&failed) != nil {
		return started, err
	}
	closeAll(started.PidFD)
	for err = syscall.EINTR; err == syscall.EINTR; {
		_, err = syscall.Wait4(started.PID, nil, 0, nil)
	}
	if failed.Step == stepExecute {
		return nil, failed.Err
	}
	return nil, &failed
}

// ownExecutable is the running image, not what stands at its path by now: a
// replaced binary must not be the shim of the old master.
func ownExecutable() string {
	if runtime.GOOS == "linux" {
		return "/proc/self/exe"
	}
	path, err := os.Executable()
	if err != nil {
		return os.Args[0]
	}
	return path
}

func descriptorPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }
