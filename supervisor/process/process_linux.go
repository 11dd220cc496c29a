package process

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/moult/moult/supervisor/observe"
)

// BecomeSubreaper makes this process the parent of whatever its workers orphan,
// so that a generation that daemonizes is still ended with its tree.
func BecomeSubreaper() error {
	return unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
}

// Ended looks for a child that has ended, pid if that is not 0, and leaves it a
// zombie: it keeps its pid, and its process group keeps its number, until the
// caller is done with both.
func Ended(pid int) (ended int, status Status, ok bool) {
	kind := unix.P_ALL
	if pid != 0 {
		kind = unix.P_PID
	}
	var info unix.Siginfo
	for {
		info = unix.Siginfo{}
		err := unix.Waitid(kind, pid, &info, unix.WEXITED|unix.WNOWAIT|unix.WNOHANG, nil)
		if err == unix.EINTR {
			continue
		}
		ended, status = readSiginfo(&info)
		return ended, status, err == nil && ended != 0
	}
}

// readSiginfo reads si_code, si_pid and si_status: the union with the latter two
// comes behind three ints, aligned to the size of a pointer (siginfo_t,
// asm-generic/siginfo.h).
func readSiginfo(info *unix.Siginfo) (pid int, status Status) {
	const code, threeInts, statusBehindPID = 8, 12, 8
	const exited, dumped = 1, 3 // CLD_EXITED, CLD_DUMPED
	word := unsafe.Sizeof(uintptr(0))
	union := (threeInts + word - 1) / word * word
	raw := (*[unsafe.Sizeof(*info)]byte)(unsafe.Pointer(info))
	number := func(offset uintptr) int { return int(int32(binary.NativeEndian.Uint32(raw[offset:]))) }
	value := number(union + statusBehindPID)
	if number(code) == exited {
		return number(union), Status{Code: value}
	}
	return number(union), Status{Signal: syscall.Signal(value), Core: number(code) == dumped}
}

// signalChild needs no pidfd to be safe: nobody but us reaps the process.
func signalChild(pid, pidfd int, sig syscall.Signal) error {
	if pidfd < 0 {
		return syscall.Kill(pid, sig)
	}
	err := unix.PidfdSendSignal(pidfd, sig, nil, 0)
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) {
		return syscall.Kill(pid, sig) // a container's seccomp profile
	}
	return err
}

// signalStranger signals a process that others may reap: the pidfd holds on to
// it while its start time shows that it is the one that was meant.
func signalStranger(pid int, began uint64, sig syscall.Signal) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err == nil {
		defer unix.Close(fd)
	}
	proc, unread := observe.ReadProc(pid)
	if unread != nil || proc.StartTime != began || errors.Is(err, unix.ESRCH) {
		return syscall.ESRCH
	}
	if err != nil {
		return syscall.Kill(pid, sig)
	}
	return signalChild(pid, fd, sig)
}

// MarkOf looks into the environment that a process was started with. It may be
// unreadable (another uid) or overwritten (a process title): then it has none.
func MarkOf(pid int) string {
	env, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/environ")
	if err != nil {
		return ""
	}
	for kv := range bytes.SplitSeq(env, []byte{0}) {
		if mark, ok := bytes.CutPrefix(kv, []byte(MarkVariable+"=")); ok {
			return string(mark)
		}
	}
	return ""
}

// isBeingStarted tells that a child has not executed its program yet: it is a
// copy of this process, with all its sockets, and nobody's orphan.
func isBeingStarted(pid int) bool {
	own, err := os.ReadFile("/proc/self/environ")
	if err != nil {
		return false
	}
	env, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/environ")
	if err != nil || !bytes.Equal(own, env) {
		return false
	}
	here, err := os.Stat("/proc/self/exe")
	if err != nil {
		return false
	}
	there, err := os.Stat("/proc/" + strconv.Itoa(pid) + "/exe")
	return err == nil && os.SameFile(here, there)
}

// WatchExit calls f, once, when a process has ended, whoever's child it is. stop
// ends the watch; f may run still.
func WatchExit(pid int, f func()) (stop func(), err error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, os.NewSyscallError("pidfd_open", err)
	}
	_ = unix.SetNonblock(fd, true) // PIDFD_NONBLOCK is of Linux 5.10
	file := os.NewFile(uintptr(fd), "pidfd")
	raw, err := file.SyscallConn()
	if err != nil {
		file.Close()
		return nil, err
	}
	go func() {
		// A pidfd is readable once its process has ended.
		err := raw.Read(func(fd uintptr) bool {
			poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
			n, err := unix.Poll(poll, 0)
			return err == nil && n > 0
		})
		file.Close()
		if err == nil {
			f()
		}
	}()
	return func() { file.Close() }, nil
}

func forgetEnded(int) {}

// groupAlone is for systems where processes cannot be listed.
func groupAlone(int) int { return 0 }
