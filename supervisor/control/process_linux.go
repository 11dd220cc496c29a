package control

import "golang.org/x/sys/unix"

// process is a hold on one by its pidfd, so that a pid which is given out
// again is not taken for it.
type process struct{ pidfd int }

// watchProcess takes hold of a process; of none that can be seen if the pid is
// 0. Close it in the end.
func watchProcess(pid int) process {
	if pid <= 0 {
		return process{-1}
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return process{-1}
	}
	return process{fd}
}

func (p process) known() bool { return p.pidfd >= 0 }

// lives tells whether it is known and has not ended.
func (p process) lives() bool {
	if !p.known() {
		return false
	}
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(p.pidfd), Events: unix.POLLIN}}, 0)
	return err != nil || n == 0
}

func (p process) close() {
	if p.known() {
		unix.Close(p.pidfd)
	}
}
