package supervisor

import (
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moult/moult/fdpass"
)

// A storm is a random order of signals, deaths and words with random pauses
// between them. Whatever it was, a TERM afterwards ends Run within the time
// that the limits add up to, with no process left and none lost from sight on
// the way. The seed is in the name of what fails.
func TestStorms(t *testing.T) {
	storms, bubbles := 10_000, 100
	if testing.Short() {
		storms = 500
	}
	for i := range bubbles {
		synctest.Test(t, func(t *testing.T) {
			for n := range storms / bubbles {
				runStorm(t, uint64(i*storms/bubbles+n))
			}
		})
	}
}

func runStorm(t *testing.T, seed uint64) {
	t.Helper()
	r, theirs := rand.New(rand.NewPCG(seed, 1)), rand.New(rand.NewPCG(seed, 2))
	b := newTrial(t, stormConfig(t, r), func(p *fakeProc) { becomeAnything(p, theirs) })
	for range r.IntN(25) {
		gust(b, r)
	}
	synctest.Wait()
	if p := b.phase(); p >= phaseStopping && p != phaseEnded && b.alive() == 0 {
		t.Errorf("nothing is left, and Run goes on")
	}
	began := b.now()
	b.signal(syscall.SIGTERM)
	<-b.ended
	b.checkEnd()
	if took, most := b.now()-began, longestStop(b.master.cfg); took > most {
		t.Errorf("the stop took %s, want %s at most", took, most)
	}
	if t.Failed() {
		t.Fatalf("storm %d: %v", seed, b.seen)
	}
}

// longestStop is what a stop may take: starting workers have one grace, serving
// ones the drain and the grace, trees that they leave another one, and SIGKILL
// is looked after once a second.
func longestStop(cfg Config) time.Duration {
	return cfg.DrainTimeout + 3*cfg.KillGrace + 2*killAgain
}

func stormConfig(t *testing.T, r *rand.Rand) Config {
	cfg := testConfig()
	cfg.Workers = 1 + r.IntN(3)
	cfg.ReadyTimeout = pause(r) + time.Millisecond
	cfg.DrainTimeout, cfg.KillGrace = pause(r), pause(r)
	cfg.MaxDraining = 1 + r.IntN(3)
	cfg.Restart = []Restart{RestartAlways, RestartAlways, RestartOnFailure, RestartNever}[r.IntN(4)]
	cfg.RestartMin, cfg.RestartMax = time.Millisecond, pause(r)+time.Millisecond
	cfg.DrainSignal = []syscall.Signal{syscall.SIGTERM, syscall.SIGQUIT}[r.IntN(2)]
	if r.IntN(4) == 0 {
		cfg.RestartLimit, cfg.RestartWithin = 3, time.Minute
	}
	if r.IntN(4) == 0 {
		cfg.Ready, cfg.ReadyAlive = ReadyAlive, cfg.ReadyTimeout/2
	}
	if r.IntN(8) == 0 { // with a socket, dead generations are taken over
		cfg.Addresses = []fdpass.Address{abstractAddress(t)}
	}
	return cfg
}

// pause is anything between nothing and a minute, most often short.
func pause(r *rand.Rand) time.Duration {
	if r.IntN(5) == 0 {
		return 0
	}
	return time.Duration(r.Int64N(int64(time.Millisecond) << r.IntN(16)))
}

// becomeAnything makes one process of a kind that has been seen in the world:
// it starts or does not, says it is ready or does not, dies by itself, ignores
// what it is told, leaves children.
func becomeAnything(p *fakeProc, r *rand.Rand) {
	switch r.IntN(12) {
	case 0:
		p.forkErr = syscall.EAGAIN
		return
	case 1:
		p.execErr = &fdpass.StartError{Step: "execute", What: "x", Err: syscall.ENOENT}
		return
	case 2, 3:
		p.exitAfter(pause(r), exited(r.IntN(2)))
	case 4:
		p.exitAfter(pause(r), killedBy(syscall.SIGSEGV))
	}
	p.ignores = map[syscall.Signal]bool{syscall.SIGTERM: r.IntN(4) == 0, syscall.SIGQUIT: r.IntN(4) == 0}
	p.linger = pause(r)
	for range r.IntN(3) - 1 {
		c := p.child(syscall.Signal(r.IntN(2) * int(syscall.SIGTERM)))
		c.linger = pause(r)
	}
	if r.IntN(6) > 0 {
		p.sayReadyAfter(pause(r))
	}
}

// gust is one thing that happens, and the silence after it.
func gust(b *trial, r *rand.Rand) {
	signals := []syscall.Signal{
		syscall.SIGHUP, syscall.SIGHUP, syscall.SIGHUP, syscall.SIGTTIN, syscall.SIGTTOU,
		syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH,
	}
	switch n := r.IntN(30); {
	case n == 0:
		b.signal(syscall.SIGTERM)
	case n == 1:
		b.signal(syscall.SIGQUIT)
	case n < 20:
		b.signal(signals[r.IntN(len(signals))])
	default:
		if p := b.anyProc(r); p != nil && r.IntN(2) == 0 {
			p.exit(killedBy(syscall.SIGKILL))
		} else if p != nil {
			p.say([]string{"READY", "STATUS", "BARRIER"}[r.IntN(3)], fmt.Sprint(r.IntN(2)))
		}
	}
	time.Sleep(pause(r))
}

func (f *fakeHost) anyProc(r *rand.Rand) *fakeProc {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.starts) == 0 {
		return nil
	}
	if p := f.starts[r.IntN(len(f.starts))]; f.procs[p.pid] != nil {
		return p
	}
	return nil
}
