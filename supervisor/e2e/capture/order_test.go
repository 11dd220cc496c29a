//go:build linux

package capture

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moult/moult/supervisor/e2e/testkit"
	"github.com/moult/moult/supervisor/load"
)

// Workers between whose binds and listens something happens.

// Sockets of one address that are all bound before the first listens.
func TestBindAllThenListenAll(t *testing.T) {
	for _, flags := range [][]string{nil, {"-n", "2"}} {
		t.Run(strings.Join(flags, ""), func(t *testing.T) {
			t.Parallel()
			address := testkit.FreeAddress(t)
			m := testkit.Binds(t, flags, "late=4,"+address, "end=graceful")
			m.WaitServing(1)
			m.UpgradeUnderLoadOf(testkit.Times(3, 2, 20), address)
			m.Stop()
		})
	}
}

// Two workers that have both bound the address before one of them listens, on
// sockets without any option.
func TestWorkersThatBindBeforeOneListens(t *testing.T) {
	t.Parallel()
	address, door := testkit.FreeAddress(t), testkit.NewGate(t)
	m := testkit.Binds(t, []string{"-n", "2"}, "gated="+door.Pipe.Name()+","+address, "end=graceful")
	m.PassBoth(1, door)
	m.WaitServing(1)
	for range 2 {
		door.Pass(t)
		door.Pass(t)
	}
	m.UpgradeUnderLoadOf(2, address)
	m.Stop()
}

// A worker that is in another directory when it listens than when it bound. An
// upgrade that fails leaves the path as it is.
func TestRelativePath(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s")
	p := testkit.NewPlan(t, "binds relative="+path)
	m := testkit.Run(t, nil, p.Command())
	m.WaitServing(1)
	clients := testkit.Traffic(t, load.Config{Network: "unix", Address: path, Clients: 8})
	testkit.Flowing(t, clients)
	p.Set(t, "binds relative="+path+" exit=3")
	m.UpgradeFails()
	testkit.Flowing(t, clients)
	if got := testkit.GenerationAt("unix", path); got != 1 {
		t.Errorf("generation %d answers after the upgrade that failed, want 1", got)
	}
	p.Set(t, "binds relative="+path)
	for range testkit.Times(3, 2, 20) {
		m.Upgrade()
		m.WaitState(m.Generation()-1, "gone")
		testkit.Flowing(t, clients)
		if got := testkit.GenerationAt("unix", path); got != m.Generation() {
			t.Errorf("generation %d answers, want %d", got, m.Generation())
		}
	}
	testkit.Lossless(t, clients)
	m.Stop()
	onlyTheSocket(t, path)
}

// A socket whose name is gone before it listens cannot be held: the next
// generation could not bind it beside.
func TestPathThatCannotBeFound(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s")
	testkit.Binds(t, nil, "nameless="+path).Explains(1, "cannot be found", "--listen")
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("something stands at %s: %v", path, err)
	}
}

// Two workers that make room for their socket before they bind it: the second
// finds the socket of the first.
func TestWorkersThatMakeRoomOnOnePath(t *testing.T) {
	t.Parallel()
	path, door := filepath.Join(t.TempDir(), "s"), testkit.NewGate(t)
	m := testkit.Binds(t, []string{"-n", "2"}, door.Step(), "remove="+path, "unix="+path, "end=graceful")
	door.Pass(t)
	m.BoundBy(1, 1)
	clients := testkit.Traffic(t, load.Config{Network: "unix", Address: path, Clients: 8})
	testkit.Flowing(t, clients)
	door.Pass(t)
	m.BoundBy(1, 2)
	m.WaitServing(1)
	m.UpgradesOnPath(clients, path, door)
}
