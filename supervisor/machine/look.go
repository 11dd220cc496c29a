package machine

import (
	"slices"
	"strings"
	"time"

	"github.com/moult/moult/supervisor/control/api"
	"github.com/moult/moult/supervisor/ready"
)

// Looks show what makes no event: that a worker accepts, that a queue is empty,
// that a connection has ended. One is under way for a worker at a time; the next
// one comes soon after a change, then at a fraction of the time that has passed,
// so that looking costs little and comes late by little.

// looker is where a worker is looked at.
type looker struct{ place }

// pollSoon plans the next look; cost is what the last one took.
func (at looker) pollSoon(cost time.Duration) {
	const first, last, fraction = time.Millisecond, 100 * time.Millisecond, 16
	const maxPace = 500 * time.Millisecond // of what a slow machine makes of it
	w := at.s.Worker
	since := w.Since
	share := time.Duration(5) // of the time: a start is worth more, since everybody waits for it
	if w.State == starting {
		since, share = w.Ordered, 1
	}
	if cost > 0 {
		w.Look.Pace = min(share*cost, maxPace)
	}
	pace := min(max(at.m.Now.Sub(since)/fraction, first), last)
	w.Look.Poll = at.m.Now.Add(max(pace, w.Look.Pace))
}

// wakeAt is when the worker has to be looked at next.
func (w *worker) wakeAt() time.Time { return earlier(w.Deadline, w.Look.Poll) }

// due does what is due for one worker.
func (at looker) due() {
	w := at.s.Worker
	if w == nil {
		return
	}
	if p := w.Look.Poll; !p.IsZero() && !at.m.Now.Before(p) {
		w.Look.Poll = time.Time{}
		at.look()
	}
	if !w.Deadline.IsZero() && !at.m.Now.Before(w.Deadline) {
		w.Deadline = time.Time{}
		at.happen(wDeadline, "")
	}
}

// look orders what the state wants to know, unless a look is under way.
func (at looker) look() {
	w := at.s.Worker
	if w.Look.Seq != 0 {
		w.Look.Again = true
		return
	}
	switch w.State {
	case starting:
		if at.m.Cfg.Ready == ready.Alive {
			if at.verdict(); w.State == starting {
				w.Look.Poll = latest(w.Ordered.Add(at.m.Cfg.ReadyAlive), at.m.Now.Add(time.Millisecond))
			}
			return
		}
		at.lookReady()
	case serving:
		at.lookFor(Look{For: LookHeld, Held: w.Own.held()})
	case settling:
		at.lookFor(Look{For: LookSettled, Inodes: inodesOf(at.ownQueues())})
	case quiescing:
		at.lookFor(drainer(at).quietLook())
	case draining:
		at.lookFor(Look{For: LookHeld, Inodes: at.inodes()})
	case clearing:
		at.lookFor(Look{For: LookTree, Inodes: at.inodes()})
	}
}

func (at looker) lookFor(l Look) {
	w := at.s.Worker
	at.m.Last.Look++
	w.Look.Seq = at.m.Last.Look
	l.Worker, l.Seq, l.First = w.ID, w.Look.Seq, w.Look.First
	w.Look.First, w.Look.Asked = false, false
	at.m.order(l)
}

func (at looker) inodes() []Inode { return inodesOf(at.s.Members) }

func inodesOf(members []Held) []Inode {
	var list []Inode
	for _, h := range members {
		list = append(list, h.Inode)
	}
	return list
}

// looked takes in what was seen. A look that was ordered in an earlier state has
// another number.
func (at looker) looked(e Looked) {
	if at.s == nil || at.s.Worker.Look.Seq != e.Seq {
		return
	}
	w := at.s.Worker
	w.Look.Seq = 0
	stale := w.Look.Again
	w.Look.Again = false
	state := w.State
	again := true
	switch state {
	case starting:
		at.readySeen(e.Seen)
	case serving:
		caller(at).missing(e.Seen)
		caller(at).dropVacant()
		again = false
	case settling:
		drainer(at).settledSeen(e.Seen)
	case quiescing:
		drainer(at).quietSeen(e.Seen)
	case draining:
		w.Own.Holds = e.Seen.Holds
		again = at.watchesListeners()
	case clearing:
		first := w.End.LastWord == 0
		at.treeSeen(e.Seen, first)
		again = !first
	}
	switch {
	case at.s.Worker != w || w.State != state:
	case stale && state == serving:
		at.look()
	case again && w.Look.Poll.IsZero():
		at.pollSoon(e.Cost)
	}
}

// askAfter is how long /proc gets to tell before a connection asks instead: a
// worker that has only just been forked shows nothing yet.
const askAfter = 100 * time.Millisecond

// bypassEvery is how often it is looked for what was not intercepted, and for
// what has been closed.
const bypassEvery = 250 * time.Millisecond

// lookReady orders a look at what is not known yet.
func (at looker) lookReady() {
	m, w := at.m, at.s.Worker
	l := Look{For: LookReady}
	if m.Cfg.Ready != ready.Notify {
		for _, c := range w.Checks {
			if c.Seen {
				continue
			}
			l.Inodes = append(l.Inodes, c.Inode)
			if c.Hidden && m.Now.Sub(w.Ordered) >= askAfter {
				l.Ask = append(l.Ask, c.Inode)
			}
		}
	}
	if m.Cfg.Intercept {
		for _, a := range at.lacks() {
			if a.Socket.Handover == api.Rename {
				l.Paths = append(l.Paths, a.ID)
			}
		}
		l.Held = w.Own.held()
		for _, c := range w.Checks {
			if !c.Given {
				l.Held = appendNew(l.Held, c.Inode)
			}
		}
		l.Bypass = len(w.Checks) == 0 && m.Now.Sub(w.Ordered) >= askAfter
	}
	at.lookFor(l)
}

// readySeen judges a starting worker by what was seen.
func (at looker) readySeen(seen Seen) {
	m, w := at.m, at.s.Worker
	if seen.Bypass != "" && !w.Look.Asked && len(w.Checks) == 0 && m.Book.comingFor(w.ID) == 0 {
		at.alone("the worker listens on " + seen.Bypass + " without a bind that could be intercepted: it has got the socket from elsewhere, or asks by io_uring; use --listen")
		return
	}
	for _, a := range seen.Accepting {
		for i := range w.Checks {
			if c := &w.Checks[i]; c.Inode == a.Inode {
				c.Seen, c.Hidden = a.Is == Yes, a.Is == Unknown
			}
		}
	}
	w.Own.Vanished = seen.Vanished
	caller(at).missing(seen)
	at.verdict()
	if w.State == starting && m.Cfg.Intercept && w.Look.Poll.IsZero() && w.allSeen() {
		// Before it binds something there is nothing new to see: its bind says so.
		w.Look.Poll = m.Now.Add(bypassEvery)
	}
}

// allSeen tells whether the worker accepts on all that it has so far.
func (w *worker) allSeen() bool {
	return !slices.ContainsFunc(w.Checks, func(c check) bool { return !c.Seen })
}

// verdict lets a worker serve that is ready.
func (at looker) verdict() {
	w := at.s.Worker
	worker := at.readiness()
	by, ok := worker.Verdict()
	if by == ready.Alive && at.m.Book.comingFor(w.ID) > 0 {
		ok = false // else the address would change hands after its switch
	}
	if !ok {
		at.sayLacking(worker)
		return
	}
	if by == ready.Accept && at.ripens() {
		return
	}
	w.ReadyBy, w.ReadyAt = string(by), at.m.Now
	at.happen(wReady, "ready by "+string(by))
}

// quiet is how long a worker of the first generation has bound nothing when it
// counts as ready: nobody has shown yet what the program listens on. It is not
// waited for longer than Late in all, nor where the program says itself that it
// is ready.
const quiet = 50 * time.Millisecond

// ripens tells whether a worker that looks ready may be about to open another
// socket, and plans the look at which that is decided.
func (at looker) ripens() bool {
	m, w := at.m, at.s.Worker
	if m.serving() != nil || w.Own.News.IsZero() {
		return false
	}
	if w.Own.Ripe.IsZero() {
		w.Own.Ripe = m.Now
	}
	until := w.Own.News.Add(quiet)
	if end := w.Own.Ripe.Add(Late); end.Before(until) {
		until = end
	}
	if !m.Now.Before(until) {
		return false
	}
	w.Look.Poll = until
	return true
}

// readiness is what the rule of --ready judges by.
func (at looker) readiness() ready.Worker {
	m, w := at.m, at.s.Worker
	r := ready.Worker{
		How: m.Cfg.Ready, Alive: m.Cfg.ReadyAlive, Lived: m.Now.Sub(w.Ordered),
		Notified: w.Notified, ExpectsNotify: at.expectsNotify(), Waits: w.waits(m.Now) + m.Book.comingFor(w.ID),
	}
	for _, c := range w.Checks {
		r.Sockets = append(r.Sockets, ready.Socket{Name: c.Name, Stream: c.Stream, Given: c.Given, Seen: c.Seen, Hidden: c.Hidden})
	}
	for _, a := range at.lacks() {
		if !slices.Contains(w.Own.Vanished, a.ID) {
			r.Lacks = append(r.Lacks, a.Socket.Bound)
		}
	}
	return r
}

// expectsNotify tells whether the worker has to say READY=1 as well: others of
// its generation have, or the generation that it is to replace has. One that
// failed has not set an example.
func (at looker) expectsNotify() bool {
	old := at.m.serving()
	return at.g.Notifies || old != nil && at.g == at.m.next() && old.Notifies
}

// lacks lists the addresses on which the generation that serves listened when it
// became ready, and on which nobody of the worker's does yet.
func (at looker) lacks() []*address {
	old := at.m.serving()
	if old == nil || at.g != at.m.next() || !at.m.Cfg.Intercept {
		return nil
	}
	var list []*address
	for _, was := range old.Serves {
		a := at.m.Book.byKey(Socket{Network: was.Network, Key: was.Key})
		if a == nil || at.s.Worker.hasOn(a.ID) {
			continue
		}
		have := 0 // what it has taken over from a dead generation is not bound yet
		for _, s := range at.g.Slots {
			if s.Worker.hasOn(a.ID) {
				have++
			}
		}
		if have < min(old.listenersOn(a.ID), len(at.g.Slots)) {
			list = append(list, a)
		}
	}
	return list
}

// hasOn tells whether the worker has bound a socket on an address, and has it.
func (w *worker) hasOn(id AddressID) bool {
	return w != nil && slices.ContainsFunc(w.Own.Claimed, func(c claim) bool { return c.Address == id && c.Missing.IsZero() })
}

// misses tells whether nobody of the worker was seen to have a socket that it
// had.
func (w *worker) misses(inode Inode) bool {
	return w != nil && slices.ContainsFunc(w.Own.Claimed, func(c claim) bool { return c.Inode == inode && !c.Missing.IsZero() })
}

// listenersOn counts the slots that have a socket on an address, as far as is
// known, with a worker or without: not every one need have it.
func (g *generation) listenersOn(id AddressID) int {
	n := 0
	for _, s := range g.Slots {
		if !s.Leaving && slices.ContainsFunc(s.Members, func(h Held) bool { return h.Address == id && !s.Worker.misses(h.Inode) }) {
			n++
		}
	}
	return n
}

// sayLacking tells once what a worker that accepts is waited for. The old one may
// have closed it meanwhile.
func (at looker) sayLacking(r ready.Worker) {
	w := at.s.Worker
	if len(r.Lacks) == 0 || len(w.Checks) == 0 || !w.allSeen() {
		return
	}
	if at.m.lookAgain(); w.Own.Waited {
		return
	}
	w.Own.Waited = true
	at.m.say(Info, "the worker accepts; it has to listen on what the old generation serves, too", Field{"generation", at.g.Number}, Field{"pid", w.PID},
		Field{"addresses", strings.Join(r.Lacks, ", ")}, Field{"limit", w.Deadline.Sub(at.m.Now)})
}

// alone says that an address of the worker cannot be held. A start fails: the
// next upgrade could not bind it again.
func (at looker) alone(reason string) {
	if at.s == nil {
		return
	}
	w := at.s.Worker
	if w.State != starting {
		if w.Own.Escaped {
			return
		}
		w.Own.Escaped = true
		at.m.say(Error, "cannot hold what the worker listens on", Field{"generation", at.g.Number}, Field{"pid", w.PID}, Field{"reason", reason})
		return
	}
	if w.Failed == "" {
		w.Failed = reason
		launcher{at.m}.failWorker(at.place)
		at.happen(wEnd, reason)
	}
}

// watchesListeners tells whether it matters when a worker that drains closes its
// listeners: at the end of all.
func (at looker) watchesListeners() bool { return at.m.Phase == phaseStopping && !at.m.House.Released }

// letGo closes the sockets before the last worker is gone, when the workers have
// closed theirs: from then on clients are refused, while requests in hand are
// finished. As long as a worker still has its listener, a client who came would
// be let in and then cut, so that new ones are turned away until then.
func (m ender) letGo() {
	if m.Phase != phaseStopping || m.House.Released {
		return
	}
	for _, at := range m.places() {
		if w := at.s.Worker; w == nil || w.State < draining || w.State < clearing && w.Own.Holds {
			return
		}
	}
	m.House.Released = true
	for _, at := range m.places() {
		at.s.Members = nil
	}
	m.Book = book{Last: m.Book.Last}
	m.order(Release{})
}
