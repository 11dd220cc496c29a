//go:build unix && !linux

package fdpass

import (
	"syscall"

	"golang.org/x/sys/unix"
)

func newSocket(family, kind, proto int) (int, error) {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	fd, err := syscall.Socket(family, kind, proto)
	if err == nil {
		syscall.CloseOnExec(fd)
	}
	return fd, err
}

func dupCloexec(fd int) (int, error) {
	return unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
}

func enableReusePort(fd int) error {
	return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
}

// isListening errs on the side of "yes": listen(2) is not called a second time
// on what came from outside.
func isListening(fd int) bool {
	n, err := syscall.GetsockoptInt(fd, syscall.SOL_SOCKET, unix.SO_ACCEPTCONN)
	return err != nil || n != 0
}
