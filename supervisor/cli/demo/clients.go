package demo

import (
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/moult/moult/supervisor/cli/demo/load"
	"github.com/moult/moult/supervisor/control/api"
)

const (
	// answerLimit is how long a client waits for a whole answer.
	answerLimit = 10 * time.Second

	fastClients = 8
	slowClients = 4
	// pause keeps the clients from using up the machine: what is measured
	// is the hand-over, not the processor.
	pause = 2 * time.Millisecond
	// abruptRest is for how long clients of an abrupt server leave a kept
	// connection idle, longer than idleLimit.
	abruptRest = 1500 * time.Millisecond
	// abruptWork is how long the answer to such a request takes: more than
	// the tick in which the kernel counts the times of a connection, so that
	// it is seen to be idle after an answer rather than at work.
	abruptWork = 40 * time.Millisecond
)

// stream is one kind of clients.
type stream struct {
	name    string
	slow    bool // its latency is the server's, not the hand-over's
	traffic *load.Traffic
}

// slowness is how long a slow answer takes: long enough to be under way at
// each upgrade, and shorter where there are many of them.
func (d *show) slowness() time.Duration {
	return min(max(10*time.Second/time.Duration(d.upgrades), 200*time.Millisecond), 1500*time.Millisecond)
}

func (d *show) startLoad() {
	network, address := target(d.socket)
	fresh := load.Config{Network: network, Address: address, Timeout: answerLimit, Pause: pause, Clients: fastClients, Answer: judge(helloBody)}
	kept := fresh
	kept.Mode = load.KeepAlive
	if d.abrupt {
		kept.Pause, kept.Path, kept.Answer = abruptRest, "/slow?d="+abruptWork.String(), judge(slowBody)
	}
	slow := fresh
	slow.Clients, slow.Path, slow.Answer = slowClients, "/slow?d="+d.slowness().String(), judge(slowBody)
	slow.Pause = 0 // one of them is under way at any time
	d.streams = []stream{
		{"new connections", false, load.Start(d.ctx, fresh)},
		{"kept connections", d.abrupt, load.Start(d.ctx, kept)},
		{"slow answers", true, load.Start(d.ctx, slow)},
	}
}

// flowing waits until every kind of client has got an answer.
func (d *show) flowing() error {
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		for _, s := range d.streams {
			for r := s.traffic.Snapshot(); r.Requests() == 0 && d.ctx.Err() == nil; r = s.traffic.Snapshot() {
				time.Sleep(10 * time.Millisecond)
			}
		}
	}()
	return d.wait(answered, answerLimit+startLimit, "the server does not answer")
}

func (d *show) phase(name string) {
	for _, s := range d.streams {
		s.traffic.Phase(name)
	}
}

// counted is what all clients have met so far.
func (d *show) counted() (requests, failures int) {
	for _, s := range d.streams {
		r := s.traffic.Snapshot()
		requests += r.Requests()
		failures += r.Failures()
	}
	return requests, failures
}

// stopLoad lets the clients finish what they have asked for, while somebody is
// there to answer. It is over at once where the master has stopped already.
func (d *show) stopLoad() *result {
	r := &result{options: d.options, done: d.now.Load().done, shared: d.socket.Handover == "share"}
	var wait sync.WaitGroup
	for _, s := range d.streams {
		wait.Go(func() { s.traffic.Stop() })
	}
	wait.Wait()
	for _, s := range d.streams {
		report := s.traffic.Snapshot()
		r.rows = append(r.rows, row{s.name, report})
		r.total = load.Sum(r.total, report)
		if !s.slow {
			r.fast = load.Sum(r.fast, report)
		}
	}
	return r
}

// target is where clients on this machine reach the socket.
func target(socket api.Socket) (network, address string) {
	network, address = socket.Network, socket.Address
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
