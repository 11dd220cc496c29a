package fdpass

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// newSocket makes a blocking socket that no child inherits by accident.
func newSocket(family, kind, proto int) (int, error) {
	return unix.Socket(family, kind|unix.SOCK_CLOEXEC, proto)
}

func dupCloexec(fd int) (int, error) {
	return unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
}

func enableReusePort(fd int) error {
	return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
}

func isListening(fd int) bool {
	n, err := syscall.GetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_ACCEPTCONN)
	return err == nil && n == 1
}
