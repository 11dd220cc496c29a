package start

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/moult/moult/fdpass/intercept"
)

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
	case e.isNotThere():
		return 127
	}
	return 126
}

func notThere(command string) *StartError {
	return &StartError{Step: stepExecute, What: command, Err: syscall.ENOENT}
}

func (e *StartError) isNotThere() bool {
	return e.Step == stepExecute && e.Err == syscall.ENOENT && e.Note == ""
}

func errnoOf(err error) syscall.Errno {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return syscall.EINVAL
}

// candidate is a file that a command may mean.
type candidate struct {
	path  string      // for execve, in the worker's directory
	file  string      // the same seen from the master's
	info  fs.FileInfo // nil if it cannot be seen
	unfit error       // why it does not go together with interception
}

// Look finds the file that command means in dir and under env, as the caller
// sees it, without running anything. The error is a *StartError. Empty dir: the
// caller's own.
func Look(command, dir string, env []string) (string, error) {
	failed := notThere(command)
	for _, c := range search(command, dir, env) {
		if c.info != nil && c.info.Mode().IsRegular() && c.info.Mode()&0o111 != 0 {
			return c.file, nil
		}
		if failed.isNotThere() {
			failed = c.refused(syscall.EACCES)
		}
	}
	return "", failed
}

// CheckIntercepted tells beforehand why the executable at path could not run
// under interception, or nil; it does not look path up in PATH.
func CheckIntercepted(path string) error {
	c := candidate{path: path, unfit: intercept.CheckProgram(path, intercept.NeedsNoNewPrivs())}
	if e := c.refusedByFilter(); e != nil {
		return e
	}
	return nil
}

// search is the one look into PATH. It leaves out what is certainly not there,
// so that a long PATH does not cost a fork for each of its directories, and a
// directory of PATH that the user may not enter (root's, after --user). What
// remains is for execve to judge.
func search(command, dir string, env []string) []candidate {
	var found []candidate
	searched := !strings.Contains(command, "/")
	for _, path := range paths(command, env) {
		c := candidate{path: path, file: path}
		if dir != "" && !filepath.IsAbs(path) {
			c.file = dir + "/" + path
		}
		var err error
		c.info, err = os.Stat(c.file)
		switch errnoOf(err) {
		case syscall.ENOENT, syscall.ENOTDIR:
			continue
		case syscall.EACCES:
			if searched {
				continue
			}
		}
		found = append(found, c)
	}
	return found
}

func paths(command string, env []string) []string {
	if strings.Contains(command, "/") {
		return []string{command}
	}
	if command == "" {
		return nil
	}
	list := "/bin:/usr/bin" // as execvp(3), which leaves the directory out
	for _, kv := range env {
		if value, ok := strings.CutPrefix(kv, "PATH="); ok {
			list = value
		}
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

// refused says what execve's answer means.
func (c candidate) refused(errno syscall.Errno) *StartError {
	e := &StartError{Step: stepExecute, What: c.path, Err: errno}
	switch {
	case c.info != nil && c.info.IsDir():
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

// refusedByFilter is nil for what goes together with interception.
func (c candidate) refusedByFilter() *StartError {
	var reason *intercept.Unsupported
	if !errors.As(c.unfit, &reason) {
		return nil
	}
	e := &StartError{Step: stepExecute, What: c.path, Err: syscall.EOPNOTSUPP, Note: reason.Reason + "; use --listen"}
	if reason.Err != nil {
		e.Err, e.Note = errnoOf(reason.Err), reason.Reason+": run moult as root or use --listen"
	}
	return e
}
