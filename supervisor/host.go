package supervisor

import (
	"os"
	"syscall"

	"github.com/moult/moult/fdpass"
)

// host is what the master asks of the operating system about processes. The
// tests put their own in its place; the code on this side stays the real one.
type host struct {
	// start forks; the result of the exec comes later, from started.Result.
	start func(fdpass.Program) (started, error)
	// kill sends a signal to a process that has not been reaped.
	kill func(pid int, sig syscall.Signal) error
	// killGroup sends a signal to a process group.
	killGroup func(pgid int, sig syscall.Signal) error
	// nextEnded looks for a child that has ended and leaves it a zombie, so
	// that its pid means it and nobody else; ok is false when there is none.
	nextEnded func() (pid int, ok bool)
	// reap takes the zombie away.
	reap func(pid int) syscall.WaitStatus
	// leftovers lists what is left of a tree whose main process has ended.
	leftovers func(*worker) []int
	// notify opens the socket by which a worker says that it is ready; nil
	// where there is none.
	notify func(*worker) (*notifySocket, error)
	// trim gives memory back.
	trim func()
}

// started is a forked program whose exec may still fail.
type started interface {
	PID() int
	// Result waits until the program runs (nil) or could not be started.
	Result() error
	// Interception is the descriptor on which the program's calls are heard,
	// once Result has returned; nil where nothing is intercepted. The caller
	// closes it.
	Interception() *os.File
}

func realHost() host {
	return host{
		start: func(p fdpass.Program) (started, error) {
			s, err := p.Start()
			if err != nil {
				return nil, err
			}
			return s, nil
		},
		kill:      syscall.Kill,
		killGroup: func(pgid int, sig syscall.Signal) error { return syscall.Kill(-pgid, sig) },
		nextEnded: nextEnded,
		reap:      reap,
		leftovers: leftovers,
		notify:    listenNotify,
		trim:      trim,
	}
}
