//go:build linux

package main

import (
	"encoding/json"
	"fmt"
	"net"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/moult/moult/supervisor/control/api"
	"github.com/moult/moult/supervisor/load"
)

// statusOf asks the master as a script does.
func statusOf(t *testing.T, control string) api.Status {
	t.Helper()
	code, out := client(t, "status", "--json", "--control", control)
	var status api.Status
	if err := json.Unmarshal([]byte(out), &status); code != 0 || err != nil {
		t.Fatalf("exit code %d, %v: %s", code, err, out)
	}
	return status
}

// When scale returns, there are as many workers as it was asked for, all of
// them ready, and no other.
func TestScaleReturnsWhenItIsDone(t *testing.T) {
	t.Parallel()
	control := filepath.Join(t.TempDir(), "c")
	m := run(t, []string{"-l", freeAddress(t), "--control", control}, worker("graceful"))
	m.waitServing(1)
	for _, want := range []string{"3", "1", "2"} {
		if code, out := client(t, "scale", "--control", control, want); code != 0 {
			t.Fatalf("exit code %d: %s", code, out)
		}
		workers := statusOf(t, control).Workers
		if got := len(workers); got != int(want[0]-'0') {
			t.Errorf("%d workers after scale %s", got, want)
		}
		for _, w := range workers {
			if w.State != "serving" {
				t.Errorf("worker %d is %s after scale %s", w.PID, w.State, want)
			}
		}
	}
	m.stop()
}

// A master that is itself a worker has a name and a control socket of its own:
// the variables that it finds are those of the master above.
func TestMasterUnderAMaster(t *testing.T) {
	t.Parallel()
	address, inner := freeAddress(t), freeAddress(t)
	control := filepath.Join(t.TempDir(), "c")
	nested := append([]string{executable(), "run", "-l", inner, "--name", "inner", "--control", "off", "--"}, worker("graceful")...)
	m := run(t, []string{"-l", address, "--control", control, "--ready", "alive=100ms"}, nested)
	m.waitServing(1)
	answeredBy(t, inner, 1)
	if got := statusOf(t, control).PID; got != m.pid() {
		t.Errorf("the control socket answers for pid %d, want %d", got, m.pid())
	}
	m.stop()
}

// What status tells is what the kernel shows to everybody (/proc/net/tcp, from
// which netstat reads; ss asks for the same).
func TestStatusAgreesWithTheKernel(t *testing.T) {
	t.Parallel()
	address, control := freeAddress(t), filepath.Join(t.TempDir(), "c")
	m := run(t, []string{"-l", address, "--control", control, "--quiesce", "0s"}, worker("graceful"))
	pid := m.waitServing(1).PID
	const accepted, waiting = 30, 20
	for range accepted {
		dial(t, address)
	}
	until(t, "all are accepted", func() error {
		if n := queued(t, address); n > 0 {
			return fmt.Errorf("%d wait", n)
		}
		return nil
	})
	if got := statusOf(t, control).Workers[0].Connections; got == nil || *got != accepted {
		t.Errorf("status tells of %v connections, want %d", got, accepted)
	}
	freeze(t, pid)
	for range waiting {
		dial(t, address)
	}
	status := statusOf(t, control)
	if got, want := status.Sockets[0].Queued, queued(t, address); got != want || got != waiting {
		t.Errorf("status tells of %d in the queue, the kernel shows %d, want %d", got, want, waiting)
	}
	if got := status.Workers[0].Connections; got == nil || *got != accepted {
		t.Errorf("with a queue status tells of %v connections, want %d", got, accepted)
	}
	if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	m.stop()
}

func dial(t *testing.T, address string) {
	t.Helper()
	conn, err := net.DialTimeout("tcp", address, 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
}

// Clients of the control socket that say nothing, half of a request, or
// nonsense hold nothing up: the master upgrades as before, and so does one who
// asks properly.
func TestStuckControlClientsHoldNothingUp(t *testing.T) {
	t.Parallel()
	address, control := freeAddress(t), filepath.Join(t.TempDir(), "c")
	m := run(t, []string{"-l", address, "--control", control}, worker("graceful"))
	m.waitServing(1)
	clients := traffic(t, load.Config{Address: address})
	flowing(t, clients)
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
		if code, out := client(t, "upgrade", "--control", control); code != 0 {
			t.Fatalf("exit code %d: %s", code, out)
		}
		m.waitServing(2 + 2*i)
		m.upgrade()
		answeredBy(t, address, 3+2*i)
	}
	lossless(t, clients)
	m.stop()
}
