//go:build linux

package bench

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/moult/moult/supervisor/e2e/testkit"
	"github.com/moult/moult/supervisor/load"
)

// What moult costs, measured from outside:
//
//	go test -run '^$' -bench . -benchtime 1x .
//
// Each benchmark chooses its own counts and reports medians; MOULT_SOAK=1 gives
// the full ones.

func startReal(b testing.TB, address string, flags []string, command []string) *testkit.Master {
	b.Helper()
	args := append(append([]string{"run", "-l", address}, flags...), "--")
	m := testkit.Launch{Exe: testkit.MoultBinary(b), Args: append(args, command...)}.Start(b)
	m.WaitServing(1)
	return m
}

func median(times []time.Duration) time.Duration {
	slices.Sort(times)
	return times[len(times)/2]
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// From SIGHUP to the first answer by the new generation, against a bare start
// of the same server to its first answer.
func BenchmarkUpgradeToFirstAnswer(b *testing.B) {
	for b.Loop() {
		address := testkit.FreeAddress(b)
		m := startReal(b, address, nil, testkit.WorkerCommand("graceful"))
		var bare, upgraded, logged []time.Duration
		for range testkit.Times(21, 5, 101) {
			bare = append(bare, bareStart(b))
			toAnswer, toServing := upgradeToAnswer(b, m, address)
			upgraded, logged = append(upgraded, toAnswer), append(logged, toServing)
		}
		m.Stop()
		b.ReportMetric(milliseconds(median(bare)), "ms/bare-start")
		b.ReportMetric(milliseconds(median(upgraded)), "ms/upgrade")
		b.ReportMetric(milliseconds(median(logged)), "ms/upgrade-by-log")
		b.ReportMetric(float64(median(upgraded))/float64(median(bare)), "ratio")
	}
}

func bareStart(b testing.TB) time.Duration {
	address := testkit.FreeAddress(b)
	socket := testkit.Listening(b, "tcp", address)
	defer socket.Close()
	began := time.Now()
	process := testkit.StartBare(b, socket, 1, testkit.WorkerCommand("graceful"))
	if testkit.GenerationAt("tcp", address) != 1 {
		b.Fatal("no answer after a bare start")
	}
	took := time.Since(began)
	process.Process.Kill()
	process.Wait()
	return took
}

// upgradeToAnswer returns the time to the first answer, and the time to serving
// that the master itself has measured.
func upgradeToAnswer(b testing.TB, m *testkit.Master, address string) (toAnswer, toServing time.Duration) {
	next := m.Generation() + 1
	mark := m.Mark()
	began := time.Now()
	m.Signal(syscall.SIGHUP)
	for testkit.GenerationAt("tcp", address) != next {
		if time.Since(began) > testkit.Patience {
			b.Fatalf("generation %d does not answer", next)
		}
		time.Sleep(200 * time.Microsecond) // leave the processor to the new generation
	}
	toAnswer = time.Since(began)
	toServing, err := time.ParseDuration(m.WaitLog(mark, "the upgrade is over", testkit.Over(next)).Took)
	if err != nil {
		b.Fatal(err)
	}
	m.WaitState(next-1, "gone")
	return toAnswer, toServing
}

// The step between fork and exec, against the program alone.
func BenchmarkShim(b *testing.B) {
	moult := testkit.MoultBinary(b)
	for b.Loop() {
		var alone, shimmed []time.Duration
		for range testkit.Times(101, 21, 501) {
			alone = append(alone, timed(b, exec.Command("/bin/true")))
			shim := exec.Command(moult)
			shim.Args = []string{"moult-shim", "/bin/true"}
			shim.Env = append(os.Environ(), `MOULT_SHIM={"status":3}`)
			_, status := testkit.Pipe(b)
			shim.ExtraFiles = []*os.File{status}
			shimmed = append(shimmed, timed(b, shim))
		}
		b.ReportMetric(milliseconds(median(alone)), "ms/alone")
		b.ReportMetric(milliseconds(median(shimmed)), "ms/shim")
	}
}

func timed(b testing.TB, cmd *exec.Cmd) time.Duration {
	began := time.Now()
	if err := cmd.Run(); err != nil {
		b.Fatal(err)
	}
	return time.Since(began)
}

// Resident and proportional memory of the master, fresh and after upgrades;
// size of the program.
func BenchmarkMasterMemory(b *testing.B) {
	for b.Loop() {
		info, err := os.Stat(testkit.MoultBinary(b))
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(info.Size()), "bytes/binary")
		m := startReal(b, testkit.FreeAddress(b), []string{"--quiesce", "0s"}, testkit.WorkerCommand("graceful"))
		reportMemory(b, m, "fresh")
		for range testkit.Times(100, 10, 1000) {
			m.Upgrade()
		}
		m.WaitState(m.Generation()-1, "gone")
		reportMemory(b, m, "later")
		m.Stop()
	}
}

func reportMemory(b *testing.B, m *testkit.Master, when string) {
	testkit.Settled(b, m)
	rss, pss := testkit.Memory(b, m.Pid())
	b.ReportMetric(float64(rss), "rss-kB/"+when)
	b.ReportMetric(float64(pss), "pss-kB/"+when)
}

// Context switches of the master during 10 s of about 10 000 new connections
// per second, and during as long without any.
func BenchmarkWakeUps(b *testing.B) {
	for b.Loop() {
		address := testkit.FreeAddress(b)
		m := startReal(b, address, nil, testkit.WorkerCommand("graceful"))
		m.Upgrade()
		m.WaitState(1, "gone")
		testkit.Settled(b, m)
		before := testkit.Switches(m.Pid())
		<-time.After(10 * time.Second)
		b.ReportMetric(float64(testkit.Switches(m.Pid())-before), "switches/idle")
		before = testkit.Switches(m.Pid())
		clients := testkit.Traffic(b, load.Config{Address: address, Clients: 16, Pause: 1200 * time.Microsecond})
		<-time.After(10 * time.Second)
		report := clients.Stop()
		b.ReportMetric(float64(testkit.Switches(m.Pid())-before), "switches/busy")
		b.ReportMetric(float64(report.Requests())/10, "connections/s")
		b.ReportMetric(float64(report.Failures()), "failures")
		m.Stop()
	}
}

// Throughput of the server under moult and alone, interleaved.
func BenchmarkThroughput(b *testing.B) {
	for _, mode := range []struct {
		name string
		mode load.Mode
	}{{"new-connections", load.PerRequest}, {"keep-alive", load.KeepAlive}} {
		b.Run(mode.name, func(b *testing.B) {
			for b.Loop() {
				supervised, alone := testkit.FreeAddress(b), testkit.FreeAddress(b)
				m := startReal(b, supervised, nil, testkit.WorkerCommand("graceful"))
				m.Upgrade()
				m.WaitState(1, "gone")
				testkit.StartBare(b, testkit.Listening(b, "tcp", alone), 1, testkit.WorkerCommand("graceful"))
				testkit.Answers(b, "tcp", alone)
				var ratios []float64
				for i := range testkit.Times(8, 4, 32) {
					ratios = append(ratios, throughputRatio(b, supervised, alone, mode.mode, i%2 == 0))
				}
				slices.Sort(ratios)
				b.ReportMetric(ratios[len(ratios)/2], "ratio")
				m.Stop()
			}
		})
	}
}

// throughputRatio takes turns in who comes first, since each round warms the
// machine up for the next.
func throughputRatio(b testing.TB, supervised, alone string, mode load.Mode, swap bool) float64 {
	if swap {
		without := throughput(b, alone, mode)
		return throughput(b, supervised, mode) / without
	}
	with := throughput(b, supervised, mode)
	return with / throughput(b, alone, mode)
}

func throughput(b testing.TB, address string, mode load.Mode) float64 {
	clients := testkit.Traffic(b, load.Config{Address: address, Mode: mode})
	began := time.Now()
	<-time.After(time.Second)
	report := clients.Stop()
	return float64(report.Requests()) / time.Since(began).Seconds()
}

// Requests that clients lose which keep their connection and never retry: under
// moult, and when the same server gets its drain signal directly.
func BenchmarkKeepAliveLosses(b *testing.B) {
	for _, name := range []string{"graceful", "plain"} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				upgrades := testkit.Times(10, 3, 100)
				ours, direct := keepAliveLosses(b, name, upgrades)
				b.ReportMetric(float64(ours.Failures())/float64(upgrades), "lost-moult/upgrade")
				b.ReportMetric(float64(direct.Failures())/float64(upgrades), "lost-direct/upgrade")
				for _, sample := range ours.Samples[:min(3, len(ours.Samples))] {
					b.Log(fmt.Sprint(sample))
				}
			}
		})
	}
}
