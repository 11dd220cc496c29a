package demo

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	"github.com/moult/moult/supervisor"
	"github.com/moult/moult/supervisor/cli/terminal"
	"github.com/moult/moult/supervisor/control/api"
)

// serve is run with the built-in server, and a word on what to try.
func serve(o options, signals *supervisor.Signals, out, log io.Writer) error {
	cfg, err := o.config()
	if err != nil {
		return err
	}
	if cfg.Log, err = terminal.NewLogger(log, "info", "auto", cfg.Name); err != nil {
		return err
	}
	var tries string
	var said sync.WaitGroup
	// In a goroutine: whoever does not read must not stop the master.
	say := sync.OnceFunc(func() { said.Go(func() { io.WriteString(out, tries) }) })
	cfg.OnTransition = func(t supervisor.Transition) {
		if t.PID == 0 && t.To == api.Serving {
			say()
		}
	}
	master, err := supervisor.New(cfg, signals)
	if err != nil {
		return err
	}
	tries = triesFor(master.Sockets()[0], os.Getpid(), o.abrupt)
	defer said.Wait()
	return master.Run(context.Background())
}

// triesFor are commands for another terminal.
func triesFor(socket api.Socket, pid int, abrupt bool) string {
	network, address := target(socket)
	curl, url := "curl -sS ", "http://"+address
	if network == "unix" {
		path, abstract := strings.CutPrefix(address, "@")
		option := "--unix-socket"
		if abstract {
			option = "--abstract-unix-socket"
		}
		curl, url = fmt.Sprintf("curl -sS %s %s ", option, shellQuote(path)), "http://localhost"
	}
	end := "the old one finishes what it has in hand and leaves"
	if abrupt {
		end = "the old one is killed as soon as nothing hangs on it"
	}
	return fmt.Sprintf(`
The demo's server is at %[1]s, its master is this process.
Try, in another terminal:

    # who answers?
    while %[2]s%[3]s/; do sleep 0.2; done

    # an answer that takes its time, also across upgrades
    %[2]s-N '%[3]s/slow?d=10s'

    # upgrade: the next generation answers,
    # %[5]s
    kill -HUP %[4]d

    # one worker more; TTOU: one fewer
    kill -TTIN %[4]d

    # stop, as Ctrl-C does here
    kill -TERM %[4]d

`, address, curl, url, pid, end)
}

func shellQuote(s string) string {
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
