package machine

import "slices"

// What workers bind themselves, for the explorer: each may bind each of some
// addresses at any time, listen there later or not at all, and close it again;
// the outcome of a verdict comes whenever it comes.

// owned is a worker's socket. Outcomes of a dead worker's calls are awaited, too.
type owned struct {
	Worker WorkerID
	Key    int
	Stage  stage
	Inode  Inode
	Call   CallID
}

type stage uint8

const (
	asksBind stage = iota
	asksAgain
	isBound
	asksListen
	isComing
	listens
	isAlone // it listens, and is nobody's business
	isRefused
)

var keys = []string{"a", "b"}

// calls lists what workers may do next with sockets.
func (n *node) calls(x exploring, list []move) []move {
	for i := range n.env.Owned {
		o := &n.env.Owned[i]
		running := slices.Contains(n.env.Running, o.Worker)
		s := key(keys[o.Key])
		switch {
		case o.Stage == isComing:
			e := Listening{Call: o.Call, Worker: o.Worker, Held: n.comingTo(o)}
			e.Socket = s
			e.Socket.Learned, e.Socket.Handover = true, steer
			list = append(list, move{event: e})
			if n.env.Left.Faults > 0 {
				e = Listening{Call: o.Call, Worker: o.Worker, Err: "address in use", InUse: true}
				list = append(list, move{event: e, spend: faults})
			}
		case !running:
		case o.Stage == isBound:
			list = append(list, move{event: ListenAsked{Worker: o.Worker, Call: n.env.Call + 1, Socket: s, Inode: o.Inode}})
		case o.Stage == asksAgain:
			list = append(list, move{event: BindAsked{Worker: o.Worker, Call: o.Call, Socket: s, Inode: o.Inode, Held: true}})
		case o.Stage == listens && n.env.Left.Words > 0:
			list = append(list, move{event: ListenerLost{o.Worker}, spend: words, closes: i + 1})
		}
	}
	for _, id := range n.env.Running {
		at := n.m.at(id)
		if at.s == nil || at.s.Worker.State > serving && at.s.Worker.State != settling {
			continue
		}
		for k := range x.keys {
			if !slices.ContainsFunc(n.env.Owned, func(o owned) bool { return o.Worker == id && o.Key == k }) {
				list = append(list, move{event: BindAsked{Worker: id, Call: n.env.Call + 1, Socket: key(keys[k]), Inode: n.env.Inode + 1}})
			}
		}
	}
	return list
}

// comingTo is the socket that a verdict brings.
func (n *node) comingTo(o *owned) Held {
	for _, c := range n.m.Book.Calls {
		if c.ID == o.Call {
			if c.Held.Inode == 0 {
				c.Held.Inode = o.Inode
			}
			return c.Held
		}
	}
	return Held{}
}

// call takes in what a worker did, before the machine hears of it.
func (n *node) call(mv move) {
	e := &n.env
	if mv.closes > 0 {
		e.Owned = slices.Delete(e.Owned, mv.closes-1, mv.closes)
		return
	}
	switch x := mv.event.(type) {
	case BindAsked:
		if !x.Held {
			e.Call, e.Inode = x.Call, x.Inode
			e.Owned = append(e.Owned, owned{x.Worker, slices.Index(keys, x.Socket.Key), asksBind, x.Inode, x.Call})
		}
	case ListenAsked:
		e.Call = x.Call
		for i := range e.Owned {
			if o := &e.Owned[i]; o.Worker == x.Worker && o.Inode == x.Inode {
				o.Stage, o.Call = asksListen, x.Call
			}
		}
	case Listening:
		for i := range e.Owned {
			o := &e.Owned[i]
			if o.Call != x.Call || o.Stage != isComing {
				continue
			}
			if o.Stage = listens; x.Err != "" {
				o.Stage = isRefused
			}
			if x.Err == "" {
				o.Inode = x.Held.Inode
			}
		}
		n.forgetOwned()
	case Exited:
		n.forgetOwned()
	}
}

// forgetOwned drops the sockets of dead workers, but for those on their way.
func (n *node) forgetOwned() {
	n.env.Owned = slices.DeleteFunc(n.env.Owned, func(o owned) bool {
		return o.Stage != isComing && !slices.Contains(n.env.Running, o.Worker)
	})
}

// replied takes in a verdict.
func (n *node) replied(r Reply) {
	for i := range n.env.Owned {
		o := &n.env.Owned[i]
		if o.Call != r.Call {
			continue
		}
		switch r.Verdict {
		case Proceed, Permit:
			if o.Stage == asksListen {
				o.Stage = isAlone
			} else {
				o.Stage = isBound
			}
		case CheckHeld:
			o.Stage = asksAgain
		case Deny, Full:
			o.Stage = isRefused
		default:
			o.Stage = isComing
		}
	}
}

// ofSockets says of sockets who accepts there, and which are nobody's.
func (n *node) ofSockets(l Look) (seen Seen) {
	has := func(i Inode) bool {
		return slices.ContainsFunc(n.env.Owned, func(o owned) bool { return o.Worker == l.Worker && o.Inode == i })
	}
	for _, i := range l.Inodes {
		if has(i) {
			seen.Accepting = append(seen.Accepting, Accepting{i, Yes})
		}
	}
	for _, i := range l.Held {
		if !has(i) {
			seen.Missing = append(seen.Missing, i)
		}
	}
	seen.Holds = true
	return seen
}

// owned writes down what a worker's sockets are.
func (c *canon) owned(id WorkerID) {
	for _, o := range c.n.env.Owned {
		if o.Worker == id {
			flags := 0
			if a := c.n.m.Book.byKey(key(keys[o.Key])); a != nil && a.member(o.Inode) != nil {
				flags = 1 + a.member(o.Inode).Users
			}
			c.put(o.Key, int(o.Stage), flags)
		}
	}
}
