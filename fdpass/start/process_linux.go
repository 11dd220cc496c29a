package start

import (
	"math"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// onThrowAwayThread runs f on a thread that ends with it, and its filter too,
// and returns when f has. The runtime makes no other thread out of a locked
// one. The first thread cannot end before the process does: where the scheduler
// has chosen it, it is kept busy until f has found another.
func onThrowAwayThread(f func()) {
	done := make(chan struct{})
	go func() {
		runtime.LockOSThread() // and never unlocked
		if unix.Gettid() != os.Getpid() {
			defer close(done)
			f()
			return
		}
		onThrowAwayThread(f)
		runtime.UnlockOSThread()
		close(done)
	}()
	<-done
}

// borrow takes on the user's eyes for the file system and none of its other
// attributes: whoever may send signals to that user must not be able to send
// them to the master (setfsuid(2)).
func (c *Credential) borrow() error { return c.change(unix.Setgroups, borrowGID, borrowUID) }

// giveBack ends it, the groups excepted: the thread has no more use for them.
func giveBack() {
	_ = unix.Setfsuid(os.Geteuid())
	_ = unix.Setfsgid(os.Getegid())
}

func borrowGID(gid int) error {
	_ = unix.Setfsgid(gid)
	now, _ := unix.SetfsgidRetGid(-1)
	return borrowed(now == gid)
}

func borrowUID(uid int) error {
	_ = unix.Setfsuid(uid)
	now, _ := unix.SetfsuidRetUid(-1)
	return borrowed(now == uid)
}

// borrowed finds the reason, which these calls do not give: root fails only
// with what its user namespace does not have.
func borrowed(ok bool) error {
	switch {
	case ok:
		return nil
	case os.Geteuid() == 0:
		return unix.EINVAL
	}
	return unix.EPERM
}

var unshare = unix.Unshare // a test forbids it

// prepareThread gives the thread what its child inherits. separate is false
// where the mask could not be set for it alone: containers forbid unshare(2).
func prepareThread(umask *int) (separate bool) {
	var none unix.Sigset_t
	_ = unix.PthreadSigmask(unix.SIG_SETMASK, &none, nil)
	if umask == nil {
		return true
	}
	if unshare(unix.CLONE_FS) != nil {
		return false
	}
	unix.Umask(*umask)
	return true
}

func askForPidFD(sys *syscall.SysProcAttr, fd *int) { sys.PidFD = fd }

func dupAbove(fd, least int) (int, error) {
	n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, least)
	return n, os.NewSyscallError("fcntl", err)
}

// sealAll needs Linux 5.11.
func sealAll() error {
	return unix.CloseRange(firstSocket, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC)
}

// openPath opens a file for its place only: no right to read it is needed.
func openPath(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// kernelSigaction is struct sigaction as rt_sigaction(2) takes it.
type kernelSigaction struct {
	handler  uintptr
	flags    uintptr
	restorer uintptr
	mask     uint64
}

// resetSignals goes past the runtime, which leaves five signals as it found
// them and changes back what it had to change.
func resetSignals() {
	const sigIgn, signals, setSize = 1, 64, 8
	for sig := uintptr(1); sig <= signals; sig++ {
		var now, deflt kernelSigaction
		_, _, e := unix.RawSyscall6(unix.SYS_RT_SIGACTION, sig, 0, uintptr(unsafe.Pointer(&now)), setSize, 0, 0)
		if e == 0 && now.handler == sigIgn && sig != uintptr(unix.SIGHUP) {
			unix.RawSyscall6(unix.SYS_RT_SIGACTION, sig, uintptr(unsafe.Pointer(&deflt)), 0, setSize, 0, 0)
		}
	}
}
