package cli

import (
	"context"

	"github.com/urfave/cli/v2"

	"github.com/moult/moult/supervisor"
)

func runCommand() *cli.Command {
	return &cli.Command{
		Name:      "run",
		Usage:     "supervise COMMAND; `moult [flags] [--] COMMAND` is the same",
		ArgsUsage: "[flags] [--] COMMAND [ARG...]",
		Flags:     runFlags(),
		Action:    run,
	}
}

func run(c *cli.Context) error {
	// Before anything else: what arrives while flags are read is not lost.
	signals := supervisor.Notify()
	defer signals.Close()
	cfg, err := readConfig(c)
	if err != nil {
		return err
	}
	master, err := supervisor.New(cfg, signals)
	if err != nil {
		return err
	}
	return master.Run(context.Background())
}
