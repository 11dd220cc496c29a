package machine

import (
	"slices"
	"time"
)

// drain is what is known of a worker on its way out.
type drain struct {
	Began    time.Time     // of settling
	Settled  time.Duration // what settling took of --drain-timeout
	Until    time.Time     // the end of draining
	Patience time.Time     // for handshakes
	Answers  time.Time     // until then answers to datagrams may be on their way
	Handles  Answer        // whether it has a handler for the drain signal
	Asked    bool          // Handles is known
}

// handshakePatience is for how long a handshake that was under way at the switch
// is waited for: a client's second and third SYN come 1 s and 3 s after the
// first, what takes longer is not a client any more.
const handshakePatience = 3 * time.Second

// drainer is where a worker drains.
type drainer struct{ place }

// ender is the machine where something comes to its end.
type ender struct{ *Machine }

// beginParting starts the way out. All that is new goes to others as soon as the
// kernel has been told.
func (at drainer) beginParting() {
	w := at.s.Worker
	w.Drain.Began = at.m.Now
	w.Deadline = at.m.Now.Add(at.m.Cfg.DrainTimeout)
}

// part goes on with what waits for the kernel to send everything new elsewhere:
// what was seen of a queue before that would not be the last.
func (m ender) part() {
	for _, at := range m.places() {
		if at.s.State == slotOwed && at.isPaid() {
			at.slot(seDrop)
		}
		w := at.s.Worker
		parting := at.s.State == slotParting || w != nil && w.State == parting
		if !parting || slices.ContainsFunc(at.s.Members, steering(m).stillNamed) {
			continue
		}
		if w != nil {
			at.happen(wApart, "")
		} else {
			at.slot(seApart)
		}
	}
	steering(m).leaveLate()
}

// beginSettling starts when the worker gets nothing new any more: handshakes
// that had begun end in its queue, and it accepts until that is empty.
func (at drainer) beginSettling() {
	w := at.s.Worker
	w.Deadline = w.Drain.Began.Add(at.m.Cfg.DrainTimeout)
	if len(at.ownQueues()) == 0 {
		at.happen(wEmpty, "")
		return
	}
	looker(at).look()
}

func (at drainer) settledSeen(seen Seen) {
	w := at.s.Worker
	if w.Drain.Patience.IsZero() { // the first look: the switch has reached every CPU
		w.Drain.Patience = at.m.Now.Add(handshakePatience)
	}
	if seen.Handshakes > 0 && at.m.Now.Before(w.Drain.Patience) || seen.Queued > 0 {
		return
	}
	if seen.Handshakes > 0 {
		at.m.say(Info, "handshakes that do not end are given up", Field{"generation", at.g.Number}, Field{"connections", seen.Handshakes})
	}
	w.Drain.Settled = at.m.Now.Sub(w.Drain.Began)
	at.happen(wEmpty, "")
}

// datagramGrace is for the answers to what a worker has read last: nothing shows
// whether any are on their way.
const datagramGrace = 500 * time.Millisecond

// beginQuiescing leaves the connections to end by themselves.
func (at drainer) beginQuiescing() {
	m, w := at.m, at.s.Worker
	quiesce := m.Cfg.Quiesce
	own, datagrams := false, false
	for _, h := range at.s.Members {
		a := m.Book.address(h.Address)
		own = own || staffing{m}.ownQueue(a)
		datagrams = datagrams || !a.Socket.Stream && staffing{m}.ownQueue(a)
	}
	if quiesce == 0 || !own {
		at.happen(wEmpty, "")
		return
	}
	w.Deadline = m.Now.Add(quiesce)
	if datagrams {
		w.Drain.Answers = m.Now.Add(min(quiesce, datagramGrace))
	}
	looker(at).look()
}

// idleAfter is how long a connection has to be silent after an answer to count as
// idle: shorter pauses are those of a client that is busy elsewhere, and of
// streams.
const idleAfter = time.Second

func (at drainer) quietLook() Look {
	l := Look{For: LookQuiet, Idle: idleAfter, End: at.helpsIdle()}
	if at.m.Cfg.EndIdle > 0 {
		l.Idle = at.m.Cfg.EndIdle
	}
	for _, h := range at.s.Members {
		if (staffing{at.m}).ownQueue(at.m.Book.address(h.Address)) {
			l.Inodes = append(l.Inodes, h.Inode)
		}
	}
	return l
}

// helpsIdle tells whether idle connections are ended before the drain signal:
// where the user says so, or where the server shows that it will not do it
// itself, because the signal kills it.
func (at drainer) helpsIdle() bool {
	switch end := at.m.Cfg.EndIdle; {
	case end < 0:
		return false
	case end == 0:
		w := at.s.Worker
		return at.m.Habit == habitDies || w.Drain.Asked && w.Drain.Handles == No
	}
	return true
}

// quietSeen ends the wait where no connection is left, or only idle keep-alive
// ones of a server that will end them itself, for which waiting longer changes
// nothing.
func (at drainer) quietSeen(seen Seen) {
	m, w := at.m, at.s.Worker
	w.Drain.Handles, w.Drain.Asked = seen.Handles, true
	if seen.Ended > 0 {
		m.say(Info, "idle connections ended", Field{"generation", at.g.Number}, Field{"connections", seen.Ended})
	}
	if m.Now.Before(w.Drain.Answers) || seen.Unknown || seen.Busy > 0 {
		return
	}
	if seen.Idle == 0 || m.Habit == habitFinishes {
		at.happen(wEmpty, "")
	}
}

// beginDraining tells the worker to finish and leave.
func (at drainer) beginDraining(limit time.Duration) {
	m, w := at.m, at.s.Worker
	m.order(Send{Worker: w.ID, Signal: m.Cfg.DrainSignal})
	w.Drain.Until = m.Now.Add(limit)
	w.Deadline = w.Drain.Until
	w.Own.Holds = true
	if looker(at).watchesListeners() {
		looker(at).pollSoon(0)
	}
}

// limitDraining ends the oldest generations early where too many drain.
func (m ender) limitDraining() {
	var old []*generation
	for _, g := range m.Gens {
		if g.State >= retired {
			old = append(old, g)
		}
	}
	for _, g := range old[:max(len(old)-m.Cfg.MaxDraining, 0)] {
		if g.Hurried {
			continue
		}
		g.Hurried = true
		for _, s := range g.Slots {
			if s.Worker != nil {
				place{m.Machine, g, s}.happen(wEnd, "more than "+itoa(m.Cfg.MaxDraining)+" generations drain")
			}
		}
	}
}

// isPaid tells whether the generation that has taken a slot's sockets serves what
// waits in them, or has.
func (at place) isPaid() bool {
	return slices.ContainsFunc(at.m.Gens, func(g *generation) bool {
		return g != at.g && g.Takes == at.g.joinKey() && (g.State == current || g.State == retired)
	})
}

// forgetGone drops slots and generations of which nothing is left, and tells
// whether there were such generations.
func (m ender) forgetGone() bool {
	var left []*generation
	for _, g := range m.Gens {
		g.Slots = slices.DeleteFunc(g.Slots, func(s *slot) bool { return s.State == slotGone })
		if len(g.Slots) > 0 || g.State < retired {
			left = append(left, g)
			continue
		}
		m.say(Info, "generation gone", Field{"generation", g.Number})
		m.Clients.drained(m.Machine, g)
	}
	gone := m.Gens
	m.Gens = left
	for _, g := range gone {
		if !slices.Contains(left, g) {
			m.afterGeneration(g)
		}
	}
	if m.House.Watching && !m.drains() {
		m.House.Watching = false
		m.order(WatchPaths{On: false})
	}
	return len(left) < len(gone)
}

// afterGeneration takes back what a generation that is gone had.
func (m ender) afterGeneration(g *generation) {
	launcher(m).closeUnused(g.Program)
	if g.Forced != g.Program {
		launcher(m).closeUnused(g.Forced)
	}
	if g.Takes == 0 {
		return
	}
	for _, at := range m.places() {
		lent := at.s.State == slotLent || at.s.State == slotLentSpent || at.s.State == slotOwed
		if !lent || at.g.joinKey() != g.Takes {
			continue
		}
		if at.slot(seBack); at.s.State == slotWaiting {
			at.s.StartAt = m.Now
			at.s.Restarts++
		}
	}
}

// drains tells whether a generation, or a worker that was taken away, drains.
func (m ender) drains() bool {
	for _, at := range m.places() {
		if at.g.State >= retired || at.s.Leaving {
			return true
		}
	}
	return false
}

// stopAll drains everything: what is queued is served, later clients are
// refused.
func (m ender) stopAll() {
	m.Clients.stopWaiting(m.Machine)
	launcher(m).dropNext("asked to stop")
	m.order(Refuse{})
	if g := m.serving(); g != nil {
		launcher(m).generation(g, geRetire)
	}
	for _, at := range m.places() {
		if w := at.s.Worker; w != nil && w.State == draining {
			looker{at}.pollSoon(0) // since when its listeners are gone matters from now on
		}
	}
}

func (m ender) killAll() {
	m.Clients.stopWaiting(m.Machine)
	launcher(m).dropNext("asked to end at once")
	if g := m.serving(); g != nil {
		launcher(m).generation(g, geCut)
	}
	for _, at := range m.places() {
		if at.s.Worker != nil {
			at.happen(wKill, "asked to end at once")
		} else {
			at.slot(seDrop)
		}
	}
}
