package cli

import (
	"fmt"
	"os"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/moult/moult/fdpass"
	"github.com/moult/moult/supervisor"
)

const demoText = `A small server that is built into moult gets three kinds of clients, none of
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

// demoOptions are the flags of demo.
type demoOptions struct {
	address  fdpass.Address
	share    bool
	abrupt   bool
	upgrades int
	serve    bool
	verbose  bool
}

const (
	categoryDemo = "Flags"

	demoUpgrades    = 5
	demoMaxUpgrades = 1000

	// demoIdle is for how long a connection to an abrupt server is left
	// idle, once nothing new comes: its clients rest for longer.
	demoIdle = 300 * time.Millisecond
	// demoQuiesce is more than the longest answer and the longest rest take
	// together, also on a machine that is busy otherwise.
	demoQuiesce = 10 * time.Second
)

func demoCommand() *cli.Command {
	return &cli.Command{
		Name:        "demo",
		Usage:       "see it: a small server is upgraded under load and loses nothing",
		ArgsUsage:   "[flags]",
		Description: demoText,
		Flags:       demoFlags(),
		Action:      demo,
	}
}

func demoFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "listen", Aliases: []string{"l"}, Category: categoryDemo,
			Usage: "`ADDR` of the server, as in moult run: 127.0.0.1:8080, unix:///path", DefaultText: "127.0.0.1, a free port"},
		&cli.StringFlag{Name: "handover", Value: "auto", Category: categoryDemo,
			Usage: "`HOW`: auto gives each generation a socket of its own and lets the kernel steer; share gives all generations the same one, and then the server itself has to stop well"},
		&cli.IntFlag{Name: "upgrades", Aliases: []string{"u"}, Value: demoUpgrades, Category: categoryDemo,
			Usage: fmt.Sprintf("`N` from 1 to %d: how many; with more than six the slow answers are shorter", demoMaxUpgrades)},
		&cli.BoolFlag{Name: "abrupt", Category: categoryDemo,
			Usage: "the server has no graceful stop at all: TERM kills it with whatever it has in hand. Its clients that keep their connection rest for a moment between two requests, since a connection that is never idle can be ended well by the server alone"},
		&cli.BoolFlag{Name: "serve", Category: categoryDemo,
			Usage: "no load and no end: this process is the master, with the signals of moult run"},
		&cli.BoolFlag{Name: "verbose", Aliases: []string{"v"}, Category: categoryDemo,
			Usage: "show the master's log lines instead of the line of progress"},
	}
}

func demo(c *cli.Context) error {
	// Before anything else: what arrives while flags are read is not lost.
	signals := supervisor.Notify()
	defer signals.Close()
	o, err := readDemo(c)
	if err != nil {
		return usageError{err}
	}
	if o.serve {
		return demoServe(o, signals, c.App.Writer, c.App.ErrWriter)
	}
	return newDemoRun(o, newScreen(c.App.Writer, o.verbose)).run(signals, c.App.ErrWriter)
}

func readDemo(c *cli.Context) (o demoOptions, err error) {
	o = demoOptions{
		share: c.String("handover") == "share", abrupt: c.Bool("abrupt"), upgrades: c.Int("upgrades"),
		serve: c.Bool("serve"), verbose: c.Bool("verbose"),
	}
	if how := c.String("handover"); how != "auto" && how != "share" {
		return o, fmt.Errorf("cannot use --handover %q: choose auto or share", how)
	}
	if o.upgrades < 1 || o.upgrades > demoMaxUpgrades {
		return o, fmt.Errorf("cannot use --upgrades %d: choose 1 to %d", o.upgrades, demoMaxUpgrades)
	}
	if o.serve && c.IsSet("upgrades") {
		return o, fmt.Errorf("cannot use --upgrades with --serve: there you upgrade by hand, with SIGHUP")
	}
	if c.NArg() > 0 {
		return o, fmt.Errorf("cannot use %q: the demo has its own server; see moult help demo", c.Args().First())
	}
	o.address, err = readDemoAddress(c.String("listen"))
	return o, err
}

func readDemoAddress(s string) (fdpass.Address, error) {
	if s == "" {
		s = "demo=127.0.0.1:0"
	}
	a, err := fdpass.ParseAddress(s)
	if err != nil {
		return a, err
	}
	switch a.Network {
	case "udp", "udp4", "udp6", "unixgram":
		return a, fmt.Errorf("cannot use --listen %q: the demo's server speaks HTTP; choose an address of tcp or unix", s)
	}
	return a, nil
}

// config is what the demo's master is told: as little as possible that is not
// the default of run.
func (o *demoOptions) config() (supervisor.Config, error) {
	cfg := supervisor.Defaults()
	self, err := os.Executable()
	if err != nil {
		return cfg, fmt.Errorf("cannot find moult's own program, which is the demo's server as well: %w", err)
	}
	cfg.Name = "demo"
	cfg.Command = []string{self, demoWorkerName}
	cfg.Addresses = []fdpass.Address{o.address}
	cfg.Share = o.share
	cfg.ReadyTimeout = 10 * time.Second
	if o.abrupt {
		cfg.Command = append(cfg.Command, "--abrupt")
		cfg.EndIdle, cfg.Quiesce = demoIdle, demoQuiesce
	} else {
		cfg.Quiesce = 0 // it drains well: nothing is gained by waiting
	}
	return cfg, nil
}
