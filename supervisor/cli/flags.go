package cli

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/moult/moult/fdpass"
	"github.com/moult/moult/supervisor"
)

// Groups of flags in the help.
const (
	categorySockets = "Sockets"
	categoryWorkers = "Workers"
	categoryReady   = "Ready"
	categoryDrain   = "Hand-over and drain"
	categoryCrash   = "Crashes"
	categoryMaster  = "Master"
	categoryHelp    = "Help"
)

// runFlags are those of run and of check. Each has an environment variable,
// MOULT_ and its name in capitals.
func runFlags() []cli.Flag {
	d := supervisor.Defaults()
	return []cli.Flag{
		&cli.StringSliceFlag{Name: "listen", Aliases: []string{"l"}, Category: categorySockets,
			Usage: "`[NAME=]ADDR`: a socket that moult opens and holds; may be repeated. :8080, 127.0.0.1:8080, [::1]:8080, tcp4://…, tcp6://…, unix:///path, unix://@abstract, udp://…, unixgram://…, fd://N, systemd://NAME; options as a query: backlog=, mode=, owner=USER:GROUP, reuseport=1, v6only=1"},
		&cli.BoolFlag{Name: "intercept", Category: categorySockets,
			Usage: "hold what the server binds itself: nothing of it has to be changed. With --listen, for addresses beyond those", DefaultText: "on without --listen"},
		&cli.BoolFlag{Name: "intercept-unlink", Category: categorySockets,
			Usage: "keep the paths of the server's unix sockets when it unlinks them, from its first generation on: each unlink of any file then waits for moult's answer. Later generations of a server with such sockets have it without", DefaultText: "off"},
		&cli.StringSliceFlag{Name: "protocol", Category: categorySockets,
			Usage: "`NAME`: how the worker is told of its sockets; may be repeated. auto (listen-fds, server-starter and einhorn's descriptor variables), listen-fds, server-starter, none (the command has {fd:NAME})", DefaultText: "auto"},
		&cli.StringFlag{Name: "handover", Value: "auto", Category: categorySockets,
			Usage: "`HOW`: auto gives each generation a socket of its own and lets the kernel steer (TCP on Linux; unix paths by rename); share gives all generations the same one; steer fails where it cannot be done"},

		&cli.IntFlag{Name: "workers", Aliases: []string{"n"}, Value: d.Workers, Category: categoryWorkers, Usage: "`N` processes per generation; SIGTTIN adds one, SIGTTOU takes one away"},
		&cli.StringFlag{Name: "chdir", Category: categoryWorkers, Usage: "`DIR` to start in", DefaultText: "where moult was started, by the name it had: a link that has moved leads to the new place"},
		&cli.StringSliceFlag{Name: "env", Category: categoryWorkers, Usage: "`K=V`: a variable for the worker; may be repeated, may contain {fd:NAME} and its like"},
		&cli.StringSliceFlag{Name: "env-file", Category: categoryWorkers, Usage: "`FILE` of K=V lines, read again at each start; may be repeated"},
		&cli.StringFlag{Name: "user", Category: categoryWorkers, Usage: "`USER` to run as, by name or number; HOME and USER follow"},
		&cli.StringFlag{Name: "group", Category: categoryWorkers, Usage: "`GROUP` to run as", DefaultText: "the user's own"},
		&cli.StringFlag{Name: "umask", Category: categoryWorkers, Usage: "`MASK` in octal", DefaultText: "moult's"},

		&cli.StringFlag{Name: "ready", Value: string(d.Ready), Category: categoryReady,
			Usage: "`HOW` a worker is known to be ready. auto: seen accepting on every socket, and READY=1 (sd_notify) as well once a generation has sent one, alone where accepting cannot be seen; notify; accept; alive=D: has lived for D. None of these looks at what the server answers"},
		&cli.DurationFlag{Name: "ready-timeout", Value: d.ReadyTimeout, Category: categoryReady, Usage: "`D`: then the upgrade has failed, and the old generation keeps serving"},

		&cli.DurationFlag{Name: "quiesce", Value: d.Quiesce, Category: categoryDrain,
			Usage: "`D`: an old worker gets nothing new, and its connections are left to end by themselves for at most D before the drain signal; it comes sooner when none is left, or only idle ones of a server that was seen to finish by itself. 5s lets most answers end under a server that dies of the signal, and leaves a server that drains half of docker's 10s; 0 signals at once"},
		&cli.StringFlag{Name: "end-idle", Value: "auto", Category: categoryDrain,
			Usage: "`D|off|auto`: before the drain signal, keep-alive connections that have been idle for D are ended as if the client had. auto: after 1s, where the server is seen to die of the drain signal; turn it off for servers that push"},
		&cli.StringFlag{Name: "drain-signal", Value: "TERM", Category: categoryDrain, Usage: "`SIG` asks a worker to finish and leave (QUIT for nginx, unicorn, php-fpm; USR1 for haproxy; WINCH for Apache)"},
		&cli.DurationFlag{Name: "drain-timeout", Value: d.DrainTimeout, Category: categoryDrain, Usage: "`D`: then it gets TERM, and after --kill-grace KILL, with its process group"},
		&cli.DurationFlag{Name: "kill-grace", Value: d.KillGrace, Category: categoryDrain, Usage: "`D` between the two"},
		&cli.IntFlag{Name: "max-draining", Value: d.MaxDraining, Category: categoryDrain, Usage: "`N` generations may drain at once; beyond that the oldest is told to leave at once, with --kill-grace for a limit"},

		&cli.StringFlag{Name: "restart", Value: string(d.Restart), Category: categoryCrash, Usage: "`WHEN` a worker that leaves unasked is replaced: always, on-failure, never. Otherwise moult ends, with its status"},
		&cli.StringFlag{Name: "restart-delay", Value: "100ms..30s", Category: categoryCrash, Usage: "`MIN..MAX`: none after the first crash, then doubling from MIN to MAX, with jitter; from the start again after a minute without"},
		&cli.StringFlag{Name: "restart-limit", Category: categoryCrash, Usage: "`N/D`: give up after N failures within D", DefaultText: "none"},

		&cli.StringFlag{Name: "name", Category: categoryMaster, Usage: "`NAME` in log lines, metrics and the control socket; letters, digits, '.', '_', '-'", DefaultText: "the command's base name"},
		&cli.StringFlag{Name: "control", Category: categoryMaster, Usage: "`PATH` of the unix socket for moult status, upgrade, rollback, stop and scale; off for none. Its user and root alone may use it", DefaultText: "$XDG_RUNTIME_DIR/moult/NAME.sock, or /run/moult/NAME.sock"},
		&cli.StringFlag{Name: "admin", Category: categoryMaster, Usage: "`ADDR` for /livez, /readyz, /metrics and /status over HTTP", DefaultText: "none"},
		&cli.BoolFlag{Name: "admin-public", Category: categoryMaster, Usage: "let --admin be an address that other machines reach"},
		&cli.StringFlag{Name: "pid-file", Category: categoryMaster, Usage: "`PATH`, written when the first generation is ready, removed at the end"},
		&cli.StringFlag{Name: "log-level", Value: "info", Category: categoryMaster, Usage: "`LEVEL`: debug, info, warn, error"},
		&cli.StringFlag{Name: "log-format", Value: "auto", Category: categoryMaster, Usage: "`FORMAT` on stderr: json, text; auto is text on a terminal"},
	}
}

// variable is the environment variable of a flag.
func variable(flag string) string {
	return "MOULT_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// fromEnvironment sets flags that the command line left alone. Lists are split
// at commas here, and only here.
func fromEnvironment(c *cli.Context) error {
	for _, flag := range c.Command.Flags {
		name := flag.Names()[0]
		value, ok := os.LookupEnv(variable(name))
		if !ok || value == "" || c.IsSet(name) || name == "help" || ofMasterAbove(name) {
			continue
		}
		values := []string{value}
		if _, list := flag.(*cli.StringSliceFlag); list {
			values = strings.Split(value, ",")
		}
		for _, v := range values {
			if err := c.Set(name, v); err != nil {
				return usage("cannot use %s=%q: %w", variable(name), value, err)
			}
		}
	}
	return nil
}

// ofMasterAbove tells variables that a master has set for its workers, of which
// this process is one, from those that the user means for this master.
func ofMasterAbove(name string) bool {
	_, worker := os.LookupEnv(supervisor.WorkerVariable)
	return worker && (name == "name" || name == "control")
}

// readConfig turns flags and variables into what the master is told.
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
			return cfg, usageError{err}
		}
	}
	return cfg, nil
}

func readSockets(c *cli.Context, cfg *supervisor.Config) (err error) {
	cfg.Intercept, cfg.InterceptUnlink = c.Bool("intercept"), c.Bool("intercept-unlink")
	if len(c.StringSlice("listen")) == 0 {
		if c.IsSet("intercept") && !cfg.Intercept {
			return errors.New("no socket to hold: without --intercept there has to be a --listen")
		}
		cfg.Intercept = true
	}
	if cfg.InterceptUnlink && !cfg.Intercept {
		return errors.New("cannot use --intercept-unlink without --intercept")
	}
	if cfg.Addresses, err = fdpass.ParseAddresses(c.StringSlice("listen")); err != nil {
		return err
	}
	if cfg.Protocols, err = fdpass.ParseProtocols(c.StringSlice("protocol")); err != nil {
		return err
	}
	switch how := c.String("handover"); how {
	case "auto", "steer":
	case "share":
		cfg.Share = true
	default:
		return fmt.Errorf("cannot use --handover %q: choose auto, steer or share", how)
	}
	cfg.MustSteer = c.String("handover") == "steer"
	return nil
}

func readWorker(c *cli.Context, cfg *supervisor.Config) error {
	cfg.Workers = c.Int("workers")
	if cfg.Workers < 1 || cfg.Workers > supervisor.MaxWorkers {
		return fmt.Errorf("cannot use --workers %d: choose 1 to %d", cfg.Workers, supervisor.MaxWorkers)
	}
	cfg.Env = c.StringSlice("env")
	for _, kv := range cfg.Env {
		if key, _, ok := strings.Cut(kv, "="); !ok || key == "" {
			return fmt.Errorf("cannot use --env %q: want K=V", kv)
		}
	}
	cfg.EnvFiles = absolute(c.StringSlice("env-file"))
	cfg.User, cfg.Group = c.String("user"), c.String("group")
	if _, err := fdpass.LookupCredential(cfg.User, cfg.Group); err != nil {
		return err
	}
	if dir := c.String("chdir"); dir != "" {
		cfg.Dir = absolute([]string{dir})[0]
	}
	if mask := c.String("umask"); mask != "" {
		n, err := strconv.ParseUint(mask, 8, 16)
		if err != nil || n > 0o777 {
			return fmt.Errorf("cannot use --umask %q: want octal, such as 027", mask)
		}
		m := int(n)
		cfg.Umask = &m
	}
	return nil
}

func absolute(paths []string) []string {
	var out []string
	for _, p := range paths {
		if abs, err := filepath.Abs(p); err == nil {
			p = abs
		}
		out = append(out, p)
	}
	return out
}

func readReady(c *cli.Context, cfg *supervisor.Config) error {
	cfg.ReadyTimeout = c.Duration("ready-timeout")
	if cfg.ReadyTimeout <= 0 {
		return fmt.Errorf("cannot use --ready-timeout %s: it has to be longer than nothing", cfg.ReadyTimeout)
	}
	how, value, _ := strings.Cut(c.String("ready"), "=")
	cfg.Ready = supervisor.ReadyHow(how)
	switch cfg.Ready {
	case supervisor.ReadyAuto, supervisor.ReadyNotify, supervisor.ReadyAccept:
		if value == "" {
			return nil
		}
	case supervisor.ReadyAlive:
		d, err := time.ParseDuration(value)
		if err != nil || d < 0 {
			return fmt.Errorf("cannot use --ready %q: want a duration, such as alive=2s", c.String("ready"))
		}
		if d >= cfg.ReadyTimeout {
			return fmt.Errorf("cannot use --ready %q: --ready-timeout %s is over before", c.String("ready"), cfg.ReadyTimeout)
		}
		cfg.ReadyAlive = d
		return nil
	}
	return fmt.Errorf("cannot use --ready %q: choose auto, notify, accept or alive=D", c.String("ready"))
}

func readDrain(c *cli.Context, cfg *supervisor.Config) (err error) {
	for name, to := range map[string]*time.Duration{"quiesce": &cfg.Quiesce, "drain-timeout": &cfg.DrainTimeout, "kill-grace": &cfg.KillGrace} {
		if *to = c.Duration(name); *to < 0 {
			return fmt.Errorf("cannot use --%s %s: it cannot be negative", name, *to)
		}
	}
	if cfg.MaxDraining = c.Int("max-draining"); cfg.MaxDraining < 1 {
		return fmt.Errorf("cannot use --max-draining %d: at least 1 generation drains at each upgrade", cfg.MaxDraining)
	}
	if cfg.DrainSignal, err = parseSignal(c.String("drain-signal")); err != nil {
		return err
	}
	cfg.EndIdle, err = parseEndIdle(c.String("end-idle"))
	return err
}

func parseSignal(name string) (syscall.Signal, error) {
	if n, err := strconv.Atoi(name); err == nil && n > 0 && n < 65 && n != int(syscall.SIGKILL) && n != int(syscall.SIGSTOP) {
		return syscall.Signal(n), nil
	}
	sig := unix.SignalNum("SIG" + strings.TrimPrefix(strings.ToUpper(name), "SIG"))
	if sig == 0 || sig == syscall.SIGKILL || sig == syscall.SIGSTOP {
		return 0, fmt.Errorf("cannot use --drain-signal %q: want a signal that a server can handle, such as TERM or QUIT", name)
	}
	return sig, nil
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
		return 0, fmt.Errorf("cannot use --end-idle %q: choose auto, off or a duration such as 2s", value)
	}
	return d, nil
}

func readRestart(c *cli.Context, cfg *supervisor.Config) error {
	cfg.Restart = supervisor.Restart(c.String("restart"))
	switch cfg.Restart {
	case supervisor.RestartAlways, supervisor.RestartOnFailure, supervisor.RestartNever:
	default:
		return fmt.Errorf("cannot use --restart %q: choose always, on-failure or never", cfg.Restart)
	}
	low, high, ok := strings.Cut(c.String("restart-delay"), "..")
	var errLow, errHigh error
	cfg.RestartMin, errLow = time.ParseDuration(low)
	cfg.RestartMax, errHigh = time.ParseDuration(high)
	if !ok || errLow != nil || errHigh != nil || cfg.RestartMin <= 0 || cfg.RestartMax < cfg.RestartMin {
		return fmt.Errorf("cannot use --restart-delay %q: want MIN..MAX, such as 100ms..30s", c.String("restart-delay"))
	}
	return readRestartLimit(c.String("restart-limit"), cfg)
}

func readRestartLimit(value string, cfg *supervisor.Config) error {
	if value == "" {
		return nil
	}
	count, within, ok := strings.Cut(value, "/")
	var errCount, errWithin error
	cfg.RestartLimit, errCount = strconv.Atoi(count)
	cfg.RestartWithin, errWithin = time.ParseDuration(within)
	if !ok || errCount != nil || errWithin != nil || cfg.RestartLimit < 1 || cfg.RestartWithin <= 0 {
		return fmt.Errorf("cannot use --restart-limit %q: want N/D, such as 5/1m", value)
	}
	return nil
}

var validName = regexp.MustCompile(`^[A-Za-z0-9._-]+$`)

func readMaster(c *cli.Context, cfg *supervisor.Config) (err error) {
	cfg.Name = c.String("name")
	if cfg.Name == "" {
		cfg.Name = regexp.MustCompile(`[^A-Za-z0-9._-]`).ReplaceAllString(filepath.Base(cfg.Command[0]), "_")
	}
	if !validName.MatchString(cfg.Name) {
		return fmt.Errorf("cannot use --name %q: letters, digits, '.', '_' and '-' only", cfg.Name)
	}
	cfg.PIDFile, cfg.Version = c.String("pid-file"), c.App.Version
	cfg.Log, err = newLogger(c.App.ErrWriter, c.String("log-level"), c.String("log-format"), cfg.Name)
	return err
}

// checkBraces finds {fd:NAME} and its like that name no socket, before anything
// is started.
func checkBraces(_ *cli.Context, cfg *supervisor.Config) error {
	var names []string
	for _, a := range cfg.Addresses {
		names = append(names, a.Name)
	}
	return fdpass.CheckTemplates(append(append([]string{}, cfg.Command...), cfg.Env...), names)
}

func signalName(sig syscall.Signal) string {
	if name := unix.SignalName(sig); name != "" {
		return name
	}
	return fmt.Sprintf("signal %d", int(sig))
}
