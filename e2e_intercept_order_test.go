//go:build linux

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moult/moult/supervisor/load"
)

// Workers between whose binds and listens something happens.

// Sockets of one address that are all bound before the first listens.
func TestBindAllThenListenAll(t *testing.T) {
	for _, flags := range [][]string{nil, {"-n", "2"}} {
		t.Run(strings.Join(flags, ""), func(t *testing.T) {
			t.Parallel()
			address := freeAddress(t)
			m := binds(t, flags, "late=4,"+address, "end=graceful")
			m.waitServing(1)
			m.upgradeUnderLoadOf(times(3, 2, 20), address)
			m.stop()
		})
	}
}

// passBoth lets two workers of a generation through once both are there.
func (m *master) passBoth(generation int, door gate) {
	m.t.Helper()
	line := fmt.Sprintf("waits %d", generation)
	until(m.t, "both workers wait", func() error {
		return atLeast(m.logged(func(e entry) bool { return e.Raw == line }), 2)
	})
	door.pass(m.t)
	m.boundBy(generation, 1)
	door.pass(m.t)
}

// Two workers that have both bound the address before one of them listens, on
// sockets without any option.
func TestWorkersThatBindBeforeOneListens(t *testing.T) {
	t.Parallel()
	address, door := freeAddress(t), newGate(t)
	m := binds(t, []string{"-n", "2"}, "gated="+door.pipe.Name()+","+address, "end=graceful")
	m.passBoth(1, door)
	m.waitServing(1)
	for range 2 {
		door.pass(t)
		door.pass(t)
	}
	m.upgradeUnderLoadOf(2, address)
	m.stop()
}

// A worker that is in another directory when it listens than when it bound. An
// upgrade that fails leaves the path as it is.
func TestRelativePath(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s")
	p := newPlan(t, "binds relative="+path)
	m := run(t, nil, p.command())
	m.waitServing(1)
	clients := traffic(t, load.Config{Network: "unix", Address: path, Clients: 8})
	flowing(t, clients)
	p.set(t, "binds relative="+path+" exit=3")
	m.upgradeFails()
	flowing(t, clients)
	if got := generationAt("unix", path); got != 1 {
		t.Errorf("generation %d answers after the upgrade that failed, want 1", got)
	}
	p.set(t, "binds relative="+path)
	for range times(3, 2, 20) {
		m.upgrade()
		m.waitState(m.generation()-1, "gone")
		flowing(t, clients)
		if got := generationAt("unix", path); got != m.generation() {
			t.Errorf("generation %d answers, want %d", got, m.generation())
		}
	}
	lossless(t, clients)
	m.stop()
	onlyTheSocket(t, path)
}

// A socket whose name is gone before it listens cannot be held: the next
// generation could not bind it beside.
func TestPathThatCannotBeFound(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s")
	binds(t, nil, "nameless="+path).explains(1, "cannot be found", "--listen")
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("something stands at %s: %v", path, err)
	}
}

// Two workers that make room for their socket before they bind it: the second
// finds the socket of the first.
func TestWorkersThatMakeRoomOnOnePath(t *testing.T) {
	t.Parallel()
	path, door := filepath.Join(t.TempDir(), "s"), newGate(t)
	m := binds(t, []string{"-n", "2"}, door.step(), "remove="+path, "unix="+path, "end=graceful")
	door.pass(t)
	m.boundBy(1, 1)
	clients := traffic(t, load.Config{Network: "unix", Address: path, Clients: 8})
	flowing(t, clients)
	door.pass(t)
	m.boundBy(1, 2)
	m.waitServing(1)
	m.upgradesOnPath(clients, path, door)
}

// upgradesOnPath upgrades two workers that wait at a gate, and stops.
func (m *master) upgradesOnPath(clients *load.Traffic, path string, door gate) {
	m.t.Helper()
	flowing(m.t, clients)
	for range times(5, 2, 20) {
		door.pass(m.t)
		door.pass(m.t)
		m.upgrade()
		m.waitState(m.generation()-1, "gone")
		flowing(m.t, clients)
		if got := generationAt("unix", path); got != m.generation() {
			m.t.Errorf("generation %d answers, want %d", got, m.generation())
		}
	}
	lossless(m.t, clients)
	m.stop()
}
