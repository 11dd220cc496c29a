package cli

import (
	"fmt"
	"os"
	"strings"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/moult/moult/supervisor"
)

// tellSystemd returns an observer that reports the master's own state by
// sd_notify(3), for Type=notify and Type=notify-reload; nil where nobody
// listens. It has a goroutine of its own: a manager that does not read must
// not stop the master.
func tellSystemd() func(supervisor.Transition) {
	if os.Getenv("NOTIFY_SOCKET") == "" {
		return nil
	}
	const waiting = 64
	words := make(chan string, waiting)
	go func() {
		for word := range words {
			_, _ = daemon.SdNotify(false, word)
		}
	}()
	return func(t supervisor.Transition) {
		word := systemdState(t)
		if word == "" {
			return
		}
		select {
		case words <- word:
		default: // nobody has read for dozens of upgrades
		}
	}
}

// systemdState is the datagram for a transition, empty where there is nothing
// to say. There is no word for a reload that failed: the unit is ready again,
// with the reason in its status.
func systemdState(t supervisor.Transition) string {
	if t.PID != 0 {
		return ""
	}
	switch {
	case t.To == "stopping":
		return "STOPPING=1"
	case t.Trouble:
		return fmt.Sprintf("READY=1\nSTATUS=Upgrade failed, generation %d keeps serving: %s", t.Generation, firstLine(t.Reason))
	case t.From == "upgrading" && t.To == "upgrading":
		return reloading(t.Generation + 1)
	case t.To == "serving":
		return fmt.Sprintf("READY=1\nSTATUS=Generation %d serves", t.Generation)
	case t.To == "upgrading":
		return reloading(t.Generation + 1)
	}
	return ""
}

// reloading bears the clock, without which Type=notify-reload would wait for
// ever; there is none where there is no systemd.
func reloading(generation int) string {
	return fmt.Sprintf("RELOADING=1\n%sSTATUS=Generation %d starts", daemon.SdNotifyMonotonicUsec(), generation)
}

func firstLine(text string) string {
	line, _, _ := strings.Cut(text, "\n")
	return line
}
