package control

import (
	"bytes"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/moult/moult/supervisor/control/api"
)

// exposition is the text format of Prometheus, version 0.0.4
// (prometheus.io/docs/instrumenting/exposition_formats): a few dozen lines,
// where the client library would add a fifth to the binary and half a
// megabyte to the memory of every master.
type exposition struct{ bytes.Buffer }

const expositionType = "text/plain; version=0.0.4; charset=utf-8"

func (e *exposition) family(name, kind, help string) {
	fmt.Fprintf(e, "# HELP moult_%s %s\n# TYPE moult_%s %s\n", name, help, name, kind)
}

// sample writes one line; labels are pairs of name and value.
func (e *exposition) sample(name string, value float64, labels ...string) {
	e.WriteString("moult_" + name)
	for i := 0; i < len(labels); i += 2 {
		separator := ","
		if i == 0 {
			separator = "{"
		}
		e.WriteString(separator + labels[i] + `="` + escapeLabel.Replace(labels[i+1]) + `"`)
	}
	if len(labels) > 0 {
		e.WriteByte('}')
	}
	e.WriteString(" " + strconv.FormatFloat(value, 'g', -1, 64) + "\n")
}

var escapeLabel = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)

func (e *exposition) one(name, kind, help string, value float64) {
	e.family(name, kind, help)
	e.sample(name, value)
}

func (e *exposition) histogram(name, help string, h histogram) {
	e.family(name, "histogram", help)
	total := uint64(0)
	for i, bound := range h.bounds {
		total += h.counts[i]
		e.sample(name+"_bucket", float64(total), "le", strconv.FormatFloat(bound, 'g', -1, 64))
	}
	total += h.counts[len(h.bounds)]
	e.sample(name+"_bucket", float64(total), "le", "+Inf")
	e.sample(name+"_sum", h.sum)
	e.sample(name+"_count", float64(total))
}

func (e *exposition) master(s api.Status) {
	const perSecond = 1000
	e.family("build_info", "gauge", "Which moult this is; always 1.")
	e.sample("build_info", 1, "version", s.Version)
	e.one("start_time_seconds", "gauge", "When the master was started, in seconds since 1970.", float64(s.StartedAt.UnixMilli())/perSecond)
	e.one("generation", "gauge", "Number of the generation that serves; 0 before the first does.", float64(s.Generation))
	e.family("upgrades_total", "counter", "Upgrades and rollbacks that are decided, by result.")
	e.sample("upgrades_total", float64(s.Upgrades.Succeeded-s.Upgrades.RolledBack), "result", api.OK)
	e.sample("upgrades_total", float64(s.Upgrades.Failed), "result", api.Failed)
	e.sample("upgrades_total", float64(s.Upgrades.RolledBack), "result", api.RolledBack)
}

func (e *exposition) sockets(sockets []api.Socket) {
	e.family("socket_queue", "gauge", "Connections that wait to be accepted.")
	for _, s := range sockets {
		e.sample("socket_queue", float64(s.Queued), "socket", s.Name)
	}
}

func (e *exposition) workers(workers []api.Worker) {
	states := map[string]int{}
	connections := map[int]int{}
	for _, w := range workers {
		states[w.State]++
		if w.Connections != nil {
			connections[w.Generation] += *w.Connections
		}
	}
	e.family("workers", "gauge", "Worker processes, by state.")
	for _, state := range []string{"starting", "serving", "draining", "killing"} {
		e.sample("workers", float64(states[state]), "state", state)
	}
	e.family("worker_connections", "gauge", "Established connections of workers and their descendants.")
	for _, generation := range slices.Sorted(maps.Keys(connections)) {
		e.sample("worker_connections", float64(connections[generation]), "generation", strconv.Itoa(generation))
	}
}

func (e *exposition) passed(m *Metrics) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e.one("worker_restarts_total", "counter", "Workers of the serving generation that left unasked.", float64(m.restarts))
	e.histogram("worker_ready_seconds", "How long workers took from their start to being ready.", m.ready)
	e.histogram("worker_drain_seconds", "How long workers took to finish and leave.", m.drain)
}

func metricsHandler(m Master, metrics *Metrics) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		status, err := m.Status(r.Context())
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		var e exposition
		e.master(status)
		e.sockets(status.Sockets)
		e.workers(status.Workers)
		e.passed(metrics)
		w.Header().Set("Content-Type", expositionType)
		_, _ = w.Write(e.Bytes())
	}
}
