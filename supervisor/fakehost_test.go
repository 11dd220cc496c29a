package supervisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moult/moult/fdpass"
)

// fakeHost plays the operating system in a bubble of fake time: processes are
// entries in a table, which end when the test says so, or when a signal does.
// The code under test is the real one up to the seam in host.go.
type fakeHost struct {
	t      *testing.T
	master *Supervisor
	began  time.Time
	play   func(*fakeProc) // decides what a process will be; nil: it lives on

	mu      sync.Mutex
	procs   map[int]*fakeProc
	zombies []int
	starts  []*fakeProc
	sent    []delivery
	lost    []string // processes that the master has forgotten, and other breaches
}

// delivery is one signal that the master sent.
type delivery struct {
	at  time.Duration // since the test began
	pid int
	sig syscall.Signal
}

// fakeProc is one process. Its fields are set by play, before it runs.
type fakeProc struct {
	host       *fakeHost
	pid        int
	at         time.Duration // of the fork
	nth        int           // forks are counted from 1
	generation int
	main       int // pid of the worker it belongs to; its own for a main process

	forkErr error
	execErr error                           // told instead of an exec
	ignores map[syscall.Signal]bool         // beside those, signals end it
	linger  time.Duration                   // how long it goes on after a signal
	onExit  func(p *fakeProc)               // when the main process ends, before it is a zombie
	onSig   func(*fakeProc, syscall.Signal) // beside the effect

	result chan error
	leaves *time.Timer
	ended  bool
	reaped bool
	status syscall.WaitStatus
}

// firstFakePID is above what the kernel gives (PID_MAX_LIMIT, 2^22), so that
// nothing that looks into /proc finds a stranger.
const firstFakePID = 1 << 23

func exited(code int) syscall.WaitStatus             { return syscall.WaitStatus(code << 8) }
func killedBy(sig syscall.Signal) syscall.WaitStatus { return syscall.WaitStatus(sig) }

func (f *fakeHost) host() host {
	h := realHost()
	h.start, h.kill, h.killGroup = f.start, f.kill, f.killGroup
	h.nextEnded, h.reap, h.leftovers = f.nextEnded, f.reap, f.leftovers
	return h
}

func (f *fakeHost) start(program fdpass.Program) (started, error) {
	p := &fakeProc{host: f, at: f.now(), result: make(chan error, 1), generation: generationIn(program.Env)}
	f.mu.Lock()
	f.starts = append(f.starts, p)
	p.nth = len(f.starts)
	p.pid = firstFakePID + p.nth*100
	p.main = p.pid
	f.mu.Unlock()
	f.deafen(program.Env)
	f.checkTracked()
	if f.play != nil {
		f.play(p)
	}
	if p.forkErr != nil {
		return nil, p.forkErr
	}
	f.mu.Lock()
	f.procs[p.pid] = p
	f.mu.Unlock()
	p.exec()
	return p, nil
}

// exec tells the shim's word: where it is an error, the shim ends too.
func (p *fakeProc) exec() {
	if p.execErr == nil {
		p.result <- nil
		return
	}
	var e *fdpass.StartError
	code := 1
	if errors.As(p.execErr, &e) {
		code = e.ExitCode()
	}
	p.result <- p.execErr
	p.exit(exited(code))
}

func generationIn(env []string) int {
	for _, kv := range env {
		if value, ok := strings.CutPrefix(kv, "MOULT_GENERATION="); ok {
			n, _ := strconv.Atoi(value)
			return n
		}
	}
	return 0
}

// deafen closes the worker's real socket for sd_notify: a goroutine that waits
// in the kernel keeps the bubble's clock from going on. Words come from say.
func (f *fakeHost) deafen(env []string) {
	for _, w := range f.master.workers() {
		for _, kv := range env {
			if kv == WorkerVariable+"="+w.mark {
				w.ready.socket.close()
			}
		}
	}
}

// checkTracked is called by the master's own goroutine: each process that has
// not been reaped must be somebody's.
func (f *fakeHost) checkTracked() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for pid, p := range f.procs {
		if p.main == pid && !p.reaped && f.master.byPID(pid) == nil {
			f.lost = append(f.lost, fmt.Sprintf("process %d (generation %d) is lost from sight at %s", p.nth, p.generation, f.now()))
		}
	}
}

func (f *fakeHost) now() time.Duration { return time.Since(f.began) }

func (p *fakeProc) PID() int { return p.pid }

func (p *fakeProc) Interception() *os.File { return nil }
func (p *fakeProc) Result() error          { return <-p.result }

// exit makes a zombie and raises SIGCHLD.
func (p *fakeProc) exit(status syscall.WaitStatus) {
	f := p.host
	f.mu.Lock()
	if p.ended {
		f.mu.Unlock()
		return
	}
	p.ended, p.status = true, status
	if p.leaves != nil {
		p.leaves.Stop()
	}
	f.zombies = append(f.zombies, p.pid)
	f.mu.Unlock()
	if p.onExit != nil {
		p.onExit(p)
	}
	select {
	case f.master.signals.child <- syscall.SIGCHLD:
	default:
	}
}

func (p *fakeProc) exitAfter(d time.Duration, status syscall.WaitStatus) {
	p.host.mu.Lock()
	defer p.host.mu.Unlock()
	p.leaves = time.AfterFunc(d, func() { p.exit(status) })
}

// child is a process that belongs to p's tree and outlives it.
func (p *fakeProc) child(ignores ...syscall.Signal) *fakeProc {
	f := p.host
	f.mu.Lock()
	defer f.mu.Unlock()
	c := &fakeProc{host: f, main: p.pid, ignores: map[syscall.Signal]bool{}, generation: p.generation}
	for c.pid = p.pid + 1; f.procs[c.pid] != nil; c.pid++ {
	}
	for _, sig := range ignores {
		c.ignores[sig] = true
	}
	f.procs[c.pid] = c
	return c
}

func (f *fakeHost) kill(pid int, sig syscall.Signal) error {
	f.mu.Lock()
	f.sent = append(f.sent, delivery{f.now(), pid, sig})
	p := f.procs[pid]
	if p == nil || p.reaped {
		f.lost = append(f.lost, fmt.Sprintf("%s sent to %d, which has been reaped", sig, pid))
		f.mu.Unlock()
		return syscall.ESRCH
	}
	f.mu.Unlock()
	p.take(sig)
	return nil
}

// take is the effect of a signal: KILL at once, the rest after a while.
func (p *fakeProc) take(sig syscall.Signal) {
	if p.onSig != nil {
		p.onSig(p, sig)
	}
	switch {
	case sig == syscall.SIGKILL:
		p.exit(killedBy(sig))
	case p.ignores[sig], sig == syscall.SIGUSR1, sig == syscall.SIGWINCH:
	case p.linger > 0:
		p.exitAfter(p.linger, exited(0))
	default:
		p.exit(killedBy(sig))
	}
}

// killGroup reaches the children; the main process was told by its pid.
func (f *fakeHost) killGroup(pgid int, sig syscall.Signal) error {
	for _, c := range f.childrenOf(pgid) {
		c.take(sig)
	}
	return nil
}

func (f *fakeHost) childrenOf(main int) []*fakeProc {
	f.mu.Lock()
	defer f.mu.Unlock()
	var list []*fakeProc
	for pid, p := range f.procs {
		if p.main == main && pid != main && !p.ended {
			list = append(list, p)
		}
	}
	return list
}

func (f *fakeHost) nextEnded() (int, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.zombies) == 0 {
		return 0, false
	}
	return f.zombies[0], true
}

func (f *fakeHost) reap(pid int) syscall.WaitStatus {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.zombies) == 0 || f.zombies[0] != pid {
		f.lost = append(f.lost, fmt.Sprintf("%d was reaped, which is no zombie", pid))
		return 0
	}
	f.zombies = f.zombies[1:]
	f.procs[pid].reaped = true
	return f.procs[pid].status
}

func (f *fakeHost) leftovers(w *worker) []int {
	var pids []int
	for _, c := range f.childrenOf(w.pid) {
		pids = append(pids, c.pid)
	}
	return pids
}

// alive counts the processes that run, and workers that are not reaped.
func (f *fakeHost) alive() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, p := range f.procs {
		if !p.ended || p.main == p.pid && !p.reaped {
			n++
		}
	}
	return n
}

// count is the number of forks so far.
func (f *fakeHost) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.starts)
}

// nth returns the n-th process that was forked, from 1.
func (f *fakeHost) nth(n int) *fakeProc {
	f.t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	if n > len(f.starts) {
		f.t.Fatalf("only %d processes were started, want %d", len(f.starts), n)
	}
	return f.starts[n-1]
}

// sentTo lists the signals that one process got, in order.
func (f *fakeHost) sentTo(p *fakeProc) []delivery {
	f.mu.Lock()
	defer f.mu.Unlock()
	var list []delivery
	for _, d := range f.sent {
		if d.pid == p.pid {
			list = append(list, d)
		}
	}
	return list
}

// say hands the master a word of p, as its socket would.
func (p *fakeProc) say(key, value string) {
	s := p.host.master
	s.send(func() {
		if w := s.byPID(p.pid); w != nil {
			w.notified(notification{pid: p.pid, fields: map[string]string{key: value}})
		}
	})
}

// sayReadyAfter is what most servers do.
func (p *fakeProc) sayReadyAfter(d time.Duration) {
	time.AfterFunc(d, func() { p.say("READY", "1") })
}

// trial is a master in a bubble, with a fake host below it.
type trial struct {
	*fakeHost
	t      *testing.T
	seen   []Transition
	ended  chan struct{}
	err    error
	endsAt time.Duration
}

// testConfig has round and different durations, so that each shows in a sum.
func testConfig() Config {
	cfg := Defaults()
	cfg.Name, cfg.Command = "test", []string{"program"}
	cfg.Ready, cfg.ReadyTimeout = ReadyNotify, 60*time.Second
	cfg.DrainTimeout, cfg.KillGrace = 30*time.Second, 5*time.Second
	cfg.RestartMin, cfg.RestartMax = 250*time.Millisecond, 250*time.Millisecond
	return cfg
}

// bubble runs a master in fake time; test is called when its first processes
// have been forked, and ends with the master gone.
func bubble(t *testing.T, cfg Config, play func(*fakeProc), test func(*trial)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := newTrial(t, cfg, play)
		synctest.Wait()
		test(b)
		<-b.ended
		b.checkEnd()
	})
}

func newTrial(t *testing.T, cfg Config, play func(*fakeProc)) *trial {
	t.Helper()
	b := &trial{t: t, ended: make(chan struct{})}
	cfg.OnTransition = func(tr Transition) { b.seen = append(b.seen, tr) }
	s, err := New(cfg, quietSignals())
	if err != nil {
		t.Fatal(err)
	}
	b.fakeHost = &fakeHost{t: t, master: s, began: time.Now(), play: play, procs: map[int]*fakeProc{}}
	s.host = b.host()
	go func() {
		defer close(b.ended)
		b.err = s.Run(context.Background())
		b.endsAt = b.now()
	}()
	return b
}

// quietSignals are never raised by the system.
func quietSignals() *Signals {
	const several = 8
	return &Signals{
		hangup: make(chan os.Signal, 1), child: make(chan os.Signal, 1),
		stop: make(chan os.Signal, several), other: make(chan os.Signal, several),
	}
}

func (b *trial) checkEnd() {
	b.t.Helper()
	for _, breach := range b.lost {
		b.t.Error(breach)
	}
	if n := b.alive(); n > 0 {
		b.t.Errorf("%d processes outlive the master", n)
	}
}

func (b *trial) signal(sig syscall.Signal) {
	signals := b.master.signals
	c := signals.other
	switch sig {
	case syscall.SIGHUP:
		c = signals.hangup
	case syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT:
		c = signals.stop
	}
	select {
	case c <- sig:
	default:
	}
}

// do sends a signal and waits until all that follows at once has happened.
func (b *trial) do(sig syscall.Signal) {
	b.signal(sig)
	synctest.Wait()
}

func (b *trial) pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// on runs f where the master's state may be read.
func (b *trial) on(f func(*Supervisor)) {
	done := make(chan struct{})
	b.master.send(func() { f(b.master); close(done) })
	select {
	case <-done:
	case <-b.ended:
	}
}

func (b *trial) phase() (p phase) {
	p = phaseEnded
	b.on(func(s *Supervisor) { p = s.phase })
	return p
}

// wantSignals compares what a process got, as "7s TERM".
func (b *trial) wantSignals(p *fakeProc, want ...string) {
	b.t.Helper()
	var have []string
	for _, d := range b.sentTo(p) {
		have = append(have, fmt.Sprint(d.at, " ", strings.ToUpper(shortName(d.sig))))
	}
	if strings.Join(have, ", ") != strings.Join(want, ", ") {
		b.t.Errorf("process %d (generation %d) got [%s], want [%s]", p.nth, p.generation, strings.Join(have, ", "), strings.Join(want, ", "))
	}
}

func shortName(sig syscall.Signal) string {
	names := map[syscall.Signal]string{syscall.SIGTERM: "TERM", syscall.SIGKILL: "KILL", syscall.SIGQUIT: "QUIT", syscall.SIGUSR1: "USR1"}
	return names[sig]
}

// wantEnd waits for the end and compares when and with what code it came.
func (b *trial) wantEnd(at time.Duration, code int) *Exit {
	b.t.Helper()
	<-b.ended
	var exit *Exit
	if !errors.As(b.err, &exit) {
		exit = &Exit{}
	}
	if exit.Code != code || b.endsAt != at {
		b.t.Errorf("Run ended at %s with %d (%v), want %s with %d", b.endsAt, exit.Code, b.err, at, code)
	}
	return exit
}
