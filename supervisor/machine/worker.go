package machine

import (
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/moult/moult/supervisor/ready"
)

// worker is one process from the order to start it until nothing of its tree is
// left.
type worker struct {
	ID       WorkerID
	PID      int
	Command  []string
	State    workerState
	Before   workerState // what it was doing when its main process ended
	Since    time.Time   // of the state
	Ordered  time.Time
	Deadline time.Time // of the state; zero: none
	Look     looking
	ReadyBy  string
	ReadyAt  time.Time
	Notified bool   // READY=1 has come
	Says     string // the last STATUS=
	Failed   string // why it will not be ready
	Checks   []check
	Drain    drain
	Own      own
	End      end
	Reason   string // of the last change
}

// looking is the look under way, and when the next is due.
type looking struct {
	Seq   int       // of the one under way; 0: none is
	Poll  time.Time // zero: none is planned
	Pace  time.Duration
	First bool // in this state
	Again bool // something has happened since it was ordered
	Asked bool // the worker has bound or listened since
}

// check is a socket on which the worker is to be seen accepting.
type check struct {
	Inode  Inode
	Name   string
	Stream bool
	Given  bool
	Seen   bool
	Hidden bool
}

// end is what is known of the end of a process.
type end struct {
	Status   Status
	Reason   string // it could not be started
	Code     int    // what `run` exits with then
	Left     int    // processes of its tree
	Orphaned bool   // some of them serve, or were to
	LastWord Signal // what those are told
}

// happen runs one event through the worker's table.
func (at place) happen(e workerEvent, reason string) {
	w := at.s.Worker
	step, ok := workerTable[w.State][e]
	if !ok {
		return
	}
	if reason != "" {
		w.Reason = reason
	}
	from := w.State
	if e == wExited {
		w.Before = from
	}
	w.State = step.to
	if step.to != from || step.do == wKillAll || step.do == wKillRest {
		w.Deadline = time.Time{}
	}
	if step.to != from {
		w.Look = looking{First: true}
		if from <= forkingKill && step.to != gone {
			w.Deadline = w.Ordered.Add(at.m.Cfg.ReadyTimeout)
		}
		// What is cleared is told when something is left to clear, what is
		// gone with how it went.
		if step.to > starting && step.to != gone && step.to != clearing && from.String() != step.to.String() {
			at.tell(from, step.to)
		}
	}
	at.perform(step.do, from)
}

// tell writes the one line of a change of the worker's state.
func (at place) tell(from, to workerState) {
	m, w := at.m, at.s.Worker
	if w.PID == 0 {
		m.say(Warn, "worker could not be started", Field{"generation", at.g.Number}, Field{"reason", w.Reason})
		return
	}
	unasked := to == gone && (w.Before == starting || w.Before == serving || w.Failed != "")
	m.order(Tell{Transition{
		Generation: at.g.Number, PID: w.PID, From: from.String(), To: to.String(), Reason: w.Reason, Took: m.Now.Sub(w.Since),
		Trouble: to == terminating || to == killing || unasked,
		Detail:  to == parting || to == settling || to == quiescing || to == clearing,
	}, "worker " + to.String()})
	w.Since, w.Reason = m.Now, ""
}

func (at place) perform(do workerAction, from workerState) {
	m, w := at.m, at.s.Worker
	switch do {
	case wWatch:
		at.watch()
	case wLate:
		w.Failed = fmt.Sprintf("the program does not run within --ready-timeout %s: is its file system there?", m.Cfg.ReadyTimeout)
		launcher{m}.failWorker(at)
	case wServe:
		w.Look = looking{}
		launcher{m}.workerReady(at)
		caller{at}.watchClosed()
	case wPart:
		drainer{at}.beginParting()
	case wSettle:
		drainer{at}.beginSettling()
	case wQuiesce:
		drainer{at}.beginQuiescing()
	case wDrain:
		if from <= settling {
			w.Drain.Settled = m.Now.Sub(w.Drain.Began)
		}
		drainer{at}.beginDraining(max(m.Cfg.DrainTimeout-w.Drain.Settled, 0))
	case wDrainFast:
		drainer{at}.beginDraining(m.Cfg.KillGrace)
	case wTerminate:
		at.terminate(from)
	case wKillAll:
		m.order(Send{Worker: w.ID, Signal: SIGKILL, Tree: true})
		w.Deadline = m.Now.Add(killAgain)
	case wClear:
		looker{at}.look()
	case wKillRest:
		w.End.LastWord = SIGKILL
		m.order(Send{Worker: w.ID, Signal: SIGKILL, Tree: true})
		w.Deadline = m.Now.Add(killAgain)
		looker{at}.look()
	case wForget:
		at.forget(from)
	}
}

// killAgain is how often SIGKILL is sent to what does not go: a process in
// uninterruptible sleep, or one that forks as fast as it is killed.
const killAgain = time.Second

func (at place) forked(e Forked) {
	if at.s == nil {
		return
	}
	w := at.s.Worker
	w.PID, w.Command = e.PID, e.Command
	if at.g.Program == 0 {
		at.g.Program = e.Program
	} else if e.Program != at.g.Program {
		launcher{at.m}.closeUnused(e.Program)
	}
	at.m.order(Tell{Transition{Generation: at.g.Number, PID: w.PID, To: starting.String()}, "worker starting"})
	w.Since = at.m.Now
	at.happen(wForked, "")
	at.m.Clients.starts(at.m, at.g)
}

func (at place) startFailed(e StartFailed) {
	if at.s == nil {
		return
	}
	w := at.s.Worker
	w.End.Reason, w.End.Code, w.Before = e.Reason, e.Code, w.State
	at.happen(wStartFailed, e.Reason)
}

func (at place) exited(e Exited) {
	if at.s == nil {
		return
	}
	at.s.Worker.End.Status = e.Status
	at.happen(wExited, "")
}

// terminate sends TERM; to a worker that has had its time to become ready, it
// says so.
func (at place) terminate(from workerState) {
	m, w := at.m, at.s.Worker
	if from == starting && at.g.State <= current && w.Failed == "" {
		w.Failed = fmt.Sprintf("the worker (pid %d) was not ready within --ready-timeout %s: %s", w.PID, m.Cfg.ReadyTimeout, looker{at}.readiness().Missing()) + w.lastSaid()
	}
	if from != draining || m.Cfg.DrainSignal != SIGTERM {
		m.order(Send{Worker: w.ID, Signal: SIGTERM})
	}
	w.Deadline = m.Now.Add(m.Cfg.KillGrace)
	if from == starting {
		launcher{m}.failWorker(at)
	}
}

func (w *worker) lastSaid() string {
	if w.Says == "" {
		return ""
	}
	return fmt.Sprintf("; it last said %q", w.Says)
}

// failWorker fails a generation on its way with one of its workers.
func (m launcher) failWorker(at place) {
	m.fail(at.g, at.s.Worker.startFailure(), at.s.Worker.exitCode())
}

// treeSeen takes in what the main process of a worker has left behind, and ends
// it before anybody else gets its sockets. Workers that were draining leave
// their children the time that they had left themselves: a shell in front of a
// server dies first.
func (at place) treeSeen(seen Seen, first bool) {
	m, w := at.m, at.s.Worker
	w.End.Left = seen.Left
	if first {
		w.End.Orphaned = seen.Left > 0 && (w.Before == starting || seen.Serves)
	}
	if seen.Left == 0 {
		at.happen(wCleared, "")
		return
	}
	if !first {
		m.order(Send{Worker: w.ID, Signal: w.End.LastWord, Tree: true, Again: w.End.LastWord != SIGKILL})
		looker{at}.pollSoon(0)
		return
	}
	at.tell(w.Before, clearing)
	grace := m.Cfg.KillGrace
	switch w.Before {
	case draining:
		w.End.LastWord = m.Cfg.DrainSignal
		grace = max(grace, w.Drain.Until.Sub(m.Now))
	case killing:
		w.End.LastWord = SIGKILL
	default:
		w.End.LastWord = SIGTERM
	}
	m.order(Send{Worker: w.ID, Signal: w.End.LastWord, Tree: true})
	w.Deadline = m.Now.Add(grace)
	looker{at}.pollSoon(0)
}

// forget draws the consequences of a worker that is gone: of the serving
// generation a crash, of the next one a failed start, else the end that was
// asked for.
func (at place) forget(from workerState) {
	m, w := at.m, at.s.Worker
	w.Reason = w.endedHow()
	told := w.Before
	if from == clearing && w.End.Left > 0 {
		told = clearing
	}
	at.tell(told, gone)
	w.learn(m)
	m.order(Mend{})
	m.order(Forget{w.ID})
	at.s.Worker = nil
	at.slot(seLeft)
	switch {
	case at.g == m.next():
		if w.End.Reason == "" {
			status := w.End.exitStatus()
			at.g.Ended = &status
		}
		launcher{m}.fail(at.g, w.startFailure(), w.exitCode())
	case at.g.State == failed:
		at.slot(seDrop)
	case at.g.State == retired || at.s.Leaving:
		if w.wasCut() || m.Phase == phaseEnding {
			at.slot(seCut)
		} else {
			at.slot(seRetire)
		}
	default:
		at.crashed(w)
	}
}

// wasCut tells that the worker had its time and did not use it, or that its
// start failed: starting it once more would lead nowhere.
func (w *worker) wasCut() bool {
	return w.Before == killing || w.Failed != "" || w.End.Reason != ""
}

// habit is what the drain signal does to the program, as far as its workers have
// shown.
type habit uint8

const (
	habitUnknown  habit = iota
	habitDies           // it ends on the spot
	habitFinishes       // it ends by itself
)

// learn remembers what the drain signal did to this worker. The next one may be
// another program, but seldom is in this.
func (w *worker) learn(m *Machine) {
	switch {
	case w.Before != draining:
	case w.End.Status.Signal == m.Cfg.DrainSignal:
		m.Habit = habitDies
	case w.End.Status.Signal == 0:
		m.Habit = habitFinishes
	}
}

// exitStatus is the code that a shell shows: 128+n for signal n.
func (e end) exitStatus() int {
	if e.Status.Signal != 0 {
		return 128 + int(e.Status.Signal)
	}
	return e.Status.Code
}

// endedHow says how the process ended, in words.
func (w *worker) endedHow() string {
	status := w.End.Status
	switch {
	case w.End.Reason != "":
		return w.End.Reason
	case status.Signal != 0:
		how := "killed by signal " + strconv.Itoa(int(status.Signal)) + " (" + status.Name + ")"
		if status.Core {
			how += ", core dumped"
		}
		return how
	}
	how := "exit status " + strconv.Itoa(status.Code)
	if w.daemonized() {
		how += ", with processes left behind: it went into the background; start it in the foreground (nginx: -g 'daemon off;')"
	}
	return how
}

// daemonized tells whether the main process looks like the parent of a daemon,
// which leaves when that is up.
func (w *worker) daemonized() bool {
	return w.End.Orphaned && (w.Before == starting || w.Before == serving) && w.End.Status == Status{}
}

// exitCode is what `run` exits with if this worker's end is its end.
func (w *worker) exitCode() int {
	switch {
	case w.End.Reason != "":
		return w.End.Code
	case w.Failed != "":
		return 1
	}
	return max(w.End.exitStatus(), 1)
}

// startFailure says why a worker did not become ready.
func (w *worker) startFailure() string {
	switch {
	case w.End.Reason != "":
		return w.End.Reason
	case w.Failed != "":
		return w.Failed
	}
	why := fmt.Sprintf("the worker (pid %d) ended before it was ready: %s", w.PID, w.endedHow())
	if w.Own.Refused != "" {
		why += "; " + w.Own.Refused
	}
	return why + w.lastSaid()
}

// notified takes in what a worker has said.
func (at place) notified(e Notified) {
	if at.s == nil {
		return
	}
	w := at.s.Worker
	if e.Status != "" {
		w.Says = e.Status
	}
	if e.Extend > 0 && !w.Deadline.IsZero() && (w.State == starting || w.State == draining) {
		w.Deadline = latest(w.Deadline, at.m.Now.Add(e.Extend))
	}
	if e.Ready {
		w.Notified, at.g.Notifies = true, true
		if w.State == starting && w.Look.Seq == 0 {
			looker{at}.lookReady()
		}
	}
}

// watch begins to see whether a worker becomes ready.
func (at place) watch() {
	if at.m.Cfg.Ready == ready.Alive {
		at.s.Worker.Look.Poll = at.s.Worker.Ordered.Add(at.m.Cfg.ReadyAlive)
		return
	}
	looker{at}.pollSoon(0)
}

// check has the worker seen accepting on one more socket before it is ready.
func (w *worker) check(h Held, s Socket) {
	if slices.ContainsFunc(w.Checks, func(c check) bool { return c.Inode == h.Inode }) {
		return
	}
	name := s.Bound
	if !s.Learned && s.Name != "" {
		name = s.Name + " (" + name + ")"
	}
	w.Checks = append(w.Checks, check{Inode: h.Inode, Name: name, Stream: s.Stream, Given: !s.Learned})
}

func (w *worker) uncheck(inode Inode) {
	w.Checks = slices.DeleteFunc(w.Checks, func(c check) bool { return c.Inode == inode })
}

// forgetMember forgets all that was known of a socket that the worker does not
// have any more.
func (w *worker) forgetMember(h Held) {
	w.uncheck(h.Inode)
	w.Own.Claimed = slices.DeleteFunc(w.Own.Claimed, func(c claim) bool { return c.Inode == h.Inode })
}
