package cli

import (
	"errors"
	"fmt"
	"strconv"

	"github.com/urfave/cli/v2"

	"github.com/moult/moult/supervisor/control"
	"github.com/moult/moult/supervisor/control/api"
)

func upgradeCommand() *cli.Command {
	return &cli.Command{
		Name: "upgrade", Usage: "start a new generation; returns when it serves, or has failed",
		ArgsUsage: "[flags]",
		Description: "The exit status tells scripts what came of it: 0 the new generation serves, 1 it\n" +
			"does not, and the old one serves on. Neither a time-out nor the end of this\n" +
			"command ends the upgrade. During another one, the next is waited for.",
		Flags: clientFlags(jsonFlag("print the events, one object a line"), timeoutFlag("the upgrade"), waitFlag()),
		Action: func(c *cli.Context) error {
			return operate(c, api.Operation{Kind: api.OpUpgrade})
		},
	}
}

func rollbackCommand() *cli.Command {
	return &cli.Command{
		Name: "rollback", Usage: "go back to the program that served before",
		ArgsUsage: "[flags]",
		Description: "An upgrade to the program that ran before, even if its file has been replaced\n" +
			"since. A file that was written over in place is gone, and of a script only the\n" +
			"interpreter is kept: both are refused, and exit 1.",
		Flags: clientFlags(jsonFlag("print the events, one object a line"), timeoutFlag("the rollback"), waitFlag()),
		Action: func(c *cli.Context) error {
			return operate(c, api.Operation{Kind: api.OpRollback})
		},
	}
}

func waitFlag() cli.Flag {
	return &cli.BoolFlag{Name: "wait", Category: categoryOutput, Usage: "wait until the old generation is gone as well"}
}

func stopCommand() *cli.Command {
	return &cli.Command{
		Name: "stop", Usage: "drain all, then end the master; returns when it is gone",
		ArgsUsage: "[flags]",
		Flags: clientFlags(jsonFlag("print the events, one object a line"), timeoutFlag("the stop"),
			&cli.BoolFlag{Name: "now", Category: categoryOutput, Usage: "do not wait for requests: end everything at once"}),
		Action: func(c *cli.Context) error {
			return operate(c, api.Operation{Kind: api.OpStop, Now: c.Bool("now")})
		},
	}
}

func scaleCommand() *cli.Command {
	return &cli.Command{
		Name: "scale", Usage: "run N workers per generation",
		ArgsUsage: "[flags] N",
		Flags:     clientFlags(jsonFlag("print the events, one object a line"), timeoutFlag("the change")),
		Action: func(c *cli.Context) error {
			n, err := strconv.Atoi(c.Args().First())
			if err != nil || n < 1 || c.NArg() != 1 {
				return usage("want one number of workers, at least 1: moult scale [flags] N")
			}
			return operate(c, api.Operation{Kind: api.OpScale, Workers: n})
		},
	}
}

// operationNames are what a sentence calls the operations.
var operationNames = map[string]string{
	api.OpUpgrade: "the upgrade", api.OpRollback: "the rollback", api.OpStop: "the stop", api.OpScale: "the change of scale",
}

// operate asks the master for an operation and tells how it goes on until it
// is over, or until there is nothing more to wait for.
func operate(c *cli.Context, op api.Operation) error {
	if op.Kind != api.OpScale && c.NArg() > 0 {
		return usage("moult %s takes no argument %q; see moult help %s", op.Kind, c.Args().First(), op.Kind)
	}
	client, err := dialMaster(c)
	if err != nil {
		return err
	}
	defer client.Close()
	ctx, cancel := waiting(c, operationNames[op.Kind])
	defer cancel()
	tell := newTeller(c, op, client)
	defer tell.end()
	for e, err := range client.Do(ctx, op) {
		if err != nil {
			tell.end()
			return operationError(op, err)
		}
		if tell.event(e); e.Event == api.EventReady && isUpgrade(op) && !c.Bool("wait") {
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
