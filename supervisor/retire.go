package supervisor

import (
	"fmt"
	"slices"
	"time"

	"github.com/moult/moult/fdpass"
	"github.com/moult/moult/supervisor/observe"
)

// retire lets a generation drain that gets nothing new any more.
func (s *Supervisor) retire(g *generation) {
	g.retired = true
	s.old = append(s.old, g)
	s.watchPaths()
	for _, sl := range g.slots {
		s.retireSlot(sl)
	}
	s.limitDraining()
}

// retireSlot drains one worker. A slot without one is started once more if
// connections wait in its queue: closing it would reset them.
func (s *Supervisor) retireSlot(sl *slot) {
	sl.startAt = time.Time{}
	switch {
	case sl.worker != nil:
		sl.worker.happen(wRetire, "")
	case !sl.waits:
		s.emptyQueue(sl)
	}
}

// emptyQueue starts a dead worker's program on its members once more, to serve
// what waits there, or gives them back.
func (s *Supervisor) emptyQueue(sl *slot) {
	waiting := s.queued(sl)
	if waiting == 0 || sl.gen.failed || sl.sharedWithLiving() {
		s.release(sl)
		return
	}
	if sl.gen.hurried {
		sl.emptied = true // there is no time for it any more
	}
	if sl.emptied {
		s.log.Error().Int("generation", sl.gen.number).Int("connections", waiting).Msg("lost: they waited for a worker that died again")
		s.release(sl)
		return
	}
	sl.emptied = true
	s.log.Warn().Int("generation", sl.gen.number).Int("connections", waiting).Msg("started once more, to serve what waits for it")
	s.startWorker(sl)
	if sl.worker != nil {
		sl.worker.happen(wRetire, "")
	}
}

// sharedWithLiving tells whether another worker of the generation accepts from
// the same socket.
func (sl *slot) sharedWithLiving() bool {
	for _, other := range sl.gen.slots {
		if other == sl || other.worker == nil {
			continue
		}
		if slices.ContainsFunc(sl.members, func(m *fdpass.Member) bool { return slices.Contains(other.members, m) }) {
			return true
		}
	}
	return false
}

// queued counts the connections that wait in a slot's own sockets.
func (s *Supervisor) queued(sl *slot) int {
	n := 0
	for _, m := range sl.members {
		if !s.ownQueue(m) {
			continue
		}
		if waiting, err := observe.Queue(m.Descriptor()); err == nil {
			n += waiting
		}
	}
	return n
}

// ownQueue tells whether what waits in m waits for this generation alone.
func (s *Supervisor) ownQueue(m *fdpass.Member) bool {
	sock := m.Socket()
	how, _ := sock.How()
	// Where nobody has taken the address over, what waits there is not the last.
	untaken := how != fdpass.Shared && s.phase != phaseStopping && sock.Learned() && sock.Serving(m)
	return !untaken && s.ownSocket(m)
}

// ownSocket tells whether connections that came by m are this generation's.
func (s *Supervisor) ownSocket(m *fdpass.Member) bool {
	sock := m.Socket()
	how, _ := sock.How()
	if !sock.IsStream() && how != fdpass.Steered {
		return false
	}
	return how != fdpass.Shared || s.phase == phaseStopping && !sock.Inherited()
}

// release gives a slot's members back; nothing of it is left.
func (s *Supervisor) release(sl *slot) {
	for _, m := range sl.members {
		sock := m.Socket()
		if waiting, _ := observe.Queue(m.Descriptor()); waiting > 0 && sock.Learned() && sock.Serving(m) && s.phase < phaseStopping {
			s.log.Warn().Int("generation", sl.gen.number).Str("address", sock.Bound()).Int("connections", waiting).Msg("lost: they waited where the new program does not listen")
		}
		sock.Leave(m)
	}
	sl.members = nil
	s.dropUnused()
}

// limitDraining ends the oldest generations early where too many drain.
func (s *Supervisor) limitDraining() {
	for _, g := range s.old[:max(len(s.old)-s.cfg.MaxDraining, 0)] {
		if g.hurried {
			continue
		}
		g.hurried = true
		for _, sl := range g.slots {
			if sl.worker != nil {
				sl.worker.happen(wEnd, fmt.Sprintf("more than %d generations drain", s.cfg.MaxDraining))
			}
		}
	}
}

// forgetGone drops slots and generations of which nothing is left.
func (s *Supervisor) forgetGone() {
	var left []*generation
	for _, g := range s.old {
		g.dropEmpty(false)
		if len(g.slots) > 0 {
			left = append(left, g)
			continue
		}
		s.log.Info().Int("generation", g.number).Msg("generation gone")
		s.drained(g)
		g.program.close()
		if g.kept != s.previous {
			g.kept.close()
		}
	}
	s.old = left
	if s.serving != nil {
		s.serving.dropEmpty(true)
	}
	if len(s.old) == 0 && !s.serving.shrinks() {
		s.pathWatch.close()
		s.pathWatch = nil
	}
}

// shrinks tells whether a worker of the generation was taken away and drains.
func (g *generation) shrinks() bool {
	return g != nil && slices.ContainsFunc(g.slots, func(sl *slot) bool { return sl.leaving })
}

// dropEmpty keeps slots that have a process or wait for one; a serving
// generation drops only those that were taken away.
func (g *generation) dropEmpty(servingOn bool) {
	var left []*slot
	for _, sl := range g.slots {
		if sl.worker != nil || sl.members != nil || servingOn && !sl.leaving {
			left = append(left, sl)
		}
	}
	g.slots = left
}

// stopAll drains everything: what is queued is served, later clients are
// refused.
func (s *Supervisor) stopAll() {
	s.stopWaiting()
	s.dropNext("asked to stop")
	for _, sock := range s.sockets {
		if err := sock.Refuse(); err != nil {
			s.log.Warn().Err(err).Msg("cannot turn new clients away before the end")
		}
	}
	g := s.serving
	if g == nil {
		return
	}
	s.serving = nil
	g.retired = true
	s.old = append(s.old, g)
	for _, sl := range g.slots {
		s.retireSlot(sl)
	}
}

// letGo closes the sockets before the last worker is gone, when the workers have
// closed theirs: from then on clients are refused, while requests in hand are
// finished. As long as a worker still has its listener, a client who came would
// be let in and then cut, so that new ones are turned away until then.
func (s *Supervisor) letGo() {
	if s.phase != phaseStopping || s.released || !s.allDrain() || s.listenersHeld() {
		return
	}
	s.released = true
	for _, sl := range s.slots() {
		sl.members = nil
	}
	for _, sock := range s.sockets {
		sock.Close()
	}
}

func (s *Supervisor) allDrain() bool {
	for _, w := range s.workers() {
		if w.state < draining {
			return false
		}
	}
	return true
}

// listenersHeld tells whether a worker still has one of our sockets, or may
// have one where that cannot be seen.
func (s *Supervisor) listenersHeld() bool {
	for _, w := range s.workers() {
		held, complete := observe.Inodes(w.tree())
		if !complete {
			return true
		}
		for _, m := range w.slot.members {
			if _, holds := held[m.Inode()]; holds {
				return true
			}
		}
	}
	return false
}

func (s *Supervisor) killAll() {
	s.stopWaiting()
	s.dropNext("asked to end at once")
	if g := s.serving; g != nil {
		s.serving = nil
		g.retired = true
		s.old = append(s.old, g)
	}
	for _, sl := range s.slots() {
		sl.startAt = time.Time{}
		if sl.worker != nil {
			sl.worker.happen(wKill, "asked to end at once")
		} else {
			s.release(sl)
		}
	}
}
