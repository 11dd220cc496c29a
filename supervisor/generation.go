package supervisor

import (
	"errors"
	"slices"
	"time"

	"github.com/moult/moult/fdpass"
	"github.com/moult/moult/supervisor/control/api"
)

// A generation is one start of the program: Config.Workers slots with a worker
// each.
type generation struct {
	number  int
	key     int // names it to Socket.Join; unique where number is not (failed upgrades)
	slots   []*slot
	retired bool // others serve: its workers are not replaced
	failed  bool // it never served: nothing is owed to what waits in its queues

	ops     operations   // who waits for this upgrade, and then for the end of its drain
	began   time.Time    // of the start
	record  *api.Upgrade // the upgrade that replaced this generation
	drains  time.Time    // since when it does
	kept    *keptProgram // what it runs instead of the command's file: it is a rollback
	program *keptProgram // what it runs
	ended   *int         // the status of the worker whose end made the start fail

	notifies bool // a worker of it has sent READY=1
	hurried  bool // was told to end early
}

// A slot is a worker's place in its generation: the members stay when the
// worker goes, and its replacement gets the same.
type slot struct {
	gen      *generation
	members  []*fdpass.Member
	taken    []*fdpass.Member // those of a dead generation's slot
	worker   *worker
	backoff  backoff
	startAt  time.Time // when the replacement is due; zero: none is
	leaving  bool      // retired alone (one worker fewer)
	restarts int
	waits    bool // for a failed start to let go of the members
	emptied  bool // was started once more to serve what waited in its queue
}

// startGeneration begins what ends in evReady or evFailed.
func (s *Supervisor) startGeneration() {
	s.keys++
	g := &generation{number: 1, key: s.keys}
	if s.serving != nil {
		g.number = s.serving.number + 1
	}
	g.kept, s.rollback = s.rollback, nil
	s.next = g
	s.lookAgain()
	s.upgradeStarted(g)
	if err := s.furnish(g); err != nil {
		s.fail(g, err, 1)
		return
	}
	if s.serving == nil {
		// Nobody serves: who connects waits for the first generation.
		if err := s.steer(g); err != nil {
			s.fail(g, err, 1)
			return
		}
	}
	for _, sl := range g.slots {
		if s.next != g {
			return // one of them has failed the generation already
		}
		s.startWorker(sl)
	}
	s.tellStarted(g)
}

// furnish gives every slot its sockets. Where the whole serving generation is
// dead, the new one takes its members over: what waits in their queues is
// served by a program that works.
func (s *Supervisor) furnish(g *generation) error {
	if err := s.refuseForeign(); err != nil {
		return err
	}
	var inherited []*slot
	if s.serving != nil && s.serving.dead(time.Now()) {
		g.key = s.serving.key
		inherited = s.serving.slots
	}
	for i := range s.wanted {
		sl := &slot{gen: g, backoff: backoff{min: s.cfg.RestartMin, max: s.cfg.RestartMax}}
		g.slots = append(g.slots, sl)
		if i < len(inherited) {
			sl.members, inherited[i].members = inherited[i].members, nil
			sl.taken = slices.Clone(sl.members)
			inherited[i].startAt = time.Time{}
			continue
		}
		if err := s.join(sl); err != nil {
			return err
		}
	}
	return nil
}

// takeOverAfter is how far away the next try of a dead generation has to be
// for a new one to take its place: a crash that is mended at once must not wait
// for a start that may hang.
const takeOverAfter = time.Second

// dead tells whether no process of the generation lives, nor will soon: all its
// slots wait to be started again, or were given up.
func (g *generation) dead(now time.Time) bool {
	for _, sl := range g.slots {
		soon := !sl.startAt.IsZero() && sl.startAt.Sub(now) < takeOverAfter
		if sl.worker != nil || sl.members == nil || sl.waits || soon {
			return false
		}
	}
	return true
}

// join gives a slot a socket on each address that the master has opened. On the
// others the worker binds its own.
func (s *Supervisor) join(sl *slot) error {
	for _, sock := range s.sockets {
		if sock.Learned() {
			continue
		}
		m, err := sock.Join(sl.gen.key)
		if err != nil {
			return err
		}
		sl.members = append(sl.members, m)
	}
	return nil
}

// steer sends new connections to the generation's members from now on.
func (s *Supervisor) steer(g *generation) error {
	for _, sock := range s.sockets {
		if err := steerOn(sock, g); err != nil {
			return err
		}
	}
	return nil
}

// steerOn leaves an address alone where the generation has no socket on it:
// others may serve it still.
func steerOn(sock *fdpass.Socket, g *generation) error {
	members := g.membersOf(sock)
	if len(members) == 0 {
		return nil
	}
	return sock.Steer(members)
}

// membersOf lists the members of one socket that new connections may reach. A slot without a worker keeps its place unless others are there to
// take over: a queue that nobody serves is better than none.
func (g *generation) membersOf(sock *fdpass.Socket) []*fdpass.Member {
	var all, staffed []*fdpass.Member
	for _, sl := range g.slots {
		if sl.leaving {
			continue
		}
		for _, m := range sl.membersOf(sock) {
			all = appendNew(all, m)
			if sl.worker != nil && sl.worker.state == serving {
				staffed = appendNew(staffed, m)
			}
		}
	}
	if len(staffed) > 0 {
		return staffed
	}
	return all
}

// membersOf lists the slot's members of one socket: one that the master has made
// where it has opened the address, and any number that the worker has bound.
func (sl *slot) membersOf(sock *fdpass.Socket) []*fdpass.Member {
	var list []*fdpass.Member
	for _, m := range sl.members {
		if m.Socket() == sock && sock.Listening(m) {
			list = append(list, m)
		}
	}
	return list
}

// handed lists the members that a worker is started with: those of addresses
// that the master has opened, in the order of the configuration.
func (sl *slot) handed() []*fdpass.Member {
	var list []*fdpass.Member
	for _, m := range sl.members {
		if !m.Socket().Learned() && !m.Own() {
			list = append(list, m)
		}
	}
	return list
}

func appendNew(list []*fdpass.Member, m *fdpass.Member) []*fdpass.Member {
	if slices.Contains(list, m) {
		return list
	}
	return append(list, m)
}

// workerReady is one worker of the serving generation, or of the next.
func (s *Supervisor) workerReady(w *worker) {
	g := w.slot.gen
	for _, m := range w.slot.members {
		if err := m.Socket().Verify(); err != nil {
			s.log.Warn().Err(err).Msg("cannot follow the group of sockets")
		}
		if err := m.Socket().Relisten(m); err != nil {
			s.log.Warn().Err(err).Msg("cannot restore the length of the queue")
		}
	}
	w.watchClosed()
	switch {
	case g == s.serving:
		s.resteer()
	case g == s.next && g.allServing():
		s.happenReady(g)
	}
}

// happenReady commits to the new generation, in the one place where that is
// done: until new connections go to it, everything can still be taken back.
func (s *Supervisor) happenReady(g *generation) {
	err := s.confirm(g)
	if err == nil {
		s.happen(evReady)
		return
	}
	s.fail(g, err, 1)
}

func (s *Supervisor) confirm(g *generation) error {
	if err := s.refuseForeign(); err != nil {
		return err
	}
	if err := s.steer(g); err != nil {
		if s.serving != nil {
			return errors.Join(err, s.steer(s.serving))
		}
		return err
	}
	return nil
}

func (g *generation) allServing() bool {
	for _, sl := range g.slots {
		if sl.worker == nil || sl.worker.state != serving {
			return false
		}
	}
	return true
}

// promote makes the next generation the serving one.
func (s *Supervisor) promote(from phase) {
	g, old := s.next, s.serving
	s.next, s.serving = nil, g
	s.exit = Exit{}
	if old == nil {
		s.tell(from, "", "serving")
		s.writePIDFile()
	} else {
		s.tell(from, "", "upgraded")
		s.tellUncovered(g, old)
		s.upgradeDone(g, old)
		s.keepPrevious(old)
		s.retire(old)
	}
	s.fitToSize(g)
}

// keepPrevious remembers the program that has served until now, for a rollback.
func (s *Supervisor) keepPrevious(old *generation) {
	if s.previous != nil && s.previous != s.serving.kept {
		s.previous.close()
	}
	s.previous, old.program = old.program, nil
}

// fail ends a start that came to nothing: the generation that served goes on
// as if nothing had been asked.
func (s *Supervisor) fail(g *generation, cause error, code int) {
	if g != s.next {
		return
	}
	if s.serving == nil {
		s.exit = Exit{Code: code, Err: cause}
	}
	s.upgradeFailed(g, cause.Error())
	s.happenBecause(evFailed, cause.Error())
}

// dropNext ends what was started for an upgrade that failed.
func (s *Supervisor) dropNext(reason string) {
	g := s.next
	if g == nil {
		return
	}
	s.next = nil
	g.retired, g.failed = true, true
	s.giveBack(g)
	s.old = append(s.old, g)
	for _, sl := range g.slots {
		sl.startAt = time.Time{}
		if sl.worker != nil {
			sl.worker.happen(wEnd, reason)
		} else {
			s.release(sl)
		}
	}
}

// giveBack returns the members that a generation took over from a dead one.
// They go to the old slots, which are due to be started again as soon as the
// failed worker has let go of them.
func (s *Supervisor) giveBack(g *generation) {
	if s.serving == nil || s.serving.key != g.key {
		return
	}
	for i, sl := range s.serving.slots {
		if i >= len(g.slots) || sl.members != nil {
			continue
		}
		sl.members = g.slots[i].giveBack()
		if w := g.slots[i].worker; w != nil {
			w.heir, sl.waits = sl, true
			continue
		}
		s.restartLater(sl, 0)
	}
}

// giveBack keeps what the slot's own worker has bound beyond.
func (sl *slot) giveBack() []*fdpass.Member {
	back := make([]*fdpass.Member, 0, len(sl.taken))
	var own []*fdpass.Member
	for _, m := range sl.members {
		if slices.Contains(sl.taken, m) {
			back = append(back, m)
		} else {
			own = append(own, m)
		}
	}
	sl.members = own
	return back
}

// resteer follows a change inside the serving generation: a worker that died,
// came back, was added or leaves.
func (s *Supervisor) resteer() {
	if s.serving == nil {
		return
	}
	if err := s.steer(s.serving); err != nil {
		s.log.Error().Err(err).Msg("cannot steer")
	}
}
