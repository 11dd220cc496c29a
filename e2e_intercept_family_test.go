//go:build linux

package main

import (
	"errors"
	"fmt"
	"syscall"
	"testing"

	"github.com/moult/moult/supervisor/load"
)

// A server that its parent has left behind serves beside the main process, as
// php-fpm does that an entry point starts before nginx: its socket is nobody's
// but the worker's.
func TestOrphanServesBesideTheMainProcess(t *testing.T) {
	t.Parallel()
	main, orphan := freeAddress(t), freeAddress(t)
	script := fmt.Sprintf(`( "$0" worker:binds tcp=%s end=graceful & ); exec "$0" worker:binds tcp=%s end=graceful`, orphan, main)
	m := run(t, nil, []string{"/bin/sh", "-c", script, executable()})
	m.waitServing(1)
	answers(t, "tcp", orphan)
	clients := traffic(t, load.Config{Address: orphan, Clients: 4})
	const long = 4000 // requests: longer than sockets that nobody has are left alone
	until(t, "the orphan serves on", func() error {
		now := clients.Snapshot()
		if now.Failures() > 0 {
			return errors.New(now.String())
		}
		return atLeast(int(now.Requests()), long)
	})
	lossless(t, clients)
	m.upgradeUnderLoadOf(times(5, 2, 20), main, orphan)
	m.stop()
}

// Each worker that asks for any port has one of its own, and its replacement
// and its successor get the same.
func TestPortZeroOfSeveralWorkers(t *testing.T) {
	t.Parallel()
	m := binds(t, []string{"-n", "2"}, "tcp=127.0.0.1:0", "end=graceful")
	m.waitServing(1)
	ports := m.boundBy(1, 2)
	if ports[0] == ports[1] {
		t.Fatalf("both workers have %s", ports[0])
	}
	first := children(m.pid())
	for _, pid := range first {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		until(t, "it is replaced", func() error {
			now := children(m.pid())
			if alive(pid) || len(now) != 2 {
				return fmt.Errorf("workers %v", now)
			}
			return nil
		})
		for _, address := range ports {
			answers(t, "tcp", address)
		}
	}
	m.upgradeUnderLoadOf(times(3, 2, 20), ports...)
	if again := m.boundBy(m.generation(), 2); !sameElements(again, ports) {
		t.Errorf("the last generation has bound %v, the first %v", again, ports)
	}
	m.stop()
}

func sameElements(a, b []string) bool {
	count := map[string]int{}
	for _, x := range a {
		count[x]++
	}
	for _, x := range b {
		count[x]--
	}
	for _, n := range count {
		if n != 0 {
			return false
		}
	}
	return len(a) == len(b)
}
