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
// a thread meanwhile: an event loop does not call it. Nobody but the caller
// waits for the process once it runs. A child that failed is reaped here; where
// another goroutine reaps whatever ends, it sees some of those.
func (p Program) Start() (*Started, error) {
	var started *Started
	var err error
	onThrowAwayThread(func() { started, err = p.start() })
	return started, err
}

// launch is a start under way, on a thread that is thrown away afterwards.
type launch struct {
	Program
	found []candidate
	env   []string
	files []int // of the child, in their order
	kept  int   // our number of Program.Kept, below the last of files; or -1
	shim  *order
}

func (p Program) start() (*Started, error) {
	l := &launch{Program: p, kept: -1}
	if err := l.look(); err != nil {
		return nil, err
	}
	null, err := l.open()
	if err != nil {
		return nil, fmt.Errorf("cannot start %s: %w", p.Command[0], err)
	}
	defer closeAll(null, l.kept)
	if separate := prepareThread(p.Umask); !separate || p.ListenPID {
		l.shim = &order{ListenPID: p.ListenPID, Umask: p.Umask, Dir: []byte(l.Dir), Credential: p.Credential.toAssume(), Status: len(l.files), Kept: l.kept >= 0}
	}
	filter, err := l.intercept()
	if err != nil {
		return nil, err
	}
	started, err := l.run()
	if err != nil {
		closeAll(filter)
		return nil, err
	}
	if filter >= 0 {
		started.Interception = os.NewFile(uintptr(filter), "seccomp notify")
	}
	return started, nil
}

// look asks the file system, as the user, all that execve will ask again: where
// it does not answer, this thread waits. In a child that has not become its
// program yet, the whole Go runtime would wait with it: the child borrows the
// memory of a thread that no garbage collection can interrupt.
func (l *launch) look() error {
	giveBack, err := l.Credential.borrow()
	if err != nil {
		return err
	}
	defer giveBack()
	if err := l.enter(); err != nil {
		return err
	}
	if k := l.Kept; k != nil {
		info, _ := k.file.Stat()
		l.found = []candidate{{path: k.path, file: k.path, info: info}}
	} else {
		l.found = search(l.Command[0], l.Dir, l.env)
	}
	for i := range l.found {
		c := &l.found[i]
		c.unfit = intercept.CheckProgram(l.readable(c.file), l.Traps != nil && intercept.NeedsNoNewPrivs())
	}
	return nil
}

// enter sets Dir and the variables that follow from the user and from it.
func (l *launch) enter() error {
	env := slices.Clone(l.Env)
	if c := l.Credential; c != nil && c.User != "" {
		env = append(env, "HOME="+c.Home, "USER="+c.User, "LOGNAME="+c.User)
	}
	if l.Dir != "" {
		// A directory can be entered where its "." can be looked up.
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
	l.env = (&exec.Cmd{Env: append([]string{}, env...)}).Environ() // without the values that do not count
	return nil
}

// without copies env.
func without(env []string, name string) []string {
	return slices.DeleteFunc(slices.Clone(env), func(kv string) bool { return strings.HasPrefix(kv, name+"=") })
}

// readable is the name by which this process finds the file of a candidate.
func (l *launch) readable(file string) string {
	if l.Kept == nil {
		return file
	}
	return descriptorPath(int(l.Kept.file.Fd()))
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
	if null, err = dupAbove(low, above); err != nil {
		closeAll(l.kept)
		return -1, err
	}
	l.files = append([]int{null, syscall.Stdout, syscall.Stderr}, l.Sockets...)
	return null, nil
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

// run tries what was found. The first refusal other than "not there" is what
// the caller hears, if nothing runs.
func (l *launch) run() (*Started, error) {
	failed := notThere(l.Command[0])
	for _, c := range l.found {
		if unfit := c.refusedByFilter(); unfit != nil && l.Traps != nil {
			return nil, unfit
		}
		started, err := l.become(c)
		var refused *StartError
		switch {
		case err == nil:
			started.Path = c.file
			return started, nil
		case !errors.As(err, &refused) || refused.Step != stepExecute:
			return nil, err
		case refused.Err == syscall.ENOTDIR || refused.Err == syscall.ENOENT && c.gone():
		case failed.isNotThere():
			failed = c.refused(refused.Err)
		}
	}
	return nil, failed
}

func (l *launch) become(c candidate) (*Started, error) {
	path := c.path
	if l.Kept != nil {
		path = descriptorPath(l.kept)
	}
	if l.shim != nil {
		return l.throughShim(path)
	}
	return l.fork(path, l.Command, l.Dir, l.env, l.files, l.Credential.toAssume())
}

// fork returns what stopped the child on its way as a refusal of execve: all
// other steps have been tried before.
func (l *launch) fork(path string, argv []string, dir string, env []string, files []int, c *Credential) (*Started, error) {
	pidFD := notForked
	attr := &syscall.ProcAttr{Dir: dir, Env: env, Sys: attributes(&pidFD)}
	if c != nil {
		attr.Sys.Credential = c.kernel()
	}
	for _, fd := range files {
		attr.Files = append(attr.Files, uintptr(fd))
	}
	SealDescriptors()
	pid, err := syscall.ForkExec(path, argv, attr)
	switch {
	case err == nil:
		return &Started{PID: pid, PidFD: pidFD}, nil
	case pidFD == notForked:
		return nil, fmt.Errorf("cannot start %s: %w", l.Command[0], os.NewSyscallError("fork", err))
	}
	return nil, &StartError{Step: stepExecute, What: path, Err: errnoOf(err)}
}

// throughShim starts the shim and waits until it has become the program at
// path. One that was killed on its way has a status that tells.
func (l *launch) throughShim(path string) (*Started, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("cannot start %s: %w", l.Command[0], err)
	}
	defer r.Close()
	defer w.Close()
	files := append(slices.Clone(l.files), int(w.Fd()))
	if l.kept >= 0 {
		files = append(files, l.kept)
	}
	text, err := json.Marshal(l.shim)
	if err != nil {
		return nil, err
	}
	env := append(without(l.env, shimVariable), shimVariable+"="+string(text))
	started, err := l.fork(ownExecutable(), append([]string{shimName, path}, l.Command...), "", env, files, nil)
	var own *StartError
	if errors.As(err, &own) {
		return nil, fmt.Errorf("cannot start %s: %w", l.Command[0], err) // it is moult's binary that fails here
	}
	if err != nil {
		return nil, err
	}
	w.Close()
	failed := &StartError{}
	if json.NewDecoder(r).Decode(failed) != nil {
		return started, nil
	}
	closeAll(started.PidFD)
	for err = syscall.EINTR; err == syscall.EINTR; {
		_, err = syscall.Wait4(started.PID, nil, 0, nil)
	}
	return nil, failed
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
