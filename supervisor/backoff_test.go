package supervisor

import (
	"testing"
	"time"
)

func TestBackoffDoublesFromMinToMax(t *testing.T) {
	b := backoff{min: 100 * time.Millisecond, max: 30 * time.Second}
	if d := b.next(0); d != 0 {
		t.Fatalf("the first replacement comes after %s, want at once", d)
	}
	delay := b.min
	for n := 2; n < 40; n++ {
		low, high := max(delay*8/10, b.min), min(delay*12/10, b.max)
		if d := b.next(0); d < low || d > high {
			t.Errorf("crash %d: %s, want between %s and %s", n, d, low, high)
		}
		delay = min(delay*2, b.max)
	}
}

func TestBackoffStaysWithinItsBounds(t *testing.T) {
	for _, c := range []struct{ min, max time.Duration }{
		{0, 0}, {0, time.Second}, {time.Second, time.Second}, {time.Millisecond, 1<<63 - 1},
	} {
		b := backoff{min: c.min, max: c.max}
		b.next(0)
		for n := range 200 {
			if d := b.next(0); d < c.min || d > c.max {
				t.Fatalf("%s..%s: crash %d is followed by %s", c.min, c.max, n+2, d)
			}
		}
	}
}

func TestBackoffBeginsAgainAfterAStableMinute(t *testing.T) {
	b := backoff{min: time.Second, max: time.Minute}
	for range 5 {
		b.next(59 * time.Second)
	}
	if d := b.next(59 * time.Second); d < 10*time.Second {
		t.Errorf("after 59 s of life the sixth delay is %s", d)
	}
	if d := b.next(time.Minute); d != 0 {
		t.Errorf("after a minute of life the delay is %s, want none", d)
	}
	if d := b.next(0); d < time.Second || d > 1200*time.Millisecond {
		t.Errorf("the second delay after that is %s, want about 1s", d)
	}
}

func TestBackoffSpreads(t *testing.T) {
	seen := map[time.Duration]bool{}
	for range 20 {
		b := backoff{min: time.Second, max: time.Hour}
		for range 5 {
			b.next(0)
		}
		seen[b.next(0)] = true
	}
	if len(seen) < 10 {
		t.Errorf("20 masters restart at only %d different times", len(seen))
	}
}

func TestFailuresWithinAWindow(t *testing.T) {
	begin := time.Now()
	at := func(seconds int) time.Time { return begin.Add(time.Duration(seconds) * time.Second) }
	f := failures{limit: 3, within: 10 * time.Second}
	for _, c := range []struct {
		at   int
		over bool
	}{{0, false}, {1, false}, {11, false}, {12, false}, {20, true}, {40, false}, {45, false}, {50, true}} {
		if over := f.add(at(c.at)); over != c.over {
			t.Errorf("failure at %d s: limit reached is %v, want %v (%d remembered)", c.at, over, c.over, len(f.at))
		}
	}
}

func TestNoLimitRemembersNothing(t *testing.T) {
	var f failures
	for range 1000 {
		if f.add(time.Now()) {
			t.Fatal("a limit of none was reached")
		}
	}
	if len(f.at) != 0 {
		t.Errorf("%d failures are remembered for nothing", len(f.at))
	}
}
