package machine

import (
	"fmt"
	"slices"
	"time"

	"github.com/moult/moult/supervisor/control/api"
	"github.com/moult/moult/supervisor/ready"
)

// watch checks the promises at each step of a machine: of what it orders, given
// what it has been told, and of the state that it is in then. It is plain data.
type watch struct {
	Ops     []op
	Kernel  []kernel
	Live    []Held     // sockets that were made and not given back
	Quiet   []WorkerID // were seen with an empty queue, when nothing new went there
	Open    []ProgramID
	Calls   []CallID    // wait for a reply
	Answers []CallID    // replies of which the outcome is to come
	Wish    bool        // a hangup that no start has followed
	Began   int         // generations
	Ready   int         // key of the generation that was seen ready last
	Serving int         // key of the generation that serves
	Serves  []AddressID // that its workers had bound when it began to
	Over    bool        // Exit has come
}

// op is what a client has asked for.
type op struct {
	ID       OpID
	Accepted bool
}

// kernel is what the kernel knows of an address.
type kernel struct {
	Address AddressID
	Told    []Inode
	Asked   []Inode // by the order that is under way
	Busy    bool
	Stuck   bool // the last order failed
}

func (w *watch) kernel(a AddressID) *kernel {
	for i := range w.Kernel {
		if w.Kernel[i].Address == a {
			return &w.Kernel[i]
		}
	}
	w.Kernel = append(w.Kernel, kernel{Address: a})
	return &w.Kernel[len(w.Kernel)-1]
}

// names tells whether new connections may go to a member.
func (k *kernel) names(i Inode) bool {
	return slices.Contains(k.Told, i) || k.Busy && slices.Contains(k.Asked, i)
}

// before takes in what is told to the machine.
func (w *watch) before(m *Machine, e Event) {
	w.Began = m.Last.Generation
	switch e := e.(type) {
	case Hangup:
		w.Wish = w.Wish || m.Phase < phaseStopping
	case Asked:
		w.Ops = append(w.Ops, op{ID: e.Op})
	case Furnished:
		for _, members := range e.Members {
			for _, h := range members {
				if !slices.Contains(w.Live, h) && m.Book.address(h.Address) != nil {
					w.Live = append(w.Live, h)
				}
			}
		}
	case Forked:
		if e.Program != 0 && !slices.Contains(w.Open, e.Program) {
			w.Open = append(w.Open, e.Program)
		}
	case BindAsked:
		if !e.Held {
			w.Calls = append(w.Calls, e.Call)
		}
	case ListenAsked:
		w.Calls = append(w.Calls, e.Call)
	case Listening:
		w.Answers = slices.DeleteFunc(w.Answers, func(c CallID) bool { return c == e.Call })
		adopts := slices.ContainsFunc(m.Book.Calls, func(c call) bool { return c.ID == e.Call && c.Verdict == Adopt })
		if e.Err == "" && adopts && !slices.Contains(w.Live, e.Held) && m.Book.address(e.Held.Address) != nil {
			w.Live = append(w.Live, e.Held)
		}
	case Steered:
		k := w.kernel(e.Address)
		if k.Busy && e.Err == "" {
			k.Told = k.Asked
		}
		k.Busy, k.Asked, k.Stuck = false, nil, e.Err != ""
		for _, i := range e.Gone {
			k.Told = slices.DeleteFunc(slices.Clone(k.Told), func(x Inode) bool { return x == i })
		}
	case Looked:
		w.sawQueue(m, e)
	}
}

func (w *watch) sawQueue(m *Machine, e Looked) {
	at := m.at(e.Worker)
	if at.s == nil || at.s.Worker.State != settling || at.s.Worker.Look.Seq != e.Seq {
		return
	}
	patient := e.Seen.Handshakes == 0 || !at.s.Worker.Drain.Patience.IsZero()
	if patient && e.Seen.Queued == 0 {
		w.Quiet = append(w.Quiet, e.Worker)
	}
}

// after checks what was ordered and where that leads; empty: all is well.
func (w *watch) after(m *Machine, orders []Order) string {
	if m.Last.Generation > w.Began {
		w.Wish = false
	}
	for _, o := range orders {
		if w.Over {
			return fmt.Sprintf("i: %T after the end", o)
		}
		if broken := w.order(m, o); broken != "" {
			return broken
		}
	}
	if len(w.Calls) > 0 {
		return fmt.Sprintf("calls: %d of a worker wait for their reply", len(w.Calls))
	}
	if w.Over {
		return ""
	}
	return w.state(m)
}

func (w *watch) order(m *Machine, o Order) string {
	switch o := o.(type) {
	case Start:
		return w.start(m, o)
	case Send:
		return w.send(m, o)
	case Look:
		return w.look(m, o)
	case Steer:
		return w.steer(m, o)
	case Leave:
		return w.leave(m, o)
	case Drop:
		if slices.ContainsFunc(w.Live, func(h Held) bool { return h.Address == o.Address }) {
			return fmt.Sprintf("h: address %d is dropped, and a socket on it is held", o.Address)
		}
		w.Kernel = slices.DeleteFunc(w.Kernel, func(k kernel) bool { return k.Address == o.Address })
	case Release:
		if m.Phase < phaseStopping {
			return "a: all sockets are closed, and no stop was asked for"
		}
		w.Live, w.Kernel = nil, nil
	case Reply:
		return w.reply(m, o)
	case Accept, TurnDown, Inform:
		return w.client(o)
	case Close:
		if !slices.Contains(w.Open, o.Program) {
			return fmt.Sprintf("programs: %d is closed twice", o.Program)
		}
		w.Open = slices.DeleteFunc(w.Open, func(p ProgramID) bool { return p == o.Program })
	case Exit:
		return w.exit(m)
	}
	return ""
}

func (w *watch) start(m *Machine, o Start) string {
	at := m.at(o.Worker)
	switch {
	case o.Program != 0 && !slices.Contains(w.Open, o.Program):
		return fmt.Sprintf("programs: %d is started and was closed", o.Program)
	case at.s == nil:
		return "" // it was started and dropped in one step
	case m.Phase >= phaseEnding:
		return "g: a start at the end of all"
	case m.Phase == phaseStopping && at.s.State != slotRescue:
		return "g: a start while all drains"
	case at.s.State == slotTaken && at.s.Worker.State == forking && at.g.State >= retired && !at.s.Leaving:
		return "g: a start in a generation that is replaced"
	}
	return ""
}

// send: d, nobody is told to drain whose queue has not been seen empty.
func (w *watch) send(m *Machine, o Send) string {
	at := m.at(o.Worker)
	if at.s == nil || o.Tree || at.s.Worker.State != draining || o.Signal != m.Cfg.DrainSignal {
		return ""
	}
	x := at.s.Worker
	over := !x.Drain.Began.IsZero() && m.Now.Sub(x.Drain.Began) >= m.Cfg.DrainTimeout
	named := slices.ContainsFunc(at.s.Members, func(h Held) bool { return w.kernel(h.Address).names(h.Inode) })
	if over || at.g.Hurried || at.g.State == failed && !named || slices.Contains(w.Quiet, o.Worker) || !w.owes(m, at) {
		return ""
	}
	return fmt.Sprintf("d: worker %d is told to drain, and its queue was not seen empty", o.Worker)
}

// owes tells whether clients may wait for this worker alone.
func (w *watch) owes(m *Machine, at place) bool {
	return slices.ContainsFunc(at.s.Members, func(h Held) bool {
		a := m.Book.address(h.Address)
		if a == nil || a.Socket.Handover == api.Share || at.s.Leaving && a.member(h.Inode).Users > 1 {
			return false
		}
		if at.g.State == failed && at.g.Takes != 0 {
			return false // the slot that has lent it serves what waits, unless it was given up
		}
		untaken := a.Socket.Learned && w.kernel(a.ID).names(h.Inode)
		return !untaken && a.Socket.Stream
	})
}

// look: d, an empty queue counts only when nothing new goes there.
func (w *watch) look(m *Machine, o Look) string {
	at := m.at(o.Worker)
	if o.For != LookSettled || at.s == nil || m.Phase >= phaseStopping {
		return ""
	}
	for _, h := range at.s.Members {
		if w.stillNamed(m, h) {
			return fmt.Sprintf("d: the queue of worker %d is looked at, and the kernel still sends clients there", o.Worker)
		}
	}
	return ""
}

// stillNamed tells whether clients come to a socket while the generation that
// serves has others that they could go to.
func (w *watch) stillNamed(m *Machine, h Held) bool {
	g, k, a := steering{m}.named(), w.kernel(h.Address), m.Book.address(h.Address)
	if g == nil || k.Stuck || a == nil || a.Socket.Handover == share || !k.names(h.Inode) {
		return false
	}
	others := g.membersOn(h.Address)
	return len(others) > 0 && !slices.Contains(others, h.Inode)
}

// steer: b, one generation at a time is named, and it was ready.
func (w *watch) steer(m *Machine, o Steer) string {
	k := w.kernel(o.Address)
	if k.Busy {
		return "b: steered again before the answer"
	}
	if m.Phase >= phaseStopping {
		return "b: steered while all drains"
	}
	k.Busy, k.Asked = true, slices.Clone(o.Members)
	var owner *generation
	for _, g := range m.Gens {
		on := g.socketsOn(o.Address)
		all := !slices.ContainsFunc(o.Members, func(i Inode) bool { return !slices.Contains(on, i) })
		if all && (owner == nil || g.State == switching || g.State == current) {
			owner = g // a generation that takes over has the sockets of another
		}
	}
	switch {
	case owner == nil:
		return fmt.Sprintf("b: %v of several generations, or of none, are named", o.Members)
	case owner.State != switching && owner.State != current:
		return fmt.Sprintf("b: generation %d is named, and it is %s", owner.Number, owner.State)
	case owner.State == switching && w.Ready != owner.Key && !owner.allServing():
		return fmt.Sprintf("b: generation %d is named before it is ready", owner.Number)
	}
	for _, i := range o.Members {
		if !slices.Contains(w.Live, Held{o.Address, i}) {
			return fmt.Sprintf("b: socket %d is named and was given back", i)
		}
	}
	return ""
}

func (g *generation) socketsOn(a AddressID) []Inode {
	var list []Inode
	for _, s := range g.Slots {
		for _, h := range s.Members {
			if h.Address == a {
				list = append(list, h.Inode)
			}
		}
	}
	return list
}

// leave: h, each socket is given back once, and not while clients are sent there.
func (w *watch) leave(m *Machine, o Leave) string {
	i := slices.Index(w.Live, o.Held)
	if i < 0 {
		return fmt.Sprintf("h: %v is given back twice", o.Held)
	}
	w.Live = slices.Delete(slices.Clone(w.Live), i, i+1)
	if k := w.kernel(o.Held.Address); m.Phase < phaseStopping && !k.Stuck && k.names(o.Held.Inode) {
		if g := (steering{m}).named(); g != nil && len(g.membersOn(o.Held.Address)) > 0 {
			return fmt.Sprintf("h: %v is given back, and the kernel sends clients there", o.Held)
		}
	}
	k := w.kernel(o.Held.Address)
	is := func(i Inode) bool { return i == o.Held.Inode }
	k.Told, k.Asked = slices.DeleteFunc(slices.Clone(k.Told), is), slices.DeleteFunc(slices.Clone(k.Asked), is)
	for _, g := range m.Gens {
		for _, s := range g.Slots {
			if slices.Contains(s.Members, o.Held) && s.State != slotGone {
				return fmt.Sprintf("h: %v is given back, and a slot has it", o.Held)
			}
		}
	}
	return ""
}

func (w *watch) reply(m *Machine, o Reply) string {
	if o.Verdict == CheckHeld {
		w.Calls = slices.DeleteFunc(w.Calls, func(c CallID) bool { return c == o.Call })
		return ""
	}
	if slices.Contains(w.Answers, o.Call) {
		return fmt.Sprintf("calls: %d has two replies", o.Call)
	}
	w.Calls = slices.DeleteFunc(w.Calls, func(c CallID) bool { return c == o.Call })
	for _, c := range m.Book.Calls {
		if c.ID != o.Call {
			continue
		}
		w.Answers = append(w.Answers, o.Call)
		at := m.at(c.Worker)
		// What listens on an address that is steered is in the kernel's group,
		// whoever would have it otherwise.
		a := m.Book.address(o.Address)
		if at.s != nil && (o.Verdict == Adopt && !a.steered() || o.Verdict == Share) && !(caller{at}).mayJoin(a.Socket) {
			return fmt.Sprintf("joins: worker %d joins an address, and it is %s", c.Worker, at.s.Worker.State)
		}
	}
	return ""
}

// client: f, each operation is accepted or turned down once, and ended once.
func (w *watch) client(o Order) string {
	find := func(id OpID) *op {
		for i := range w.Ops {
			if w.Ops[i].ID == id {
				return &w.Ops[i]
			}
		}
		return nil
	}
	end := func(id OpID) { w.Ops = slices.DeleteFunc(w.Ops, func(o op) bool { return o.ID == id }) }
	switch o := o.(type) {
	case Accept:
		if x := find(o.Op); x == nil || x.Accepted {
			return fmt.Sprintf("f: operation %d is accepted twice, or after its end", o.Op)
		}
		find(o.Op).Accepted = true
	case TurnDown:
		if x := find(o.Op); x == nil || x.Accepted {
			return fmt.Sprintf("f: operation %d is turned down after it was accepted, or twice", o.Op)
		}
		end(o.Op)
	case Inform:
		if x := find(o.Op); x == nil || !x.Accepted {
			return fmt.Sprintf("f: %s to operation %d, which has ended or not begun", o.Event.Event, o.Op)
		}
		if o.Last != (o.Event.Event == api.EventDone || o.Event.Event == api.EventFailed) {
			return fmt.Sprintf("f: %s to operation %d, and last is %v", o.Event.Event, o.Op, o.Last)
		}
		if o.Last {
			end(o.Op)
		}
	}
	return ""
}

// exit: i, nothing that is known of outlives the machine.
func (w *watch) exit(m *Machine) string {
	w.Over = true
	for _, o := range w.Ops {
		if o.Accepted {
			return fmt.Sprintf("f: operation %d was not ended", o.ID)
		}
	}
	if n := len(m.places()); n > 0 {
		return fmt.Sprintf("i: the end, and %d slots are there", n)
	}
	return ""
}

// state checks what holds between two steps.
func (w *watch) state(m *Machine) string {
	if g := m.inState(switching, switching); g != nil && g.allServing() {
		if broken := w.lacks(m, g); broken != "" && w.Ready != g.Key {
			return broken
		}
		w.Ready = g.Key
	}
	if g := m.serving(); g != nil && g.Key != w.Serving {
		if broken := w.lacks(m, g); broken != "" && w.Ready != g.Key {
			return broken
		}
		w.Serving, w.Serves = g.Key, nil
		for _, a := range m.Book.Addresses {
			if a.Socket.Learned && len(g.socketsOn(a.ID)) > 0 {
				w.Serves = append(w.Serves, a.ID)
			}
		}
	}
	for _, check := range []func(*Machine) string{w.accepts, w.counts, w.deadlines, w.waiting, w.wishes, w.settled} {
		if broken := check(m); broken != "" {
			return broken
		}
	}
	return ""
}

// lacks: a generation is not ready without an address that the one before it has
// bound itself and serves.
func (w *watch) lacks(m *Machine, g *generation) string {
	i := slices.IndexFunc(m.Gens, func(x *generation) bool { return x.Key == w.Serving })
	if i < 0 || m.Cfg.Ready == ready.Alive {
		return ""
	}
	old := m.Gens[i]
	for _, id := range w.Serves {
		if old.listenersOn(id) > 0 && len(g.socketsOn(id)) == 0 {
			return fmt.Sprintf("lacks: generation %d is ready, and does not listen on address %d", g.Number, id)
		}
	}
	return ""
}

// accepts: a, somebody accepts on every address that was ever served, or a queue
// is kept there.
func (w *watch) accepts(m *Machine) string {
	if m.Phase >= phaseStopping {
		return ""
	}
	for _, k := range w.Kernel {
		a := m.Book.address(k.Address)
		if a == nil || a.shared() || len(k.Told) == 0 && !k.Busy {
			continue
		}
		if g := (steering{m}).named(); a.Socket.Learned && (g == nil || len(g.socketsOn(a.ID)) == 0) {
			continue // the new program does not listen there, and need not: --ready alive
		}
		for _, list := range [][]Inode{k.Told, k.Asked} {
			if len(list) > 0 && !slices.ContainsFunc(list, func(i Inode) bool { return w.isKept(m, Held{k.Address, i}) }) {
				return fmt.Sprintf("a: clients of address %d go to %v, and nobody has these", k.Address, list)
			}
		}
	}
	if g := m.serving(); g != nil && !m.Cfg.Intercept {
		for _, a := range m.Book.Addresses {
			if len(g.socketsOn(a.ID)) == 0 {
				return fmt.Sprintf("a: the generation that serves has no socket on address %d", a.ID)
			}
		}
	}
	return ""
}

// isKept tells whether a socket is some slot's that has a worker, or will.
func (w *watch) isKept(m *Machine, h Held) bool {
	for _, at := range m.places() {
		if slices.Contains(at.s.Members, h) && at.s.State != slotGone {
			return true
		}
	}
	return slices.ContainsFunc(m.Book.Late, func(l Leave) bool { return l.Held == h })
}

// counts: h, the book says of each socket how many slots have it, and c, the
// sockets of a slot stay as they were made.
func (w *watch) counts(m *Machine) string {
	if m.House.Released {
		return ""
	}
	users := map[Held]int{}
	for _, at := range m.places() {
		for _, h := range at.s.Members {
			users[h]++
		}
		if !m.Cfg.Intercept && at.s.State != slotJoining && at.s.State != slotGone && len(at.s.Members) != len(m.Book.Addresses) {
			return fmt.Sprintf("c: slot %d (%s) has %d of %d sockets", at.s.ID, at.s.State, len(at.s.Members), len(m.Book.Addresses))
		}
	}
	for _, c := range m.Book.Calls {
		if c.Verdict == Share {
			users[c.Held]++
		}
	}
	n := 0
	for _, a := range m.Book.Addresses {
		for _, x := range a.Members {
			n++
			h := Held{a.ID, x.Inode}
			if x.Users != users[h] {
				return fmt.Sprintf("h: %d have %v, and the book says %d", users[h], h, x.Users)
			}
			late := slices.ContainsFunc(m.Book.Late, func(l Leave) bool { return l.Held == h })
			if x.Users == 0 && !late {
				return fmt.Sprintf("h: nobody has %v, and it is not given back", h)
			}
			if !slices.Contains(w.Live, h) {
				return fmt.Sprintf("h: the book has %v, which was given back", h)
			}
		}
	}
	if n != len(w.Live) {
		return fmt.Sprintf("h: %d sockets are there, and the book has %d", len(w.Live), n)
	}
	return ""
}

// deadlines: e, whoever does not serve has a time at which it will be looked
// after, or somebody else's answer is waited for.
func (w *watch) deadlines(m *Machine) string {
	for _, at := range m.places() {
		if broken := deadlineOf(m, at); broken != "" {
			return broken
		}
	}
	return ""
}

func deadlineOf(m *Machine, at place) string {
	switch x := at.s.Worker; {
	case x == nil:
		owner := m.next()
		switch at.s.State {
		case slotTaken, slotRescue:
			return fmt.Sprintf("e: slot %d is taken by nobody", at.s.ID)
		case slotWaiting:
			if at.s.StartAt.IsZero() {
				return fmt.Sprintf("e: slot %d waits for ever", at.s.ID)
			}
		case slotFree:
			if at.g.State != joining {
				return fmt.Sprintf("e: slot %d of a generation that is %s is free", at.s.ID, at.g.State)
			}
		case slotLent, slotLentSpent, slotOwed:
			taker := slices.ContainsFunc(m.Gens, func(g *generation) bool { return g != at.g && g.Takes == at.g.joinKey() })
			if !taker {
				return fmt.Sprintf("e: slot %d is lent to nobody (next %v)", at.s.ID, owner)
			}
		case slotParting:
			if !slices.ContainsFunc(at.s.Members, (steering{m}).stillNamed) {
				return fmt.Sprintf("e: slot %d waits for nothing", at.s.ID)
			}
		case slotGone:
			return fmt.Sprintf("e: slot %d is gone and still there", at.s.ID)
		}
	case x.State == serving:
		if at.g.State >= retired || at.s.Leaving {
			return fmt.Sprintf("e: worker %d serves in a generation that is %s", x.ID, at.g.State)
		}
	case x.State <= forkingKill, x.State == clearing && x.Look.Seq != 0:
	case x.State == gone:
		return fmt.Sprintf("e: worker %d is gone and still there", x.ID)
	case x.Deadline.IsZero():
		return fmt.Sprintf("e: worker %d is %s without a deadline", x.ID, x.State)
	case x.Deadline.Sub(m.Now) > longest(m.Cfg):
		return fmt.Sprintf("e: worker %d has %s left", x.ID, x.Deadline.Sub(m.Now))
	case (x.State == starting || x.State == settling || x.State == quiescing || x.State == clearing) && x.Look.Seq == 0 && x.Look.Poll.IsZero():
		return fmt.Sprintf("e: nobody looks at worker %d, which is %s", x.ID, x.State)
	}
	return ""
}

// longest is the longest of all limits.
func longest(c Config) time.Duration {
	return max(c.ReadyTimeout, c.DrainTimeout, c.KillGrace, c.Quiesce, killAgain) + time.Hour // EXTEND_TIMEOUT_USEC
}

// waiting: f, each operation that was accepted is in one list of those who wait,
// each other one waits for its program.
func (w *watch) waiting(m *Machine) string {
	lists := [][]OpID{m.Clients.Upgrade, m.Clients.Stop, m.Clients.Scale}
	for _, g := range m.Gens {
		lists = append(lists, g.Asked)
	}
	waits := map[OpID]int{}
	for _, list := range lists {
		for _, id := range list {
			waits[id]++
		}
	}
	for _, o := range w.Ops {
		if o.Accepted && waits[o.ID] != 1 {
			return fmt.Sprintf("f: operation %d is in %d lists", o.ID, waits[o.ID])
		}
		if !o.Accepted && !slices.Contains(m.Clients.Rollback, o.ID) {
			return fmt.Sprintf("f: operation %d was neither accepted nor turned down", o.ID)
		}
	}
	return ""
}

// wishes: g, an upgrade that was asked for is on its way, or remembered.
func (w *watch) wishes(m *Machine) string {
	remembered := m.Phase == phaseStartMore || m.Phase == phaseMore || m.Phase == phaseHopeMore
	if w.Wish && !remembered && m.Phase < phaseStopping {
		return fmt.Sprintf("g: an upgrade was asked for, and the phase is %d", m.Phase)
	}
	return ""
}

// settled: c, where no upgrade is under way, the book says what the generation
// that serves has, and the kernel was told so.
func (w *watch) settled(m *Machine) string {
	upgrading := m.Phase == phaseUpgrading || m.Phase == phaseMore || m.Phase == phaseLastHope || m.Phase == phaseHopeMore
	starts := m.Phase == phaseStarting || m.Phase == phaseStartMore
	if (upgrading || starts) != (m.next() != nil) {
		return fmt.Sprintf("g: phase %d, and the next generation is there: %v", m.Phase, m.next() != nil)
	}
	g := m.serving()
	if serves := m.Phase >= phaseServing && m.Phase < phaseStopping; serves != (g != nil) {
		return fmt.Sprintf("c: phase %d, and a generation serves: %v", m.Phase, g != nil)
	}
	n := 0
	for _, x := range m.Gens {
		if x.State == current {
			n++
		}
	}
	if n > 1 {
		return fmt.Sprintf("b: %d generations are current", n)
	}
	if m.Phase != phaseServing {
		return ""
	}
	for _, a := range m.Book.Addresses {
		k := w.kernel(a.ID)
		want := g.membersOn(a.ID)
		if a.shared() || a.Pending || k.Stuck || len(want) == 0 {
			continue
		}
		if !slices.Equal(want, a.Told) || !slices.Equal(want, a.Named) || !slices.Equal(want, k.Told) {
			return fmt.Sprintf("c: generation %d serves address %d with %v; the kernel was told %v, the book says %v and %v", g.Number, a.ID, want, k.Told, a.Named, a.Told)
		}
	}
	return ""
}
