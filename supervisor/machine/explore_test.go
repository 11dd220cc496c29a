package machine

import (
	"fmt"
	"hash/maphash"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moult/moult/supervisor/control/api"
	"github.com/moult/moult/supervisor/ready"
)

// The explorer walks every state that a small configuration can reach: in each
// it tries everything that can happen next, every order failing, and checks the
// promises (watch). Two states that differ in names alone (numbers of workers,
// sockets and clients, absolute times, words for people) are one (state_test.go).
//
// What bounds it: how often each kind of thing that comes from outside happens
// (budget), and that answers of some kinds come at once where a configuration is
// large (atomic), in every way that they can turn out; the small configurations
// let them come at any time.

// budget is how often things happen that nobody has ordered.
type budget struct {
	Hangups, Stops, Crashes, Faults, Scales, Clients, Words uint8
}

// exploring is one configuration.
type exploring struct {
	name    string
	workers int
	opened  []Opened
	budget  budget
	atomic  func(Order) bool // answered before anything else happens; nil: none is
	change  func(*Config)
	queues  bool // connections wait, handshakes go on, children are left
	keys    int  // addresses that workers bind themselves
	far     bool // ticks come late: several deadlines pass at once
	whole   bool // walked to its end in each run; the others are cut where they are large
	states  int  // cut: how many are enough
	cut     bool
}

func exploreConfig() Config {
	return Config{
		Workers: 1, Ready: ready.Accept, ReadyTimeout: 20 * time.Second,
		DrainSignal: SIGTERM, DrainTimeout: 10 * time.Second, KillGrace: 5 * time.Second, MaxDraining: 8,
		Restart: Restart{Policy: "always", Min: 250 * time.Millisecond, Max: 250 * time.Millisecond},
	}
}

func allAtomic(Order) bool { return true }

// env is what is outside of the machine. It is plain data.
type env struct {
	Left    budget
	Pending []Order    // have no answer yet; never changed
	Running []WorkerID // main processes
	Owned   []owned
	Call    CallID
	Inode   Inode
	Op      OpID
	Program ProgramID
}

// node is a state of everything.
type node struct {
	m   *Machine
	env env
	w   watch
	now time.Time
	at  int // its place in the search
}

func (n *node) clone() *node {
	c := *n
	c.m = n.m.clone()
	c.env.Pending = slices.Clone(n.env.Pending)
	c.env.Running = slices.Clone(n.env.Running)
	c.env.Owned = slices.Clone(n.env.Owned)
	c.w = n.w.clone()
	return &c
}

// move is one thing that can happen.
type move struct {
	event   Event
	after   time.Duration
	pending int // the order that it answers, from 1; 0: none
	spend   func(*budget) *uint8
	closes  int // the socket that is closed, from 1
}

func hangups(b *budget) *uint8   { return &b.Hangups }
func stops(b *budget) *uint8     { return &b.Stops }
func crashes(b *budget) *uint8   { return &b.Crashes }
func faults(b *budget) *uint8    { return &b.Faults }
func scales(b *budget) *uint8    { return &b.Scales }
func clientsOf(b *budget) *uint8 { return &b.Clients }
func words(b *budget) *uint8     { return &b.Words }

// search is one walk.
type search struct {
	x       exploring
	seed    maphash.Seed
	seen    map[uint64]struct{}
	parents []int32
	moves   []uint8 // from the parent
	queue   []*node
	steps   int
	drives  int
	scratch canon
}

// explore walks all states and returns what was broken first, with the way
// there.
func (x exploring) explore(drive int) (*search, string) {
	s := &search{x: x, seed: maphash.MakeSeed(), seen: map[uint64]struct{}{}}
	root := x.root()
	if broken := s.add(root, -1, 0, ""); broken != "" {
		return s, broken
	}
	for len(s.queue) > 0 {
		n := s.queue[0]
		s.queue[0], s.queue = nil, s.queue[1:]
		if drive > 0 && n.at%drive == 0 {
			if broken := s.driven(n); broken != "" {
				return s, broken + "\n" + s.path(n.at, "")
			}
		}
		for i, mv := range n.possible(x) {
			c := n.clone()
			broken := c.take(mv)
			s.steps++
			if broken = s.add(c, n.at, i, broken); broken != "" {
				return s, broken
			}
		}
	}
	return s, ""
}

func (s *search) add(n *node, parent, move int, broken string) string {
	if broken != "" {
		return broken + "\n" + s.path(parent, fmt.Sprint("move ", move)) + s.replayLast(parent, move)
	}
	key := maphash.Bytes(s.seed, s.scratch.of(n))
	if _, known := s.seen[key]; known {
		return ""
	}
	s.seen[key] = struct{}{}
	n.at = len(s.parents)
	s.parents, s.moves = append(s.parents, int32(parent)), append(s.moves, uint8(move))
	s.queue = append(s.queue, n)
	if s.x.cut && len(s.parents) > s.x.states {
		s.queue = nil
	}
	return ""
}

// way is the list of moves from the root.
func (s *search) way(at int) []uint8 {
	var list []uint8
	for at > 0 {
		list = append(list, s.moves[at])
		at = int(s.parents[at])
	}
	slices.Reverse(list)
	return list
}

// path tells how a state was reached.
func (s *search) path(at int, _ string) string {
	var b strings.Builder
	n := s.x.root()
	for _, i := range s.way(at) {
		mv := n.possible(s.x)[i]
		n.take(mv)
		fmt.Fprintf(&b, "  %T%+v\n", mv.event, mv.event)
		for _, o := range n.m.orders {
			if _, says := o.(Say); !says {
				fmt.Fprintf(&b, "      %T%+v\n", o, o)
			}
		}
	}
	return b.String()
}

func (s *search) replayLast(parent, move int) string {
	if parent < 0 {
		return ""
	}
	n := s.x.root()
	for _, i := range s.way(parent) {
		n.take(n.possible(s.x)[i])
	}
	mv := n.possible(s.x)[move]
	n.take(mv)
	out := fmt.Sprintf("  %T%+v\n", mv.event, mv.event)
	for _, o := range n.m.orders {
		out += fmt.Sprintf("      %T%+v\n", o, o)
	}
	return out
}

// root is the beginning.
func (x exploring) root() *node {
	cfg := exploreConfig()
	cfg.Workers = max(x.workers, 1)
	if x.change != nil {
		x.change(&cfg)
	}
	n := &node{m: New(cfg), now: dawn, env: env{Left: x.budget, Inode: 100}}
	n.take(move{event: Begin{Opened: x.opened}})
	return n
}

// take lets a move happen.
func (n *node) take(mv move) string {
	if mv.pending > 0 {
		n.env.Pending = slices.Delete(n.env.Pending, mv.pending-1, mv.pending)
	}
	if mv.spend != nil {
		*mv.spend(&n.env.Left)--
	}
	n.now = n.now.Add(mv.after)
	switch e := mv.event.(type) {
	case Forked:
		n.env.Running = append(n.env.Running, e.Worker)
	case Exited:
		n.env.Running = slices.DeleteFunc(n.env.Running, func(w WorkerID) bool { return w == e.Worker })
	case Furnished:
		for _, members := range e.Members {
			for _, h := range members {
				n.env.Inode = max(n.env.Inode, h.Inode)
			}
		}
	case Asked:
		n.env.Op = e.Op
	}
	n.call(mv)
	if meddle != nil {
		meddle(n.m, mv.event)
	}
	n.w.before(n.m, mv.event)
	orders := n.m.Step(n.now, mv.event)
	if broken := n.w.after(n.m, orders); broken != "" {
		return broken
	}
	for _, o := range orders {
		switch o := o.(type) {
		case Reply:
			n.replied(o)
		case Furnish, Start, Steer, Look, CountQueue, CheckProgram:
			n.env.Pending = append(n.env.Pending, o)
		case Exit:
			if len(n.env.Running) > 0 {
				return "i: a process outlives the machine"
			}
			for _, p := range n.env.Pending {
				if _, starts := p.(Start); starts {
					return "i: a process is about to outlive the machine"
				}
			}
			n.env.Pending = nil
		}
	}
	n.env.Pending = slices.DeleteFunc(n.env.Pending, func(o Order) bool { return n.isStale(o) })
	return ""
}

// meddle is a deliberate mistake before a step; nil but in TestMutations.
var meddle func(*Machine, Event)

// isStale tells that nobody waits for a look any more: what it sees is ignored.
func (n *node) isStale(o Order) bool {
	l, looks := o.(Look)
	if !looks {
		return false
	}
	at := n.m.at(l.Worker)
	return at.s == nil || at.s.Worker.Look.Seq != l.Seq
}

// possible lists what can happen next, in an order that depends on the state
// alone.
func (n *node) possible(x exploring) []move {
	if n.w.Over {
		return nil
	}
	var list []move
	for i, o := range n.env.Pending {
		if x.atomic != nil && x.atomic(o) {
			return n.answers(x, nil, i)
		}
		list = n.answers(x, list, i)
	}
	list = n.exits(x, list)
	list = n.outside(x, list)
	list = n.calls(x, list)
	return n.ticks(x, list)
}

// answers are the ways in which an order can turn out.
func (n *node) answers(x exploring, list []move, i int) []move {
	ok := func(e Event) { list = append(list, move{event: e, pending: i + 1}) }
	fault := func(e Event) {
		if n.env.Left.Faults > 0 {
			list = append(list, move{event: e, pending: i + 1, spend: faults})
		}
	}
	switch o := n.env.Pending[i].(type) {
	case Furnish:
		ok(Furnished{First: o.First, Members: n.sockets(o, o.Slots)})
		fault(Furnished{First: o.First, Members: n.sockets(o, o.Slots-1), Err: "no socket"})
	case Start:
		n.env.Program++
		ok(Forked{Worker: o.Worker, PID: int(o.Worker), Program: o.Program})
		fault(StartFailed{o.Worker, "no process", 1})
	case Steer:
		ok(Steered{Address: o.Address})
		fault(Steered{Address: o.Address, Err: "the kernel says no"})
	case CountQueue:
		ok(QueueSeen{o.Slot, 0})
		if x.queues {
			ok(QueueSeen{o.Slot, 1})
		}
	case CheckProgram:
		ok(ProgramChecked{Op: o.Op, Program: o.Program})
		fault(ProgramChecked{Op: o.Op, Program: o.Program, Err: "it was changed"})
	case Look:
		if x.keys > 0 && (o.For == LookReady || o.For == LookHeld) {
			ok(Looked{Worker: o.Worker, Seq: o.Seq, Seen: n.ofSockets(o)})
			break
		}
		for _, seen := range sights(x, o, n.m.at(o.Worker)) {
			ok(Looked{Worker: o.Worker, Seq: o.Seq, Seen: seen})
		}
	}
	return list
}

// sights is what a look can see.
func sights(x exploring, o Look, at place) []Seen {
	if at.s == nil || at.s.Worker.Look.Seq != o.Seq {
		return []Seen{{}} // nobody asks any more
	}
	switch o.For {
	case LookReady:
		var yes []Accepting
		for _, i := range o.Inodes {
			yes = append(yes, Accepting{i, Yes})
		}
		return []Seen{{Accepting: yes}, {}}
	case LookSettled:
		if x.queues {
			return []Seen{{}, {Queued: 1}, {Handshakes: 1}}
		}
		return []Seen{{}, {Queued: 1}}
	case LookQuiet:
		return []Seen{{}, {Busy: 1}}
	case LookHeld:
		return []Seen{{Holds: true}, {}}
	case LookTree:
		if x.queues {
			return []Seen{{}, {Left: 1}}
		}
	}
	return []Seen{{}}
}

// sockets makes members for some slots.
func (n *node) sockets(o Furnish, slots int) [][]Held {
	inode := n.env.Inode
	var all [][]Held
	for range slots {
		var members []Held
		for _, a := range n.m.Book.Addresses {
			h := Held{Address: a.ID}
			switch a.Socket.Handover {
			case api.Share:
				h.Inode = Inode(a.ID)
			case api.Rename:
				h.Inode = Inode(int(a.ID)*10 + o.Generation)
			default:
				inode++
				h.Inode = inode
			}
			members = append(members, h)
		}
		all = append(all, members)
	}
	return all
}

// exits are the ends of processes: by themselves, or because they were told to.
func (n *node) exits(x exploring, list []move) []move {
	for _, id := range n.env.Running {
		at := n.m.at(id)
		if at.s == nil {
			continue
		}
		switch state := at.s.Worker.State; {
		case state == killing:
			list = append(list, move{event: Exited{id, killedBy(SIGKILL)}})
		case state <= serving || state == parting || state == settling || state == quiescing:
			if n.env.Left.Crashes > 0 {
				list = append(list, move{event: Exited{id, exited(1)}, spend: crashes})
				if x.queues {
					list = append(list, move{event: Exited{id, exited(0)}, spend: crashes})
				}
			}
		default:
			list = append(list, move{event: Exited{id, exited(0)}})
			if x.queues {
				list = append(list, move{event: Exited{id, killedBy(SIGTERM)}})
			}
		}
	}
	return list
}

// outside is what comes from users, clients and workers.
func (n *node) outside(x exploring, list []move) []move {
	left := n.env.Left
	add := func(e Event, spend func(*budget) *uint8) { list = append(list, move{event: e, spend: spend}) }
	if left.Hangups > 0 {
		add(Hangup{}, hangups)
	}
	if left.Stops > 0 {
		add(StopAsked{}, stops)
		add(StopAsked{Now: true}, stops)
	}
	if left.Scales > 0 {
		if n.m.Wants <= x.workers {
			add(ScaleAsked{+1}, scales)
		}
		add(ScaleAsked{-1}, scales)
	}
	if left.Clients > 0 {
		op := n.env.Op + 1
		for _, o := range []api.Operation{{Kind: api.OpUpgrade}, {Kind: api.OpRollback}, {Kind: api.OpStop}, {Kind: api.OpScale, Workers: 1}, {Kind: api.OpScale, Workers: 2}} {
			add(Asked{op, o}, clientsOf)
		}
	}
	if left.Words > 0 {
		for _, id := range n.env.Running {
			add(Notified{Worker: id, Ready: true}, words)
			add(Notified{Worker: id, Extend: 20 * time.Second}, words)
			add(Alone{id, "alone"}, words)
		}
	}
	return list
}

// ticks let time pass until something is due; where the configuration says so,
// also until more than one thing is.
func (n *node) ticks(x exploring, list []move) []move {
	var times []time.Time
	for _, at := range n.m.places() {
		if at.s.State == slotWaiting {
			times = append(times, at.s.StartAt)
		}
		if w := at.s.Worker; w != nil {
			for _, t := range []time.Time{w.Look.Poll, w.Deadline} {
				if !t.IsZero() {
					times = append(times, t)
				}
			}
		}
	}
	slices.SortFunc(times, time.Time.Compare)
	last := -1
	for i, t := range times {
		due := rounded(t.Sub(n.now))
		if due == last || i > 0 && !x.far && last > 1 {
			continue
		}
		last = due
		list = append(list, move{event: Tick{}, after: max(t.Sub(n.now), 0)})
	}
	return list
}

// grain is what all limits of exploreConfig are multiples of: what passes beside
// them (between two looks, between two signals) is short.
const grain = 5 * time.Second

// rounded makes of durations a small number: 0 for what is over, 1 for the next
// look, then grains.
func rounded(d time.Duration) int {
	switch {
	case d <= 0:
		return 0
	case d < 700*time.Millisecond:
		return 1
	}
	return 1 + int((d+grain-1)/grain)
}

// driven lets the world obey from here on: what is under way comes to its end,
// and a stop comes to its own, with workers that do as they are told and with
// such as have to be killed.
func (s *search) driven(n *node) string {
	if n.w.Over {
		return ""
	}
	for _, c := range []struct{ stop, stubborn bool }{{false, false}, {true, false}, {true, true}} {
		s.drives++
		if broken := n.clone().drive(s.x, c.stop, c.stubborn); broken != "" {
			return broken
		}
	}
	return ""
}

func (n *node) drive(x exploring, stop, stubborn bool) string {
	if stop {
		if broken := n.take(move{event: StopAsked{}}); broken != "" {
			return broken
		}
	}
	x.atomic = allAtomic
	n.env.Left = budget{}
	var way []string
	for range 2000 {
		if n.w.Over {
			return ""
		}
		mv, ok := n.obey(x, stubborn)
		if !ok {
			break
		}
		way = append(way, fmt.Sprintf("  %T%+v", mv.event, mv.event))
		if broken := n.take(mv); broken != "" {
			return "driven: " + broken + "\n" + strings.Join(way, "\n") + fmt.Sprintf("\n%+v\nfrom", n.m.orders)
		}
	}
	switch {
	case stop:
		return "j: it does not end: phase " + fmt.Sprint(n.m.Phase, stubborn)
	case n.m.Phase != phaseServing || len(n.m.Gens) != 1 || !n.m.serving().allServing():
		return fmt.Sprintf("j: it does not come to rest: phase %d, %d generations", n.m.Phase, len(n.m.Gens))
	case len(n.w.Ops) > 0 || len(n.m.Book.Late) > 0 || n.w.Wish:
		return fmt.Sprintf("j: something is left: %v %v %v", n.w.Ops, n.m.Book.Late, n.w.Wish)
	}
	return ""
}

// obey is what a world does that does as it is told.
func (n *node) obey(x exploring, stubborn bool) (move, bool) {
	if len(n.env.Pending) > 0 {
		list := n.answers(x, nil, 0)
		if l, looks := n.env.Pending[0].(Look); stubborn && looks && l.For != LookTree {
			return list[len(list)-1], true
		}
		return list[0], true
	}
	if list := n.calls(x, nil); len(list) > 0 {
		return list[0], true
	}
	for _, mv := range n.exits(x, nil) {
		if at := n.m.at(mv.event.(Exited).Worker); !stubborn || at.s.Worker.State == killing {
			return mv, true
		}
	}
	list := n.ticks(x, nil)
	if len(list) == 0 {
		return move{}, false
	}
	return list[0], true
}

var oneAddress, twoAddresses = []Opened{tcp(1)}, []Opened{tcp(1), tcp(2)}

// handedOver is an address that is handed over in another way.
func handedOver(how string) []Opened {
	o := tcp(1)
	o.Socket.Handover = how
	return []Opened{o}
}

func onlySteer(o Order) bool { _, steers := o.(Steer); return !steers }

// slowly has workers that crash twice wait: their generation is dead meanwhile,
// and the next one takes its sockets over.
func slowly(c *Config) { c.Restart.Min, c.Restart.Max = 10*time.Second, 10*time.Second }

func intercepting(c *Config) { c.Intercept = true }

// configurations are what is explored. Those that are walked to their ends in
// each run are 1 and 2 workers on 1 and 2 addresses in up to 3 generations; of the
// others the states that are nearest to the beginning are seen, and with
// MOULT_SOAK=1 all, with larger budgets.
var configurations = []exploring{
	{name: "1 worker, 1 address, answers at any time", whole: true, workers: 1, opened: oneAddress,
		budget: budget{Hangups: 1, Stops: 1, Crashes: 1, Faults: 1}},
	{name: "1 worker, 1 address, answers at any time, 3 generations", whole: true, workers: 1, opened: oneAddress,
		budget: budget{Hangups: 2, Faults: 1}},
	{name: "1 worker, 1 address, 3 generations", whole: true, workers: 1, opened: oneAddress, atomic: allAtomic, far: true,
		budget: budget{Hangups: 2, Stops: 1, Crashes: 1}},
	{name: "1 worker, 2 addresses, 3 generations", whole: true, workers: 1, opened: twoAddresses, atomic: allAtomic,
		budget: budget{Hangups: 2, Crashes: 1, Faults: 2}},
	{name: "1 worker, 2 addresses, the kernel answers at any time", whole: true, workers: 1, opened: twoAddresses, atomic: onlySteer,
		budget: budget{Hangups: 2, Stops: 1, Crashes: 1, Faults: 1}},
	{name: "2 workers, 1 address", whole: true, workers: 2, opened: oneAddress, atomic: allAtomic,
		budget: budget{Hangups: 1, Stops: 1, Crashes: 1, Faults: 1}},
	{name: "2 workers, 2 addresses, 3 generations", whole: true, workers: 2, opened: twoAddresses, atomic: allAtomic,
		budget: budget{Hangups: 2, Crashes: 1}},
	{name: "2 workers, 2 addresses, the kernel answers at any time", workers: 2, opened: twoAddresses, atomic: onlySteer,
		budget: budget{Hangups: 1, Crashes: 2, Faults: 1}},
	{name: "2 workers, one more and one fewer", workers: 2, opened: oneAddress, atomic: onlySteer,
		budget: budget{Hangups: 1, Crashes: 1, Scales: 2}},
	{name: "clients", workers: 1, opened: oneAddress, atomic: allAtomic,
		budget: budget{Hangups: 1, Faults: 1, Clients: 2}},
	{name: "clients and stops", workers: 1, opened: oneAddress, atomic: allAtomic,
		budget: budget{Stops: 1, Crashes: 1, Clients: 2}},
	{name: "queues and children", workers: 1, opened: oneAddress, atomic: allAtomic, queues: true,
		budget: budget{Hangups: 1, Stops: 1, Crashes: 1}},
	{name: "words of workers", workers: 1, opened: oneAddress, atomic: allAtomic,
		change: func(c *Config) { c.Ready = ready.Auto },
		budget: budget{Hangups: 1, Stops: 1, Words: 2}},
	{name: "taking over from the dead", workers: 1, opened: oneAddress, atomic: allAtomic, change: slowly,
		budget: budget{Hangups: 2, Stops: 1, Crashes: 3}},
	{name: "taking over from the dead, 2 workers", workers: 2, opened: oneAddress, atomic: allAtomic, change: slowly,
		budget: budget{Hangups: 1, Crashes: 4, Scales: 1}},
	{name: "giving up", workers: 2, opened: oneAddress, atomic: allAtomic,
		change: func(c *Config) { c.Restart.Policy = "never"; slowly(c) },
		budget: budget{Hangups: 2, Stops: 1, Crashes: 2, Faults: 1}},
	{name: "quiescing", workers: 1, opened: oneAddress, atomic: allAtomic,
		change: func(c *Config) { c.Quiesce = 5 * time.Second },
		budget: budget{Hangups: 2, Stops: 1, Crashes: 1}},
	{name: "few may drain", workers: 1, opened: oneAddress, atomic: onlySteer,
		change: func(c *Config) { c.MaxDraining = 1 },
		budget: budget{Hangups: 3, Crashes: 1, Faults: 1}},
	{name: "what a worker binds itself", workers: 1, keys: 1, atomic: allAtomic, change: intercepting,
		budget: budget{Hangups: 2, Crashes: 1, Faults: 1, Words: 1}},
	{name: "what a worker binds itself, and a stop", workers: 1, keys: 1, atomic: allAtomic, change: intercepting,
		budget: budget{Hangups: 1, Stops: 1, Crashes: 1, Faults: 1}},
	{name: "what a worker binds itself, 2 addresses", whole: true, workers: 1, keys: 2, atomic: allAtomic, change: intercepting,
		budget: budget{Hangups: 1, Words: 1}},
	{name: "one socket for all", workers: 2, opened: handedOver(share), atomic: allAtomic,
		budget: budget{Hangups: 1, Stops: 1, Crashes: 1, Scales: 1}},
	{name: "a path that is renamed", workers: 2, opened: handedOver(api.Rename), atomic: onlySteer,
		budget: budget{Hangups: 1, Crashes: 2, Faults: 1, Scales: 1}},
}

func TestExplore(t *testing.T) {
	var all struct {
		sync.Mutex
		states, steps, drives int
	}
	t.Cleanup(func() { t.Logf("all: %d states, %d steps, %d driven to their ends", all.states, all.steps, all.drives) })
	for _, x := range configurations {
		t.Run(x.name, func(t *testing.T) {
			t.Parallel()
			drive := 25 // one of so many states
			switch {
			case soak:
				drive = 1
				x.budget.double()
				x.states, x.cut = 3_000_000, true // what memory allows
			case testing.Short():
				x.states, x.cut = 4_000, true
			case !x.whole:
				x.states, x.cut = 15_000, true
			}
			began := time.Now()
			s, broken := x.explore(drive)
			t.Logf("%s%d states, %d steps, %d driven, %s", s.cutShort(), len(s.seen), s.steps, s.drives, time.Since(began).Round(time.Millisecond))
			all.Lock()
			defer all.Unlock()
			all.states, all.steps, all.drives = all.states+len(s.seen), all.steps+s.steps, all.drives+s.drives
			if broken != "" {
				t.Fatal(broken)
			}
		})
	}
}

func (s *search) cutShort() string {
	if s.x.cut && len(s.parents) > s.x.states {
		return "cut short: "
	}
	return ""
}

// double is for long runs: one more of each kind that there is.
func (b *budget) double() {
	for _, n := range []*uint8{&b.Hangups, &b.Stops, &b.Crashes, &b.Faults, &b.Scales, &b.Clients, &b.Words} {
		if *n > 0 && *n < 2 {
			*n++
		}
	}
}

var soak = os.Getenv("MOULT_SOAK") != ""
