//go:build linux

package capture

import (
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/moult/moult/supervisor/e2e/testkit"
)

// Addresses that belong to an interface.

// A link-local address is one on its interface only, and the bind alone says
// which.
func TestLinkLocalAddress(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root may make a network namespace")
	}
	t.Parallel()
	side := testkit.NewNamespace(t, testkit.ServerHost, testkit.ClientHost)
	const address = "[fe80::5%moult0]:8080"
	var m *testkit.Master
	side.Enter(t, func() {
		line := []string{"-6", "address", "add", "fe80::5/64", "dev", "moult0", "nodad"}
		if output, err := exec.Command("ip", line...).CombinedOutput(); err != nil {
			testkit.Skip(t, "no IPv6 here: "+string(output))
		}
		m = testkit.Binds(t, []string{"-n", "2"}, "tcp6="+address, "end=graceful")
	})
	for generation := 1; generation <= 3; generation++ {
		m.WaitServing(generation)
		side.Enter(t, func() { testkit.AnsweredBy(t, address, generation) })
		m.Upgrade()
	}
	m.Stop()
}

// One listener for each interface, on the same address.
func TestListenerPerInterface(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root may make a network namespace")
	}
	t.Parallel()
	serverSide, clientSide := testkit.FarApart(t, time.Millisecond)
	far := net.JoinHostPort(testkit.ServerHost, "8080")
	var m *testkit.Master
	serverSide.Enter(t, func() {
		m = testkit.Binds(t, nil, strings.Fields("device=lo,0.0.0.0:8080 device=moult0,0.0.0.0:8080 end=graceful")...)
	})
	m.WaitServing(1)
	clients := testkit.StartFarClients(t, clientSide, far, 8)
	for range testkit.Times(3, 2, 20) {
		clients.Flow(t)
		m.Upgrade()
		serverSide.Enter(t, func() { testkit.AnsweredBy(t, "127.0.0.1:8080", m.Generation()) })
	}
	m.WaitState(m.Generation()-1, "gone")
	clients.Flow(t)
	if requests, failures := clients.Stop(); len(failures) > 0 || requests == 0 {
		t.Errorf("%d requests, %d failures, the first: %v", requests, len(failures), failures[:min(3, len(failures))])
	}
	m.Stop()
}
