package load

import (
	"math/bits"
	"time"
)

// A histogram counts durations in buckets whose width is 1/32 of their power
// of two, in microseconds, so that a quantile is exact to 3 % over the whole
// range in a fixed 4 KB.
type histogram struct {
	buckets [octaves * steps]uint32
	count   uint64
	slowest time.Duration
}

const (
	stepBits = 5
	steps    = 1 << stepBits
	octaves  = 32 // up to 2^36 µs, nearly a day
)

func (h *histogram) add(d time.Duration) {
	h.buckets[bucket(d)]++
	h.count++
	h.slowest = max(h.slowest, d)
}

func (h *histogram) merge(other *histogram) {
	for i, n := range other.buckets {
		h.buckets[i] += n
	}
	h.count += other.count
	h.slowest = max(h.slowest, other.slowest)
}

func (h *histogram) quantile(q float64) time.Duration {
	if h.count == 0 || q >= 1 {
		return h.slowest
	}
	rank := uint64(q * float64(h.count))
	for i, n := range h.buckets {
		if uint64(n) > rank {
			return min(middle(i), h.slowest)
		}
		rank -= uint64(n)
	}
	return h.slowest
}

// bucket is exact below 32 µs; above, the five bits after the highest one
// choose the step within the octave.
func bucket(d time.Duration) int {
	us := uint64(max(d, 0) / time.Microsecond)
	if us < steps {
		return int(us)
	}
	octave := bits.Len64(us) - stepBits
	step := int(us>>(octave-1)) - steps
	return min(octave*steps+step, octaves*steps-1)
}

// middle is the duration that stands for all in a bucket.
func middle(i int) time.Duration {
	octave, step := i/steps, i%steps
	if octave == 0 {
		return time.Duration(step) * time.Microsecond
	}
	low := uint64(steps+step) << (octave - 1)
	width := uint64(1) << (octave - 1)
	return time.Duration(low+width/2) * time.Microsecond
}
