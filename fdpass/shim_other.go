//go:build !linux

package fdpass

import (
	"os"
	"os/signal"
	"syscall"
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
