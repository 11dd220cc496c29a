//go:build linux

package capture

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/moult/moult/supervisor/e2e/testkit"
	"github.com/moult/moult/supervisor/load"
)

// Workers that bind their own addresses, started without --listen
// (e2e_intercept_worker_test.go plays them).

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
			testkit.RequireIPv6(t)
			a := testkit.FreeAddress(t)
			places := strings.NewReplacer("{a}", a, "{p}", testkit.PortOf(a), "{b}", testkit.FreeAddress(t), "{six}", "[::1]:"+testkit.PortOf(testkit.FreeAddress(t)))
			m := testkit.Binds(t, test.flags, strings.Fields(places.Replace(test.steps))...)
			m.WaitServing(1)
			m.UpgradeUnderLoadOf(testkit.Times(5, 2, 50), strings.Fields(places.Replace(test.reach))...)
			m.Stop()
		})
	}
}

// The server is a child of the command, which is not told and passes nothing
// on.
func TestInterceptedServerInAShell(t *testing.T) {
	t.Parallel()
	address := testkit.FreeAddress(t)
	for _, line := range []string{`"$@" & wait`, `"$@"; exit`, `"$@" & trap 'kill $!; wait' TERM; wait`} {
		m := testkit.Run(t, nil, append([]string{"/bin/sh", "-c", line, "sh"}, testkit.WorkerCommand("binds", "tcp="+address)...))
		m.WaitServing(1)
		m.UpgradeUnderLoadOf(testkit.Times(3, 2, 20), address)
		m.Stop()
	}
}

// One slow answer is in flight at each upgrade.
func TestInterceptedSlowAnswers(t *testing.T) {
	for _, end := range []string{"graceful", "shut", ""} {
		t.Run("ends "+end, func(t *testing.T) {
			t.Parallel()
			address := testkit.FreeAddress(t)
			steps := []string{"tcp=" + address}
			if end != "" {
				steps = append(steps, "end="+end)
			}
			m := testkit.Binds(t, nil, steps...)
			m.WaitServing(1)
			for range testkit.Times(5, 2, 50) {
				slow := testkit.Hold(t, address, "/?sleep=500ms")
				m.Upgrade()
				testkit.AnsweredBy(t, address, m.Generation())
				if err := slow.Finish(); err != nil {
					t.Errorf("generation %d cut a slow answer: %v", m.Generation()-1, err)
				}
			}
			m.Stop()
		})
	}
}

// A bind that comes when the master has long been asleep wakes it.
func TestBindLongAfterTheStart(t *testing.T) {
	t.Parallel()
	early, late, door := testkit.FreeAddress(t), testkit.FreeAddress(t), testkit.NewGate(t)
	m := testkit.Binds(t, nil, "tcp="+early, door.Step(), "tcp="+late, "end=graceful")
	m.WaitServing(1)
	testkit.Settled(t, m)
	door.Pass(t)
	testkit.Answers(t, "tcp", late)
	for range testkit.Times(3, 2, 20) {
		door.Pass(t)
	}
	m.UpgradeUnderLoadOf(testkit.Times(3, 2, 20), early, late)
	m.Stop()
}

// As long as nothing is bound, nothing serves.
func TestBindBeforeReadiness(t *testing.T) {
	t.Parallel()
	address, door := testkit.FreeAddress(t), testkit.NewGate(t)
	m := testkit.Binds(t, nil, door.Step(), "tcp="+address)
	m.Said(1, "waits")
	if n := m.Logged(testkit.Reaches(1, "serving")); n != 0 {
		t.Error("it serves before it has bound anything")
	}
	door.Pass(t)
	m.WaitServing(1)
	clients := testkit.Traffic(t, load.Config{Address: address})
	m.Signal(syscall.SIGHUP)
	m.Said(2, "waits")
	testkit.Flowing(t, clients)
	testkit.AnsweredBy(t, address, 1)
	door.Pass(t)
	m.WaitServing(2)
	testkit.Flowing(t, clients)
	testkit.Lossless(t, clients)
	testkit.AnsweredBy(t, address, 2)
	m.Stop()
}

// Where a server asks for any port, each generation gets those of the first,
// in their order.
func TestPortZero(t *testing.T) {
	t.Parallel()
	m := testkit.Binds(t, nil, "tcp=127.0.0.1:0", "tcp=127.0.0.1:0", "tcp=[::1]:0", "end=graceful")
	m.WaitServing(1)
	first := m.BoundBy(1, 3)
	m.UpgradeUnderLoadOf(testkit.Times(5, 2, 50), first...)
	for generation := 2; generation <= m.Generation(); generation++ {
		if got := m.BoundBy(generation, 3); !slices.Equal(got, first) {
			t.Errorf("generation %d has bound %v, the first %v", generation, got, first)
		}
	}
	m.Stop()
}

// A duplicate in the master's hands would keep a closed socket listening, and
// whoever came to it would hang.
func TestCloseAndBindAgainWhileServing(t *testing.T) {
	t.Parallel()
	address := testkit.FreeAddress(t)
	m := testkit.Binds(t, nil, "tcp="+address, "end=graceful")
	for generation := 1; generation <= 3; generation++ {
		m.WaitServing(generation)
		for range 5 {
			if _, _, err := testkit.Get("tcp", address, "/again"); err != nil {
				t.Fatal(err)
			}
			for i := range 20 {
				if got := testkit.GenerationAt("tcp", address); got != generation {
					t.Fatalf("request %d after the second bind: generation %d answers, want %d", i, got, generation)
				}
			}
		}
		m.UpgradeUnderLoadOf(1, address)
	}
	m.Stop()
}

func TestCloseWhileServing(t *testing.T) {
	t.Parallel()
	kept, closed := testkit.FreeAddress(t), testkit.FreeAddress(t)
	m := testkit.Binds(t, nil, "tcp="+kept, "tcp="+closed, "end=graceful")
	m.WaitServing(1)
	testkit.Answers(t, "tcp", closed)
	if _, _, err := testkit.Get("tcp", kept, "/close"); err != nil {
		t.Fatal(err)
	}
	testkit.Refused(t, closed)
	m.UpgradeUnderLoadOf(1, kept)
	testkit.AnsweredBy(t, closed, 2)
	m.Stop()
}

// A program that binds an address twice is told so, in its own process and in
// a child, whether or not another generation listens there.
func TestSecondBindIsInUse(t *testing.T) {
	t.Parallel()
	address := testkit.FreeAddress(t)
	m := testkit.Binds(t, nil, "tcp="+address, "try="+address, "fork=1", "try="+address, "end=graceful")
	for generation := 1; generation <= 3; generation++ {
		m.WaitServing(generation)
		line := fmt.Sprintf("tried %d %s ", generation, address)
		testkit.Until(t, "both have tried", func() error {
			return testkit.AtLeast(m.Logged(func(e testkit.Entry) bool { return e.Raw == line+"EADDRINUSE" }), 2)
		})
		m.Upgrade()
	}
	m.Stop()
}

// The address of another program is in use, as it is without moult.
func TestInterceptedAddressInUse(t *testing.T) {
	t.Parallel()
	address, free := testkit.FreeAddress(t), testkit.FreeAddress(t)
	testkit.Listening(t, "tcp", address)
	m := testkit.Binds(t, nil, "try="+address, "tcp="+free)
	m.WaitServing(1)
	if got, want := m.Said(1, "tried"), address+" EADDRINUSE"; got != want {
		t.Errorf("the worker tried %s, want %s", got, want)
	}
	m.Stop()
	testkit.Binds(t, nil, "tcp="+address).ExitsWith(99) // the worker's own
}

func TestStatusShowsInterceptedSockets(t *testing.T) {
	t.Parallel()
	first, second, control := testkit.FreeAddress(t), testkit.FreeAddress(t), filepath.Join(t.TempDir(), "c")
	m := testkit.Binds(t, []string{"--control", control}, "tcp="+first, "backlog=5,"+second)
	for generation := 1; generation <= 2; generation++ {
		m.WaitServing(generation)
		var addresses []string
		for _, socket := range testkit.StatusOf(t, control).Sockets {
			addresses = append(addresses, socket.Address)
			if !socket.Intercepted || socket.Network != "tcp" || socket.Backlog < 128 {
				t.Errorf("generation %d: %+v", generation, socket)
			}
		}
		slices.Sort(addresses)
		if want := slices.Sorted(slices.Values([]string{first, second})); !slices.Equal(addresses, want) {
			t.Errorf("generation %d: status shows %v, want %v", generation, addresses, want)
		}
		m.Upgrade()
	}
	m.Stop()
}
