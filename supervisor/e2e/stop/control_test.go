//go:build linux

package stop

import (
	"fmt"
	"io"
	"testing"

	"github.com/moult/moult/supervisor/e2e/testkit"
)

// When scale returns, there are as many workers as it was asked for, all of
// them ready, and no other.
func TestScaleReturnsWhenItIsDone(t *testing.T) {
	t.Parallel()
	m := testkit.Listen(t, "graceful").Serving()
	for _, want := range []string{"3", "1", "2"} {
		m.Succeeds("scale", want)
		workers := m.Status().Workers
		if got := len(workers); got != int(want[0]-'0') {
			t.Errorf("%d workers after scale %s", got, want)
		}
		for _, w := range workers {
			if w.State != "serving" {
				t.Errorf("worker %d is %s after scale %s", w.PID, w.State, want)
			}
		}
	}
}

// A master that is itself a worker has a name and a control socket of its own:
// the variables that it finds are those of the master above.
func TestMasterUnderAMaster(t *testing.T) {
	t.Parallel()
	inner := append([]string{testkit.Executable(), "run", "-l", "{b}", "--name", "inner", "--control", "off", "--"}, testkit.Worker("graceful")...)
	m := testkit.Run(t, []string{"-l", "{a}", "--ready", "alive=100ms"}, inner).Serving()
	testkit.Answers(t, m.Fill("{b}")) // the inner one may be slower than 100 ms
	testkit.AnsweredBy(t, m.Fill("{b}"), 1)
	if got := m.Status().PID; got != m.PID() {
		t.Errorf("the control socket answers for pid %d, want %d", got, m.PID())
	}
}

// What status tells is what the kernel shows to everybody (/proc/net/tcp, from
// which netstat reads; ss asks for the same).
func TestStatusAgreesWithTheKernel(t *testing.T) {
	t.Parallel()
	m := testkit.Listen(t, "graceful", "--quiesce", "0s")
	pid := m.WaitServing(1).PID
	const accepted, waiting = 30, 20
	for range accepted {
		testkit.Dial(t, m.Address)
	}
	testkit.Until(t, "all are accepted", func() error {
		if n := testkit.Queued(t, m.Address); n > 0 {
			return fmt.Errorf("%d wait", n)
		}
		return nil
	})
	if got := m.Status().Workers[0].Connections; got == nil || *got != accepted {
		t.Errorf("status tells of %v connections, want %d", got, accepted)
	}
	testkit.Freeze(t, pid)
	for range waiting {
		testkit.Dial(t, m.Address)
	}
	status := m.Status()
	if got, want := status.Sockets[0].Queued, testkit.Queued(t, m.Address); got != want || got != waiting {
		t.Errorf("status tells of %d in the queue, the kernel shows %d, want %d", got, want, waiting)
	}
	if got := status.Workers[0].Connections; got == nil || *got != accepted {
		t.Errorf("with a queue status tells of %v connections, want %d", got, accepted)
	}
	testkit.Thaw(t, pid)
}

// Clients of the control socket that say nothing, half of a request, or
// nonsense hold nothing up: the master upgrades as before, and so does one who
// asks properly.
func TestStuckControlClientsHoldNothingUp(t *testing.T) {
	t.Parallel()
	m := testkit.Listen(t, "graceful").Serving()
	clients := m.Ask(16)
	clients.Flow()
	for i, words := range []string{"", "POST /v1/upgrade HTTP/1.1\r\nHost: ", "\x00\x01\x02\n\n", "POST /v1/upgrade HTTP/1.1\r\nHost: m\r\nContent-Length: 100000000\r\n\r\n{"} {
		for range 100 {
			// The server may have ended it already, to make room.
			_, _ = io.WriteString(m.Control(), words)
		}
		m.Succeeds("upgrade")
		m.WaitServing(2 + 2*i)
		m.Upgrade()
		m.AnsweredBy(3 + 2*i)
	}
	clients.Lossless()
}
