//go:build linux

package capture

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/moult/moult/supervisor/cli/demo/load"
	"github.com/moult/moult/supervisor/e2e/testkit"
)

// Workers that end, and a master that does.

// Whoever comes while no worker lives waits in the queue, and is served by the
// replacement.
func TestCrashOfAnInterceptedWorker(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		steps  string
		launch testkit.Launch
	}{
		{"tcp={a}", testkit.Launch{}},
		{"threads=3,{a}", testkit.Launch{}},
		{"tcp={a} tcp={b} end=graceful", testkit.Launch{}},
		{"tcp={a}", testkit.NoDuplicates()},
	} {
		t.Run(fmt.Sprint(test.steps, len(test.launch.Wrap)), func(t *testing.T) {
			t.Parallel()
			m := test.launch.Capture(t, "binds "+test.steps, "--restart-delay", "10ms..50ms")
			pid := m.WaitServing(1).PID
			m.Next("binds wait={gate} " + test.steps)
			clients := m.Ask(8)
			kills := testkit.Times(3, 2, 20)
			for range kills {
				clients.Flow()
				mark := m.Mark()
				testkit.KillProcess(pid)
				m.WaitLog(mark, "the replacement waits", testkit.Says("waits "))
				queue := testkit.Queue(t, m.Address, 20)
				m.Pass(1)
				pid = m.WaitReplaced(mark)
				testkit.Finish(t, "while nobody lived", queue...)
			}
			clients.Flow()
			clients.OnlyInHand(8 * kills)
			m.Next("binds " + test.steps)
			m.UpgradeUnderLoad(testkit.Times(2, 1, 20))
		})
	}
}

// A queue as short as the server asked for would drop most of a burst.
func TestShortQueueIsMadeLonger(t *testing.T) {
	t.Parallel()
	m := testkit.Capture(t, "binds backlog=5,{a}")
	for generation := 1; generation <= 2; generation++ {
		pid := m.WaitServing(generation).PID
		testkit.Freeze(t, pid)
		var burst sync.WaitGroup
		for range 64 {
			burst.Go(func() {
				conn, err := net.DialTimeout("tcp", m.Address, 900*time.Millisecond) // before a SYN is repeated
				if err != nil {
					t.Errorf("it did not fit into the queue of generation %d: %v", generation, err)
					return
				}
				conn.Close()
			})
		}
		burst.Wait()
		testkit.Thaw(t, pid)
		m.Upgrade()
	}
}

// A bind that a signal has interrupted, and that starts again, is the same bind.
func TestSignalsDuringBind(t *testing.T) {
	t.Parallel()
	m := testkit.Capture(t, "binds alarms=127.0.81.5,200 tcp={a}").Serving()
	if said := m.Said(1, "alarmed"); !strings.HasSuffix(said, " failed map[]") {
		t.Errorf("200 binds: %s", said)
	}
}

// Name lookups do not need the master: they pass while it lives, and go on when
// it is gone.
func TestNameLookups(t *testing.T) {
	t.Parallel()
	m := testkit.Capture(t, "binds tcp={a}").Serving()
	lookUp := func() {
		t.Helper()
		for range 5 {
			testkit.MustGet(t, m.Address, "/lookup")
		}
	}
	lookUp()
	m.Kill()
	lookUp()
}

func TestInterceptedWorkersOutliveTheMaster(t *testing.T) {
	t.Parallel()
	m := testkit.Capture(t, "binds tcp={a}", "-n", "2").Serving()
	m.Upgrade()
	var kids []int
	testkit.Until(t, "two workers are left", func() error {
		if kids = testkit.Children(m.PID()); len(kids) != 2 {
			return errors.New(testkit.Describe(kids))
		}
		return nil
	})
	m.Kill()
	clients := m.Ask(16)
	clients.Flow()
	clients.Lossless()
	for _, pid := range kids {
		if !testkit.Alive(pid) {
			t.Errorf("worker %d has gone with the master", pid)
		}
	}
}

func TestStopCommandEndsInterceptedWorkers(t *testing.T) {
	t.Parallel()
	m := testkit.Capture(t, "binds tcp={a}").Serving()
	clients := m.Ask(4)
	clients.Flow()
	m.Succeeds("stop")
	m.ExitsWith(0)
	report := clients.Stop()
	if total := report.Total(); total.Failures() != total.Failed[load.Refused] {
		t.Errorf("clients were not only refused: %v", report)
	}
	if _, err := net.Dial("tcp", m.Address); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("after the end: %v, want refused", err)
	}
}
