package fdpass

import (
	"os"
	"syscall"
)

// closeDescriptor drops the error: close(2) on a socket reports nothing that
// the caller could mend, and the descriptor is gone either way.
func closeDescriptor(fd int) { _ = syscall.Close(fd) }

func listenAgain(fd, backlog int) error {
	return os.NewSyscallError("listen", syscall.Listen(fd, backlog))
}
