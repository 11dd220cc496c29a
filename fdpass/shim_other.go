//go:build !linux

package fdpass

import (
	"os"
	"os/signal"
	"syscall"

	"github.com/moult/moult/fdpass/intercept"
)

// resetSignals undoes what the master's starter ignored, as far as the Go
// runtime can: a signal that is asked for gets a handler, and execve resets
// handlers.
func resetSignals(keepHUP bool) {
	handled := make(chan os.Signal, 1)
	for _, sig := range []syscall.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGPIPE} {
		if keepHUP && sig == syscall.SIGHUP {
			continue
		}
		signal.Notify(handled, sig)
	}
}

// closeFrom keeps the status pipe from the worker.
func closeFrom(first int) { syscall.CloseOnExec(first) }

func makeDumpable() {}

// openStatusPair says why there is no interception here, before anything is
// started.
func openStatusPair() (r, w *os.File, err error) {
	_, _, err = intercept.Install(intercept.Traps{})
	return nil, nil, err
}

func sendDescriptor(int, int) error { return syscall.ENOTSUP }

// statusReader reads the text, with which no descriptor ever comes here.
type statusReader struct {
	file       *os.File
	descriptor *os.File
	lost       syscall.Errno
}

func (r *statusReader) Read(p []byte) (int, error) { return r.file.Read(p) }
