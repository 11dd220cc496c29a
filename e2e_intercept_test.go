//go:build linux

package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/moult/moult/supervisor/load"
)

// Workers that bind their own addresses, started without --listen
// (e2e_intercept_worker_test.go plays them).

// binds starts the worker that does these steps.
func binds(t testing.TB, flags []string, steps ...string) *master {
	t.Helper()
	return run(t, flags, worker("binds", steps...))
}

// said returns what the first worker of a generation that said so added, once
// one has.
func (m *master) said(generation int, what string) string {
	m.t.Helper()
	prefix := fmt.Sprintf("%s %d", what, generation)
	line := m.waitLog(0, "a worker says "+prefix, func(e entry) bool { return e.Raw == prefix || strings.HasPrefix(e.Raw, prefix+" ") })
	return strings.TrimPrefix(strings.TrimPrefix(line.Raw, prefix), " ")
}

// boundBy waits until a generation has bound n addresses, and returns them in
// their order.
func (m *master) boundBy(generation, n int) (addresses []string) {
	m.t.Helper()
	until(m.t, fmt.Sprintf("generation %d has bound %d addresses", generation, n), func() error {
		addresses = nil
		m.mu.Lock()
		defer m.mu.Unlock()
		for _, e := range m.entries {
			if address, found := strings.CutPrefix(e.Raw, fmt.Sprintf("bound %d ", generation)); found {
				addresses = append(addresses, address)
			}
		}
		return atLeast(len(addresses), n)
	})
	return addresses
}

// mentions matches a line of the master's that has all of the words.
func mentions(words ...string) func(entry) bool {
	return func(e entry) bool {
		for _, word := range words {
			if e.Level == "" || !strings.Contains(e.Raw, word) {
				return false
			}
		}
		return true
	}
}

// gate is where a worker's step "wait" waits until the test lets it pass.
type gate struct{ pipe *os.File }

func newGate(t testing.TB) gate {
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
	return gate{pipe}
}

func (g gate) step() string { return "wait=" + g.pipe.Name() }

// pass lets one worker through, which waits already or comes later.
func (g gate) pass(t testing.TB) {
	t.Helper()
	if _, err := g.pipe.Write([]byte{1}); err != nil {
		t.Fatal(err)
	}
}

// refused waits until nobody listens on an address.
func refused(t testing.TB, address string) {
	t.Helper()
	until(t, address+" is refused", func() error {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			return nil
		}
		conn.Close()
		return fmt.Errorf("somebody listens")
	})
}

func requireIPv6(t testing.TB) {
	t.Helper()
	listener, err := net.Listen("tcp6", "[::1]:0")
	if err != nil {
		skip(t, "no IPv6 here: "+err.Error())
	}
	listener.Close()
}

func portOf(address string) string {
	_, port, _ := net.SplitHostPort(address)
	return port
}

// upgradeUnderLoadOf upgrades while clients ask all of the addresses.
func (m *master) upgradeUnderLoadOf(times int, addresses ...string) {
	m.t.Helper()
	var clients []*load.Traffic
	for _, address := range addresses {
		clients = append(clients, traffic(m.t, load.Config{Address: address, Clients: max(4, 16/len(addresses))}))
	}
	flow := func() {
		for _, running := range clients {
			flowing(m.t, running)
		}
	}
	flow()
	for range times {
		m.upgrade()
		flow()
	}
	m.waitState(m.generation()-1, "gone")
	for i, running := range clients {
		report := lossless(m.t, running)
		if report.Generations[fmt.Sprint(m.generation())] == 0 {
			m.t.Errorf("%s was never answered by the last generation: %v", addresses[i], report)
		}
	}
}

// Each kind of server goes through upgrades under load and loses nothing. Go's
// net.Listen asks for MPTCP, which no program steers: so each case would fail
// without that being refused.
func TestInterceptedServers(t *testing.T) {
	tests := []struct {
		name  string
		steps string // {a}, {b}: addresses; {six}: an IPv6 one; {p}: the port of {a}
		reach string
		flags []string
	}{
		{"dies at TERM", "tcp={a}", "{a}", nil},
		{"graceful", "tcp={a} end=graceful", "{a}", nil},
		{"shuts its socket down", "tcp={a} end=shut", "{a}", nil},
		{"several addresses", "tcp={a} tcp={b} tcp={six}", "{a} {b} {six}", nil},
		{"a socket per thread", "threads=3,{a}", "{a}", nil},
		{"a socket per process", "threads=1,{a} fork=2 threads=1,{a} fork=1 threads=1,{a} end=graceful", "{a}", nil},
		{"only a grandchild binds", "fork=1 fork=1 tcp={a} end=graceful", "{a}", nil},
		{"children that nobody tells", "fork=2 threads=1,{a}", "{a}", nil},
		{"looks whether it is free", "free={a} tcp={a}", "{a}", nil},
		{"binds, closes, binds again", "tcp={a} close tcp={a} close tcp={a} end=graceful", "{a}", nil},
		{"tries a second time", "tcp={a} try={a}", "{a}", nil},
		{"dual stack", "tcp=[::]:{p}", "{a} [::1]:{p}", nil},
		{"both families apart", "tcp6=[::]:{p} tcp4=0.0.0.0:{p} end=graceful", "{a} [::1]:{p}", nil},
		{"short queue", "backlog=5,{a}", "{a}", nil},
		{"three workers", "tcp={a}", "{a}", []string{"-n", "3"}},
		{"three workers with two sockets each", "threads=2,{a} end=graceful", "{a}", []string{"-n", "3"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			requireIPv6(t)
			a := freeAddress(t)
			places := strings.NewReplacer("{a}", a, "{p}", portOf(a), "{b}", freeAddress(t), "{six}", "[::1]:"+portOf(freeAddress(t)))
			m := binds(t, test.flags, strings.Fields(places.Replace(test.steps))...)
			m.waitServing(1)
			m.upgradeUnderLoadOf(times(5, 2, 50), strings.Fields(places.Replace(test.reach))...)
			m.stop()
		})
	}
}

// The server is a child of the command, which is not told and passes nothing
// on.
func TestInterceptedServerInAShell(t *testing.T) {
	t.Parallel()
	address := freeAddress(t)
	for _, line := range []string{`"$@" & wait`, `"$@"; exit`, `"$@" & trap 'kill $!; wait' TERM; wait`} {
		m := run(t, nil, append([]string{"/bin/sh", "-c", line, "sh"}, worker("binds", "tcp="+address)...))
		m.waitServing(1)
		m.upgradeUnderLoadOf(times(3, 2, 20), address)
		m.stop()
	}
}

// One slow answer is in flight at each upgrade.
func TestInterceptedSlowAnswers(t *testing.T) {
	for _, end := range []string{"graceful", "shut", ""} {
		t.Run("ends "+end, func(t *testing.T) {
			t.Parallel()
			address := freeAddress(t)
			steps := []string{"tcp=" + address}
			if end != "" {
				steps = append(steps, "end="+end)
			}
			m := binds(t, nil, steps...)
			m.waitServing(1)
			for range times(5, 2, 50) {
				slow := hold(t, address, "/?sleep=500ms")
				m.upgrade()
				answeredBy(t, address, m.generation())
				if err := slow.finish(); err != nil {
					t.Errorf("generation %d cut a slow answer: %v", m.generation()-1, err)
				}
			}
			m.stop()
		})
	}
}

// A bind that comes when the master has long been asleep wakes it.
func TestBindLongAfterTheStart(t *testing.T) {
	t.Parallel()
	early, late, door := freeAddress(t), freeAddress(t), newGate(t)
	m := binds(t, nil, "tcp="+early, door.step(), "tcp="+late, "end=graceful")
	m.waitServing(1)
	settled(t, m)
	door.pass(t)
	answers(t, "tcp", late)
	for range times(3, 2, 20) {
		door.pass(t)
	}
	m.upgradeUnderLoadOf(times(3, 2, 20), early, late)
	m.stop()
}

// As long as nothing is bound, nothing serves.
func TestBindBeforeReadiness(t *testing.T) {
	t.Parallel()
	address, door := freeAddress(t), newGate(t)
	m := binds(t, nil, door.step(), "tcp="+address)
	m.said(1, "waits")
	if n := m.logged(reaches(1, "serving")); n != 0 {
		t.Error("it serves before it has bound anything")
	}
	door.pass(t)
	m.waitServing(1)
	clients := traffic(t, load.Config{Address: address})
	m.signal(syscall.SIGHUP)
	m.said(2, "waits")
	flowing(t, clients)
	answeredBy(t, address, 1)
	door.pass(t)
	m.waitServing(2)
	flowing(t, clients)
	lossless(t, clients)
	answeredBy(t, address, 2)
	m.stop()
}

// Where a server asks for any port, each generation gets those of the first,
// in their order.
func TestPortZero(t *testing.T) {
	t.Parallel()
	m := binds(t, nil, "tcp=127.0.0.1:0", "tcp=127.0.0.1:0", "tcp=[::1]:0", "end=graceful")
	m.waitServing(1)
	first := m.boundBy(1, 3)
	m.upgradeUnderLoadOf(times(5, 2, 50), first...)
	for generation := 2; generation <= m.generation(); generation++ {
		if got := m.boundBy(generation, 3); !slices.Equal(got, first) {
			t.Errorf("generation %d has bound %v, the first %v", generation, got, first)
		}
	}
	m.stop()
}

// A duplicate in the master's hands would keep a closed socket listening, and
// whoever came to it would hang.
func TestCloseAndBindAgainWhileServing(t *testing.T) {
	t.Parallel()
	address := freeAddress(t)
	m := binds(t, nil, "tcp="+address, "end=graceful")
	for generation := 1; generation <= 3; generation++ {
		m.waitServing(generation)
		for range 5 {
			if _, _, err := get("tcp", address, "/again"); err != nil {
				t.Fatal(err)
			}
			for i := range 20 {
				if got := generationAt("tcp", address); got != generation {
					t.Fatalf("request %d after the second bind: generation %d answers, want %d", i, got, generation)
				}
			}
		}
		m.upgradeUnderLoadOf(1, address)
	}
	m.stop()
}

func TestCloseWhileServing(t *testing.T) {
	t.Parallel()
	kept, closed := freeAddress(t), freeAddress(t)
	m := binds(t, nil, "tcp="+kept, "tcp="+closed, "end=graceful")
	m.waitServing(1)
	answers(t, "tcp", closed)
	if _, _, err := get("tcp", kept, "/close"); err != nil {
		t.Fatal(err)
	}
	refused(t, closed)
	m.upgradeUnderLoadOf(1, kept)
	answeredBy(t, closed, 2)
	m.stop()
}

// A program that binds an address twice is told so, in its own process and in
// a child, whether or not another generation listens there.
func TestSecondBindIsInUse(t *testing.T) {
	t.Parallel()
	address := freeAddress(t)
	m := binds(t, nil, "tcp="+address, "try="+address, "fork=1", "try="+address, "end=graceful")
	for generation := 1; generation <= 3; generation++ {
		m.waitServing(generation)
		line := fmt.Sprintf("tried %d %s ", generation, address)
		until(t, "both have tried", func() error {
			return atLeast(m.logged(func(e entry) bool { return e.Raw == line+"EADDRINUSE" }), 2)
		})
		m.upgrade()
	}
	m.stop()
}

// The address of another program is in use, as it is without moult.
func TestInterceptedAddressInUse(t *testing.T) {
	t.Parallel()
	address, free := freeAddress(t), freeAddress(t)
	listening(t, "tcp", address)
	m := binds(t, nil, "try="+address, "tcp="+free)
	m.waitServing(1)
	if got, want := m.said(1, "tried"), address+" EADDRINUSE"; got != want {
		t.Errorf("the worker tried %s, want %s", got, want)
	}
	m.stop()
	binds(t, nil, "tcp="+address).exitsWith(99) // the worker's own
}

func TestStatusShowsInterceptedSockets(t *testing.T) {
	t.Parallel()
	first, second, control := freeAddress(t), freeAddress(t), filepath.Join(t.TempDir(), "c")
	m := binds(t, []string{"--control", control}, "tcp="+first, "backlog=5,"+second)
	for generation := 1; generation <= 2; generation++ {
		m.waitServing(generation)
		var addresses []string
		for _, socket := range statusOf(t, control).Sockets {
			addresses = append(addresses, socket.Address)
			if !socket.Intercepted || socket.Network != "tcp" || socket.Backlog < 128 {
				t.Errorf("generation %d: %+v", generation, socket)
			}
		}
		slices.Sort(addresses)
		if want := slices.Sorted(slices.Values([]string{first, second})); !slices.Equal(addresses, want) {
			t.Errorf("generation %d: status shows %v, want %v", generation, addresses, want)
		}
		m.upgrade()
	}
	m.stop()
}
