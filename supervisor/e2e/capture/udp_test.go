//go:build linux

package capture

import (
	"net"
	"strconv"
	"strings"
	"testing"

	"github.com/moult/moult/supervisor/e2e/testkit"
)

// Workers that bind UDP ports.

// Every datagram is answered, by the old generation until the flip and by the
// new one from then on; a flow moves with it.
func TestInterceptedDatagrams(t *testing.T) {
	for _, flags := range [][]string{nil, {"-n", "2"}} {
		t.Run(strings.Join(flags, ""), func(t *testing.T) {
			t.Parallel()
			address := testkit.FreeAddress(t)
			m := testkit.Binds(t, flags, "udp="+address)
			m.WaitServing(1)
			m.BoundBy(1, 1)
			flow, err := net.Dial("udp", address)
			if err != nil {
				t.Fatal(err)
			}
			defer flow.Close()
			clients := testkit.AskByDatagrams(t, address, 32)
			for range testkit.Times(20, 5, 100) {
				clients.Flow(t)
				m.Upgrade()
				m.WaitState(m.Generation()-1, "gone")
				generation, err := testkit.Echoed(flow, "hello")
				if err != nil || generation != strconv.Itoa(m.Generation()) {
					t.Errorf("the flow is answered by generation %q (%v), want %d", generation, err, m.Generation())
				}
			}
			clients.Flow(t)
			clients.Stop()
			if lost := clients.Lost.Load(); lost > 0 {
				t.Errorf("%d of %d were lost, the first: %v", lost, lost+clients.Answered.Load(), *clients.First.Load())
			}
			m.Stop()
		})
	}
}

// A server on both transports at one port, as a name server is.
func TestInterceptedDatagramsBesideTCP(t *testing.T) {
	t.Parallel()
	address := testkit.FreeAddress(t)
	m := testkit.Binds(t, nil, "tcp="+address, "udp="+address)
	m.WaitServing(1)
	clients := testkit.AskByDatagrams(t, address, 8)
	m.UpgradeUnderLoadOf(testkit.Times(3, 2, 20), address)
	clients.Flow(t)
	clients.Stop()
	if lost := clients.Lost.Load(); lost > 0 {
		t.Errorf("%d of %d were lost, the first: %v", lost, lost+clients.Answered.Load(), *clients.First.Load())
	}
	m.Stop()
}
