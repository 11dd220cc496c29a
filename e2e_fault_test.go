//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moult/moult/supervisor/load"
)

// An upgrade that fails changes nothing: the clients of the old generation
// notice nothing, and the log says why.
func TestFailedUpgradeChangesNothing(t *testing.T) {
	tests := []struct {
		name   string
		plan   string
		flags  []string
		reason string // a pattern that the reason must match
	}{
		{"leaves at once", "exit code=3", nil, `\b3\b`},
		{"leaves at once with 0", "exit code=0", nil, `\b0\b|exit|end`},
		{"is killed at once", "killed", nil, `(?i)kill|\b9\b`},
		{"never accepts", "silent", []string{"--ready-timeout", "1s"}, `(?i)ready|1s`},
		{"says ready and never accepts", "ready-silent", []string{"--ready-timeout", "1s"}, `(?i)ready|accept|1s`},
		{"ignores TERM and never accepts", "lingers", []string{"--ready-timeout", "1s", "--kill-grace", "300ms"}, `(?i)ready|1s`},
		{"dies while starting", "sh sleep 0.3; exit 4", nil, `\b4\b`},
		{"never says ready", "graceful", []string{"--ready", "notify", "--ready-timeout", "1s"}, `(?i)ready|1s`},
		{"dies before it has lived long enough", "graceful die=300ms code=5", []string{"--ready", "alive=1s"}, `\b5\b`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			address := freeAddress(t)
			good := "graceful"
			if strings.Contains(strings.Join(test.flags, " "), "notify") {
				good = "notifies"
			}
			p := newPlan(t, good)
			m := run(t, append([]string{"-l", address}, test.flags...), p.command())
			pid := m.waitServing(1).PID
			before := takeStock(m.pid())
			clients := traffic(t, load.Config{Address: address})
			flowing(t, clients)
			p.set(t, test.plan)
			why := m.upgradeFails()
			if !regexp.MustCompile(test.reason).MatchString(why.Reason) {
				t.Errorf("reason %q, want a match for %q", why.Reason, test.reason)
			}
			m.backTo(before)
			flowing(t, clients)
			if report := lossless(t, clients); report.Generations["1"] != report.Requests() {
				t.Errorf("others than generation 1 answered: %v", report)
			}
			if !alive(pid) || m.logged(reaches(1, "draining")) > 0 {
				t.Error("the old generation was disturbed")
			}
			p.set(t, good)
			mark := m.mark()
			m.signal(syscall.SIGHUP)
			m.waitLog(mark, "a good one serves", func(e entry) bool { return e.To == "serving" && e.Generation > 1 })
			m.waitState(1, "gone")
			m.stop()
		})
	}
}

func TestCommandThatCannotBeExecuted(t *testing.T) {
	tests := []struct {
		name   string
		spoil  func(path string) error
		reason string
	}{
		{"gone", os.Remove, `(?i)no such file|not found`},
		{"not executable", func(path string) error { return os.Chmod(path, 0o644) }, `(?i)permission`},
		{"not a program", func(path string) error { return os.WriteFile(path, []byte("\x7fELF and no more"), 0o755) }, `(?i)exec format|cannot`},
		{"its interpreter is gone", func(path string) error {
			return os.WriteFile(path, []byte("#!/nonexistent/interpreter\n"), 0o755)
		}, `(?i)no such file|interpreter`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "server")
			script := "#!/bin/sh\nexec " + strings.Join(worker("graceful"), " ") + "\n"
			if err := os.WriteFile(path, []byte(script), 0o755); err != nil {
				t.Fatal(err)
			}
			address := freeAddress(t)
			m := run(t, []string{"-l", address}, []string{path})
			m.waitServing(1)
			before := takeStock(m.pid())
			clients := traffic(t, load.Config{Address: address})
			if err := test.spoil(path); err != nil {
				t.Fatal(err)
			}
			why := m.upgradeFails()
			if !regexp.MustCompile(test.reason).MatchString(why.Reason) {
				t.Errorf("reason %q, want a match for %q", why.Reason, test.reason)
			}
			flowing(t, clients)
			lossless(t, clients)
			answeredBy(t, address, 1)
			m.backTo(before)
			m.stop()
		})
	}
}

// A new generation that dies when it already serves is a crash: only what it
// had in hand may be lost, and its clients wait in the queue for the
// replacement.
func TestNewGenerationDiesSoonAfterItWasReady(t *testing.T) {
	t.Parallel()
	address := freeAddress(t)
	p := newPlan(t, "graceful")
	m := run(t, []string{"-l", address}, p.command())
	m.waitServing(1)
	held := hold(t, address, "/?sleep=2500ms")
	clients := traffic(t, load.Config{Address: address, Clients: 8})
	p.set(t, "graceful die=1s code=1")
	m.upgrade()
	p.set(t, "graceful")
	m.waitState(2, "gone")
	mark := m.mark()
	m.waitLog(mark, "a replacement serves", func(e entry) bool { return !e.isPhase() && e.To == "serving" })
	flowing(t, clients)
	onlyInHand(t, clients, 8)
	if err := held.finish(); err != nil {
		t.Errorf("a client of the old generation was cut: %v", err)
	}
	m.stop()
}

// onlyInHand checks that a crash has cost no more than one request per client.
func onlyInHand(t *testing.T, clients *load.Traffic, crashes int) {
	t.Helper()
	report := clients.Stop()
	total := report.Total()
	cut := total.Failed[load.Reset] + total.Failed[load.Short]
	if total.Failures() != cut || cut > crashes {
		t.Errorf("more was lost than was in hand (%d at most): %v", crashes, report)
	}
}

func TestKillOfTheWorkerRefusesNobody(t *testing.T) {
	for _, command := range [][]string{worker("graceful"), worker("prefork", "n=2")} {
		t.Run(command[1], func(t *testing.T) {
			address := freeAddress(t)
			m := run(t, []string{"-l", address, "--restart-delay", "10ms..50ms"}, command)
			pid := m.waitServing(1).PID
			clients := traffic(t, load.Config{Address: address, Clients: 8})
			kills := times(4, 2, 20)
			for range kills {
				flowing(t, clients)
				mark := m.mark()
				killProcess(pid)
				pid = m.waitLog(mark, "the replacement serves", func(e entry) bool { return !e.isPhase() && e.To == "serving" }).PID
			}
			flowing(t, clients)
			onlyInHand(t, clients, 8*kills)
			m.stop()
		})
	}
}

// A process that left its session is ended with the worker that started it,
// before the replacement takes the same socket: else it would go on holding it.
func TestTheWholeTreeOfADeadWorkerEnds(t *testing.T) {
	t.Parallel()
	address := freeAddress(t)
	m := run(t, []string{"-l", address, "--restart-delay", "10ms..50ms", "--drain-timeout", "1s", "--kill-grace", "300ms"}, worker("daemonizes"))
	first := m.waitServing(1).PID
	apart := children(first)
	if len(apart) != 1 {
		t.Fatalf("children of the worker: %v", apart)
	}
	mark := m.mark()
	killProcess(first)
	m.waitLog(mark, "the replacement serves", func(e entry) bool { return !e.isPhase() && e.To == "serving" })
	gone(t, apart[0])
	m.stop()
}

func TestWorkerThatIgnoresTermIsKilled(t *testing.T) {
	t.Parallel()
	address := freeAddress(t)
	p := newPlan(t, "stubborn")
	m := run(t, []string{"-l", address, "--drain-timeout", "500ms", "--kill-grace", "300ms", "--quiesce", "200ms"}, p.command())
	m.waitServing(1)
	clients := traffic(t, load.Config{Address: address})
	flowing(t, clients)
	p.set(t, "graceful")
	m.upgrade()
	m.waitState(1, "killing")
	m.waitState(1, "gone")
	flowing(t, clients)
	lossless(t, clients)
	m.stop()
}

func TestGenerationThatTakesLongToStart(t *testing.T) {
	t.Parallel()
	delay := 2 * time.Second
	if soak() {
		delay = 30 * time.Second
	}
	address := freeAddress(t)
	p := newPlan(t, "graceful")
	m := run(t, []string{"-l", address}, p.command())
	m.waitServing(1)
	clients := traffic(t, load.Config{Address: address, Clients: 4})
	p.set(t, "graceful delay="+delay.String())
	asked, mark := time.Now(), m.mark()
	m.signal(syscall.SIGHUP)
	m.waitLog(mark, "upgrading", phase("upgrading"))
	answeredBy(t, address, 1)
	m.waitLogFor(delay+patience, mark, "generation 2 serves", over(2))
	if took := time.Since(asked); took < delay {
		t.Errorf("ready after %v, before it could be", took)
	}
	lossless(t, clients)
	answeredBy(t, address, 2)
	m.stop()
}

// TERM at each moment at which something else is going on: the master leaves
// with 0, in time, and nothing of it stays.
func TestStopAtEveryMoment(t *testing.T) {
	upgradeTo := func(next string) func(*testing.T, *master, plan) {
		return func(t *testing.T, m *master, p plan) {
			m.waitServing(1)
			p.set(t, next)
			m.signal(syscall.SIGHUP)
			m.waitState(2, "starting")
		}
	}
	tests := []struct {
		name   string
		plan   string
		moment func(*testing.T, *master, plan)
	}{
		{"the first generation starts", "graceful delay=30s", func(_ *testing.T, m *master, _ plan) { m.waitState(1, "starting") }},
		{"the first generation starts and ignores TERM", "lingers", func(_ *testing.T, m *master, _ plan) { m.waitState(1, "starting") }},
		{"a generation serves", "plain", func(_ *testing.T, m *master, _ plan) { m.waitServing(1) }},
		{"a generation serves and ignores TERM", "stubborn", func(_ *testing.T, m *master, _ plan) { m.waitServing(1) }},
		{"the next one starts slowly", "graceful", upgradeTo("graceful delay=30s")},
		{"the next one starts and ignores TERM", "graceful", upgradeTo("lingers")},
		{"the next one has died after it was ready", "graceful", func(t *testing.T, m *master, p plan) {
			upgradeTo("graceful die=300ms code=1")(t, m, p)
			m.waitState(2, "gone")
		}},
		{"the old one ignores TERM", "stubborn", func(t *testing.T, m *master, p plan) {
			upgradeTo("graceful")(t, m, p)
			m.waitState(1, "draining")
		}},
		{"one more upgrade is remembered", "graceful", func(t *testing.T, m *master, p plan) {
			upgradeTo("graceful delay=30s")(t, m, p)
			m.signal(syscall.SIGHUP)
			m.signal(syscall.SIGHUP)
		}},
		{"the first one's upgrade is remembered", "graceful delay=30s", func(_ *testing.T, m *master, _ plan) {
			m.waitState(1, "starting")
			m.signal(syscall.SIGHUP)
		}},
		{"a crashed worker waits for its turn", "graceful", func(t *testing.T, m *master, p plan) {
			pid := m.waitServing(1).PID
			p.set(t, "exit code=1")
			killProcess(pid)
			until(t, "no worker is left", func() error {
				if kids := children(m.pid()); len(kids) > 0 {
					return errors.New(describe(kids))
				}
				return nil
			})
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			address := freeAddress(t)
			p := newPlan(t, test.plan)
			m := run(t, []string{"-l", address, "--drain-timeout", "1s", "--kill-grace", "300ms", "--restart-delay", "5s..30s"}, p.command())
			test.moment(t, m, p)
			m.stop()
			if generationAt("tcp", address) != 0 {
				t.Error("somebody still answers")
			}
		})
	}
}

func TestRestartsAreSpacedMoreAndMore(t *testing.T) {
	t.Parallel()
	address := freeAddress(t)
	p := newPlan(t, "graceful")
	m := run(t, []string{"-l", address, "--restart-delay", "100ms..10s"}, p.command())
	pid := m.waitServing(1).PID
	p.set(t, "exit code=1")
	killProcess(pid)
	starts := func() int {
		return m.logged(func(e entry) bool { return !e.isPhase() && e.To == "starting" })
	}
	until(t, "five starts", func() error { return atLeast(starts(), 5) })
	fifth := time.Now()
	until(t, "the seventh start", func() error { return atLeast(starts(), 7) })
	if gap := time.Since(fifth); gap < 300*time.Millisecond {
		t.Errorf("the fifth and the seventh start lie %v apart", gap)
	}
	p.set(t, "graceful")
	answers(t, "tcp", address)
	m.stop()
}

func atLeast(n, want int) error {
	if n < want {
		return fmt.Errorf("%d, want %d", n, want)
	}
	return nil
}

func TestHangupEndsTheWaitForARestart(t *testing.T) {
	t.Parallel()
	address := freeAddress(t)
	p := newPlan(t, "graceful")
	m := run(t, []string{"-l", address, "--restart-delay", "30s..60s"}, p.command())
	pid := m.waitServing(1).PID
	p.set(t, "exit code=1")
	killProcess(pid) // replaced at once, and that one dies too
	m.waitLog(0, "the replacement died", func(e entry) bool { return e.PID != pid && e.To == "gone" })
	p.set(t, "graceful")
	m.signal(syscall.SIGHUP)
	answers(t, "tcp", address)
	m.stop()
}

func TestOneOfSeveralWorkersIsReplaced(t *testing.T) {
	address := freeAddress(t)
	m := run(t, []string{"-l", address, "--workers", "3", "--restart-delay", "10ms..50ms"}, worker("graceful"))
	m.waitServing(1)
	clients := traffic(t, load.Config{Address: address, Clients: 8})
	flowing(t, clients)
	mark := m.mark()
	kids := children(m.pid())
	if len(kids) != 3 {
		t.Fatalf("workers: %s", describe(kids))
	}
	killProcess(kids[0])
	m.waitLog(mark, "the replacement serves", func(e entry) bool { return !e.isPhase() && e.To == "serving" })
	flowing(t, clients)
	onlyInHand(t, clients, 8)
	until(t, "three workers answer", func() error { return atLeast(len(children(m.pid())), 3) })
	m.stop()
}

func TestMasterReapsOrphans(t *testing.T) {
	t.Parallel()
	address := freeAddress(t)
	m := run(t, []string{"-l", address}, worker("orphans", "n="+strconv.Itoa(20)))
	pid := m.waitServing(1).PID
	until(t, "the worker is the only child", func() error {
		if kids := children(m.pid()); len(kids) != 1 || kids[0] != pid {
			return errors.New(describe(kids))
		}
		return nil
	})
	if n := m.logged(reaches(1, "gone")); n != 0 {
		t.Error("an orphan's end was taken for the worker's")
	}
	m.stop()
}
