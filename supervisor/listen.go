package supervisor

import (
	"fmt"
	"syscall"
	"time"

	"github.com/moult/moult/fdpass"
	"github.com/moult/moult/fdpass/intercept"
)

// listen answers listen(2): from here on the socket is a member of its address.
func (w *worker) listen(c *intercept.Call) {
	inode, err := c.Inode()
	if err != nil {
		_ = c.Proceed()
		return
	}
	if m := w.memberBy(inode); m != nil {
		w.listenAgain(c, m)
		return
	}
	bound := w.own.bound[inode]
	if bound != nil && bound.standIn >= 0 {
		fd := bound.standIn
		bound.standIn = -1
		delete(w.own.bound, inode)
		if bound.path != nil {
			w.answer(c, w.adoptPath(c, fd, bound))
		} else {
			w.answer(c, w.adopt(c, fd, bound.binding, bound))
		}
		return
	}
	own, ours := w.take(c)
	defer own.close()
	if !ours {
		_ = c.Proceed()
		return
	}
	switch {
	case own.standIn && bound != nil && bound.chosen.Addr.IsValid():
		w.answer(c, w.listenOnChosen(c, own, bound))
	case own.standIn:
		_ = c.Proceed()
	case own.Network == "unix":
		w.listenPath(c, own)
	case own.Network == "tcp" && own.Local.Port() != 0 && c.SharesNetwork() && w.mayLearn(c, own.Bound(), bound):
		delete(w.own.bound, inode)
		w.answer(c, w.adopt(c, own.keep(), own.Bound(), bound))
	default:
		_ = c.Proceed()
	}
}

// mayLearn keeps an address that did not pass mayBind from being learned, and so
// from being bound for whoever asks: the socket may have been bound by another
// process, with other rights.
func (w *worker) mayLearn(c *intercept.Call, b fdpass.Binding, before *boundSocket) bool {
	checked := before != nil && before.binding == b
	return checked || w.master.socketAt(b) != nil || mayBind(c, b)
}

// memberBy finds the member of the slot with this inode.
func (w *worker) memberBy(inode uint64) *fdpass.Member {
	for _, m := range w.slot.members {
		if m.Inode() == inode {
			return m
		}
	}
	return nil
}

// listenAgain is for a socket that is a member already: one that was handed to
// the worker, that it has listened on before, or that it had shut down.
func (w *worker) listenAgain(c *intercept.Call, m *fdpass.Member) {
	if _, has := w.own.claimed[m]; !has {
		w.has(m, claim{inherited: true})
	}
	err := m.Socket().Resume(m, c.Backlog)
	if err == nil {
		w.master.steerTo(m.Socket(), w.slot.gen)
	}
	w.answer(c, err)
}

// adopt makes a member of a socket; fd is taken over. before is what was known
// of it since bind, nil for nothing.
func (w *worker) adopt(c *intercept.Call, fd int, b fdpass.Binding, before *boundSocket) error {
	s := w.master
	sock := s.socketAt(b)
	fresh := sock == nil
	reusePort := before != nil && before.reusePort
	switch {
	case len(w.slot.members) >= maxOwnSockets:
		_ = syscall.Close(fd)
		return syscall.ENOBUFS
	case fresh:
		sock = fdpass.Learn(b, s.options())
	case !reusePort && w.listensOn(sock):
		_ = syscall.Close(fd)
		return syscall.EADDRINUSE
	}
	m, err := sock.Adopt(fd, w.slot.gen.key, c.Backlog)
	if err != nil {
		w.explain(err, b)
		return err
	}
	if fresh {
		if before != nil && before.binding.Addr.Port() == 0 {
			s.anyPort[sock] = before.binding
		}
		s.learned(sock)
		w.mustSteer(sock)
	}
	w.hold(m, claim{})
	s.steerTo(sock, w.slot.gen)
	return nil
}

// mustSteer keeps to --handover steer.
func (w *worker) mustSteer(sock *fdpass.Socket) {
	if how, why := sock.How(); w.master.cfg.MustSteer && how == fdpass.Shared {
		w.bypassed(fmt.Sprintf("cannot steer connections on %s: %s; --handover auto shares the socket instead", sock.Bound(), why))
	}
}

// learned adds an address that a worker has bound.
func (s *Supervisor) learned(sock *fdpass.Socket) {
	s.sockets = append(s.sockets, sock)
	s.logSocket(sock)
}

// hold gives a member to the worker's slot.
func (w *worker) hold(m *fdpass.Member, how claim) {
	w.slot.members = append(w.slot.members, m)
	w.has(m, how)
}

// has notes that the worker has a member of its slot now.
func (w *worker) has(m *fdpass.Member, how claim) {
	w.own.claimed[m] = how
	w.own.watched = time.Now()
	if m.Socket().IsStream() {
		w.own.news = w.own.watched
	}
	if w.state == starting {
		w.ready.check(m)
		w.pollSoon(time.Now())
	} else {
		w.watchClosed()
	}
}

// steerTo follows a new member: the serving generation's takes part at once, as
// does one of an address that nobody serves. The next generation's waits.
func (s *Supervisor) steerTo(sock *fdpass.Socket, g *generation) {
	if g != s.serving && sock.Served() {
		return
	}
	if err := steerOn(sock, g); err != nil {
		s.log.Error().Err(err).Msg("cannot steer")
	}
}
