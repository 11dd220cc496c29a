package machine

import (
	"fmt"
	"time"

	"github.com/moult/moult/supervisor/control/api"
)

func (m *Machine) say(level Level, message string, fields ...Field) {
	m.order(Say{level, message, fields})
}

func (m *Machine) afterFailure() string {
	if m.Phase == phaseLastHope {
		return "upgrade failed; nobody serves, and one more upgrade follows"
	}
	return fmt.Sprintf("upgrade failed; generation %d keeps serving", m.number())
}

// tell writes the one line of a change of the master's own state.
func (m *Machine) tell(from phase, reason, message string, trouble bool) {
	m.Shown = m.number()
	m.order(Tell{Transition{
		Generation: m.Shown, From: from.String(), To: m.Phase.String(), Reason: reason, Took: m.Now.Sub(m.Since), Trouble: trouble,
	}, message})
	m.Since = m.Now
}

func (m *Machine) sayListening(s Socket) {
	fields := []Field{{"socket", s.Name}, {"network", s.Network}, {"address", s.Bound}, {"handover", s.Handover}}
	if s.Learned {
		fields = append(fields, Field{"intercepted", true})
	}
	if s.Why != "" {
		fields = append(fields, Field{"reason", s.Why})
	}
	m.say(Info, "listening", fields...)
}

// passOn forwards a signal that means something to the workers alone.
func (m *Machine) passOn(sig Signal) {
	g := m.serving()
	if g == nil {
		return
	}
	for _, s := range g.Slots {
		if s.Worker != nil && s.Worker.State == serving {
			m.order(Send{Worker: s.Worker.ID, Signal: sig})
		}
	}
}

// busy tells that something starts, drains or waits to be started again.
func (m *Machine) busy() bool {
	g := m.serving()
	return m.Phase != phaseServing || len(m.Gens) > 1 || g == nil || !g.allServing()
}

// trimAfter is how long nothing has to go on before memory is given back.
const trimAfter = time.Second

// trimLater gives memory back once, a while after the last thing that went on.
func (m *Machine) trimLater() {
	switch {
	case m.busy():
		m.Memory = memory{}
	case m.Memory.Done:
	case m.Memory.At.IsZero():
		m.Memory.At = m.Now.Add(trimAfter)
	case !m.Now.Before(m.Memory.At):
		m.Memory = memory{Done: true}
		m.order(Trim{})
	}
}

// Status is what the machine knows. What only the kernel knows (queues,
// connections, memory, executables) is left zero.
func (m *Machine) Status() api.Status {
	status := api.Status{
		Name: m.Cfg.Name, Version: m.Cfg.Version, PID: m.Cfg.PID, State: m.State(), StartedAt: m.Started,
		Sockets: []api.Socket{}, Workers: []api.Worker{}, Wanted: m.Wants, Upgrades: m.Clients.Upgrades,
	}
	if g := m.serving(); g != nil {
		status.Generation = g.Number
	}
	for _, a := range m.Book.Addresses {
		status.Sockets = append(status.Sockets, api.Socket{
			Name: a.Socket.Name, Network: a.Socket.Network, Address: a.Socket.Bound, Backlog: a.Socket.Backlog,
			Handover: a.Socket.Handover, Intercepted: a.Socket.Learned,
		})
	}
	for _, at := range m.places() {
		if w := at.s.Worker; w != nil && w.PID != 0 {
			status.Workers = append(status.Workers, at.status(w))
		}
	}
	return status
}

// State is the phase as the outside knows it.
func (m *Machine) State() string {
	g := m.serving()
	switch {
	case m.Phase >= phaseStopping:
		return api.Stopping
	case m.Phase == phaseServing && g != nil && g.lacksAll():
		return api.Backoff
	}
	return m.Phase.String()
}

// lacksAll tells whether no slot has a process.
func (g *generation) lacksAll() bool {
	for _, s := range g.Slots {
		if s.Worker != nil {
			return false
		}
	}
	return true
}

// outsideStates are the workers' states by the names that the API has.
var outsideStates = [numWorkerStates]string{
	forking: "starting", forkingOld: "starting", forkingEnd: "killing", forkingKill: "killing",
	starting: "starting", serving: "serving", parting: "draining", settling: "draining", quiescing: "draining", draining: "draining",
	terminating: "killing", killing: "killing", clearing: "killing", gone: "killing",
}

func (at place) status(w *worker) api.Worker {
	a := api.Worker{
		PID: w.PID, Generation: at.g.Number, State: outsideStates[w.State], ReadyBy: w.ReadyBy,
		StartedAt: w.Ordered, Restarts: at.s.Restarts, Command: w.Command, Says: w.Says,
	}
	if !w.ReadyAt.IsZero() {
		ready := w.ReadyAt
		a.ReadyAt = &ready
	}
	if !w.Deadline.IsZero() {
		deadline := w.Deadline
		a.Deadline = &deadline
	}
	return a
}
