package intercept

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// notification is struct seccomp_notif (linux/seccomp.h), with its struct
// seccomp_data.
type notification struct {
	id    uint64
	tid   uint32
	flags uint32
	nr    int32
	arch  uint32
	ip    uint64
	args  [6]uint64
}

// response is struct seccomp_notif_resp.
type response struct {
	id    uint64
	value int64
	errno int32 // negative
	flags uint32
}

// addition is struct seccomp_notif_addfd.
type addition struct {
	id      uint64
	flags   uint32
	from    uint32
	to      uint32
	toFlags uint32
}

// control does one ioctl on the notification descriptor, again if a signal
// came in between. ENOENT becomes ErrGone.
func (l *Listener) control(request uintptr, arg unsafe.Pointer) error {
	var errno unix.Errno
	err := l.raw.Control(func(fd uintptr) {
		for {
			_, _, errno = unix.Syscall(unix.SYS_IOCTL, fd, request, uintptr(arg))
			if errno != unix.EINTR {
				return
			}
		}
	})
	switch {
	case err != nil:
		return os.ErrClosed
	case errno == unix.ENOENT:
		return ErrGone
	case errno != 0:
		return errno
	}
	return nil
}
