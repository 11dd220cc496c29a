package fdpass

import (
	"fmt"
	"os"
	"strconv"
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

// deviceOf is the index of the interface that a socket is tied to, 0 for none.
func deviceOf(fd int) int {
	device, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX)
	if err != nil {
		return 0
	}
	return device
}

// permit gives the file of a socket that was just bound its mode and owner. It
// acts on the file that it has looked at: whoever may write in the directory can
// put a symbolic link, or a file of others, in the place of the name.
func permit(path string, a Address) error {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer closeDescriptor(fd)
	var have unix.Stat_t
	if err := unix.Fstat(fd, &have); err != nil {
		return &os.PathError{Op: "stat", Path: path, Err: err}
	}
	// A name for what another program has made cannot be told by the file
	// alone; one that bind(2) has made is ours, and has no second name.
	if have.Mode&unix.S_IFMT != unix.S_IFSOCK || int(have.Uid) != unix.Geteuid() || have.Nlink != 1 {
		return fmt.Errorf("%s was replaced by another file while it was made", path)
	}
	if a.HasMode {
		if err := unix.Chmod("/proc/self/fd/"+strconv.Itoa(fd), uint32(a.Mode.Perm())); err != nil {
			return &os.PathError{Op: "chmod", Path: path, Err: err}
		}
	}
	if a.UID < 0 && a.GID < 0 {
		return nil
	}
	if err := unix.Fchownat(fd, "", a.UID, a.GID, unix.AT_EMPTY_PATH); err != nil {
		return &os.PathError{Op: "chown", Path: path, Err: err}
	}
	return nil
}
