//go:build !linux

package supervisor

import (
	"sync"
	"syscall"
)

// becomeSubreaper: orphans go to init where there is no such thing.
func becomeSubreaper() error { return nil }

// endedStatus keeps what nextEnded has already taken from the kernel: without
// WNOWAIT looking is reaping.
var endedStatus sync.Map

func nextEnded() (int, bool) {
	var status syscall.WaitStatus
	for {
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return 0, false
		}
		endedStatus.Store(pid, status)
		return pid, true
	}
}

func reap(pid int) syscall.WaitStatus {
	status, _ := endedStatus.LoadAndDelete(pid)
	s, _ := status.(syscall.WaitStatus)
	return s
}

// leftovers knows the process group alone.
func leftovers(w *worker) []int {
	if syscall.Kill(-w.pid, 0) == nil {
		return []int{-w.pid}
	}
	return nil
}
