//go:build linux

package capture

import (
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moult/moult/supervisor/e2e/testkit"
)

// Generations that do not bind the same addresses, addresses that come or go
// late, and those of an interface.

// The more specific of two addresses would take clients from the old
// generation before the new one is promoted.
func TestOverlappingAddressesAreRefused(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, first, next string }{
		{"any of IPv4 beside dual stack", "tcp=[::]", "tcp4=0.0.0.0"},
		{"loopback beside dual stack", "tcp=[::]", "tcp4=127.0.0.1"},
		{"IPv6 loopback beside dual stack", "tcp=[::]", "tcp=[::1]"},
		{"loopback beside any", "tcp4=0.0.0.0", "tcp4=127.0.0.1"},
		{"dual stack beside any", "tcp4=0.0.0.0", "tcp=[::]"},
		{"any beside loopback", "tcp4=127.0.0.1", "tcp4=0.0.0.0"},
		{"v6only beside dual stack", "tcp=[::]", "tcp6=[::]"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			testkit.RequireIPv6(t)
			plan := func(step string) string { return "binds " + step + ":{p} end=graceful" }
			address := func(m *testkit.Master, step string) string {
				_, host, _ := strings.Cut(step, "=")
				return m.Fill(host + ":{p}")
			}
			m := testkit.Capture(t, plan(test.first)).Serving()
			clients := m.Ask(16)
			clients.Flow()
			m.Next(plan(test.next))
			m.UpgradeFails(address(m, test.first), address(m, test.next))
			clients.Flow()
			m.AnsweredBy(1)
			m.Next(plan(test.first))
			m.Upgrade()
			clients.Flow()
			clients.Lossless()
		})
	}
}

// A new generation has to listen where the old one did when it became ready: one
// that does not has failed, and what it has bound beyond that is refused again.
func TestNewGenerationBindsOtherAddresses(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, first, next, lost, added string }{
		{"fewer", "tcp={a} tcp={b}", "tcp={a}", "{b}", ""},
		{"others", "tcp={a}", "tcp={b}", "{a}", "{b}"},
		{"one of each", "tcp={a} tcp={b}", "tcp={a} tcp={c}", "{b}", "{c}"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			m := testkit.Capture(t, "binds "+test.first, "--ready-timeout", "3s").Serving()
			lost, added := m.Fill(test.lost), m.Fill(test.added)
			testkit.Answers(t, lost)
			kept, other := m.Ask(8), testkit.AskAt(t, lost, 8)
			kept.Flow()
			other.Flow()
			m.Next("binds " + test.next)
			m.UpgradeFails("it does not listen on "+lost, "where the old generation does")
			m.WaitState(2, "gone")
			if added != "" {
				testkit.Refused(t, added)
			}
			kept.Flow()
			other.Flow()
			m.AnsweredBy(1)
			m.Next("binds " + test.first)
			m.Upgrade()
			m.Retire()
			kept.Lossless()
			other.Lossless()
			testkit.AnsweredBy(t, lost, 2)
		})
	}
	t.Run("more", func(t *testing.T) {
		t.Parallel()
		m := testkit.Capture(t, "binds tcp={a}").Serving()
		m.Next("binds tcp={a} tcp={b}")
		m.UpgradeUnderLoad(1)
		testkit.Answers(t, m.Fill("{b}")) // nobody has waited for that
		m.UpgradeUnderLoad(1, "{a}", "{b}")
	})
}

// What a worker has closed is not asked of the next generation, and left alone
// from then on: a later one may bind it, and so may another program.
func TestAddressThatWentIsFree(t *testing.T) {
	t.Parallel()
	m := testkit.Capture(t, "binds tcp={a} tcp={b}").Serving()
	other := m.Fill("{b}")
	testkit.Answers(t, other)
	testkit.MustGet(t, m.Address, "/close")
	m.Next("binds tcp={a}")
	m.Upgrade()
	m.Retire()
	testkit.Refused(t, other)
	testkit.MustBeFree(t, other)
	m.Next("binds tcp={a} tcp={b}")
	m.Upgrade()
	testkit.Answers(t, other)
	testkit.AnsweredBy(t, other, 3)
}

// Workers that share one socket must drain by themselves; that is all that is
// lost by it.
func TestInterceptedAndShared(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		address string
		flags   []string
	}{
		"handover":      {"{a}", []string{"--handover", "share"}},
		"abstract name": {"@moult-test-{p}", nil}, // cannot be taken over
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			network := map[bool]string{true: "unix=", false: "tcp="}[strings.HasPrefix(test.address, "@")]
			m := testkit.Capture(t, "binds "+network+test.address+" end=graceful", test.flags...).Serving()
			clients := testkit.AskAt(t, m.Fill(test.address), 16)
			upgrades := testkit.Times(4, 2, 50)
			for range upgrades {
				clients.Flow()
				m.Upgrade()
			}
			m.Retire()
			clients.Flow()
			testkit.AnsweredBy(t, m.Fill(test.address), upgrades+1)
			clients.ShutdownLosses(upgrades)
		})
	}
}

// Long is what a request for a slow answer takes, which is then in hand.
const longRequest = "/?sleep=6s"

// The old generation serves on until the new one has bound the last address.
func TestSecondAddressComesLate(t *testing.T) {
	testkit.TakesLong(t)
	t.Parallel()
	m := testkit.Capture(t, "binds tcp={a} wait={gate} tcp={b}")
	m.Pass(1)
	m.WaitServing(1)
	late := m.Fill("{b}")
	testkit.Answers(t, late)
	clients := testkit.AskAt(t, late, 8)
	clients.Flow()
	m.Signal(syscall.SIGHUP)
	m.Said(2, "waits")
	testkit.Finish(t, "of the first address", m.Hold(longRequest))
	if m.Logged(testkit.Reaches(2, "serving")) != 0 {
		t.Error("generation 2 serves without the second address")
	}
	clients.Flow()
	m.Pass(1)
	m.WaitServing(2)
	m.Retire()
	clients.Flow()
	clients.Lossless()
	testkit.AnsweredBy(t, late, 2)
}

// What comes after a crash waits for a replacement that takes its time.
func TestReplacementBindsTheSecondAddressLate(t *testing.T) {
	testkit.TakesLong(t)
	t.Parallel()
	m := testkit.Capture(t, "binds tcp={a} wait={gate} tcp={b}", "--restart-delay", "10ms..50ms")
	m.Pass(1)
	pid, late := m.WaitServing(1).PID, m.Fill("{b}")
	testkit.Answers(t, late)
	mark := m.Mark()
	testkit.KillProcess(pid)
	m.WaitLog(mark, "the replacement waits", testkit.Says("waits "))
	queue := testkit.Queue(t, late, 10)
	testkit.Finish(t, "of the first address", m.Hold(longRequest))
	queue = append(queue, testkit.Queue(t, late, 10)...)
	m.Pass(1)
	testkit.Finish(t, "before the address was bound again", queue...)
}

// A replacement that does not bind all that the first one did serves, however
// short the time for being ready is, and what it lacks is refused in the end.
func TestReplacementThatLacksAnAddress(t *testing.T) {
	testkit.TakesLong(t)
	t.Parallel()
	m := testkit.Capture(t, "binds tcp={a} tcp={b}", "--ready-timeout", "3s", "--restart-delay", "10ms..50ms")
	pid := m.WaitServing(1).PID
	m.Next("binds tcp={a}")
	mark := m.Mark()
	testkit.KillProcess(pid)
	pid = m.WaitReplaced(mark)
	testkit.Refused(t, m.Fill("{b}"))
	if got := m.Self().PID; got != pid {
		t.Errorf("process %d answers, want the first replacement, %d", got, pid)
	}
	m.UpgradeUnderLoad(1)
}

// An upgrade takes over what a dead generation has left, binds one address more,
// and fails: the master keeps nothing of it.
func TestFailedTakeoverLeavesNothingBehind(t *testing.T) {
	testkit.TakesLong(t)
	t.Parallel()
	m := testkit.Capture(t, "binds tcp={a}", "--restart-delay", "10s..10s")
	pid, added := m.WaitServing(1).PID, m.Fill("{b}")
	m.Next("sh exit 3")
	mark := m.Mark()
	testkit.KillProcess(pid)
	m.WaitLog(mark, "no worker lives for a while", testkit.Mentions("started again after a delay"))
	queue := testkit.Queue(t, m.Address, 10)
	m.Next("binds tcp={b} exit=3")
	m.UpgradeFails()
	m.BoundBy(2, 1)
	m.Next("binds tcp={a}")
	testkit.Finish(t, "while nobody lived", queue...)
	testkit.Refused(t, added)
	m.UpgradeUnderLoad(1)
}

// No upgrade waits for an address that has been closed for long.
func TestAddressClosedLongAfterItsBind(t *testing.T) {
	testkit.TakesLong(t)
	t.Parallel()
	m := testkit.Capture(t, "binds tcp={a} tcp={b}", "--ready-timeout", "60s").Serving()
	closed := m.Fill("{b}")
	testkit.Answers(t, closed)
	testkit.Finish(t, "of the first address", m.Hold(longRequest))
	testkit.MustGet(t, m.Address, "/close")
	m.Next("binds tcp={a}")
	mark := m.Mark()
	m.Upgrade() // within the tests' patience, which is shorter than half a minute
	testkit.Refused(t, closed)
	for _, e := range m.Entries(mark) {
		if e.Level == "warn" && strings.Contains(e.Raw, closed) {
			t.Errorf("the log says that it is still served: %s", e.Raw)
		}
	}
}

// A link-local address is one on its interface only, and the bind alone says
// which.
func TestLinkLocalAddress(t *testing.T) {
	testkit.RequireRoot(t, "make a network namespace")
	t.Parallel()
	side := testkit.NewNamespace(t, testkit.ServerHost, testkit.ClientHost)
	const address = "[fe80::5%moult0]:8080"
	var m *testkit.Master
	side.Enter(t, func() {
		line := []string{"-6", "address", "add", "fe80::5/64", "dev", "moult0", "nodad"}
		if output, err := exec.Command("ip", line...).CombinedOutput(); err != nil {
			testkit.Skip(t, "no IPv6 here: "+string(output))
		}
		m = testkit.Capture(t, "binds tcp6="+address+" end=graceful", "-n", "2")
	})
	for generation := 1; generation <= 3; generation++ {
		m.WaitServing(generation)
		side.Enter(t, func() { testkit.AnsweredBy(t, address, generation) })
		m.Upgrade()
	}
}

// One listener for each interface, on the same address.
func TestListenerPerInterface(t *testing.T) {
	testkit.RequireRoot(t, "make a network namespace")
	t.Parallel()
	serverSide, clientSide := testkit.FarApart(t, time.Millisecond)
	var m *testkit.Master
	serverSide.Enter(t, func() {
		m = testkit.Capture(t, "binds device=lo,0.0.0.0:8080 device=moult0,0.0.0.0:8080 end=graceful")
	})
	m.WaitServing(1)
	clients := testkit.StartFarClients(t, clientSide, testkit.ServerHost+":8080", 8)
	for range testkit.Times(3, 2, 20) {
		clients.Flow()
		m.Upgrade()
		serverSide.Enter(t, func() { testkit.AnsweredBy(t, "127.0.0.1:8080", m.Generation()) })
	}
	m.Retire()
	clients.Flow()
	clients.Lossless()
}
