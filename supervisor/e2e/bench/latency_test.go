//go:build linux

package bench

import (
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moult/moult/supervisor/e2e/testkit"
)

// What clients at a fixed rate see of upgrades, who do not wait for each other:
// the 99th percentile of a new connection per request, while an upgrade follows
// the other, against the same with none, in turns.
func BenchmarkLatency(b *testing.B) {
	const rate, span = 1000, 3 * time.Second
	for name, start := range both {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				m := start(b)
				var steady, upgrading []time.Duration
				failures := 0
				for range testkit.Times(4, 1, 20) {
					quiet, lost := openLoop(m.Address, rate, span)
					steady, failures = append(steady, quiet...), failures+lost
					busy := make(chan struct{})
					go func() {
						defer close(busy)
						for began := time.Now(); time.Since(began) < span-500*time.Millisecond; {
							m.Upgrade()
							m.Retire()
						}
					}()
					moving, lost := openLoop(m.Address, rate, span)
					<-busy
					upgrading, failures = append(upgrading, moving...), failures+lost
				}
				m.Stop()
				b.ReportMetric(milliseconds(percentile(steady, 99)), "ms/p99-steady")
				b.ReportMetric(milliseconds(percentile(upgrading, 99)), "ms/p99-upgrading")
				b.ReportMetric(float64(percentile(upgrading, 99))/float64(percentile(steady, 99)), "ratio")
				b.ReportMetric(float64(m.Generation()), "generations")
				b.ReportMetric(float64(failures), "failures")
			}
		})
	}
}

// openLoop asks at a fixed rate, whatever becomes of the answers.
func openLoop(address string, rate int, span time.Duration) (took []time.Duration, failures int) {
	var mu sync.Mutex
	var all sync.WaitGroup
	client := &http.Client{
		Timeout:   10 * time.Second,
		Transport: &http.Transport{DisableKeepAlives: true, DialContext: (&net.Dialer{}).DialContext},
	}
	tick := time.NewTicker(time.Second / time.Duration(rate))
	defer tick.Stop()
	for range int(span.Seconds() * float64(rate)) {
		asked := <-tick.C
		all.Go(func() {
			resp, err := client.Get("http://" + address + "/")
			if err == nil {
				_, err = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
			mu.Lock()
			defer mu.Unlock()
			if took = append(took, time.Since(asked)); err != nil {
				failures++
			}
		})
	}
	all.Wait()
	return took, failures
}

func percentile(all []time.Duration, n int) time.Duration {
	slices.Sort(all)
	return all[min(len(all)*n/100, len(all)-1)]
}

// Processor time of the master for one upgrade: until the old worker is gone,
// and in the seconds after that.
func BenchmarkProcessorTime(b *testing.B) {
	for name, start := range both {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				m := settled(b, start(b))
				var until, after time.Duration
				upgrades := testkit.Times(8, 2, 50)
				for range upgrades {
					began := processorTime(b, m.PID())
					m.Upgrade()
					m.Retire()
					gone := processorTime(b, m.PID())
					<-time.After(5 * time.Second)
					until, after = until+gone-began, after+processorTime(b, m.PID())-gone
				}
				m.Stop()
				b.ReportMetric(milliseconds(until)/float64(upgrades), "cpu-ms/upgrade")
				b.ReportMetric(milliseconds(after)/float64(upgrades), "cpu-ms/5s-after")
			}
		})
	}
}

// processorTime is what a process has used, threads that have ended included:
// the clock that clock_getcpuclockid(3) names.
func processorTime(b testing.TB, pid int) time.Duration {
	const scheduled = 2
	var ts unix.Timespec
	testkit.OK(b, unix.ClockGettime(int32(^pid<<3|scheduled), &ts))
	return time.Duration(ts.Nano())
}

// An upgrade of many workers, from SIGHUP until the old ones are gone.
func BenchmarkManyWorkers(b *testing.B) {
	for _, n := range []int{1, 10, 80} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			for b.Loop() {
				m := settled(b, program(b).Listen(b, "graceful", "-n", strconv.Itoa(n)).Serving())
				var took []time.Duration
				var used time.Duration
				upgrades := testkit.Times(5, 1, 20)
				for range upgrades {
					began, before := time.Now(), processorTime(b, m.PID())
					m.Upgrade()
					m.Retire()
					took = append(took, time.Since(began))
					used += processorTime(b, m.PID()) - before
				}
				m.Stop()
				b.ReportMetric(milliseconds(median(took)), "ms/upgrade")
				b.ReportMetric(milliseconds(used)/float64(upgrades), "cpu-ms/upgrade")
			}
		})
	}
}
