//go:build linux

package capture

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/moult/moult/supervisor/cli/demo/load"
	"github.com/moult/moult/supervisor/e2e/testkit"
)

// Workers that bind their own addresses, started without --listen.

// server is a row of upgrades under load, all of them lossless.
type server struct {
	name  string
	steps string
	reach string // what clients ask
	flags string
	bare  bool // also where the master makes the sockets itself
}

// Go's net.Listen asks for MPTCP, which no program steers: so each case would
// fail without that being refused.
var servers = []server{
	{"dies at TERM", "tcp={a}", "{a}", "", true},
	{"graceful", "tcp={a} end=graceful", "{a}", "", true},
	{"shuts its socket down", "tcp={a} end=shut", "{a}", "", true},
	{"two addresses", "tcp={a} tcp={b}", "{a} {b}", "", true},
	{"several addresses", "tcp={a} tcp={b} tcp={six}", "{a} {b} {six}", "", false},
	{"a socket per thread", "threads=3,{a}", "{a}", "", false},
	{"a socket per thread, graceful", "threads=3,{a} end=graceful", "{a}", "", true},
	{"a socket per process", "threads=1,{a} fork=2 threads=1,{a} fork=1 threads=1,{a} end=graceful", "{a}", "", false},
	{"only a grandchild binds", "fork=1 fork=1 tcp={a} end=graceful", "{a}", "", false},
	{"a child binds two", "fork=1 tcp={a} tcp={b} end=graceful", "{a} {b}", "", true},
	{"children that nobody tells", "fork=2 threads=1,{a}", "{a}", "", false},
	{"looks whether it is free", "free={a} tcp={a}", "{a}", "", true},
	{"binds, closes, binds again", "tcp={a} close tcp={a} close tcp={a} end=graceful", "{a}", "", false},
	{"tries a second time", "tcp={a} try={a}", "{a}", "", false},
	{"dual stack", "tcp=[::]:{p}", "{a} [::1]:{p}", "", true},
	{"both families apart", "tcp6=[::]:{p} tcp4=0.0.0.0:{p} end=graceful", "{a} [::1]:{p}", "", false},
	{"both families apart, dies", "tcp6=[::]:{p} tcp4=0.0.0.0:{p}", "{a} [::1]:{p}", "", true},
	{"short queue", "backlog=5,{a}", "{a}", "", true},
	{"three workers", "tcp={a}", "{a}", "-n 3", false},
	{"three workers with two sockets each", "threads=2,{a} end=graceful", "{a}", "-n 3", false},
	{"binds all before one listens", "late=3,{a} end=graceful", "{a}", "", true},
	{"two workers that bind all before one listens", "late=4,{a} end=graceful", "{a}", "-n 2", false},
}

func (s server) upgrade(t *testing.T, launch testkit.Launch) {
	t.Parallel()
	testkit.RequireIPv6(t)
	m := launch.Capture(t, "binds "+s.steps, strings.Fields(s.flags)...).Serving()
	m.UpgradeUnderLoad(testkit.Times(3, 2, 50), strings.Fields(s.reach)...)
}

// Each kind of server goes through upgrades under load and loses nothing.
func TestInterceptedServers(t *testing.T) {
	t.Parallel()
	for _, s := range servers {
		t.Run(s.name, func(t *testing.T) { s.upgrade(t, testkit.Launch{}) })
	}
}

// The same with sockets that the master makes in their place.
func TestInterceptionWithoutDuplicates(t *testing.T) {
	t.Parallel()
	for _, s := range servers {
		if s.bare {
			t.Run(s.name, func(t *testing.T) { s.upgrade(t, testkit.NoDuplicates()) })
		}
	}
}

// The server is a child of the command, which is not told and passes nothing
// on.
func TestInterceptedServerInAShell(t *testing.T) {
	t.Parallel()
	for _, line := range []string{`"$@" & wait`, `"$@"; exit`, `"$@" & trap 'kill $!; wait' TERM; wait`} {
		t.Run(line, func(t *testing.T) {
			t.Parallel()
			command := append([]string{"/bin/sh", "-c", line, "sh"}, testkit.Worker("binds", "tcp={a}")...)
			testkit.Run(t, nil, command).Serving().UpgradeUnderLoad(testkit.Times(3, 2, 20))
		})
	}
}

// A server that its parent has left behind serves beside the main process, as
// php-fpm does that an entry point starts before nginx: its socket is nobody's
// but the worker's.
func TestOrphanServesBesideTheMainProcess(t *testing.T) {
	t.Parallel()
	script := `( "$0" worker:binds tcp={b} end=graceful & ); exec "$0" worker:binds tcp={a} end=graceful`
	m := testkit.Run(t, nil, []string{"/bin/sh", "-c", script, testkit.Executable()}).Serving()
	orphan := m.Fill("{b}")
	testkit.Answers(t, orphan)
	clients := testkit.Ask(t, load.Config{Address: orphan, Clients: 4})
	const long = 4000 // requests: longer than sockets that nobody has are left alone
	testkit.Until(t, "the orphan serves on", func() error {
		now := clients.Snapshot()
		if now.Failures() > 0 {
			return errors.New(now.String())
		}
		return testkit.AtLeast(now.Requests(), long)
	})
	clients.Lossless()
	m.UpgradeUnderLoad(testkit.Times(3, 2, 20), "{a}", "{b}")
}

// One slow answer is in flight at each upgrade.
func TestInterceptedSlowAnswers(t *testing.T) {
	t.Parallel()
	for _, end := range []string{"end=graceful", "end=shut", ""} {
		t.Run(end, func(t *testing.T) {
			t.Parallel()
			m := testkit.Capture(t, "binds tcp={a} "+end).Serving()
			for range testkit.Times(3, 2, 50) {
				slow := m.Hold("/?sleep=500ms")
				m.Upgrade()
				m.AnsweredBy(m.Generation())
				testkit.Finish(t, fmt.Sprintf("of generation %d", m.Generation()-1), slow)
			}
		})
	}
}

// What a worker binds when it has long been ready is its own: it works at once,
// nobody waits for it, and it is in the way of the next generation's as it would
// be without moult.
func TestBindLongAfterTheStart(t *testing.T) {
	t.Parallel()
	m := testkit.Capture(t, "binds tcp={a} wait={gate} tcp={b} end=graceful").Serving()
	late := m.Fill("{b}")
	testkit.Settled(t, m)
	m.Pass(1)
	testkit.Answers(t, late)
	if sockets := m.Status().Sockets; len(sockets) != 1 || sockets[0].Address != m.Address {
		t.Errorf("status shows %+v, want %s alone", sockets, m.Address)
	}
	slow := m.Hold("/?sleep=12s") // keeps the first generation
	m.Next("binds tcp={a} wait={gate} try={b} end=graceful")
	clients := m.Ask(8)
	clients.Flow()
	m.Upgrade()
	m.Pass(1)
	if got := m.Said(2, "tried"); got != late+" EADDRINUSE" {
		t.Errorf("generation 2 tried %s, want EADDRINUSE", got)
	}
	testkit.AnsweredBy(t, late, 1)
	testkit.Finish(t, "of the first generation", slow)
	m.Retire()
	clients.Flow()
	clients.Lossless()
	testkit.Refused(t, late)
}

// As long as nothing is bound, nothing serves.
func TestBindBeforeReadiness(t *testing.T) {
	t.Parallel()
	m := testkit.Capture(t, "binds wait={gate} tcp={a}")
	m.Said(1, "waits")
	if n := m.Logged(testkit.Reaches(1, "serving")); n != 0 {
		t.Error("it serves before it has bound anything")
	}
	m.Pass(1)
	m.WaitServing(1)
	clients := m.Ask(16)
	m.Signal(syscall.SIGHUP)
	m.Said(2, "waits")
	clients.Flow()
	m.AnsweredBy(1)
	m.Pass(1)
	m.WaitServing(2)
	clients.Flow()
	clients.Lossless()
	m.AnsweredBy(2)
}

// Where a server asks for any port, each process has its own: the next generation
// does not wait for that of the old one, which answers what it has in hand there.
func TestPortZero(t *testing.T) {
	t.Parallel()
	testkit.RequireIPv6(t)
	for name, launch := range map[string]testkit.Launch{"duplicates": {}, "without duplicates": testkit.NoDuplicates()} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := launch.Capture(t, "binds tcp=127.0.0.1:0 tcp=127.0.0.1:0 tcp=[::]:0 end=graceful").Serving()
			first := m.BoundBy(1, 3)
			slow := testkit.Hold(t, first[0], "/?sleep=2s")
			m.Upgrade()
			for i, address := range m.BoundBy(2, 3) {
				if slices.Contains(first, address) {
					t.Errorf("generation 2 has bound %s again", address)
				}
				if i < 2 {
					testkit.AnsweredBy(t, address, 2)
				}
			}
			testkit.Finish(t, "of the first generation", slow)
			m.Retire()
			testkit.Refused(t, first[0])
			if sockets := m.Status().Sockets; len(sockets) != 0 {
				t.Errorf("status shows %+v", sockets)
			}
		})
	}
}

// Each worker that asks for any port has one of its own, and so has its
// replacement: nothing is kept of a dead one's.
func TestPortZeroOfSeveralWorkers(t *testing.T) {
	t.Parallel()
	m := testkit.Capture(t, "binds tcp=127.0.0.1:0 end=graceful", "-n", "2").Serving()
	ports := m.BoundBy(1, 2)
	for i, pid := range testkit.Children(m.PID()) {
		mark := m.Mark()
		testkit.KillProcess(pid)
		m.WaitReplaced(mark)
		ports = m.BoundBy(1, 3+i)
		testkit.Answers(t, ports[2+i])
	}
	for _, address := range ports[:2] {
		testkit.Refused(t, address)
	}
	slices.Sort(ports)
	if unique := slices.Compact(slices.Clone(ports)); len(unique) != 4 {
		t.Errorf("four workers had the ports %v", ports)
	}
}

// A duplicate in the master's hands would keep a closed socket listening, and
// whoever came to it would hang.
func TestCloseAndBindAgainWhileServing(t *testing.T) {
	t.Parallel()
	for name, launch := range map[string]testkit.Launch{"duplicates": {}, "without duplicates": testkit.NoDuplicates()} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := launch.Capture(t, "binds tcp={a} end=graceful")
			for generation := 1; generation <= 3; generation++ {
				m.WaitServing(generation)
				for range 5 {
					testkit.MustGet(t, m.Address, "/again")
					for range 20 {
						m.AnsweredBy(generation)
					}
				}
				m.UpgradeUnderLoad(1)
			}
		})
	}
}

func TestCloseWhileServing(t *testing.T) {
	t.Parallel()
	m := testkit.Capture(t, "binds tcp={a} tcp={b} end=graceful").Serving()
	closed := m.Fill("{b}")
	testkit.Answers(t, closed)
	testkit.MustGet(t, m.Address, "/close")
	testkit.Refused(t, closed)
	m.UpgradeUnderLoad(1)
	testkit.AnsweredBy(t, closed, 2)
}

// A program that binds an address twice is told so, in its own process and in
// a child, whether or not another generation listens there.
func TestSecondBindIsInUse(t *testing.T) {
	t.Parallel()
	m := testkit.Capture(t, "binds tcp={a} try={a} fork=1 try={a} end=graceful")
	for generation := 1; generation <= 3; generation++ {
		m.WaitServing(generation)
		testkit.Until(t, "both have tried", func() error { return testkit.AtLeast(tried(m, generation, "{a}", "EADDRINUSE"), 2) })
		m.Upgrade()
	}
}

// tried counts the workers of a generation that have tried an address with this
// outcome.
func tried(m *testkit.Master, generation int, address, outcome string) int {
	line := fmt.Sprintf("tried %d %s %s", generation, m.Fill(address), outcome)
	return m.Logged(func(e testkit.Entry) bool { return e.Raw == line })
}

// The address of another program is in use, as it is without moult.
func TestInterceptedAddressInUse(t *testing.T) {
	t.Parallel()
	address := testkit.FreeAddress(t)
	testkit.Listening(t, "tcp", address)
	m := testkit.Capture(t, "binds try="+address+" tcp={a}").Serving()
	if got, want := m.Said(1, "tried"), address+" EADDRINUSE"; got != want {
		t.Errorf("the worker tried %s, want %s", got, want)
	}
	testkit.Capture(t, "binds tcp="+address).ExitsWith(99) // the worker's own
}

func TestStatusShowsInterceptedSockets(t *testing.T) {
	t.Parallel()
	m := testkit.Capture(t, "binds tcp={a} backlog=5,{b}")
	for generation := 1; generation <= 2; generation++ {
		m.WaitServing(generation)
		var addresses []string
		for _, socket := range m.Status().Sockets {
			addresses = append(addresses, socket.Address)
			if !socket.Intercepted || socket.Network != "tcp" || socket.Backlog < 128 {
				t.Errorf("generation %d: %+v", generation, socket)
			}
		}
		slices.Sort(addresses)
		if want := slices.Sorted(slices.Values([]string{m.Address, m.Fill("{b}")})); !slices.Equal(addresses, want) {
			t.Errorf("generation %d: status shows %v, want %v", generation, addresses, want)
		}
		m.Upgrade()
	}
}

// Two workers that have both bound the address before one of them listens, on
// sockets without any option.
func TestWorkersThatBindBeforeOneListens(t *testing.T) {
	t.Parallel()
	m := testkit.Capture(t, "binds gated={gate},{a} end=graceful", "-n", "2")
	testkit.Until(t, "both workers wait", func() error {
		return testkit.AtLeast(m.Logged(testkit.Says("waits 1")), 2)
	})
	m.Pass(1)
	m.BoundBy(1, 1)
	m.Pass(1)
	m.WaitServing(1)
	m.Pass(4)
	m.UpgradeUnderLoad(2)
}

// Between two processes a socket is in nobody's hands.
func TestSocketOnItsWayToAChild(t *testing.T) {
	t.Parallel()
	m := testkit.Capture(t, "binds pass={gate},{a} tcp={b}")
	m.Said(1, "waits")
	other := m.Fill("{b}")
	testkit.Answers(t, other)
	testkit.Finish(t, "while it is on its way", testkit.Hold(t, other, "/?sleep=1s"))
	m.Pass(1)
	m.WaitServing(1)
	testkit.Answers(t, m.Address)
	times := testkit.Times(3, 2, 20)
	m.Pass(times)
	m.UpgradeUnderLoad(times, "{a}", "{b}")
}

// A worker's test of an address, which it takes out by shutdown(2) and does not
// close, is not waited for.
func TestListenerThatWasShutDown(t *testing.T) {
	t.Parallel()
	for _, workers := range []string{"1", "2"} {
		t.Run(workers, func(t *testing.T) {
			t.Parallel()
			m := testkit.Capture(t, "binds test={b} tcp={a} end=graceful", "-n", workers).Serving()
			testkit.Refused(t, m.Fill("{b}"))
			m.UpgradeUnderLoad(testkit.Times(3, 2, 20))
		})
	}
}

// Workers come and go on one port under load.
func TestScaleOfInterceptedWorkers(t *testing.T) {
	t.Parallel()
	m := testkit.Capture(t, "binds tcp={a}", "-n", "3").Serving()
	clients := m.Ask(16)
	settle := func(want int) {
		t.Helper()
		testkit.Until(t, fmt.Sprint(want, " workers serve"), func() error {
			var states []string
			for _, w := range m.Status().Workers {
				states = append(states, w.State)
			}
			if !slices.Equal(states, slices.Repeat([]string{"serving"}, want)) {
				return fmt.Errorf("they are %v", states)
			}
			return nil
		})
		clients.Flow()
	}
	settle(3)
	for range testkit.Times(2, 1, 20) {
		m.Signal(syscall.SIGTTIN)
		settle(4)
		m.Signal(syscall.SIGTTOU)
		settle(3)
		m.Signal(syscall.SIGTTOU)
		settle(2)
		m.Upgrade()
		m.Signal(syscall.SIGTTIN)
		settle(3)
	}
	clients.Lossless()
}
