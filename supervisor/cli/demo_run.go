package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/moult/moult/fdpass"
	"github.com/moult/moult/supervisor"
	"github.com/moult/moult/supervisor/load"
)

const (
	// Limits for what is bound to happen; the master has its own, which are
	// shorter.
	demoStartLimit = 20 * time.Second
	demoLeaveLimit = 45 * time.Second
	// demoStopLimit is how long the end may take before it is forced: the
	// load is gone by then.
	demoStopLimit = 3 * time.Second
)

// demoRun is one demonstration: a master, its load, and what came of it.
type demoRun struct {
	demoOptions
	screen  *screen
	journal *journal
	ctx     context.Context // done once the master stops, whoever asked it to
	stopped context.CancelFunc
	master  *supervisor.Supervisor
	ended   chan error // the master's Run

	streams []demoStream

	mu   sync.Mutex // guards step, and streams against the drawing of progress
	step demoStep
}

// demoStep is how far the demonstration has come.
type demoStep struct {
	doing      string
	done       int  // upgrades
	half       bool // through the next one: the new generation serves, the old one drains
	generation int  // that serves
}

func newDemoRun(o demoOptions, s *screen) *demoRun {
	d := &demoRun{demoOptions: o, screen: s, journal: newJournal(), ended: make(chan error, 1)}
	d.ctx, d.stopped = context.WithCancel(context.Background())
	d.step = demoStep{doing: "starting"}
	return d
}

// run is the whole demonstration. Its error says what was lost, or why it
// could not take place.
func (d *demoRun) run(signals *supervisor.Signals, stderr io.Writer) error {
	defer d.stopped()
	if err := d.startMaster(signals, stderr); err != nil {
		return err
	}
	drawn := d.draw()
	played := d.play()
	interrupted := errors.Is(played, errDemoStopped)
	result := d.stopLoad()
	err := d.stopMaster()
	drawn()
	if err != nil {
		return err
	}
	if interrupted {
		played = nil
	}
	result.failed = played
	if result.total.Requests() > 0 {
		d.screen.println(result.text(d.screen.paint))
	}
	return result.err()
}

func (d *demoRun) startMaster(signals *supervisor.Signals, stderr io.Writer) error {
	cfg, err := d.config()
	if err != nil {
		return err
	}
	cfg.Log, err = d.screen.logger(stderr, d.verbose)
	if err != nil {
		return err
	}
	cfg.OnTransition = d.hear
	if d.master, err = supervisor.New(cfg, signals); err != nil {
		return err
	}
	d.introduce()
	go func() { d.ended <- d.master.Run(context.Background()) }()
	return nil
}

// hear runs in the goroutine that owns the master's state, before anything is
// done about a stop: from here on the load counts nothing that is due to it.
func (d *demoRun) hear(t supervisor.Transition) {
	if isMaster(t, "stopping") {
		d.stopped()
	}
	d.journal.add(t)
}

func (d *demoRun) introduce() {
	socket := d.master.Sockets()[0]
	how, _ := socket.How()
	text := map[fdpass.Handover]string{
		fdpass.Steered: "a socket per generation, steered",
		fdpass.Renamed: "a socket per generation, the path moves",
		fdpass.Shared:  "one socket for all generations",
	}[how]
	manners := "graceful"
	if d.abrupt {
		manners = "abrupt"
	}
	d.screen.println(fmt.Sprintf("%s · %s server · %s", socket.Bound(), manners, text))
}

// play goes through the upgrades.
func (d *demoRun) play() error {
	first, err := d.journal.await(d.ctx, demoStartLimit, 0, "the first generation serves", func(t supervisor.Transition) bool { return isMaster(t, "serving") })
	if err != nil {
		return err
	}
	d.update(demoStep{doing: "warming up", generation: first.Generation})
	d.startLoad()
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

// upgrade asks for the n-th one and follows it until the old generation is
// gone, which may well be the moment when something is lost.
func (d *demoRun) upgrade(n int) error {
	d.phase(load.Upgrading)
	defer d.phase(load.AtRest)
	mark, old := d.journal.mark(), d.now().generation
	asked := time.Now()
	d.update(demoStep{doing: "upgrading", done: n - 1, generation: old})
	d.master.Upgrade()
	over, err := d.journal.await(d.ctx, demoStartLimit, mark, fmt.Sprintf("upgrade %d", n), func(t supervisor.Transition) bool {
		return t.From == "upgrading" && isMaster(t, "serving")
	})
	switch {
	case err != nil:
		return err
	case over.Generation <= old:
		return fmt.Errorf("upgrade %d failed: %s", n, over.Reason)
	}
	served := time.Since(asked)
	d.update(demoStep{doing: "draining", done: n - 1, half: true, generation: over.Generation})
	_, err = d.journal.await(d.ctx, demoLeaveLimit, mark, fmt.Sprintf("generation %d leaves", old), func(t supervisor.Transition) bool { return isWorker(t, old, "gone") })
	if err != nil {
		return err
	}
	d.update(demoStep{doing: "at rest", done: n, generation: over.Generation})
	d.tellUpgrade(n, served, time.Since(asked)-served)
	return nil
}

// rest lets the load run undisturbed for a while, to have something to
// compare with.
func (d *demoRun) rest() error {
	timer := time.NewTimer(min(max(3*time.Second/time.Duration(d.upgrades), 100*time.Millisecond), 600*time.Millisecond))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-d.ctx.Done():
		return errDemoStopped
	}
}

// stopLoad lets the clients finish what they have asked for, while somebody is
// there to answer. It is over at once where the master has stopped already.
func (d *demoRun) stopLoad() *demoResult {
	r := &demoResult{demoOptions: d.demoOptions, done: d.now().done, steered: d.steered()}
	var wait sync.WaitGroup
	for _, s := range d.streams {
		wait.Go(func() { s.traffic.Stop() })
	}
	wait.Wait()
	var fast []load.Report
	for _, s := range d.streams {
		report := s.traffic.Snapshot()
		r.rows = append(r.rows, demoRow{s.name, report})
		r.total = load.Sum(r.total, report)
		if !s.slow {
			fast = append(fast, report)
		}
	}
	r.fast = load.Sum(fast...)
	r.ready = d.readyTimes()
	return r
}

// steered tells whether each generation has a socket of its own.
func (d *demoRun) steered() bool {
	how, _ := d.master.Sockets()[0].How()
	return how != fdpass.Shared
}

// readyTimes is how long each generation took from its fork to being ready.
func (d *demoRun) readyTimes() map[int]time.Duration {
	times := map[int]time.Duration{}
	entries, _ := d.journal.since(0)
	for _, t := range entries {
		if t.From == "starting" && isWorker(t, t.Generation, "serving") {
			times[t.Generation] = t.Took
		}
	}
	return times
}

// stopMaster returns when no process is left.
func (d *demoRun) stopMaster() error {
	if d.ctx.Err() == nil {
		d.master.Stop()
	}
	timer := time.NewTimer(demoStopLimit)
	defer timer.Stop()
	for {
		select {
		case err := <-d.ended:
			return err
		case <-timer.C:
			d.master.Stop() // the second one ends at once
		}
	}
}

func (d *demoRun) now() demoStep {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.step
}

func (d *demoRun) update(s demoStep) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.step = s
}
