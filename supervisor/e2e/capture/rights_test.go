//go:build linux

package capture

import (
	"net"
	"strings"
	"testing"

	"github.com/moult/moult/supervisor/e2e/testkit"
)

// Sockets that go from one process to another, and one that is only tried.

// Between two processes a socket is in nobody's hands.
func TestSocketOnItsWayToAChild(t *testing.T) {
	t.Parallel()
	passed, other, door := testkit.FreeAddress(t), testkit.FreeAddress(t), testkit.NewGate(t)
	m := testkit.Binds(t, nil, "pass="+door.Pipe.Name()+","+passed, "tcp="+other)
	m.Said(1, "waits")
	testkit.Answers(t, "tcp", other)
	if err := testkit.Hold(t, other, "/?sleep=1s").Finish(); err != nil {
		t.Error(err)
	}
	door.Pass(t)
	m.WaitServing(1)
	testkit.Answers(t, "tcp", passed)
	upgrades := testkit.Times(3, 2, 20)
	for range upgrades {
		door.Pass(t)
	}
	m.UpgradeUnderLoadOf(upgrades, passed, other)
	m.Stop()
}

// A worker's test of an address, which it takes out by shutdown(2) and does not
// close, is not waited for.
func TestListenerThatWasShutDown(t *testing.T) {
	for _, flags := range [][]string{nil, {"-n", "2"}} {
		t.Run(strings.Join(flags, ""), func(t *testing.T) {
			t.Parallel()
			tested, address := testkit.FreeAddress(t), testkit.FreeAddress(t)
			m := testkit.Binds(t, flags, "test="+tested, "tcp="+address, "end=graceful")
			m.WaitServing(1)
			testkit.Refused(t, tested)
			m.UpgradeUnderLoadOf(testkit.Times(3, 2, 20), address)
			m.Stop()
		})
	}
}

// A port that a worker has in a network of its own, in which it is root, is no
// right to that port here.
func TestLowPortOfAnotherNetwork(t *testing.T) {
	t.Parallel()
	address := testkit.FreeAddress(t)
	const low = "0.0.0.0:83"
	m := asNobody(t, nil, "smuggle="+low, "seize="+low, "tcp="+address)
	if said := m.Said(1, "smuggled"); said != "ok" {
		testkit.Skip(t, "no user namespaces without privileges here: "+said)
	}
	m.BoundBy(1, 1)
	if refused := m.Logged(func(e testkit.Entry) bool { return e.Raw == "tried 1 "+low+" EACCES" }); refused != 2 {
		t.Errorf("of two binds %d were refused", refused)
	}
	m.WaitServing(1)
	if listener, err := net.Listen("tcp", "127.0.81.10:83"); err != nil {
		t.Errorf("somebody has the port: %v", err)
	} else {
		listener.Close()
	}
	m.UpgradeUnderLoadOf(1, address)
	m.Stop()
}
