package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/moult/moult/supervisor"
	"github.com/moult/moult/supervisor/cli/demo/load"
	"github.com/moult/moult/supervisor/cli/terminal"
	"github.com/moult/moult/supervisor/control/api"
)

const (
	// Limits for what is bound to happen; the master has its own, which are
	// shorter.
	startLimit   = 20 * time.Second
	upgradeLimit = 60 * time.Second
	// stopLimit is how long the end may take before it is forced: the load
	// is gone by then.
	stopLimit = 3 * time.Second

	drawPace = 100 * time.Millisecond
)

// errStopped says that the demo's master was told to end, or had to.
var errStopped = errors.New("stopped")

// show is one demonstration: a master, its load, and what came of it.
type show struct {
	options
	screen  *terminal.Screen
	master  *supervisor.Supervisor
	socket  api.Socket
	ctx     context.Context // done once the master stops, whoever asked it to
	stopped context.CancelFunc
	serves  chan struct{} // closed when the first generation does
	ended   chan error    // the master's Run
	streams []stream
	now     atomic.Pointer[step]
}

// step is how far the demonstration has come.
type step struct {
	doing      string
	done       int // upgrades
	generation int // that serves
}

func newShow(o options, s *terminal.Screen) *show {
	if o.verbose {
		s.NoStatus() // log lines would come between
	}
	d := &show{options: o, screen: s, serves: make(chan struct{}), ended: make(chan error, 1)}
	d.ctx, d.stopped = context.WithCancel(context.Background())
	d.now.Store(&step{doing: "warming up", generation: 1})
	return d
}

// run is the whole demonstration. Its error says what was lost, or why it
// could not take place.
func (d *show) run(signals *supervisor.Signals, stderr io.Writer) error {
	defer d.stopped()
	if err := d.startMaster(signals, stderr); err != nil {
		return err
	}
	played := d.play()
	result := d.stopLoad()
	if err := d.stopMaster(); err != nil {
		return err
	}
	if !errors.Is(played, errStopped) {
		result.failed = played
	}
	if result.total.Requests() > 0 {
		d.screen.Println(result.text(d.screen.Paint))
	}
	return result.err()
}

func (d *show) startMaster(signals *supervisor.Signals, stderr io.Writer) error {
	cfg, err := d.config()
	if err != nil {
		return err
	}
	if d.verbose {
		cfg.Log, err = terminal.NewLogger(stderr, "info", "auto", cfg.Name)
	} else {
		cfg.Log, err = terminal.NewLogger(d.screen.Beside(stderr), "error", "text", cfg.Name)
	}
	if err != nil {
		return err
	}
	cfg.OnTransition = d.hear()
	if d.master, err = supervisor.New(cfg, signals); err != nil {
		return err
	}
	d.socket = d.master.Sockets()[0]
	d.introduce()
	go func() {
		err := d.master.Run(context.Background())
		d.stopped()
		d.ended <- err
	}()
	return nil
}

// hear runs in the goroutine that owns the master's state, before anything is
// done about a stop: from here on the load counts nothing that is due to it.
func (d *show) hear() func(supervisor.Transition) {
	serves := sync.OnceFunc(func() { close(d.serves) })
	return func(t supervisor.Transition) {
		switch {
		case t.PID != 0:
		case t.To == api.Stopping:
			d.stopped()
		case t.To == api.Serving:
			serves()
		}
	}
}

func (d *show) introduce() {
	how := map[string]string{
		api.Steer:  "a socket per generation, steered",
		api.Rename: "a socket per generation, the path moves",
		api.Share:  "one socket for all generations",
	}[d.socket.Handover]
	manners := "graceful"
	if d.abrupt {
		manners = "abrupt"
	}
	d.screen.Println(fmt.Sprintf("%s · %s server · %s", d.socket.Address, manners, how))
}

// play goes through the upgrades.
func (d *show) play() error {
	if err := d.wait(d.serves, startLimit, "the first generation does not serve"); err != nil {
		return err
	}
	d.startLoad()
	defer d.screen.Follow(drawPace, d.statusLine)()
	if err := d.flowing(); err != nil {
		return err
	}
	for n := 1; n <= d.upgrades; n++ {
		if err := d.rest(); err != nil {
			return err
		}
		if err := d.upgrade(n); err != nil {
			return err
		}
	}
	return d.rest()
}

// wait returns an error if what is waited for does not come.
func (d *show) wait(what <-chan struct{}, limit time.Duration, otherwise string) error {
	select {
	case <-what:
		return nil
	case <-d.ctx.Done():
		return errStopped
	case <-time.After(limit):
		return fmt.Errorf("%s within %s", otherwise, limit)
	}
}

// rest lets the load run undisturbed for a while, to have something to
// compare with.
func (d *show) rest() error {
	select {
	case <-time.After(min(max(3*time.Second/time.Duration(d.upgrades), 100*time.Millisecond), 600*time.Millisecond)):
		return nil
	case <-d.ctx.Done():
		return errStopped
	}
}

// upgrade asks for the n-th one and follows it until the old generation is
// gone, which may well be the moment when something is lost.
func (d *show) upgrade(n int) error {
	d.phase(load.Upgrading)
	defer d.phase(load.AtRest)
	before := *d.now.Load()
	d.now.Store(&step{"upgrading", before.done, before.generation})
	events, err := d.master.Begin(d.ctx, api.Operation{Kind: api.OpUpgrade})
	if err != nil {
		return d.unlessStopped(err)
	}
	late := time.After(upgradeLimit)
	for ready := (api.Event{}); ; {
		select {
		case e := <-events:
			switch e.Event {
			case api.EventReady:
				ready = e
				d.now.Store(&step{"draining", before.done, e.To})
			case api.EventDone:
				d.now.Store(&step{"at rest", n, e.To})
				d.tell(n, ready.TookMS, e.TookMS-ready.TookMS)
				return nil
			case api.EventFailed:
				return d.unlessStopped(fmt.Errorf("upgrade %d failed: %s", n, e.Reason))
			}
		case <-d.ctx.Done():
			return errStopped
		case <-late:
			return fmt.Errorf("upgrade %d is not over within %s", n, upgradeLimit)
		}
	}
}

// unlessStopped is err, but for that of a master which was told to stop.
func (d *show) unlessStopped(err error) error {
	if d.ctx.Err() != nil {
		return errStopped
	}
	return err
}

func (d *show) tell(n int, ready, drained float64) {
	requests, failures := d.counted()
	d.screen.Println(fmt.Sprintf("upgrade %d/%d  ready %8s  drained %8s %10s requests  %s", n, d.upgrades,
		latency(terminal.Milliseconds(ready)), latency(terminal.Milliseconds(drained)), terminal.Thousands(requests), terminal.Plural(failures, "failure")))
}

func (d *show) statusLine() string {
	now := d.now.Load()
	requests, failures := d.counted()
	return fmt.Sprintf("%d/%d %s · %s · generation %d · %s requests",
		now.done, d.upgrades, now.doing, terminal.Plural(failures, "failure"), now.generation, terminal.Thousands(requests))
}

// stopMaster returns when no process is left.
func (d *show) stopMaster() error {
	if d.ctx.Err() == nil {
		d.master.Stop()
	}
	for {
		select {
		case err := <-d.ended:
			return err
		case <-time.After(stopLimit):
			d.master.Stop() // the second one ends at once
		}
	}
}
