package fdpass

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
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
