package supervisor

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/moult/moult/fdpass"
	"github.com/moult/moult/supervisor/observe"
)

// readiness is what is known of a worker on its way to being ready.
type readiness struct {
	how      ReadyHow
	notified bool   // READY=1 has come
	status   string // the last STATUS=
	by       string // what made it ready, once it is
	at       time.Time
	failed   string // why it will not be
	socket   *notifySocket
	checks   []*acceptCheck
}

// open prepares a worker's readiness and returns the variables for it.
func (r *readiness) open(w *worker) ([]string, error) {
	r.how = w.master.cfg.Ready
	for _, m := range w.slot.handed() {
		r.check(m)
	}
	var err error
	if r.socket, err = w.master.host.notify(w); err != nil {
		return nil, err
	}
	return r.socket.environ(), nil
}

// check has the worker seen accepting on one more member before it is ready. Of
// one that has stream sockets, those alone count: the datagram sockets of a
// resolver come and go.
func (r *readiness) check(m *fdpass.Member) {
	stream := func(c *acceptCheck) bool { return c.member.Socket().IsStream() }
	if m.Socket().IsStream() {
		r.checks = slices.DeleteFunc(r.checks, func(c *acceptCheck) bool { return !stream(c) })
	} else if slices.ContainsFunc(r.checks, stream) {
		return
	}
	if !slices.ContainsFunc(r.checks, func(c *acceptCheck) bool { return c.member == m }) {
		r.checks = append(r.checks, &acceptCheck{member: m})
	}
}

// drop forgets a member that the worker does not have any more.
func (r *readiness) drop(m *fdpass.Member) {
	r.checks = slices.DeleteFunc(r.checks, func(c *acceptCheck) bool {
		if c.member == m {
			c.close()
		}
		return c.member == m
	})
}

func (r *readiness) close() {
	r.socket.close()
	r.socket = nil
	r.closeProbes()
}

func (r *readiness) closeProbes() {
	for _, c := range r.checks {
		c.close()
	}
}

// acceptCheck finds out whether the worker accepts on one member.
type acceptCheck struct {
	member *fdpass.Member
	seen   bool
	hidden bool // /proc does not tell
	probe  *fdpass.Probe
}

func (c *acceptCheck) close() {
	if c.probe != nil {
		c.probe.Close()
		c.probe = nil
	}
}

// probeAfter is how long /proc gets to tell before a connection asks instead:
// a worker that has only just been forked shows nothing yet.
const probeAfter = 100 * time.Millisecond

// lookAccepting asks /proc once for all members that the worker has not been seen
// accepting on: one that has bound a thousand has them all in its one table.
func (w *worker) lookAccepting(now time.Time) {
	var unseen []*acceptCheck
	var inodes []uint64
	for _, c := range w.ready.checks {
		if !c.seen {
			unseen, inodes = append(unseen, c), append(inodes, c.member.Inode())
		}
	}
	if len(unseen) == 0 {
		return
	}
	answers := observe.Accepting(w.tree(), inodes)
	for _, c := range unseen {
		c.look(answers[c.member.Inode()], now.Sub(w.forked))
	}
}

// look takes in what /proc says, and where that does not tell, asks the socket
// itself.
func (c *acceptCheck) look(accepting observe.Verdict, age time.Duration) {
	switch accepting {
	case observe.Yes:
		c.seen = true
	case observe.Unknown:
		c.hidden = true
		if age >= probeAfter {
			c.ask()
		}
	}
	if c.seen {
		c.close()
	}
}

// ask sends a connection to this one member through the real address. Once the
// handshake is over it waits in the member's queue; when the queue is empty,
// the worker has accepted it.
func (c *acceptCheck) ask() {
	if c.probe == nil {
		// Where nothing is steered there is no way to ask; the time limit
		// says so in the end.
		c.probe, _ = c.member.Socket().StartProbe(c.member)
		return
	}
	connected, err := c.probe.Connected()
	if err != nil {
		c.close()
		return
	}
	waiting, err := observe.AcceptQueue(c.member.Descriptor())
	c.seen = connected && err == nil && waiting == 0
}

// lookReady asks whether a starting worker is ready by now.
func (w *worker) lookReady(now time.Time) {
	r := &w.ready
	if !w.execDone || w.execErr != nil || w.reaped {
		return
	}
	if r.how == ReadyAlive {
		if now.Sub(w.forked) >= w.master.cfg.ReadyAlive {
			w.becomeReady(ReadyAlive, now)
		}
		return
	}
	w.lookOwn(now)
	if w.state != starting {
		return
	}
	if r.how != ReadyNotify {
		w.lookAccepting(now)
	}
	if by, ok := r.verdict(w.expectsNotify()); ok && !w.patient(now) {
		w.becomeReady(by, now)
	}
}

// expectsNotify tells whether the worker has to say READY=1 as well: others of
// its generation have, or the generation that it is to replace has. One that
// failed has not set an example.
func (w *worker) expectsNotify() bool {
	s, g := w.master, w.slot.gen
	return g.notifies || g == s.next && s.serving != nil && s.serving.notifies
}

// verdict is the rule of --ready.
func (r *readiness) verdict(expectNotify bool) (ReadyHow, bool) {
	accepting := len(r.checks) > 0
	hidden := false
	for _, c := range r.checks {
		accepting = accepting && c.seen
		hidden = hidden || c.hidden && !c.seen
	}
	switch {
	case r.how == ReadyNotify:
		return ReadyNotify, r.notified
	case r.how == ReadyAccept:
		return ReadyAccept, accepting
	case accepting && r.notified:
		return ReadyNotify, true
	case accepting:
		return ReadyAccept, !expectNotify
	}
	return ReadyNotify, r.notified && (hidden || len(r.checks) == 0)
}

func (w *worker) becomeReady(by ReadyHow, now time.Time) {
	w.ready.by, w.ready.at = string(by), now
	w.happen(wReady, "ready by "+string(by))
}

// noteTimeout writes down why a start took too long, naming what was missing.
func (w *worker) noteTimeout(from workerState) {
	if from != starting || w.asked {
		return
	}
	w.ready.failed = fmt.Sprintf("the worker (pid %d) was not ready within --ready-timeout %s: %s", w.pid, w.master.cfg.ReadyTimeout, w.ready.missing(w.expectsNotify()))
	if w.ready.status != "" {
		w.ready.failed += fmt.Sprintf("; it last said %q", w.ready.status)
	}
}

func (r *readiness) missing(expectNotify bool) string {
	if r.how == ReadyNotify {
		return "it has not sent READY=1"
	}
	var silent, hidden []string
	advice := ""
	for _, c := range r.checks {
		sock := c.member.Socket()
		name := sock.Bound()
		if !sock.Learned() {
			name = sock.Name() + " (" + name + ")"
		}
		switch {
		case c.seen:
		case c.hidden:
			hidden = append(hidden, name)
		default:
			silent = append(silent, name)
			if !c.member.Own() {
				advice = "; does it use the socket that it was given?"
			}
		}
	}
	switch {
	case len(r.checks) == 0:
		return "it has bound no address; a program without one needs --ready alive=D or notify"
	case len(silent) > 0:
		return "nobody accepts on " + strings.Join(silent, ", ") + advice
	case len(hidden) > 0:
		return "it cannot be seen whether it accepts on " + strings.Join(hidden, ", ") + ", and it has not sent READY=1; choose --ready notify or alive=D"
	case expectNotify:
		return "it accepts, but has not sent READY=1 as an earlier generation did; --ready accept does without"
	}
	return "it did not live long enough for --ready alive"
}

// notified takes in what a worker has said.
func (w *worker) notified(n notification) {
	if !w.trusts(n) {
		w.master.log.Debug().Int("generation", w.number).Int("pid", n.pid).Msg("a word from a process that is not of this worker is ignored")
		return
	}
	for key, value := range n.fields {
		w.heard(key, value)
	}
	if w.state == starting {
		w.lookReady(time.Now())
	}
}

func (w *worker) heard(key, value string) {
	switch key {
	case "READY":
		if value == "1" {
			w.ready.notified, w.slot.gen.notifies = true, true
		}
	case "STATUS":
		w.ready.status = value
	case "EXTEND_TIMEOUT_USEC":
		if d, err := time.ParseDuration(value + "us"); err == nil && !w.deadline.IsZero() && (w.state == starting || w.state == draining) {
			w.deadline = latest(w.deadline, time.Now().Add(d))
		}
	}
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// trusts tells whether a word comes from the worker's own tree, of which an
// orphan is part by its mark. A sender that has left already, as systemd-notify
// does at once, is known by its uid.
func (w *worker) trusts(n notification) bool {
	switch observe.DescendsFrom(n.pid, w.pid) {
	case observe.Yes:
		return true
	case observe.No:
		return markOf(n.pid) == w.mark
	}
	return n.uid == 0 || n.uid == os.Geteuid() || w.credential != nil && n.uid == w.credential.UID
}
