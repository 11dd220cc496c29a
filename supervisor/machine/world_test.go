package machine

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moult/moult/supervisor/control/api"
	"github.com/moult/moult/supervisor/ready"
)

// world performs a machine's orders in virtual time: processes are entries in a
// list, which end when the test says so or when a signal does. Nothing in it
// waits; run goes from one moment at which something happens to the next.
type world struct {
	t     testing.TB
	m     *Machine
	now   time.Duration // since the beginning
	todo  []happening   // in order of time
	seen  []Transition
	procs []*proc
	watch watch
	exit  *Exit
	ended time.Duration // when it came
	said  map[OpID][]string
	name  string // of the storm
	steps int
	last  []taken // told when an invariant is broken

	play    func(*proc)                      // decides what a process will be; nil: it lives on
	delay   func(Order) time.Duration        // of the answer; nil: none
	steered func(Steer) string               // an error; nil: none
	furnish func(Furnish) string             // an error; nil: none
	queued  func(CountQueue) int             // nil: nobody waits
	looked  func(Look, *proc, Seen) Seen     // changes what was seen
	listen  func(*proc, *socket, Reply) bool // false: the kernel refuses

	inode   Inode
	program ProgramID
	call    CallID
	op      OpID
	calls   map[CallID]*asking
}

// taken is one step.
type taken struct {
	at     time.Duration
	event  Event
	orders []Order
}

// trace tells the last steps.
func (w *world) trace(n int) string {
	var b strings.Builder
	for _, s := range w.last[max(len(w.last)-n, 0):] {
		fmt.Fprintf(&b, "%s %T%+v\n", s.at, s.event, s.event)
		for _, o := range s.orders {
			fmt.Fprintf(&b, "    %T%+v\n", o, o)
		}
	}
	return b.String()
}

type happening struct {
	at time.Duration
	do func()
}

// proc is one process; play sets what it will be before it runs.
type proc struct {
	world      *world
	worker     WorkerID
	nth        int // starts are counted from 1
	generation int
	at         time.Duration // of the start

	fails    string // why it cannot be started
	code     int
	ignores  map[Signal]bool // beside those, signals end it
	linger   time.Duration   // how long it goes on after a signal
	children []*child
	accepts  bool // on everything that it was given or has bound
	binds    []Socket
	mute     bool // it never listens on what it has bound

	pid     int
	runs    bool
	sockets []*socket
	got     []string // signals, as "7s TERM"
}

// child is a process of a worker's tree that outlives it.
type child struct {
	ignores map[Signal]bool
	linger  time.Duration
	told    map[Signal]bool
	ended   bool
}

// socket is one that a worker has made, or was given in its place.
type socket struct {
	inode     Inode
	asked     Socket
	reuseport bool
	listening bool
}

// asking is a call that waits.
type asking struct {
	proc   *proc
	socket *socket
	event  Event
}

var dawn = time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)

// testConfig has round and different durations, so that each shows in a sum.
func testConfig() Config {
	return Config{
		Name: "test", PID: 1, Workers: 1,
		Ready: ready.Notify, ReadyTimeout: 60 * time.Second,
		DrainSignal: SIGTERM, DrainTimeout: 30 * time.Second, KillGrace: 5 * time.Second, MaxDraining: 8,
		Restart: Restart{Policy: "always", Min: 250 * time.Millisecond, Max: 250 * time.Millisecond},
	}
}

// tcp is an address that the master has opened, steered.
func tcp(id AddressID) Opened {
	name := fmt.Sprintf("s%d", id)
	return Opened{id, Socket{Name: name, Network: "tcp", Bound: "127.0.0.1:" + name, Key: name, Handover: api.Steer, Stream: true}}
}

// begin starts a machine in a world; play is called for each process.
func begin(t testing.TB, cfg Config, play func(*proc), opened ...Opened) *world {
	w := &world{t: t, m: New(cfg), play: play, inode: 100, said: map[OpID][]string{}, calls: map[CallID]*asking{}}
	if len(opened) == 0 && !cfg.Intercept {
		opened = []Opened{tcp(1)}
	}
	w.step(Begin{Opened: opened})
	w.run(0)
	return w
}

// step hands the machine one event and performs what it orders.
func (w *world) step(e Event) {
	w.watch.before(w.m, e)
	orders := w.m.Step(dawn.Add(w.now), e)
	w.steps++
	w.last = append(w.last, taken{w.now, e, orders})
	if n := len(w.last); n > 400 {
		w.last = slices.Clone(w.last[n-200:])
	}
	if broken := w.watch.after(w.m, orders); broken != "" {
		w.t.Fatalf("%s: %s\n%s", w.name, broken, w.trace(60))
	}
	for _, o := range orders {
		w.perform(o)
	}
}

// after plans something.
func (w *world) after(d time.Duration, do func()) {
	at := w.now + d
	i := len(w.todo)
	for i > 0 && w.todo[i-1].at > at {
		i--
	}
	w.todo = slices.Insert(w.todo, i, happening{at, do})
}

// run lets time pass, until d from the beginning.
func (w *world) run(until time.Duration) {
	for steps := 0; w.exit == nil; steps++ {
		if steps > 200_000 {
			w.t.Fatalf("no end at %s\n%s", w.now, w.trace(60))
		}
		due := w.m.Due()
		tick := due.Sub(dawn)
		if len(w.todo) > 0 && (due.IsZero() || w.todo[0].at <= max(tick, w.now)) {
			if w.todo[0].at > until {
				break
			}
			next := w.todo[0]
			w.todo = w.todo[1:]
			w.now = max(w.now, next.at)
			next.do()
			continue
		}
		if due.IsZero() || tick > until {
			break
		}
		w.now = max(w.now, tick)
		w.step(Tick{})
	}
	w.now = max(w.now, until)
}

func (w *world) pass(d time.Duration) { w.run(w.now + d) }

// do hands over an event, and all that follows at once.
func (w *world) do(e Event) {
	if w.exit == nil {
		w.step(e)
		w.run(w.now)
	}
}

func (w *world) hup()  { w.do(Hangup{"SIGHUP"}) }
func (w *world) term() { w.do(StopAsked{Reason: "SIGTERM"}) }
func (w *world) quit() { w.do(StopAsked{Reason: "SIGQUIT", Now: true}) }

// ask is a client.
func (w *world) ask(o api.Operation) OpID {
	w.op++
	w.do(Asked{w.op, o})
	return w.op
}

// answer plans the event that an order comes back as.
func (w *world) answer(o Order, make func() Event) {
	d := time.Duration(0)
	if w.delay != nil {
		d = w.delay(o)
	}
	w.after(d, func() {
		if e := make(); e != nil && w.exit == nil {
			w.step(e)
		}
	})
}

func (w *world) perform(o Order) {
	switch o := o.(type) {
	case Furnish:
		w.answer(o, func() Event { return w.furnished(o) })
	case Start:
		w.start(o)
	case Send:
		w.send(o)
	case Look:
		w.answer(o, func() Event { return w.look(o) })
	case CountQueue:
		w.answer(o, func() Event {
			if w.queued == nil || len(o.Members) == 0 {
				return QueueSeen{Slot: o.Slot}
			}
			return QueueSeen{o.Slot, w.queued(o)}
		})
	case Steer:
		w.answer(o, func() Event {
			if w.steered == nil {
				return Steered{Address: o.Address}
			}
			return Steered{Address: o.Address, Err: w.steered(o)}
		})
	case Reply:
		w.replied(o)
	case CheckProgram:
		w.answer(o, func() Event { return ProgramChecked{Op: o.Op, Program: o.Program} })
	case Tell:
		w.seen = append(w.seen, o.Transition)
	case Accept:
		w.said[o.Op] = append(w.said[o.Op], "accepted")
	case TurnDown:
		w.said[o.Op] = append(w.said[o.Op], "turned down")
	case Inform:
		w.said[o.Op] = append(w.said[o.Op], o.Event.Event)
	case Exit:
		w.ends(o)
	}
}

func (w *world) ends(o Exit) {
	w.exit, w.ended = &o, w.now
	for _, p := range w.procs {
		if p.runs {
			w.t.Fatalf("process %d outlives the master\n%s", p.nth, w.trace(60))
		}
		for _, c := range p.children {
			if !c.ended && p.fails == "" {
				w.t.Fatalf("a child of process %d outlives the master", p.nth)
			}
		}
	}
}

// furnished makes the sockets: one for each slot and address that is steered, one
// for all slots where a path is renamed, the same for ever where it is shared.
func (w *world) furnished(o Furnish) Furnished {
	f := Furnished{First: o.First}
	if w.furnish != nil {
		if f.Err = w.furnish(o); f.Err != "" {
			return f
		}
	}
	for range o.Slots {
		var members []Held
		for _, a := range w.m.Book.Addresses {
			if a.Socket.Learned {
				continue
			}
			h := Held{Address: a.ID}
			switch a.Socket.Handover {
			case api.Share:
				h.Inode = Inode(a.ID)
			case api.Rename:
				h.Inode = Inode(int(a.ID)*1_000_000 + o.Generation)
			default:
				w.inode++
				h.Inode = w.inode
			}
			members = append(members, h)
		}
		f.Members = append(f.Members, members)
	}
	return f
}

func (w *world) start(o Start) {
	p := &proc{world: w, worker: o.Worker, nth: len(w.procs) + 1, generation: o.Generation, at: w.now, ignores: map[Signal]bool{}}
	p.pid = 1000 + p.nth
	w.procs = append(w.procs, p)
	if w.play != nil {
		w.play(p)
	}
	w.answer(o, func() Event {
		if p.fails != "" {
			return StartFailed{p.worker, p.fails, max(p.code, 1)}
		}
		p.runs = true
		w.bindNext(p)
		if o.Program == 0 {
			w.program++
			o.Program = w.program
		}
		return Forked{Worker: p.worker, PID: p.pid, Program: o.Program}
	})
}

// nth is the n-th process that was started, from 1.
func (w *world) nth(n int) *proc {
	w.t.Helper()
	if n > len(w.procs) {
		w.t.Fatalf("only %d processes were started, want %d", len(w.procs), n)
	}
	return w.procs[n-1]
}

func (w *world) of(id WorkerID) *proc {
	for _, p := range w.procs {
		if p.worker == id {
			return p
		}
	}
	return nil
}

// say hands over a word of the process.
func (p *proc) say(n Notified) {
	n.Worker = p.worker
	if p.runs && p.world.exit == nil {
		p.world.step(n)
	}
}

// readyAfter is what most servers do: d after they run.
func (p *proc) readyAfter(d time.Duration) {
	p.world.after(d, func() { p.say(Notified{Ready: true}) })
}

func exited(code int) Status     { return Status{Code: code} }
func killedBy(sig Signal) Status { return Status{Signal: sig, Name: "signal"} }

// exitAfter plans the end, in place of another that may be planned.
func (p *proc) exitAfter(d time.Duration, s Status) { p.world.after(d, func() { p.exit(s) }) }

func (p *proc) exit(s Status) {
	if !p.runs || p.world.exit != nil {
		return
	}
	p.runs = false
	p.world.step(Exited{p.worker, s})
}

var signalNames = map[Signal]string{SIGTERM: "TERM", SIGKILL: "KILL", 3: "QUIT", 10: "USR1"}

const (
	sigQUIT Signal = 3
	sigUSR1 Signal = 10
)

func (w *world) send(o Send) {
	p := w.of(o.Worker)
	if o.Tree {
		for _, c := range p.children {
			c.take(w, o.Signal, o.Again)
		}
	}
	if !p.runs {
		return
	}
	p.got = append(p.got, fmt.Sprint(w.now, " ", signalNames[o.Signal]))
	switch {
	case o.Signal == SIGKILL:
		w.after(0, func() { p.exit(killedBy(SIGKILL)) })
	case p.ignores[o.Signal], o.Signal == sigUSR1:
	case p.linger > 0:
		p.exitAfter(p.linger, exited(0))
	default:
		w.after(0, func() { p.exit(killedBy(o.Signal)) })
	}
}

func (c *child) take(w *world, sig Signal, again bool) {
	if again && c.told[sig] {
		return
	}
	if c.told == nil {
		c.told = map[Signal]bool{}
	}
	c.told[sig] = true
	switch {
	case sig == SIGKILL:
		c.ended = true
	case c.ignores[sig]:
	default:
		w.after(c.linger, func() { c.ended = true })
	}
}

func (p *proc) child(ignores ...Signal) *child {
	c := &child{ignores: map[Signal]bool{}}
	for _, sig := range ignores {
		c.ignores[sig] = true
	}
	p.children = append(p.children, c)
	return c
}

// look sees what is there.
func (w *world) look(o Look) Event {
	p, seen := w.of(o.Worker), Seen{}
	switch o.For {
	case LookReady:
		for _, inode := range o.Inodes {
			is := No
			if p.accepts {
				is = Yes
			}
			seen.Accepting = append(seen.Accepting, Accepting{inode, is})
		}
		seen.Missing = p.missing(o.Held)
	case LookHeld:
		seen.Missing = p.missing(o.Held)
		seen.Holds = p.runs
	case LookTree:
		for _, c := range p.children {
			if !c.ended {
				seen.Left++
			}
		}
	}
	if w.looked != nil {
		seen = w.looked(o, p, seen)
	}
	return Looked{Worker: o.Worker, Seq: o.Seq, Seen: seen}
}

func (p *proc) missing(held []Inode) []Inode {
	var list []Inode
	for _, inode := range held {
		if !slices.ContainsFunc(p.sockets, func(s *socket) bool { return s.inode == inode }) {
			list = append(list, inode)
		}
	}
	return list
}

// between is the time between two calls of a process.
const between = 100 * time.Microsecond

// bindNext makes the process bind what it has not bound yet, one call after the
// other.
func (w *world) bindNext(p *proc) {
	if len(p.sockets) >= len(p.binds) {
		return
	}
	w.after(between, func() {
		if !p.runs || w.exit != nil || len(p.sockets) >= len(p.binds) {
			return
		}
		w.inode++
		w.call++
		s := &socket{inode: w.inode, asked: p.binds[len(p.sockets)]}
		p.sockets = append(p.sockets, s)
		e := BindAsked{Worker: p.worker, Call: w.call, Socket: s.asked, Inode: s.inode, ReusePort: s.reuseport}
		w.calls[w.call] = &asking{p, s, e}
		w.step(e)
	})
}

// replied goes on with a call: bind, then listen, then the next address.
func (w *world) replied(r Reply) {
	c := w.calls[r.Call]
	p, s := c.proc, c.socket
	bind, binds := c.event.(BindAsked)
	outcome := func(h Held, fresh bool) {
		e := Listening{Call: r.Call, Worker: p.worker, Held: h}
		if fresh {
			e.Socket = s.asked
			e.Socket.Learned, e.Socket.Bound = true, s.asked.Key
			if e.Socket.Handover == "" {
				e.Socket.Handover = api.Steer
			}
		}
		if w.listen != nil && !w.listen(p, s, r) {
			e.Err, e.InUse = "address in use", true
		} else {
			s.inode, s.listening = h.Inode, true
		}
		w.answer(r, func() Event { return e })
	}
	switch r.Verdict {
	case CheckHeld:
		bind.Held, bind.Missing = true, p.missing(r.Members)
		c.event = bind
		w.answer(r, func() Event { return bind })
		return
	case Claim, Share:
		outcome(Held{r.Address, r.Member}, false)
	case Resume:
		outcome(Held{r.Address, r.Member}, false)
	case Adopt:
		outcome(Held{r.Address, s.inode}, r.Fresh)
	case Proceed, Permit:
		if !binds {
			s.listening = true
		}
	}
	if binds && p.mute {
		return
	}
	if binds {
		w.after(between, func() { w.listens(p, s) })
		return
	}
	w.bindNext(p)
}

func (w *world) listens(p *proc, s *socket) {
	if !p.runs || w.exit != nil {
		return
	}
	w.call++
	e := ListenAsked{Worker: p.worker, Call: w.call, Socket: s.asked, Inode: s.inode, Backlog: 100, ReusePort: s.reuseport}
	w.calls[w.call] = &asking{p, s, e}
	w.step(e)
}

// wantSignals compares what a process got.
func (w *world) wantSignals(p *proc, want ...string) {
	w.t.Helper()
	if strings.Join(p.got, ", ") != strings.Join(want, ", ") {
		w.t.Errorf("process %d (generation %d) got [%s], want [%s]", p.nth, p.generation, strings.Join(p.got, ", "), strings.Join(want, ", "))
	}
}

// wantEnd lets time pass until the end and compares when and with what code it
// came.
func (w *world) wantEnd(at time.Duration, code int) Exit {
	w.t.Helper()
	w.run(w.now + 24*time.Hour)
	if w.exit == nil {
		w.t.Fatalf("no end: phase %s\n%s", w.m.Phase, w.trace(60))
	}
	if w.exit.Code != code || w.ended != at {
		w.t.Errorf("it ended at %s with %d (%s), want %s with %d", w.ended, w.exit.Code, w.exit.Reason, at, code)
	}
	return *w.exit
}

func (w *world) wantStarts(n int) {
	w.t.Helper()
	if len(w.procs) != n {
		w.t.Fatalf("%d starts, want %d\n%s", len(w.procs), n, w.trace(100))
	}
}

// wantServing compares the number of workers that serve.
func (w *world) wantServing(want int) {
	w.t.Helper()
	n := 0
	if g := w.m.serving(); g != nil {
		for _, s := range g.Slots {
			if s.Worker != nil && s.Worker.State == serving {
				n++
			}
		}
	}
	if n != want {
		w.t.Fatalf("%d workers serve, want %d\n%s", n, want, w.trace(100))
	}
}
