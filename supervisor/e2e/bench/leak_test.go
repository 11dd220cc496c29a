//go:build linux

package bench

import (
	"testing"
	"time"

	"github.com/moult/moult/supervisor/e2e/testkit"
	"github.com/moult/moult/supervisor/load"
)

// Nothing grows, and nothing wakes the master.

func TestNothingGrowsOverUpgrades(t *testing.T) {
	address := testkit.FreeAddress(t)
	m := testkit.Launch{
		Exe:  testkit.MoultBinary(t),
		Args: append([]string{"run", "-l", address, "--quiesce", "0s", "--"}, testkit.WorkerCommand("graceful")...),
	}.Start(t)
	m.WaitServing(1)
	settle := func() {
		t.Helper()
		m.WaitState(m.Generation()-1, "gone")
	}
	for range 5 {
		m.Upgrade()
	}
	settle()
	before := testkit.TakeStock(m.Pid())
	threads := testkit.StatusNumber(t, m.Pid(), "Threads")
	rss, pss := testkit.Memory(t, m.Pid())
	upgrades := testkit.Times(40, 10, 1000)
	for range upgrades {
		m.Upgrade()
	}
	settle()
	m.BackTo(before)
	if now := testkit.StatusNumber(t, m.Pid(), "Threads"); now > threads+4 {
		t.Errorf("%d threads after %d upgrades, %d before", now, upgrades, threads)
	}
	nowRSS, nowPSS := testkit.Memory(t, m.Pid())
	t.Logf("%d upgrades: resident %d → %d kB, proportional %d → %d kB", upgrades, rss, nowRSS, pss, nowPSS)
	if nowRSS > rss+3072 {
		t.Errorf("resident memory grew from %d to %d kB over %d upgrades", rss, nowRSS, upgrades)
	}
	testkit.AnsweredBy(t, address, m.Generation())
	if n := testkit.Goroutines(t, m); n > 40 {
		t.Errorf("%d goroutines after %d upgrades:\n%s", n, upgrades, m.Log())
	}
}

func TestTrafficDoesNotWakeTheMaster(t *testing.T) {
	address := testkit.FreeAddress(t)
	m := testkit.Launch{
		Exe:  testkit.MoultBinary(t),
		Args: append([]string{"run", "-l", address, "--"}, testkit.WorkerCommand("graceful")...),
	}.Start(t)
	m.WaitServing(1)
	m.Upgrade() // steering is at work
	m.WaitState(1, "gone")
	testkit.Settled(t, m)
	before := testkit.Switches(m.Pid())
	clients := testkit.Traffic(t, load.Config{Address: address, Clients: 8})
	testkit.Until(t, "20 000 connections", func() error {
		now := clients.Snapshot()
		return testkit.AtLeast(now.Requests(), testkit.Times(20000, 5000, 100000))
	})
	report := testkit.Lossless(t, clients)
	if n := testkit.Switches(m.Pid()) - before; n > 60 {
		t.Errorf("%d context switches of the master during %d connections", n, report.Requests())
	} else {
		t.Logf("%d context switches of the master during %d connections", n, report.Requests())
	}
	m.Stop()
}

func TestIdleMasterSleeps(t *testing.T) {
	t.Parallel()
	m := testkit.Launch{
		Exe:  testkit.MoultBinary(t),
		Args: append([]string{"run", "-l", testkit.FreeAddress(t), "--"}, testkit.WorkerCommand("graceful")...),
	}.Start(t)
	m.WaitServing(1)
	m.Upgrade()
	m.WaitState(1, "gone")
	testkit.Settled(t, m)
	before := testkit.Switches(m.Pid())
	idle := 5 * time.Second
	if testkit.Soak() {
		idle = time.Minute
	}
	timer := time.NewTimer(idle)
	<-timer.C
	if n := testkit.Switches(m.Pid()) - before; n > 20 {
		t.Errorf("%d context switches in %v of idleness", n, idle)
	}
	m.Stop()
}
