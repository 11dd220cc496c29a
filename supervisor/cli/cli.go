// Package cli is moult's command line: it reads flags, builds the logger,
// chooses exit codes, and wires the master to all else.
package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/moult/moult/supervisor"
	"github.com/moult/moult/supervisor/cli/demo"
	"github.com/moult/moult/supervisor/cli/terminal"
)

// Exit codes that scripts may rely on.
const (
	exitFailed = 1
	exitUsage  = 2
)

// Main runs one command line and returns the exit code of the process.
func Main(args []string, version string) int {
	app := newApp(buildVersion(version))
	if err := app.Run(withRun(args, app)); err != nil {
		return report(app.ErrWriter, err)
	}
	return 0
}

// The library would print a help of its own for --help (helpFirst).
func init() { cli.HelpFlag = nil }

func newApp(version string) *cli.App {
	app := &cli.App{
		Name:            "moult",
		Usage:           "keeps a server's sockets while the processes behind them come and go",
		Version:         version,
		Writer:          os.Stdout,
		ErrWriter:       os.Stderr,
		HideVersion:     true,
		HideHelpCommand: true,
		// Commas in a value are the value's own: lists are split where
		// they come from environment variables alone (flags.go).
		DisableSliceFlagSeparator: true,
		ExitErrHandler:            func(*cli.Context, error) {},
		Action:                    func(c *cli.Context) error { return showHelp(c.App.Writer, c.App, c.Args().First()) },
	}
	app.Commands = slices.Concat([]*cli.Command{runCommand(), checkCommand(), statusCommand()}, operationCommands(), []*cli.Command{
		demo.Command(), demo.WorkerCommand(), completionCommand(), manCommand(),
		{Name: "version", Usage: "print the version", Action: func(c *cli.Context) error {
			_, err := fmt.Fprintln(c.App.Writer, "moult", c.App.Version)
			return err
		}},
		{Name: "help", Usage: "print this, or the help of one command or topic", ArgsUsage: "[COMMAND|TOPIC]", Action: func(c *cli.Context) error {
			return showHelp(c.App.Writer, c.App, c.Args().First())
		}},
	})
	for _, command := range app.Commands {
		command.HideHelp = true
		command.OnUsageError = func(_ *cli.Context, err error, _ bool) error {
			return usage("%w; see moult help %s", err, command.Name)
		}
		command.Flags = append(command.Flags, helpFlag())
		command.Action = helpFirst(command.Action)
	}
	return app
}

func helpFlag() cli.Flag {
	return &cli.BoolFlag{Name: "help", Aliases: []string{"h"}, Usage: "print this help", Category: categoryHelp}
}

func helpFirst(action cli.ActionFunc) cli.ActionFunc {
	return func(c *cli.Context) error {
		if c.Bool("help") {
			return showHelp(c.App.Writer, c.App, c.Command.Name)
		}
		return action(c)
	}
}

// withRun makes the bare form, moult [flags] [--] COMMAND, the long one. Only
// the first argument can be a command of moult's: "moult -- status" and
// "moult -l :80 status" run a program that is called status.
func withRun(args []string, app *cli.App) []string {
	if len(args) < 2 {
		return args
	}
	switch first := args[1]; {
	case app.Command(first) != nil:
		return args
	case slices.Contains([]string{"-h", "--help", "-help"}, first):
		return []string{args[0], "help"}
	case slices.Contains([]string{"-v", "--version", "-version"}, first):
		return []string{args[0], "version"}
	}
	return slices.Insert(slices.Clone(args), 1, "run")
}

// usage is an error that the user can mend on the command line.
func usage(format string, args ...any) error {
	return &supervisor.Exit{Code: exitUsage, Err: fmt.Errorf(format, args...)}
}

// report prints an error once, in the one form that all of moult's have.
func report(w io.Writer, err error) int {
	code := exitFailed
	var exit *supervisor.Exit
	if errors.As(err, &exit) {
		code = exit.Code
	}
	if message := err.Error(); message != "" {
		// Whoever does not read it must not keep the process from its end.
		const moment = 100 * time.Millisecond
		terminal.Within(moment, func() { fmt.Fprintln(w, "moult: "+strings.TrimSpace(message)) })
	}
	return code
}

// buildVersion is what the linker was told, or what the go command knows.
func buildVersion(linked string) string {
	if linked != "" {
		return linked
	}
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" {
		return "(devel)"
	}
	return info.Main.Version
}
