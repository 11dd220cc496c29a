//go:build linux

package bench

import (
	"math"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/moult/moult/supervisor/cli/demo/load"
	"github.com/moult/moult/supervisor/e2e/testkit"
)

// contest is a server against itself: under moult and alone.
type contest struct {
	name    string
	mode    load.Mode
	program string // of testkit; "" for a worker that inherits its socket
	control bool   // alone and alone: what the machine itself makes of it
}

// rival is one of the two servers of a contest.
type rival struct {
	address string
	pid     int             // its first process
	master  *testkit.Master // nil where it is alone
	end     func()
}

// tally is what one rival did in some rounds.
type tally struct {
	requests  int
	took, cpu time.Duration
}

// quadruple is what came of four rounds that follow one another.
type quadruple struct{ alone, own tally }

func (t tally) rate() float64 { return float64(t.requests) / t.took.Seconds() }

func (t tally) cost() float64 { return t.cpu.Seconds() / float64(t.requests) }

func (t *tally) add(more tally) {
	t.requests += more.requests
	t.took += more.took
	t.cpu += more.cpu
}

// Throughput of a server under moult, relative to the same server
// started bare. Many short rounds take turns in the order A B B A, so that what
// else goes on in the machine falls upon both; both are started anew several
// times, since where a process happens to lie in memory weighs as much as what
// is measured. ratio is the median of all quadruples, with its 95 % confidence
// interval; cpu-ratio compares the processor time that the server's processes
// take for a request, and so suffers less from others: less is better there.
func BenchmarkThroughput(b *testing.B) {
	for _, c := range []contest{
		{name: "listen-keep-alive", mode: load.KeepAlive},
		{name: "listen-new-connections"},
		{name: "go-keep-alive", mode: load.KeepAlive, program: "go shutdown"},
		{name: "go-new-connections", program: "go shutdown"},
		{name: "nginx-new-connections", program: "nginx"},
		{name: "name-lookups", program: "lookup"},
		{name: "control-go-new-connections", program: "go shutdown", control: true},
	} {
		b.Run(c.name, func(b *testing.B) {
			common := testkit.NewFixtures(b)
			for b.Loop() {
				c.run(b, common)
			}
		})
	}
}

func (c contest) run(b *testing.B, common *testkit.Fixtures) {
	var all []quadruple
	woken := 0
	for range testkit.Times(4, 2, 20) {
		alone, own := c.alone(b, testkit.NewSite(b, common)), c.rival(b, testkit.NewSite(b, common))
		before := own.switches()
		for i := range testkit.Times(16, 3, 32) {
			all = append(all, c.quadruple(b, alone, own, i%2 == 0))
		}
		woken += own.switches() - before
		alone.end()
		own.end()
	}
	reportConfidence(b, "ratio", all, func(q quadruple) float64 { return q.own.rate() / q.alone.rate() })
	reportConfidence(b, "cpu-ratio", all, func(q quadruple) float64 { return q.own.cost() / q.alone.cost() })
	_, rate, _ := confidence(all, func(q quadruple) float64 { return q.alone.rate() })
	b.ReportMetric(rate, "requests/s")
	if !c.control {
		b.ReportMetric(float64(woken), "master-switches")
	}
}

func reportConfidence(b *testing.B, unit string, all []quadruple, of func(quadruple) float64) {
	low, middle, high := confidence(all, of)
	b.ReportMetric(middle, unit)
	b.ReportMetric(low, unit+"-low")
	b.ReportMetric(high, unit+"-high")
}

// confidence is the median with the order statistics between which it lies in
// 95 of 100 cases, whatever the distribution.
func confidence(all []quadruple, of func(quadruple) float64) (low, middle, high float64) {
	var figures []float64
	for _, q := range all {
		figures = append(figures, of(q))
	}
	slices.Sort(figures)
	n := len(figures)
	aside := int(math.Ceil(0.98 * math.Sqrt(float64(n))))
	return figures[max(0, n/2-aside)], figures[n/2], figures[min(n-1, n/2+aside)]
}

// quadruple lets each serve for two rounds.
func (c contest) quadruple(b testing.TB, alone, own rival, swap bool) (q quadruple) {
	for _, inner := range []bool{false, true, true, false} {
		if inner != swap {
			q.own.add(c.round(b, own))
		} else {
			q.alone.add(c.round(b, alone))
		}
	}
	return q
}

func (c contest) round(b testing.TB, r rival) tally {
	cpu, began := familyTime(b, r.pid), time.Now()
	config := load.Config{Address: r.address, Path: "/small", Mode: c.mode, Answer: testkit.IsSmall}
	if c.program == "" {
		config.Answer = nil
	}
	clients := testkit.Ask(b, config)
	<-time.After(150 * time.Millisecond)
	report := clients.Stop()
	took := time.Since(began)
	if report.Failures() != 0 || report.Requests() == 0 {
		b.Fatalf("%s: %v", c.name, report)
	}
	return tally{report.Requests(), took, familyTime(b, r.pid) - cpu}
}

// environment is the same for both. Go's default is MPTCP, which is slower:
// without it the ratio is that of moult alone, not of what moult refuses.
func (c contest) environment(s *testkit.Site) []string {
	return append(s.Environment(), "GODEBUG=multipathtcp=0")
}

func (c contest) rival(b testing.TB, s *testkit.Site) rival {
	if c.control {
		return c.alone(b, s)
	}
	return c.own(b, s)
}

// own has been upgraded, so that the kernel steers.
func (c contest) own(b testing.TB, s *testkit.Site) rival {
	var m *testkit.Master
	if launch := program(b); c.program == "" {
		m = launch.Start(b, append([]string{"run", "-l", s.Address, "--"}, testkit.Worker("graceful")...)...)
	} else {
		launch.Env = c.environment(s)
		m = launch.Start(b, append([]string{"run", "--"}, s.Command(c.program)...)...)
	}
	settled(b, m.Serving())
	kids := testkit.Children(m.PID())
	if len(kids) != 1 {
		b.Fatalf("the master's children: %s", testkit.Describe(kids))
	}
	r := rival{s.Address, kids[0], m, m.Stop}
	c.round(b, r)
	return r
}

func (c contest) alone(b testing.TB, s *testkit.Site) rival {
	r := rival{address: s.Address}
	if c.program == "" {
		socket := testkit.Listening(b, "tcp", s.Address)
		r.pid, r.end = testkit.StartAlone(b, 1, []*os.File{socket}, nil, testkit.Worker("graceful"))
	} else {
		r.pid, r.end = testkit.StartAlone(b, 1, nil, nil, s.Command(c.program), c.environment(s)...)
	}
	testkit.Until(b, "the server answers", func() error {
		_, _, err := testkit.Get("tcp", s.Address, "/small")
		return err
	})
	c.round(b, r)
	return r
}

func (r rival) switches() int {
	if r.master == nil {
		return 0
	}
	return testkit.Switches(r.master.PID())
}

// familyTime is the processor time of a process and of its descendants.
func familyTime(b testing.TB, pid int) (sum time.Duration) {
	b.Helper()
	for _, member := range testkit.Family(pid) {
		sum += processorTime(b, member)
	}
	return sum
}
