package machine

import (
	"slices"
	"time"
)

// launcher is the machine where a generation starts, and takes over or fails.
type launcher struct{ *Machine }

// startGeneration begins what ends in evReady or evFailed.
func (m launcher) startGeneration() {
	m.Last.Generation++
	g := &generation{Number: 1, Key: m.Last.Generation, Began: m.Now}
	old := m.serving()
	if old != nil {
		g.Number = old.Number + 1
	}
	g.Forced, m.Rollback = m.Rollback, 0
	g.Rolled = g.Forced != 0
	m.Clients.upgradeStarts(g)
	for _, a := range m.Book.Addresses {
		a.Stuck = nil
	}
	lent := m.lend(old, g)
	for _, members := range lent {
		m.Last.Slot++
		g.Slots = append(g.Slots, &slot{ID: m.Last.Slot, Members: members, State: slotFree})
	}
	m.Gens = append(m.Gens, g)
	m.lookAgain()
	if lacking := m.Wants - len(lent); lacking > 0 {
		m.furnishMore(g, lacking)
	} else {
		m.generation(g, geFurnished)
	}
}

// furnishMore adds slots to a generation, and has sockets made for them.
func (m launcher) furnishMore(g *generation, n int) {
	m.order(Furnish{Generation: g.joinKey(), First: m.Last.Slot + 1, Slots: n})
	for range n {
		m.Last.Slot++
		g.Slots = append(g.Slots, &slot{ID: m.Last.Slot})
	}
}

// joinKey names the generation to the addresses that all its workers share.
func (g *generation) joinKey() int {
	if g.Takes != 0 {
		return g.Takes
	}
	return g.Key
}

// takeOverAfter is how far away the next try of a dead generation has to be for
// a new one to take its place: a crash that is mended at once must not wait for
// a start that may hang.
const takeOverAfter = time.Second

// lend gives a new generation the members of a dead one: what waits in their
// queues is served by a program that works.
func (m launcher) lend(old, g *generation) [][]Held {
	if old == nil || !old.dead(m.Now) {
		return nil
	}
	g.Takes = old.joinKey()
	var lists [][]Held
	for _, s := range old.Slots[:min(len(old.Slots), m.Wants)] {
		place{m.Machine, old, s}.slot(seLend)
		for _, h := range s.Members {
			m.Book.hold(h, false)
		}
		lists = append(lists, append([]Held(nil), s.Members...))
	}
	return lists
}

// dead tells whether no process of the generation lives, nor will soon: all its
// slots wait to be started again, or were given up.
func (g *generation) dead(now time.Time) bool {
	for _, s := range g.Slots {
		switch s.State {
		case slotSpent:
		case slotWaiting:
			if s.StartAt.Sub(now) < takeOverAfter {
				return false
			}
		default:
			return false
		}
	}
	return len(g.Slots) > 0
}

// furnished gives members to the slots that wait for them. Where those are gone
// by now, it gives the members back.
func (m launcher) furnished(e Furnished) {
	var at place
	var unwanted []Held
	for i, members := range e.Members {
		slot := m.joiningSlot(e.First + SlotID(i))
		if slot.s == nil {
			unwanted = append(unwanted, members...)
			continue
		}
		at = slot
		m.furnish(at.s, members)
	}
	m.giveBack(unwanted)
	if at.s == nil {
		at = m.joiningSlot(e.First)
	}
	switch {
	case at.s == nil:
	case at.g.State != joining:
		at.added(e.Err)
	case e.Err != "":
		m.fail(at.g, e.Err, 1)
	default:
		m.generation(at.g, geFurnished)
	}
}

// joiningSlot finds a slot that waits for its sockets.
func (m launcher) joiningSlot(id SlotID) place {
	for _, at := range m.places() {
		if at.s.ID == id && at.s.State == slotJoining {
			return at
		}
	}
	return place{m: m.Machine}
}

func (m launcher) furnish(s *slot, members []Held) {
	for _, h := range members {
		m.Book.hold(h, false)
		s.Members = append(s.Members, h)
	}
}

// giveBack returns sockets for which there is nobody any more. Several slots may
// have been given the same, which is returned once.
func (m launcher) giveBack(members []Held) {
	members = slices.DeleteFunc(members, func(h Held) bool {
		return m.Book.address(h.Address) == nil // all was released meanwhile
	})
	for _, h := range members {
		m.Book.hold(h, false)
	}
	for _, h := range members {
		steering(m).leave(Leave{Held: h})
	}
}

// generation runs one event through a generation's table.
func (m launcher) generation(g *generation, e generationEvent) {
	step, ok := generationTable[g.State][e]
	if !ok {
		return
	}
	g.State = step.to
	switch step.do {
	case gStart:
		for _, s := range g.Slots {
			place{m.Machine, g, s}.slot(seStart)
		}
	case gServe:
		m.happen(evReady, "")
	case gRetire:
		for _, s := range g.Slots {
			place{m.Machine, g, s}.slot(seRetire)
		}
	case gEnd:
		for _, s := range g.Slots {
			if s.Worker != nil {
				place{m.Machine, g, s}.happen(wEnd, g.Why)
			} else {
				place{m.Machine, g, s}.slot(seDrop)
			}
		}
	}
}

// workerReady is one worker of the serving generation, or of the next.
func (m launcher) workerReady(at place) {
	for _, h := range at.s.Members {
		m.order(Relisten{h})
	}
	if at.g.State == coming && at.g.allServing() {
		at.g.listServed(&m.Book)
		m.generation(at.g, geReady)
	}
}

func (g *generation) allServing() bool {
	for _, s := range g.Slots {
		if s.Worker == nil || s.Worker.State != serving {
			return false
		}
	}
	return true
}

// served names an address for as long as its generation lives, whether anybody
// listens there or not.
type served struct{ Network, Key string }

// listServed lists the addresses that the generation's workers have bound
// themselves, and that the next one has to have as well.
func (g *generation) listServed(b *book) {
	g.Serves = nil
	for _, s := range g.Slots {
		for _, h := range s.Members {
			g.serves(b.address(h.Address))
		}
	}
}

// serves adds an address to them.
func (g *generation) serves(a *address) {
	if a != nil && a.Socket.Learned && !a.Socket.Private {
		g.Serves = appendNew(g.Serves, served{a.Socket.Network, a.Socket.Key})
	}
}

// promote makes the next generation the serving one.
func (m launcher) promote(from phase) {
	g := m.Gens[len(m.Gens)-1] // in state current already
	var old *generation
	for _, x := range m.Gens {
		if x != g && x.State == current {
			old = x
		}
	}
	m.Outcome = Exit{}
	if old == nil {
		m.tell(from, "", "serving", false)
		if m.Cfg.PIDFile && !m.House.PIDFile {
			m.House.PIDFile = true
			m.order(PIDFile{})
		}
	} else {
		m.tell(from, "", "upgraded", false)
		m.Clients.upgradeDone(m.Machine, g, old)
		m.keepPrevious(old)
		m.House.Watching = true
		m.order(WatchPaths{On: true})
		m.generation(old, geRetire)
		ender(m).limitDraining()
	}
	staffing(m).fitToSize(g)
}

// keepPrevious remembers the program that has served until now, for a rollback.
func (m launcher) keepPrevious(old *generation) {
	before := m.Previous
	m.Previous = old.Program
	m.closeUnused(before)
}

// closeUnused closes a program that nobody may run again.
func (m launcher) closeUnused(p ProgramID) {
	if p == 0 || p == m.Previous || p == m.Rollback {
		return
	}
	for _, g := range m.Gens {
		if g.Program == p || g.Forced == p {
			return
		}
	}
	m.order(Close{p})
}

// dropNext ends what was started for an upgrade that failed.
func (m launcher) dropNext(why string) {
	if g := m.next(); g != nil {
		g.Why = why
		m.generation(g, geFail)
	}
}

// fail ends a start that came to nothing: the generation that served goes on as
// if nothing had been asked.
func (m launcher) fail(g *generation, cause string, code int) {
	if g != m.next() {
		return
	}
	if m.serving() == nil {
		m.Outcome = Exit{Code: code, Reason: cause}
	} else {
		m.Clients.upgradeFails(m.Machine, g, cause)
	}
	m.happen(evFailed, cause)
}
