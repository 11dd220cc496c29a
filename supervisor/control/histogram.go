package control

import "time"

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
