package machine

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moult/moult/supervisor/control/api"
	"github.com/moult/moult/supervisor/ready"
)

func interceptConfig() Config {
	cfg := testConfig()
	cfg.Intercept, cfg.Ready = true, ready.Auto
	return cfg
}

// key is an address that a worker binds itself.
func key(name string) Socket { return Socket{Network: "tcp", Key: name, Bound: name, Stream: true} }

// binder binds addresses and accepts.
func binder(names ...string) func(*proc) {
	return func(p *proc) {
		p.accepts = true
		for _, name := range names {
			p.binds = append(p.binds, key(name))
		}
	}
}

// listeners lists the sockets of the book by their addresses.
func (w *world) listeners() string {
	var list []string
	for _, a := range w.m.Book.Addresses {
		for range a.Members {
			list = append(list, a.Socket.Key)
		}
	}
	return strings.Join(list, " ")
}

func (w *world) wantListeners(want string) {
	w.t.Helper()
	if got := w.listeners(); got != want {
		w.t.Fatalf("the book has %q, want %q\n%s", got, want, w.trace(100))
	}
}

func TestInterceptionOverThreeGenerations(t *testing.T) {
	for _, workers := range []int{1, 2} {
		cfg := interceptConfig()
		cfg.Workers = workers
		w := begin(t, cfg, binder("a", "b"))
		w.pass(time.Second)
		w.wantServing(workers)
		both := strings.TrimSpace(strings.Repeat("a ", workers) + strings.Repeat("b ", workers))
		w.wantListeners(both)
		for n := range 2 {
			w.hup()
			w.pass(time.Second)
			w.wantStarts((n + 2) * workers)
			w.wantServing(workers)
			w.wantListeners(both)
		}
		w.term()
		w.wantEnd(3*time.Second, 0)
	}
}

// One that lacks an address is not ready, whatever it says.
func TestNextGenerationThatLacksAnAddress(t *testing.T) {
	cfg := interceptConfig()
	cfg.ReadyTimeout = 5 * time.Second
	play := func(p *proc) {
		p.readyAfter(time.Millisecond)
		if p.generation == 1 {
			binder("a", "b")(p)
		} else {
			binder("a")(p)
		}
	}
	w := begin(t, cfg, play)
	w.pass(time.Second)
	id := w.ask(api.Operation{Kind: api.OpUpgrade})
	w.pass(time.Minute)
	w.wantSignals(w.nth(2), "6s TERM")
	w.wantSignals(w.nth(1))
	w.wantListeners("a b")
	if got := w.said[id]; got[len(got)-1] != api.EventFailed {
		t.Errorf("the client has heard %v", got)
	}
	if reason := w.m.Clients.Upgrades.Last.Reason; !strings.Contains(reason, "it does not listen on b, where the old generation does") {
		t.Errorf("the reason is %q", reason)
	}
	w.term()
}

// Where only one worker of several has an address, one of the next generation
// has to have it, and not all.
func TestAddressOfOneWorkerOfTwo(t *testing.T) {
	cfg := interceptConfig()
	cfg.Workers = 2
	play := func(p *proc) {
		if p.nth%2 == 1 {
			binder("a", "admin")(p)
		} else {
			binder("a")(p)
		}
	}
	w := begin(t, cfg, play)
	w.pass(time.Second)
	w.hup()
	w.pass(time.Second)
	w.wantServing(2)
	if g := w.m.serving(); g.Number != 2 {
		t.Errorf("generation %d serves, want 2", g.Number)
	}
	w.wantListeners("a a admin")
	w.term()
}

// A bound socket that does not listen yet means not ready, whatever READY says.
func TestBoundAndNotListening(t *testing.T) {
	cfg := interceptConfig()
	cfg.Ready, cfg.ReadyTimeout = ready.Notify, 5*time.Second
	play := func(p *proc) {
		binder("a")(p)
		p.readyAfter(10 * time.Millisecond)
		p.mute = p.generation > 1
	}
	w := begin(t, cfg, play)
	w.pass(time.Second)
	w.m.serving().Serves = nil // not for want of the address
	w.hup()
	w.pass(time.Minute)
	w.wantSignals(w.nth(2), "6s TERM")
	w.wantSignals(w.nth(1))
	w.term()
}

// The replacement of a worker that has died gets its sockets, with what waits
// in them.
func TestReplacementGetsTheMembers(t *testing.T) {
	w := begin(t, interceptConfig(), binder("a"))
	w.pass(time.Second)
	before := w.m.Book.Addresses[0].Members[0].Inode
	w.nth(1).exit(killedBy(11))
	w.pass(time.Second)
	w.wantStarts(2)
	w.wantServing(1)
	w.wantListeners("a")
	if got := w.m.Book.Addresses[0].Members[0].Inode; got != before {
		t.Errorf("socket %d, want %d as before", got, before)
	}
	w.term()
	w.wantEnd(2*time.Second, 0)
}

// What it does not bind any more is let go of after its time.
func TestReplacementThatBindsLess(t *testing.T) {
	cfg := interceptConfig()
	cfg.ReadyTimeout = 5 * time.Second
	play := func(p *proc) {
		if p.nth == 1 {
			binder("a", "b")(p)
		} else {
			binder("a")(p)
		}
	}
	w := begin(t, cfg, play)
	w.pass(time.Second)
	w.nth(1).exit(killedBy(11))
	w.pass(4 * time.Second)
	w.wantListeners("a b")
	w.pass(2 * time.Second)
	w.wantListeners("a")
	w.term()
}

// A worker that closes a listener loses the member, also when the word comes
// while a look is under way that may have been too early.
func TestListenerThatIsClosed(t *testing.T) {
	w := begin(t, interceptConfig(), binder("a", "b"))
	w.pass(time.Second)
	p := w.nth(1)
	w.delay = func(Order) time.Duration { return 10 * time.Millisecond }
	late := 0
	w.looked = func(o Look, p *proc, seen Seen) Seen {
		if late++; late == 1 {
			seen.Missing = nil // taken just before
		}
		return seen
	}
	w.do(ListenerLost{p.worker})
	p.sockets = slices.Delete(p.sockets, 1, 2)
	w.do(ListenerLost{p.worker})
	w.pass(closedAfter - time.Second)
	w.wantListeners("a b") // it may be on its way to another process
	w.pass(2 * time.Second)
	w.wantListeners("a")
	w.delay = nil
	w.hup()
	w.pass(time.Second)
	if g := w.m.serving(); g.Number != 2 {
		t.Errorf("generation %d serves, want 2", g.Number)
	}
	w.term()
}

// Sockets that are opened after the start belong to their process alone.
func TestSocketsOpenedLate(t *testing.T) {
	w := begin(t, interceptConfig(), binder("a"))
	w.pass(time.Second + Late)
	p := w.nth(1)
	p.binds = append(p.binds, key("late"))
	w.bindNext(p)
	w.pass(time.Second)
	w.wantListeners("a")
	w.hup()
	w.pass(time.Second)
	w.wantServing(1)
	w.wantListeners("a")
	w.term()
}

// The first generation serves when it has bound nothing for a moment, and what it
// binds shortly after that counts as well.
func TestSecondAddressComesShortlyAfter(t *testing.T) {
	for _, gap := range []time.Duration{quiet - 10*time.Millisecond, Late} {
		w := begin(t, interceptConfig(), func(p *proc) {
			binder("a")(p)
			if p.generation > 1 {
				binder("b")(p)
			}
		})
		w.pass(gap)
		if gap < quiet {
			w.wantServing(0)
		} else {
			w.wantServing(1)
		}
		p := w.nth(1)
		p.binds = append(p.binds, key("b"))
		w.bindNext(p)
		w.pass(time.Second)
		w.wantServing(1)
		for range 2 {
			w.wantListeners("a b")
			w.hup()
			w.pass(time.Second)
		}
		w.wantStarts(3)
		w.term()
	}
}

// A generation that takes over from a dead one has to bind what that had.
func TestTakeoverThatLacksAnAddress(t *testing.T) {
	cfg := interceptConfig()
	cfg.ReadyTimeout = 5 * time.Second
	cfg.Restart.Min, cfg.Restart.Max = time.Minute, time.Minute
	w := begin(t, cfg, func(p *proc) {
		switch {
		case p.generation > 1:
			binder("b")(p)
		case p.nth == 1:
			binder("a")(p)
		}
	})
	w.pass(time.Second)
	for n := range 2 {
		w.nth(n + 1).exit(killedBy(11))
		w.pass(time.Second)
	}
	w.hup()
	w.pass(3 * time.Second)
	if g := w.m.serving(); g.Number != 1 {
		t.Errorf("generation %d serves without the address", g.Number)
	}
	w.pass(30 * time.Second)
	w.wantListeners("a")
	w.term()
}

// What the old generation closes while the next one starts is not waited for.
func TestAddressThatIsClosedDuringAnUpgrade(t *testing.T) {
	w := begin(t, interceptConfig(), func(p *proc) {
		binder("a")(p)
		if p.generation == 1 {
			binder("b")(p)
		}
	})
	w.pass(time.Second)
	w.hup()
	w.pass(time.Second)
	w.wantServing(1)
	p := w.nth(1)
	p.sockets = slices.DeleteFunc(p.sockets, func(s *socket) bool { return s.asked.Key == "b" })
	w.pass(bypassEvery + 50*time.Millisecond)
	if g := w.m.serving(); g.Number != 2 {
		t.Errorf("generation %d serves, want 2", g.Number)
	}
	w.term()
}

// A port of its own that a worker has closed again is not waited for.
func TestPortOfItsOwnThatIsClosed(t *testing.T) {
	w := begin(t, interceptConfig(), func(p *proc) {
		p.binds = []Socket{{Network: "tcp", Bound: "any", Stream: true}}
	})
	w.pass(quiet / 2)
	p := w.nth(1)
	closed := p.sockets[0].inode
	p.sockets = nil
	w.looked = func(_ Look, _ *proc, seen Seen) Seen {
		for i := range seen.Accepting {
			if seen.Accepting[i].Inode == closed {
				seen.Accepting[i].Is = No
			}
		}
		return seen
	}
	binder("a")(p)
	p.binds = p.binds[1:]
	w.bindNext(p)
	w.pass(Late)
	w.wantServing(1)
	w.wantListeners("a")
	w.term()
}

// A look that saw a socket before the machine has heard that it was learned says
// nothing against the worker.
func TestLookThatIsFasterThanTheWord(t *testing.T) {
	w := begin(t, interceptConfig(), binder("a"))
	w.nth(1).binds = nil
	w.delay = func(o Order) time.Duration {
		if r, is := o.(Reply); is && r.Verdict == Adopt {
			return time.Second
		}
		return 0
	}
	w.looked = func(o Look, _ *proc, seen Seen) Seen {
		if o.Bypass {
			seen.Bypass = "a"
		}
		return seen
	}
	w.pass(askAfter / 2)
	p := w.nth(1)
	p.binds = append(p.binds, key("a"))
	w.bindNext(p)
	w.pass(5 * time.Second)
	w.wantServing(1)
	w.term()
}

// A socket that is bound is waited for, and not for ever where nobody has ever
// listened there: it may be a client's.
func TestFirstGenerationThatIsBoundAndDoesNotListen(t *testing.T) {
	w := begin(t, interceptConfig(), binder("a"))
	w.pass(quiet - 10*time.Millisecond)
	p := w.nth(1)
	p.mute, p.binds = true, append(p.binds, key("b"))
	w.bindNext(p)
	w.pass(Late - 10*time.Millisecond)
	w.wantServing(0)
	w.pass(time.Second)
	w.wantServing(1)
	w.wantListeners("a")
	w.term()
}

// A socket on its way when its worker dies is given back, once; one that it
// inherited stays with the slot, and is not given back again when that has gone.
func TestDeathWhileASocketIsOnItsWay(t *testing.T) {
	w := begin(t, interceptConfig(), binder("a"))
	w.pass(time.Second)
	slow := func(o Order) time.Duration {
		if _, is := o.(Reply); is {
			return time.Second
		}
		return 0
	}
	w.delay = slow
	w.hup()
	w.pass(10 * time.Millisecond)
	w.nth(2).exit(exited(1)) // Adopt is under way
	w.pass(2 * time.Second)
	w.wantListeners("a")
	w.nth(1).exit(exited(1))
	w.pass(10 * time.Millisecond)
	w.nth(3).exit(exited(1)) // Claim is under way
	w.delay = nil
	w.term()
	w.wantEnd(w.now, 0)
}

// One socket for all: the new generation gets it as well, and a call that is
// under way keeps it.
func TestSharedPath(t *testing.T) {
	play := func(p *proc) {
		p.accepts = true
		p.binds = []Socket{{Network: "unix", Key: "/s", Bound: "/s", Stream: true, Handover: api.Share}}
	}
	w := begin(t, interceptConfig(), play)
	w.pass(time.Second)
	for range 2 {
		w.hup()
		w.pass(time.Second)
		w.wantServing(1)
		w.wantListeners("/s")
	}
	w.term()
	w.wantEnd(3*time.Second, 0)
}

// A worker that has only just been started when the end comes still gets the
// socket in which clients wait.
func TestClaimAtTheEnd(t *testing.T) {
	w := begin(t, interceptConfig(), binder("a"))
	w.pass(time.Second)
	waiting := 1
	w.queued = func(CountQueue) int { return waiting }
	w.looked = func(o Look, p *proc, seen Seen) Seen {
		if o.For == LookSettled {
			seen.Queued = waiting
			if len(p.sockets) > 0 && p.sockets[0].inode == o.Inodes[0] {
				seen.Queued, waiting = 0, 0
			}
		}
		return seen
	}
	w.nth(1).exit(exited(1))
	w.run(w.now)
	w.term()
	w.pass(time.Minute)
	if waiting != 0 {
		t.Errorf("what waited was not served\n%s", w.trace(100))
	}
}

// What a worker binds meanwhile does not change for how long it has to live.
func TestAliveWithInterception(t *testing.T) {
	cfg := interceptConfig()
	cfg.Ready, cfg.ReadyAlive = ready.Alive, 5*time.Second
	w := begin(t, cfg, binder("a"))
	w.pass(4 * time.Second)
	w.wantServing(0)
	w.pass(time.Second)
	w.wantServing(1)
	w.quit()
}

func TestAloneFailsTheStart(t *testing.T) {
	w := begin(t, interceptConfig(), binder("a"))
	w.pass(time.Second)
	w.hup()
	w.do(Alone{w.nth(2).worker, "it cannot be held"})
	w.pass(time.Second)
	w.wantSignals(w.nth(1))
	w.do(Alone{w.nth(1).worker, "it cannot be held"}) // serves: it is only said
	w.wantServing(1)
	w.term()
}
