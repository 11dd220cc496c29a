package cli

import (
	"context"
	"os"
	"runtime/debug"

	"github.com/urfave/cli/v2"

	"github.com/moult/moult/supervisor"
	"github.com/moult/moult/supervisor/cli/terminal"
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
	log, flush, err := terminal.NewPatientLogger(c.App.ErrWriter, c.String("log-level"), c.String("log-format"), cfg.Name)
	if err != nil {
		return err
	}
	defer flush()
	cfg.Log = log
	cfg.OnTransition = tellSystemd()
	controls, err := openControls(c, &cfg)
	if err != nil {
		return err
	}
	defer controls.close()
	cfg.Control = controls.path()
	master, err := supervisor.New(cfg, signals)
	if err != nil {
		return err
	}
	controls.serve(master)
	stayLean()
	return master.Run(context.Background())
}

// stayLean trades processor time for memory: a master has next to nothing to
// do, and stands beside the server that the machine is there for.
func stayLean() {
	const percent = 20
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(percent)
	}
}
