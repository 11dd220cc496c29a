//go:build linux

package bench

import (
	"fmt"
	"math"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/moult/moult/supervisor/e2e/testkit"
	"github.com/moult/moult/supervisor/load"
)

// Kept connections that are hardly ever idle: ours must lose no more than the
// same server loses when its drain signal is sent to it directly.
func TestKeepAliveLossesAreTheServersOwn(t *testing.T) {
	for _, name := range []string{"graceful", "plain"} {
		t.Run(name, func(t *testing.T) {
			upgrades := testkit.Times(8, 2, 50)
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

const keptConnections = 16

// keepAliveLosses upgrades the same server under moult and by hand, in turns
// and with both under load, so that both have the same machine.
func keepAliveLosses(t testing.TB, name string, upgrades int) (ours, direct load.Report) {
	t.Helper()
	kept := func(address string) *load.Traffic {
		return testkit.Traffic(t, load.Config{Address: address, Mode: load.KeepAlive, Clients: keptConnections, Pause: time.Millisecond})
	}
	address := testkit.FreeAddress(t)
	// These connections never end by themselves: to wait for it is in vain.
	m := testkit.Run(t, []string{"-l", address, "--quiesce", "200ms"}, testkit.WorkerCommand(name))
	m.WaitServing(1)
	byHand := newByHand(t, name)
	ourClients, directClients := kept(address), kept(byHand.address)
	for generation := range upgrades {
		testkit.Flowing(t, ourClients)
		m.Upgrade()
		m.WaitState(generation+1, "gone")
		testkit.Flowing(t, directClients)
		byHand.upgrade(t)
	}
	testkit.Flowing(t, ourClients)
	testkit.Flowing(t, directClients)
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
	process    *exec.Cmd
	generation int
}

func newByHand(t testing.TB, name string) *byHand {
	t.Helper()
	h := &byHand{name: name, address: testkit.FreeAddress(t), generation: 1}
	h.socket = testkit.Listening(t, "tcp", h.address)
	h.process = testkit.StartBare(t, h.socket, 1, testkit.WorkerCommand(name))
	testkit.Answers(t, "tcp", h.address)
	return h
}

func (h *byHand) upgrade(t testing.TB) {
	t.Helper()
	h.generation++
	old := h.process
	h.process = testkit.StartBare(t, h.socket, h.generation, testkit.WorkerCommand(h.name))
	testkit.Until(t, "the next process serves", func() error {
		if n := testkit.GenerationAt("tcp", h.address); n != h.generation {
			return fmt.Errorf("generation %d", n)
		}
		return nil
	})
	// By a process of its own, as a supervisor is one: the moment at which the
	// clients' own process sends it is not a random one.
	kill := exec.Command("/bin/sh", "-c", fmt.Sprintf("sleep 0.2; kill -TERM %d", old.Process.Pid))
	if err := kill.Run(); err != nil {
		t.Fatal(err)
	}
	old.Wait()
}
