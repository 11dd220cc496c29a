package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/moult/moult/fdpass"
	"github.com/moult/moult/supervisor"
)

func checkCommand() *cli.Command {
	return &cli.Command{
		Name:      "check",
		Usage:     "print the plan of run, start nothing; exit 2 on what would fail",
		ArgsUsage: "[the flags of run] [--] COMMAND [ARG...]",
		Flags:     runFlags(),
		Action:    check,
	}
}

// check opens the sockets for a moment, as run would, and closes them again:
// nothing else tells for certain whether they can be had.
func check(c *cli.Context) error {
	cfg, err := readConfig(c)
	if err != nil {
		return err
	}
	signals := supervisor.Notify()
	defer signals.Close()
	master, err := supervisor.New(cfg, signals)
	if err != nil {
		return usageError{err}
	}
	defer master.Close()
	w := c.App.Writer
	printSockets(w, cfg, master.Sockets())
	printWorker(w, cfg)
	printEnd(w, cfg)
	return checkCommandLine(cfg)
}

func printSockets(w io.Writer, cfg supervisor.Config, sockets []*fdpass.Socket) {
	fmt.Fprintln(w, "sockets")
	for i, s := range sockets {
		fmt.Fprintf(w, "  %-12s %s %s, queue of %d; descriptor %d in the worker\n", s.Name(), s.Network(), s.Bound(), s.Backlog(), i+3)
		fmt.Fprintf(w, "  %-12s %s\n", "", handoverText(s))
	}
	fmt.Fprintf(w, "  told by      %s\n", protocolText(cfg.Protocols))
	for _, hint := range supervisor.Hints(sockets) {
		fmt.Fprintln(w, "  hint         "+hint)
	}
}

func handoverText(s *fdpass.Socket) string {
	how, why := s.How()
	switch how {
	case fdpass.Steered:
		return "steered: each worker has a socket of its own, the kernel sends new connections to the new generation"
	case fdpass.Renamed:
		return "renamed: each generation has a socket of its own, and the path moves to the new one"
	}
	text := "shared: all generations have the same socket, the old one stops to accept when it gets the drain signal"
	if why != "" {
		text += " (" + why + ")"
	}
	return text
}

func protocolText(protocols []fdpass.Protocol) string {
	var names []string
	for _, p := range protocols {
		switch p {
		case fdpass.ProtocolAuto:
			names = append(names, "LISTEN_FDS (systemd), SERVER_STARTER_PORT, EINHORN_FD_*")
		case fdpass.ProtocolListenFDs:
			names = append(names, "LISTEN_FDS (systemd)")
		case fdpass.ProtocolServerStarter:
			names = append(names, "SERVER_STARTER_PORT")
		case fdpass.ProtocolNone:
			names = append(names, "the command's own {fd}")
		}
	}
	return strings.Join(names, ", ")
}

func printWorker(w io.Writer, cfg supervisor.Config) {
	fmt.Fprintf(w, "worker\n  command      %s\n", strings.Join(cfg.Command, " "))
	fmt.Fprintf(w, "  processes    %d per generation\n", cfg.Workers)
	if cfg.Dir != "" {
		fmt.Fprintf(w, "  directory    %s\n", cfg.Dir)
	}
	if cfg.User != "" || cfg.Group != "" {
		fmt.Fprintf(w, "  runs as      %s:%s\n", cfg.User, cfg.Group)
	}
	fmt.Fprintf(w, "  ready        %s, within %s\n", readyText(cfg), cfg.ReadyTimeout)
}

func readyText(cfg supervisor.Config) string {
	switch cfg.Ready {
	case supervisor.ReadyNotify:
		return "when it sends READY=1"
	case supervisor.ReadyAccept:
		return "when it is seen accepting on every socket"
	case supervisor.ReadyAlive:
		return "when it has lived for " + cfg.ReadyAlive.String()
	}
	return "when it is seen accepting on every socket, and has sent READY=1 if a generation did before"
}

func printEnd(w io.Writer, cfg supervisor.Config) {
	fmt.Fprintf(w, "stop\n  first        new connections go elsewhere, the queue runs empty, connections end by themselves for up to %s\n", cfg.Quiesce)
	fmt.Fprintf(w, "  then         %s, up to %s to finish\n", signalName(cfg.DrainSignal), cfg.DrainTimeout)
	fmt.Fprintf(w, "  last         TERM, and after %s KILL\n", cfg.KillGrace)
	fmt.Fprintf(w, "  in all       at most %s: give docker, systemd or Kubernetes more than that\n", cfg.Quiesce+cfg.DrainTimeout+cfg.KillGrace)
	fmt.Fprintf(w, "crash\n  restart      %s, at once and then after %s to %s\n", cfg.Restart, cfg.RestartMin, cfg.RestartMax)
	if cfg.RestartLimit > 0 {
		fmt.Fprintf(w, "  gives up     after %d failures within %s\n", cfg.RestartLimit, cfg.RestartWithin)
	}
}

// checkCommandLine finds what a start would stumble over, as far as it can be
// seen from here: the user and the directory may be others by then.
func checkCommandLine(cfg supervisor.Config) error {
	if cfg.Dir != "" {
		if info, err := os.Stat(cfg.Dir); err != nil || !info.IsDir() {
			return usage("cannot enter directory %s", cfg.Dir)
		}
	}
	for _, path := range cfg.EnvFiles {
		if _, err := os.Stat(path); err != nil {
			return usage("cannot read --env-file: %w", err)
		}
	}
	if strings.Contains(cfg.Command[0], "{") || cfg.Dir != "" && !strings.HasPrefix(cfg.Command[0], "/") {
		return nil
	}
	if _, err := exec.LookPath(cfg.Command[0]); err != nil && !errors.Is(err, exec.ErrDot) {
		return usage("cannot execute %s: %w", cfg.Command[0], errors.Unwrap(err))
	}
	return nil
}
