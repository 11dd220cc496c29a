package machine

import (
	"slices"
	"time"

	"github.com/moult/moult/supervisor/control/api"
)

// What workers bind themselves. A worker's own call does the work, under its own
// rights; here it is decided whether it may share an address with the generation
// that serves. That is so only while its generation starts: what is opened later
// belongs to its process alone, and the kernel's answer holds.

// own is what is known of the sockets that a worker makes itself.
type own struct {
	Permitted []permit
	Claimed   []claim
	Vanished  []AddressID // paths that clients do not reach any more
	Refused   string      // why a bind was refused; the last one
	News      time.Time   // when it last bound or listened where clients may come
	Ripe      time.Time   // when it first looked ready
	Waited    bool        // it was said that addresses are waited for
	Escaped   bool        // something cannot be held, and that was said
	Holds     bool        // draining: it may have a listener still
}

// permit is a socket that may share an address and does not listen yet.
type permit struct {
	Inode     Inode
	Address   AddressID
	ReusePort bool // the worker has asked for that itself

	// Where nobody serves the address yet (Address is 0): until when it is
	// waited for. A client of something may have bound it, too.
	Until time.Time
}

// claim is a member that the worker has.
type claim struct {
	Inode     Inode
	Address   AddressID
	Inherited bool      // the member was there before the worker
	Missing   time.Time // since when no process of the worker is seen to have it
}

// call is one that was answered, and whose outcome is not known yet.
type call struct {
	ID      CallID
	Worker  WorkerID
	Held    Held // Inode is 0 where it is the worker's own socket
	Verdict Verdict
}

// answered takes a call out.
func (b *book) answered(id CallID) (call, bool) {
	i := slices.IndexFunc(b.Calls, func(c call) bool { return c.ID == id })
	if i < 0 {
		return call{}, false
	}
	c := b.Calls[i]
	b.Calls = slices.Delete(b.Calls, i, i+1)
	return c, true
}

// isComing tells whether a call will bring a socket into an address.
func (b *book) isComing(a AddressID) bool {
	return slices.ContainsFunc(b.Calls, func(c call) bool { return c.Held.Address == a })
}

// isClaimed tells whether a member is about to become a worker's.
func (b *book) isClaimed(h Held) bool {
	return slices.ContainsFunc(b.Calls, func(c call) bool { return c.Held == h && c.Verdict == Claim })
}

// comingFor counts the sockets that a worker is about to get.
func (b *book) comingFor(w WorkerID) int {
	n := 0
	for _, c := range b.Calls {
		if c.Worker == w {
			n++
		}
	}
	return n
}

// maxOwnSockets is how many sockets of one worker the master holds: far more
// than servers have, and few enough that a worker cannot use up the master.
const maxOwnSockets = 1024

func (o *own) held() []Inode {
	var list []Inode
	for _, c := range o.Claimed {
		list = append(list, c.Inode)
	}
	for _, p := range o.Permitted {
		list = append(list, p.Inode)
	}
	return list
}

func (m *Machine) capture(e Event) {
	switch e := e.(type) {
	case BindAsked:
		at := m.at(e.Worker)
		caller{at}.asks()
		if at.s == nil || m.House.Released || m.Phase >= phaseEnding {
			m.order(Reply{Call: e.Call})
			return
		}
		caller{at}.bind(e)
	case ListenAsked:
		at := m.at(e.Worker)
		caller{at}.asks()
		if at.s == nil || m.House.Released || m.Phase >= phaseEnding {
			m.order(Reply{Call: e.Call})
			return
		}
		caller{at}.listen(e)
	case Listening:
		m.listening(e)
	}
}

// caller is where a worker makes its calls.
type caller struct{ place }

// asks notes that what a look under way sees may be older than what is known.
func (at caller) asks() {
	if at.s != nil {
		at.s.Worker.Look.Asked = true
	}
}

// bind decides on bind(2).
func (at caller) bind(e BindAsked) {
	m := at.m
	a := m.Book.byKey(e.Socket)
	reply := Reply{Call: e.Call, Generation: at.g.joinKey()}
	if _, is := at.memberBy(e.Inode); is { // which the kernel does not take
		m.order(reply)
		return
	}
	if a == nil {
		at.bindUnknown(e, reply)
		return
	}
	reply.Address = a.ID
	reply.After = a.ID
	if e.Held {
		at.dropClosed(e.Missing)
		if a = m.Book.byKey(e.Socket); a == nil { // nobody had it any more
			reply.Address = 0
			at.bindUnknown(e, reply)
			return
		}
	} else if had := at.openOn(a); len(had) > 0 {
		reply.Verdict, reply.Members = CheckHeld, had
		m.order(reply)
		return
	}
	vacant, some := at.vacant(a)
	switch {
	case some:
		reply.Verdict, reply.Member = Claim, vacant
	case !at.mayJoin(e.Socket):
	case at.listensOn(a) && !e.ReusePort:
	case a.shared() && len(a.Members) > 0:
		reply.Verdict, reply.Member = Share, a.Members[0].Inode
	case a.Socket.Handover == api.Rename && len(at.g.membersOn(a.ID)) > 0:
		reply.Verdict, reply.Member = Share, at.g.membersOn(a.ID)[0]
	case e.Socket.Network == "udp":
		reply.Verdict = Adopt // there is no listen that would follow
	default:
		reply.Verdict = Permit
		at.waitFor(permit{Inode: e.Inode, Address: a.ID, ReusePort: e.ReusePort})
	}
	if e.Refusal != "" && reply.Verdict == Permit {
		at.refused(e.Refusal)
	}
	at.answer(reply)
}

// Late is how long after it has become ready what a worker opens still counts as
// its generation's: a server whose first socket accepts has often not opened its
// last one yet, and nothing tells which one that is. Where it goes on listening
// the time begins again, up to MaxLate.
const (
	Late    = time.Second
	MaxLate = 10 * Late
)

// mayJoin tells whether a worker may share an address with others, or have it
// kept: while its generation starts and shortly after that, and later where it
// had the address then, as one does that closes its listener and binds it again.
func (at caller) mayJoin(s Socket) bool {
	w := at.s.Worker
	switch {
	case w.State == starting:
		return true
	case w.State != serving:
		return false
	case at.g.State < current:
		return true
	}
	return s.Key != "" && slices.Contains(at.g.Serves, served{s.Network, s.Key}) ||
		s.Stream && at.m.Now.Sub(latest(w.ReadyAt, w.Own.News)) < Late && at.m.Now.Sub(w.ReadyAt) < MaxLate
}

// answer gives a verdict, and notes what is to come of it. A socket that was
// there before stays there until it has.
func (at caller) answer(reply Reply) {
	b, h := &at.m.Book, Held{reply.Address, reply.Member}
	switch reply.Verdict {
	case Share:
		b.hold(h, false)
		b.Calls = append(b.Calls, call{reply.Call, at.s.Worker.ID, h, reply.Verdict})
	case Adopt, Claim, Resume:
		b.Calls = append(b.Calls, call{reply.Call, at.s.Worker.ID, h, reply.Verdict})
	}
	at.m.order(reply)
}

// bindUnknown decides on the bind of an address that nobody serves yet.
func (at caller) bindUnknown(e BindAsked, reply Reply) {
	may := at.mayJoin(e.Socket)
	switch {
	case !may:
	case e.Socket.Network == "udp":
		a := at.m.Book.learn(e.Socket)
		reply.Verdict, reply.Fresh, reply.Address = Adopt, true, a.ID
	case len(at.g.Slots) > 1 && e.Socket.Network == "tcp":
		// Workers of one generation that bind the same address, before one of
		// them listens, need what lets them.
		reply.Verdict, reply.Fresh = Permit, true
	}
	if may && e.Socket.Stream {
		at.waitFor(permit{e.Inode, 0, e.ReusePort, at.m.Now.Add(Late)})
	}
	if e.Refusal != "" {
		at.refused(e.Refusal)
	}
	at.answer(reply)
}

// waitFor notes a socket that is bound and does not listen yet: a worker is not
// ready before it does.
func (at caller) waitFor(p permit) {
	o := &at.s.Worker.Own
	if len(o.Permitted) < maxOwnSockets {
		o.Permitted = append(o.Permitted, p)
	}
	o.News = at.m.Now
}

// waits counts the sockets that are to listen before the worker is ready.
func (w *worker) waits(now time.Time) int {
	n := 0
	for _, p := range w.Own.Permitted {
		if p.Until.IsZero() || now.Before(p.Until) {
			n++
		}
	}
	return n
}

// listen decides on listen(2): this is where a socket is learned.
func (at caller) listen(e ListenAsked) {
	m, w := at.m, at.s.Worker
	reply := Reply{Call: e.Call, Generation: at.g.joinKey()}
	if h, is := at.memberBy(e.Inode); is {
		reply.Verdict, reply.Address, reply.Member = Resume, h.Address, h.Inode
		at.answer(reply)
		return
	}
	asked := e.ReusePort
	for _, p := range w.Own.Permitted {
		if p.is(e) {
			asked = p.ReusePort
		}
	}
	a := m.Book.byKey(e.Socket)
	switch {
	case !at.mayJoin(e.Socket):
		if a != nil && a.steered() {
			// The kernel takes it into the group whatever becomes of the call:
			// the program names members by their place in it.
			reply.Verdict = Adopt
		}
	case e.Alone != "":
		looker(at).alone(e.Alone)
	case e.Socket.Key == "": // of its process alone, but it is to accept there
		if s := e.Socket; len(w.Checks) < maxOwnSockets {
			s.Learned = true // it was not given to the worker
			w.check(Held{Inode: e.Inode}, s)
			w.Own.News = m.Now
		}
		at.lookSoon()
	case len(at.s.Members) >= maxOwnSockets:
		reply.Verdict = Full
	case a == nil:
		a = m.Book.learn(e.Socket)
		reply.Verdict, reply.Fresh = Adopt, true
	case a.shared() && len(a.Members) > 0, len(at.claimedOn(a)) > 0 && !asked:
		reply.Verdict = Deny
	default:
		reply.Verdict = Adopt
	}
	if reply.Verdict == Adopt {
		reply.Address = a.ID
	}
	w.Own.Permitted = slices.DeleteFunc(w.Own.Permitted, func(p permit) bool { return p.is(e) })
	at.answer(reply)
}

// is tells whether the socket that now listens is the one that was bound, or has
// taken its place.
func (p permit) is(e ListenAsked) bool { return p.Inode == e.Inode || p.Inode == e.Was }

// listening takes in what became of a verdict.
func (m *Machine) listening(e Listening) {
	c, ok := m.Book.answered(e.Call)
	if !ok {
		return // all was released meanwhile
	}
	at, a := m.at(e.Worker), m.Book.address(c.Held.Address)
	if e.Err != "" {
		if at.s != nil && e.InUse {
			caller{at}.refused(e.Err)
		}
	} else if e.Socket.Key != "" {
		a.Socket = e.Socket
		m.sayListening(a.Socket)
	}
	had := at.s != nil && slices.Contains(at.s.Members, e.Held)
	gets := at.s != nil && e.Err == ""
	switch {
	case c.Verdict == Share && gets && !had:
		at.s.Members = append(at.s.Members, c.Held)
	case c.Verdict == Share:
		steering{m}.leave(Leave{Held: c.Held})
	case c.Verdict == Adopt && gets && !had:
		m.Book.hold(e.Held, true)
		at.s.Members = append(at.s.Members, e.Held)
	case c.Verdict == Adopt && !gets && e.Err == "":
		launcher{m}.giveBack([]Held{e.Held})
	}
	if gets && slices.Contains(at.s.Members, e.Held) {
		caller{at}.has(e.Held, a, had)
		if at.g.State == switching || at.g.State == current {
			at.g.serves(a)
		}
		if a.shared() && m.Cfg.MustSteer {
			looker{at}.alone("cannot steer connections on " + a.Socket.Bound + ": " + a.Socket.Why + "; --handover auto shares the socket instead")
		}
	}
	steering{m}.dropUnused()
}

// refused says why a call of a worker fails, once, and remembers it for the case
// that the start fails with it.
func (at caller) refused(reason string) {
	w := at.s.Worker
	if w.Own.Refused == reason {
		return
	}
	w.Own.Refused = reason
	at.m.say(Warn, "a bind was refused", Field{"generation", at.g.Number}, Field{"pid", w.PID}, Field{"reason", reason})
}

// has notes that the worker has a member of its slot now.
func (at caller) has(h Held, a *address, inherited bool) {
	w := at.s.Worker
	if !slices.ContainsFunc(w.Own.Claimed, func(c claim) bool { return c.Inode == h.Inode }) {
		w.Own.Claimed = append(w.Own.Claimed, claim{Inode: h.Inode, Address: h.Address, Inherited: inherited})
	}
	if a.Socket.Stream {
		w.Own.News = at.m.Now
	}
	if w.State == starting {
		w.check(h, a.Socket)
		at.lookSoon()
	}
}

// lookSoon looks again at a worker that has done something.
func (at caller) lookSoon() {
	if w := at.s.Worker; w.State == starting {
		w.Look.Poll = at.m.Now.Add(time.Millisecond)
	}
}

func (at caller) memberBy(inode Inode) (Held, bool) {
	for _, h := range at.s.Members {
		if h.Inode == inode {
			return h, true
		}
	}
	return Held{}, false
}

// vacant is a member of this address that waits for the worker to bind it.
func (at caller) vacant(a *address) (Inode, bool) {
	for _, h := range at.s.Members {
		if h.Address == a.ID && !at.s.Worker.claims(h.Inode) && !at.m.Book.isClaimed(h) {
			return h.Inode, true
		}
	}
	return 0, false
}

func (w *worker) claims(inode Inode) bool {
	return slices.ContainsFunc(w.Own.Claimed, func(c claim) bool { return c.Inode == inode })
}

func (at caller) claimedOn(a *address) []Inode {
	var list []Inode
	for _, c := range at.s.Worker.Own.Claimed {
		if c.Address == a.ID {
			list = append(list, c.Inode)
		}
	}
	return list
}

// openOn lists the sockets that the worker had on this address, as far as is
// known.
func (at caller) openOn(a *address) []Inode {
	list := at.claimedOn(a)
	for _, p := range at.s.Worker.Own.Permitted {
		if p.Address == a.ID {
			list = append(list, p.Inode)
		}
	}
	return list
}

// listensOn tells whether the worker has a member of this address, or a socket
// that will be one. One more needs SO_REUSEPORT.
func (at caller) listensOn(a *address) bool {
	return len(at.claimedOn(a)) > 0 ||
		slices.ContainsFunc(at.s.Worker.Own.Permitted, func(p permit) bool { return p.Address == a.ID })
}

// closedAfter is how long nobody has to be seen to have a socket for it to be
// closed: it may be on its way to another process, in a message.
const closedAfter = 5 * time.Second

// missing takes in which sockets no process of the worker was seen to have. The
// worker is not waited for there any more, nor is the next generation; they are
// let go of when they stay away.
func (at caller) missing(seen Seen) {
	m, w, list := at.m, at.s.Worker, seen.Missing
	closed := slices.Clone(seen.Shut)
	for _, p := range w.Own.Permitted {
		if slices.Contains(list, p.Inode) {
			closed = append(closed, p.Inode)
		}
	}
	for i := range w.Own.Claimed {
		c := &w.Own.Claimed[i]
		a := m.Book.address(c.Address)
		switch {
		case !slices.Contains(list, c.Inode):
			if !c.Missing.IsZero() && w.State == starting {
				w.check(Held{c.Address, c.Inode}, a.Socket)
			}
			c.Missing = time.Time{}
		case c.Missing.IsZero():
			c.Missing = m.Now
			if h := m.Book.member(Held{c.Address, c.Inode}); h != nil && h.Own {
				w.uncheck(c.Inode)
			}
		case m.Now.Sub(c.Missing) >= closedAfter:
			closed = append(closed, c.Inode)
		}
	}
	// Of its process alone: nothing more is known of those.
	w.Checks = slices.DeleteFunc(w.Checks, func(c check) bool { return !c.Given && !w.claims(c.Inode) && slices.Contains(list, c.Inode) })
	at.dropClosed(closed)
}

// dropClosed lets go of sockets that no process of the worker has any more: the
// master's duplicate keeps one listening that the worker has closed, and nobody
// is told. What the worker has inherited waits for its next try while it starts.
func (at caller) dropClosed(list []Inode) {
	w := at.s.Worker
	for _, inode := range list {
		w.Own.Permitted = slices.DeleteFunc(w.Own.Permitted, func(p permit) bool { return p.Inode == inode })
		i := slices.IndexFunc(w.Own.Claimed, func(c claim) bool { return c.Inode == inode })
		if i < 0 {
			continue
		}
		c := w.Own.Claimed[i]
		w.Own.Claimed = slices.Delete(w.Own.Claimed, i, i+1)
		h := Held{c.Address, c.Inode}
		if m := at.m.Book.member(h); m == nil || !m.Own {
			continue
		}
		w.uncheck(inode)
		if !c.Inherited || w.State != starting {
			at.letGo(h, "")
		}
	}
	steering{at.m}.dropUnused()
}

func (at caller) vacantInodes() []Inode {
	var list []Inode
	for _, h := range at.s.Members {
		if m := at.m.Book.member(h); m != nil && m.Own && !at.s.Worker.claims(h.Inode) && !at.m.Book.isClaimed(h) {
			list = append(list, h.Inode)
		}
	}
	return list
}

// watchClosed plans the next look at what a worker that serves still has: two
// find what it tried at its start, those that it closes later are found when
// somebody wants to know. One shows whether a socket that nobody had comes back,
// and one is for what an earlier worker had bound and this one has not in all
// its time.
func (at caller) watchClosed() {
	m, w := at.m, at.s.Worker
	if w.State != serving {
		return
	}
	var next time.Time
	for _, c := range w.Own.Claimed {
		if !c.Missing.IsZero() {
			next = earlier(next, c.Missing.Add(closedAfter))
		}
	}
	if len(w.Own.Claimed) > 0 {
		for _, after := range []time.Duration{Late, closedAfter} {
			if t := w.ReadyAt.Add(after); t.After(m.Now) {
				next = earlier(next, t)
			}
		}
	}
	if len(at.vacantInodes()) > 0 {
		next = earlier(next, latest(w.Ordered.Add(m.Cfg.ReadyTimeout), m.Now))
	}
	w.Look.Poll = next
}

func (at caller) dropVacant() {
	defer at.watchClosed()
	if at.m.Now.Before(at.s.Worker.Ordered.Add(at.m.Cfg.ReadyTimeout)) {
		return
	}
	for _, h := range slices.Clone(at.s.Members) {
		if slices.Contains(at.vacantInodes(), h.Inode) {
			at.letGo(h, "lost: they waited on an address that the worker does not bind any more")
		}
	}
	steering{at.m}.dropUnused()
}

// listenerLost looks which listeners have gone with a process.
func (at caller) listenerLost() {
	if at.s != nil && (at.s.Worker.State == serving || at.s.Worker.State == starting) {
		looker(at).look()
	}
}

// lookAgain is for when it matters what workers still have: a new generation
// would have to bind what the old one has closed long ago.
func (m *Machine) lookAgain() {
	for _, at := range m.places() {
		if w := at.s.Worker; w != nil && w.State == serving && len(w.Own.Claimed) > 0 {
			looker{at}.look()
		}
	}
}
