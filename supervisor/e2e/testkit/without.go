//go:build linux

package testkit

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

const withoutPrefix = "without:"

// Without is a command that executes the rest of its arguments, which find one
// system call refused, as do all that they start.
func Without(call string, errno syscall.Errno) []string {
	return []string{Executable(), fmt.Sprintf("%s%s=%s", withoutPrefix, call, unix.ErrnoName(errno))}
}

func executeWithout(what string, command []string) {
	call, errno, _ := strings.Cut(what, "=")
	refuseCall(call, errno)
	Fail("%v", syscall.Exec(command[0], command, os.Environ()))
}

// refuseCall installs a filter on this thread, which is the one that executes.
func refuseCall(call, errno string) {
	numbers := map[string]uint32{"pidfd_getfd": unix.SYS_PIDFD_GETFD, "seccomp": unix.SYS_SECCOMP}
	errnos := map[string]syscall.Errno{"EPERM": unix.EPERM, "ENOSYS": unix.ENOSYS}
	program, err := bpf.Assemble([]bpf.Instruction{
		bpf.LoadAbsolute{Off: 0, Size: 4}, // the number, in struct seccomp_data of linux/seccomp.h
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: numbers[call], SkipFalse: 1},
		bpf.RetConstant{Val: unix.SECCOMP_RET_ERRNO | uint32(errnos[errno])},
		bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW},
	})
	if err != nil || numbers[call] == 0 || errnos[errno] == 0 {
		Fail("cannot refuse %s with %s: %v", call, errno, err)
	}
	runtime.LockOSThread()
	if os.Geteuid() != 0 {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			Fail("no_new_privs: %v", err)
		}
	}
	filter := make([]unix.SockFilter, len(program))
	for i, in := range program {
		filter[i] = unix.SockFilter{Code: in.Op, Jt: in.Jt, Jf: in.Jf, K: in.K}
	}
	whole := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	_, _, failed := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&whole)))
	runtime.KeepAlive(filter)
	if failed != 0 {
		Fail("seccomp: %v", failed)
	}
}

// NoDuplicates is how moult starts where nobody may have a duplicate of another
// process's descriptor, as profiles of containers have it.
func NoDuplicates() Launch { return Launch{Wrap: Without("pidfd_getfd", unix.EPERM)} }

// Ordinary starts what follows as a user without privileges; whoever is one
// needs no help.
func Ordinary(t testing.TB) []string {
	if os.Geteuid() != 0 {
		return nil
	}
	return []string{RequireProgram(t, "setpriv"), "--reuid=65534", "--regid=65534", "--clear-groups", "--"}
}

// Tracerless starts what follows as root without CAP_SYS_PTRACE, as containers
// do.
func Tracerless(t testing.TB) []string {
	RequireRoot(t, "keep the other capabilities")
	return []string{RequireProgram(t, "setpriv"), "--bounding-set=-sys_ptrace", "--"}
}
