// Package demo shows what moult does: a small server is upgraded under load,
// and every request that fails is counted. The load is in package load.
package demo

import (
	"fmt"
	"os"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/moult/moult/fdpass"
	"github.com/moult/moult/supervisor"
	"github.com/moult/moult/supervisor/cli/terminal"
)

const text = `A small server that is built into moult gets three kinds of clients, none of
which ever sends a request twice: some open a connection for each request, some
keep theirs, some are in the middle of a slow answer. Meanwhile it is upgraded a
few times. The table at the end counts each request that was refused, reset, cut
short, answered wrongly or not in time; if there is one, the exit code is 1.

    moult demo                             nothing is lost
    moult demo --abrupt                    nothing is lost, although the server
                                           dies of the drain signal on the spot
    moult demo --abrupt --handover share   requests are lost: this is what
                                           steering is there for
    moult demo --serve                     the server alone, to play with by hand`

// options are the flags.
type options struct {
	address  fdpass.Address
	share    bool
	abrupt   bool
	upgrades int
	verbose  bool
}

const (
	category = "Flags"

	usualUpgrades = 5
	maxUpgrades   = 1000

	// idleLimit is for how long a connection to an abrupt server is left
	// idle, once nothing new comes: its clients rest for longer.
	idleLimit = 300 * time.Millisecond
	// abruptQuiesce is more than the longest answer and the longest rest
	// take together, also on a machine that is busy otherwise.
	abruptQuiesce = 10 * time.Second
)

// Command is moult demo.
func Command() *cli.Command {
	return &cli.Command{
		Name:        "demo",
		Usage:       "see it: a small server is upgraded under load and loses nothing",
		ArgsUsage:   "[flags]",
		Description: text,
		Flags:       flags(),
		Action:      run,
	}
}

func flags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "listen", Aliases: []string{"l"}, Category: category,
			Usage: "`ADDR` of the server, as in moult run: 127.0.0.1:8080, unix:///path", DefaultText: "127.0.0.1, a free port"},
		&cli.StringFlag{Name: "handover", Value: "auto", Category: category,
			Usage: "`HOW`: auto gives each generation a socket of its own and lets the kernel steer; share gives all generations the same one, and then the server itself has to stop well"},
		&cli.IntFlag{Name: "upgrades", Aliases: []string{"u"}, Value: usualUpgrades, Category: category,
			Usage: fmt.Sprintf("`N` from 1 to %d: how many; with more than six the slow answers are shorter", maxUpgrades)},
		&cli.BoolFlag{Name: "abrupt", Category: category,
			Usage: "the server has no graceful stop at all: TERM kills it with whatever it has in hand. Its clients that keep their connection rest for a moment between two requests, since a connection that is never idle can be ended well by the server alone"},
		&cli.BoolFlag{Name: "serve", Category: category,
			Usage: "no load and no end: this process is the master, with the signals of moult run"},
		&cli.BoolFlag{Name: "verbose", Aliases: []string{"v"}, Category: category,
			Usage: "show the master's log lines instead of the line of progress"},
	}
}

func run(c *cli.Context) error {
	// Before anything else: what arrives while flags are read is not lost.
	signals := supervisor.Notify()
	defer signals.Close()
	o, err := readOptions(c)
	if err != nil {
		const usage = 2
		return &supervisor.Exit{Code: usage, Err: err}
	}
	if c.Bool("serve") {
		return serve(o, signals, c.App.Writer, c.App.ErrWriter)
	}
	return newShow(o, terminal.NewScreen(c.App.Writer)).run(signals, c.App.ErrWriter)
}

func readOptions(c *cli.Context) (o options, err error) {
	o = options{share: c.String("handover") == "share", abrupt: c.Bool("abrupt"), upgrades: c.Int("upgrades"), verbose: c.Bool("verbose")}
	switch how := c.String("handover"); {
	case how != "auto" && how != "share":
		return o, fmt.Errorf("cannot use --handover %q: choose auto or share", how)
	case o.upgrades < 1 || o.upgrades > maxUpgrades:
		return o, fmt.Errorf("cannot use --upgrades %d: choose 1 to %d", o.upgrades, maxUpgrades)
	case c.Bool("serve") && c.IsSet("upgrades"):
		return o, fmt.Errorf("cannot use --upgrades with --serve: there you upgrade by hand, with SIGHUP")
	case c.NArg() > 0:
		return o, fmt.Errorf("cannot use %q: the demo has its own server; see moult help demo", c.Args().First())
	}
	address := c.String("listen")
	if address == "" {
		address = "demo=127.0.0.1:0"
	}
	if o.address, err = fdpass.ParseAddress(address); err != nil {
		return o, err
	}
	switch o.address.Network {
	case "udp", "udp4", "udp6", "unixgram":
		return o, fmt.Errorf("cannot use --listen %q: the demo's server speaks HTTP; choose an address of tcp or unix", address)
	}
	return o, nil
}

// config is what the demo's master is told: as little as possible that is not
// the default of run.
func (o *options) config() (supervisor.Config, error) {
	cfg := supervisor.Defaults()
	self, err := os.Executable()
	if err != nil {
		return cfg, fmt.Errorf("cannot find moult's own program, which is the demo's server as well: %w", err)
	}
	cfg.Name = "demo"
	cfg.Command = []string{self, workerName}
	cfg.Addresses = []fdpass.Address{o.address}
	cfg.Share = o.share
	cfg.ReadyTimeout = 10 * time.Second
	if o.abrupt {
		cfg.Command = append(cfg.Command, "--abrupt")
		cfg.EndIdle, cfg.Quiesce = idleLimit, abruptQuiesce
	} else {
		cfg.Quiesce = 0 // it drains well: nothing is gained by waiting
	}
	return cfg, nil
}
