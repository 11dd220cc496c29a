package supervisor

import (
	"strconv"
	"syscall"
	"time"

	"github.com/moult/moult/fdpass"
)

// A worker is one process from fork until nothing of its tree is left.
type worker struct {
	master  *Supervisor
	slot    *slot
	number  int // its generation's, which outlives the slot's link to it
	pid     int
	command []string
	file    string // what the command names, as far as can be seen from here
	mark    string // in its environment: tells its orphans from others

	state    workerState
	before   workerState // what it was doing when its main process ended
	since    time.Time   // of the state
	forked   time.Time
	deadline time.Time // of the state; zero: none
	poll     time.Time // next look at something that makes no event; zero: none
	pace     time.Duration

	execDone bool // the shim has become the program, or has said why not
	execErr  error
	reaped   bool
	status   syscall.WaitStatus

	credential *fdpass.Credential // whom it runs as; nil: as we do

	ready   readiness
	own     interception
	drain   drain
	asked   bool // its end was asked for: by retirement, failure or stop
	drained bool // it has been sent the drain signal
	killed  bool // it has been sent SIGKILL

	orphaned bool           // its main process has left others behind that serve, or were to
	left     []int          // of its tree, after its main process has ended
	lastWord syscall.Signal // what those are told
	heir     *slot          // gets the members back when it is gone
	reason   string
}

// startWorker forks one worker for a slot. A failure is an event like any
// other; it never stops the master.
func (s *Supervisor) startWorker(sl *slot) {
	w := &worker{master: s, slot: sl, number: sl.gen.number, forked: time.Now(), since: time.Now(), mark: newMark(), own: newInterception()}
	sl.worker = w
	program, err := s.program(w)
	if err == nil {
		err = w.fork(program)
	}
	if err != nil {
		w.execDone, w.execErr, w.reaped = true, err, true
		w.afterExit()
		return
	}
	w.own.news = w.forked
	w.deadline = w.forked.Add(s.cfg.ReadyTimeout)
	w.pollSoon(w.forked)
	s.report(Transition{Generation: w.number, PID: w.pid, To: starting.String()}, "worker starting")
}

func (w *worker) fork(p fdpass.Program) error {
	process, err := w.master.host.start(p)
	if err != nil {
		w.ready.close()
		return err
	}
	w.pid = process.PID()
	go func() {
		err := process.Result()
		calls := process.Interception()
		heard := w.master.send(func() {
			w.listenTo(calls)
			w.execResult(err)
		})
		if !heard && calls != nil {
			calls.Close()
		}
	}()
	return nil
}

// program is what the worker runs, looked up anew at every start: a deploy may
// have moved a link, a file of variables may have changed.
func (s *Supervisor) program(w *worker) (fdpass.Program, error) {
	hand := fdpass.Handoff{Protocols: s.cfg.Protocols, Generation: w.number}
	p := fdpass.Program{Umask: s.cfg.Umask, Dir: s.cfg.Dir, KeepHUP: true, Intercept: s.traps()}
	for _, m := range w.slot.handed() {
		hand.Sockets = append(hand.Sockets, m.Socket().Passed(firstDescriptor+len(p.Members)))
		p.Members = append(p.Members, m)
	}
	p.ListenPID = hand.NeedsListenPID()
	if p.Dir == "" {
		p.Dir, p.DirMayFail = s.home, true
	}
	var err error
	if p.Credential, err = fdpass.LookupCredential(s.cfg.User, s.cfg.Group); err != nil {
		return p, err
	}
	w.credential = p.Credential
	if kept := w.slot.gen.kept; kept != nil {
		if err := kept.usable(); err != nil {
			return p, err
		}
		p.Kept = kept.file
	}
	if p.Env, err = s.environment(w, hand); err != nil {
		return p, err
	}
	for _, arg := range s.cfg.Command {
		expanded, err := hand.Expand(arg)
		if err != nil {
			return p, err
		}
		p.Command = append(p.Command, expanded)
	}
	w.command, w.file = p.Command, commandFile(p)
	return p, nil
}

// firstDescriptor is the number of the first socket in the worker
// (SD_LISTEN_FDS_START); ExtraFiles begin there as well.
const firstDescriptor = 3

// environment is the master's own, without what it inherited for itself, with
// what the user adds, and last what the hand-over needs.
func (s *Supervisor) environment(w *worker, hand fdpass.Handoff) ([]string, error) {
	env := append([]string{}, s.base...)
	for _, path := range s.cfg.EnvFiles {
		more, err := readEnvFile(path)
		if err != nil {
			return nil, err
		}
		env = append(env, more...)
	}
	for _, kv := range s.cfg.Env {
		expanded, err := hand.Expand(kv)
		if err != nil {
			return nil, err
		}
		env = append(env, expanded)
	}
	notify, err := w.ready.open(w)
	if err != nil {
		return nil, err
	}
	env = append(env, notify...)
	env = append(env, hand.Environ()...)
	if s.cfg.Control != "" {
		env = append(env, "MOULT_CONTROL="+s.cfg.Control)
	}
	return append(env,
		"MOULT_GENERATION="+strconv.Itoa(w.number),
		"MOULT_NAME="+s.cfg.Name,
		WorkerVariable+"="+w.mark), nil
}

// execResult hears from the shim.
func (w *worker) execResult(err error) {
	w.execDone, w.execErr = true, err
	if w.reaped {
		w.afterExit()
		return
	}
	if g := w.slot.gen; err == nil && g.program == nil {
		g.program = keep(w.pid, w.file, g.kept)
	}
	if w.state == starting {
		w.pollSoon(time.Now())
	}
}

// ended is called when the main process has been reaped. What it means is
// decided when the shim's word is in, too: both are on their way at once.
func (w *worker) ended(status syscall.WaitStatus) {
	w.reaped, w.status = true, status
	if w.execDone {
		w.afterExit()
	}
}

func (w *worker) afterExit() { w.happen(wExited, "") }

// happen runs one event through the worker's table.
func (w *worker) happen(e workerEvent, reason string) {
	to, do := nextWorker(w.state, e)
	if to == w.state && do == wNothing {
		return
	}
	if reason != "" {
		w.reason = reason
	}
	if e == wRetire || e == wEnd || e == wKill {
		w.asked = true
	}
	from := w.state
	if e == wExited {
		w.before = from
	}
	if w.reaped && to != gone && to != clearing {
		return // a word that comes after the end
	}
	if from == starting {
		w.ready.closeProbes()
	}
	if to != from {
		w.enter(to)
		if to != gone && (to != clearing || len(w.left) > 0) {
			w.tell(from, to)
		}
	}
	w.perform(do, from)
}

// enter changes the state; its deadline and polls are the new state's business.
func (w *worker) enter(to workerState) {
	w.state = to
	w.deadline, w.poll, w.pace = time.Time{}, time.Time{}, 0
}

// tell writes the one line of a change of the worker's state.
func (w *worker) tell(from, to workerState) {
	now := time.Now()
	if w.pid == 0 {
		w.master.log.Warn().Int("generation", w.number).Str("reason", w.reason).Msg("worker could not be started")
		return
	}
	w.master.report(Transition{
		Generation: w.number, PID: w.pid, From: from.String(), To: to.String(), Reason: w.reason, Took: now.Sub(w.since),
		Trouble: to == terminating || to == killing || to == gone && !w.asked,
	}, "worker "+to.String())
	w.since, w.reason = now, ""
}

func (w *worker) perform(do workerAction, from workerState) {
	cfg := &w.master.cfg
	switch do {
	case wServe:
		w.master.workerReady(w)
	case wSettle:
		w.beginSettling()
	case wQuiesce:
		w.beginQuiescing()
	case wDrain:
		if from == settling {
			w.drain.settled = time.Since(w.drain.began)
		}
		w.beginDraining(w.drain.left(cfg.DrainTimeout))
	case wDrainFast:
		w.beginDraining(cfg.KillGrace)
	case wTerminate:
		w.noteTimeout(from)
		if from != draining || cfg.DrainSignal != syscall.SIGTERM {
			w.signal(syscall.SIGTERM)
		}
		w.deadline = time.Now().Add(cfg.KillGrace)
		if from == starting {
			w.master.fail(w.slot.gen, w.startFailure(), w.exitCode())
		}
	case wKillAll:
		w.signalTree(syscall.SIGKILL)
		w.deadline = time.Now().Add(killAgain)
	case wClear:
		if w.slot.gen == w.master.serving {
			w.master.resteer() // the others take over while its tree is ended
		}
		w.beginClearing(from)
	case wKillRest:
		w.lastWord = syscall.SIGKILL
		w.signalLeft(w.left)
		w.deadline = time.Now().Add(killAgain)
		w.checkCleared()
	case wForget:
		w.forget()
	}
}

// killAgain is how often SIGKILL is sent to what does not go: a process in
// uninterruptible sleep, or one that forks as fast as it is killed.
const killAgain = time.Second

// signal reaches the main process: a server that has children tells them
// itself. Until it is reaped, by us alone, the pid means it and nobody else.
func (w *worker) signal(sig syscall.Signal) {
	if w.reaped || w.pid == 0 {
		return
	}
	w.killed = w.killed || sig == syscall.SIGKILL
	_ = w.master.host.kill(w.pid, sig)
}

// signalTree reaches the process group as well.
func (w *worker) signalTree(sig syscall.Signal) {
	if w.reaped || w.pid == 0 {
		return
	}
	w.signal(sig)
	_ = w.master.host.killGroup(w.pid, sig)
}

// ownMembers lists the inodes of sockets that no other generation holds.
func (w *worker) ownMembers() []uint64 {
	var inodes []uint64
	for _, m := range w.slot.members {
		if how, _ := m.Socket().How(); how != fdpass.Shared {
			inodes = append(inodes, m.Inode())
		}
	}
	return inodes
}
