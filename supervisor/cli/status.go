package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/moult/moult/supervisor/cli/terminal"
	"github.com/moult/moult/supervisor/control/api"
)

func statusCommand() *cli.Command {
	return &cli.Command{
		Name: "status", Usage: "show sockets, workers and the last upgrade",
		ArgsUsage: "[flags]",
		Flags: clientFlags(jsonFlag("print an object; with --watch, one a line each second"),
			&cli.BoolFlag{Name: "watch", Aliases: []string{"w"}, Category: categoryOutput, Usage: "a live view in full screen; q leaves it"}),
		Action: status,
	}
}

// statusTime is more than any answer takes.
const statusTime = 10 * time.Second

func status(c *cli.Context) error {
	if c.NArg() > 0 {
		return usage("moult status takes no argument %q; see moult help status", c.Args().First())
	}
	watched := c.Bool("watch")
	if watched && !c.Bool("json") && !terminal.NewScreen(c.App.Writer).Live() {
		return usage("--watch draws on a terminal; use --watch --json for a program")
	}
	client, err := dialMaster(c)
	if err != nil {
		return err
	}
	defer client.Close()
	look := func(ctx context.Context) (api.Status, error) {
		ctx, cancel := context.WithTimeout(ctx, statusTime)
		defer cancel()
		s, err := client.Status(ctx)
		return s, clientError(err)
	}
	switch {
	case watched && c.Bool("json"):
		return watchJSON(c, look)
	case watched:
		terminal.NewScreen(c.App.Writer).Watch(look)
		return nil
	}
	s, err := look(context.Background())
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return json.NewEncoder(c.App.Writer).Encode(s)
	}
	_, err = fmt.Fprintln(c.App.Writer, strings.Join(terminal.NewScreen(c.App.Writer).StatusLines(s), "\n"))
	return err
}

func watchJSON(c *cli.Context, look func(context.Context) (api.Status, error)) error {
	ctx, cancel := waiting(c, "the master")
	defer cancel()
	out := json.NewEncoder(c.App.Writer)
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		s, err := look(ctx)
		if err == nil {
			err = out.Encode(s)
		}
		if err != nil {
			return err
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return nil
		}
	}
}
