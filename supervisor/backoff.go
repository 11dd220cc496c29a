package supervisor

import (
	"math/rand/v2"
	"time"
)

// stableAfter is how long a worker has to live for its next crash to count as
// the first again.
const stableAfter = time.Minute

// backoff is the delay before a replacement: none after the first crash, then
// doubling from min to max. Jitter keeps many masters from restarting in step
// when a common dependency fails.
type backoff struct {
	min, max time.Duration
	crashes  int
}

// next is the delay after one more crash of a worker that lived for that long.
func (b *backoff) next(lived time.Duration) time.Duration {
	if lived >= stableAfter {
		b.crashes = 0
	}
	b.crashes++
	if b.crashes == 1 {
		return 0
	}
	delay := b.min
	for range b.crashes - 2 {
		if delay = min(2*delay, b.max); delay == b.max {
			break
		}
	}
	jittered := time.Duration(float64(delay) * (0.8 + 0.4*rand.Float64()))
	return min(max(jittered, b.min), b.max)
}

// failures counts what --restart-limit limits.
type failures struct {
	limit  int // 0: none
	within time.Duration
	at     []time.Time
}

// add notes one failure and tells whether the limit is reached.
func (f *failures) add(now time.Time) bool {
	if f.limit == 0 {
		return false
	}
	f.at = append(f.at, now)
	for len(f.at) > 0 && now.Sub(f.at[0]) > f.within {
		f.at = f.at[1:]
	}
	return len(f.at) >= f.limit
}
