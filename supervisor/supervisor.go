// Package supervisor is the master: it holds the sockets, runs the workers,
// and moves connections from one generation to the next.
//
// One goroutine (Run) owns all state. Everything else, signals, deadlines,
// children that end, words from workers, reaches it as an event; state.go has
// the tables of what follows from each.
package supervisor

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/moult/moult/fdpass"
	"github.com/moult/moult/fdpass/intercept"
	"github.com/moult/moult/supervisor/control/api"
)

// Supervisor is one master. New makes it, Run runs it once.
type Supervisor struct {
	cfg  Config
	log  zerolog.Logger
	host host
	pid  int
	home string // the directory the master was started in, as its starter calls it
	base []string

	opened  []*fdpass.Socket                  // by New; never changes
	sockets []*fdpass.Socket                  // those, and what workers have bound
	anyPort map[*fdpass.Socket]fdpass.Binding // learned where a worker asked for any port, and as what
	signals *Signals
	events  chan func()
	done    chan struct{} // closed at the end: nobody reads events any more
	closing sync.Once
	timer   *time.Timer

	phase   phase
	since   time.Time // of the phase
	serving *generation
	next    *generation // on its way
	old     []*generation
	wanted  int // workers per generation
	keys    int // numbers generations for Join, failed ones included

	failures  failures
	started   time.Time
	upgrades  api.Upgrades
	asked     operations   // wait for the next upgrade to begin
	leaving   operations   // wait for the end
	scaling   operations   // wait for the right number of workers
	rollback  *keptProgram // what the next start shall run; nil: what the command names
	previous  *keptProgram // what served before
	shown     int          // the generation that was named last
	habit     habit        // what the drain signal did to the last worker that got it
	exit      Exit
	pathWatch *pathWatch
	pidFile   bool
	released  bool // the sockets were closed before the end
	trimmed   bool
	trimAt    time.Time // when memory is given back; zero: it was, or something goes on
}

// New opens the sockets. It returns an *Exit whose code says what `run` ends
// with. signals is what Notify returned.
func New(cfg Config, signals *Signals) (*Supervisor, error) {
	s := &Supervisor{
		cfg: cfg, log: cfg.Log, host: realHost(), signals: signals,
		pid: os.Getpid(), home: logicalDirectory(), base: fdpass.CleanEnviron(os.Environ()),
		events: make(chan func(), 64), done: make(chan struct{}),
		wanted:   cfg.Workers,
		failures: failures{limit: cfg.RestartLimit, within: cfg.RestartWithin},
		anyPort:  map[*fdpass.Socket]fdpass.Binding{},
	}
	sealDescriptors()
	if cfg.Intercept {
		if err := intercept.Works(); err != nil {
			return nil, &Exit{Code: 1, Err: fmt.Errorf("cannot intercept what the server binds: %w; open its address with --listen instead", err)}
		}
	}
	for _, a := range cfg.Addresses {
		socket, err := openSocket(a, &s.cfg)
		if err != nil {
			s.closeSockets()
			return nil, &Exit{Code: 1, Err: err}
		}
		s.sockets = append(s.sockets, socket)
	}
	s.opened = slices.Clone(s.sockets)
	return s, nil
}

// Close gives the sockets back; Run does it itself when it returns. A second
// call does nothing.
func (s *Supervisor) Close() {
	s.closing.Do(func() {
		close(s.done)
		s.closeSockets()
		s.previous.close()
	})
}

// Sockets lists what New has opened, in the order of the configuration. What
// workers bind themselves is in Status alone.
func (s *Supervisor) Sockets() []*fdpass.Socket { return s.opened }

// Upgrade asks for what SIGHUP asks for. It may be called from any goroutine.
func (s *Supervisor) Upgrade() { s.send(func() { s.happenBecause(evUpgrade, "asked") }) }

// Stop asks for what SIGTERM asks for. It may be called from any goroutine.
func (s *Supervisor) Stop() { s.send(func() { s.happenBecause(evStop, "asked") }) }

// Run starts the first generation and returns when no process is left. The
// error is an *Exit; nil is a stop that was asked for. Cancelling ctx is a
// Stop.
func (s *Supervisor) Run(ctx context.Context) error {
	defer s.Close()
	if err := becomeSubreaper(); err != nil {
		s.log.Warn().Err(err).Msg("cannot become the parent of orphans; a worker that daemonizes will be lost sight of")
	}
	s.timer = time.NewTimer(time.Hour)
	defer s.timer.Stop()
	s.started = time.Now()
	s.since = s.started
	s.logSockets()
	s.startGeneration()
	s.loop(ctx)
	s.removePIDFile()
	if s.exit.Code == 0 && s.exit.Err == nil {
		return nil
	}
	return &s.exit
}

func (s *Supervisor) loop(ctx context.Context) {
	stop := ctx.Done()
	for s.settle(); s.phase != phaseEnded; s.settle() {
		s.timer.Reset(s.untilNext())
		select {
		case f := <-s.events:
			f()
		case <-s.signals.child:
			s.collect()
		case <-s.signals.hangup:
			s.happenBecause(evUpgrade, "SIGHUP")
		case sig := <-s.signals.stop:
			s.stopBySignal(sig)
		case sig := <-s.signals.other:
			s.otherSignal(sig)
		case <-s.timer.C:
			s.look(time.Now())
		case <-stop:
			stop = nil
			s.happen(evStop)
		}
	}
}

// send hands f to the goroutine that owns the state. After the end it is
// dropped, which false tells.
func (s *Supervisor) send(f func()) bool {
	select {
	case s.events <- f:
		return true
	case <-s.done:
		return false
	}
}

// settle draws the conclusions that no single event brings: that nothing is
// left, or that a generation is gone.
func (s *Supervisor) settle() {
	s.forgetGone()
	s.scaled()
	if s.serving == nil && s.next == nil && len(s.old) == 0 {
		s.happen(evEmpty)
	}
	s.trimLater(time.Now())
}

// busy tells that something starts, drains or waits to be started again.
func (s *Supervisor) busy() bool {
	if s.phase != phaseServing || len(s.old) > 0 || s.serving == nil {
		return true
	}
	for _, sl := range s.serving.slots {
		if sl.worker == nil || sl.worker.state != serving || !sl.worker.poll.IsZero() {
			return true
		}
	}
	return false
}

// trimAfter is how long nothing has to go on before memory is given back.
const trimAfter = time.Second

// trimLater gives memory back once, a while after the last thing that went on.
func (s *Supervisor) trimLater(now time.Time) {
	switch busy := s.busy(); {
	case busy:
		s.trimAt, s.trimmed = time.Time{}, false
	case s.trimmed:
	case s.trimAt.IsZero():
		s.trimAt = now.Add(trimAfter)
	case !now.Before(s.trimAt):
		s.trimAt, s.trimmed = time.Time{}, true
		s.host.trim()
	}
}

// untilNext is how long nothing has to be looked at: for ever, where nothing
// starts, drains or waits to be started again.
func (s *Supervisor) untilNext() time.Duration {
	const forEver = 1<<63 - 1
	var first time.Time
	for _, w := range s.workers() {
		first = earlier(first, w.wakeAt())
	}
	for _, sl := range s.slots() {
		first = earlier(first, sl.startAt)
	}
	if first.IsZero() {
		first = s.trimAt
	}
	if first.IsZero() {
		return forEver
	}
	return max(time.Until(first), 0)
}

func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// look does what is due.
func (s *Supervisor) look(now time.Time) {
	s.collect() // a worker that has died must not become ready by a timer
	s.mendPaths()
	for _, sock := range s.sockets {
		if err := sock.Verify(); err != nil {
			s.log.Error().Err(err).Msg("cannot follow the group of sockets")
		}
	}
	for _, w := range s.workers() {
		w.look(now)
	}
	for _, sl := range s.slots() {
		if !sl.startAt.IsZero() && !now.Before(sl.startAt) {
			sl.startAt = time.Time{}
			s.startWorker(sl)
		}
	}
}

// happen runs one event through the master's table.
func (s *Supervisor) happen(e event) { s.happenBecause(e, "") }

func (s *Supervisor) happenBecause(e event, reason string) {
	to, do := next(s.phase, e)
	from := s.phase
	s.phase = to
	s.perform(do, from, reason)
}

func (s *Supervisor) perform(do action, from phase, reason string) {
	switch do {
	case doRemember:
		s.log.Info().Int("generation", s.number()).Str("reason", reason).Msg("one more upgrade follows when this start is over")
	case doStart:
		s.tell(from, reason, "upgrading")
		s.startGeneration()
	case doPromote, doPromoteNew:
		s.promote(from)
	case doFail, doFailNew:
		s.complain(from, reason, s.afterFailure())
		s.dropNext("the start has failed")
	case doFailEnd:
		s.complain(from, reason, "cannot start")
		s.dropNext("the start has failed")
	case doLose:
		s.log.Error().Int("generation", s.number()).Str("reason", reason).Msg("given up; the upgrade under way decides")
	case doStop:
		s.exit = Exit{} // whatever was lost before: the stop was asked for
		s.tell(from, reason, "stopping")
		s.stopAll()
	case doGiveUp:
		s.complain(from, reason, "giving up")
		s.stopAll()
	case doKill:
		if from != phaseStopping {
			s.exit = Exit{}
		}
		s.tell(from, reason, "ending at once")
		s.killAll()
	case doTooLate:
		s.log.Info().Str("reason", reason).Msg("stopping already: no upgrade follows")
	case doExit:
		s.tell(from, "", "ended")
		s.leaving.end(api.Event{Event: api.EventDone, From: s.shown})
	}
	if do == doPromoteNew || do == doFailNew {
		s.startGeneration()
	}
}

func (s *Supervisor) closeSockets() {
	s.pathWatch.close()
	for _, sock := range s.sockets {
		sock.Close()
	}
}

// workers lists all processes that the master knows of, oldest first.
func (s *Supervisor) workers() []*worker {
	var all []*worker
	for _, sl := range s.slots() {
		if sl.worker != nil {
			all = append(all, sl.worker)
		}
	}
	return all
}

func (s *Supervisor) slots() []*slot {
	var all []*slot
	for _, g := range s.generations() {
		all = append(all, g.slots...)
	}
	return all
}

func (s *Supervisor) generations() []*generation {
	all := append([]*generation{}, s.old...)
	if s.serving != nil {
		all = append(all, s.serving)
	}
	if s.next != nil {
		all = append(all, s.next)
	}
	return all
}

// collect takes care of every child that has ended.
func (s *Supervisor) collect() {
	for {
		pid, ok := s.host.nextEnded()
		if !ok {
			break
		}
		w := s.byPID(pid)
		if w != nil {
			w.endGroup()
		}
		status := s.host.reap(pid)
		if w != nil {
			w.ended(status)
		}
	}
	for _, w := range s.workers() {
		w.checkCleared()
	}
}

func (s *Supervisor) byPID(pid int) *worker {
	for _, w := range s.workers() {
		if w.pid == pid && !w.reaped {
			return w
		}
	}
	return nil
}

func (s *Supervisor) isMain(pid int) bool { return s.byPID(pid) != nil }

// isMark tells whether a mark is that of a worker that is known.
func (s *Supervisor) isMark(mark string) bool {
	return slices.ContainsFunc(s.workers(), func(w *worker) bool { return w.mark == mark })
}

// writePIDFile tells scripts that the first generation is ready.
func (s *Supervisor) writePIDFile() {
	if s.cfg.PIDFile == "" || s.pidFile {
		return
	}
	if err := replaceFile(s.cfg.PIDFile, fmt.Appendf(nil, "%d\n", s.pid)); err != nil {
		s.log.Error().Err(err).Msg("cannot write the pid file")
		return
	}
	s.pidFile = true
}

func (s *Supervisor) removePIDFile() {
	if !s.pidFile {
		return
	}
	// Another master may have taken the path over since.
	if content, err := os.ReadFile(s.cfg.PIDFile); err == nil && strings.TrimSpace(string(content)) == strconv.Itoa(s.pid) {
		_ = os.Remove(s.cfg.PIDFile)
	}
}

// replaceFile never shows a half-written file.
func replaceFile(path string, content []byte) error {
	tmp := fmt.Sprintf("%s.%d", path, os.Getpid())
	if err := os.WriteFile(tmp, content, 0o644); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		_ = os.Remove(tmp)
		return err
	}
	return nil
}
