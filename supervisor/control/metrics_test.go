package control

import (
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

func observed() *Metrics {
	m := NewMetrics()
	for _, c := range []Change{
		{Generation: 2, From: "upgrading", To: "serving"},
		{Generation: 3, PID: 30, To: "starting"},
		{Generation: 3, PID: 30, From: "starting", To: "serving", Took: 30 * time.Millisecond},
		{Generation: 3, From: "upgrading", To: "serving"},
		{Generation: 2, PID: 20, From: "serving", To: "settling", Took: time.Hour},
		{Generation: 2, PID: 20, From: "settling", To: "quiescing", Took: 100 * time.Millisecond},
		{Generation: 2, PID: 20, From: "quiescing", To: "draining", Took: time.Second},
		{Generation: 2, PID: 20, From: "draining", To: "gone", Took: time.Second},
		{Generation: 3, PID: 30, From: "serving", To: "gone", Took: time.Minute, Trouble: true},
		{Generation: 4, PID: 40, To: "starting"},
		{Generation: 4, PID: 40, From: "starting", To: "terminating", Took: time.Minute, Trouble: true},
		{Generation: 4, PID: 40, From: "terminating", To: "gone", Took: time.Second},
	} {
		m.Observe(c)
	}
	return m
}

func metricsText(t *testing.T) string {
	t.Helper()
	ln := listenAt(t, t.TempDir()+"/c.sock")
	s := Serve(ln, newFakeMaster(), observed())
	defer s.Close()
	c := dial(t, ln.Path())
	defer c.Close()
	text, err := c.Metrics(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

var (
	familyLine = regexp.MustCompile(`^# HELP (moult_[a-z_]+) [A-Z].*\.\n# TYPE (moult_[a-z_]+) (counter|gauge|histogram)$`)
	sampleLine = regexp.MustCompile(`^(moult_[a-z_]+)(?:\{[a-z]+="(?:[^"\\]|\\["\\n])*"\})? (-?[0-9.e+]+|\+Inf)$`)
)

// Each family is described once, before its samples, by the rules that
// promlint has: counters are totals, units are base units.
func TestMetricsHaveTheFormat(t *testing.T) {
	seen := map[string]bool{}
	name, kind := "", ""
	for text := metricsText(t); text != ""; {
		line, rest, _ := strings.Cut(text, "\n")
		if strings.HasPrefix(line, "# HELP") {
			var second string
			second, rest, _ = strings.Cut(rest, "\n")
			line += "\n" + second
		}
		text = rest
		if family := familyLine.FindStringSubmatch(line); family != nil {
			name, kind = family[1], family[3]
			if family[2] != name || seen[name] || (kind == "counter") != strings.HasSuffix(name, "_total") || strings.Contains(name, "milli") {
				t.Errorf("a family that should not be: %q", line)
			}
			seen[name] = true
			continue
		}
		sample := sampleLine.FindStringSubmatch(line)
		if sample == nil || sample[1] != name && (kind != "histogram" || !slices.Contains([]string{name + "_bucket", name + "_sum", name + "_count"}, sample[1])) {
			t.Errorf("below %s %s there is %q", kind, name, line)
		}
	}
	if len(seen) < 10 {
		t.Errorf("only %v", seen)
	}
}

func TestMetricsTellWhatWasSeen(t *testing.T) {
	text := metricsText(t)
	for _, line := range []string{
		`moult_build_info{version="v1"} 1`,
		`moult_start_time_seconds 1.7e+09`,
		`moult_generation 3`,
		`moult_upgrades_total{result="ok"} 4`,
		`moult_upgrades_total{result="failed"} 2`,
		`moult_upgrades_total{result="rolled_back"} 1`,
		`moult_workers{state="serving"} 1`,
		`moult_workers{state="draining"} 1`,
		`moult_workers{state="starting"} 0`,
		`moult_socket_queue{socket="w\"e\\b\n"} 5`,
		`moult_worker_connections{generation="3"} 7`,
		`moult_worker_restarts_total 1`,
		`moult_worker_ready_seconds_bucket{le="0.025"} 0`,
		`moult_worker_ready_seconds_bucket{le="0.05"} 1`,
		`moult_worker_ready_seconds_bucket{le="+Inf"} 1`,
		`moult_worker_ready_seconds_sum 0.03`,
		`moult_worker_drain_seconds_bucket{le="1"} 0`,
		`moult_worker_drain_seconds_bucket{le="2.5"} 1`,
		`moult_worker_drain_seconds_sum 2.1`,
		`moult_worker_drain_seconds_count 1`,
	} {
		if !strings.Contains(text, "\n"+line+"\n") {
			t.Errorf("missing: %s", line)
		}
	}
	if strings.Contains(text, `generation="2"`) {
		t.Error("connections that the kernel does not tell are counted")
	}
	if t.Failed() {
		t.Log(text)
	}
}

func TestMetricsForgetWorkersThatLeft(t *testing.T) {
	if n := len(observed().draining); n != 0 {
		t.Errorf("%d workers are remembered", n)
	}
}
