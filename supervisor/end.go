package supervisor

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/moult/moult/fdpass"
	"github.com/moult/moult/supervisor/observe"
)

// endGroup is called while the main process is still a zombie: the number of
// its group is its own.
func (w *worker) endGroup() {
	w.left = w.master.host.leftovers(w)
	w.orphaned = len(w.left) > 0 && (w.state == starting || w.serveOn(w.left))
}

// serveOn tells whether processes have a socket of the worker.
func (w *worker) serveOn(pids []int) bool {
	held, _ := observe.Inodes(pids)
	return slices.ContainsFunc(w.slot.members, func(m *fdpass.Member) bool {
		_, holds := held[m.Inode()]
		return holds
	})
}

// beginClearing ends what the main process has left behind, before anybody
// else gets its sockets. Workers that were draining leave their children the
// time that they had left themselves: a shell in front of a server dies first.
func (w *worker) beginClearing(from workerState) {
	if len(w.left) == 0 {
		w.happen(wCleared, "")
		return
	}
	grace := w.master.cfg.KillGrace
	switch from {
	case draining:
		w.lastWord = w.master.cfg.DrainSignal
		grace = max(grace, time.Until(w.drain.until))
	case killing:
		w.lastWord = syscall.SIGKILL
	default:
		w.lastWord = syscall.SIGTERM
	}
	w.signalLeft(w.left)
	w.deadline = time.Now().Add(grace)
	w.pollSoon(time.Now())
}

func (w *worker) signalLeft(pids []int) {
	for _, pid := range pids {
		_ = w.master.host.kill(pid, w.lastWord)
	}
}

// checkCleared looks again at what is left of the tree.
func (w *worker) checkCleared() {
	if w.state != clearing {
		return
	}
	known := w.left
	if w.left = w.master.host.leftovers(w); len(w.left) == 0 {
		w.happen(wCleared, "")
		return
	}
	w.signalLeft(slices.DeleteFunc(slices.Clone(w.left), func(pid int) bool { return slices.Contains(known, pid) }))
}

// forget draws the consequences of a worker that is gone: of the serving
// generation a crash, of the next one a failed start, else the end that was
// asked for.
func (w *worker) forget() {
	s, sl := w.master, w.slot
	w.ready.close()
	w.own.close()
	s.mendPaths() // it may have removed one on its way out
	sl.worker = nil
	w.reason = w.endedHow()
	w.tell(w.before, gone)
	w.learn()
	if w.heir != nil {
		s.inherit(w.heir)
	}
	switch g := sl.gen; {
	case g == s.next:
		if w.execErr == nil {
			status := exitStatus(w.status)
			g.ended = &status
		}
		s.fail(g, w.startFailure(), w.exitCode())
	case g.retired || sl.leaving:
		s.afterDrain(w)
	default:
		s.crashed(w)
	}
}

// inherit lets a slot go on with members that a failed start has let go of.
func (s *Supervisor) inherit(heir *slot) {
	heir.waits = false
	if heir.worker != nil || heir.members == nil {
		return
	}
	if heir.gen.retired || heir.leaving {
		s.emptyQueue(heir)
		return
	}
	heir.startAt = time.Now()
}

// habit is what the drain signal does to the program, as far as its workers
// have shown.
type habit uint8

const (
	habitUnknown  habit = iota
	habitDies           // it ends on the spot
	habitFinishes       // it ends by itself
)

// learn remembers what the drain signal did to this worker. The next one may be
// another program, but seldom is in this.
func (w *worker) learn() {
	switch {
	case !w.drained || w.killed || w.before != draining:
	case w.status.Signaled() && w.status.Signal() == w.master.cfg.DrainSignal:
		w.master.habit = habitDies
	case w.status.Exited():
		w.master.habit = habitFinishes
	}
}

// endedHow says how the process ended, in words.
func (w *worker) endedHow() string {
	switch {
	case w.execErr != nil:
		return w.execErr.Error()
	case w.status.Signaled():
		how := "killed by signal " + strconv.Itoa(int(w.status.Signal())) + " (" + w.status.Signal().String() + ")"
		if w.status.CoreDump() {
			how += ", core dumped"
		}
		return how
	}
	how := "exit status " + strconv.Itoa(w.status.ExitStatus())
	if w.daemonized() {
		how += ", with processes left behind: it went into the background; start it in the foreground (nginx: -g 'daemon off;')"
	}
	return how
}

// daemonized tells whether the main process looks like the parent of a daemon,
// which leaves when that is up.
func (w *worker) daemonized() bool {
	return w.orphaned && !w.asked && w.status.Exited() && w.status.ExitStatus() == 0
}

// exitCode is what `run` exits with if this worker's end is its end.
func (w *worker) exitCode() int {
	var start *fdpass.StartError
	switch {
	case errors.As(w.execErr, &start):
		return start.ExitCode()
	case w.execErr != nil || w.ready.failed != "":
		return 1
	}
	return max(exitStatus(w.status), 1)
}

// startFailure says why a worker did not become ready.
func (w *worker) startFailure() error {
	switch {
	case w.execErr != nil:
		return w.execErr
	case w.ready.failed != "":
		return errors.New(w.ready.failed)
	}
	err := fmt.Errorf("the worker (pid %d) ended before it was ready: %s", w.pid, w.endedHow())
	if w.own.refused != "" {
		err = fmt.Errorf("%w; %s", err, w.own.refused)
	}
	if w.ready.status != "" {
		err = fmt.Errorf("%w; it last said %q", err, w.ready.status)
	}
	return err
}

// afterDrain gives the members of a worker back that has left as it was asked
// to; connections that it left in the queue are served first.
func (s *Supervisor) afterDrain(w *worker) {
	if w.wasCut() || s.phase == phaseEnding {
		if n := s.queued(w.slot); n > 0 {
			s.log.Error().Int("generation", w.number).Int("connections", n).Msg("lost: they waited in the queue of a worker that was ended")
		}
		s.release(w.slot)
		return
	}
	s.emptyQueue(w.slot)
}

// wasCut tells that the worker had its time and did not use it, or that its
// start failed: starting it once more would lead nowhere.
func (w *worker) wasCut() bool {
	return w.killed || w.ready.failed != "" || w.execErr != nil
}

// crashed replaces a worker that has left unasked, at once and then with
// growing delay, or gives up.
func (s *Supervisor) crashed(w *worker) {
	sl := w.slot
	s.resteer()
	if w.daemonized() && w.number == 1 && sl.restarts == 0 {
		s.exit = Exit{Code: 1, Err: fmt.Errorf("the worker (pid %d) has left: %s", w.pid, w.endedHow())}
		s.happenBecause(evGaveUp, "the worker went into the background")
		return
	}
	failed := w.execErr != nil || exitStatus(w.status) != 0 || w.ready.failed != ""
	tooMany := failed && s.failures.add(time.Now())
	if tooMany || s.cfg.Restart == RestartNever || s.cfg.Restart == RestartOnFailure && !failed {
		s.giveUp(w, tooMany)
		return
	}
	lived := time.Duration(0)
	if !w.ready.at.IsZero() {
		lived = time.Since(w.ready.at)
	}
	s.restartLater(sl, lived)
}

// restartLater plans the replacement; it is never made on the spot, so that a
// start that fails at once does not lead to the next from within itself.
func (s *Supervisor) restartLater(sl *slot, lived time.Duration) {
	sl.restarts++
	delay := sl.backoff.next(lived)
	sl.startAt = time.Now().Add(delay)
	if delay > 0 {
		s.log.Info().Int("generation", sl.gen.number).Str("delay", rounded(delay)).Msg("the worker is started again after a delay")
	}
}

func (s *Supervisor) giveUp(w *worker, tooMany bool) {
	why := fmt.Sprintf("--restart %s", s.cfg.Restart)
	if tooMany {
		why = fmt.Sprintf("--restart-limit %d/%s", s.cfg.RestartLimit, s.cfg.RestartWithin)
	}
	code := exitStatus(w.status)
	if w.execErr != nil || w.ready.failed != "" {
		code = w.exitCode()
	}
	w.slot.emptied = true // not even for what waits in its queue
	s.exit = Exit{Code: code}
	if code != 0 {
		s.exit.Err = fmt.Errorf("the worker (pid %d) has left: %s; it is not replaced (%s)", w.pid, w.endedHow(), why)
	}
	s.happenBecause(evGaveUp, "the worker is not replaced: "+why)
}
