package supervisor

import (
	"encoding/binary"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/moult/moult/supervisor/observe"
)

// becomeSubreaper makes this process the parent of whatever its workers
// orphan, so that a generation that daemonizes is still ended with its tree.
func becomeSubreaper() error {
	return unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
}

// nextEnded looks with WNOWAIT: the zombie keeps its pid, and its process
// group keeps its number, until the caller is done with both.
func nextEnded() (int, bool) {
	var info unix.Siginfo
	for {
		err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOWAIT|unix.WNOHANG, nil)
		if err == unix.EINTR {
			continue
		}
		pid := siginfoPID(&info)
		return pid, err == nil && pid != 0
	}
}

// reap takes one zombie away. Only the goroutine that owns the state calls it,
// and nothing else in the process waits for children: a second waiter would
// steal statuses.
func reap(pid int) syscall.WaitStatus {
	var status syscall.WaitStatus
	for {
		_, err := syscall.Wait4(pid, &status, 0, nil)
		if err != syscall.EINTR {
			return status
		}
	}
}

// siginfoPID reads si_pid: the first field of the union behind three ints,
// aligned to the size of a pointer (siginfo_t, asm-generic/siginfo.h).
func siginfoPID(info *unix.Siginfo) int {
	const threeInts = 12
	word := unsafe.Sizeof(uintptr(0))
	offset := (threeInts + word - 1) / word * word
	raw := (*[unsafe.Sizeof(*info)]byte)(unsafe.Pointer(info))
	return int(int32(binary.NativeEndian.Uint32(raw[offset:])))
}

// leftovers finds what a worker's main process has left behind: its process
// group and session, and what was orphaned onto us that bears its mark or
// holds one of its sockets.
func leftovers(w *worker) []int {
	all, err := observe.Processes()
	if err != nil {
		return groupAlone(w.pid)
	}
	// The number of the group is free for others once it is empty.
	other := w.master.byPID(w.pid)
	group := other == nil || other == w
	var left []int
	for _, p := range all {
		if p.PID == w.pid || !p.Alive() {
			continue
		}
		if group && (p.PGID == w.pid || p.SID == w.pid) || p.PPID == w.master.pid && w.owns(p.PID) {
			left = append(left, p.PID)
		}
	}
	return left
}

func groupAlone(pgid int) []int {
	if syscall.Kill(-pgid, 0) == nil {
		return []int{-pgid}
	}
	return nil
}
