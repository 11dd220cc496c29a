//go:build linux

package capture

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

	"github.com/moult/moult/supervisor/e2e/testkit"
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
			testkit.RequireIPv6(t)
			address := testkit.FreeAddress(t)
			port := ":" + testkit.PortOf(address)
			p := testkit.NewPlan(t, "binds "+test.first+port+" end=graceful")
			m := testkit.Run(t, nil, p.Command())
			m.WaitServing(1)
			clients := testkit.Traffic(t, load.Config{Address: address})
			testkit.Flowing(t, clients)
			p.Set(t, "binds "+test.next+port+" end=graceful")
			mark := m.Mark()
			m.UpgradeFails()
			_, first, _ := strings.Cut(test.first, "=")
			_, next, _ := strings.Cut(test.next, "=")
			m.WaitLog(mark, "both addresses are named", testkit.Mentions(first+port, next+port))
			testkit.Flowing(t, clients)
			testkit.AnsweredBy(t, address, 1)
			p.Set(t, "binds "+test.first+port+" end=graceful")
			m.Upgrade()
			testkit.Flowing(t, clients)
			testkit.Lossless(t, clients)
			m.Stop()
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
			places := strings.NewReplacer("{a}", testkit.FreeAddress(t), "{b}", testkit.FreeAddress(t), "{c}", testkit.FreeAddress(t))
			p := testkit.NewPlan(t, "binds "+places.Replace(test.first))
			m := testkit.Run(t, []string{"--quiesce", "20s", "--ready-timeout", "8s"}, p.Command())
			m.WaitServing(1)
			var clients *load.Traffic
			if test.kept != "" {
				clients = testkit.Traffic(t, load.Config{Address: places.Replace(test.kept)})
				testkit.Flowing(t, clients)
			}
			lost := places.Replace(test.lost)
			var slow testkit.HeldRequest
			if lost != "" {
				slow = testkit.Hold(t, lost, "/?sleep=12s") // keeps the old generation
			}
			p.Set(t, "binds "+places.Replace(test.next))
			mark := m.Mark()
			m.Upgrade()
			if test.added != "" {
				testkit.AnsweredBy(t, places.Replace(test.added), 2)
			}
			if lost != "" {
				m.WaitLog(mark, "what is missing is named", testkit.Mentions(`"warn"`, lost))
				testkit.AnsweredBy(t, lost, 1)
				if err := slow.Finish(); err != nil {
					t.Errorf("a client of the address that goes was cut: %v", err)
				}
				m.WaitState(1, "gone")
				testkit.Refused(t, lost)
			}
			if clients != nil {
				testkit.Flowing(t, clients)
				testkit.Lossless(t, clients)
				testkit.AnsweredBy(t, places.Replace(test.kept), 2)
			}
			m.Stop()
		})
	}
}

// A port is left alone once no generation binds it: a third one may, and so may
// another program.
func TestAddressThatWentIsFree(t *testing.T) {
	t.Parallel()
	kept, other := testkit.FreeAddress(t), testkit.FreeAddress(t)
	p := testkit.NewPlan(t, "binds tcp="+kept+" tcp="+other)
	m := testkit.Run(t, []string{"--ready-timeout", "4s"}, p.Command())
	m.WaitServing(1)
	p.Set(t, "binds tcp="+kept)
	m.Upgrade()
	m.WaitState(1, "gone")
	testkit.Refused(t, other)
	listener, err := net.Listen("tcp", other)
	if err != nil {
		t.Fatalf("it is not free: %v", err)
	}
	listener.Close()
	p.Set(t, "binds tcp="+kept+" tcp="+other)
	m.Upgrade()
	testkit.AnsweredBy(t, other, 3)
	m.Stop()
}

// A stranger in the group would shift every index.
func TestStrangerInAnInterceptedGroup(t *testing.T) {
	t.Parallel()
	address := testkit.FreeAddress(t)
	m := testkit.Binds(t, nil, "tcp="+address, "end=graceful")
	m.WaitServing(1)
	m.Upgrade() // a group from now on, whatever it was before
	m.WaitState(1, "gone")
	config := net.ListenConfig{Control: testkit.ReusePort}
	config.SetMultipathTCP(false)
	stranger, err := config.Listen(t.Context(), "tcp", address)
	if err != nil {
		return // kept out altogether: better still
	}
	defer stranger.Close()
	clients := testkit.Traffic(t, load.Config{Address: address, Clients: 4})
	testkit.Flowing(t, clients)
	mark := m.Mark()
	m.UpgradeFails()
	m.WaitLog(mark, "the stranger is named", testkit.Mentions(strconv.Itoa(os.Getpid())))
	testkit.Flowing(t, clients)
	stranger.Close()
	m.Upgrade()
	testkit.Flowing(t, clients)
	testkit.Lossless(t, clients)
	m.Stop()
}

// Workers that share one socket must drain by themselves; that is all that is
// lost by it.
func TestInterceptedAndShared(t *testing.T) {
	t.Parallel()
	address := testkit.FreeAddress(t)
	m := testkit.Binds(t, []string{"--handover", "share"}, "tcp="+address, "end=graceful")
	m.WaitServing(1)
	clients := testkit.Traffic(t, load.Config{Address: address})
	upgrades := testkit.Times(5, 2, 50)
	for range upgrades {
		testkit.Flowing(t, clients)
		m.Upgrade()
	}
	m.WaitState(upgrades, "gone")
	testkit.AnsweredBy(t, address, upgrades+1)
	testkit.AtMostShutdownLosses(t, clients, upgrades)
	m.Stop()
}

// Workers come and go on one port under load.
func TestScaleOfInterceptedWorkers(t *testing.T) {
	t.Parallel()
	address, control := testkit.FreeAddress(t), filepath.Join(t.TempDir(), "c")
	m := testkit.Binds(t, []string{"-n", "3", "--control", control}, "tcp="+address)
	m.WaitServing(1)
	clients := testkit.Traffic(t, load.Config{Address: address})
	settle := func(want int) {
		t.Helper()
		testkit.Until(t, strconv.Itoa(want)+" workers serve", func() error {
			var states []string
			for _, w := range testkit.StatusOf(t, control).Workers {
				states = append(states, w.State)
			}
			if !slices.Equal(states, slices.Repeat([]string{"serving"}, want)) {
				return fmt.Errorf("they are %v", states)
			}
			return nil
		})
		testkit.Flowing(t, clients)
	}
	settle(3)
	for range testkit.Times(3, 1, 20) {
		m.Signal(syscall.SIGTTIN)
		settle(4)
		m.Signal(syscall.SIGTTOU)
		settle(3)
		m.Signal(syscall.SIGTTOU)
		settle(2)
		m.Upgrade()
		m.Signal(syscall.SIGTTIN)
		settle(3)
	}
	testkit.Lossless(t, clients)
	m.Stop()
}
