package supervisor

import (
	"os"
	"strconv"
	"syscall"
)

// sealDescriptors keeps what this process was started with from its workers:
// the pipe of a shell, a lock, sockets that were meant for the master. A worker
// gets what it is given, and nothing else.
func sealDescriptors() {
	entries, err := os.ReadDir("/dev/fd")
	if err != nil {
		return
	}
	for _, e := range entries {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd >= firstDescriptor {
			syscall.CloseOnExec(fd)
		}
	}
}
