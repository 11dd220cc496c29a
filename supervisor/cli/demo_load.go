package cli

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/moult/moult/fdpass"
	"github.com/moult/moult/supervisor/load"
)

const (
	// demoTimeout is how long a client waits for a whole answer.
	demoTimeout = 10 * time.Second

	demoClients     = 8
	demoSlowClients = 4
	// demoPause keeps the clients from using up the machine: what is
	// measured is the hand-over, not the processor.
	demoPause = 2 * time.Millisecond
	// demoRest is for how long clients of an abrupt server leave a kept
	// connection idle, longer than demoIdle.
	demoRest = 1500 * time.Millisecond
	// demoWork is how long the answer to such a request takes: more than
	// the tick in which the kernel counts the times of a connection, so that
	// it is seen to be idle after an answer rather than at work.
	demoWork = 40 * time.Millisecond
)

// demoStream is one kind of clients.
type demoStream struct {
	name    string
	slow    bool // its latency is the server's, not the hand-over's
	traffic *load.Traffic
}

// slowness is how long a slow answer takes: long enough to be under way at
// each upgrade, and shorter where there are many of them.
func (d *demoRun) slowness() time.Duration {
	return min(max(10*time.Second/time.Duration(d.upgrades), 200*time.Millisecond), 1500*time.Millisecond)
}

func (d *demoRun) startLoad() {
	socket := d.master.Sockets()[0]
	network, address := demoTarget(socket)
	common := load.Config{Network: network, Address: address, Timeout: demoTimeout, Pause: demoPause, Clients: demoClients, Answer: demoAnswer(demoBody)}
	kept := common
	kept.Mode = load.KeepAlive
	if d.abrupt {
		kept.Pause, kept.Path, kept.Answer = demoRest, "/slow?d="+demoWork.String(), demoAnswer(demoSlowBody)
	}
	slow := common
	slow.Clients, slow.Path, slow.Answer = demoSlowClients, "/slow?d="+d.slowness().String(), demoAnswer(demoSlowBody)
	slow.Pause = 0 // one of them is under way at any time
	d.mu.Lock()
	defer d.mu.Unlock()
	d.streams = []demoStream{
		{"new connections", false, load.Start(d.ctx, common)},
		{"kept connections", d.abrupt, load.Start(d.ctx, kept)},
		{"slow answers", true, load.Start(d.ctx, slow)},
	}
}

// flowing waits until every kind of client has got an answer.
func (d *demoRun) flowing() error {
	look := time.NewTicker(10 * time.Millisecond)
	defer look.Stop()
	limit := time.After(demoTimeout + demoStartLimit)
	for !d.allAnswered() {
		select {
		case <-look.C:
		case <-d.ctx.Done():
			return errDemoStopped
		case <-limit:
			return errors.New("the server does not answer")
		}
	}
	return nil
}

func (d *demoRun) allAnswered() bool {
	for _, s := range d.streams {
		if r := s.traffic.Snapshot(); r.Requests() == 0 {
			return false
		}
	}
	return true
}

func (d *demoRun) phase(name string) {
	for _, s := range d.streams {
		s.traffic.Phase(name)
	}
}

// demoTarget is where clients on this machine reach the socket.
func demoTarget(socket *fdpass.Socket) (network, address string) {
	network, address = socket.Network(), socket.Bound()
	bound, err := netip.ParseAddrPort(address)
	if network == "unix" || err != nil || !bound.Addr().IsUnspecified() {
		return network, address
	}
	loopback := "127.0.0.1"
	if bound.Addr().Is6() {
		loopback = "::1"
	}
	return network, net.JoinHostPort(loopback, fmt.Sprint(bound.Port()))
}
