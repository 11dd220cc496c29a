//go:build linux

package stop

import (
	"fmt"
	"net"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/moult/moult/supervisor/e2e/testkit"
	"github.com/moult/moult/supervisor/load"
)

// When scale returns, there are as many workers as it was asked for, all of
// them ready, and no other.
func TestScaleReturnsWhenItIsDone(t *testing.T) {
	t.Parallel()
	control := filepath.Join(t.TempDir(), "c")
	m := testkit.Run(t, []string{"-l", testkit.FreeAddress(t), "--control", control}, testkit.WorkerCommand("graceful"))
	m.WaitServing(1)
	for _, want := range []string{"3", "1", "2"} {
		if code, out := testkit.Client(t, "scale", "--control", control, want); code != 0 {
			t.Fatalf("exit code %d: %s", code, out)
		}
		workers := testkit.StatusOf(t, control).Workers
		if got := len(workers); got != int(want[0]-'0') {
			t.Errorf("%d workers after scale %s", got, want)
		}
		for _, w := range workers {
			if w.State != "serving" {
				t.Errorf("worker %d is %s after scale %s", w.PID, w.State, want)
			}
		}
	}
	m.Stop()
}

// A master that is itself a worker has a name and a control socket of its own:
// the variables that it finds are those of the master above.
func TestMasterUnderAMaster(t *testing.T) {
	t.Parallel()
	address, inner := testkit.FreeAddress(t), testkit.FreeAddress(t)
	control := filepath.Join(t.TempDir(), "c")
	nested := append([]string{testkit.Executable(), "run", "-l", inner, "--name", "inner", "--control", "off", "--"}, testkit.WorkerCommand("graceful")...)
	m := testkit.Run(t, []string{"-l", address, "--control", control, "--ready", "alive=100ms"}, nested)
	m.WaitServing(1)
	testkit.AnsweredBy(t, inner, 1)
	if got := testkit.StatusOf(t, control).PID; got != m.Pid() {
		t.Errorf("the control socket answers for pid %d, want %d", got, m.Pid())
	}
	m.Stop()
}

// What status tells is what the kernel shows to everybody (/proc/net/tcp, from
// which netstat reads; ss asks for the same).
func TestStatusAgreesWithTheKernel(t *testing.T) {
	t.Parallel()
	address, control := testkit.FreeAddress(t), filepath.Join(t.TempDir(), "c")
	m := testkit.Run(t, []string{"-l", address, "--control", control, "--quiesce", "0s"}, testkit.WorkerCommand("graceful"))
	pid := m.WaitServing(1).PID
	const accepted, waiting = 30, 20
	for range accepted {
		testkit.Dial(t, address)
	}
	testkit.Until(t, "all are accepted", func() error {
		if n := testkit.Queued(t, address); n > 0 {
			return fmt.Errorf("%d wait", n)
		}
		return nil
	})
	if got := testkit.StatusOf(t, control).Workers[0].Connections; got == nil || *got != accepted {
		t.Errorf("status tells of %v connections, want %d", got, accepted)
	}
	testkit.Freeze(t, pid)
	for range waiting {
		testkit.Dial(t, address)
	}
	status := testkit.StatusOf(t, control)
	if got, want := status.Sockets[0].Queued, testkit.Queued(t, address); got != want || got != waiting {
		t.Errorf("status tells of %d in the queue, the kernel shows %d, want %d", got, want, waiting)
	}
	if got := status.Workers[0].Connections; got == nil || *got != accepted {
		t.Errorf("with a queue status tells of %v connections, want %d", got, accepted)
	}
	if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	m.Stop()
}

// Clients of the control socket that say nothing, half of a request, or
// nonsense hold nothing up: the master upgrades as before, and so does one who
// asks properly.
func TestStuckControlClientsHoldNothingUp(t *testing.T) {
	t.Parallel()
	address, control := testkit.FreeAddress(t), filepath.Join(t.TempDir(), "c")
	m := testkit.Run(t, []string{"-l", address, "--control", control}, testkit.WorkerCommand("graceful"))
	m.WaitServing(1)
	clients := testkit.Traffic(t, load.Config{Address: address})
	testkit.Flowing(t, clients)
	for i, words := range []string{"", "POST /v1/upgrade HTTP/1.1\r\nHost: ", "\x00\x01\x02\n\n", "POST /v1/upgrade HTTP/1.1\r\nHost: m\r\nContent-Length: 100000000\r\n\r\n{"} {
		for range 100 {
			conn, err := net.DialTimeout("unix", control, 5*time.Second)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			// The server may have ended it already, to make room.
			_, _ = conn.Write([]byte(words))
		}
		if code, out := testkit.Client(t, "upgrade", "--control", control); code != 0 {
			t.Fatalf("exit code %d: %s", code, out)
		}
		m.WaitServing(2 + 2*i)
		m.Upgrade()
		testkit.AnsweredBy(t, address, 3+2*i)
	}
	testkit.Lossless(t, clients)
	m.Stop()
}
