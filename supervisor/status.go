package supervisor

import (
	"context"
	"errors"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/moult/moult/fdpass"
	"github.com/moult/moult/supervisor/control/api"
	"github.com/moult/moult/supervisor/observe"
)

// errEnded says that the master's loop does not run any more.
var errEnded = errors.New("the master has ended")

// Status tells what the master knows and, because somebody looks, what the
// kernel knows of its workers. The kernel is asked outside of the loop, which
// goes on meanwhile.
func (s *Supervisor) Status(ctx context.Context) (api.Status, error) {
	var status api.Status
	var ports []uint16
	if err := s.ask(ctx, func() {
		status, ports = s.describe(), s.tcpPorts()
		s.trimAt, s.trimmed = time.Time{}, false // looking takes memory
	}); err != nil {
		return api.Status{}, err
	}
	addKernelView(&status, ports)
	return status, nil
}

// State is Status.State alone, for probes: nothing but the master is asked.
func (s *Supervisor) State(ctx context.Context) (state string, err error) {
	err = s.ask(ctx, func() { state = s.state() })
	return state, err
}

// ask runs f in the goroutine that owns the state and waits for it.
func (s *Supervisor) ask(ctx context.Context, f func()) error {
	done := make(chan struct{})
	select {
	case s.events <- func() { f(); close(done) }:
	case <-s.done:
		return errEnded
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-done:
		return nil
	case <-s.done:
		return errEnded
	}
}

func (s *Supervisor) describe() api.Status {
	status := api.Status{
		Name: s.cfg.Name, Version: s.cfg.Version, PID: s.pid, State: s.state(), StartedAt: s.started,
		Sockets: []api.Socket{}, Workers: []api.Worker{}, Wanted: s.wanted, Upgrades: s.upgrades,
	}
	if s.serving != nil {
		status.Generation = s.serving.number
	}
	for _, sock := range s.sockets {
		status.Sockets = append(status.Sockets, describeSocket(sock))
	}
	for _, w := range s.workers() {
		status.Workers = append(status.Workers, w.describe())
	}
	return status
}

// state is the phase as the outside knows it.
func (s *Supervisor) state() string {
	switch {
	case s.phase >= phaseStopping:
		return api.Stopping
	case s.phase == phaseServing && s.serving.lacksAll():
		return api.Backoff
	}
	return s.phase.String()
}

// lacksAll tells whether no slot has a process.
func (g *generation) lacksAll() bool {
	for _, sl := range g.slots {
		if sl.worker != nil {
			return false
		}
	}
	return true
}

func describeSocket(sock *fdpass.Socket) api.Socket {
	how, _ := sock.How()
	a := api.Socket{Name: sock.Name(), Network: sock.Network(), Address: sock.Bound(), Backlog: sock.Backlog(), Handover: string(how), Intercepted: sock.Learned()}
	for _, m := range sock.Members() {
		if n, err := observe.AcceptQueue(m.Descriptor()); err == nil {
			a.Queued += n
		}
	}
	return a
}

// outsideStates are the workers' states by the names that the API has.
var outsideStates = map[workerState]string{
	starting: "starting", serving: "serving", settling: "draining", quiescing: "draining", draining: "draining",
	terminating: "killing", killing: "killing", clearing: "killing", gone: "killing",
}

func (w *worker) describe() api.Worker {
	a := api.Worker{
		PID: w.pid, Generation: w.number, State: outsideStates[w.state], ReadyBy: w.ready.by,
		StartedAt: w.forked, Restarts: w.slot.restarts, Command: w.command, Says: w.ready.status,
	}
	if !w.ready.at.IsZero() {
		a.ReadyAt = &w.ready.at
	}
	if !w.deadline.IsZero() {
		deadline := w.deadline
		a.Deadline = &deadline
	}
	return a
}

func (s *Supervisor) tcpPorts() []uint16 {
	var ports []uint16
	for _, sock := range s.sockets {
		if sock.Network() == "tcp" {
			ports = append(ports, uint16(sock.Port()))
		}
	}
	return ports
}

// addKernelView fills in connections, memory and executables.
func addKernelView(status *api.Status, ports []uint16) {
	conns, err := observe.Connections(ports, false)
	for i := range status.Workers {
		w := &status.Workers[i]
		w.RSSBytes, _, _ = observe.Memory(w.PID)
		w.Executable = executableOf(w.PID)
		if err != nil {
			continue
		}
		inodes, complete := observe.Inodes(observe.Tree(w.PID))
		if !complete {
			continue
		}
		n := 0
		for _, c := range conns {
			if _, holds := inodes[c.Inode]; holds && c.State == observe.Established {
				n++
			}
		}
		w.Connections = &n
	}
}

// executableOf is the path of the program that a process runs, empty where it
// cannot be seen.
func executableOf(pid int) string {
	path, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/exe")
	if err != nil {
		return ""
	}
	return strings.TrimSuffix(path, " (deleted)")
}

// milliseconds is how the API writes durations.
func milliseconds(d time.Duration) float64 {
	const perMicrosecond = 1000
	return float64(d.Microseconds()) / perMicrosecond
}
