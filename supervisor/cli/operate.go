package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/moult/moult/supervisor/cli/terminal"
	"github.com/moult/moult/supervisor/control"
	"github.com/moult/moult/supervisor/control/api"
)

// operationCommands ask the master to do something, and tell how it goes on.
func operationCommands() []*cli.Command {
	commands := []*cli.Command{
		{
			Name: api.OpUpgrade, Usage: "start a new generation; returns when it serves, or has failed",
			Description: "The exit status tells scripts what came of it: 0 the new generation serves, 1 it\n" +
				"does not, and the old one serves on. Neither a time-out nor the end of this\n" +
				"command ends the upgrade. During another one, the next is waited for.",
			Flags: []cli.Flag{waitFlag()},
		},
		{
			Name: api.OpRollback, Usage: "go back to the program that served before",
			Description: "An upgrade to the program that ran before, even if its file has been replaced\n" +
				"since. A file that was written over in place is gone, and of a script only the\n" +
				"interpreter is kept: both are refused, and exit 1.",
			Flags: []cli.Flag{waitFlag()},
		},
		{
			Name: api.OpStop, Usage: "drain all, then end the master; returns when it is gone",
			Flags: []cli.Flag{&cli.BoolFlag{Name: "now", Category: categoryOutput, Usage: "do not wait for requests: end everything at once"}},
		},
		{Name: api.OpScale, Usage: "run N workers per generation", ArgsUsage: " N"},
	}
	for _, c := range commands {
		c.ArgsUsage = "[flags]" + c.ArgsUsage
		c.Flags = clientFlags(slices.Concat([]cli.Flag{jsonFlag("print the events, one object a line"), timeoutFlag(operationNames[c.Name])}, c.Flags)...)
		c.Action = operate
	}
	return commands
}

func waitFlag() cli.Flag {
	return &cli.BoolFlag{Name: "wait", Category: categoryOutput, Usage: "wait until the old generation is gone as well"}
}

// operationNames are what a sentence calls the operations.
var operationNames = map[string]string{
	api.OpUpgrade: "the upgrade", api.OpRollback: "the rollback", api.OpStop: "the stop", api.OpScale: "the change of scale",
}

func readOperation(c *cli.Context) (api.Operation, error) {
	op := api.Operation{Kind: c.Command.Name, Now: c.Bool("now")}
	if op.Kind != api.OpScale {
		if c.NArg() > 0 {
			return op, usage("moult %s takes no argument %q; see moult help %s", op.Kind, c.Args().First(), op.Kind)
		}
		return op, nil
	}
	n, err := strconv.Atoi(c.Args().First())
	if err != nil || n < 1 || c.NArg() != 1 {
		return op, usage("want one number of workers, at least 1: moult scale [flags] N")
	}
	op.Workers = n
	return op, nil
}

// operate asks the master for an operation and tells how it goes on until it
// is over, or until there is nothing more to wait for.
func operate(c *cli.Context) error {
	op, err := readOperation(c)
	if err != nil {
		return err
	}
	client, err := dialMaster(c)
	if err != nil {
		return err
	}
	defer client.Close()
	ctx, cancel := waiting(c, operationNames[op.Kind])
	defer cancel()
	t := &teller{op: op, screen: terminal.NewScreen(c.App.Writer)}
	if c.Bool("json") {
		t.json = json.NewEncoder(c.App.Writer)
	} else {
		end := t.screen.Follow(lookPace, func() string { return t.status(ctx, client) })
		defer func() { cancel(); end() }()
	}
	for e, err := range client.Do(ctx, op) {
		if err != nil {
			return operationError(op, err)
		}
		if t.tell(e); e.Event == api.EventReady && isUpgrade(op) && !c.Bool("wait") {
			return nil
		}
	}
	return nil
}

func isUpgrade(op api.Operation) bool { return op.Kind == api.OpUpgrade || op.Kind == api.OpRollback }

func operationError(op api.Operation, err error) error {
	var failed *control.Failed
	switch {
	case errors.As(err, &failed) && isUpgrade(op) && failed.Event.From > 0:
		return fmt.Errorf("%s failed, generation %d keeps serving: %s", op.Kind, failed.Event.From, failed.Event.Reason)
	case errors.As(err, &failed):
		return fmt.Errorf("%s failed: %s", op.Kind, failed.Event.Reason)
	case errors.Is(err, control.ErrLost):
		return fmt.Errorf("nobody knows what came of %s: %w", operationNames[op.Kind], err)
	}
	return clientError(err)
}

// lookPace is how often the line of status is drawn anew.
const lookPace = 500 * time.Millisecond

// teller says how an operation goes on: objects for programs, else a line for
// each event as it comes, and on a terminal one line below them for what no
// event tells.
type teller struct {
	op     api.Operation
	json   *json.Encoder // nil: for people
	screen *terminal.Screen
	last   atomic.Pointer[api.Event]
}

func (t *teller) tell(e api.Event) {
	t.last.Store(&e)
	if t.json != nil {
		_ = t.json.Encode(e)
	} else if line := eventLine(t.op, e); line != "" {
		t.screen.Println(line)
	}
}

// eventLine says an event in words; a failure is the command's own error.
func eventLine(op api.Operation, e api.Event) string {
	took := ""
	if e.TookMS > 0 {
		took = " after " + terminal.Duration(terminal.Milliseconds(e.TookMS))
	}
	switch {
	case e.Event == api.EventFailed:
		return ""
	case op.Kind == api.OpStop && e.Event == api.EventDone:
		return "stopped" + took
	case op.Kind == api.OpStop:
		return "stopping"
	case op.Kind == api.OpScale:
		return terminal.Plural(op.Workers, "worker") + " per generation"
	}
	switch e.Event {
	case api.EventStarting:
		return fmt.Sprintf("generation %d starting%s", e.To, pidList(e.PIDs))
	case api.EventReady:
		return fmt.Sprintf("generation %d serves%s", e.To, took)
	case api.EventDraining:
		return fmt.Sprintf("generation %d draining", e.From)
	}
	return fmt.Sprintf("generation %d gone%s", e.From, took)
}

func pidList(pids []int) string {
	const most = 4
	var words []string
	for _, pid := range pids {
		words = append(words, strconv.Itoa(pid))
	}
	if len(words) > most {
		words = append(words[:most], "…")
	}
	if len(words) == 0 {
		return ""
	}
	return " (pid " + strings.Join(words, ", ") + ")"
}

// status asks the master for the line of status.
func (t *teller) status(ctx context.Context, client *control.Client) string {
	s, err := client.Status(ctx)
	if err != nil {
		return "" // the stream of events tells if the master is gone
	}
	return statusLine(t.op, t.last.Load(), s, time.Now())
}

// statusLine is what status adds to the latest event, if there was one: what is
// waited for, what the new worker says, or how much the old ones have to do.
func statusLine(op api.Operation, last *api.Event, s api.Status, now time.Time) string {
	switch {
	case last == nil && isUpgrade(op) && s.State == api.Upgrading:
		return "waiting for the upgrade that is under way"
	case last == nil:
	case last.Event == api.EventStarting:
		for _, w := range s.Workers {
			if slices.Contains(last.PIDs, w.PID) && w.Says != "" {
				return "it says: " + terminal.Printable(w.Says)
			}
		}
	case last.Event == api.EventDraining:
		return drainingLine(s.Workers, last.From, now)
	}
	return ""
}

// drainingLine sums up the workers of a generation that finish: what they have
// in hand, where the kernel says it, and for how long they may have it.
func drainingLine(workers []api.Worker, generation int, now time.Time) string {
	connections, known, deadline := 0, true, now
	for _, w := range workers {
		if w.Generation != generation || w.State == api.Serving {
			continue
		}
		if known = known && w.Connections != nil; known {
			connections += *w.Connections
		}
		if w.Deadline != nil && w.Deadline.After(deadline) {
			deadline = *w.Deadline
		}
	}
	var left []string
	if known {
		left = append(left, terminal.Plural(connections, "connection"))
	}
	if deadline.After(now) {
		left = append(left, terminal.Duration(deadline.Sub(now).Round(time.Second)))
	}
	if left == nil {
		return ""
	}
	return strings.Join(left, ", ") + " left"
}
