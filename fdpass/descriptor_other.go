//go:build unix && !linux

package fdpass

import (
	"os"
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

// deviceOf knows no interface that a socket is tied to.
func deviceOf(int) int { return 0 }

// permit follows no symbolic link.
func permit(path string, a Address) error {
	if a.HasMode {
		if err := unix.Fchmodat(unix.AT_FDCWD, path, uint32(a.Mode.Perm()), unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return &os.PathError{Op: "chmod", Path: path, Err: err}
		}
	}
	if a.UID < 0 && a.GID < 0 {
		return nil
	}
	return os.Lchown(path, a.UID, a.GID)
}
