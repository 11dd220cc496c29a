package machine

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/moult/moult/supervisor/control/api"
	"github.com/moult/moult/supervisor/ready"
)

// The simulator lets larger masters live through storms in virtual time: random
// signals, deaths, words, clients and failures, random answers to each order at
// random times. Whatever it was, the promises hold at each step (watch), and a
// stop afterwards ends within the time that the limits add up to. The seed is in
// the name of what fails; MOULT_SEED=N runs that storm alone.

func TestSimulate(t *testing.T) {
	storms := uint64(5_000)
	switch {
	case soak:
		storms = 1_000_000
	case testing.Short():
		storms = 400
	}
	first := uint64(time.Now().UnixNano()) % 1_000_000_000
	if s := os.Getenv("MOULT_SEED"); s != "" {
		first, _ = strconv.ParseUint(s, 10, 64)
		storms = 1
	}
	steps, began := 0, time.Now()
	for seed := first; seed < first+storms && !t.Failed(); seed++ {
		steps += storm(t, seed)
	}
	t.Logf("%d storms from seed %d, %d steps, %s", storms, first, steps, time.Since(began).Round(time.Millisecond))
}

// pause is anything between nothing and a minute, most often short.
func pause(r *rand.Rand) time.Duration {
	if r.IntN(5) == 0 {
		return 0
	}
	return time.Duration(r.Int64N(int64(time.Millisecond) << r.IntN(16)))
}

func stormConfig(r *rand.Rand) (Config, []Opened) {
	cfg := testConfig()
	cfg.Seed, cfg.Workers = r.Uint64(), 1+r.IntN(3)
	if r.IntN(6) == 0 {
		cfg.Workers = 8
	}
	cfg.ReadyTimeout, cfg.DrainTimeout, cfg.KillGrace = pause(r)+10*time.Millisecond, pause(r), pause(r)
	cfg.MaxDraining = 1 + r.IntN(8)
	cfg.Restart = Restart{Policy: []string{"always", "always", "on-failure", "never"}[r.IntN(4)], Min: time.Millisecond, Max: pause(r) + time.Millisecond}
	if r.IntN(4) == 0 {
		cfg.Restart.Limit, cfg.Restart.Within = 3, time.Minute
	}
	cfg.DrainSignal = []Signal{SIGTERM, sigQUIT}[r.IntN(2)]
	cfg.Ready = []ready.How{ready.Auto, ready.Accept, ready.Notify, ready.Alive}[r.IntN(4)]
	cfg.ReadyAlive = cfg.ReadyTimeout / 2
	if r.IntN(3) == 0 {
		cfg.Quiesce = pause(r)
	}
	if r.IntN(3) == 0 {
		cfg.Intercept = true
		return cfg, nil
	}
	var opened []Opened
	for id := range AddressID(1 + r.IntN(4)) {
		o := tcp(id + 1)
		o.Socket.Handover = []string{steer, steer, rename, share}[r.IntN(4)]
		opened = append(opened, o)
	}
	return cfg, opened
}

// becomeAnything makes one process of a kind that has been seen in the world: it
// starts or does not, accepts, says it is ready or does not, dies by itself,
// ignores what it is told, leaves children.
func becomeAnything(p *proc, r *rand.Rand) {
	p.accepts = r.IntN(8) > 0
	if p.world.m.Cfg.Intercept {
		for _, name := range []string{"a", "b", "c"}[:1+r.IntN(3)] {
			s := key(name)
			if name == "c" && r.IntN(2) == 0 {
				s.Network, s.Handover = "unix", share
			}
			p.binds = append(p.binds, s)
		}
		p.mute = r.IntN(12) == 0
	}
	switch r.IntN(12) {
	case 0:
		p.fails = "no process"
		return
	case 1, 2:
		p.exitAfter(pause(r), exited(r.IntN(2)))
	case 3:
		p.exitAfter(pause(r), killedBy(11))
	}
	p.ignores = map[Signal]bool{SIGTERM: r.IntN(4) == 0, sigQUIT: r.IntN(4) == 0}
	p.linger = pause(r)
	for range max(r.IntN(4)-2, 0) {
		p.child(Signal(r.IntN(2)) * SIGTERM).linger = pause(r)
	}
	if r.IntN(6) > 0 {
		p.readyAfter(pause(r))
	}
}

// storm is one life; it returns the number of its steps.
func storm(t *testing.T, seed uint64) int {
	r, theirs := rand.New(rand.NewPCG(seed, 1)), rand.New(rand.NewPCG(seed, 2))
	cfg, opened := stormConfig(r)
	w := &world{t: t, m: New(cfg), inode: 100_000_000, said: map[OpID][]string{}, calls: map[CallID]*asking{}}
	w.name = fmt.Sprintf("MOULT_SEED=%d", seed)
	w.play = func(p *proc) { becomeAnything(p, theirs) }
	slow, faulty := theirs.IntN(3) == 0, theirs.IntN(3) == 0
	fails := func() bool { return faulty && theirs.IntN(6) == 0 }
	w.delay = func(Order) time.Duration {
		if slow {
			return pause(theirs) / 8
		}
		return 0
	}
	w.steered = func(Steer) string { return map[bool]string{true: "the kernel says no"}[fails()] }
	w.furnish = func(Furnish) string { return map[bool]string{true: "no socket"}[fails()] }
	w.queued = func(CountQueue) int { return max(theirs.IntN(6)-4, 0) }
	w.listen = func(*proc, *socket, Reply) bool { return !fails() }
	w.looked = func(o Look, p *proc, seen Seen) Seen {
		seen.Queued, seen.Handshakes = max(theirs.IntN(6)-4, 0), max(theirs.IntN(6)-4, 0)
		seen.Busy, seen.Idle = max(theirs.IntN(6)-4, 0), max(theirs.IntN(6)-4, 0)
		seen.Holds = seen.Holds && theirs.IntN(2) == 0
		return seen
	}
	w.step(Begin{Opened: opened})
	for range r.IntN(40) {
		w.gust(r)
		w.pass(pause(r))
	}
	// From here on nobody asks for anything.
	began := w.now
	w.do(StopAsked{Reason: "SIGTERM"})
	w.delay = nil
	w.run(w.now + 100*time.Hour)
	if w.exit == nil {
		t.Fatalf("%s: no end: phase %s\n%s", w.name, w.m.Phase, w.trace(80))
	}
	if took, most := w.ended-began, cfg.DrainTimeout*2+cfg.Quiesce+4*cfg.KillGrace+5*killAgain+2*time.Minute; took > most {
		t.Errorf("%s: the stop took %s, want %s at most", w.name, took, most)
	}
	return w.steps
}

// gust is one thing that happens.
func (w *world) gust(r *rand.Rand) {
	if w.exit != nil {
		return
	}
	var p *proc
	if len(w.procs) > 0 {
		p = w.procs[r.IntN(len(w.procs))]
	}
	switch n := r.IntN(40); {
	case n == 0:
		w.do(StopAsked{Reason: "SIGTERM"})
	case n == 1:
		w.do(StopAsked{Reason: "SIGQUIT", Now: true})
	case n < 16:
		w.do(Hangup{"SIGHUP"})
	case n < 20:
		w.do(ScaleAsked{1 - 2*r.IntN(2)})
	case n < 21:
		w.do(PassOn{sigUSR1})
	case n < 28:
		kinds := []string{api.OpUpgrade, api.OpUpgrade, api.OpRollback, api.OpScale}
		w.ask(api.Operation{Kind: kinds[r.IntN(4)], Workers: r.IntN(5)})
	case n < 29:
		w.do(Viewed{})
	case p == nil || !p.runs:
	case n < 33:
		p.exit(killedBy(SIGKILL))
	case n < 34:
		p.say(Notified{Extend: pause(r)})
	case n < 35:
		w.do(Alone{p.worker, "it cannot be held"})
	case n < 37:
		if len(p.sockets) > 1 {
			p.sockets = p.sockets[:len(p.sockets)-1]
			p.binds = p.binds[:len(p.sockets)]
		}
		w.do(ListenerLost{p.worker})
	default:
		p.say(Notified{Ready: r.IntN(2) == 0, Status: "fine"})
	}
}
