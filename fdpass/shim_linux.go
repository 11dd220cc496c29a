package fdpass

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// kernelSigaction is struct sigaction as rt_sigaction(2) takes it.
type kernelSigaction struct {
	handler  uintptr
	flags    uint64
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
