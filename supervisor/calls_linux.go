package supervisor

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moult/moult/fdpass"
	"github.com/moult/moult/fdpass/group"
	"github.com/moult/moult/fdpass/intercept"
	"github.com/moult/moult/supervisor/capture"
	"github.com/moult/moult/supervisor/machine"
	"github.com/moult/moult/supervisor/observe"
	"github.com/moult/moult/supervisor/process"
)

// calls are those of one worker's processes that stop at the master.
type calls struct {
	s        *Supervisor
	w        *worker
	capture  *capture.Worker
	listener *intercept.Listener

	mu      sync.Mutex
	last    machine.CallID
	waiting map[machine.CallID]*capture.Asked
	watched map[int]func() // processes that listen: how to stop watching
	closed  bool
}

func newCalls(s *Supervisor, w *worker) *calls {
	c := &calls{s: s, w: w, waiting: map[machine.CallID]*capture.Asked{}, watched: map[int]func(){}}
	c.capture = capture.New(capture.Desk{
		Known:    func(network, key string) bool { return (*s.sockets.known.Load())[network+" "+key] },
		Starting: w.starting.Load,
		Ask:      c.ask,
		Alone:    func(reason string) { s.send(machine.Alone{Worker: w.id, Reason: reason}) },
		Named:    s.sockets.named,
		Shows:    s.sockets.shows,
		InUse:    s.sockets.inUse,
	})
	return c
}

// listenTo begins to hear of what the worker binds. It takes the descriptor
// over.
func (s *Supervisor) listenTo(w *worker, f *os.File) {
	if f == nil || w.calls == nil {
		return
	}
	l, err := intercept.Listen(f)
	if err != nil {
		s.log.Error().Err(err).Int("generation", w.generation).Msg("cannot hear what the worker binds")
		return
	}
	w.calls.listener = l
	go w.calls.hear()
}

func (c *calls) hear() {
	for {
		call, err := c.listener.Next()
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, os.ErrClosed) {
				c.s.log.Error().Err(err).Int("generation", c.w.generation).Msg("cannot hear any more what the worker binds: it is told ENOSYS")
			}
			_ = c.listener.Close()
			return
		}
		c.capture.Take(call, call)
	}
}

// ask brings a call before the machine.
func (c *calls) ask(a *capture.Asked) {
	if t := c.w.late.Load(); t != nil && a.Listen && c.w.starting.Load() && time.Since(c.w.ready) < machine.MaxLate {
		t.Reset(machine.Late)
	}
	c.mu.Lock()
	c.last++
	// Numbers are the worker's own, so that they need its id to be told apart.
	id := machine.CallID(int(c.w.id)<<32) + c.last
	c.waiting[id] = a
	closed := c.closed
	c.mu.Unlock()
	if closed || !c.s.send(c.event(id, a)) {
		if c.taken(id) != nil {
			a.Proceed()
		}
	}
}

func (c *calls) event(id machine.CallID, a *capture.Asked) machine.Event {
	socket := machine.Socket{
		Name: a.Bound, Network: a.Network, Bound: a.Bound, Key: a.Key, Port: a.Port, Backlog: a.Backlog,
		Stream: a.Network != "udp", Private: a.Private,
	}
	if a.Network == "unix" && !strings.HasPrefix(a.Path, "@") {
		socket.Handover = string(group.Renamed)
	}
	if a.Listen {
		return machine.ListenAsked{Worker: c.w.id, Call: id, Socket: socket, Inode: machine.Inode(a.Inode), Was: machine.Inode(a.Was), Backlog: a.Backlog, ReusePort: a.ReusePort, Alone: a.Alone}
	}
	return machine.BindAsked{Worker: c.w.id, Call: id, Socket: socket, Inode: machine.Inode(a.Inode), ReusePort: a.ReusePort, Refusal: a.Refusal}
}

func (c *calls) taken(id machine.CallID) *capture.Asked {
	c.mu.Lock()
	defer c.mu.Unlock()
	a := c.waiting[id]
	delete(c.waiting, id)
	return a
}

// ready forgets what the worker has bound and does not listen on.
func (c *calls) ready() {
	if c != nil {
		c.capture.Ready()
	}
}

// close is for the end of the worker. Whatever is left of it and calls bind from
// now on is told that there is no such call.
func (c *calls) close() {
	if c == nil {
		return
	}
	if c.listener != nil {
		_ = c.listener.Close()
	}
	c.mu.Lock()
	waiting := c.waiting
	c.waiting, c.closed = map[machine.CallID]*capture.Asked{}, true
	for _, stop := range c.watched {
		stop()
	}
	c.mu.Unlock()
	for _, a := range waiting {
		c.s.goBeside(a.Proceed) // which may bind a path
	}
	c.capture.Ready()
}

// reply finds the call that a verdict is about, and lets what is to be done
// before on its address be done.
func (s *Supervisor) reply(o machine.Reply) {
	w := s.workers.all[machine.WorkerID(o.Call>>32)]
	var a *capture.Asked
	if w != nil && w.calls != nil {
		a = w.calls.taken(o.Call)
	}
	if a == nil { // its calls have been let go
		if o.Verdict == machine.Claim || o.Verdict == machine.Adopt || o.Verdict == machine.Share || o.Verdict == machine.Resume {
			s.goBeside(func() { s.send(machine.Listening{Call: o.Call, Err: "the worker is gone"}) })
		}
		return
	}
	if before := s.sockets.before(o.After); before != nil && !before.idle() {
		before.do(func() { s.goBeside(func() { s.later(func() { s.answer(o, w, a) }) }) })
		return
	}
	s.answer(o, w, a)
}

// answer ends a call by the verdict on it, or looks once more before.
func (s *Supervisor) answer(o machine.Reply, w *worker, a *capture.Asked) {
	at := s.sockets.all[o.Address]
	switch o.Verdict {
	case machine.Proceed:
		if a.IsEarly() {
			s.goBeside(a.Proceed)
			return
		}
		a.Proceed()
	case machine.Deny:
		a.Deny(syscall.EADDRINUSE)
	case machine.Full:
		s.log.Warn().Int("generation", w.generation).Msg("moult holds no more sockets of one worker")
		a.Deny(syscall.ENOBUFS)
	case machine.CheckHeld:
		s.goBeside(func() { w.calls.checkHeld(a, o.Members) })
	case machine.Permit:
		switch {
		case o.Fresh:
			s.goBeside(a.Beside)
		case at == nil: // it went while something was to be done there first
			s.goBeside(a.Proceed)
		default:
			at.do(func() { a.Permit(at.group) })
		}
	default:
		s.replyWithMember(o, w, a, at)
	}
}

// replyWithMember is for verdicts that give the worker a member.
func (s *Supervisor) replyWithMember(o machine.Reply, w *worker, a *capture.Asked, at *address) {
	if o.Fresh {
		at = s.sockets.learn(o.Address, a)
	}
	e := machine.Listening{Worker: w.id, Call: o.Call, Held: machine.Held{Address: o.Address}}
	if at == nil {
		e.Err = "the address is gone"
		s.goBeside(func() {
			s.send(e)
			a.Proceed()
		})
		return
	}
	at.do(func() {
		m, err := at.give(o, a)
		switch {
		case err != nil:
			e.Err, e.InUse = refusal(a, err), errors.Is(err, syscall.EADDRINUSE)
		case o.Fresh:
			at.refresh()
			e.Socket = at.plain()
			e.Socket.Private = a.Private
			fallthrough
		default:
			w.calls.watch(a.PID)
			e.Held.Inode = machine.Inode(m.Inode())
		}
		// What the worker does next is to find this written down.
		s.send(e)
		a.End(err)
	})
}

// learn adds an address that a worker binds. Whether the kernel steers there is
// tried on loopback the first time.
func (s *sockets) learn(id machine.AddressID, a *capture.Asked) *address {
	options, newGroup := s.options, a.NewGroup
	if a.Network == "unix" {
		return s.add(id, newGroup(options), a.Key)
	}
	about := group.Description{Network: a.Network, Bound: a.Bound, Port: a.Port, Learned: true}
	return s.addLater(id, a.Key, about, func() group.Group { return newGroup(options) })
}

// give is a task.
func (at *address) give(o machine.Reply, a *capture.Asked) (*group.Member, error) {
	m := at.members[o.Member]
	if m == nil && (o.Verdict == machine.Claim || o.Verdict == machine.Resume) {
		return nil, capture.ErrGone
	}
	var err error
	switch o.Verdict {
	case machine.Claim:
		err = a.Claim(m)
	case machine.Resume:
		err = a.Resume(at.group, m)
	case machine.Share:
		if m, err = at.join(o.Generation); err != nil {
			return nil, err
		}
		err = a.Claim(m)
	default:
		m, err = a.Adopt(at.group, o.Generation)
	}
	if err != nil {
		return nil, err
	}
	at.keep(m)
	return m, nil
}

// refusal says why a call of a worker failed.
func refusal(a *capture.Asked, err error) string {
	if !errors.Is(err, syscall.EADDRINUSE) {
		return err.Error()
	}
	return a.Bound + " is in use" + holderOf(a.Binding)
}

// holderOf says who listens on the port of an address.
func holderOf(b fdpass.Binding) string {
	if !b.Addr.IsValid() {
		return ""
	}
	listeners, _ := observe.Listeners(b.Addr.Port())
	for _, l := range listeners {
		if who := holders(l.Inode); who != "" {
			return who + " (listens on " + l.Local.String() + ")"
		}
	}
	return ""
}

// checkHeld looks which members the worker still has, and asks again.
func (c *calls) checkHeld(a *capture.Asked, members []machine.Inode) {
	l := &looker{Look: machine.Look{Held: members}, w: c.w, family: &c.s.workers.family, homes: &c.s.sockets.homes}
	held, complete := observe.Inodes(l.tree())
	missing, shut := l.missing(held, complete)
	c.mu.Lock()
	c.last++
	id := machine.CallID(int(c.w.id)<<32) + c.last
	c.waiting[id] = a
	closed := c.closed
	c.mu.Unlock()
	e := c.event(id, a).(machine.BindAsked)
	e.Held, e.Missing = true, append(missing, shut...)
	if (closed || !c.s.send(e)) && c.taken(id) != nil {
		a.Proceed()
	}
}

// watch notices the end of a process that listens.
func (c *calls) watch(pid int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.watched[pid] != nil || c.closed || pid == c.w.child.PID {
		return
	}
	stop, err := process.WatchExit(pid, func() {
		c.mu.Lock()
		delete(c.watched, pid)
		c.mu.Unlock()
		c.s.send(machine.ListenerLost{Worker: c.w.id})
	})
	if err == nil {
		c.watched[pid] = stop
	}
}

// named tells whether a name of a unix path's sockets ends in base: all other
// files are spared a look, which may take long where they are far away.
func (s *sockets) named(base string) (yes bool) {
	for _, a := range *s.renamed.Load() {
		a.call(func() {
			if p, ok := a.group.(group.Path); ok {
				yes = yes || p.HasName(base)
			}
		})
	}
	return yes
}

// shows tells whether a directory entry leads to one of our sockets.
func (s *sockets) shows(info os.FileInfo) (yes bool) {
	for _, a := range *s.renamed.Load() {
		a.call(func() {
			if p, ok := a.group.(group.Path); ok {
				yes = yes || p.Shows(info)
			}
		})
	}
	return yes
}

// inUse says why a worker that binds an address is going to be told that it is
// in use. Where it may share one, that is for want of the same user.
func (s *sockets) inUse(b fdpass.Binding, uid int) string {
	form := b.Form()
	for _, a := range s.view() {
		if about := a.info(); a.key != form || about.Network != b.Network {
			continue
		}
		if a.isOfAnother(uid) {
			return "the server runs as another user than the old generation on " + a.info().Bound + ": the kernel lets nobody else share the address"
		}
		return ""
	}
	if b.Network != "tcp" {
		return ""
	}
	listeners, err := observe.Listeners(b.Addr.Port())
	if err != nil || len(listeners) == 0 {
		return ""
	}
	for _, l := range listeners {
		other := fdpass.Binding{Network: "tcp", Addr: l.Local, V6Only: l.V6Only, Device: l.Device}.Exact()
		if other != b && !b.Overlaps(other) {
			continue
		}
		for _, a := range s.view() {
			if a.info().Network == "tcp" && a.info().Port == int(b.Addr.Port()) {
				return fmt.Sprintf("it asks for %s, which overlaps %s, held by moult: an address has to keep its form from one generation to the next", b.Form(), a.key)
			}
		}
		return b.String() + " is in use" + holderOf(b)
	}
	return ""
}

// isOfAnother tells whether the sockets of an address are another user's.
func (a *address) isOfAnother(uid int) (yes bool) {
	if uid < 0 {
		return false
	}
	a.call(func() {
		for _, m := range a.group.Members() {
			var st unix.Stat_t
			if unix.Fstat(m.Descriptor(), &st) == nil && m.Own() && int(st.Uid) != uid {
				yes = true
			}
		}
	})
	return yes
}

// ambiguous tells whether a unix path has a name that looks like netlink's
// address to a filter, with the NUL that most programs put at its end.
func (s *sockets) ambiguous() bool {
	const length = 10
	for _, a := range *s.renamed.Load() {
		if n := len(a.info().Bound); n == length || n == length-1 {
			return true
		}
	}
	return false
}
