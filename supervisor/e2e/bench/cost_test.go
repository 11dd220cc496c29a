//go:build linux

package bench

import (
	"bufio"
	"cmp"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/moult/moult/supervisor/cli/demo/load"
	"github.com/moult/moult/supervisor/e2e/testkit"
)

// What moult costs, measured from outside:
//
//	go test -run '^$' -bench . -benchtime 1x ./supervisor/e2e/bench
//
// Each benchmark chooses its own counts and reports medians; MOULT_SOAK=1 gives
// the full ones.

// program is the program itself, whose memory and start the test binary's own
// weight would spoil.
func program(b testing.TB) testkit.Launch { return testkit.Launch{Exe: testkit.MoultBinary(b)} }

func median(times []time.Duration) time.Duration {
	slices.Sort(times)
	return times[len(times)/2]
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func microseconds(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

// From the start of the command to its first answer: the server alone, under
// --listen, and intercepted.
func BenchmarkStart(b *testing.B) {
	for b.Loop() {
		took := map[string][]time.Duration{}
		for range testkit.Times(21, 5, 101) {
			took["bare"] = append(took["bare"], aloneToAnswer(b))
			for name, start := range map[string]func(testing.TB) *testkit.Master{
				"listen":      func(t testing.TB) *testkit.Master { return program(t).Listen(t, "graceful") },
				"intercepted": func(t testing.TB) *testkit.Master { return program(t).Capture(t, bindsGracefully) },
			} {
				began := time.Now()
				m := start(b)
				took[name] = append(took[name], firstAnswer(b, m.Address, 1, began))
				m.WaitServing(1)
				m.Stop()
			}
		}
		for name, times := range took {
			b.ReportMetric(milliseconds(median(times)), "ms/"+name)
		}
	}
}

// aloneToAnswer is how long a server takes that binds its own address.
func aloneToAnswer(b testing.TB) time.Duration {
	address := testkit.FreeAddress(b)
	began := time.Now()
	_, end := testkit.StartAlone(b, 1, nil, nil, testkit.Worker("binds", "tcp="+address, "end=graceful"))
	defer end()
	return firstAnswer(b, address, 1, began)
}

// firstAnswer is when a generation has first answered.
func firstAnswer(b testing.TB, address string, generation int, began time.Time) time.Duration {
	b.Helper()
	for testkit.GenerationAt(address) != generation {
		if time.Since(began) > 20*time.Second {
			b.Fatalf("generation %d does not answer", generation)
		}
		time.Sleep(200 * time.Microsecond) // leave the processor to it
	}
	return time.Since(began)
}

// From SIGHUP to the first answer by the new generation, against a bare start
// of the same server to its first answer, and to serving by the master's log.
func BenchmarkUpgrade(b *testing.B) {
	for name, start := range both {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				m := start(b)
				var bare, upgraded, logged []time.Duration
				for range testkit.Times(21, 5, 101) {
					bare = append(bare, aloneToAnswer(b))
					next, mark, began := m.Generation()+1, m.Mark(), time.Now()
					m.Hangup()
					upgraded = append(upgraded, firstAnswer(b, m.Address, next, began))
					took, err := time.ParseDuration(m.WaitLog(mark, "the upgrade is over", testkit.Over(next)).Took)
					testkit.OK(b, err)
					logged = append(logged, took)
					m.Retire()
				}
				m.Stop()
				b.ReportMetric(milliseconds(median(bare)), "ms/bare-start")
				b.ReportMetric(milliseconds(median(upgraded)), "ms/upgrade")
				b.ReportMetric(milliseconds(median(logged)), "ms/upgrade-by-log")
				b.ReportMetric(float64(median(upgraded))/float64(median(bare)), "ratio")
			}
		})
	}
}

// The step between fork and exec, against the program alone.
func BenchmarkShim(b *testing.B) {
	moult := testkit.MoultBinary(b)
	timed := func(cmd *exec.Cmd) time.Duration {
		began := time.Now()
		testkit.OK(b, cmd.Run())
		return time.Since(began)
	}
	for b.Loop() {
		var alone, shimmed []time.Duration
		for range testkit.Times(101, 21, 501) {
			alone = append(alone, timed(exec.Command("/bin/true")))
			shim := exec.Command(moult)
			shim.Args = []string{"moult-shim", "/bin/true"}
			shim.Env = append(os.Environ(), `MOULT_SHIM={"status":3}`)
			_, status := testkit.Pipe(b)
			shim.ExtraFiles = []*os.File{status}
			shimmed = append(shimmed, timed(shim))
		}
		b.ReportMetric(milliseconds(median(alone)), "ms/alone")
		b.ReportMetric(milliseconds(median(shimmed)), "ms/shim")
	}
}

// Resident and proportional memory of the master, fresh and after upgrades;
// size of the program.
func BenchmarkMemory(b *testing.B) {
	report := func(b *testing.B, m *testkit.Master, when string) {
		testkit.Settled(b, m)
		rss, pss := testkit.Memory(b, m.PID())
		b.ReportMetric(float64(rss), "rss-kB/"+when)
		b.ReportMetric(float64(pss), "pss-kB/"+when)
	}
	for name, start := range both {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				info, err := os.Stat(testkit.MoultBinary(b))
				testkit.OK(b, err)
				b.ReportMetric(float64(info.Size()), "bytes/binary")
				m := start(b)
				report(b, m, "fresh")
				for range testkit.Times(50, 10, 1000) {
					m.Upgrade()
				}
				m.Retire()
				report(b, m, "later")
				m.Stop()
			}
		})
	}
}

// Context switches of the master during 10 s of about 10 000 new connections
// per second, and during as long without any.
func BenchmarkWakeUps(b *testing.B) {
	for name, start := range both {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				m := settled(b, start(b))
				before := testkit.Switches(m.PID())
				<-time.After(10 * time.Second)
				b.ReportMetric(float64(testkit.Switches(m.PID())-before), "switches/idle")
				before = testkit.Switches(m.PID())
				clients := testkit.Ask(b, load.Config{Address: m.Address, Pause: 1200 * time.Microsecond})
				<-time.After(10 * time.Second)
				report := clients.Stop()
				b.ReportMetric(float64(testkit.Switches(m.PID())-before), "switches/busy")
				b.ReportMetric(float64(report.Requests())/10, "connections/s")
				b.ReportMetric(float64(report.Failures()), "failures")
				m.Stop()
			}
		})
	}
}

// What a bind(2) and a listen(2) take, alone and intercepted.
func BenchmarkInterceptedBind(b *testing.B) {
	const ports = 200
	plan := "binds-many n=" + strconv.Itoa(ports)
	for b.Loop() {
		var alone, own [2][]time.Duration // bind, listen
		for range testkit.Times(11, 3, 51) {
			for call, took := range saidAlone(b, plan) {
				alone[call] = append(alone[call], took/ports)
			}
			for call, took := range saidUnder(b, plan) {
				own[call] = append(own[call], took/ports)
			}
		}
		for call, name := range []string{"bind", "listen"} {
			b.ReportMetric(microseconds(median(alone[call])), "µs/"+name+"-bare")
			reportSpread(b, own[call], "µs/"+name)
		}
	}
}

// What an unlink(2) takes of a file that is nobody's socket: alone, with
// interception as it is by default, and where unlinks are intercepted too.
func BenchmarkInterceptedUnlink(b *testing.B) {
	const files = 2000
	plan := "unlinks-many n=" + strconv.Itoa(files)
	for b.Loop() {
		var alone, without, with []time.Duration
		for range testkit.Times(11, 3, 51) {
			alone = append(alone, saidAlone(b, plan)[0]/files)
			without = append(without, saidUnder(b, plan)[0]/files)
			with = append(with, saidUnder(b, plan, "--intercept-unlink")[0]/files)
		}
		reportSpread(b, alone, "µs/bare")
		reportSpread(b, without, "µs/without")
		reportSpread(b, with, "µs/with")
	}
}

// reportSpread gives the median, the least and the most.
func reportSpread(b *testing.B, all []time.Duration, unit string) {
	b.ReportMetric(microseconds(median(all)), unit)
	b.ReportMetric(microseconds(slices.Min(all)), unit+"-least")
	b.ReportMetric(microseconds(slices.Max(all)), unit+"-most")
}

func saidAlone(b testing.TB, plan string) []time.Duration {
	return said(b, func(stdout *os.File) (end func()) {
		words := strings.Fields(plan)
		_, end = testkit.StartAlone(b, 1, nil, stdout, testkit.Worker(words[0], words[1:]...))
		return end
	})
}

func saidUnder(b testing.TB, plan string, flags ...string) []time.Duration {
	return said(b, func(stdout *os.File) (end func()) {
		launch := program(b)
		launch.Stdout = stdout
		m := launch.Capture(b, plan, flags...)
		return func() { m.WaitServing(1); m.Stop() }
	})
}

// said reads how long things took from the first line that a worker writes.
func said(b testing.TB, start func(stdout *os.File) (end func())) (took []time.Duration) {
	b.Helper()
	read, write := testkit.Pipe(b)
	end := start(write)
	defer end()
	read.SetReadDeadline(time.Now().Add(20 * time.Second))
	line, err := bufio.NewReader(read).ReadString('\n')
	for field := range strings.FieldsSeq(line) {
		d, wrong := time.ParseDuration(field)
		took, err = append(took, d), cmp.Or(err, wrong)
	}
	if err != nil || len(took) == 0 {
		b.Fatalf("the worker says %q: %v", line, err)
	}
	return took
}
