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
	closedAfter = 2 * time.Second        // without anybody who has it
)

// lookOwn is for a worker on its way to being ready.
func (w *worker) lookOwn(now time.Time) {
	if !w.master.cfg.Intercept || now.Sub(w.own.looked) < closedEvery {
		return
	}
	w.own.looked = now
	w.lookClosed(closedAfter)
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
	if !w.master.cfg.Intercept || w.state != serving {
		return
	}
	now := time.Now()
	if now.Sub(w.own.watched) < closedFor {
		w.poll = now.Add(closedEvery)
	}
	if expected := w.expected(); now.Before(expected) && w.hasVacant() {
		w.poll = earlier(w.poll, expected)
	}
}

// lookAgain is for when it matters what a worker still has: a new generation
// would be given time to bind what the old one has closed long ago.
func (s *Supervisor) lookAgain() {
	for _, w := range s.workers() {
		w.own.watched = time.Now()
		w.watchClosed()
	}
}

// expected is until when a worker may still bind what the one before it had.
func (w *worker) expected() time.Time { return w.forked.Add(w.master.cfg.ReadyTimeout) }

func (w *worker) hasVacant() bool {
	return slices.ContainsFunc(w.slot.members, w.isVacant)
}

// isVacant tells whether a member waits for the worker to bind its address.
func (w *worker) isVacant(m *fdpass.Member) bool {
	_, has := w.own.claimed[m]
	return !has && m.Own()
}

// lookClosed drops members that no process of the worker has had for so long.
// Between two processes a socket is in nobody's hands for a moment: it is sent
// to a child that is not there yet to take it.
func (w *worker) lookClosed(after time.Duration) {
	w.dropConnected()
	if len(w.own.claimed) == 0 {
		return
	}
	held, complete := observe.Inodes(w.tree())
	if !complete || w.reaped {
		return
	}
	now := time.Now()
	for _, m := range slices.Clone(w.slot.members) {
		if _, has := w.own.claimed[m]; !has {
			continue
		}
		_, holds := held[m.Inode()]
		missed, before := w.own.missed[m]
		switch {
		case !m.Socket().Listening(m) && m.Own():
			w.dropClosed(m) // by shutdown(2)
		case holds:
			delete(w.own.missed, m)
		case !before:
			w.own.missed[m] = now
		case now.Sub(missed) >= after:
			w.dropClosed(m)
		}
	}
}

// dropClosedAt looks twice at once, before the worker binds an address again.
func (w *worker) dropClosedAt(b fdpass.Binding) {
	w.dropClosedOn(w.master.socketAt(b))
}

func (w *worker) dropClosedOn(sock *fdpass.Socket) {
	if sock != nil && w.listensOn(sock) {
		w.lookClosed(0)
		if len(w.own.missed) > 0 {
			w.lookClosed(0)
		}
	}
}

// dropClosed lets go of a member that the worker does not have any more. One
// that it has inherited waits for the worker's next try.
func (w *worker) dropClosed(m *fdpass.Member) {
	how := w.own.claimed[m]
	delete(w.own.claimed, m)
	delete(w.own.missed, m)
	if !m.Own() {
		return
	}
	w.ready.drop(m)
	if !how.inherited || w.state != starting {
		w.letGoOf(m)
	}
}

func (w *worker) letGoOf(m *fdpass.Member) {
	w.slot.members = slices.DeleteFunc(slices.Clone(w.slot.members), func(x *fdpass.Member) bool { return x == m })
	w.ready.drop(m)
	m.Socket().Leave(m)
	w.master.dropUnused()
	if w.slot.gen == w.master.serving {
		w.master.resteer()
	}
}

// dropVacant lets go of what an earlier worker had bound and this one has not in
// all its time.
func (w *worker) dropVacant(now time.Time) {
	if now.Before(w.expected()) {
		return
	}
	for _, m := range slices.Clone(w.slot.members) {
		if !w.isVacant(m) {
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
	for _, w := range s.workers() {
		for _, b := range w.own.bound {
			if b.path == sock {
				return true // about to listen, under a name that is the socket's
			}
		}
	}
	return slices.ContainsFunc(s.slots(), func(sl *slot) bool {
		return slices.ContainsFunc(sl.members, func(m *fdpass.Member) bool { return m.Socket() == sock })
	})
}

// uncovered lists the addresses that the generation serves which the worker's is
// to replace, and that this one has not bound yet.
func (w *worker) uncovered() []string {
	s, g := w.master, w.slot.gen
	var missing []string
	if g != s.next || s.serving == nil {
		return nil
	}
	for _, sock := range s.sockets {
		if !sock.IsStream() && w.hasStream() {
			continue // datagram sockets beside those may be a resolver's
		}
		if sock.Learned() && sock.Reachable() && len(s.serving.membersOf(sock)) > 0 && !g.binds(sock) {
			missing = append(missing, sock.Bound())
		}
	}
	return missing
}

func (w *worker) hasStream() bool {
	return slices.ContainsFunc(w.slot.members, func(m *fdpass.Member) bool { return m.Socket().IsStream() })
}

// binds tells whether a worker of the generation has bound the address.
func (g *generation) binds(sock *fdpass.Socket) bool {
	return slices.ContainsFunc(g.slots, func(sl *slot) bool { return sl.worker != nil && sl.worker.listensOn(sock) })
}

// patient tells whether there is hope that the worker will bind what is missing:
// servers bind one address after the other, some of them late. One that says
// READY=1 has no more to come.
func (w *worker) patient(now time.Time) bool {
	if w.ready.notified || len(w.slot.members) == 0 {
		return false
	}
	limit := w.master.cfg.ReadyTimeout
	until := earlier(w.own.news.Add(limit/2), w.forked.Add(limit*9/10))
	missing := w.uncovered()
	if len(missing) == 0 || !now.Before(until) {
		return false
	}
	if !w.own.waited {
		w.own.waited = true
		w.master.log.Info().Int("generation", w.number).Int("pid", w.pid).Str("addresses", strings.Join(missing, ", ")).Str("limit", rounded(time.Until(until))).
			Msg("the worker accepts; it is given time to listen on what the old generation serves, too")
	}
	return true
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
