//go:build linux

package main

import (
	"net"
	"strings"
	"testing"
)

// Sockets that go from one process to another, and one that is only tried.

// Between two processes a socket is in nobody's hands.
func TestSocketOnItsWayToAChild(t *testing.T) {
	t.Parallel()
	passed, other, door := freeAddress(t), freeAddress(t), newGate(t)
	m := binds(t, nil, "pass="+door.pipe.Name()+","+passed, "tcp="+other)
	m.said(1, "waits")
	answers(t, "tcp", other)
	if err := hold(t, other, "/?sleep=1s").finish(); err != nil {
		t.Error(err)
	}
	door.pass(t)
	m.waitServing(1)
	answers(t, "tcp", passed)
	upgrades := times(3, 2, 20)
	for range upgrades {
		door.pass(t)
	}
	m.upgradeUnderLoadOf(upgrades, passed, other)
	m.stop()
}

// A worker's test of an address, which it takes out by shutdown(2) and does not
// close, is not waited for.
func TestListenerThatWasShutDown(t *testing.T) {
	for _, flags := range [][]string{nil, {"-n", "2"}} {
		t.Run(strings.Join(flags, ""), func(t *testing.T) {
			t.Parallel()
			tested, address := freeAddress(t), freeAddress(t)
			m := binds(t, flags, "test="+tested, "tcp="+address, "end=graceful")
			m.waitServing(1)
			refused(t, tested)
			m.upgradeUnderLoadOf(times(3, 2, 20), address)
			m.stop()
		})
	}
}

// A port that a worker has in a network of its own, in which it is root, is no
// right to that port here.
func TestLowPortOfAnotherNetwork(t *testing.T) {
	t.Parallel()
	address := freeAddress(t)
	const low = "0.0.0.0:83"
	m := asNobody(t, nil, "smuggle="+low, "seize="+low, "tcp="+address)
	if said := m.said(1, "smuggled"); said != "ok" {
		skip(t, "no user namespaces without privileges here: "+said)
	}
	m.boundBy(1, 1)
	if refused := m.logged(func(e entry) bool { return e.Raw == "tried 1 "+low+" EACCES" }); refused != 2 {
		t.Errorf("of two binds %d were refused", refused)
	}
	m.waitServing(1)
	if listener, err := net.Listen("tcp", "127.0.81.10:83"); err != nil {
		t.Errorf("somebody has the port: %v", err)
	} else {
		listener.Close()
	}
	m.upgradeUnderLoadOf(1, address)
	m.stop()
}
