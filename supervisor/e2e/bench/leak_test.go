//go:build linux

package bench

import (
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moult/moult/supervisor/cli/demo/load"
	"github.com/moult/moult/supervisor/e2e/testkit"
)

// Nothing grows, and nothing wakes the master.

// settled has been upgraded, so that steering is at work, and sleeps.
func settled(t testing.TB, m *testkit.Master) *testkit.Master {
	m.Upgrade()
	m.Retire()
	testkit.Settled(t, m)
	return m
}

// both are the ways in which a master gets its socket.
var both = map[string]func(testing.TB) *testkit.Master{
	"listen":      func(t testing.TB) *testkit.Master { return program(t).Listen(t, "graceful").Serving() },
	"intercepted": func(t testing.TB) *testkit.Master { return program(t).Capture(t, bindsGracefully).Serving() },
}

const bindsGracefully = "binds tcp={a} end=graceful"

// Once it serves, the master sleeps: nobody wakes it while nothing happens, nor
// does a connection, nor a name that is looked up.
func TestMasterSleeps(t *testing.T) {
	t.Parallel()
	for name, start := range both {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := settled(t, start(t))
			before := testkit.Switches(m.PID())
			idle := time.Duration(testkit.Times(5, 3, 60)) * time.Second
			<-time.After(idle)
			asleep := testkit.Switches(m.PID())
			if n := asleep - before; n > 5 {
				t.Errorf("%d context switches in %v of idleness", n, idle)
			}
			wanted := map[string]int{"/": testkit.Times(10000, 5000, 100000)}
			if name == "intercepted" {
				wanted["/lookup"] = testkit.Times(200, 50, 2000)
			}
			for path, requests := range wanted {
				clients := testkit.Ask(t, load.Config{Address: m.Address, Path: path, Clients: 8})
				clients.Answer(requests)
				clients.Lossless()
				n := testkit.Switches(m.PID()) - asleep
				if n > 30 {
					t.Errorf("%d context switches of the master during %d connections to %s", n, requests, path)
				}
				asleep += n
			}
		})
	}
}

// What starts and upgrades took is given back, as it is under --listen.
func TestInterceptedMasterGivesMemoryBack(t *testing.T) {
	testkit.TakesLong(t)
	t.Parallel()
	kept := map[string]int{}
	for name, start := range both {
		m := settled(t, start(t))
		kept[name], _ = testkit.Memory(t, m.PID())
	}
	t.Logf("resident kB: %v", kept)
	if kept["intercepted"] > kept["listen"]+2048 {
		t.Errorf("the master keeps %d kB, and %d kB under --listen", kept["intercepted"], kept["listen"])
	}
}

// Upgrades leave nothing behind, whatever the worker binds and closes.
func TestNothingGrowsOverUpgrades(t *testing.T) {
	t.Parallel()
	closes := strings.Repeat("tcp={b} close tcp=127.0.0.1:0 close ", 10)
	for _, test := range []struct {
		name, plan    string
		groups, count int
	}{
		{"listen", "graceful", 1, testkit.Times(40, 10, 1000)},
		{"binds once", bindsGracefully, 1, testkit.Times(40, 20, 1000)},
		{"dies at TERM", "binds tcp={a}", 1, testkit.Times(20, 5, 200)},
		{"binds several", "binds threads=3,{a} tcp={b} end=graceful", 2, testkit.Times(20, 5, 200)},
		{"binds and closes", "binds " + closes + "free={a} tcp={a} try={a} end=graceful", 1, testkit.Times(20, 5, 200)},
	} {
		t.Run(test.name, func(t *testing.T) {
			if strings.HasPrefix(test.plan, "binds") {
				testkit.TakesLong(t)
			}
			t.Parallel()
			start := testkit.Launch.Capture
			if test.name == "listen" {
				start = testkit.Launch.Listen
			}
			m := start(program(t), t, test.plan, "--quiesce", "0s").Serving()
			growsNot(t, m, test.count, test.groups)
			m.AnsweredBy(m.Generation())
			if n := goroutines(m); n > 40 {
				t.Errorf("%d goroutines after %d upgrades:\n%s", n, test.count, m.Log())
			}
		})
	}
}

// growsNot compares what the master holds after the first upgrades with what
// it holds after many more. Each group of sockets has spare members of its own.
func growsNot(t *testing.T, m *testkit.Master, upgrades, groups int) {
	t.Helper()
	many := func(n int) {
		for range n {
			m.Upgrade()
		}
		m.Retire()
		testkit.Settled(t, m)
	}
	many(5)
	before, threads := testkit.TakeStock(m.PID()), testkit.StatusNumber(t, m.PID(), "Threads")
	rss, _ := testkit.Memory(t, m.PID())
	many(upgrades)
	m.BackTo(before.With(groups - 1))
	if now := testkit.StatusNumber(t, m.PID(), "Threads"); now > threads+4 {
		t.Errorf("%d threads after %d upgrades, %d before", now, upgrades, threads)
	}
	now, _ := testkit.Memory(t, m.PID())
	t.Logf("%d upgrades: resident %d → %d kB, %+v → %+v", upgrades, rss, now, before, testkit.TakeStock(m.PID()))
	if now > rss+3072 {
		t.Errorf("resident memory grew from %d to %d kB over %d upgrades", rss, now, upgrades)
	}
}

// goroutines makes the runtime dump its stacks, which ends the master.
func goroutines(m *testkit.Master) int {
	m.Signal(syscall.SIGABRT)
	m.Wait()
	registers := []string{"rip", "lr", "pc"}
	m.WaitLog(0, "the end of the dump", func(e testkit.Entry) bool {
		name, _, _ := strings.Cut(e.Raw, " ")
		return slices.Contains(registers, name)
	})
	return m.Logged(testkit.Says("goroutine "))
}
