package intercept

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Listener receives the calls of one program and its descendants. Next is for
// one goroutine, everything else for any.
type Listener struct {
	file   *os.File
	raw    syscall.RawConn
	closed atomic.Bool
}

// Listen takes f over, the descriptor that Install has returned, even if it
// fails.
func Listen(f *os.File) (*Listener, error) {
	defer f.Close()
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("cannot listen to a filter: %w", err)
	}
	fd, failed := -1, error(nil)
	err = raw.Control(func(old uintptr) { fd, failed = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0) })
	if err = errors.Join(err, failed); err != nil {
		return nil, fmt.Errorf("cannot listen to a filter: %w", err)
	}
	return listenOn(fd)
}

// listenOn gives fd to the runtime's poller, which only takes one that does
// not block.
func listenOn(fd int) (*Listener, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("cannot listen to a filter: %w", err)
	}
	l := &Listener{file: os.NewFile(uintptr(fd), "seccomp notify")}
	var err error
	l.raw, err = l.file.SyscallConn()
	return l, err
}

// Close lets Next return. Whoever waits for an answer, and every later call,
// gets ENOSYS, unless another copy of the descriptor is open.
func (l *Listener) Close() error {
	l.closed.Store(true)
	return l.file.Close()
}

// Next waits for a call. It returns io.EOF when no process with the filter is
// left, and os.ErrClosed after Close. Each call that it returns needs an Answer
// or Proceed. Calls that cannot succeed, because an argument points nowhere or
// has an impossible length, are given back to the kernel at once and not
// returned.
func (l *Listener) Next() (*Call, error) {
	for {
		n, err := l.receive()
		if err != nil {
			return nil, err
		}
		c := l.call(n)
		switch err := c.read(n); {
		case !c.Alive(): // whatever was read may be of another process
			continue
		case errors.Is(err, errPasses):
			if err := c.Proceed(); err != nil && !errors.Is(err, ErrGone) {
				return nil, err
			}
			continue
		case err != nil:
			c.Err = err
		}
		return c, nil
	}
}

// receive waits for a notification in the runtime's poller.
func (l *Listener) receive() (notification, error) {
	var n notification
	var failed error
	err := l.raw.Read(func(fd uintptr) bool {
		var done bool
		done, failed = tryReceive(int(fd), &n)
		return done
	})
	switch {
	case l.closed.Load():
		return notification{}, os.ErrClosed
	case err != nil:
		return notification{}, fmt.Errorf("cannot wait for a call: %w", err)
	}
	return n, failed
}

// tryReceive returns false where there is nothing yet. The ioctl itself would
// wait, on a descriptor that does not block as well. It does not after POLLIN,
// even if the caller is gone in the meantime: that it called is still counted,
// and the ioctl finds ENOENT.
func tryReceive(fd int, n *notification) (done bool, err error) {
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		switch _, err := unix.Poll(poll, 0); {
		case err == unix.EINTR:
			continue
		case err != nil:
			return true, os.NewSyscallError("poll", err)
		case poll[0].Revents&unix.POLLIN == 0:
			return poll[0].Revents != 0, io.EOF
		}
		*n = notification{} // the kernel refuses any other
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SECCOMP_IOCTL_NOTIF_RECV, uintptr(unsafe.Pointer(n)))
		switch errno {
		case 0:
			return true, nil
		case unix.ENOENT, unix.EINTR:
		default:
			return true, os.NewSyscallError("ioctl SECCOMP_IOCTL_NOTIF_RECV", errno)
		}
	}
}
