//go:build linux

package stop

import (
	"errors"
	"syscall"
	"testing"

	"github.com/moult/moult/supervisor/e2e/testkit"
)

// TERM at each moment at which something else is going on: the master leaves
// with 0, in time, nothing of it stays, and the port is free.
func TestStopAtEveryMoment(t *testing.T) {
	t.Parallel()
	starting := func(m *testkit.Master) { m.WaitState(1, "starting") }
	serving := func(m *testkit.Master) { m.WaitServing(1) }
	upgradeTo := func(next string) func(*testkit.Master) {
		return func(m *testkit.Master) {
			m.WaitServing(1)
			m.Next(next)
			m.Signal(syscall.SIGHUP)
			m.WaitState(2, "starting")
		}
	}
	for _, test := range []struct {
		name   string
		plan   string
		moment func(m *testkit.Master)
	}{
		{"the first generation starts", "graceful delay=30s", starting},
		{"the first generation starts and ignores TERM", "lingers", starting},
		{"a generation serves", "plain", serving},
		{"a generation serves and ignores TERM", "stubborn", serving},
		{"the next one starts slowly", "graceful", upgradeTo("graceful delay=30s")},
		{"the next one starts and ignores TERM", "graceful", upgradeTo("lingers")},
		{"the next one has died after it was ready", "graceful", func(m *testkit.Master) {
			upgradeTo("graceful die=300ms code=1")(m)
			m.WaitState(2, "gone")
		}},
		{"the old one ignores TERM", "stubborn", func(m *testkit.Master) {
			upgradeTo("graceful")(m)
			m.WaitState(1, "draining")
		}},
		{"one more upgrade is remembered", "graceful", func(m *testkit.Master) {
			upgradeTo("graceful delay=30s")(m)
			m.Signal(syscall.SIGHUP)
			m.Signal(syscall.SIGHUP)
		}},
		{"the first one's upgrade is remembered", "graceful delay=30s", func(m *testkit.Master) {
			starting(m)
			m.Signal(syscall.SIGHUP)
		}},
		{"a crashed worker waits for its turn", "graceful", func(m *testkit.Master) {
			pid := m.WaitServing(1).PID
			m.Next("exit code=1")
			testkit.KillProcess(pid)
			testkit.Until(t, "no worker is left", func() error {
				if kids := testkit.Children(m.PID()); len(kids) > 0 {
					return errors.New(testkit.Describe(kids))
				}
				return nil
			})
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			m := testkit.Listen(t, test.plan, "--drain-timeout", "1s", "--kill-grace", "300ms", "--restart-delay", "5s..30s")
			test.moment(m)
			m.Stop()
			testkit.MustBeFree(t, m.Address)
		})
	}
}

// The same while workers bind what they serve.
func TestStopOfInterceptedWorkersAtEveryMoment(t *testing.T) {
	t.Parallel()
	upgrading := func(m *testkit.Master) {
		m.Pass(1)
		m.WaitServing(1)
		m.Signal(syscall.SIGHUP)
	}
	for _, test := range []struct {
		name   string
		moment func(m *testkit.Master)
	}{
		{"before it binds", func(m *testkit.Master) { m.Said(1, "waits") }},
		{"as soon as it has bound", func(m *testkit.Master) { m.Pass(1); m.BoundBy(1, 1) }},
		{"it serves", func(m *testkit.Master) { m.Pass(1); m.WaitServing(1) }},
		{"the next one has not bound", func(m *testkit.Master) { upgrading(m); m.Said(2, "waits") }},
		{"the next one has just bound", func(m *testkit.Master) { upgrading(m); m.Pass(1); m.BoundBy(2, 1) }},
		{"the next one serves", func(m *testkit.Master) { upgrading(m); m.Pass(1); m.WaitServing(2) }},
		{"its replacement has not bound", func(m *testkit.Master) {
			m.Pass(1)
			pid := m.WaitServing(1).PID
			mark := m.Mark()
			testkit.KillProcess(pid)
			m.WaitLog(mark, "the replacement waits", testkit.Says("waits "))
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			m := testkit.Capture(t, "binds wait={gate} tcp={a}", "--restart-delay", "10ms..50ms")
			test.moment(m)
			m.Stop()
			testkit.MustBeFree(t, m.Address)
		})
	}
}
