//go:build linux

package main

import (
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// Addresses that belong to an interface.

// A link-local address is one on its interface only, and the bind alone says
// which.
func TestLinkLocalAddress(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root may make a network namespace")
	}
	t.Parallel()
	side := newNamespace(t, serverHost, clientHost)
	const address = "[fe80::5%moult0]:8080"
	var m *master
	side.enter(t, func() {
		line := []string{"-6", "address", "add", "fe80::5/64", "dev", "moult0", "nodad"}
		if output, err := exec.Command("ip", line...).CombinedOutput(); err != nil {
			skip(t, "no IPv6 here: "+string(output))
		}
		m = binds(t, []string{"-n", "2"}, "tcp6="+address, "end=graceful")
	})
	for generation := 1; generation <= 3; generation++ {
		m.waitServing(generation)
		side.enter(t, func() { answeredBy(t, address, generation) })
		m.upgrade()
	}
	m.stop()
}

// One listener for each interface, on the same address.
func TestListenerPerInterface(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root may make a network namespace")
	}
	t.Parallel()
	serverSide, clientSide := farApart(t, time.Millisecond)
	far := net.JoinHostPort(serverHost, "8080")
	var m *master
	serverSide.enter(t, func() {
		m = binds(t, nil, strings.Fields("device=lo,0.0.0.0:8080 device=moult0,0.0.0.0:8080 end=graceful")...)
	})
	m.waitServing(1)
	clients := startFarClients(t, clientSide, far, 8)
	for range times(3, 2, 20) {
		clients.flow(t)
		m.upgrade()
		serverSide.enter(t, func() { answeredBy(t, "127.0.0.1:8080", m.generation()) })
	}
	m.waitState(m.generation()-1, "gone")
	clients.flow(t)
	if requests, failures := clients.stop(); len(failures) > 0 || requests == 0 {
		t.Errorf("%d requests, %d failures, the first: %v", requests, len(failures), failures[:min(3, len(failures))])
	}
	m.stop()
}
