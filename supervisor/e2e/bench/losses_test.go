//go:build linux

package bench

import (
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/moult/moult/supervisor/cli/demo/load"
	"github.com/moult/moult/supervisor/e2e/testkit"
)

// Kept connections that are hardly ever idle: ours must lose no more than the
// same server loses when its drain signal is sent to it directly.
func TestKeepAliveLossesAreTheServersOwn(t *testing.T) {
	for _, name := range []string{"graceful", "plain"} {
		t.Run(name, func(t *testing.T) {
			upgrades := testkit.Times(6, 2, 50)
			ours, direct := keepAliveLosses(t, name, upgrades)
			t.Logf("%d upgrades, %d kept connections: %d lost under moult, %d by the signal alone",
				upgrades, keptConnections, ours.Failures(), direct.Failures())
			// How many requests are on their way when the server leaves is
			// chance, the same for both: the difference of two such sums
			// stays within this, unless there is a reason.
			chance := int(keptConnections * math.Sqrt(2*float64(upgrades)))
			if ours.Failures() > direct.Failures()+chance {
				t.Errorf("under moult: %v\n\tdirect: %v", ours, direct)
			}
			total := ours.Total()
			if total.Failed[load.Refused]+total.Failed[load.TimedOut]+total.Failed[load.Wrong] != 0 || total.Failures() > upgrades*keptConnections {
				t.Errorf("under moult: %v", ours)
			}
		})
	}
}

// Requests that clients lose which keep their connection and never retry: under
// moult, and when the same server gets its drain signal directly.
func BenchmarkKeepAliveLosses(b *testing.B) {
	for _, name := range []string{"graceful", "plain"} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				upgrades := testkit.Times(10, 3, 100)
				ours, direct := keepAliveLosses(b, name, upgrades)
				b.ReportMetric(float64(ours.Failures())/float64(upgrades), "lost-moult/upgrade")
				b.ReportMetric(float64(direct.Failures())/float64(upgrades), "lost-direct/upgrade")
				for _, sample := range ours.Samples[:min(3, len(ours.Samples))] {
					b.Log(fmt.Sprint(sample))
				}
			}
		})
	}
}

const keptConnections = 16

// keepAliveLosses upgrades the same server under moult and by hand, in turns
// and with both under load, so that both have the same machine.
func keepAliveLosses(t testing.TB, name string, upgrades int) (ours, direct load.Report) {
	t.Helper()
	kept := func(address string) *testkit.Clients {
		return testkit.Ask(t, load.Config{Address: address, Mode: load.KeepAlive, Clients: keptConnections, Pause: time.Millisecond})
	}
	// These connections never end by themselves: to wait for it is in vain.
	m := testkit.Listen(t, name, "--quiesce", "200ms").Serving()
	byHand := newByHand(t, name)
	ourClients, directClients := kept(m.Address), kept(byHand.address)
	for range upgrades {
		ourClients.Flow()
		m.Upgrade()
		m.Retire()
		directClients.Flow()
		byHand.upgrade(t)
	}
	ourClients.Flow()
	directClients.Flow()
	ours, direct = ourClients.Stop(), directClients.Stop()
	m.Stop()
	return ours, direct
}

// byHand does what the simplest supervisor would: the next process on the same
// socket, then the drain signal to the one before.
type byHand struct {
	name       string
	address    string
	socket     *os.File
	pid        int
	generation int
}

func newByHand(t testing.TB, name string) *byHand {
	t.Helper()
	h := &byHand{name: name, address: testkit.FreeAddress(t)}
	h.socket = testkit.Listening(t, "tcp", h.address)
	h.start(t)
	return h
}

func (h *byHand) start(t testing.TB) {
	h.generation++
	h.pid, _ = testkit.StartAlone(t, h.generation, []*os.File{h.socket}, nil, testkit.Worker(h.name))
	testkit.Until(t, "the next process serves", func() error {
		if n := testkit.GenerationAt(h.address); n != h.generation {
			return fmt.Errorf("generation %d", n)
		}
		return nil
	})
}

func (h *byHand) upgrade(t testing.TB) {
	t.Helper()
	old := h.pid
	h.start(t)
	// By a process of its own, as a supervisor is one: the moment at which the
	// clients' own process sends it is not a random one.
	testkit.OK(t, exec.Command("/bin/sh", "-c", fmt.Sprintf("sleep 0.2; kill -TERM %d", old)).Run())
	testkit.Until(t, "the old process has ended", func() error {
		if testkit.Alive(old) {
			return errors.New("it lives")
		}
		return nil
	})
}
