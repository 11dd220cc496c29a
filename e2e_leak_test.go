//go:build linux

package main

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moult/moult/supervisor/load"
)

// Nothing grows, and nothing wakes the master.

func TestNothingGrowsOverUpgrades(t *testing.T) {
	address := freeAddress(t)
	m := launch{
		exe:  moultBinary(t),
		args: append([]string{"run", "-l", address, "--quiesce", "0s", "--"}, worker("graceful")...),
	}.start(t)
	m.waitServing(1)
	settle := func() {
		t.Helper()
		m.waitState(m.generation()-1, "gone")
	}
	for range 5 {
		m.upgrade()
	}
	settle()
	before := takeStock(m.pid())
	threads := statusNumber(t, m.pid(), "Threads")
	rss, pss := memory(t, m.pid())
	upgrades := times(40, 10, 1000)
	for range upgrades {
		m.upgrade()
	}
	settle()
	m.backTo(before)
	if now := statusNumber(t, m.pid(), "Threads"); now > threads+4 {
		t.Errorf("%d threads after %d upgrades, %d before", now, upgrades, threads)
	}
	nowRSS, nowPSS := memory(t, m.pid())
	t.Logf("%d upgrades: resident %d → %d kB, proportional %d → %d kB", upgrades, rss, nowRSS, pss, nowPSS)
	if nowRSS > rss+3072 {
		t.Errorf("resident memory grew from %d to %d kB over %d upgrades", rss, nowRSS, upgrades)
	}
	answeredBy(t, address, m.generation())
	if n := goroutines(t, m); n > 40 {
		t.Errorf("%d goroutines after %d upgrades:\n%s", n, upgrades, m.log())
	}
}

// goroutines makes the runtime dump its stacks, which ends the master.
func goroutines(t *testing.T, m *master) int {
	t.Helper()
	m.signal(syscall.SIGABRT)
	m.wait()
	m.waitLog(0, "the end of the dump", func(e entry) bool {
		return strings.HasPrefix(e.Raw, "rip ") || strings.HasPrefix(e.Raw, "lr ") || strings.HasPrefix(e.Raw, "pc ")
	})
	return m.logged(func(e entry) bool { return strings.HasPrefix(e.Raw, "goroutine ") })
}

func TestFailedUpgradesLeaveNothingBehind(t *testing.T) {
	t.Parallel()
	address := freeAddress(t)
	p := newPlan(t, "graceful")
	m := run(t, []string{"-l", address}, p.command())
	m.waitServing(1)
	before := takeStock(m.pid())
	for _, bad := range []string{"exit code=1", "killed", "exit code=0"} {
		p.set(t, bad)
		for range times(5, 2, 100) {
			m.upgradeFails()
		}
	}
	m.backTo(before)
	answeredBy(t, address, 1)
	m.stop()
}

func TestTrafficDoesNotWakeTheMaster(t *testing.T) {
	address := freeAddress(t)
	m := launch{
		exe:  moultBinary(t),
		args: append([]string{"run", "-l", address, "--"}, worker("graceful")...),
	}.start(t)
	m.waitServing(1)
	m.upgrade() // steering is at work
	m.waitState(1, "gone")
	settled(t, m)
	before := switches(m.pid())
	clients := traffic(t, load.Config{Address: address, Clients: 8})
	until(t, "20 000 connections", func() error {
		now := clients.Snapshot()
		return atLeast(now.Requests(), times(20000, 5000, 100000))
	})
	report := lossless(t, clients)
	if n := switches(m.pid()) - before; n > 60 {
		t.Errorf("%d context switches of the master during %d connections", n, report.Requests())
	} else {
		t.Logf("%d context switches of the master during %d connections", n, report.Requests())
	}
	m.stop()
}

// settled waits until the master sleeps: longer without a context switch than
// it waits itself before it gives memory back.
func settled(t testing.TB, m *master) {
	t.Helper()
	last, since := switches(m.pid()), time.Now()
	until(t, "the master sleeps", func() error {
		if now := switches(m.pid()); now != last {
			last, since = now, time.Now()
		}
		if time.Since(since) < 2*time.Second {
			return os.ErrDeadlineExceeded
		}
		return nil
	})
}

func TestIdleMasterSleeps(t *testing.T) {
	t.Parallel()
	m := launch{
		exe:  moultBinary(t),
		args: append([]string{"run", "-l", freeAddress(t), "--"}, worker("graceful")...),
	}.start(t)
	m.waitServing(1)
	m.upgrade()
	m.waitState(1, "gone")
	settled(t, m)
	before := switches(m.pid())
	idle := 5 * time.Second
	if soak() {
		idle = time.Minute
	}
	timer := time.NewTimer(idle)
	<-timer.C
	if n := switches(m.pid()) - before; n > 20 {
		t.Errorf("%d context switches in %v of idleness", n, idle)
	}
	m.stop()
}

// As PID 1 of a namespace of its own, the master reaps what is orphaned onto
// it, and its end does not cut a generation that still drains.
func TestAsPID1(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root may make a PID namespace")
	}
	t.Parallel()
	unshare := requireProgram(t, "unshare")
	address := freeAddress(t)
	args := append([]string{"run", "-l", address, "--"}, worker("orphans", "n=20")...)
	m := launch{
		wrap: []string{unshare, "--pid", "--fork", "--mount-proc", "--kill-child"}, args: args,
	}.start(t)
	// Outside, the pid that was started is unshare's; the master is its child.
	until(t, "generation 1 answers", func() error { return atLeast(generationAt("tcp", address), 1) })
	inside := children(m.pid())
	if len(inside) != 1 {
		t.Fatalf("children of unshare: %s", describe(inside))
	}
	pid := inside[0]
	until(t, "no zombie and one child", func() error {
		if kids := children(pid); len(kids) != 1 || zombies(pid) != 0 {
			return os.ErrDeadlineExceeded
		}
		return nil
	})
	held := hold(t, address, "/?sleep=2s")
	mark := m.mark()
	syscall.Kill(pid, syscall.SIGHUP)
	m.waitLog(mark, "upgraded", over(2))
	syscall.Kill(pid, syscall.SIGTERM)
	if err := held.finish(); err != nil {
		t.Errorf("a generation that still drained was cut: %v", err)
	}
	m.exitsWith(0)
}

func TestReplacedBinaryIsNotTheShim(t *testing.T) {
	t.Parallel()
	directory := t.TempDir()
	moult := filepath.Join(directory, "moult")
	content, err := os.ReadFile(moultBinary(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(moult, content, 0o755); err != nil {
		t.Fatal(err)
	}
	address := freeAddress(t)
	m := launch{exe: moult, args: append([]string{"run", "-l", address, "--"}, worker("graceful")...)}.start(t)
	m.waitServing(1)
	other := filepath.Join(directory, "other")
	if err := os.WriteFile(other, []byte("#!/bin/sh\nexit 77\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(other, moult); err != nil {
		t.Fatal(err)
	}
	m.upgrade()
	answeredBy(t, address, 2)
	m.stop()
}
