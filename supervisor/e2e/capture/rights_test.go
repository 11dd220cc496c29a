//go:build linux

package capture

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/moult/moult/supervisor/e2e/testkit"
	"golang.org/x/sys/unix"
)

// What a worker could not have bound itself, the master does not bind for it,
// and no worker can use the master up.

// asNobody starts a worker without privileges under a master of root's.
func asNobody(t *testing.T, plan string, flags ...string) *testkit.Master {
	t.Helper()
	requireLowPorts(t)
	return testkit.Launch{Public: true}.Capture(t, plan, append([]string{"--user", "nobody"}, flags...)...)
}

func requireLowPorts(t *testing.T) {
	t.Helper()
	testkit.RequireRoot(t, "bind a low port, and become somebody else")
	start, err := os.ReadFile("/proc/sys/net/ipv4/ip_unprivileged_port_start")
	if n, _ := strconv.Atoi(strings.TrimSpace(string(start))); err != nil || n <= 81 {
		testkit.Skip(t, "port 81 is nothing special here")
	}
}

func refusedTo(t *testing.T, m *testkit.Master, address string) {
	t.Helper()
	if got := m.Said(1, "tried"); got != address+" EACCES" {
		t.Errorf("the worker tried %s, want EACCES", got)
	}
}

func TestLowPorts(t *testing.T) {
	t.Parallel()
	t.Run("refused to a worker without privileges", func(t *testing.T) {
		t.Parallel()
		refusedTo(t, asNobody(t, "binds try=127.0.81.1:81 tcp={a}").Serving(), "127.0.81.1:81")
	})
	t.Run("declared", func(t *testing.T) {
		t.Parallel()
		const address = "127.0.81.2:81"
		m := asNobody(t, "binds try=127.0.81.2:82 tcp="+address+" end=graceful", "--listen", address, "--intercept").Serving()
		refusedTo(t, m, "127.0.81.2:82") // it was not declared
		if uid := testkit.AskSelf(t, address).UID; uid != 65534 {
			t.Errorf("the worker's uid is %d", uid)
		}
		m.UpgradeUnderLoad(testkit.Times(3, 2, 20), address)
	})
	t.Run("bound before privileges are dropped", func(t *testing.T) {
		t.Parallel()
		requireLowPorts(t)
		const address = "127.0.81.4:81"
		m := testkit.Capture(t, "binds tcp="+address+" drop try=127.0.81.4:82").Serving()
		refusedTo(t, m, "127.0.81.4:82") // it has no privilege any more
		m.UpgradeUnderLoad(testkit.Times(3, 2, 20), address)
	})
}

// A port that a worker has in a network of its own, in which it is root, is no
// right to that port here.
func TestLowPortOfAnotherNetwork(t *testing.T) {
	t.Parallel()
	const low = "0.0.0.0:83"
	m := asNobody(t, "binds smuggle="+low+" seize="+low+" tcp={a}")
	if said := m.Said(1, "smuggled"); said != "ok" {
		testkit.Skip(t, "no user namespaces without privileges here: "+said)
	}
	m.BoundBy(1, 1)
	if refused := tried(m, 1, low, "EACCES"); refused != 2 {
		t.Errorf("of two binds %d were refused", refused)
	}
	m.WaitServing(1)
	testkit.MustBeFree(t, "127.0.81.10:83")
	m.UpgradeUnderLoad(1)
}

// The kernel lets one user's sockets alone share an address: a server that runs as
// another one from one generation to the next is told so.
func TestInterceptedSocketsOfOtherUsers(t *testing.T) {
	t.Parallel()
	requireLowPorts(t)
	const asRoot, asNobody = "binds tcp={a}", "binds drop tcp={a}"
	for _, plans := range [][2]string{{asRoot, asNobody}, {asNobody, asRoot}} {
		t.Run(plans[0], func(t *testing.T) {
			t.Parallel()
			m := testkit.Capture(t, plans[0]).Serving()
			clients := m.Ask(8)
			clients.Flow()
			m.Next(plans[1])
			m.UpgradeFails("another user", m.Address)
			clients.Flow()
			m.AnsweredBy(1)
			m.Next(plans[0])
			m.Upgrade()
			m.Retire()
			clients.Flow()
			clients.Lossless()
			m.AnsweredBy(2)
		})
	}
}

// The address in the worker's memory is read once, and what was checked is what
// is bound.
func TestAddressThatChangesDuringBind(t *testing.T) {
	t.Parallel()
	m := asNobody(t, "binds flip=127.0.81.3,33081,81 tcp={a}")
	testkit.Until(t, "it has bound thousands of times", func() error {
		for s := range testkit.TCPSockets(t) {
			if s.Local == "127.0.81.3:81" {
				t.Fatal("somebody listens on the forbidden port")
			}
		}
		return testkit.AtLeast(m.Logged(testkit.Says("flipped ")), 1)
	})
	var held, refused, wrong int
	_, err := fmt.Sscan(m.Said(1, "flipped"), &held, &refused, &wrong)
	testkit.OK(t, err)
	if wrong != 0 || held == 0 || refused == 0 {
		t.Errorf("it got the port that it may have %d times, another one %d times, none %d times", held, wrong, refused)
	}
	m.WaitServing(1)
	m.Upgrade()
	m.AnsweredBy(2)
}

func requireDescriptors(t *testing.T, n uint64) {
	t.Helper()
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil || limit.Max < n {
		testkit.Skip(t, fmt.Sprintf("it takes %d descriptors", n))
	}
}

// A worker cannot make the master hold sockets without end, nor keep it from
// answering others. What is nobody else's business costs the master nothing: the
// ports that the kernel chooses, and what is bound long after the start.
func TestWorkerThatBindsThousands(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, steps string
		early       bool
		most        int // descriptors of the master
	}{
		{"at its start", fmt.Sprintf("tcp={a} many=127.0.81.6,%d", testkit.Times(600, 300, 2000)), true, 1500},
		{"any port", "tcp={a} anyports=127.0.81.7,3000", false, 100},
		{"later", "tcp={a} wait={gate} many=127.0.81.10,3000", false, 100},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			requireDescriptors(t, 12000)
			m := testkit.Capture(t, "binds "+test.steps)
			if strings.Contains(test.steps, "wait") {
				m.Serving()
				testkit.Settled(t, m)
				m.Pass(1)
			}
			var bound int
			var errno string
			_, err := fmt.Sscan(m.Said(1, "listens"), &bound, &errno)
			testkit.OK(t, err)
			if errno != "ok" && (!test.early || errno != "ENOBUFS" || bound < 64) {
				t.Errorf("after %d sockets the worker got %s", bound, errno)
			}
			if n := len(testkit.Descriptors(m.PID())); n > test.most {
				t.Errorf("the master has %d descriptors", n)
			}
			testkit.Answers(t, m.Address)
			if got := m.Status().PID; got != m.PID() {
				t.Errorf("status tells of pid %d, want %d", got, m.PID())
			}
		})
	}
}

// A server on hundreds of addresses starts and is replaced while one would still
// wait for it.
func TestHundredsOfAddresses(t *testing.T) {
	t.Parallel()
	requireDescriptors(t, 2000)
	n := testkit.Times(300, 100, 300)
	m := testkit.Capture(t, fmt.Sprintf("binds ports=127.0.81.8,16000,%d end=graceful", n)).Serving()
	addresses := m.BoundBy(1, n)
	m.UpgradeUnderLoad(2, addresses[0], addresses[n/2], addresses[n-1])
	for _, address := range addresses {
		testkit.AnsweredBy(t, address, 3)
	}
}

// Sockets of clients that are bound to any port count for nothing.
func TestThousandOfDatagramClients(t *testing.T) {
	t.Parallel()
	requireDescriptors(t, 4000)
	testkit.Capture(t, "binds clients=1100 tcp={a} end=graceful").Serving().UpgradeUnderLoad(2)
}

// Ports from which a worker asks are not addresses that it serves: they keep
// nobody from being ready, and the log has no line for each.
func TestWorkerThatAsksFromRandomPorts(t *testing.T) {
	t.Parallel()
	const host = "127.0.81.9"
	m := testkit.Capture(t, "binds tcp={a} resolve="+host+" end=graceful").Serving()
	m.WaitLog(0, "it asks", testkit.Says("asked "))
	mark := m.Mark()
	for range 4 {
		m.WaitLog(m.Mark(), "it asks on", testkit.Says("asked "))
	}
	learned := 0 // again: what it had drawn while it started
	for _, e := range m.Entries(mark) {
		if e.Message == "listening" && strings.Contains(e.Raw, host) {
			learned++
		}
	}
	if learned > 5 {
		t.Errorf("in some 2000 questions the master has learned %d addresses", learned)
	}
	m.AnsweredBy(1)
	for range 3 {
		m.UpgradeUnderLoad(1)
	}
}
