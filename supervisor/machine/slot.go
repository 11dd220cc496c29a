package machine

import (
	"fmt"
	"slices"
	"time"

	"github.com/moult/moult/supervisor/control/api"
)

// slot runs one event through the table of the slot.
func (at place) slot(e slotEvent) {
	step, ok := slotTable[at.s.State][e]
	if !ok {
		return
	}
	from := at.s.State
	at.s.State = step.to
	switch step.do {
	case slStart:
		at.start()
	case slRetire:
		at.happen(wRetire, at.g.Why)
	case slCount:
		if own := at.ownQueues(); len(own) > 0 {
			at.m.order(CountQueue{Slot: at.s.ID, Members: own})
		} else {
			at.slot(seEmpty)
		}
	case slRescue:
		at.start()
		at.happen(wRetire, "")
	case slRelease:
		at.release("")
	case slLose:
		at.release(lostWords[from])
	}
}

// lostWords say of connections why nobody serves them.
var lostWords = map[slotState]string{
	slotRescue:   "lost: they waited for a worker that died again",
	slotSpent:    "lost: they waited for a worker that died again",
	slotCounting: "lost: they waited for a worker that died again",
	slotFree:     "lost: they waited in the queue of a worker that was ended",
}

// start orders a worker for the slot. That it cannot be had is an event like any
// other; it never stops the master.
func (at place) start() {
	m := at.m
	m.Last.Worker++
	w := &worker{ID: m.Last.Worker, Since: m.Now, Ordered: m.Now}
	w.Deadline = m.Now.Add(m.Cfg.ReadyTimeout)
	at.s.Worker = w
	o := Start{Worker: w.ID, Generation: at.g.Number, Program: at.g.Forced, Handed: at.handed(), Traps: staffing{m}.traps()}
	for _, h := range o.Handed {
		w.check(h, m.Book.address(h.Address).Socket)
	}
	m.order(o)
}

// handed lists the members that a worker is started with: those of addresses
// that the master has opened.
func (at place) handed() []Held {
	var list []Held
	for _, h := range at.s.Members {
		if !at.m.Book.address(h.Address).Socket.Learned && !at.m.Book.member(h).Own {
			list = append(list, h)
		}
	}
	return list
}

// staffing is the machine where it minds how many workers there are.
type staffing struct{ *Machine }

// traps are what stops a worker.
func (m staffing) traps() Traps {
	t := Traps{Intercept: m.Cfg.Intercept}
	if !t.Intercept {
		return t
	}
	// Where several workers make room for one path, the second takes it from
	// the first.
	t.Unlink = m.Cfg.InterceptUnlink || m.Wants > 1
	for _, a := range m.Book.Addresses {
		t.Unlink = t.Unlink || a.Socket.Handover == api.Rename
	}
	return t
}

// release gives all members back; nothing of the slot is left.
func (at place) release(lost string) {
	for _, h := range slices.Clone(at.s.Members) {
		at.letGo(h, at.lost(h, lost))
	}
	steering{at.m}.dropUnused()
}

// lost is what to say of connections that wait in a member when it is given
// back, empty where that is nobody's loss.
func (at place) lost(h Held, word string) string {
	a := at.m.Book.address(h.Address)
	if word == "" && a != nil && a.Socket.Learned && a.serves(h.Inode) && at.m.Phase < phaseStopping {
		return "lost: they waited where the new program does not listen"
	}
	if word != "" && !(staffing{at.m}).ownQueue(a) {
		return ""
	}
	return word
}

// letGo gives one member back.
func (at place) letGo(h Held, lost string) {
	at.s.Members = slices.DeleteFunc(at.s.Members, func(x Held) bool { return x == h })
	if w := at.s.Worker; w != nil {
		w.forgetMember(h)
	}
	steering{at.m}.leave(Leave{Held: h, Generation: at.g.Number, Lost: lost})
}

func (m staffing) queueSeen(e QueueSeen) {
	for _, at := range m.places() {
		if at.s.ID != e.Slot || at.s.State != slotCounting {
			continue
		}
		switch {
		case e.Count == 0 || at.sharedWithLiving():
			at.slot(seEmpty)
		case at.g.Hurried || m.Phase >= phaseEnding:
			at.slot(seCut)
		default:
			m.say(Warn, "started once more, to serve what waits for it", Field{"generation", at.g.Number}, Field{"connections", e.Count})
			at.slot(seQueue)
		}
	}
}

// sharedWithLiving tells whether another worker of the generation accepts from
// the same socket.
func (at place) sharedWithLiving() bool {
	for _, other := range at.g.Slots {
		if other == at.s || other.Worker == nil {
			continue
		}
		if slices.ContainsFunc(at.s.Members, func(h Held) bool { return slices.Contains(other.Members, h) }) {
			return true
		}
	}
	return false
}

// ownQueues lists the members in which connections wait for this slot's worker
// and for nobody else.
func (at place) ownQueues() []Held {
	var list []Held
	for _, h := range at.s.Members {
		a := at.m.Book.address(h.Address)
		// Where nobody has taken the address over, what waits there is not the last.
		untaken := !a.shared() && at.m.Phase < phaseStopping && a.Socket.Learned && a.serves(h.Inode)
		if !untaken && (staffing{at.m}).ownQueue(a) && !at.staysWithOthers(h) {
			list = append(list, h)
		}
	}
	return list
}

// staysWithOthers tells of a worker that is taken away alone whether others of
// its generation go on to accept from the same socket.
func (at place) staysWithOthers(h Held) bool {
	return at.g.State == current && slices.ContainsFunc(at.g.Slots, func(s *slot) bool {
		return s != at.s && !s.Leaving && slices.Contains(s.Members, h)
	})
}

// ownQueue tells whether connections that come by a member of the address are
// its generation's alone.
func (m staffing) ownQueue(a *address) bool {
	switch {
	case a == nil || !a.Socket.Stream && !a.steered():
		return false
	case !a.shared():
		return true
	}
	return m.Phase == phaseStopping && !a.Socket.Inherited
}

// fitToSize adds or takes away the workers that were asked for while the
// generation started.
func (m staffing) fitToSize(g *generation) {
	for len(g.Slots) < m.Wants {
		m.addWorker(g)
	}
	for range len(g.Slots) - m.Wants {
		m.removeWorker(g)
	}
}

// scale adds a worker to the serving generation or takes one away.
func (m staffing) scale(by int) {
	if m.Phase >= phaseStopping {
		return
	}
	if m.Wants+by < 1 {
		m.say(Warn, "cannot have fewer workers than one; SIGTERM stops", Field{"workers", m.Wants})
		return
	}
	m.Wants += by
	m.say(Info, "scaled", Field{"workers", m.Wants})
	switch g := m.serving(); {
	case g == nil: // the first generation is made to fit when it serves
	case by > 0:
		m.addWorker(g)
	default:
		m.removeWorker(g)
	}
}

func (m staffing) addWorker(g *generation) {
	launcher(m).furnishMore(g, 1)
}

// added starts the worker of a slot that has its sockets now.
func (at place) added(err string) {
	if err == "" {
		at.slot(seStart)
		return
	}
	at.m.say(Error, "cannot add a worker", Field{"error", err})
	at.m.Wants--
	at.m.Clients.scaleFails(at.m, err)
	at.slot(seDrop)
}

// removeWorker lets the last worker drain: it gets nothing new as soon as the
// kernel has been told.
func (m staffing) removeWorker(g *generation) {
	for i := len(g.Slots) - 1; i > 0; i-- {
		if s := g.Slots[i]; !s.Leaving {
			s.Leaving = true
			m.House.Watching = true
			m.order(WatchPaths{On: true})
			place{m.Machine, g, s}.slot(seRetire)
			return
		}
	}
}

// backoff is the delay before a replacement: none after the first crash, then
// doubling from RestartMin to RestartMax. Jitter keeps many masters from
// restarting in step when a common dependency fails.
func (m staffing) backoff(s *slot, lived time.Duration) time.Duration {
	// stableAfter is how long a worker has to live for its next crash to count
	// as the first again.
	const stableAfter = time.Minute
	if lived >= stableAfter {
		s.Crashes = 0
	}
	s.Crashes++
	if s.Crashes == 1 {
		return 0
	}
	delay := m.Cfg.Restart.Min
	for range s.Crashes - 2 {
		if delay = min(2*delay, m.Cfg.Restart.Max); delay == m.Cfg.Restart.Max {
			break
		}
	}
	jittered := time.Duration(float64(delay) * (0.8 + 0.4*m.random()))
	return min(max(jittered, m.Cfg.Restart.Min), m.Cfg.Restart.Max)
}

// random is a number from 0 to 1 that only the seed decides (splitmix64, Steele
// et al. 2014).
func (m staffing) random() float64 {
	m.Last.Random += 0x9e3779b97f4a7c15
	z := m.Last.Random
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return float64((z^z>>31)>>11) / (1 << 53)
}

// restartLater plans the replacement.
func (at place) restartLater(lived time.Duration) {
	at.s.Restarts++
	delay := staffing{at.m}.backoff(at.s, lived)
	at.s.StartAt = at.m.Now.Add(delay)
	if delay > 0 {
		at.m.say(Info, "the worker is started again after a delay", Field{"generation", at.g.Number}, Field{"delay", delay})
	}
	at.slot(seRestart)
}

// crashed replaces a worker that has left unasked, at once and then with growing
// delay, or gives up.
func (at place) crashed(w *worker) {
	m, status := at.m, w.End.exitStatus()
	if w.daemonized() && at.g.Number == 1 && at.s.Restarts == 0 {
		m.Outcome = Exit{Code: 1, Reason: fmt.Sprintf("the worker (pid %d) has left: %s", w.PID, w.endedHow())}
		at.slot(seGiveUp)
		m.happen(evGaveUp, "the worker went into the background")
		return
	}
	bad := w.End.Reason != "" || status != 0 || w.Failed != ""
	tooMany := bad && staffing{m}.failure()
	if tooMany || m.Cfg.Restart.Policy == "never" || m.Cfg.Restart.Policy == "on-failure" && !bad {
		at.giveUp(w, tooMany)
		return
	}
	lived := time.Duration(0)
	if !w.ReadyAt.IsZero() {
		lived = m.Now.Sub(w.ReadyAt)
	}
	at.restartLater(lived)
}

// failure notes one for --restart-limit and tells whether that is reached.
func (m staffing) failure() bool {
	if m.Cfg.Restart.Limit == 0 {
		return false
	}
	m.Failures = append(m.Failures, m.Now)
	for m.Now.Sub(m.Failures[0]) > m.Cfg.Restart.Within {
		m.Failures = m.Failures[1:]
	}
	return len(m.Failures) >= m.Cfg.Restart.Limit
}

func (at place) giveUp(w *worker, tooMany bool) {
	m := at.m
	why := "--restart " + m.Cfg.Restart.Policy
	if tooMany {
		why = fmt.Sprintf("--restart-limit %d/%s", m.Cfg.Restart.Limit, m.Cfg.Restart.Within)
	}
	code := w.End.exitStatus()
	if w.End.Reason != "" || w.Failed != "" {
		code = w.exitCode()
	}
	m.Outcome = Exit{Code: code}
	if code != 0 {
		m.Outcome.Reason = fmt.Sprintf("the worker (pid %d) has left: %s; it is not replaced (%s)", w.PID, w.endedHow(), why)
	}
	at.slot(seGiveUp)
	m.happen(evGaveUp, "the worker is not replaced: "+why)
}
