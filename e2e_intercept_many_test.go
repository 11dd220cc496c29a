//go:build linux

package main

import (
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Workers that open many sockets, and those that look for a free port.

func requireDescriptors(t *testing.T, n uint64) {
	t.Helper()
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil || limit.Max < n {
		skip(t, fmt.Sprintf("it takes %d descriptors", n))
	}
}

// A worker that lets the kernel choose its ports cannot use up the master's
// descriptors either.
func TestWorkerThatAsksForAnyPortWithoutEnd(t *testing.T) {
	t.Parallel()
	requireDescriptors(t, 4000)
	address, control := freeAddress(t), filepath.Join(t.TempDir(), "c")
	m := binds(t, []string{"--control", control}, "tcp="+address, "anyports=127.0.81.7,3000")
	var bound int
	var errno string
	said := m.said(1, "listens")
	if _, err := fmt.Sscan(said, &bound, &errno); err != nil {
		t.Fatalf("%q: %v", said, err)
	}
	if errno != "ENOBUFS" || bound < 64 {
		t.Errorf("after %d sockets the worker got %s, want ENOBUFS", bound, errno)
	}
	if n := len(descriptors(m.pid())); n > 1500 {
		t.Errorf("the master has %d descriptors", n)
	}
	answers(t, "tcp", address)
	if got := statusOf(t, control).PID; got != m.pid() {
		t.Errorf("status tells of pid %d, want %d", got, m.pid())
	}
	m.stop()
}

// A server on hundreds of addresses starts and is replaced while one would still
// wait for it.
func TestHundredsOfAddresses(t *testing.T) {
	t.Parallel()
	requireDescriptors(t, 2000)
	const host, first, n = "127.0.81.8", 21000, 300
	m := binds(t, nil, fmt.Sprintf("ports=%s,%d,%d", host, first, n), "end=graceful")
	m.waitServing(1)
	addresses := m.boundBy(1, n)
	m.upgradeUnderLoadOf(2, addresses[0], addresses[n/2], addresses[n-1])
	for _, address := range addresses {
		answeredBy(t, address, 3)
	}
	m.stop()
}

// Sockets of clients that are bound to any port count for nothing.
func TestThousandOfDatagramClients(t *testing.T) {
	t.Parallel()
	requireDescriptors(t, 4000)
	address := freeAddress(t)
	m := binds(t, nil, "clients=1100", "tcp="+address, "end=graceful")
	m.waitServing(1)
	m.upgradeUnderLoadOf(2, address)
	m.stop()
}

// Ports from which a worker asks are not addresses that it serves: they keep
// nobody from being ready, and the log has no line for each.
func TestWorkerThatAsksFromRandomPorts(t *testing.T) {
	t.Parallel()
	const host = "127.0.81.9"
	address := freeAddress(t)
	m := binds(t, nil, "tcp="+address, "resolve="+host, "end=graceful")
	m.waitServing(1)
	mark := m.mark()
	asked := func(from int) {
		t.Helper()
		m.waitLog(from, "it asks on", func(e entry) bool { return strings.HasPrefix(e.Raw, "asked ") })
	}
	for range 4 {
		asked(m.mark())
	}
	learned := 0
	m.mu.Lock()
	for _, e := range m.entries[mark:] {
		if e.Message == "listening" && strings.Contains(e.Raw, host) {
			learned++
		}
	}
	m.mu.Unlock()
	if learned > 5 {
		t.Errorf("in some 2000 questions the master has learned %d addresses", learned)
	}
	answeredBy(t, address, 1)
	for range 3 {
		m.upgradeUnderLoadOf(1, address)
	}
	m.stop()
}

// A server that tries port after port with one socket gets the one that its
// predecessor got.
func TestDatagramPortHunt(t *testing.T) {
	t.Parallel()
	taken, err := net.ListenPacket("udp", freeAddress(t))
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	first, second, third := taken.LocalAddr().String(), freeAddress(t), freeAddress(t)
	m := binds(t, nil, "hunt="+first+","+second+","+third, "tcp="+freeAddress(t))
	m.waitServing(1)
	clients := askByDatagrams(t, second, 8)
	for range times(5, 2, 20) {
		clients.flow(t)
		m.upgrade()
		m.waitState(m.generation()-1, "gone")
		clients.flow(t)
	}
	clients.stop()
	if lost := clients.lost.Load(); lost > 0 {
		t.Errorf("%d of %d were lost, the first: %v", lost, lost+clients.answered.Load(), *clients.first.Load())
	}
	for generation := 1; generation <= m.generation(); generation++ {
		if !m.hunted(generation, first, "EADDRINUSE") || !m.hunted(generation, second, "ok") {
			t.Errorf("generation %d has not got %s", generation, second)
		}
	}
	m.stop()
}

func (m *master) hunted(generation int, address, outcome string) bool {
	line := strings.Join([]string{"tried", strconv.Itoa(generation), address, outcome}, " ")
	return m.logged(func(e entry) bool { return e.Raw == line }) == 1
}
