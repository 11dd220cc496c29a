package fdpass

import (
	"math"
	"os"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// kernelSigaction is struct sigaction as rt_sigaction(2) takes it.
type kernelSigaction struct {
	handler  uintptr
	flags    uintptr
	restorer uintptr
	mask     uint64
}

// resetSignals gives the worker the state that programs expect: nothing
// blocked, nothing ignored. Handlers need no help, execve resets them; what is
// ignored stays ignored across execve, and a shell's background job begins
// with SIGINT ignored. Under nohup SIGHUP is ignored on purpose.
func resetSignals(keepHUP bool) {
	const sigIgn, signals, setSize = 1, 64, 8
	for sig := uintptr(1); sig <= signals; sig++ {
		if keepHUP && sig == uintptr(unix.SIGHUP) {
			continue
		}
		var now, deflt kernelSigaction
		_, _, e := unix.RawSyscall6(unix.SYS_RT_SIGACTION, sig, 0, uintptr(unsafe.Pointer(&now)), setSize, 0, 0)
		if e == 0 && now.handler == sigIgn {
			unix.RawSyscall6(unix.SYS_RT_SIGACTION, sig, uintptr(unsafe.Pointer(&deflt)), 0, setSize, 0, 0)
		}
	}
	var none unix.Sigset_t
	_ = unix.PthreadSigmask(unix.SIG_SETMASK, &none, nil)
}

// closeFrom marks the descriptors from first on close-on-exec: the status pipe,
// and what the master's starter left open in it, which no worker was meant to
// get.
func closeFrom(first int) {
	err := unix.CloseRange(uint(first), math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC)
	if err == nil {
		return
	}
	unix.CloseOnExec(first) // before Linux 5.11
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd > first {
			unix.CloseOnExec(fd)
		}
	}
}

func makeDumpable() { _ = unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0) }
