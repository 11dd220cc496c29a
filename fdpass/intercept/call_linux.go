package intercept

import (
	"errors"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Alive tells whether the thread still waits for the answer. What was read of
// it from /proc before a true answer was its own, not that of a later thread
// with the same id.
func (c *Call) Alive() bool {
	id := c.id
	return c.listener.control(unix.SECCOMP_IOCTL_NOTIF_ID_VALID, unsafe.Pointer(&id)) == nil
}

// Answer ends the call without the kernel's having done it: with success, 0,
// or with an error. It returns ErrGone if nobody waits for it any more.
func (c *Call) Answer(errno syscall.Errno) error {
	return c.respond(response{errno: -int32(errno)})
}

// Proceed lets the kernel do the call, with the arguments as they are by now.
// It returns ErrGone if nobody waits for it any more.
func (c *Call) Proceed() error {
	return c.respond(response{flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE})
}

func (c *Call) respond(r response) error {
	r.id = c.id
	return c.listener.control(unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(&r))
}

// Replace puts a duplicate of fd in place of the program's descriptor FD, as
// dup3(2) does; fd stays the caller's. The call still needs its answer.
func (c *Call) Replace(fd int, cloexec bool) error {
	a := addition{id: c.id, flags: unix.SECCOMP_ADDFD_FLAG_SETFD, from: uint32(fd), to: uint32(c.FD)}
	if cloexec {
		a.toFlags = unix.O_CLOEXEC
	}
	return c.listener.control(unix.SECCOMP_IOCTL_NOTIF_ADDFD, unsafe.Pointer(&a))
}

// Duplicate is a descriptor of ours for what the program has at FD: the same
// socket, with which everything can be done that the program can. It is
// close-on-exec, and the caller closes it. Refusals of the kernel, EPERM above
// all, and EBADF are returned as they are; ErrGone means that the program is
// gone.
func (c *Call) Duplicate() (fd int, err error) {
	pidfd, err := c.open()
	if err != nil {
		return -1, c.orGone(err)
	}
	defer unix.Close(pidfd)
	fd, err = unix.PidfdGetfd(pidfd, c.FD, 0)
	if err != nil {
		return -1, c.orGone(os.NewSyscallError("pidfd_getfd", err))
	}
	if !c.Alive() {
		unix.Close(fd)
		return -1, ErrGone
	}
	return fd, nil
}

// open takes hold of the thread; before Linux 6.9 of its leader, which has the
// same descriptors unless somebody took pains.
func (c *Call) open() (int, error) {
	const pidfdThread = unix.O_EXCL // PIDFD_THREAD of linux/pidfd.h
	fd, err := unix.PidfdOpen(c.TID, pidfdThread)
	if errors.Is(err, unix.EINVAL) {
		fd, err = unix.PidfdOpen(c.PID, 0)
	}
	return fd, os.NewSyscallError("pidfd_open", err)
}
