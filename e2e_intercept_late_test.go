//go:build linux

package main

import (
	"strings"
	"syscall"
	"testing"

	"github.com/moult/moult/supervisor/load"
)

// Addresses that a worker binds, or closes, long after the others. Long is what
// a request for a slow answer takes, which is then in hand.
const longRequest = "/?sleep=6s"

func replaced(e entry) bool { return !e.isPhase() && e.To == "serving" }

// The old generation serves on until the new one has bound the last address.
func TestSecondAddressComesLate(t *testing.T) {
	takesLong(t)
	t.Parallel()
	early, late, door := freeAddress(t), freeAddress(t), newGate(t)
	m := binds(t, nil, "tcp="+early, door.step(), "tcp="+late)
	door.pass(t)
	m.waitServing(1)
	answers(t, "tcp", late)
	clients := traffic(t, load.Config{Address: late, Clients: 8})
	flowing(t, clients)
	m.signal(syscall.SIGHUP)
	m.said(2, "waits")
	if err := hold(t, early, longRequest).finish(); err != nil {
		t.Error(err)
	}
	if m.logged(reaches(2, "serving")) != 0 {
		t.Error("generation 2 serves without the second address")
	}
	flowing(t, clients)
	door.pass(t)
	m.waitServing(2)
	m.waitState(1, "gone")
	flowing(t, clients)
	lossless(t, clients)
	answeredBy(t, late, 2)
	m.stop()
}

// What comes after a crash waits for a replacement that takes its time.
func TestReplacementBindsTheSecondAddressLate(t *testing.T) {
	takesLong(t)
	t.Parallel()
	early, late, door := freeAddress(t), freeAddress(t), newGate(t)
	m := binds(t, []string{"--restart-delay", "10ms..50ms"}, "tcp="+early, door.step(), "tcp="+late)
	door.pass(t)
	pid := m.waitServing(1).PID
	answers(t, "tcp", late)
	mark := m.mark()
	killProcess(pid)
	m.waitLog(mark, "the replacement waits", func(e entry) bool { return strings.HasPrefix(e.Raw, "waits ") })
	queue := sendTo(t, late, 10)
	if err := hold(t, early, longRequest).finish(); err != nil {
		t.Error(err)
	}
	queue = append(queue, sendTo(t, late, 10)...)
	door.pass(t)
	for i, request := range queue {
		if err := request.finish(); err != nil {
			t.Errorf("request %d that came before the address was bound again: %v", i, err)
		}
	}
	m.stop()
}

// A replacement that does not bind all that the first one did serves, however
// short the time for being ready is, and what it lacks is refused in the end.
func TestReplacementThatLacksAnAddress(t *testing.T) {
	takesLong(t)
	t.Parallel()
	kept, lost := freeAddress(t), freeAddress(t)
	p := newPlan(t, "binds tcp="+kept+" tcp="+lost)
	m := run(t, []string{"--ready-timeout", "3s", "--restart-delay", "10ms..50ms"}, p.command())
	pid := m.waitServing(1).PID
	p.set(t, "binds tcp="+kept)
	mark := m.mark()
	killProcess(pid)
	pid = m.waitLog(mark, "the replacement serves", replaced).PID
	refused(t, lost)
	if got := askSelf(t, "tcp", kept).PID; got != pid {
		t.Errorf("process %d answers, want the first replacement, %d", got, pid)
	}
	m.upgradeUnderLoadOf(1, kept)
	m.stop()
}

// An upgrade takes over what a dead generation has left, binds one address more,
// and fails: the master keeps nothing of it.
func TestFailedTakeoverLeavesNothingBehind(t *testing.T) {
	takesLong(t)
	t.Parallel()
	kept, added := freeAddress(t), freeAddress(t)
	p := newPlan(t, "binds tcp="+kept)
	m := run(t, []string{"--restart-delay", "10s..10s"}, p.command())
	pid := m.waitServing(1).PID
	p.set(t, "sh exit 3")
	mark := m.mark()
	killProcess(pid)
	m.waitLog(mark, "no worker lives for a while", mentions("started again after a delay"))
	queue := sendTo(t, kept, 10)
	p.set(t, "binds tcp="+added+" exit=3")
	m.upgradeFails()
	m.boundBy(2, 1)
	p.set(t, "binds tcp="+kept)
	refused(t, added)
	if m.logged(reaches(1, "starting")) != 2 {
		t.Error("it listens on until a replacement is started")
	}
	for i, request := range queue {
		if err := request.finish(); err != nil {
			t.Errorf("request %d that came while nobody lived: %v", i, err)
		}
	}
	refused(t, added)
	m.upgradeUnderLoadOf(1, kept)
	m.stop()
}

// No upgrade waits for an address that has been closed for long.
func TestAddressClosedLongAfterItsBind(t *testing.T) {
	takesLong(t)
	t.Parallel()
	kept, closed := freeAddress(t), freeAddress(t)
	p := newPlan(t, "binds tcp="+kept+" tcp="+closed)
	m := run(t, []string{"--ready-timeout", "60s"}, p.command())
	m.waitServing(1)
	answers(t, "tcp", closed)
	if err := hold(t, kept, longRequest).finish(); err != nil {
		t.Error(err)
	}
	if _, _, err := get("tcp", kept, "/close"); err != nil {
		t.Fatal(err)
	}
	p.set(t, "binds tcp="+kept)
	mark := m.mark()
	m.upgrade() // within the tests' patience, which is shorter than half a minute
	refused(t, closed)
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, e := range m.entries[mark:] {
		if e.Level == "warn" && strings.Contains(e.Raw, closed) {
			t.Errorf("the log says that it is still served: %s", e.Raw)
		}
	}
}
