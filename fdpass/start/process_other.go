//go:build unix && !linux

package start

import (
	"errors"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// onThrowAwayThread: threads have nothing of their own here.
func onThrowAwayThread(f func()) { f() }

// borrow only finds out who may change: commands are looked up as the master.
func (c *Credential) borrow() error {
	if c == nil || os.Geteuid() == 0 {
		return nil
	}
	return c.change(func([]int) error { return syscall.EPERM }, nil, nil)
}

func giveBack() {}

// prepareThread leaves the mask to the shim.
func prepareThread(umask *int) (separate bool) { return umask == nil }

// askForPidFD: every failure counts as one of execve, there being no pidfd that
// would tell.
func askForPidFD(_ *syscall.SysProcAttr, fd *int) { *fd = -1 }

func dupAbove(fd, least int) (int, error) {
	n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, least)
	return n, os.NewSyscallError("fcntl", err)
}

func sealAll() error { return errors.ErrUnsupported }

// openPath: a running program cannot be held open here.
func openPath(string) (*os.File, error) { return nil, errors.ErrUnsupported }

// resetSignals goes as far as the Go runtime can: a signal that is asked for
// gets a handler, and execve resets handlers.
func resetSignals() {
	ignored := make(chan os.Signal, 1)
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTSTP, syscall.SIGCONT} {
		if signal.Ignored(sig) {
			signal.Notify(ignored, sig)
		}
	}
}
