package supervisor

import (
	"slices"
	"time"

	"github.com/moult/moult/fdpass"
	"github.com/moult/moult/supervisor/observe"
)

// drain is what is known of a worker on its way out.
type drain struct {
	began   time.Time     // of settling
	settled time.Duration // what settling took of --drain-timeout
	until   time.Time     // the end of draining

	barrier    bool // the switch has reached every CPU
	handshakes map[observe.Peer]struct{}
	patience   time.Time // for handshakes
	conns      *leftover
	answers    time.Time // until then answers to datagrams may be on their way
}

// left is what settling has left of the drain timeout.
func (d *drain) left(timeout time.Duration) time.Duration {
	return max(timeout-d.settled, 0)
}

// handshakePatience is for how long a handshake that was under way at the
// switch is waited for: a client's second and third SYN come 1 s and 3 s after
// the first, what takes longer is not a client any more.
const handshakePatience = 3 * time.Second

// beginSettling starts when the worker gets nothing new any more: handshakes
// that had begun end in its queue, and it accepts until that is empty.
func (w *worker) beginSettling() {
	w.drain.began = time.Now()
	w.deadline = w.drain.began.Add(w.master.cfg.DrainTimeout)
	if !w.hasOwnQueue() {
		w.happen(wEmpty, "")
		return
	}
	go func() {
		fdpass.Barrier()
		w.master.send(w.crossBarrier)
	}()
}

func (w *worker) hasOwnQueue() bool {
	for _, m := range w.slot.members {
		if w.master.ownQueue(m) {
			return true
		}
	}
	return false
}

func (w *worker) crossBarrier() {
	if w.state != settling {
		return
	}
	now := time.Now()
	w.drain.barrier = true
	w.drain.patience = now.Add(handshakePatience)
	w.drain.handshakes = map[observe.Peer]struct{}{}
	// Where the kernel does not tell, the queue alone has to do.
	peers, _ := observe.Handshakes(w.ports())
	for _, p := range peers {
		w.drain.handshakes[p] = struct{}{}
	}
	w.lookSettled(now)
	w.pollSoon(now)
}

// ports lists the TCP ports on which the worker alone accepted.
func (w *worker) ports() []uint16 {
	var ports []uint16
	for _, m := range w.slot.members {
		if w.master.ownSocket(m) && m.Socket().Port() != 0 {
			ports = append(ports, uint16(m.Socket().Port()))
		}
	}
	return ports
}

func (w *worker) lookSettled(now time.Time) {
	if !w.drain.barrier {
		return
	}
	if !w.handshakesOver(now) || w.master.queued(w.slot) > 0 {
		return
	}
	w.drain.settled = now.Sub(w.drain.began)
	w.happen(wEmpty, "")
}

// handshakesOver follows the handshakes of the moment of the switch. A peer
// leaves SYN_RECV only when its connection is in the queue, so that an empty
// queue afterwards means that all have been accepted.
func (w *worker) handshakesOver(now time.Time) bool {
	d := &w.drain
	if len(d.handshakes) == 0 {
		return true
	}
	peers, err := observe.Handshakes(w.ports())
	if err != nil {
		d.handshakes = nil
		return true
	}
	still := map[observe.Peer]struct{}{}
	for _, p := range peers {
		if _, began := d.handshakes[p]; began {
			still[p] = struct{}{}
		}
	}
	d.handshakes = still
	if len(still) > 0 && !now.Before(d.patience) {
		w.master.log.Info().Int("generation", w.number).Int("connections", len(still)).Msg("handshakes that do not end are given up")
		d.handshakes = nil
	}
	return len(d.handshakes) == 0
}

// beginQuiescing leaves the connections to end by themselves.
func (w *worker) beginQuiescing() {
	now := time.Now()
	if w.drain.settled == 0 {
		w.drain.settled = now.Sub(w.drain.began)
	}
	quiesce := w.master.cfg.Quiesce
	if quiesce == 0 || !slices.ContainsFunc(w.slot.members, w.master.ownSocket) {
		w.happen(wEmpty, "")
		return
	}
	w.deadline = now.Add(quiesce)
	if w.servesDatagrams() {
		w.drain.answers = now.Add(min(quiesce, datagramGrace))
	}
	w.drain.conns = newLeftover(w)
	w.lookQuiet(now)
	w.pollSoon(now)
}

// datagramGrace is for the answers to what a worker has read last: nothing shows
// whether any are on their way.
const datagramGrace = 500 * time.Millisecond

func (w *worker) servesDatagrams() bool {
	return slices.ContainsFunc(w.slot.members, func(m *fdpass.Member) bool {
		return !m.Socket().IsStream() && w.master.ownQueue(m)
	})
}

// watchesListeners tells whether it matters when a worker that drains closes its
// listeners: at the end of all, or where nobody else serves an address.
func (w *worker) watchesListeners() bool {
	if w.master.phase == phaseStopping {
		return !w.master.released
	}
	return slices.ContainsFunc(w.slot.members, func(m *fdpass.Member) bool {
		return m.Own() && m.Socket().Serving(m)
	})
}

func (w *worker) lookQuiet(now time.Time) {
	if w.state == quiescing && !now.Before(w.drain.answers) && w.drain.conns.over(now) {
		w.happen(wEmpty, "")
	}
}

// beginDraining tells the worker to finish and leave.
func (w *worker) beginDraining(limit time.Duration) {
	w.drain.conns = nil
	w.drained = true
	w.signal(w.master.cfg.DrainSignal)
	now := time.Now()
	w.drain.until = now.Add(limit)
	w.deadline = w.drain.until
	if w.watchesListeners() {
		w.pollSoon(now)
	}
	if n := w.master.queued(w.slot); n > 0 {
		w.master.log.Warn().Int("generation", w.number).Int("pid", w.pid).Int("connections", n).Msg("told to leave although connections wait in its queue")
	}
}

// wakeAt is when the worker has to be looked at next.
func (w *worker) wakeAt() time.Time {
	if w.deadline.IsZero() {
		return w.poll
	}
	return earlier(w.deadline, w.poll)
}

// pollSoon plans the next look: soon after a change, then at a fraction of the
// time that has passed, so that looking costs little and comes late by little.
func (w *worker) pollSoon(now time.Time) {
	const first, last, fraction = time.Millisecond, 100 * time.Millisecond, 16
	pace := min(max(now.Sub(w.polledSince())/fraction, first), last)
	w.poll = now.Add(max(pace, w.pace))
}

func (w *worker) polledSince() time.Time {
	if w.state == starting {
		return w.forked
	}
	return w.since
}

// look does what is due for one worker.
func (w *worker) look(now time.Time) {
	if !w.poll.IsZero() && !now.Before(w.poll) {
		w.poll = time.Time{}
		state := w.state
		w.lookAtState(now)
		switch {
		case w.state != state, state == draining && !w.watchesListeners():
		case state == serving:
			w.watchClosed()
		default:
			w.pollSoon(time.Now())
		}
	}
	if !w.deadline.IsZero() && !now.Before(w.deadline) {
		w.deadline = time.Time{}
		w.happen(wDeadline, "")
	}
}

// maxPace bounds what a slow machine makes of a look's cost.
const maxPace = 500 * time.Millisecond

// lookAtState also measures what the look costs: one that is expensive (ten
// thousand connections) is taken less often. A start is worth looking at half of
// the time, since everybody waits for it.
func (w *worker) lookAtState(now time.Time) {
	share := 5
	if w.state == starting {
		share = 1
	}
	switch w.state {
	case starting:
		w.lookReady(now)
	case settling:
		w.lookSettled(now)
	case quiescing:
		w.lookQuiet(now)
	case serving:
		w.lookClosed(closedAfter)
		w.dropVacant(now)
	case draining:
		w.master.letGo()
		w.lookClosed(closedEvery)
	case clearing:
		w.checkCleared()
	default:
		return
	}
	w.pace = min(time.Duration(share)*time.Since(now), maxPace)
}
