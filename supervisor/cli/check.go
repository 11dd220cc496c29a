package cli

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/moult/moult/fdpass"
	"github.com/moult/moult/fdpass/intercept"
	"github.com/moult/moult/fdpass/start"
	"github.com/moult/moult/supervisor"
	"github.com/moult/moult/supervisor/cli/terminal"
	"github.com/moult/moult/supervisor/control"
	"github.com/moult/moult/supervisor/control/api"
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
	if address := c.String("admin"); address != "" {
		admin, err := control.ListenAdmin(address, c.Bool("admin-public"))
		if err != nil {
			return usage("%w", err)
		}
		admin.Close()
	}
	signals := supervisor.Notify()
	defer signals.Close()
	master, err := supervisor.New(cfg, signals)
	if err != nil {
		return usage("%w", err)
	}
	defer master.Close()
	p := planWriter{c.App.Writer}
	p.sockets(cfg, master)
	p.worker(cfg)
	p.end(cfg)
	return checkCommandLine(cfg)
}

// planWriter prints sections of rows: a word, and what there is to say of it.
type planWriter struct{ io.Writer }

func (p planWriter) section(name string) { fmt.Fprintln(p, name) }

func (p planWriter) row(label, format string, args ...any) {
	const indent = 15
	for i, line := range terminal.Wrap(fmt.Sprintf(format, args...), helpWidth()-indent) {
		if i > 0 {
			label = ""
		}
		fmt.Fprintf(p, "  %-*s%s\n", indent-2, label, line)
	}
}

func (p planWriter) sockets(cfg supervisor.Config, master *supervisor.Supervisor) {
	p.section("sockets")
	sockets := master.Sockets()
	for i, s := range sockets {
		queue := ""
		if s.Network == "tcp" || s.Network == "unix" {
			queue = fmt.Sprintf(", queue of %d", s.Backlog)
		}
		p.row(s.Name, "%s %s%s; descriptor %d in the worker", s.Network, s.Address, queue, i+3)
		p.row("", "%s", handoverText(s))
	}
	if len(sockets) > 0 {
		p.row("told by", "%s", protocolText(cfg.Protocols))
	}
	if cfg.Intercept {
		p.interception(cfg)
	}
	for _, hint := range supervisor.Hints(master.Sockets()) {
		p.row("hint", "%s", hint)
	}
}

func (p planWriter) interception(cfg supervisor.Config) {
	how := "steered: each worker's socket joins those before it, and the kernel sends new connections to the new generation"
	if cfg.Share {
		how = "shared: all generations have the first one's socket, and the old one stops to accept when it gets the drain signal"
	}
	p.row("intercepted", "whatever the server binds itself")
	p.row("", "%s", how)
	if !intercept.Duplicates() {
		p.row("", "pidfd_getfd is refused here (a container's profile): moult makes the sockets in the server's place, with the options that it has set")
	}
	if cfg.InterceptUnlink {
		p.row("", "unlinks wait for moult from the first generation on")
	}
}

func handoverText(s api.Socket) string {
	switch s.Handover {
	case api.Steer:
		return "steered: each worker has a socket of its own, and the kernel sends new connections to the new generation"
	case api.Rename:
		return "renamed: each generation has a socket of its own, and the path moves to the new one"
	}
	text := "shared: all generations have the same socket, and the old one stops to accept when it gets the drain signal"
	if s.Reason != "" {
		text += " (" + s.Reason + ")"
	}
	return text
}

func protocolText(spoken []fdpass.Protocol) string {
	var told []string
	for _, p := range protocols {
		if slices.Contains(spoken, p.name) {
			told = append(told, p.told)
		}
	}
	return strings.Join(told, ", ")
}

func (p planWriter) worker(cfg supervisor.Config) {
	p.section("worker")
	p.row("command", "%s", strings.Join(cfg.Command, " "))
	p.row("processes", "%d per generation", cfg.Workers)
	if cfg.Dir != "" {
		p.row("directory", "%s", cfg.Dir)
	}
	if cfg.User != "" || cfg.Group != "" {
		p.row("runs as", "%s:%s", cfg.User, cfg.Group)
	}
	p.row("ready", "%s, within %s", readyText(cfg), short(cfg.ReadyTimeout))
}

func readyText(cfg supervisor.Config) string {
	switch cfg.Ready {
	case supervisor.ReadyNotify:
		return "when it sends READY=1"
	case supervisor.ReadyAccept:
		return "when it is seen accepting on every socket"
	case supervisor.ReadyAlive:
		return "when it has lived for " + short(cfg.ReadyAlive)
	}
	return "when it is seen accepting on every socket, and has sent READY=1 if a generation did before"
}

func (p planWriter) end(cfg supervisor.Config) {
	p.section("stop")
	p.row("first", "new connections go elsewhere, the queue runs empty, connections end by themselves for up to %s", short(cfg.Quiesce))
	p.row("then", "%s, up to %s to finish", signalName(cfg.DrainSignal), short(cfg.DrainTimeout))
	p.row("last", "TERM, and after %s KILL", short(cfg.KillGrace))
	p.row("in all", "at most %s: give docker, systemd or Kubernetes more than that", short(cfg.Quiesce+cfg.DrainTimeout+cfg.KillGrace))
	p.section("crash")
	p.row("restart", "%s, at once and then after %s to %s", cfg.Restart, short(cfg.RestartMin), short(cfg.RestartMax))
	if cfg.RestartLimit > 0 {
		p.row("gives up", "after %d failures within %s", cfg.RestartLimit, short(cfg.RestartWithin))
	}
}

// short is a duration without the units that say nothing: 1m, not 1m0s.
func short(d time.Duration) string { return shortened(d.String()) }

func shortened(text string) string {
	for _, zero := range []string{"m0s", "h0m"} {
		if strings.HasSuffix(text, zero) {
			text = text[:len(text)-2]
		}
	}
	return text
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
	if strings.Contains(cfg.Command[0], "{") {
		return nil
	}
	path, err := start.Look(cfg.Command[0], cfg.Dir, append(os.Environ(), cfg.Env...))
	if err != nil {
		return usage("%w", err)
	}
	if cfg.Intercept {
		if err := start.CheckIntercepted(path); err != nil {
			return usage("%w", err)
		}
	}
	return nil
}
