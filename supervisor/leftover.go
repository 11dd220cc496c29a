package supervisor

import (
	"time"

	"github.com/moult/moult/fdpass"
	"github.com/moult/moult/supervisor/observe"
)

// leftover follows the connections that a worker has when it gets no new ones
// any more: all that there are on its ports at that moment, less those that
// turn out to be another worker's.
//
// A connection that cannot be attributed counts as the worker's: between
// accept(2) taking it off the queue and its descriptor appearing in /proc it
// belongs to nobody, and this is the moment not to overlook it.
type leftover struct {
	worker *worker
	ports  []uint16
	paths  []string // names that the unix sockets were bound to
	conns  map[observe.Peer]*remaining
	began  bool
}

type remaining struct {
	conn  observe.Conn
	mine  bool // found among the worker's descriptors
	ended bool // was helped along
}

func newLeftover(w *worker) *leftover {
	l := &leftover{worker: w, ports: w.ports(), conns: map[observe.Peer]*remaining{}}
	for _, m := range w.slot.members {
		if how, _ := m.Socket().How(); how == fdpass.Renamed {
			l.paths = append(l.paths, m.Path())
		}
	}
	return l
}

// idleAfter is how long a connection has to be silent after an answer to count
// as idle: shorter pauses are those of a client that is busy elsewhere, and of
// streams.
const idleAfter = time.Second

// over looks once more and tells whether nothing has to be waited for.
func (l *leftover) over(now time.Time) bool {
	if l.unixConnections() > 0 {
		return false
	}
	if !l.refresh() {
		return false
	}
	l.attribute()
	if len(l.conns) == 0 {
		return true
	}
	return l.idleOver(now)
}

func (l *leftover) unixConnections() int {
	n := 0
	for _, path := range l.paths {
		if c, err := observe.UnixConnections(path); err == nil {
			n += c
		}
	}
	return n
}

// refresh drops what has ended. It is false where the kernel does not tell.
func (l *leftover) refresh() bool {
	if len(l.ports) == 0 {
		return true
	}
	all, err := observe.Connections(l.ports, true)
	if err != nil {
		return false
	}
	now := make(map[observe.Peer]*remaining, len(l.conns))
	for _, c := range all {
		key := observe.Peer{Local: c.Local, Remote: c.Remote}
		r := l.conns[key]
		if r == nil {
			if l.began {
				continue // came after: another worker's
			}
			r = &remaining{}
		}
		r.conn = c
		now[key] = r
	}
	l.conns, l.began = now, true
	return true
}

// attribute sorts connections by the descriptors of the processes that hold
// them. Only what is not known yet is looked for.
func (l *leftover) attribute() {
	if !l.unknown() {
		return
	}
	own, _ := observe.Inodes(l.worker.tree())
	for _, r := range l.conns {
		_, r.mine = own[r.conn.Inode]
	}
	if !l.unknown() {
		return
	}
	var others []int
	for _, w := range l.worker.master.workers() {
		if w != l.worker {
			others = append(others, w.tree()...)
		}
	}
	theirs, _ := observe.Inodes(others)
	for key, r := range l.conns {
		if _, other := theirs[r.conn.Inode]; other && !r.mine {
			delete(l.conns, key)
		}
	}
}

func (l *leftover) unknown() bool {
	for _, r := range l.conns {
		if !r.mine {
			return true
		}
	}
	return false
}

// idleOver tells whether all that remains is idle keep-alive connections of a
// server that will end them itself, for which waiting longer changes nothing.
// Where the server is known not to do so it helps them to end.
func (l *leftover) idleOver(now time.Time) bool {
	after := idleAfter
	if l.worker.master.cfg.EndIdle > 0 {
		after = l.worker.master.cfg.EndIdle
	}
	busy := false
	end := map[uint64]*remaining{}
	for _, r := range l.conns {
		switch {
		case !idle(r.conn, after):
			busy = true
		case r.mine && !r.ended:
			end[r.conn.Inode] = r
		}
	}
	if len(end) > 0 && l.worker.helpsIdle() {
		l.help(end)
	}
	return !busy && l.worker.master.habit == habitFinishes
}

// help ends the server's half of idle connections: it reads the client's
// goodbye and closes. No packet leaves before it does.
func (l *leftover) help(end map[uint64]*remaining) {
	for _, r := range end {
		r.ended = true // once: what does not work now will not work later
	}
	inodes := make(map[uint64]struct{}, len(end))
	for inode := range end {
		inodes[inode] = struct{}{}
	}
	n, err := shutdownRead(l.worker.tree(), inodes)
	if err != nil {
		l.worker.master.log.Debug().Err(err).Int("generation", l.worker.number).Msg("cannot end idle connections")
	}
	if n > 0 {
		l.worker.master.log.Info().Int("generation", l.worker.number).Int("connections", n).Msg("idle connections ended")
	}
}

// helpsIdle tells whether idle connections are ended before the drain signal:
// where the user says so, or where the server shows that it will not do it
// itself, because the signal kills it.
func (w *worker) helpsIdle() bool {
	switch cfg := &w.master.cfg; cfg.EndIdle {
	case EndIdleOff:
		return false
	case EndIdleAuto:
		return w.master.habit == habitDies || observe.Handles(w.pid, cfg.DrainSignal) == observe.No
	}
	return true
}

// idle tells whether a connection waits for its client's next request: nothing
// is under way in either direction, and the last that happened was an answer.
//
// The kernel's times have a jiffy's granularity, in which a fast answer and
// the request before it look simultaneous, but so does an answer and the
// request after it. What tells them apart is the acknowledgement: a client
// that says nothing more acknowledges the answer by itself, within the time
// that acknowledgements are delayed. At the start of a connection it does so at
// once; but where only one segment has come in at all, what was sent after it is
// its answer.
func idle(c observe.Conn, after time.Duration) bool {
	const delayedAck = 300 * time.Millisecond
	switch {
	case c.State != observe.Established || c.RecvQ > 0 || c.SendQ > 0 || min(c.LastSent, c.LastRecv) < after:
		return false
	case c.LastSent != c.LastRecv:
		return c.LastSent < c.LastRecv
	case c.DataSegsOut == 0: // both are the time at which the connection began
		return false
	case c.DataSegsIn == 1:
		return true
	}
	return c.LastAck < c.LastSent && c.LastSent-c.LastAck < delayedAck
}
