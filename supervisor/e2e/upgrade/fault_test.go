//go:build linux

package upgrade

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moult/moult/supervisor/e2e/testkit"
)

// An upgrade that fails changes nothing: the clients of the old generation
// notice nothing, and the log says why.
func TestFailedUpgradeChangesNothing(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		plan   string
		flags  string
		reason string // a pattern that the reason must match
	}{
		{"leaves at once", "exit code=3", "", `\b3\b`},
		{"leaves at once with 0", "exit code=0", "", `\b0\b|exit|end`},
		{"is killed at once", "killed", "", `(?i)kill|\b9\b`},
		{"never accepts", "silent", "--ready-timeout 1s", `(?i)ready|1s`},
		{"says ready and never accepts", "ready-silent", "--ready-timeout 1s", `(?i)ready|accept|1s`},
		{"ignores TERM and never accepts", "lingers", "--ready-timeout 1s --kill-grace 300ms", `(?i)ready|1s`},
		{"dies while starting", "sh sleep 0.3; exit 4", "", `\b4\b`},
		{"never says ready", "graceful", "--ready notify --ready-timeout 1s", `(?i)ready|1s`},
		{"dies before it has lived long enough", "graceful die=300ms code=5", "--ready alive=1s", `\b5\b`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			good := "graceful"
			if strings.Contains(test.flags, "notify") {
				good = "notifies"
			}
			m := testkit.Listen(t, good, strings.Fields(test.flags)...)
			pid := m.WaitServing(1).PID
			failsAndChangesNothing(t, m, func() { m.Next(test.plan) }, test.reason)
			if !testkit.Alive(pid) || m.Logged(testkit.Reaches(1, "draining")) > 0 {
				t.Error("the old generation was disturbed")
			}
			m.Next(good)
			mark := m.Mark()
			m.Signal(syscall.SIGHUP)
			m.WaitReplaced(mark)
			m.WaitState(1, "gone")
		})
	}
}

// failsAndChangesNothing upgrades under load, after something was spoilt.
func failsAndChangesNothing(t *testing.T, m *testkit.Master, spoil func(), reason string) {
	t.Helper()
	before := testkit.TakeStock(m.PID())
	clients := m.Ask(16)
	clients.Flow()
	spoil()
	if why := m.UpgradeFails(); !regexp.MustCompile(reason).MatchString(why.Reason) {
		t.Errorf("reason %q, want a match for %q", why.Reason, reason)
	}
	m.BackTo(before)
	clients.Flow()
	if report := clients.Lossless(); report.Generations["1"] != report.Requests() {
		t.Errorf("others than generation 1 answered: %v", report)
	}
	m.AnsweredBy(1)
}

func TestCommandThatCannotBeExecuted(t *testing.T) {
	t.Parallel()
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
			script := "#!/bin/sh\nexec " + strings.Join(testkit.Worker("graceful"), " ") + "\n"
			testkit.OK(t, os.WriteFile(path, []byte(script), 0o755))
			m := testkit.Run(t, []string{"-l", "{a}"}, []string{path}).Serving()
			failsAndChangesNothing(t, m, func() { testkit.OK(t, test.spoil(path)) }, test.reason)
		})
	}
}

func TestFailedUpgradesLeaveNothingBehind(t *testing.T) {
	t.Parallel()
	m := testkit.Listen(t, "graceful").Serving()
	before := testkit.TakeStock(m.PID())
	for _, bad := range []string{"exit code=1", "killed", "exit code=0"} {
		m.Next(bad)
		for range testkit.Times(5, 2, 100) {
			m.UpgradeFails()
		}
	}
	m.BackTo(before)
	m.AnsweredBy(1)
}

// A new generation that dies when it already serves is a crash: only what it
// had in hand may be lost, and its clients wait in the queue for the
// replacement.
func TestNewGenerationDiesSoonAfterItWasReady(t *testing.T) {
	t.Parallel()
	m := testkit.Listen(t, "graceful").Serving()
	held := m.Hold("/?sleep=2500ms")
	clients := m.Ask(8)
	m.Next("graceful die=1s code=1")
	m.Upgrade()
	m.Next("graceful")
	m.WaitState(2, "gone")
	m.WaitReplaced(m.Mark())
	clients.Flow()
	clients.OnlyInHand(8)
	testkit.Finish(t, "of the old generation", held)
}

func TestKillOfTheWorkerRefusesNobody(t *testing.T) {
	t.Parallel()
	for _, plan := range []string{"graceful", "prefork n=2"} {
		t.Run(plan, func(t *testing.T) {
			t.Parallel()
			m := testkit.Listen(t, plan, "--restart-delay", "10ms..50ms")
			pid := m.WaitServing(1).PID
			clients := m.Ask(8)
			kills := testkit.Times(4, 2, 20)
			for range kills {
				clients.Flow()
				mark := m.Mark()
				testkit.KillProcess(pid)
				pid = m.WaitReplaced(mark)
			}
			clients.Flow()
			clients.OnlyInHand(8 * kills)
		})
	}
}

// A process that left its session is ended with the worker that started it,
// before the replacement takes the same socket: else it would go on holding it.
func TestTheWholeTreeOfADeadWorkerEnds(t *testing.T) {
	t.Parallel()
	m := testkit.Listen(t, "daemonizes", "--restart-delay", "10ms..50ms", "--drain-timeout", "1s", "--kill-grace", "300ms")
	first := m.WaitServing(1).PID
	apart := testkit.Children(first)
	if len(apart) != 1 {
		t.Fatalf("children of the worker: %v", apart)
	}
	mark := m.Mark()
	testkit.KillProcess(first)
	m.WaitReplaced(mark)
	testkit.Gone(t, apart[0])
}

func TestWorkerThatIgnoresTermIsKilled(t *testing.T) {
	t.Parallel()
	m := testkit.Listen(t, "stubborn", "--drain-timeout", "500ms", "--kill-grace", "300ms", "--quiesce", "200ms").Serving()
	clients := m.Ask(16)
	clients.Flow()
	m.Next("graceful")
	m.Upgrade()
	m.WaitState(1, "killing")
	m.WaitState(1, "gone")
	clients.Flow()
	clients.Lossless()
}

func TestGenerationThatTakesLongToStart(t *testing.T) {
	t.Parallel()
	delay := time.Duration(testkit.Times(2, 1, 30)) * time.Second
	m := testkit.Listen(t, "graceful").Serving()
	clients := m.Ask(4)
	m.Next("graceful delay=" + delay.String())
	asked, mark := time.Now(), m.Mark()
	m.Signal(syscall.SIGHUP)
	m.WaitLog(mark, "upgrading", testkit.Phase("upgrading"))
	m.AnsweredBy(1)
	m.WaitLogFor(delay+20*time.Second, mark, "generation 2 serves", testkit.Over(2))
	if took := time.Since(asked); took < delay {
		t.Errorf("ready after %v, before it could be", took)
	}
	clients.Lossless()
	m.AnsweredBy(2)
}

func TestRestartsAreSpacedMoreAndMore(t *testing.T) {
	t.Parallel()
	m := testkit.Listen(t, "graceful", "--restart-delay", "100ms..10s")
	pid := m.WaitServing(1).PID
	m.Next("exit code=1")
	testkit.KillProcess(pid)
	starts := func(want int) time.Time {
		testkit.Until(t, "starts", func() error { return testkit.AtLeast(m.Logged(testkit.Reaches(1, "starting")), want) })
		return time.Now()
	}
	fifth := starts(5)
	if gap := starts(7).Sub(fifth); gap < 300*time.Millisecond {
		t.Errorf("the fifth and the seventh start lie %v apart", gap)
	}
	m.Next("graceful")
	testkit.Answers(t, m.Address)
}

func TestHangupEndsTheWaitForARestart(t *testing.T) {
	t.Parallel()
	m := testkit.Listen(t, "graceful", "--restart-delay", "30s..60s")
	pid := m.WaitServing(1).PID
	m.Next("exit code=1")
	testkit.KillProcess(pid) // replaced at once, and that one dies too
	m.WaitLog(0, "the replacement died", func(e testkit.Entry) bool { return e.PID != pid && e.To == "gone" })
	m.Next("graceful")
	m.Signal(syscall.SIGHUP)
	testkit.Answers(t, m.Address)
}

func TestOneOfSeveralWorkersIsReplaced(t *testing.T) {
	t.Parallel()
	m := testkit.Listen(t, "graceful", "--workers", "3", "--restart-delay", "10ms..50ms").Serving()
	clients := m.Ask(8)
	clients.Flow()
	mark := m.Mark()
	kids := testkit.Children(m.PID())
	if len(kids) != 3 {
		t.Fatalf("workers: %s", testkit.Describe(kids))
	}
	testkit.KillProcess(kids[0])
	m.WaitReplaced(mark)
	clients.Flow()
	clients.OnlyInHand(8)
	testkit.Until(t, "three workers live", func() error { return testkit.AtLeast(len(testkit.Children(m.PID())), 3) })
}

func TestMasterReapsOrphans(t *testing.T) {
	t.Parallel()
	m := testkit.Listen(t, "orphans n=20")
	pid := m.WaitServing(1).PID
	testkit.Until(t, "the worker is the only child", func() error {
		if kids := testkit.Children(m.PID()); len(kids) != 1 || kids[0] != pid {
			return errors.New(testkit.Describe(kids))
		}
		return nil
	})
	if n := m.Logged(testkit.Reaches(1, "gone")); n != 0 {
		t.Error("an orphan's end was taken for the worker's")
	}
}
