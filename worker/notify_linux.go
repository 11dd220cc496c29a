package worker

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// notifyReloading begins what systemd calls a reload (Type=notify-reload,
// sd_notify(3)). It wants to know when, by its own clock, so that it can tell
// our READY=1 from an earlier one.
func (w *Worker) notifyReloading() {
	if os.Getenv("NOTIFY_SOCKET") == "" {
		return
	}
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		w.log.Warn("cannot read the clock", "reason", err)
		return
	}
	w.notify(fmt.Sprintf("RELOADING=1\nMONOTONIC_USEC=%d", now.Nano()/1000))
}
