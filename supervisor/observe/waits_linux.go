//go:build amd64 || arm64 || riscv64 || loong64

package observe

import (
	"maps"

	"golang.org/x/sys/unix"
)

// waits tells, by number, the system calls in which a thread sleeps until a
// connection or a datagram comes. epoll_wait is not among them: what an epoll
// instance watches stands in its fdinfo, whether or not anybody sleeps in it.
var waits = func() map[int]wait {
	m := map[int]wait{
		unix.SYS_ACCEPT:          waitsOnFirst,
		unix.SYS_ACCEPT4:         waitsOnFirst,
		unix.SYS_RECVFROM:        waitsOnFirst,
		unix.SYS_RECVMSG:         waitsOnFirst,
		unix.SYS_RECVMMSG:        waitsOnFirst,
		unix.SYS_READ:            waitsOnFirst,
		unix.SYS_READV:           waitsOnFirst,
		unix.SYS_PPOLL:           waitsInPoll,
		unix.SYS_PSELECT6:        waitsInSelect,
		unix.SYS_RESTART_SYSCALL: restarted,
	}
	maps.Copy(m, olderWaits)
	return m
}()
