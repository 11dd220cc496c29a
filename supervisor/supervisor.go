package supervisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/moult/moult/fdpass"
	"github.com/moult/moult/fdpass/intercept"
	"github.com/moult/moult/fdpass/start"
	"github.com/moult/moult/supervisor/control/api"
	"github.com/moult/moult/supervisor/machine"
	"github.com/moult/moult/supervisor/process"
)

// Supervisor is one master. New makes it, Run runs it once.
type Supervisor struct {
	cfg     Config
	log     zerolog.Logger
	pid     int
	mind    *machine.Machine // touched by the loop alone
	signals *Signals

	events  chan machine.Event
	asks    chan func() // what only the loop may look at
	done    chan struct{}
	closing sync.Once
	beside  beside

	sockets *sockets
	workers *workers
	clients clients
	starter starter
	record  *recorder
	pidFile pidFile
	exit    *machine.Exit
}

// New opens the sockets. It returns an *Exit whose code says what `run` ends
// with. signals is what Notify returned.
func New(cfg Config, signals *Signals) (*Supervisor, error) {
	s := &Supervisor{
		cfg: cfg, log: cfg.Log, pid: os.Getpid(), signals: signals,
		events: make(chan machine.Event, 64), asks: make(chan func()), done: make(chan struct{}),
		workers: newWorkers(),
		starter: starter{pid: os.Getpid(), home: logicalDirectory(), base: fdpass.CleanEnviron(os.Environ())},
	}
	s.mind = machine.New(cfg.mind(s.pid))
	s.starter.cfg = &s.cfg
	s.pidFile.path, s.pidFile.pid = cfg.PIDFile, s.pid
	s.sockets = newSockets(cfg.Share, s.link())
	start.SealDescriptors()
	if cfg.Intercept {
		if err := intercept.Works(); err != nil {
			return nil, &Exit{Code: 1, Err: fmt.Errorf("cannot intercept what the server binds: %w; open its address with --listen instead", err)}
		}
	}
	for _, a := range cfg.Addresses {
		if err := s.sockets.open(a, &s.cfg); err != nil {
			s.sockets.close()
			return nil, &Exit{Code: 1, Err: err}
		}
	}
	return s, nil
}

// Close gives the sockets back; Run does it itself when it returns. A second
// call does nothing.
func (s *Supervisor) Close() {
	s.closing.Do(func() {
		close(s.done)
		s.sockets.paths.close()
		s.within(func() {
			s.beside.wait()
			s.workers.close()
			s.sockets.close()
			s.starter.programs.close()
		})
		s.record.close()
	})
}

// within waits for f, but not for ever: a file system that does not answer holds
// up no end.
func (s *Supervisor) within(f func()) {
	const patience = 5 * time.Second
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-time.After(patience):
		s.log.Warn().Stringer("after", patience).Msg("not waited for any longer at the end: a file system does not answer")
	}
}

// Sockets lists what New has opened, in the order of the configuration. What
// workers bind themselves is in Status alone.
func (s *Supervisor) Sockets() []api.Socket { return s.sockets.describe() }

// Upgrade asks for what SIGHUP asks for. It may be called from any goroutine.
func (s *Supervisor) Upgrade() { s.send(machine.Hangup{Reason: "asked"}) }

// Stop asks for what SIGTERM asks for. It may be called from any goroutine.
func (s *Supervisor) Stop() { s.send(machine.StopAsked{Reason: "asked"}) }

// Run starts the first generation and returns when no process is left. The
// error is an *Exit; nil is a stop that was asked for. Cancelling ctx is a
// Stop.
func (s *Supervisor) Run(ctx context.Context) error {
	defer s.Close()
	if err := process.BecomeSubreaper(); err != nil {
		s.log.Warn().Err(err).Msg("cannot become the parent of orphans; a worker that daemonizes will be lost sight of")
	}
	start.ResetSignals()
	var err error
	if s.record, err = openRecorder(s.mind.Cfg); err != nil {
		return &Exit{Code: 2, Err: err}
	}
	s.take(machine.Begin{Opened: s.sockets.begin()})
	s.loop(ctx)
	s.within(s.pidFile.remove)
	if s.exit.Code == 0 && s.exit.Reason == "" {
		return nil
	}
	exit := &Exit{Code: s.exit.Code}
	if s.exit.Reason != "" {
		exit.Err = errors.New(s.exit.Reason)
	}
	return exit
}

// loop takes one event after the other. Nothing in it sleeps, waits for another
// process, or touches a file that a worker has chosen: that happens beside it
// and comes back as an event.
func (s *Supervisor) loop(ctx context.Context) {
	stop := ctx.Done()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for s.exit == nil {
		timer.Reset(s.untilDue())
		select {
		case <-s.signals.child:
			s.collect()
		case e := <-s.events:
			s.collect() // a worker that has died must not be taken for ready
			s.take(e)
		case f := <-s.asks:
			f()
		case <-s.signals.hangup:
			s.take(machine.Hangup{Reason: "SIGHUP"})
		case sig := <-s.signals.stop:
			s.stopBySignal(sig)
		case sig := <-s.signals.other:
			s.otherSignal(sig)
		case <-timer.C:
			s.collect()
			s.take(machine.Tick{})
		case <-stop:
			stop = nil
			s.take(machine.StopAsked{})
		}
	}
}

// untilDue is how long nothing has to be looked at: for ever, where nothing
// starts, drains or waits to be started again.
func (s *Supervisor) untilDue() time.Duration {
	const forEver = 1<<63 - 1
	due := s.mind.Due()
	if due.IsZero() {
		return forEver
	}
	return max(time.Until(due), 0)
}

// take lets the machine decide on one event, and performs what it orders.
func (s *Supervisor) take(e machine.Event) {
	now := time.Now()
	s.record.note(now, e)
	for _, o := range s.mind.Step(now, e) {
		s.perform(o)
	}
}

// send hands an event to the loop. After the end it is dropped, which false
// tells.
func (s *Supervisor) send(e machine.Event) bool {
	select {
	case s.events <- e:
		return true
	case <-s.done:
		return false
	}
}

// link is how the rooms reach the loop.
func (s *Supervisor) link() link { return link{send: s.send, beside: s.goBeside, log: s.log} }

// goBeside runs f beside the loop. It may wait.
func (s *Supervisor) goBeside(f func()) { s.beside.do(f) }

// beside is what goes on beside the loop.
type beside struct {
	mu    sync.Mutex
	over  bool // nobody waits for what begins from now on
	tasks sync.WaitGroup
}

func (b *beside) do(f func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.over {
		go f()
		return
	}
	b.tasks.Go(f)
}

// wait is called once.
func (b *beside) wait() {
	b.mu.Lock()
	b.over = true
	b.mu.Unlock()
	b.tasks.Wait()
}

// ask runs f in the loop and waits for it.
func (s *Supervisor) ask(ctx context.Context, f func()) error {
	ran := make(chan struct{})
	select {
	case s.asks <- func() { f(); close(ran) }:
	case <-s.done:
		return errEnded
	case <-ctx.Done():
		return ctx.Err()
	}
	<-ran
	return nil
}

// later has the loop run f, if it still runs.
func (s *Supervisor) later(f func()) {
	select {
	case s.asks <- f:
	case <-s.done:
	}
}

// errEnded says that the master's loop does not run any more.
var errEnded = errors.New("the master has ended")
