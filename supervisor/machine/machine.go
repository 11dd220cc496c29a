// Package machine is all that the master knows and decides, as one
// deterministic value: no clock, no process, no socket, no file, no log.
//
// Step takes one event and returns the orders that follow. Whoever performs
// them (package supervisor) tells the outcome of each order that can fail, or
// that takes time, as another event. Nothing else goes in or out, so that a run
// can be written down, replayed, explored state by state, and handed to another
// process.
//
// The states have names and tables, in states.go: of the master, of a
// generation, of a slot (a worker's place in its generation) and of a worker.
// An event that a table does not name for a state changes nothing: what comes
// late meets a state that has passed. The book (book.go) says of each address
// who has a socket on it and to whom new connections go.
//
// A Machine is plain data: maps, pointers into itself and functions have no
// place in it. It is not safe for concurrent use.
package machine

import (
	"slices"
	"time"

	"github.com/moult/moult/supervisor/control/api"
)

// Machine is the master's mind. New makes it; the first event is Begin.
type Machine struct {
	Cfg     Config
	Now     time.Time // of the event in hand
	Started time.Time

	Phase phase
	Since time.Time // of the phase
	Gens  []*generation
	Wants int // workers per generation
	Last  counters

	Book     book
	Clients  clients
	Failures []time.Time // what --restart-limit counts
	Shown    int         // the generation that was named last
	Habit    habit       // what the drain signal did to the last worker that got it
	Previous ProgramID   // what served before the generation that serves
	Rollback ProgramID   // what the next generation shall run; 0: the command
	Outcome  Exit
	Memory   memory
	House    house

	orders []Order
}

// counters number what the machine makes.
type counters struct {
	Generation int // key of the last one, failed ones included
	Worker     WorkerID
	Slot       SlotID
	Look       int
	Random     uint64
}

// house is what has been done once for all.
type house struct {
	PIDFile  bool // written
	Released bool // the sockets were closed before the end
	Watching bool // the paths
}

// memory is when it is given back.
type memory struct {
	At   time.Time // zero: it was, or something goes on
	Done bool
}

// generation is one start of the program: a slot for each worker.
type generation struct {
	Number  int
	Key     int // names it to Furnish; unique where Number is not (failed upgrades)
	State   generationState
	Slots   []*slot
	Takes   int // key of the dead generation whose sockets it has
	Program ProgramID
	Rolled  bool // it is a rollback
	Forced  ProgramID

	Asked  []OpID // who waits for this upgrade, and then for the end of its drain
	Began  time.Time
	Drains time.Time    // since when it does
	Record *api.Upgrade // the upgrade that replaced it
	Ended  *int         // the status of the worker whose end made the start fail

	Notifies bool     // a worker of it has sent READY=1
	Hurried  bool     // too many drain: its time is short
	Why      string   // it has failed
	Told     bool     // EventStarting was sent
	Serves   []served // what it listened on when it became ready
}

// slot is a worker's place in its generation: its members stay when the worker
// goes, and the replacement gets the same.
type slot struct {
	ID       SlotID
	State    slotState
	Members  []Held
	Worker   *worker
	StartAt  time.Time // slotWaiting: when the replacement is due
	Crashes  int       // in a row
	Restarts int
	Leaving  bool // taken away alone: one worker fewer
}

// place is a worker's slot in its generation.
type place struct {
	m *Machine
	g *generation
	s *slot
}

// New returns a machine that has not begun.
func New(cfg Config) *Machine {
	return &Machine{Cfg: cfg, Wants: cfg.Workers, Last: counters{Random: cfg.Seed}}
}

// Step takes one event at a time and returns the orders that follow, in the
// order in which they are to be performed. The slice is the caller's.
func (m *Machine) Step(now time.Time, e Event) []Order {
	if m.Phase == phaseEnded {
		return nil
	}
	m.Now = now
	m.orders = nil
	m.take(e)
	m.settle()
	return m.orders
}

func (m *Machine) order(o Order) { m.orders = append(m.orders, o) }

func (m *Machine) take(e Event) {
	switch e := e.(type) {
	case Begin:
		m.begin(e)
	case Hangup:
		m.happen(evUpgrade, e.Reason)
	case StopAsked:
		clerk{m}.stopAsked(e)
	case ScaleAsked:
		staffing{m}.scale(e.By)
	case PassOn:
		m.passOn(e.Signal)
	case Tick:
		m.tick()
	case Furnished:
		launcher{m}.furnished(e)
	case QueueSeen:
		staffing{m}.queueSeen(e)
	case Steered:
		steering{m}.steered(e)
	case Mended:
		steering{m}.mended(e)
	case BindAsked, ListenAsked, Listening:
		m.capture(e)
	case Asked:
		clerk{m}.asked(e)
	case ProgramChecked:
		clerk{m}.programChecked(e)
	case Viewed:
		m.Memory = memory{}
	default:
		m.takeOf(e)
	}
}

// takeOf is for what happens to one worker.
func (m *Machine) takeOf(e Event) {
	switch e := e.(type) {
	case Forked:
		m.at(e.Worker).forked(e)
	case StartFailed:
		m.at(e.Worker).startFailed(e)
	case Exited:
		m.at(e.Worker).exited(e)
	case Looked:
		looker{m.at(e.Worker)}.looked(e)
	case Notified:
		m.at(e.Worker).notified(e)
	case Alone:
		looker{m.at(e.Worker)}.alone(e.Reason)
	case ListenerLost:
		caller{m.at(e.Worker)}.listenerLost()
	}
}

func (m *Machine) begin(b Begin) {
	m.Started, m.Since = m.Now, m.Now
	for _, o := range b.Opened {
		m.Book.open(o)
		m.sayListening(o.Socket)
	}
	launcher{m}.startGeneration()
}

// settle draws the conclusions that no single event brings: whom the kernel has
// to name now, that a generation serves, that nothing is left.
func (m *Machine) settle() {
	steering{m}.steer()
	if g := m.inState(switching, switching); g != nil && (steering{m}).isNamed(g) {
		launcher{m}.generation(g, geSwitched)
	}
	ender{m}.part()
	for (ender{m}).forgetGone() {
		ender{m}.part()
	}
	clerk{m}.scaled()
	ender{m}.letGo()
	if len(m.Gens) == 0 && m.Phase != phaseEnded && m.Last.Generation > 0 {
		m.happen(evEmpty, "")
	}
	steering{m}.steer()
	m.trimLater()
}

// happen runs one event through the master's table.
func (m *Machine) happen(e masterEvent, reason string) {
	step, ok := masterTable[m.Phase][e]
	if !ok {
		return
	}
	from := m.Phase
	m.Phase = step.to
	m.perform(step.do, from, reason)
}

func (m *Machine) perform(do masterAction, from phase, reason string) {
	switch do {
	case doRemember:
		m.say(Info, "one more upgrade follows when this start is over", Field{"generation", m.number()}, Field{"reason", reason})
	case doStart:
		m.tell(from, reason, "upgrading", false)
		launcher{m}.startGeneration()
	case doPromote, doPromoteNew:
		launcher{m}.promote(from)
	case doFail, doFailNew:
		m.tell(from, reason, m.afterFailure(), true)
		launcher{m}.dropNext("the start has failed")
	case doFailEnd:
		m.tell(from, reason, "cannot start", true)
		m.Clients.stopWaiting(m)
		launcher{m}.dropNext("the start has failed")
	case doLose:
		m.say(Error, "given up; the upgrade under way decides", Field{"generation", m.number()}, Field{"reason", reason})
	case doStop:
		m.Outcome = Exit{} // whatever was lost before: the stop was asked for
		m.tell(from, reason, "stopping", false)
		ender{m}.stopAll()
	case doGiveUp:
		m.tell(from, reason, "giving up", true)
		ender{m}.stopAll()
	case doKill:
		if from != phaseStopping {
			m.Outcome = Exit{}
		}
		m.tell(from, reason, "ending at once", false)
		ender{m}.killAll()
	case doTooLate:
		m.say(Info, "stopping already: no upgrade follows", Field{"reason", reason})
	case doExit:
		m.tell(from, "", "ended", false)
		m.Clients.endStop(m)
		m.order(m.Outcome)
	}
	if do == doPromoteNew || do == doFailNew {
		launcher{m}.startGeneration()
	}
}

// Due is when a Tick is wanted; zero: none is.
func (m *Machine) Due() time.Time {
	var first time.Time
	for _, at := range m.places() {
		if at.s.State == slotWaiting {
			first = earlier(first, at.s.StartAt)
		}
		if w := at.s.Worker; w != nil {
			first = earlier(first, w.wakeAt())
		}
	}
	return earlier(first, m.Memory.At)
}

func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// tick does what is due.
func (m *Machine) tick() {
	for _, at := range m.places() {
		if at.s.State == slotWaiting && !m.Now.Before(at.s.StartAt) {
			at.slot(seDue)
		}
		looker{at}.due()
	}
}

// places lists all slots, oldest first.
func (m *Machine) places() []place {
	var all []place
	for _, g := range m.Gens {
		for _, s := range g.Slots {
			all = append(all, place{m, g, s})
		}
	}
	return all
}

// at finds a worker; where it is gone the place has no slot.
func (m *Machine) at(id WorkerID) place {
	for _, at := range m.places() {
		if at.s.Worker != nil && at.s.Worker.ID == id {
			return at
		}
	}
	return place{m: m}
}

// serving is the generation that serves; nil before the first does, and once
// all is drained.
func (m *Machine) serving() *generation { return m.inState(current, current) }

// next is the generation on its way.
func (m *Machine) next() *generation { return m.inState(joining, switching) }

// inState is the newest generation in one of these states: while one takes over
// from another, two are current.
func (m *Machine) inState(from, to generationState) *generation {
	for _, g := range slices.Backward(m.Gens) {
		if g.State >= from && g.State <= to {
			return g
		}
	}
	return nil
}

// number is the generation that serves; before the first does, the first.
func (m *Machine) number() int {
	if g := m.serving(); g != nil {
		return g.Number
	}
	if g := m.next(); g != nil {
		return g.Number
	}
	return m.Shown
}
