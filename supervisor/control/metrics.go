package control

import (
	"sync"
	"time"
)

// Change is a change of state of a worker, or of the master itself (PID is 0),
// as supervisor.Transition tells it.
type Change struct {
	Generation int // of the worker; of the master: the one that serves
	PID        int
	From, To   string
	Took       time.Duration // spent in From
	Trouble    bool          // not what anybody asked for
}

// Metrics counts what only passes by: how long workers took to become ready
// and to drain, and how often one was started again. What lasts is asked of
// the master when somebody looks. The zero value is not ready for use.
type Metrics struct {
	mu       sync.Mutex
	serving  int // generation
	restarts int
	ready    histogram
	drain    histogram
	draining map[int]time.Duration // by pid: how long so far
}

// NewMetrics begins to count.
func NewMetrics() *Metrics {
	return &Metrics{
		ready:    newHistogram(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
		drain:    newHistogram(0.01, 0.05, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800),
		draining: make(map[int]time.Duration),
	}
}

// Observe hears of every change, in order. It never waits for long: it may be
// called by the goroutine that owns the master's state.
func (m *Metrics) Observe(c Change) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case c.PID == 0:
		m.serving = c.Generation
	case c.From == "starting" && c.To == "serving":
		m.ready.observe(c.Took)
	case c.To == "gone":
		m.left(c)
	case c.From == "serving":
		m.draining[c.PID] = 0
	default:
		m.spend(c)
	}
}

func (m *Metrics) spend(c Change) {
	if so, ok := m.draining[c.PID]; ok {
		m.draining[c.PID] = so + c.Took
	}
}

// left ends a drain. A worker of the serving generation that has left unasked
// is started again, or the master ends.
func (m *Metrics) left(c Change) {
	m.spend(c)
	took, drained := m.draining[c.PID]
	delete(m.draining, c.PID)
	switch {
	case drained:
		m.drain.observe(took)
	case c.Trouble && c.Generation == m.serving:
		m.restarts++
	}
}

// histogram counts durations in buckets, each of which holds what is not
// longer than its bound and did not fit into the one before.
type histogram struct {
	bounds []float64 // seconds
	counts []uint64  // one more than bounds: what is longer than all
	sum    float64
}

func newHistogram(bounds ...float64) histogram {
	return histogram{bounds: bounds, counts: make([]uint64, len(bounds)+1)}
}

func (h *histogram) observe(d time.Duration) {
	seconds := d.Seconds()
	i := 0
	for i < len(h.bounds) && seconds > h.bounds[i] {
		i++
	}
	h.counts[i]++
	h.sum += seconds
}
