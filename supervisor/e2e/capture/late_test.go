//go:build linux

package capture

import (
	"strings"
	"syscall"
	"testing"

	"github.com/moult/moult/supervisor/e2e/testkit"
	"github.com/moult/moult/supervisor/load"
)

// Addresses that a worker binds, or closes, long after the others. Long is what
// a request for a slow answer takes, which is then in hand.
const longRequest = "/?sleep=6s"

func replaced(e testkit.Entry) bool { return !e.IsPhase() && e.To == "serving" }

// The old generation serves on until the new one has bound the last address.
func TestSecondAddressComesLate(t *testing.T) {
	testkit.TakesLong(t)
	t.Parallel()
	early, late, door := testkit.FreeAddress(t), testkit.FreeAddress(t), testkit.NewGate(t)
	m := testkit.Binds(t, nil, "tcp="+early, door.Step(), "tcp="+late)
	door.Pass(t)
	m.WaitServing(1)
	testkit.Answers(t, "tcp", late)
	clients := testkit.Traffic(t, load.Config{Address: late, Clients: 8})
	testkit.Flowing(t, clients)
	m.Signal(syscall.SIGHUP)
	m.Said(2, "waits")
	if err := testkit.Hold(t, early, longRequest).Finish(); err != nil {
		t.Error(err)
	}
	if m.Logged(testkit.Reaches(2, "serving")) != 0 {
		t.Error("generation 2 serves without the second address")
	}
	testkit.Flowing(t, clients)
	door.Pass(t)
	m.WaitServing(2)
	m.WaitState(1, "gone")
	testkit.Flowing(t, clients)
	testkit.Lossless(t, clients)
	testkit.AnsweredBy(t, late, 2)
	m.Stop()
}

// What comes after a crash waits for a replacement that takes its time.
func TestReplacementBindsTheSecondAddressLate(t *testing.T) {
	testkit.TakesLong(t)
	t.Parallel()
	early, late, door := testkit.FreeAddress(t), testkit.FreeAddress(t), testkit.NewGate(t)
	m := testkit.Binds(t, []string{"--restart-delay", "10ms..50ms"}, "tcp="+early, door.Step(), "tcp="+late)
	door.Pass(t)
	pid := m.WaitServing(1).PID
	testkit.Answers(t, "tcp", late)
	mark := m.Mark()
	testkit.KillProcess(pid)
	m.WaitLog(mark, "the replacement waits", func(e testkit.Entry) bool { return strings.HasPrefix(e.Raw, "waits ") })
	queue := testkit.SendTo(t, late, 10)
	if err := testkit.Hold(t, early, longRequest).Finish(); err != nil {
		t.Error(err)
	}
	queue = append(queue, testkit.SendTo(t, late, 10)...)
	door.Pass(t)
	for i, request := range queue {
		if err := request.Finish(); err != nil {
			t.Errorf("request %d that came before the address was bound again: %v", i, err)
		}
	}
	m.Stop()
}

// A replacement that does not bind all that the first one did serves, however
// short the time for being ready is, and what it lacks is refused in the end.
func TestReplacementThatLacksAnAddress(t *testing.T) {
	testkit.TakesLong(t)
	t.Parallel()
	kept, lost := testkit.FreeAddress(t), testkit.FreeAddress(t)
	p := testkit.NewPlan(t, "binds tcp="+kept+" tcp="+lost)
	m := testkit.Run(t, []string{"--ready-timeout", "3s", "--restart-delay", "10ms..50ms"}, p.Command())
	pid := m.WaitServing(1).PID
	p.Set(t, "binds tcp="+kept)
	mark := m.Mark()
	testkit.KillProcess(pid)
	pid = m.WaitLog(mark, "the replacement serves", replaced).PID
	testkit.Refused(t, lost)
	if got := testkit.AskSelf(t, "tcp", kept).PID; got != pid {
		t.Errorf("process %d answers, want the first replacement, %d", got, pid)
	}
	m.UpgradeUnderLoadOf(1, kept)
	m.Stop()
}

// An upgrade takes over what a dead generation has left, binds one address more,
// and fails: the master keeps nothing of it.
func TestFailedTakeoverLeavesNothingBehind(t *testing.T) {
	testkit.TakesLong(t)
	t.Parallel()
	kept, added := testkit.FreeAddress(t), testkit.FreeAddress(t)
	p := testkit.NewPlan(t, "binds tcp="+kept)
	m := testkit.Run(t, []string{"--restart-delay", "10s..10s"}, p.Command())
	pid := m.WaitServing(1).PID
	p.Set(t, "sh exit 3")
	mark := m.Mark()
	testkit.KillProcess(pid)
	m.WaitLog(mark, "no worker lives for a while", testkit.Mentions("started again after a delay"))
	queue := testkit.SendTo(t, kept, 10)
	p.Set(t, "binds tcp="+added+" exit=3")
	m.UpgradeFails()
	m.BoundBy(2, 1)
	p.Set(t, "binds tcp="+kept)
	testkit.Refused(t, added)
	if m.Logged(testkit.Reaches(1, "starting")) != 2 {
		t.Error("it listens on until a replacement is started")
	}
	for i, request := range queue {
		if err := request.Finish(); err != nil {
			t.Errorf("request %d that came while nobody lived: %v", i, err)
		}
	}
	testkit.Refused(t, added)
	m.UpgradeUnderLoadOf(1, kept)
	m.Stop()
}

// No upgrade waits for an address that has been closed for long.
func TestAddressClosedLongAfterItsBind(t *testing.T) {
	testkit.TakesLong(t)
	t.Parallel()
	kept, closed := testkit.FreeAddress(t), testkit.FreeAddress(t)
	p := testkit.NewPlan(t, "binds tcp="+kept+" tcp="+closed)
	m := testkit.Run(t, []string{"--ready-timeout", "60s"}, p.Command())
	m.WaitServing(1)
	testkit.Answers(t, "tcp", closed)
	if err := testkit.Hold(t, kept, longRequest).Finish(); err != nil {
		t.Error(err)
	}
	if _, _, err := testkit.Get("tcp", kept, "/close"); err != nil {
		t.Fatal(err)
	}
	p.Set(t, "binds tcp="+kept)
	mark := m.Mark()
	m.Upgrade() // within the tests' patience, which is shorter than half a minute
	testkit.Refused(t, closed)
	m.Mu.Lock()
	defer m.Mu.Unlock()
	for _, e := range m.Entries[mark:] {
		if e.Level == "warn" && strings.Contains(e.Raw, closed) {
			t.Errorf("the log says that it is still served: %s", e.Raw)
		}
	}
}
