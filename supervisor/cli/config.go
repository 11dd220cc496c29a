package cli

import (
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/moult/moult/fdpass"
	"github.com/moult/moult/fdpass/start"
	"github.com/moult/moult/supervisor"
	"github.com/moult/moult/supervisor/cli/terminal"
)

// readConfig turns flags and variables into what the master is told. What is
// wrong with them is an error of usage.
func readConfig(c *cli.Context) (supervisor.Config, error) {
	cfg := supervisor.Defaults()
	if err := fromEnvironment(c); err != nil {
		return cfg, err
	}
	cfg.Command = c.Args().Slice()
	if len(cfg.Command) == 0 || cfg.Command[0] == "" {
		return cfg, usage("no command to run; write: moult -- ./server [ARG...]")
	}
	for _, read := range []func(*cli.Context, *supervisor.Config) error{
		readSockets, readWorker, readReady, readDrain, readRestart, readMaster, checkBraces,
	} {
		if err := read(c, &cfg); err != nil {
			return cfg, usage("%w", err)
		}
	}
	return cfg, nil
}

func readSockets(c *cli.Context, cfg *supervisor.Config) (err error) {
	cfg.Intercept, cfg.InterceptUnlink = c.Bool("intercept"), c.Bool("intercept-unlink")
	if len(c.StringSlice("listen")) == 0 {
		if c.IsSet("intercept") && !cfg.Intercept {
			return usage("no socket to hold: without --intercept there has to be a --listen")
		}
		cfg.Intercept = true
	}
	if cfg.InterceptUnlink && !cfg.Intercept {
		return usage("cannot use --intercept-unlink without --intercept")
	}
	if cfg.Addresses, err = fdpass.ParseAddresses(c.StringSlice("listen")); err != nil {
		return err
	}
	if cfg.Protocols, err = fdpass.ParseProtocols(c.StringSlice("protocol")); err != nil {
		return err
	}
	how, _, err := choose(c, "handover")
	cfg.Share, cfg.MustSteer = how == "share", how == "steer"
	return err
}

func readWorker(c *cli.Context, cfg *supervisor.Config) error {
	cfg.Workers = c.Int("workers")
	if cfg.Workers < 1 || cfg.Workers > supervisor.MaxWorkers {
		return usage("cannot use --workers %d: choose 1 to %d", cfg.Workers, supervisor.MaxWorkers)
	}
	cfg.Env = c.StringSlice("env")
	for _, kv := range cfg.Env {
		if key, _, ok := strings.Cut(kv, "="); !ok || key == "" {
			return usage("cannot use --env %q: want K=V", kv)
		}
	}
	for _, path := range c.StringSlice("env-file") {
		cfg.EnvFiles = append(cfg.EnvFiles, absolute(path))
	}
	if dir := c.String("chdir"); dir != "" {
		cfg.Dir = absolute(dir)
	}
	if mask := c.String("umask"); mask != "" {
		n, err := strconv.ParseUint(mask, 8, 16)
		if err != nil || n > 0o777 {
			return usage("cannot use --umask %q: want octal, such as 027", mask)
		}
		m := int(n)
		cfg.Umask = &m
	}
	cfg.User, cfg.Group = c.String("user"), c.String("group")
	_, err := start.LookupCredential(cfg.User, cfg.Group)
	return err
}

func absolute(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		return abs
	}
	return path
}

func readReady(c *cli.Context, cfg *supervisor.Config) error {
	cfg.ReadyTimeout = c.Duration("ready-timeout")
	if cfg.ReadyTimeout <= 0 {
		return usage("cannot use --ready-timeout %s: it has to be longer than nothing", cfg.ReadyTimeout)
	}
	how, value, err := choose(c, "ready")
	cfg.Ready = supervisor.ReadyHow(how)
	if err != nil || cfg.Ready != supervisor.ReadyAlive {
		return err
	}
	cfg.ReadyAlive, err = time.ParseDuration(value)
	if err != nil || cfg.ReadyAlive < 0 {
		return usage("cannot use --ready %q: want a duration, such as alive=2s", c.String("ready"))
	}
	if cfg.ReadyAlive >= cfg.ReadyTimeout {
		return usage("cannot use --ready %q: --ready-timeout %s is over before", c.String("ready"), cfg.ReadyTimeout)
	}
	return nil
}

func readDrain(c *cli.Context, cfg *supervisor.Config) (err error) {
	for name, to := range map[string]*time.Duration{"quiesce": &cfg.Quiesce, "drain-timeout": &cfg.DrainTimeout, "kill-grace": &cfg.KillGrace} {
		if *to = c.Duration(name); *to < 0 {
			return usage("cannot use --%s %s: it cannot be negative", name, *to)
		}
	}
	if cfg.MaxDraining = c.Int("max-draining"); cfg.MaxDraining < 1 {
		return usage("cannot use --max-draining %d: at least 1 generation drains at each upgrade", cfg.MaxDraining)
	}
	if cfg.DrainSignal, err = parseSignal(c.String("drain-signal")); err != nil {
		return err
	}
	cfg.EndIdle, err = parseEndIdle(c.String("end-idle"))
	return err
}

func parseSignal(name string) (syscall.Signal, error) {
	const most = 64
	sig := unix.SignalNum("SIG" + strings.TrimPrefix(strings.ToUpper(name), "SIG"))
	if n, err := strconv.Atoi(name); err == nil && n > 0 && n <= most {
		sig = syscall.Signal(n)
	}
	if sig == 0 || sig == syscall.SIGKILL || sig == syscall.SIGSTOP {
		return 0, usage("cannot use --drain-signal %q: want a signal that a server can handle, such as TERM or QUIT", name)
	}
	return sig, nil
}

func signalName(sig syscall.Signal) string {
	if name := unix.SignalName(sig); name != "" {
		return name
	}
	return "signal " + strconv.Itoa(int(sig))
}

func parseEndIdle(value string) (time.Duration, error) {
	switch value {
	case "auto":
		return supervisor.EndIdleAuto, nil
	case "off":
		return supervisor.EndIdleOff, nil
	}
	d, err := time.ParseDuration(value)
	if err != nil || d <= 0 {
		return 0, usage("cannot use --end-idle %q: choose auto, off or a duration such as 2s", value)
	}
	return d, nil
}

func readRestart(c *cli.Context, cfg *supervisor.Config) error {
	how, _, err := choose(c, "restart")
	if err != nil {
		return err
	}
	cfg.Restart = supervisor.Restart(how)
	low, high, _ := strings.Cut(c.String("restart-delay"), "..")
	var errLow, errHigh error
	cfg.RestartMin, errLow = time.ParseDuration(low)
	cfg.RestartMax, errHigh = time.ParseDuration(high)
	if errLow != nil || errHigh != nil || cfg.RestartMin <= 0 || cfg.RestartMax < cfg.RestartMin {
		return usage("cannot use --restart-delay %q: want MIN..MAX, such as 100ms..30s", c.String("restart-delay"))
	}
	limit := c.String("restart-limit")
	if limit == "" {
		return nil
	}
	count, within, _ := strings.Cut(limit, "/")
	var errCount, errWithin error
	cfg.RestartLimit, errCount = strconv.Atoi(count)
	cfg.RestartWithin, errWithin = time.ParseDuration(within)
	if errCount != nil || errWithin != nil || cfg.RestartLimit < 1 || cfg.RestartWithin <= 0 {
		return usage("cannot use --restart-limit %q: want N/D, such as 5/1m", limit)
	}
	return nil
}

// notInName tells letters that a name may not have.
func notInName(r rune) bool {
	return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("._-", r)
}

func readMaster(c *cli.Context, cfg *supervisor.Config) (err error) {
	cfg.Name = c.String("name")
	if strings.ContainsFunc(cfg.Name, notInName) {
		return usage("cannot use --name %q: letters, digits, '.', '_' and '-' only", cfg.Name)
	}
	if cfg.Name == "" {
		cfg.Name = strings.Map(func(r rune) rune {
			if notInName(r) {
				return '_'
			}
			return r
		}, filepath.Base(cfg.Command[0]))
	}
	cfg.PIDFile, cfg.Version = c.String("pid-file"), c.App.Version
	cfg.Log, err = terminal.NewLogger(c.App.ErrWriter, c.String("log-level"), c.String("log-format"), cfg.Name)
	return err
}

// checkBraces finds {fd:NAME} and its like that name no socket, before anything
// is started.
func checkBraces(_ *cli.Context, cfg *supervisor.Config) error {
	var names []string
	for _, a := range cfg.Addresses {
		names = append(names, a.Name)
	}
	return fdpass.CheckTemplates(slices.Concat(cfg.Command, cfg.Env), names)
}
