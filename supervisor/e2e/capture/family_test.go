//go:build linux

package capture

import (
	"errors"
	"fmt"
	"syscall"
	"testing"

	"github.com/moult/moult/supervisor/e2e/testkit"
	"github.com/moult/moult/supervisor/load"
)

// A server that its parent has left behind serves beside the main process, as
// php-fpm does that an entry point starts before nginx: its socket is nobody's
// but the worker's.
func TestOrphanServesBesideTheMainProcess(t *testing.T) {
	t.Parallel()
	main, orphan := testkit.FreeAddress(t), testkit.FreeAddress(t)
	script := fmt.Sprintf(`( "$0" worker:binds tcp=%s end=graceful & ); exec "$0" worker:binds tcp=%s end=graceful`, orphan, main)
	m := testkit.Run(t, nil, []string{"/bin/sh", "-c", script, testkit.Executable()})
	m.WaitServing(1)
	testkit.Answers(t, "tcp", orphan)
	clients := testkit.Traffic(t, load.Config{Address: orphan, Clients: 4})
	const long = 4000 // requests: longer than sockets that nobody has are left alone
	testkit.Until(t, "the orphan serves on", func() error {
		now := clients.Snapshot()
		if now.Failures() > 0 {
			return errors.New(now.String())
		}
		return testkit.AtLeast(int(now.Requests()), long)
	})
	testkit.Lossless(t, clients)
	m.UpgradeUnderLoadOf(testkit.Times(5, 2, 20), main, orphan)
	m.Stop()
}

// Each worker that asks for any port has one of its own, and its replacement
// and its successor get the same.
func TestPortZeroOfSeveralWorkers(t *testing.T) {
	t.Parallel()
	m := testkit.Binds(t, []string{"-n", "2"}, "tcp=127.0.0.1:0", "end=graceful")
	m.WaitServing(1)
	ports := m.BoundBy(1, 2)
	if ports[0] == ports[1] {
		t.Fatalf("both workers have %s", ports[0])
	}
	first := testkit.Children(m.Pid())
	for _, pid := range first {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		testkit.Until(t, "it is replaced", func() error {
			now := testkit.Children(m.Pid())
			if testkit.Alive(pid) || len(now) != 2 {
				return fmt.Errorf("workers %v", now)
			}
			return nil
		})
		for _, address := range ports {
			testkit.Answers(t, "tcp", address)
		}
	}
	m.UpgradeUnderLoadOf(testkit.Times(3, 2, 20), ports...)
	if again := m.BoundBy(m.Generation(), 2); !sameElements(again, ports) {
		t.Errorf("the last generation has bound %v, the first %v", again, ports)
	}
	m.Stop()
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
