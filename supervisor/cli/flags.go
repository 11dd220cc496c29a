package cli

import (
	"os"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/moult/moult/fdpass"
	"github.com/moult/moult/supervisor"
	"github.com/moult/moult/supervisor/process"
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
	_, worker := os.LookupEnv(process.MarkVariable)
	return worker && (name == "name" || name == "control")
}

// protocols are those that --protocol takes, with what check says of them.
var protocols = []struct {
	name fdpass.Protocol
	told string
}{
	{fdpass.ProtocolAuto, "LISTEN_FDS (systemd), SERVER_STARTER_PORT, EINHORN_FD_*"},
	{fdpass.ProtocolListenFDs, "LISTEN_FDS (systemd)"},
	{fdpass.ProtocolServerStarter, "SERVER_STARTER_PORT"},
	{fdpass.ProtocolNone, "the command's own {fd}"},
}

// choices are the values of flags that have only a few: run takes them, and
// completion offers them. One that ends in = wants something behind it.
var choices = map[string][]string{
	"protocol":     protocolNames(),
	"handover":     {"auto", "steer", "share"},
	"ready":        {string(supervisor.ReadyAuto), string(supervisor.ReadyNotify), string(supervisor.ReadyAccept), string(supervisor.ReadyAlive) + "="},
	"end-idle":     {"auto", "off"},
	"drain-signal": {"TERM", "QUIT", "INT", "USR1", "USR2", "WINCH"},
	"restart":      {string(supervisor.RestartAlways), string(supervisor.RestartOnFailure), string(supervisor.RestartNever)},
	"log-level":    {"debug", "info", "warn", "error"},
	"log-format":   {"auto", "json", "text"},
}

func protocolNames() (names []string) {
	for _, p := range protocols {
		names = append(names, string(p.name))
	}
	return names
}

// choose reads a flag that has only a few values, and what stands behind the =
// of one that wants it.
func choose(c *cli.Context, name string) (choice, value string, err error) {
	given := c.String(name)
	choice, value, more := strings.Cut(given, "=")
	wanted := choice
	if more {
		wanted += "="
	}
	known := choices[name]
	if slices.Contains(known, wanted) {
		return choice, value, nil
	}
	last := len(known) - 1
	text := strings.Join(known[:last], ", ") + " or " + known[last]
	if strings.HasSuffix(text, "=") {
		text += "D"
	}
	return "", "", usage("cannot use --%s %q: choose %s", name, given, text)
}
