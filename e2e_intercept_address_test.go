//go:build linux

package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/moult/moult/supervisor/load"
)

// Generations that do not bind the same addresses, and addresses that are not
// theirs.

// The more specific of two addresses would take clients from the old
// generation before the new one is promoted.
func TestOverlappingAddressesAreRefused(t *testing.T) {
	tests := []struct{ name, first, next string }{
		{"any of IPv4 beside dual stack", "tcp=[::]", "tcp4=0.0.0.0"},
		{"loopback beside dual stack", "tcp=[::]", "tcp4=127.0.0.1"},
		{"IPv6 loopback beside dual stack", "tcp=[::]", "tcp=[::1]"},
		{"loopback beside any", "tcp4=0.0.0.0", "tcp4=127.0.0.1"},
		{"dual stack beside any", "tcp4=0.0.0.0", "tcp=[::]"},
		{"any beside loopback", "tcp4=127.0.0.1", "tcp4=0.0.0.0"},
		{"v6only beside dual stack", "tcp=[::]", "tcp6=[::]"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			requireIPv6(t)
			address := freeAddress(t)
			port := ":" + portOf(address)
			p := newPlan(t, "binds "+test.first+port+" end=graceful")
			m := run(t, nil, p.command())
			m.waitServing(1)
			clients := traffic(t, load.Config{Address: address})
			flowing(t, clients)
			p.set(t, "binds "+test.next+port+" end=graceful")
			mark := m.mark()
			m.upgradeFails()
			_, first, _ := strings.Cut(test.first, "=")
			_, next, _ := strings.Cut(test.next, "=")
			m.waitLog(mark, "both addresses are named", mentions(first+port, next+port))
			flowing(t, clients)
			answeredBy(t, address, 1)
			p.set(t, "binds "+test.first+port+" end=graceful")
			m.upgrade()
			flowing(t, clients)
			lossless(t, clients)
			m.stop()
		})
	}
}

// What the new generation does not bind any more is served by the old one
// until it is gone, and refused then.
func TestNewGenerationBindsOtherAddresses(t *testing.T) {
	tests := []struct {
		name, first, next string
		kept, lost, added string
	}{
		{"fewer", "tcp={a} tcp={b}", "tcp={a}", "{a}", "{b}", ""},
		{"more", "tcp={a}", "tcp={a} tcp={b}", "{a}", "", "{b}"},
		{"others", "tcp={a}", "tcp={b}", "", "{a}", "{b}"},
		{"one of each", "tcp={a} tcp={b}", "tcp={a} tcp={c}", "{a}", "{b}", "{c}"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			places := strings.NewReplacer("{a}", freeAddress(t), "{b}", freeAddress(t), "{c}", freeAddress(t))
			p := newPlan(t, "binds "+places.Replace(test.first))
			m := run(t, []string{"--quiesce", "20s", "--ready-timeout", "8s"}, p.command())
			m.waitServing(1)
			var clients *load.Traffic
			if test.kept != "" {
				clients = traffic(t, load.Config{Address: places.Replace(test.kept)})
				flowing(t, clients)
			}
			lost := places.Replace(test.lost)
			var slow heldRequest
			if lost != "" {
				slow = hold(t, lost, "/?sleep=12s") // keeps the old generation
			}
			p.set(t, "binds "+places.Replace(test.next))
			mark := m.mark()
			m.upgrade()
			if test.added != "" {
				answeredBy(t, places.Replace(test.added), 2)
			}
			if lost != "" {
				m.waitLog(mark, "what is missing is named", mentions(`"warn"`, lost))
				answeredBy(t, lost, 1)
				if err := slow.finish(); err != nil {
					t.Errorf("a client of the address that goes was cut: %v", err)
				}
				m.waitState(1, "gone")
				refused(t, lost)
			}
			if clients != nil {
				flowing(t, clients)
				lossless(t, clients)
				answeredBy(t, places.Replace(test.kept), 2)
			}
			m.stop()
		})
	}
}

// A port is left alone once no generation binds it: a third one may, and so may
// another program.
func TestAddressThatWentIsFree(t *testing.T) {
	t.Parallel()
	kept, other := freeAddress(t), freeAddress(t)
	p := newPlan(t, "binds tcp="+kept+" tcp="+other)
	m := run(t, []string{"--ready-timeout", "4s"}, p.command())
	m.waitServing(1)
	p.set(t, "binds tcp="+kept)
	m.upgrade()
	m.waitState(1, "gone")
	refused(t, other)
	listener, err := net.Listen("tcp", other)
	if err != nil {
		t.Fatalf("it is not free: %v", err)
	}
	listener.Close()
	p.set(t, "binds tcp="+kept+" tcp="+other)
	m.upgrade()
	answeredBy(t, other, 3)
	m.stop()
}

// A stranger in the group would shift every index.
func TestStrangerInAnInterceptedGroup(t *testing.T) {
	t.Parallel()
	address := freeAddress(t)
	m := binds(t, nil, "tcp="+address, "end=graceful")
	m.waitServing(1)
	m.upgrade() // a group from now on, whatever it was before
	m.waitState(1, "gone")
	config := net.ListenConfig{Control: reusePort}
	config.SetMultipathTCP(false)
	stranger, err := config.Listen(t.Context(), "tcp", address)
	if err != nil {
		return // kept out altogether: better still
	}
	defer stranger.Close()
	clients := traffic(t, load.Config{Address: address, Clients: 4})
	flowing(t, clients)
	mark := m.mark()
	m.upgradeFails()
	m.waitLog(mark, "the stranger is named", mentions(strconv.Itoa(os.Getpid())))
	flowing(t, clients)
	stranger.Close()
	m.upgrade()
	flowing(t, clients)
	lossless(t, clients)
	m.stop()
}

// Workers that share one socket must drain by themselves; that is all that is
// lost by it.
func TestInterceptedAndShared(t *testing.T) {
	t.Parallel()
	address := freeAddress(t)
	m := binds(t, []string{"--handover", "share"}, "tcp="+address, "end=graceful")
	m.waitServing(1)
	clients := traffic(t, load.Config{Address: address})
	upgrades := times(5, 2, 50)
	for range upgrades {
		flowing(t, clients)
		m.upgrade()
	}
	m.waitState(upgrades, "gone")
	answeredBy(t, address, upgrades+1)
	atMostShutdownLosses(t, clients, upgrades)
	m.stop()
}

// Workers come and go on one port under load.
func TestScaleOfInterceptedWorkers(t *testing.T) {
	t.Parallel()
	address, control := freeAddress(t), filepath.Join(t.TempDir(), "c")
	m := binds(t, []string{"-n", "3", "--control", control}, "tcp="+address)
	m.waitServing(1)
	clients := traffic(t, load.Config{Address: address})
	settle := func(want int) {
		t.Helper()
		until(t, strconv.Itoa(want)+" workers serve", func() error {
			var states []string
			for _, w := range statusOf(t, control).Workers {
				states = append(states, w.State)
			}
			if !slices.Equal(states, slices.Repeat([]string{"serving"}, want)) {
				return fmt.Errorf("they are %v", states)
			}
			return nil
		})
		flowing(t, clients)
	}
	settle(3)
	for range times(3, 1, 20) {
		m.signal(syscall.SIGTTIN)
		settle(4)
		m.signal(syscall.SIGTTOU)
		settle(3)
		m.signal(syscall.SIGTTOU)
		settle(2)
		m.upgrade()
		m.signal(syscall.SIGTTIN)
		settle(3)
	}
	lossless(t, clients)
	m.stop()
}
