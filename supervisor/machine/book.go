package machine

import (
	"slices"

	"github.com/moult/moult/supervisor/control/api"
)

// The book says of each address who has a socket on it and to whom new
// connections go. It is the only place where that is written down: slots list
// their members by address and inode, and the kernel is told from here.

type book struct {
	Addresses []*address
	Last      AddressID
	Calls     []call  // of workers that are to get a socket
	Late      []Leave // wait until the kernel sends nothing new there
}

// address is one that workers serve.
type address struct {
	ID      AddressID
	Socket  Socket
	Members []*member
	Named   []Inode // those that the kernel was last told to steer to
	Told    []Inode // those that it is known to steer to
	Stuck   []Inode // those that it could not be told
	Pending bool    // its answer is on the way
}

// member is a listening socket.
type member struct {
	Inode Inode
	Users int  // slots that have it, and calls that will
	Own   bool // a worker has made it itself
}

func (b *book) open(o Opened) {
	b.Addresses = append(b.Addresses, &address{ID: o.Address, Socket: o.Socket})
	b.Last = max(b.Last, o.Address)
}

// learn adds an address that a worker has bound, and whose first socket is on
// its way.
func (b *book) learn(s Socket) *address {
	b.Last++
	s.Learned = true
	a := &address{ID: b.Last, Socket: s}
	b.Addresses = append(b.Addresses, a)
	return a
}

func (b *book) address(id AddressID) *address {
	for _, a := range b.Addresses {
		if a.ID == id {
			return a
		}
	}
	return nil
}

func (b *book) byKey(s Socket) *address {
	for _, a := range b.Addresses {
		if a.Socket.Key == s.Key && a.Socket.Network == s.Network {
			return a
		}
	}
	return nil
}

func (b *book) member(h Held) *member {
	if a := b.address(h.Address); a != nil {
		return a.member(h.Inode)
	}
	return nil
}

func (a *address) member(inode Inode) *member {
	for _, m := range a.Members {
		if m.Inode == inode {
			return m
		}
	}
	return nil
}

// hold counts one more slot that has a socket.
func (b *book) hold(h Held, own bool) {
	a := b.address(h.Address)
	m := a.member(h.Inode)
	if m == nil {
		m = &member{Inode: h.Inode, Own: own}
		a.Members = append(a.Members, m)
	}
	m.Users++
}

// drop counts one less, and tells whether nobody has it any more.
func (b *book) drop(h Held) (last bool) {
	m := b.member(h)
	if m == nil {
		return false
	}
	m.Users--
	return m.Users == 0
}

// forget takes out a member that nobody has any more.
func (b *book) forget(h Held) {
	a := b.address(h.Address)
	is := func(i Inode) bool { return i == h.Inode }
	a.Members = slices.DeleteFunc(a.Members, func(m *member) bool { return m.Inode == h.Inode })
	a.Named, a.Told = slices.DeleteFunc(a.Named, is), slices.DeleteFunc(a.Told, is)
}

// unused takes out the addresses that workers have bound and nobody has any
// more.
func (b *book) unused() []*address {
	var out, left []*address
	for _, a := range b.Addresses {
		if a.Socket.Learned && len(a.Members) == 0 && !a.Pending && !b.isComing(a.ID) {
			out = append(out, a)
		} else {
			left = append(left, a)
		}
	}
	b.Addresses = left
	return out
}

// serves tells whether new connections may reach a member.
func (a *address) serves(inode Inode) bool {
	return a.shared() || slices.Contains(a.Named, inode)
}

func (a *address) shared() bool { return a.Socket.Handover == api.Share }

// steered tells whether each member has connections of its own.
func (a *address) steered() bool { return a.Socket.Handover == api.Steer }

// How an address is handed over, as api.Socket has it.
const (
	steer  = api.Steer
	rename = api.Rename
	share  = api.Share
)

// membersOn lists the members of a generation that new connections may reach. A
// slot without a worker keeps its place unless others are there to take over: a
// queue that nobody serves is better than none.
func (g *generation) membersOn(a AddressID) []Inode {
	var all, staffed []Inode
	for _, s := range g.Slots {
		if s.Leaving {
			continue
		}
		for _, h := range s.Members {
			if h.Address != a {
				continue
			}
			all = appendNew(all, h.Inode)
			if s.Worker != nil && s.Worker.State == serving {
				staffed = appendNew(staffed, h.Inode)
			}
		}
	}
	if len(staffed) > 0 {
		return staffed
	}
	return all
}

func appendNew[T comparable](list []T, x T) []T {
	if slices.Contains(list, x) {
		return list
	}
	return append(list, x)
}

// steering is the machine where it has the kernel told.
type steering struct{ *Machine }

// named is the generation that new connections shall go to.
func (m steering) named() *generation {
	if g := m.inState(switching, switching); g != nil {
		return g
	}
	return m.serving()
}

// steer tells the kernel where it does not steer as it should. An address on
// which the generation has no socket is left alone: others may serve it still.
func (m steering) steer() {
	g := m.named()
	if g == nil || m.Phase >= phaseStopping {
		return
	}
	for _, a := range m.Book.Addresses {
		want := g.membersOn(a.ID)
		if len(want) == 0 || a.Pending || slices.Equal(want, a.Named) || slices.Equal(want, a.Stuck) {
			continue
		}
		a.Named = want
		if a.shared() {
			a.Told = want
			continue
		}
		a.Pending = true
		m.order(Steer{Address: a.ID, Members: slices.Clone(want), Confirm: g.State == switching})
	}
}

// isNamed tells whether the kernel steers to the generation everywhere.
func (m steering) isNamed(g *generation) bool {
	for _, a := range m.Book.Addresses {
		want := g.membersOn(a.ID)
		if len(want) > 0 && (a.Pending || !slices.Equal(want, a.Told)) {
			return false
		}
	}
	return true
}

func (m steering) steered(e Steered) {
	a := m.Book.address(e.Address)
	if a == nil || !a.Pending {
		return
	}
	a.Pending = false
	for _, inode := range e.Gone {
		m.memberGone(Held{a.ID, inode})
	}
	defer m.dropUnused()
	if len(e.Gone) > 0 && e.Err != "" { // those that are left are named next
		a.Named = slices.Clone(a.Told)
		return
	}
	if e.Err == "" {
		a.Told, a.Stuck = slices.Clone(a.Named), nil
		return
	}
	a.Stuck = a.Named
	a.Named = slices.Clone(a.Told)
	g := m.inState(switching, switching)
	if g != nil && slices.Equal(g.membersOn(a.ID), a.Stuck) {
		launcher(m).fail(g, e.Err, 1)
		return
	}
	m.say(Error, "cannot steer", Field{"error", e.Err})
}

// stillNamed tells whether the kernel sends new connections to a member although
// they are to go elsewhere: it has yet to be told, or to say that it was.
func (m steering) stillNamed(h Held) bool {
	a, g := m.Book.address(h.Address), m.named()
	if a == nil || g == nil || a.shared() || m.Phase >= phaseStopping {
		return false
	}
	want := g.membersOn(a.ID)
	if len(want) == 0 || slices.Contains(want, h.Inode) || !a.Pending && slices.Equal(want, a.Stuck) {
		return false
	}
	return slices.Contains(a.Told, h.Inode) || a.Pending && slices.Contains(a.Named, h.Inode)
}

// leave gives a socket back that one slot less has, if none has it now. Where
// the kernel still sends clients there, they would be cut: it waits.
func (m steering) leave(l Leave) {
	if !m.Book.drop(l.Held) {
		return
	}
	if m.stillNamed(l.Held) {
		m.Book.Late = append(m.Book.Late, l)
		return
	}
	m.Book.forget(l.Held)
	m.order(l)
}

func (m steering) leaveLate() {
	late := m.Book.Late
	m.Book.Late = nil
	for _, l := range late {
		if m.stillNamed(l.Held) {
			m.Book.Late = append(m.Book.Late, l)
			continue
		}
		m.Book.forget(l.Held)
		m.order(l)
	}
	if len(m.Book.Late) < len(late) {
		m.dropUnused()
	}
}

// memberGone takes a socket from whoever has it: its worker has shut it down.
func (m steering) memberGone(h Held) {
	for _, at := range m.places() {
		if slices.Contains(at.s.Members, h) {
			at.letGo(h, "")
		}
	}
}

// dropUnused closes addresses that no worker has a socket on any more.
func (m steering) dropUnused() {
	for _, a := range m.Book.unused() {
		level := Info
		if m.Phase >= phaseStopping {
			level = Debug
		}
		m.say(level, "nobody listens here any more", Field{"socket", a.Socket.Name}, Field{"address", a.Socket.Bound})
		m.order(Drop{a.ID})
	}
}

func (m steering) mended(e Mended) {
	if a := m.Book.address(e.Address); a != nil {
		m.say(Info, "path put back: a leaving worker had removed it", Field{"socket", a.Socket.Name}, Field{"address", a.Socket.Bound})
	}
}
