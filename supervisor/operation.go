package supervisor

import (
	"context"
	"fmt"
	"time"

	"github.com/moult/moult/supervisor/control/api"
)

// An operation is something that a client has asked for and hears about until
// it is over. The master never waits for the client: its events fit into the
// channel.
type operation struct {
	api.Operation
	began  time.Time
	events chan api.Event
}

// maxEvents is more than any operation has.
const maxEvents = 8

func (o *operation) tell(e api.Event) {
	e.At = time.Now()
	e.TookMS = milliseconds(e.At.Sub(o.began))
	select {
	case o.events <- e:
	default:
	}
}

// end tells the last event.
func (o *operation) end(e api.Event) {
	o.tell(e)
	close(o.events)
}

type operations []*operation

func (all operations) tell(e api.Event) {
	for _, o := range all {
		o.tell(e)
	}
}

func (all operations) end(e api.Event) {
	for _, o := range all {
		o.end(e)
	}
}

// Begin takes an operation on. Its events come over the channel, which is
// closed after the last; nobody has to read them. The error is an
// *api.Refused where the operation makes no sense now.
func (s *Supervisor) Begin(ctx context.Context, op api.Operation) (<-chan api.Event, error) {
	o := &operation{Operation: op, began: time.Now(), events: make(chan api.Event, maxEvents)}
	var refused error
	if err := s.ask(ctx, func() { refused = s.begin(o) }); err != nil {
		return nil, err
	}
	if refused != nil {
		return nil, refused
	}
	return o.events, nil
}

func (s *Supervisor) begin(o *operation) error {
	if s.phase >= phaseStopping && o.Kind != api.OpStop {
		return &api.Refused{Reason: "the master is stopping"}
	}
	switch o.Kind {
	case api.OpUpgrade:
		s.asked = append(s.asked, o)
		s.happenBecause(evUpgrade, "asked")
	case api.OpRollback:
		return s.beginRollback(o)
	case api.OpStop:
		s.beginStop(o)
	case api.OpScale:
		return s.beginScale(o)
	default:
		return &api.Refused{Reason: fmt.Sprintf("cannot do %q", o.Kind)}
	}
	return nil
}

// beginRollback is an upgrade to the program that served before.
func (s *Supervisor) beginRollback(o *operation) error {
	if s.phase != phaseServing {
		return &api.Refused{Reason: "an upgrade is under way; ask again when it is over"}
	}
	if err := s.previous.usable(); err != nil {
		return &api.Refused{Reason: "cannot roll back: " + err.Error()}
	}
	s.asked = append(s.asked, o)
	s.rollback = s.previous
	s.happenBecause(evUpgrade, "rollback")
	return nil
}

func (s *Supervisor) beginStop(o *operation) {
	s.leaving = append(s.leaving, o)
	o.tell(api.Event{Event: api.EventDraining, From: s.number()})
	switch {
	case o.Now:
		s.happenBecause(evStopNow, "asked")
	case s.phase < phaseStopping:
		s.happenBecause(evStop, "asked")
	}
}

func (s *Supervisor) beginScale(o *operation) error {
	if o.Workers < 1 || o.Workers > MaxWorkers {
		return &api.Refused{Reason: fmt.Sprintf("cannot have %d workers: choose 1 to %d", o.Workers, MaxWorkers)}
	}
	for s.wanted < o.Workers {
		before := s.wanted
		if s.scale(+1); s.wanted == before {
			return &api.Refused{Reason: "cannot add a worker: see the log"}
		}
	}
	for s.wanted > o.Workers {
		s.scale(-1)
	}
	s.scaling = append(s.scaling, o)
	return nil
}

// scaled ends the operations that wait for the right number of workers.
func (s *Supervisor) scaled() {
	if len(s.scaling) > 0 && s.phase == phaseServing && len(s.serving.slots) == s.wanted && s.serving.allServing() {
		s.scaling.end(api.Event{Event: api.EventDone})
		s.scaling = nil
	}
}

// MaxWorkers is how many workers a generation may have; one steering program
// names them all.
const MaxWorkers = 250

// upgradeStarted tells those who wait for this upgrade that it has begun.
func (s *Supervisor) upgradeStarted(g *generation) {
	g.ops, s.asked = s.asked, nil
	g.began = time.Now()
}

func (s *Supervisor) tellStarted(g *generation) {
	var pids []int
	for _, sl := range g.slots {
		if sl.worker != nil && sl.worker.pid != 0 {
			pids = append(pids, sl.worker.pid)
		}
	}
	g.ops.tell(api.Event{Event: api.EventStarting, From: s.number(), To: g.number, PIDs: pids})
}

// upgradeDone counts a success; its drain goes on.
func (s *Supervisor) upgradeDone(g, old *generation) {
	result := api.OK
	s.upgrades.Succeeded++
	if g.kept != nil {
		result = api.RolledBack
		s.upgrades.RolledBack++
	}
	s.upgrades.Last = &api.Upgrade{Result: result, From: old.number, To: g.number, At: time.Now(), ReadyMS: milliseconds(time.Since(g.began))}
	old.ops, g.ops = g.ops, nil
	old.record, old.drains = s.upgrades.Last, time.Now()
	var pids []int
	for _, sl := range g.slots {
		pids = append(pids, sl.worker.pid)
	}
	old.ops.tell(api.Event{Event: api.EventReady, From: old.number, To: g.number, PIDs: pids})
	old.ops.tell(api.Event{Event: api.EventDraining, From: old.number, To: g.number})
}

// drained ends the upgrade that replaced a generation. The record is copied:
// somebody may be reading the one that is out.
func (s *Supervisor) drained(old *generation) {
	if old.record == nil {
		return
	}
	took := milliseconds(time.Since(old.drains))
	record := *old.record
	record.DrainMS = &took
	if s.upgrades.Last == old.record {
		s.upgrades.Last = &record
	}
	old.ops.end(api.Event{Event: api.EventDone, From: record.From, To: record.To})
	old.ops = nil
}

// upgradeFailed counts a failure and says why.
func (s *Supervisor) upgradeFailed(g *generation, reason string) {
	if s.serving == nil {
		return
	}
	s.upgrades.Failed++
	s.upgrades.Last = &api.Upgrade{Result: api.Failed, Reason: reason, From: s.serving.number, To: g.number, At: time.Now(), ReadyMS: milliseconds(time.Since(g.began))}
	g.ops.end(api.Event{Event: api.EventFailed, From: s.serving.number, To: g.number, Reason: reason, ExitStatus: g.ended})
	g.ops = nil
}

// stopWaiting tells those who wait for an upgrade that none follows any more.
func (s *Supervisor) stopWaiting() {
	failed := api.Event{Event: api.EventFailed, Reason: "the master was asked to stop"}
	s.asked.end(failed)
	s.scaling.end(failed)
	s.asked, s.scaling = nil, nil
	if s.next != nil {
		s.next.ops.end(failed)
		s.next.ops = nil
	}
}
