package machine

import (
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/moult/moult/supervisor/control/api"
)

// MaxWorkers is how many workers a generation may have; one steering program
// names them all.
const MaxWorkers = 250

// clients are those who wait for something that they have asked for, and what
// has become of upgrades.
type clients struct {
	Upgrade  []OpID // wait for the next upgrade to begin
	Stop     []OpID // wait for the end
	Scale    []OpID // wait for the right number of workers
	Upgrades api.Upgrades
	Rollback []OpID // their program is looked at
}

// clerk is the machine where it has to do with clients.
type clerk struct{ *Machine }

func (m clerk) inform(ops []OpID, last bool, e api.Event) {
	e.At = m.Now
	for _, op := range ops {
		m.order(Inform{Op: op, Event: e, Last: last})
	}
}

// asked takes an operation on, or says why it makes no sense now.
func (m clerk) asked(e Asked) {
	if m.Phase >= phaseStopping && e.Operation.Kind != api.OpStop {
		m.order(TurnDown{e.Op, "the master is stopping"})
		return
	}
	switch e.Operation.Kind {
	case api.OpUpgrade:
		m.order(Accept{e.Op})
		m.Clients.Upgrade = append(m.Clients.Upgrade, e.Op)
		m.happen(evUpgrade, "asked")
	case api.OpRollback:
		m.askRollback(e.Op)
	case api.OpStop:
		m.askStop(e)
	case api.OpScale:
		m.askScale(e)
	default:
		m.order(TurnDown{e.Op, fmt.Sprintf("cannot do %q", e.Operation.Kind)})
	}
}

// askRollback is an upgrade to the program that served before.
func (m clerk) askRollback(op OpID) {
	switch {
	case m.Phase != phaseServing:
		m.order(TurnDown{op, "an upgrade is under way; ask again when it is over"})
	case m.Previous == 0:
		m.order(TurnDown{op, "cannot roll back: no program has served before this one"})
	default:
		m.Clients.Rollback = append(m.Clients.Rollback, op)
		m.order(CheckProgram{op, m.Previous})
	}
}

func (m clerk) programChecked(e ProgramChecked) {
	i := slices.Index(m.Clients.Rollback, e.Op)
	if i < 0 {
		return
	}
	m.Clients.Rollback = slices.Delete(m.Clients.Rollback, i, i+1)
	switch {
	case e.Err != "":
		m.order(TurnDown{e.Op, "cannot roll back: " + e.Err})
	case m.Phase != phaseServing || e.Program != m.Previous:
		m.order(TurnDown{e.Op, "an upgrade is under way; ask again when it is over"})
	default:
		m.order(Accept{e.Op})
		m.Clients.Upgrade = append(m.Clients.Upgrade, e.Op)
		m.Rollback = e.Program
		m.happen(evUpgrade, "rollback")
	}
}

func (m clerk) askStop(e Asked) {
	m.order(Accept{e.Op})
	m.Clients.Stop = append(m.Clients.Stop, e.Op)
	m.inform([]OpID{e.Op}, false, api.Event{Event: api.EventDraining, From: m.number()})
	switch {
	case e.Operation.Now:
		m.happen(evStopNow, "asked")
	case m.Phase < phaseStopping:
		m.happen(evStop, "asked")
	}
}

func (m clerk) stopAsked(e StopAsked) {
	if e.Now {
		m.happen(evStopNow, e.Reason)
		return
	}
	m.happen(evStop, e.Reason)
}

func (m clerk) askScale(e Asked) {
	if n := e.Operation.Workers; n < 1 || n > MaxWorkers {
		m.order(TurnDown{e.Op, fmt.Sprintf("cannot have %d workers: choose 1 to %d", n, MaxWorkers)})
		return
	}
	m.order(Accept{e.Op})
	m.Clients.Scale = append(m.Clients.Scale, e.Op)
	for m.Wants < e.Operation.Workers {
		staffing(m).scale(+1)
	}
	for m.Wants > e.Operation.Workers {
		staffing(m).scale(-1)
	}
}

// scaled ends the operations that wait for the right number of workers.
func (m clerk) scaled() {
	g := m.serving()
	if len(m.Clients.Scale) > 0 && m.Phase == phaseServing && g != nil && len(g.Slots) == m.Wants && g.allServing() {
		m.inform(m.Clients.Scale, true, api.Event{Event: api.EventDone})
		m.Clients.Scale = nil
	}
}

func (c *clients) scaleFails(m *Machine, reason string) {
	clerk{m}.inform(c.Scale, true, api.Event{Event: api.EventFailed, Reason: "cannot add a worker: " + reason})
	c.Scale = nil
}

// upgradeStarts has those who asked wait for this upgrade.
func (c *clients) upgradeStarts(g *generation) {
	g.Asked, c.Upgrade = c.Upgrade, nil
}

// starts tells that all workers of an upgrade run.
func (c *clients) starts(m *Machine, g *generation) {
	if len(g.Asked) == 0 || g.State != coming || g.Told {
		return
	}
	pids := g.pids()
	if len(pids) < len(g.Slots) {
		return
	}
	g.Told = true
	clerk{m}.inform(g.Asked, false, api.Event{Event: api.EventStarting, From: m.number(), To: g.Number, PIDs: pids})
}

func (g *generation) pids() []int {
	var pids []int
	for _, s := range g.Slots {
		if s.Worker != nil && s.Worker.PID != 0 {
			pids = append(pids, s.Worker.PID)
		}
	}
	return pids
}

// upgradeDone counts a success; its drain goes on.
func (c *clients) upgradeDone(m *Machine, g, old *generation) {
	result := api.OK
	c.Upgrades.Succeeded++
	if g.Rolled {
		result = api.RolledBack
		c.Upgrades.RolledBack++
	}
	c.Upgrades.Last = &api.Upgrade{Result: result, From: old.Number, To: g.Number, At: m.Now, ReadyMS: milliseconds(m.Now.Sub(g.Began))}
	old.Asked, g.Asked = g.Asked, nil
	old.Record, old.Drains = c.Upgrades.Last, m.Now
	clerk{m}.inform(old.Asked, false, api.Event{Event: api.EventReady, From: old.Number, To: g.Number, PIDs: g.pids()})
	clerk{m}.inform(old.Asked, false, api.Event{Event: api.EventDraining, From: old.Number, To: g.Number})
}

// drained ends the upgrade that replaced a generation. The record is copied:
// somebody may be reading the one that is out.
func (c *clients) drained(m *Machine, old *generation) {
	if old.Record == nil {
		return
	}
	took := milliseconds(m.Now.Sub(old.Drains))
	record := *old.Record
	record.DrainMS = &took
	if c.Upgrades.Last == old.Record {
		c.Upgrades.Last = &record
	}
	clerk{m}.inform(old.Asked, true, api.Event{Event: api.EventDone, From: record.From, To: record.To})
}

// upgradeFails counts a failure and says why.
func (c *clients) upgradeFails(m *Machine, g *generation, reason string) {
	from := m.serving().Number
	c.Upgrades.Failed++
	c.Upgrades.Last = &api.Upgrade{Result: api.Failed, Reason: reason, From: from, To: g.Number, At: m.Now, ReadyMS: milliseconds(m.Now.Sub(g.Began))}
	clerk{m}.inform(g.Asked, true, api.Event{Event: api.EventFailed, From: from, To: g.Number, Reason: reason, ExitStatus: g.Ended})
	g.Asked = nil
}

// stopWaiting tells those who wait for an upgrade that none follows any more.
func (c *clients) stopWaiting(m *Machine) {
	why := api.Event{Event: api.EventFailed, Reason: "the master was asked to stop"}
	clerk{m}.inform(c.Upgrade, true, why)
	clerk{m}.inform(c.Scale, true, why)
	for _, op := range c.Rollback {
		m.order(TurnDown{op, "the master is stopping"})
	}
	c.Upgrade, c.Scale, c.Rollback = nil, nil, nil
	if g := m.next(); g != nil {
		clerk{m}.inform(g.Asked, true, why)
		g.Asked = nil
	}
}

// endStop tells those who asked for the end that it has come.
func (c *clients) endStop(m *Machine) {
	clerk{m}.inform(c.Stop, true, api.Event{Event: api.EventDone, From: m.Shown})
	c.Stop = nil
}

// milliseconds is how the API writes durations.
func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func itoa(n int) string { return strconv.Itoa(n) }
