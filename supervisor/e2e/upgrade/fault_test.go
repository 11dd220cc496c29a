//go:build linux

package upgrade

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moult/moult/supervisor/e2e/testkit"
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
			address := testkit.FreeAddress(t)
			good := "graceful"
			if strings.Contains(strings.Join(test.flags, " "), "notify") {
				good = "notifies"
			}
			p := testkit.NewPlan(t, good)
			m := testkit.Run(t, append([]string{"-l", address}, test.flags...), p.Command())
			pid := m.WaitServing(1).PID
			before := testkit.TakeStock(m.Pid())
			clients := testkit.Traffic(t, load.Config{Address: address})
			testkit.Flowing(t, clients)
			p.Set(t, test.plan)
			why := m.UpgradeFails()
			if !regexp.MustCompile(test.reason).MatchString(why.Reason) {
				t.Errorf("reason %q, want a match for %q", why.Reason, test.reason)
			}
			m.BackTo(before)
			testkit.Flowing(t, clients)
			if report := testkit.Lossless(t, clients); report.Generations["1"] != report.Requests() {
				t.Errorf("others than generation 1 answered: %v", report)
			}
			if !testkit.Alive(pid) || m.Logged(testkit.Reaches(1, "draining")) > 0 {
				t.Error("the old generation was disturbed")
			}
			p.Set(t, good)
			mark := m.Mark()
			m.Signal(syscall.SIGHUP)
			m.WaitLog(mark, "a good one serves", func(e testkit.Entry) bool { return e.To == "serving" && e.Generation > 1 })
			m.WaitState(1, "gone")
			m.Stop()
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
			script := "#!/bin/sh\nexec " + strings.Join(testkit.WorkerCommand("graceful"), " ") + "\n"
			if err := os.WriteFile(path, []byte(script), 0o755); err != nil {
				t.Fatal(err)
			}
			address := testkit.FreeAddress(t)
			m := testkit.Run(t, []string{"-l", address}, []string{path})
			m.WaitServing(1)
			before := testkit.TakeStock(m.Pid())
			clients := testkit.Traffic(t, load.Config{Address: address})
			if err := test.spoil(path); err != nil {
				t.Fatal(err)
			}
			why := m.UpgradeFails()
			if !regexp.MustCompile(test.reason).MatchString(why.Reason) {
				t.Errorf("reason %q, want a match for %q", why.Reason, test.reason)
			}
			testkit.Flowing(t, clients)
			testkit.Lossless(t, clients)
			testkit.AnsweredBy(t, address, 1)
			m.BackTo(before)
			m.Stop()
		})
	}
}

// A new generation that dies when it already serves is a crash: only what it
// had in hand may be lost, and its clients wait in the queue for the
// replacement.
func TestNewGenerationDiesSoonAfterItWasReady(t *testing.T) {
	t.Parallel()
	address := testkit.FreeAddress(t)
	p := testkit.NewPlan(t, "graceful")
	m := testkit.Run(t, []string{"-l", address}, p.Command())
	m.WaitServing(1)
	held := testkit.Hold(t, address, "/?sleep=2500ms")
	clients := testkit.Traffic(t, load.Config{Address: address, Clients: 8})
	p.Set(t, "graceful die=1s code=1")
	m.Upgrade()
	p.Set(t, "graceful")
	m.WaitState(2, "gone")
	mark := m.Mark()
	m.WaitLog(mark, "a replacement serves", func(e testkit.Entry) bool { return !e.IsPhase() && e.To == "serving" })
	testkit.Flowing(t, clients)
	testkit.OnlyInHand(t, clients, 8)
	if err := held.Finish(); err != nil {
		t.Errorf("a client of the old generation was cut: %v", err)
	}
	m.Stop()
}

func TestKillOfTheWorkerRefusesNobody(t *testing.T) {
	for _, command := range [][]string{testkit.WorkerCommand("graceful"), testkit.WorkerCommand("prefork", "n=2")} {
		t.Run(command[1], func(t *testing.T) {
			address := testkit.FreeAddress(t)
			m := testkit.Run(t, []string{"-l", address, "--restart-delay", "10ms..50ms"}, command)
			pid := m.WaitServing(1).PID
			clients := testkit.Traffic(t, load.Config{Address: address, Clients: 8})
			kills := testkit.Times(4, 2, 20)
			for range kills {
				testkit.Flowing(t, clients)
				mark := m.Mark()
				testkit.KillProcess(pid)
				pid = m.WaitLog(mark, "the replacement serves", func(e testkit.Entry) bool { return !e.IsPhase() && e.To == "serving" }).PID
			}
			testkit.Flowing(t, clients)
			testkit.OnlyInHand(t, clients, 8*kills)
			m.Stop()
		})
	}
}

// A process that left its session is ended with the worker that started it,
// before the replacement takes the same socket: else it would go on holding it.
func TestTheWholeTreeOfADeadWorkerEnds(t *testing.T) {
	t.Parallel()
	address := testkit.FreeAddress(t)
	m := testkit.Run(t, []string{"-l", address, "--restart-delay", "10ms..50ms", "--drain-timeout", "1s", "--kill-grace", "300ms"}, testkit.WorkerCommand("daemonizes"))
	first := m.WaitServing(1).PID
	apart := testkit.Children(first)
	if len(apart) != 1 {
		t.Fatalf("children of the worker: %v", apart)
	}
	mark := m.Mark()
	testkit.KillProcess(first)
	m.WaitLog(mark, "the replacement serves", func(e testkit.Entry) bool { return !e.IsPhase() && e.To == "serving" })
	testkit.Gone(t, apart[0])
	m.Stop()
}

func TestWorkerThatIgnoresTermIsKilled(t *testing.T) {
	t.Parallel()
	address := testkit.FreeAddress(t)
	p := testkit.NewPlan(t, "stubborn")
	m := testkit.Run(t, []string{"-l", address, "--drain-timeout", "500ms", "--kill-grace", "300ms", "--quiesce", "200ms"}, p.Command())
	m.WaitServing(1)
	clients := testkit.Traffic(t, load.Config{Address: address})
	testkit.Flowing(t, clients)
	p.Set(t, "graceful")
	m.Upgrade()
	m.WaitState(1, "killing")
	m.WaitState(1, "gone")
	testkit.Flowing(t, clients)
	testkit.Lossless(t, clients)
	m.Stop()
}

func TestGenerationThatTakesLongToStart(t *testing.T) {
	t.Parallel()
	delay := 2 * time.Second
	if testkit.Soak() {
		delay = 30 * time.Second
	}
	address := testkit.FreeAddress(t)
	p := testkit.NewPlan(t, "graceful")
	m := testkit.Run(t, []string{"-l", address}, p.Command())
	m.WaitServing(1)
	clients := testkit.Traffic(t, load.Config{Address: address, Clients: 4})
	p.Set(t, "graceful delay="+delay.String())
	asked, mark := time.Now(), m.Mark()
	m.Signal(syscall.SIGHUP)
	m.WaitLog(mark, "upgrading", testkit.Phase("upgrading"))
	testkit.AnsweredBy(t, address, 1)
	m.WaitLogFor(delay+testkit.Patience, mark, "generation 2 serves", testkit.Over(2))
	if took := time.Since(asked); took < delay {
		t.Errorf("ready after %v, before it could be", took)
	}
	testkit.Lossless(t, clients)
	testkit.AnsweredBy(t, address, 2)
	m.Stop()
}

// TERM at each moment at which something else is going on: the master leaves
// with 0, in time, and nothing of it stays.
func TestStopAtEveryMoment(t *testing.T) {
	upgradeTo := func(next string) func(*testing.T, *testkit.Master, testkit.Plan) {
		return func(t *testing.T, m *testkit.Master, p testkit.Plan) {
			m.WaitServing(1)
			p.Set(t, next)
			m.Signal(syscall.SIGHUP)
			m.WaitState(2, "starting")
		}
	}
	tests := []struct {
		name   string
		plan   string
		moment func(*testing.T, *testkit.Master, testkit.Plan)
	}{
		{"the first generation starts", "graceful delay=30s", func(_ *testing.T, m *testkit.Master, _ testkit.Plan) { m.WaitState(1, "starting") }},
		{"the first generation starts and ignores TERM", "lingers", func(_ *testing.T, m *testkit.Master, _ testkit.Plan) { m.WaitState(1, "starting") }},
		{"a generation serves", "plain", func(_ *testing.T, m *testkit.Master, _ testkit.Plan) { m.WaitServing(1) }},
		{"a generation serves and ignores TERM", "stubborn", func(_ *testing.T, m *testkit.Master, _ testkit.Plan) { m.WaitServing(1) }},
		{"the next one starts slowly", "graceful", upgradeTo("graceful delay=30s")},
		{"the next one starts and ignores TERM", "graceful", upgradeTo("lingers")},
		{"the next one has died after it was ready", "graceful", func(t *testing.T, m *testkit.Master, p testkit.Plan) {
			upgradeTo("graceful die=300ms code=1")(t, m, p)
			m.WaitState(2, "gone")
		}},
		{"the old one ignores TERM", "stubborn", func(t *testing.T, m *testkit.Master, p testkit.Plan) {
			upgradeTo("graceful")(t, m, p)
			m.WaitState(1, "draining")
		}},
		{"one more upgrade is remembered", "graceful", func(t *testing.T, m *testkit.Master, p testkit.Plan) {
			upgradeTo("graceful delay=30s")(t, m, p)
			m.Signal(syscall.SIGHUP)
			m.Signal(syscall.SIGHUP)
		}},
		{"the first one's upgrade is remembered", "graceful delay=30s", func(_ *testing.T, m *testkit.Master, _ testkit.Plan) {
			m.WaitState(1, "starting")
			m.Signal(syscall.SIGHUP)
		}},
		{"a crashed worker waits for its turn", "graceful", func(t *testing.T, m *testkit.Master, p testkit.Plan) {
			pid := m.WaitServing(1).PID
			p.Set(t, "exit code=1")
			testkit.KillProcess(pid)
			testkit.Until(t, "no worker is left", func() error {
				if kids := testkit.Children(m.Pid()); len(kids) > 0 {
					return errors.New(testkit.Describe(kids))
				}
				return nil
			})
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			address := testkit.FreeAddress(t)
			p := testkit.NewPlan(t, test.plan)
			m := testkit.Run(t, []string{"-l", address, "--drain-timeout", "1s", "--kill-grace", "300ms", "--restart-delay", "5s..30s"}, p.Command())
			test.moment(t, m, p)
			m.Stop()
			if testkit.GenerationAt("tcp", address) != 0 {
				t.Error("somebody still answers")
			}
		})
	}
}

func TestRestartsAreSpacedMoreAndMore(t *testing.T) {
	t.Parallel()
	address := testkit.FreeAddress(t)
	p := testkit.NewPlan(t, "graceful")
	m := testkit.Run(t, []string{"-l", address, "--restart-delay", "100ms..10s"}, p.Command())
	pid := m.WaitServing(1).PID
	p.Set(t, "exit code=1")
	testkit.KillProcess(pid)
	starts := func() int {
		return m.Logged(func(e testkit.Entry) bool { return !e.IsPhase() && e.To == "starting" })
	}
	testkit.Until(t, "five starts", func() error { return testkit.AtLeast(starts(), 5) })
	fifth := time.Now()
	testkit.Until(t, "the seventh start", func() error { return testkit.AtLeast(starts(), 7) })
	if gap := time.Since(fifth); gap < 300*time.Millisecond {
		t.Errorf("the fifth and the seventh start lie %v apart", gap)
	}
	p.Set(t, "graceful")
	testkit.Answers(t, "tcp", address)
	m.Stop()
}

func TestHangupEndsTheWaitForARestart(t *testing.T) {
	t.Parallel()
	address := testkit.FreeAddress(t)
	p := testkit.NewPlan(t, "graceful")
	m := testkit.Run(t, []string{"-l", address, "--restart-delay", "30s..60s"}, p.Command())
	pid := m.WaitServing(1).PID
	p.Set(t, "exit code=1")
	testkit.KillProcess(pid) // replaced at once, and that one dies too
	m.WaitLog(0, "the replacement died", func(e testkit.Entry) bool { return e.PID != pid && e.To == "gone" })
	p.Set(t, "graceful")
	m.Signal(syscall.SIGHUP)
	testkit.Answers(t, "tcp", address)
	m.Stop()
}

func TestOneOfSeveralWorkersIsReplaced(t *testing.T) {
	address := testkit.FreeAddress(t)
	m := testkit.Run(t, []string{"-l", address, "--workers", "3", "--restart-delay", "10ms..50ms"}, testkit.WorkerCommand("graceful"))
	m.WaitServing(1)
	clients := testkit.Traffic(t, load.Config{Address: address, Clients: 8})
	testkit.Flowing(t, clients)
	mark := m.Mark()
	kids := testkit.Children(m.Pid())
	if len(kids) != 3 {
		t.Fatalf("workers: %s", testkit.Describe(kids))
	}
	testkit.KillProcess(kids[0])
	m.WaitLog(mark, "the replacement serves", func(e testkit.Entry) bool { return !e.IsPhase() && e.To == "serving" })
	testkit.Flowing(t, clients)
	testkit.OnlyInHand(t, clients, 8)
	testkit.Until(t, "three workers answer", func() error { return testkit.AtLeast(len(testkit.Children(m.Pid())), 3) })
	m.Stop()
}

func TestMasterReapsOrphans(t *testing.T) {
	t.Parallel()
	address := testkit.FreeAddress(t)
	m := testkit.Run(t, []string{"-l", address}, testkit.WorkerCommand("orphans", "n="+strconv.Itoa(20)))
	pid := m.WaitServing(1).PID
	testkit.Until(t, "the worker is the only child", func() error {
		if kids := testkit.Children(m.Pid()); len(kids) != 1 || kids[0] != pid {
			return errors.New(testkit.Describe(kids))
		}
		return nil
	})
	if n := m.Logged(testkit.Reaches(1, "gone")); n != 0 {
		t.Error("an orphan's end was taken for the worker's")
	}
	m.Stop()
}

func TestFailedUpgradesLeaveNothingBehind(t *testing.T) {
	t.Parallel()
	address := testkit.FreeAddress(t)
	p := testkit.NewPlan(t, "graceful")
	m := testkit.Run(t, []string{"-l", address}, p.Command())
	m.WaitServing(1)
	before := testkit.TakeStock(m.Pid())
	for _, bad := range []string{"exit code=1", "killed", "exit code=0"} {
		p.Set(t, bad)
		for range testkit.Times(5, 2, 100) {
			m.UpgradeFails()
		}
	}
	m.BackTo(before)
	testkit.AnsweredBy(t, address, 1)
	m.Stop()
}
