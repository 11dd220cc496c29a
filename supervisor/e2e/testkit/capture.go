//go:build linux

package testkit

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moult/moult/supervisor/load"
)

func (m *Master) Hunted(generation int, address, outcome string) bool {
	line := strings.Join([]string{"tried", strconv.Itoa(generation), address, outcome}, " ")
	return m.Logged(func(e Entry) bool { return e.Raw == line }) == 1
}

// PassBoth lets two workers of a generation through once both are there.
func (m *Master) PassBoth(generation int, door Gate) {
	m.T.Helper()
	line := fmt.Sprintf("waits %d", generation)
	Until(m.T, "both workers wait", func() error {
		return AtLeast(m.Logged(func(e Entry) bool { return e.Raw == line }), 2)
	})
	door.Pass(m.T)
	m.BoundBy(generation, 1)
	door.Pass(m.T)
}

// UpgradesOnPath upgrades two workers that wait at a gate, and stops.
func (m *Master) UpgradesOnPath(clients *load.Traffic, path string, door Gate) {
	m.T.Helper()
	Flowing(m.T, clients)
	for range Times(5, 2, 20) {
		door.Pass(m.T)
		door.Pass(m.T)
		m.Upgrade()
		m.WaitState(m.Generation()-1, "gone")
		Flowing(m.T, clients)
		if got := GenerationAt("unix", path); got != m.Generation() {
			m.T.Errorf("generation %d answers, want %d", got, m.Generation())
		}
	}
	Lossless(m.T, clients)
	m.Stop()
}

// Explains checks that a start failed, soon, with a log or a line of another
// moult that has all of the words. The exit code -1 stands for any but 0.
func (m *Master) Explains(code int, words ...string) {
	m.T.Helper()
	began := time.Now()
	if got := m.Wait(); got != code && (code >= 0 || got == 0) {
		m.T.Errorf("exit code %d, want %d", got, code)
	}
	m.NothingLeft()
	if took := time.Since(began); took > 10*time.Second {
		m.T.Errorf("it took %v", took)
	}
	Until(m.T, "the reason has been read", func() error {
		text := strings.ToLower(m.Log())
		for _, word := range words {
			if !strings.Contains(text, word) {
				return fmt.Errorf("nothing is said about %q", word)
			}
		}
		return nil
	})
}

// Binds starts the worker that does these steps.
func Binds(t testing.TB, flags []string, steps ...string) *Master {
	t.Helper()
	return Run(t, flags, WorkerCommand("binds", steps...))
}

// Said returns what the first worker of a generation that said so added, once
// one has.
func (m *Master) Said(generation int, what string) string {
	m.T.Helper()
	prefix := fmt.Sprintf("%s %d", what, generation)
	line := m.WaitLog(0, "a worker says "+prefix, func(e Entry) bool { return e.Raw == prefix || strings.HasPrefix(e.Raw, prefix+" ") })
	return strings.TrimPrefix(strings.TrimPrefix(line.Raw, prefix), " ")
}

// BoundBy waits until a generation has bound n addresses, and returns them in
// their order.
func (m *Master) BoundBy(generation, n int) (addresses []string) {
	m.T.Helper()
	Until(m.T, fmt.Sprintf("generation %d has bound %d addresses", generation, n), func() error {
		addresses = nil
		m.Mu.Lock()
		defer m.Mu.Unlock()
		for _, e := range m.Entries {
			if address, found := strings.CutPrefix(e.Raw, fmt.Sprintf("bound %d ", generation)); found {
				addresses = append(addresses, address)
			}
		}
		return AtLeast(len(addresses), n)
	})
	return addresses
}

// Mentions matches a line of the master's that has all of the words.
func Mentions(words ...string) func(Entry) bool {
	return func(e Entry) bool {
		for _, word := range words {
			if e.Level == "" || !strings.Contains(e.Raw, word) {
				return false
			}
		}
		return true
	}
}

// Gate is where a worker's step "wait" waits until the test lets it pass.
type Gate struct{ Pipe *os.File }

func NewGate(t testing.TB) Gate {
	t.Helper()
	path := filepath.Join(t.TempDir(), "gate")
	if err := syscall.Mkfifo(path, 0o644); err != nil {
		t.Fatal(err)
	}
	pipe, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pipe.Close() })
	return Gate{pipe}
}

func (g Gate) Step() string { return "wait=" + g.Pipe.Name() }

// Pass lets one worker through, which waits already or comes later.
func (g Gate) Pass(t testing.TB) {
	t.Helper()
	if _, err := g.Pipe.Write([]byte{1}); err != nil {
		t.Fatal(err)
	}
}

// UpgradeUnderLoadOf upgrades while clients ask all of the addresses.
func (m *Master) UpgradeUnderLoadOf(times int, addresses ...string) {
	m.T.Helper()
	var clients []*load.Traffic
	for _, address := range addresses {
		clients = append(clients, Traffic(m.T, load.Config{Address: address, Clients: max(4, 16/len(addresses))}))
	}
	flow := func() {
		for _, running := range clients {
			Flowing(m.T, running)
		}
	}
	flow()
	for range times {
		m.Upgrade()
		flow()
	}
	m.WaitState(m.Generation()-1, "gone")
	for i, running := range clients {
		report := Lossless(m.T, running)
		if report.Generations[fmt.Sprint(m.Generation())] == 0 {
			m.T.Errorf("%s was never answered by the last generation: %v", addresses[i], report)
		}
	}
}
