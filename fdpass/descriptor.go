package fdpass

import (
	"fmt"
	"os"
	"syscall"
)

// closeDescriptor drops the error: close(2) on a socket reports nothing that
// the caller could mend, and the descriptor is gone either way.
func closeDescriptor(fd int) { _ = syscall.Close(fd) }

func inodeOf(fd int) (uint64, error) {
	var st syscall.Stat_t
	if err := syscall.Fstat(fd, &st); err != nil {
		return 0, fmt.Errorf("cannot look at descriptor %d: %w", fd, os.NewSyscallError("fstat", err))
	}
	return uint64(st.Ino), nil
}

func listenAgain(fd, backlog int) error {
	return os.NewSyscallError("listen", syscall.Listen(fd, backlog))
}
