package supervisor

import (
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/moult/moult/fdpass"
	"github.com/moult/moult/fdpass/intercept"
	"github.com/moult/moult/fdpass/start"
	"github.com/moult/moult/supervisor/machine"
	"github.com/moult/moult/supervisor/process"
)

// workers are the processes that the master has started. The loop alone adds,
// finds and removes them.
type workers struct {
	all    map[machine.WorkerID]*worker
	starts int // under way: who ends meanwhile may be one of them
	family atomic.Pointer[family]
}

// family is what it takes to tell one worker's orphans from another's.
type family struct {
	process.Others
	byPID map[int]*process.Process
}

// worker is one child as the shell knows it.
type worker struct {
	id         machine.WorkerID
	generation int
	mark       string           // by which what it orphans is known
	child      *process.Process // nil until it runs
	voice      *process.Voice
	uid        int         // whom it was started as; negative: as we are
	starting   atomic.Bool // or it was a moment ago
	ready      time.Time
	late       atomic.Pointer[time.Timer] // ends that moment
	exited     bool                       // and is a zombie until the first look at its tree
	calls      *calls
	sight      sight
}

func newWorkers() *workers {
	w := &workers{all: map[machine.WorkerID]*worker{}}
	w.family.Store(&family{})
	return w
}

// publish shows looks who belongs to whom.
func (ws *workers) publish() {
	f := &family{byPID: map[int]*process.Process{}}
	for _, w := range ws.all {
		// One that has forked and is not known by its pid yet holds sockets
		// that others hold, too.
		f.Marks = append(f.Marks, w.mark)
		if w.child != nil {
			f.Mains = append(f.Mains, w.child.PID)
			f.byPID[w.child.PID] = w.child
		}
	}
	ws.family.Store(f)
}

// treeOf lists the processes of a worker by its main process.
func (ws *workers) treeOf(pid int) []int {
	f := ws.family.Load()
	if child := f.byPID[pid]; child != nil {
		return child.Tree(f.Others, nil)
	}
	return nil
}

// follow hears that a worker is not on its way any more. What it binds is of
// interest for a moment longer.
func (ws *workers) follow(t machine.Transition) {
	if t.From != "starting" {
		return
	}
	for _, w := range ws.all {
		if w.child != nil && w.child.PID == t.PID && w.calls != nil {
			w.ready = time.Now()
			w.late.Store(time.AfterFunc(machine.Late, func() {
				w.starting.Store(false)
				w.calls.ready()
			}))
		}
	}
}

// forget lets go of all that is known of a worker.
func (ws *workers) forget(id machine.WorkerID) {
	if w := ws.all[id]; w != nil {
		delete(ws.all, id)
		ws.publish()
		w.close()
	}
}

func (w *worker) close() {
	w.voice.Close()
	w.calls.close()
	w.sight.close()
	if w.child != nil {
		w.child.Reap()
		w.child.Close()
	}
}

func (ws *workers) close() {
	for id := range ws.all {
		ws.forget(id)
	}
}

// starter is what all programs are started with.
type starter struct {
	cfg      *Config
	pid      int // the master's
	programs programs
	home     string   // the directory the master was started in, as its starter calls it
	base     []string // its environment, without what was meant for it alone
}

// start starts a program, beside the loop: it looks at files that may be far
// away, and waits for execve.
func (s *Supervisor) start(o machine.Start) {
	w := &worker{id: o.Worker, generation: o.Generation, uid: -1, mark: process.NewMark()}
	w.starting.Store(true)
	s.workers.all[o.Worker] = w
	s.workers.publish()
	s.workers.starts++
	kept := s.starter.programs.get(o.Program)
	var traps *intercept.Traps
	if o.Traps.Intercept {
		traps = &intercept.Traps{Unlink: o.Traps.Unlink, Options: !intercept.Duplicates(), ShortNames: s.sockets.ambiguous()}
		w.calls = newCalls(s, w)
	}
	var handed []handed
	for _, h := range o.Handed {
		if a := s.sockets.all[h.Address]; a != nil {
			handed = append(handed, newHanded(a, h.Inode))
		}
	}
	s.goBeside(func() {
		run, err := s.starter.program(w, o, kept, traps, handed)
		started := func() { s.started(w, run, err) }
		select {
		case s.asks <- started:
		case <-s.done: // nobody is left to have it
			run.end()
		}
	})
}

// running is a program that has just been started.
type running struct {
	*start.Started
	child   *process.Process
	command []string
	program machine.ProgramID
}

// end is for a program that nobody wants any more.
func (r *running) end() {
	if r == nil {
		return
	}
	r.child.End()
	if r.Interception != nil {
		r.Interception.Close()
	}
}

// started is where a worker becomes known by its pid, in the loop.
func (s *Supervisor) started(w *worker, run *running, err error) {
	s.workers.starts--
	if err != nil {
		s.workers.forget(w.id)
		code := 1
		var failed *start.StartError
		if errors.As(err, &failed) {
			code = failed.ExitCode()
		}
		s.take(machine.StartFailed{Worker: w.id, Reason: err.Error(), Code: code})
		s.collect()
		return
	}
	w.child = run.child
	s.workers.publish()
	s.listenTo(w, run.Interception)
	if w.voice != nil {
		go w.voice.Hear(func(word process.Word) { w.hear(s.link(), word) })
	}
	s.take(machine.Forked{Worker: w.id, PID: run.PID, Command: run.command, Program: run.program})
	s.collect()
}

// hear passes on what a worker has said, if it was the worker.
func (w *worker) hear(l link, word process.Word) {
	if !w.child.Says(word, w.uid) {
		l.log.Debug().Int("generation", w.generation).Int("pid", word.PID).Msg("a word from a process that is not of this worker is ignored")
		return
	}
	l.send(machine.Notified{Worker: w.id, Ready: word.Ready, Status: word.Status, Extend: word.Extend})
}

// startProgram makes a program of the configuration, looked up anew at every
// start: a deploy may have moved a link, a file of variables may have changed.
func (s *starter) program(w *worker, o machine.Start, kept *start.Kept, traps *intercept.Traps, sockets []handed) (*running, error) {
	p := start.Program{Umask: s.cfg.Umask, Dir: s.cfg.Dir, Traps: traps, Kept: kept}
	if p.Dir == "" {
		p.Dir, p.DirMayFail = s.home, true
	}
	hand := fdpass.Handoff{Protocols: s.cfg.Protocols, Generation: o.Generation}
	for i, h := range sockets {
		fd, err := h.duplicate()
		if err != nil {
			return nil, fmt.Errorf("cannot duplicate the socket of %s: %w", h.about.Name, err)
		}
		defer syscall.Close(fd)
		hand.Sockets = append(hand.Sockets, h.about.Passed(firstDescriptor+i))
		p.Sockets = append(p.Sockets, fd)
	}
	p.ListenPID = hand.NeedsListenPID()
	var err error
	if p.Credential, err = start.LookupCredential(s.cfg.User, s.cfg.Group); err != nil {
		return nil, err
	}
	if p.Credential != nil {
		w.uid = p.Credential.UID
	}
	if kept != nil {
		if err := kept.Usable(); err != nil {
			return nil, err
		}
	}
	for _, arg := range s.cfg.Command {
		expanded, err := hand.Expand(arg)
		if err != nil {
			return nil, err
		}
		p.Command = append(p.Command, expanded)
	}
	if w.voice, err = process.Listen(); err != nil {
		return nil, err
	}
	if p.Env, err = s.environment(w, hand); err != nil {
		return nil, err
	}
	started, err := p.Start()
	if err != nil {
		return nil, err
	}
	run := &running{Started: started, child: process.New(started.PID, started.PidFD, s.pid, w.mark), command: p.Command}
	run.program = s.programs.keep(start.Keep(started.PID, started.Path, kept))
	return run, nil
}

// firstDescriptor is the number of the first socket in the worker
// (SD_LISTEN_FDS_START).
const firstDescriptor = 3

// environment is the master's own, without what it inherited for itself, with
// what the user adds, and last what the hand-over needs.
func (s *starter) environment(w *worker, hand fdpass.Handoff) ([]string, error) {
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
	env = append(env, w.voice.Environ()...)
	env = append(env, hand.Environ()...)
	if s.cfg.Control != "" {
		env = append(env, "MOULT_CONTROL="+s.cfg.Control)
	}
	return append(env,
		"MOULT_GENERATION="+strconv.Itoa(w.generation),
		"MOULT_NAME="+s.cfg.Name,
		process.MarkVariable+"="+w.mark), nil
}

// signalWorker reaches a worker's main process, or its whole tree.
func (ws *workers) signal(o machine.Send) {
	w := ws.all[o.Worker]
	if w == nil || w.child == nil {
		return
	}
	if o.Tree {
		_ = w.child.SignalTree(syscall.Signal(o.Signal), o.Again)
		return
	}
	_ = w.child.Signal(syscall.Signal(o.Signal))
}

// collect takes care of every child that has ended. A worker stays a zombie
// until the first look at what it has left behind; orphans are taken away at
// once, except while a program is being started, which might be among them.
func (s *Supervisor) collect() {
	for _, w := range s.workers.all {
		if w.child == nil || w.exited {
			continue
		}
		if _, status, ok := process.Ended(w.child.PID); ok {
			w.exited = true
			s.take(machine.Exited{Worker: w.id, Status: machine.Status{
				Code: status.Code, Signal: machine.Signal(status.Signal), Name: signalText(status.Signal), Core: status.Core,
			}})
		}
	}
	for s.workers.starts == 0 {
		pid, _, ok := process.Ended(0)
		if !ok || s.workers.family.Load().byPID[pid] != nil {
			return
		}
		process.Reap(pid)
	}
}

func signalText(sig syscall.Signal) string {
	if sig == 0 {
		return ""
	}
	return sig.String()
}

// programs are the executables that are held open.
type programs struct {
	mu   sync.Mutex
	last machine.ProgramID
	open map[machine.ProgramID]*start.Kept
}

func (p *programs) keep(k *start.Kept) machine.ProgramID {
	if k == nil {
		return 0
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.open == nil {
		p.open = map[machine.ProgramID]*start.Kept{}
	}
	p.last++
	p.open[p.last] = k
	return p.last
}

func (p *programs) get(id machine.ProgramID) *start.Kept {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.open[id]
}

func (p *programs) drop(id machine.ProgramID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.open[id].Close()
	delete(p.open, id)
}

func (p *programs) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, k := range p.open {
		k.Close()
	}
	p.open = nil
}
