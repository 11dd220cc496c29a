//go:build !linux

package process

import (
	"errors"
	"sync"
	"syscall"
	"time"
)

// BecomeSubreaper: orphans go to init where there is no such thing.
func BecomeSubreaper() error { return nil }

// taken keeps what Ended has already taken from the kernel: without WNOWAIT
// looking is reaping.
var taken sync.Map

// Ended looks for a child that has ended, pid if that is not 0.
func Ended(pid int) (ended int, status Status, ok bool) {
	if s, found := taken.Load(pid); found {
		return pid, s.(Status), true
	}
	if pid == 0 {
		pid = -1
	}
	var ws syscall.WaitStatus
	for {
		child, err := syscall.Wait4(pid, &ws, syscall.WNOHANG, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil || child <= 0 {
			return 0, Status{}, false
		}
		s := Status{Code: ws.ExitStatus()}
		if ws.Signaled() {
			s = Status{Signal: ws.Signal(), Core: ws.CoreDump()}
		}
		taken.Store(child, s)
		return child, s, true
	}
}

func signalChild(pid, _ int, sig syscall.Signal) error { return syscall.Kill(pid, sig) }

func signalStranger(pid int, _ uint64, sig syscall.Signal) error { return syscall.Kill(pid, sig) }

func isBeingStarted(int) bool { return false }

// MarkOf is empty where processes do not show their environment.
func MarkOf(int) string { return "" }

// WatchExit is for Linux.
func WatchExit(int, func()) (stop func(), err error) { return nil, errors.ErrUnsupported }

func forgetEnded(pid int) { taken.Delete(pid) }

// groupAlone is the process group, as kill(2) names it, if anybody is in it.
func groupAlone(pid int) int {
	if syscall.Kill(-pid, 0) == nil {
		return -pid
	}
	return 0
}

// Voice never comes to be here: sd_notify is Linux's, and its senders cannot be
// told elsewhere.
type Voice struct{}

// Word is what one datagram said.
type Word struct {
	PID, UID int
	Ready    bool
	Status   string
	Extend   time.Duration
}

// Listen has nothing to listen to here.
func Listen() (*Voice, error) { return nil, nil }

// Environ is empty here.
func (v *Voice) Environ() []string { return nil }

// Close does nothing here.
func (v *Voice) Close() {}

// Hear returns at once here.
func (v *Voice) Hear(func(Word)) {}

// Says is never asked here.
func (p *Process) Says(Word, int) bool { return false }

// ShutdownRead is for Linux.
func ShutdownRead([]int, map[uint64]struct{}) (int, error) { return 0, errors.ErrUnsupported }
