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

// All sockets of a group belong to one user, whoever made them.
func TestInterceptedSocketsOfOtherUsers(t *testing.T) {
	t.Parallel()
	requireLowPorts(t)
	const asRoot, asNobody = "binds tcp={a}", "binds drop tcp={a}"
	m := testkit.Capture(t, asRoot).Serving()
	for _, plan := range []string{asNobody, asRoot, asNobody, asNobody} {
		m.Next(plan)
		m.UpgradeUnderLoad(1)
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
// answering others; neither can one that lets the kernel choose its ports.
func TestWorkerThatBindsThousands(t *testing.T) {
	t.Parallel()
	for _, step := range []string{"many=127.0.81.6,10000", "anyports=127.0.81.7,3000"} {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			requireDescriptors(t, 12000)
			m := testkit.Capture(t, "binds tcp={a} "+step)
			var bound int
			var errno string
			_, err := fmt.Sscan(m.Said(1, "listens"), &bound, &errno)
			testkit.OK(t, err)
			if errno != "ENOBUFS" || bound < 64 {
				t.Errorf("after %d sockets the worker got %s, want ENOBUFS", bound, errno)
			}
			if n := len(testkit.Descriptors(m.PID())); n > 1500 {
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
	const n = 300
	m := testkit.Capture(t, fmt.Sprintf("binds ports=127.0.81.8,21000,%d end=graceful", n)).Serving()
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
	mark := m.Mark()
	for range 4 {
		m.WaitLog(m.Mark(), "it asks on", testkit.Says("asked "))
	}
	learned := 0
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
