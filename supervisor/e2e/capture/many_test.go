//go:build linux

package capture

import (
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moult/moult/supervisor/e2e/testkit"
	"golang.org/x/sys/unix"
)

// Workers that open many sockets, and those that look for a free port.

func requireDescriptors(t *testing.T, n uint64) {
	t.Helper()
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil || limit.Max < n {
		testkit.Skip(t, fmt.Sprintf("it takes %d descriptors", n))
	}
}

// A worker that lets the kernel choose its ports cannot use up the master's
// descriptors either.
func TestWorkerThatAsksForAnyPortWithoutEnd(t *testing.T) {
	t.Parallel()
	requireDescriptors(t, 4000)
	address, control := testkit.FreeAddress(t), filepath.Join(t.TempDir(), "c")
	m := testkit.Binds(t, []string{"--control", control}, "tcp="+address, "anyports=127.0.81.7,3000")
	var bound int
	var errno string
	said := m.Said(1, "listens")
	if _, err := fmt.Sscan(said, &bound, &errno); err != nil {
		t.Fatalf("%q: %v", said, err)
	}
	if errno != "ENOBUFS" || bound < 64 {
		t.Errorf("after %d sockets the worker got %s, want ENOBUFS", bound, errno)
	}
	if n := len(testkit.Descriptors(m.Pid())); n > 1500 {
		t.Errorf("the master has %d descriptors", n)
	}
	testkit.Answers(t, "tcp", address)
	if got := testkit.StatusOf(t, control).PID; got != m.Pid() {
		t.Errorf("status tells of pid %d, want %d", got, m.Pid())
	}
	m.Stop()
}

// A server on hundreds of addresses starts and is replaced while one would still
// wait for it.
func TestHundredsOfAddresses(t *testing.T) {
	t.Parallel()
	requireDescriptors(t, 2000)
	const host, first, n = "127.0.81.8", 21000, 300
	m := testkit.Binds(t, nil, fmt.Sprintf("ports=%s,%d,%d", host, first, n), "end=graceful")
	m.WaitServing(1)
	addresses := m.BoundBy(1, n)
	m.UpgradeUnderLoadOf(2, addresses[0], addresses[n/2], addresses[n-1])
	for _, address := range addresses {
		testkit.AnsweredBy(t, address, 3)
	}
	m.Stop()
}

// Sockets of clients that are bound to any port count for nothing.
func TestThousandOfDatagramClients(t *testing.T) {
	t.Parallel()
	requireDescriptors(t, 4000)
	address := testkit.FreeAddress(t)
	m := testkit.Binds(t, nil, "clients=1100", "tcp="+address, "end=graceful")
	m.WaitServing(1)
	m.UpgradeUnderLoadOf(2, address)
	m.Stop()
}

// Ports from which a worker asks are not addresses that it serves: they keep
// nobody from being ready, and the log has no line for each.
func TestWorkerThatAsksFromRandomPorts(t *testing.T) {
	t.Parallel()
	const host = "127.0.81.9"
	address := testkit.FreeAddress(t)
	m := testkit.Binds(t, nil, "tcp="+address, "resolve="+host, "end=graceful")
	m.WaitServing(1)
	mark := m.Mark()
	asked := func(from int) {
		t.Helper()
		m.WaitLog(from, "it asks on", func(e testkit.Entry) bool { return strings.HasPrefix(e.Raw, "asked ") })
	}
	for range 4 {
		asked(m.Mark())
	}
	learned := 0
	m.Mu.Lock()
	for _, e := range m.Entries[mark:] {
		if e.Message == "listening" && strings.Contains(e.Raw, host) {
			learned++
		}
	}
	m.Mu.Unlock()
	if learned > 5 {
		t.Errorf("in some 2000 questions the master has learned %d addresses", learned)
	}
	testkit.AnsweredBy(t, address, 1)
	for range 3 {
		m.UpgradeUnderLoadOf(1, address)
	}
	m.Stop()
}

// A server that tries port after port with one socket gets the one that its
// predecessor got.
func TestDatagramPortHunt(t *testing.T) {
	t.Parallel()
	taken, err := net.ListenPacket("udp", testkit.FreeAddress(t))
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	first, second, third := taken.LocalAddr().String(), testkit.FreeAddress(t), testkit.FreeAddress(t)
	m := testkit.Binds(t, nil, "hunt="+first+","+second+","+third, "tcp="+testkit.FreeAddress(t))
	m.WaitServing(1)
	clients := testkit.AskByDatagrams(t, second, 8)
	for range testkit.Times(5, 2, 20) {
		clients.Flow(t)
		m.Upgrade()
		m.WaitState(m.Generation()-1, "gone")
		clients.Flow(t)
	}
	clients.Stop()
	if lost := clients.Lost.Load(); lost > 0 {
		t.Errorf("%d of %d were lost, the first: %v", lost, lost+clients.Answered.Load(), *clients.First.Load())
	}
	for generation := 1; generation <= m.Generation(); generation++ {
		if !m.Hunted(generation, first, "EADDRINUSE") || !m.Hunted(generation, second, "ok") {
			t.Errorf("generation %d has not got %s", generation, second)
		}
	}
	m.Stop()
}
