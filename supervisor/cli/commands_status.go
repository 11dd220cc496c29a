package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/moult/moult/supervisor/control"
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
	if watched && !c.Bool("json") && !newScreen(c.App.Writer, false).live {
		return usage("--watch draws on a terminal; use --watch --json for a program")
	}
	client, err := dialMaster(c)
	if err != nil {
		return err
	}
	defer client.Close()
	switch {
	case watched && c.Bool("json"):
		return watchJSON(c, client)
	case watched:
		return watch(c, client)
	case c.Bool("json"):
		return statusJSON(context.Background(), json.NewEncoder(c.App.Writer), client)
	}
	return statusTable(c, client)
}

func statusJSON(ctx context.Context, out *json.Encoder, client *control.Client) error {
	ctx, cancel := context.WithTimeout(ctx, statusTime)
	defer cancel()
	s, err := client.Status(ctx)
	if err != nil {
		return clientError(err)
	}
	return out.Encode(s)
}

func watchJSON(c *cli.Context, client *control.Client) error {
	ctx, cancel := waiting(c, "the master")
	defer cancel()
	out := json.NewEncoder(c.App.Writer)
	var err error
	every(ctx, calmPace, func() {
		if err = statusJSON(ctx, out, client); err != nil {
			cancel()
		}
	})
	return err
}

func statusTable(c *cli.Context, client *control.Client) error {
	ctx, cancel := context.WithTimeout(context.Background(), statusTime)
	defer cancel()
	s, err := client.Status(ctx)
	if err != nil {
		return clientError(err)
	}
	screen := newScreen(c.App.Writer, false)
	v := view{width: screen.width(), paint: screen.paint, now: time.Now()}
	_, err = fmt.Fprintln(c.App.Writer, strings.Join(v.status(s), "\n"))
	return err
}
