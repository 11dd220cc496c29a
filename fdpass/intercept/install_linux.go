package intercept

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Install puts the filter on the calling thread, which has to be locked, and
// on everything that it forks or becomes. It cannot be taken off again. The
// descriptor, close-on-exec and the caller's, is for Listen; once all its
// copies are closed, the calls that it stops answer ENOSYS.
//
// noNewPrivs tells that the thread had to give up setuid programs and file
// capabilities for it, because it has no CAP_SYS_ADMIN (prctl(2),
// PR_SET_NO_NEW_PRIVS). That holds even if an error is returned. The error is
// an *Unsupported where the kernel told why.
func Install(t Traps) (fd int, noNewPrivs bool, err error) {
	program, err := t.program()
	if err != nil {
		return -1, false, err
	}
	fd, err = setFilter(program)
	if errors.Is(err, unix.EACCES) {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return -1, false, fmt.Errorf("cannot give up privileges: %w", err)
		}
		noNewPrivs = true
		fd, err = setFilter(program)
	}
	if err != nil {
		return -1, noNewPrivs, explain(err)
	}
	return fd, noNewPrivs, nil
}

// setFilter leaves out, one by one, what an older kernel does not know.
func setFilter(program []bpf.RawInstruction) (int, error) {
	const (
		listener = unix.SECCOMP_FILTER_FLAG_NEW_LISTENER

		unshaken   = unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV // no signal but a deadly one ends the wait
		speculates = unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW         // as fast as without a filter
	)
	var err error
	for _, flags := range []uintptr{listener | unshaken | speculates, listener | speculates, listener} {
		var fd int
		if fd, err = seccompFilter(flags, program); !errors.Is(err, unix.EINVAL) {
			return fd, err
		}
	}
	return -1, err
}

func seccompFilter(flags uintptr, program []bpf.RawInstruction) (int, error) {
	filter := make([]unix.SockFilter, len(program))
	for i, in := range program {
		filter[i] = unix.SockFilter{Code: in.Op, Jt: in.Jt, Jf: in.Jf, K: in.K}
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	fd, _, errno := unix.RawSyscall(unix.SYS_SECCOMP,
		unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&prog)))
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}

func explain(err error) error {
	reasons := map[error]string{
		unix.ENOSYS: "this kernel or container has no seccomp(2)",
		unix.EINVAL: "this kernel is too old, or has no seccomp filters: interception needs Linux 5.9",
		unix.EPERM:  "the container's seccomp profile forbids seccomp(2)",
		unix.EACCES: "the system's security policy forbids seccomp filters",
		unix.EBUSY:  "a listener filter is installed already: this runs under another moult, or under a container runtime that intercepts",
	}
	for errno, reason := range reasons {
		if errors.Is(err, errno) {
			return &Unsupported{Reason: reason, Err: err}
		}
	}
	return fmt.Errorf("cannot install a seccomp filter: %w", err)
}
