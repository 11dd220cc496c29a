package machine

import (
	"slices"
	"time"

	"github.com/moult/moult/supervisor/ready"
)

// clone copies a machine by value, and shares nothing that is ever changed.
func (m *Machine) clone() *Machine {
	c := *m
	c.orders = nil
	c.Gens = make([]*generation, len(m.Gens))
	for i, g := range m.Gens {
		c.Gens[i] = g.clone()
	}
	c.Book = book{Last: m.Book.Last, Calls: slices.Clone(m.Book.Calls), Late: slices.Clone(m.Book.Late)}
	for _, a := range m.Book.Addresses {
		x := *a
		x.Members = make([]*member, len(a.Members))
		for i, h := range a.Members {
			y := *h
			x.Members[i] = &y
		}
		x.Named, x.Told, x.Stuck = slices.Clone(a.Named), slices.Clone(a.Told), slices.Clone(a.Stuck)
		c.Book.Addresses = append(c.Book.Addresses, &x)
	}
	c.Failures = slices.Clone(m.Failures)
	c.Clients.Upgrade, c.Clients.Stop = slices.Clone(m.Clients.Upgrade), slices.Clone(m.Clients.Stop)
	c.Clients.Scale, c.Clients.Rollback = slices.Clone(m.Clients.Scale), slices.Clone(m.Clients.Rollback)
	return &c
}

func (g *generation) clone() *generation {
	c := *g
	c.Asked, c.Serves = slices.Clone(g.Asked), slices.Clone(g.Serves)
	c.Slots = make([]*slot, len(g.Slots))
	for i, s := range g.Slots {
		x := *s
		x.Members = slices.Clone(s.Members)
		if s.Worker != nil {
			w := *s.Worker
			w.Checks = slices.Clone(w.Checks)
			w.Own.Permitted, w.Own.Claimed = slices.Clone(w.Own.Permitted), slices.Clone(w.Own.Claimed)
			w.Own.Vanished = slices.Clone(w.Own.Vanished)
			x.Worker = &w
		}
		c.Slots[i] = &x
	}
	return &c
}

func (w *watch) clone() watch {
	c := *w
	c.Ops, c.Kernel, c.Live = slices.Clone(w.Ops), slices.Clone(w.Kernel), slices.Clone(w.Live)
	c.Quiet, c.Open = slices.Clone(w.Quiet), slices.Clone(w.Open)
	c.Calls, c.Answers = slices.Clone(w.Calls), slices.Clone(w.Answers)
	return c
}

// canon writes a state down in such a way that two which differ in names alone
// are equal: slots of a generation have no order, sockets are told apart by who
// has them and who is sent there, times count from now and what is over is over.
type canon struct {
	buf, part []byte
	parts     [][]byte
	n         *node
	now       time.Time
}

func (c *canon) of(n *node) []byte {
	c.buf, c.n, c.now = c.buf[:0], n, n.now
	m := n.m
	c.machine(m)
	for _, a := range m.Book.Addresses {
		c.address(a)
	}
	for _, l := range m.Book.Late {
		c.held(l.Held)
	}
	c.put(255)
	for _, g := range m.Gens {
		c.generation(g)
	}
	e := &n.env
	l := e.Left
	c.put(254, int(l.Hangups), int(l.Stops), int(l.Crashes), int(l.Faults), int(l.Scales), int(l.Clients), int(l.Words))
	for _, o := range e.Pending {
		switch o := o.(type) {
		case Furnish:
			if at := (launcher{m}).joiningSlot(o.First); at.s == nil {
				c.put(1, o.Slots)
			}
		case CheckProgram:
			c.put(2)
		}
	}
	c.put(c.bool(n.w.Wish), c.bool(n.w.Over))
	for _, o := range e.Owned { // of dead workers
		if o.Stage == isComing && m.at(o.Worker).s == nil {
			c.put(o.Key, int(o.Stage))
		}
	}
	return c.buf
}

func (c *canon) put(list ...int) {
	for _, x := range list {
		c.buf = append(c.buf, byte(x))
	}
}

func (c *canon) bool(b bool) int {
	if b {
		return 1
	}
	return 0
}

func (c *canon) time(t time.Time) int {
	if t.IsZero() {
		return 250
	}
	return min(rounded(t.Sub(c.now)), 200)
}

// machine leaves out what decides nothing: Cfg, Now, Started, Since, Last,
// Failures, Shown, Outcome, Memory; and what does not do so any more.
func (c *canon) machine(m *Machine) {
	c.put(int(m.Phase), c.bool(m.Previous != 0), c.bool(m.Rollback != 0), c.bool(m.House.PIDFile), c.bool(m.House.Released))
	if m.Cfg.Quiesce > 0 {
		c.put(int(m.Habit))
	}
	if m.Phase < phaseStopping {
		c.put(m.Wants)
	}
	c.put(len(m.Clients.Upgrade), len(m.Clients.Stop), len(m.Clients.Scale), len(m.Clients.Rollback), len(m.Book.Calls))
}

func (c *canon) address(a *address) {
	if c.n.m.Phase >= phaseStopping {
		return
	}
	k := c.n.w.kernel(a.ID)
	c.put(len(a.Members), len(a.Named), len(a.Told), len(a.Stuck), c.bool(a.Pending), c.bool(k.Busy), c.bool(k.Stuck), len(k.Told), len(k.Asked))
}

// held tells of a socket what is known of it.
func (c *canon) held(h Held) {
	a := c.n.m.Book.address(h.Address)
	if a == nil {
		c.put(99)
		return
	}
	x := a.member(h.Inode)
	if x != nil {
		c.put(x.Users, c.bool(x.Own))
	}
	c.put(int(h.Address))
	if c.n.m.Phase >= phaseStopping {
		return
	}
	k, flags := c.n.w.kernel(h.Address), 0
	for i, list := range [][]Inode{a.Named, a.Told, a.Stuck, k.Told, k.Asked} {
		if slices.Contains(list, h.Inode) {
			flags |= 1 << i
		}
	}
	c.put(flags)
}

// generation leaves out Key, Began, Drains, Program, Record, Ended, Why and Told.
func (c *canon) generation(g *generation) {
	c.put(253, int(g.State), c.bool(g.Takes != 0), c.bool(g.Rolled), c.bool(g.Forced != 0), len(g.Asked), c.bool(g.Hurried))
	if c.n.m.Cfg.Ready == ready.Auto {
		c.put(c.bool(g.Notifies))
	}
	c.put(len(g.Serves))
	for _, was := range g.Serves {
		for _, letter := range []byte(was.Key) {
			c.put(int(letter))
		}
		c.put(0)
	}
	begin := len(c.buf)
	c.parts = c.parts[:0]
	var ends []int
	for _, s := range g.Slots {
		c.slot(s)
		ends = append(ends, len(c.buf))
	}
	if len(ends) < 2 {
		return
	}
	c.part = append(c.part[:0], c.buf[begin:]...)
	from := 0
	for _, end := range ends {
		c.parts = append(c.parts, c.part[from:end-begin])
		from = end - begin
	}
	slices.SortFunc(c.parts, slices.Compare[[]byte])
	c.buf = c.buf[:begin]
	for _, p := range c.parts {
		c.buf = append(c.buf, p...)
	}
}

func (c *canon) slot(s *slot) {
	c.put(252, int(s.State), min(s.Crashes, 2), c.bool(s.Leaving))
	if s.State == slotWaiting {
		c.put(c.time(s.StartAt))
	}
	for _, h := range s.Members {
		c.held(h)
	}
	for _, o := range c.n.env.Pending {
		switch o := o.(type) {
		case CountQueue:
			c.put(c.bool(o.Slot == s.ID))
		case Furnish:
			c.put(c.bool(o.First <= s.ID && s.ID < o.First+SlotID(o.Slots)))
		}
	}
	if s.Worker != nil {
		c.worker(s, s.Worker)
		c.owned(s.Worker.ID)
	}
}

// worker writes down what its state still uses.
func (c *canon) worker(s *slot, w *worker) {
	c.put(251, int(w.State), c.time(w.Deadline), c.time(w.Look.Poll), c.bool(w.Look.Seq != 0), c.bool(w.Look.Again), c.bool(w.Failed != ""))
	d, e := w.Drain, w.End
	switch w.State {
	case starting:
		c.put(c.bool(w.Notified))
		for _, k := range w.Checks {
			c.put(c.bool(k.Seen), c.bool(k.Hidden))
		}
	case serving:
		c.put(c.bool(c.now.Sub(w.ReadyAt) >= time.Minute))
	case settling:
		c.put(c.time(d.Patience), c.bool(slices.Contains(c.n.w.Quiet, w.ID)))
	case quiescing:
		c.put(c.time(d.Answers), int(d.Handles), c.bool(d.Asked), rounded(d.Settled), c.bool(slices.Contains(c.n.w.Quiet, w.ID)))
	case draining:
		c.put(c.time(d.Until), c.bool(w.Own.Holds))
	case clearing:
		c.put(int(w.Before), e.Status.Code, int(e.Status.Signal), min(e.Left, 2), c.bool(e.Orphaned), int(e.LastWord), c.bool(w.Look.First))
		if w.Before == draining {
			c.put(c.time(d.Until))
		}
	}
	c.put(len(w.Own.Permitted), len(w.Own.Claimed), c.bool(w.Own.Waited), c.bool(w.Own.Escaped))
	n := c.n
	c.put(c.bool(slices.Contains(n.env.Running, w.ID)))
	for _, o := range n.env.Pending {
		switch o := o.(type) {
		case Start:
			c.put(c.bool(o.Worker == w.ID))
		case Look:
			if o.Worker == w.ID {
				c.put(100+int(o.For), c.bool(o.Seq == w.Look.Seq))
			}
		}
	}
}
