package start

import (
	"os"
	"strconv"
	"syscall"
)

// SealDescriptors keeps from this process's children what it was started with:
// the pipe of a shell, a lock, sockets that were meant for it alone. Start does
// it each time; a process that starts others by itself calls it first.
func SealDescriptors() {
	if sealAll() == nil {
		return
	}
	entries, err := os.ReadDir("/dev/fd")
	if err != nil {
		return
	}
	for _, e := range entries {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd >= firstSocket {
			syscall.CloseOnExec(fd)
		}
	}
}

// ResetSignals gives the children of this process the state that programs
// expect: nothing ignored, though whoever started this process ignored it. A
// handler needs no help, execve resets it, but what is ignored stays ignored,
// and a shell's background job begins with SIGINT so. SIGHUP is left alone:
// under nohup it is ignored on purpose. Call it once, after the signals that
// this process handles have been asked for.
func ResetSignals() { resetSignals() }
