package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/moult/moult/supervisor"
	"github.com/moult/moult/supervisor/control"
)

// exitNoMaster is for commands that find nobody to talk to.
const exitNoMaster = 3

// clientFlags say which master is meant.
func clientFlags(more ...cli.Flag) []cli.Flag {
	return append(more,
		&cli.StringFlag{Name: "name", Category: categoryMaster, Usage: "`NAME` of the master to talk to", DefaultText: "the only one there is"},
		&cli.StringFlag{Name: "control", Category: categoryMaster, Usage: "`PATH` of its control socket"},
	)
}

func jsonFlag(usage string) cli.Flag {
	return &cli.BoolFlag{Name: "json", Category: categoryOutput, Usage: usage}
}

func timeoutFlag(what string) cli.Flag {
	return &cli.DurationFlag{Name: "timeout", Category: categoryOutput,
		Usage: "`D`: wait no longer, exit 1; " + what + " goes on all the same", DefaultText: "none"}
}

// categoryOutput groups the flags of what a command waits for and prints.
const categoryOutput = "Wait and output"

// dialMaster finds the master that is meant: the one that the flags name, else
// the one that the environment names (a worker finds its own there), else the
// only one there is.
func dialMaster(c *cli.Context) (*control.Client, error) {
	target := namedMaster(c)
	if target == "" {
		only, err := onlyMaster()
		if err != nil {
			return nil, err
		}
		target = only
	}
	client, err := control.Dial(target)
	return client, clientError(err)
}

func namedMaster(c *cli.Context) string {
	path, name := c.String("control"), c.String("name")
	if path == "" && name == "" {
		path, name = os.Getenv(variable("control")), os.Getenv(variable("name"))
	}
	switch {
	case path == "off" || path == "":
		return name
	case !strings.Contains(path, "/"):
		return "./" + path // else it would be a name
	}
	return path
}

func onlyMaster() (path string, err error) {
	all, err := control.Find()
	switch {
	case len(all) == 1:
		return all[0].Path, nil
	case len(all) > 1:
		return "", usage("several masters are there; choose one with --name or --control:\n%s", listOf(all))
	case err != nil:
		return "", &supervisor.Exit{Code: exitNoMaster, Err: fmt.Errorf("no master found: %w", err)}
	}
	return "", &supervisor.Exit{Code: exitNoMaster, Err: fmt.Errorf("no master found in %s; start one with moult run, or name its socket with --control", control.Directory())}
}

func listOf(all []control.Found) string {
	var b strings.Builder
	for _, m := range all {
		fmt.Fprintf(&b, "    --name %-16s  pid %-7d  %s\n", m.Name, m.PID, m.Path)
	}
	return b.String()
}

// clientError gives an error the exit code that scripts may rely on.
func clientError(err error) error {
	if errors.Is(err, control.ErrNoMaster) {
		return &supervisor.Exit{Code: exitNoMaster, Err: err}
	}
	return err
}

// waiting is the context of a command that waits for the master: it ends after
// --timeout, or with the signal that asks the command to leave. Neither ends
// what it waits for, and the error says so.
func waiting(c *cli.Context, what string) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	var late <-chan time.Time
	if limit := c.Duration("timeout"); limit > 0 {
		late = time.After(limit)
	}
	go func() {
		select {
		case sig := <-signals:
			const bySignal = 128
			cancel(&supervisor.Exit{Code: bySignal + int(sig.(syscall.Signal)), Err: fmt.Errorf("interrupted; %s goes on", what)})
		case <-late:
			cancel(fmt.Errorf("%s is not over after %s; it goes on", what, c.Duration("timeout")))
		case <-ctx.Done():
		}
	}()
	return ctx, func() {
		signal.Stop(signals)
		cancel(context.Canceled)
	}
}
