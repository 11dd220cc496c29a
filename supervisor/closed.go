package supervisor

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"github.com/moult/moult/fdpass"
	"github.com/moult/moult/supervisor/observe"
)

// The master's duplicate keeps a socket listening that the worker has closed,
// and nobody is told. So it is looked for whenever something may have changed:
// at each bind of the same address, and for some time after one.

const (
	closedEvery = 100 * time.Millisecond // between two looks
	closedFor   = 5 * time.Second        // after a bind
)

// lookOwn is for a worker on its way to being ready.
func (w *worker) lookOwn(now time.Time) {
	if !w.master.cfg.Intercept || now.Sub(w.own.looked) < closedEvery {
		return
	}
	w.own.looked = now
	w.lookClosed()
	if len(w.slot.members) == 0 && now.Sub(w.forked) >= closedEvery {
		w.lookBypass()
	}
}

// lookBypass finds addresses that the worker listens on although nothing was
// intercepted: the kernel was asked in a way that no filter sees.
func (w *worker) lookBypass() {
	held, complete := observe.Inodes(w.tree())
	if !complete || len(held) == 0 {
		return
	}
	listeners, err := observe.ListenersAmong(held)
	if err != nil || len(listeners) == 0 {
		return
	}
	w.bypassed(fmt.Sprintf("the worker listens on %s without a bind that could be intercepted: it has got the socket from elsewhere, or asks by io_uring; use --listen", listeners[0].Local))
}

// watchClosed plans the next look of a worker that serves.
func (w *worker) watchClosed() {
	if w.master.cfg.Intercept && w.state == serving && time.Since(w.own.news) < closedFor {
		w.poll = time.Now().Add(closedEvery)
	}
}

// lookClosed drops members that two looks in a row have found closed: between
// two processes of the worker a socket is in nobody's hands for a moment.
func (w *worker) lookClosed() {
	w.dropConnected()
	if len(w.own.claimed) == 0 {
		return
	}
	held, complete := observe.Inodes(w.tree())
	if !complete || w.reaped {
		return
	}
	for _, m := range slices.Clone(w.slot.members) {
		if _, has := w.own.claimed[m]; !has {
			continue
		}
		_, holds := held[m.Inode()]
		switch {
		case holds:
			delete(w.own.missed, m)
		case w.own.missed[m]:
			w.dropClosed(m)
		default:
			w.own.missed[m] = true
		}
	}
}

// dropClosedAt looks twice at once, before the worker binds an address again.
func (w *worker) dropClosedAt(b fdpass.Binding) {
	if sock := w.master.socketAt(b); sock != nil && w.listensOn(sock) {
		w.lookClosed()
		w.lookClosed()
	}
}

// dropClosed lets go of a member that the worker does not have any more. One
// that it has inherited waits for the worker's next try.
func (w *worker) dropClosed(m *fdpass.Member) {
	how := w.own.claimed[m]
	delete(w.own.claimed, m)
	delete(w.own.missed, m)
	if !m.Own() || how.inherited && w.state == starting {
		return
	}
	w.letGoOf(m)
}

func (w *worker) letGoOf(m *fdpass.Member) {
	sock := m.Socket()
	w.slot.members = slices.DeleteFunc(slices.Clone(w.slot.members), func(x *fdpass.Member) bool { return x == m })
	w.ready.checks = slices.DeleteFunc(w.ready.checks, func(c *acceptCheck) bool {
		if c.member == m {
			c.close()
		}
		return c.member == m
	})
	sock.Leave(m)
	w.master.dropUnused()
	if w.slot.gen == w.master.serving {
		w.master.resteer()
	}
}

// dropVacant lets go of what an earlier worker had bound and this one, which is
// ready, has not.
func (w *worker) dropVacant() {
	for _, m := range slices.Clone(w.slot.members) {
		if _, has := w.own.claimed[m]; has || !m.Own() {
			continue
		}
		if n, err := observe.AcceptQueue(m.Descriptor()); err == nil && n > 0 {
			w.master.log.Error().Int("generation", w.number).Str("address", m.Socket().Bound()).Int("connections", n).Msg("lost: they waited on an address that the worker does not bind any more")
		}
		w.letGoOf(m)
	}
}

// dropUnused closes addresses that no worker has a socket on any more.
func (s *Supervisor) dropUnused() {
	var left []*fdpass.Socket
	for _, sock := range s.sockets {
		if !sock.Learned() || s.isHeld(sock) {
			left = append(left, sock)
			continue
		}
		level := zerolog.InfoLevel
		if s.phase >= phaseStopping {
			level = zerolog.DebugLevel
		}
		s.log.WithLevel(level).Str("socket", sock.Name()).Str("address", sock.Bound()).Msg("nobody listens here any more")
		delete(s.anyPort, sock)
		sock.Close()
	}
	s.sockets = left
}

func (s *Supervisor) isHeld(sock *fdpass.Socket) bool {
	return slices.ContainsFunc(s.slots(), func(sl *slot) bool { return len(sl.membersOf(sock)) > 0 })
}

// uncovered lists the addresses that the worker is expected to bind and has
// not: what the generation serves that it is to replace, and what the worker
// had that it replaces.
func (w *worker) uncovered() []*fdpass.Socket {
	s, g := w.master, w.slot.gen
	var missing []*fdpass.Socket
	for _, sock := range s.sockets {
		if !sock.Learned() || !sock.Reachable() {
			continue
		}
		replaced := g == s.next && s.serving != nil && len(s.serving.membersOf(sock)) > 0 && !g.binds(sock)
		if replaced || w.vacant(sock) != nil {
			missing = append(missing, sock)
		}
	}
	return missing
}

// binds tells whether a worker of the generation has bound the address.
func (g *generation) binds(sock *fdpass.Socket) bool {
	return slices.ContainsFunc(g.slots, func(sl *slot) bool { return sl.worker != nil && sl.worker.listensOn(sock) })
}

// patient tells whether there is hope that the worker will bind what is missing:
// servers bind one address after the other.
func (w *worker) patient(now time.Time) bool {
	return now.Sub(w.own.news) < closedFor && len(w.uncovered()) > 0
}

// tellUncovered names the addresses that the old generation alone still serves.
func (s *Supervisor) tellUncovered(g, old *generation) {
	var names []string
	for _, sock := range s.sockets {
		if sock.Learned() && sock.Reachable() && len(g.membersOf(sock)) == 0 && len(old.membersOf(sock)) > 0 {
			names = append(names, sock.Bound())
		}
	}
	if len(names) > 0 {
		s.log.Warn().Int("generation", g.number).Str("addresses", strings.Join(names, ", ")).
			Msgf("the new program does not listen on %s; generation %d serves there until it is gone", strings.Join(names, ", "), old.number)
	}
}
