//go:build linux

package servers

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/moult/moult/supervisor/e2e/testkit"
)

// anyServer is a server as its authors ship it: it binds its own address and
// has never heard of moult.
type anyServer struct {
	name    string
	signal  string // the drain signal
	clients int    // at once; few where the server answers one at a time
	dialect dialect
	command func(testing.TB, *testkit.Site) []string
}

// dialect is how the clients of a server talk to it.
type dialect struct {
	crowd func(t testing.TB, address string, clients int) crowd
	// slow begins an exchange that cannot end before finish is called, which
	// completes it and says whether all of the answer was right. When slow
	// returns, the server has the exchange in hand.
	slow func(t testing.TB, address string) (finish func() error)
}

// crowd is clients that ask again and again, each time over a new connection,
// and never ask twice for the same.
type crowd interface {
	requests() int // that have ended, well or not
	stop() error   // lets each client finish; an error if any request failed
}

// inShort are the servers of a run with -short: one of each kind.
var inShort = []string{"nginx with reuseport, TERM", "Apache, TERM", "gunicorn", "node without a signal handler", "redis"}

func TestAnyServer(t *testing.T) {
	common := testkit.NewFixtures(t)
	// A server that starts needs a processor, and so do the clients.
	slots := make(chan struct{}, 3)
	for _, s := range anyServers() {
		if testing.Short() && !slices.Contains(inShort, s.name) {
			continue
		}
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			slots <- struct{}{}
			defer func() { <-slots }()
			s.upgrades(t, testkit.NewSite(t, common), testkit.Times(20, 3, 100))
		})
	}
}

// upgrades upgrades the server under load, each time with a slow answer under
// way. wrap is a command that starts moult.
func (s anyServer) upgrades(t *testing.T, at *testkit.Site, count int, wrap ...string) {
	args := append([]string{"--drain-signal", s.signal, "--"}, s.command(t, at)...)
	m := testkit.Launch{Wrap: wrap, Args: args, Env: at.Environment()}.Start(t)
	m.WaitServing(1)
	clients := s.dialect.crowd(t, at.Address, s.clients)
	moreAnswers(t, clients)
	for generation := 1; generation <= count; generation++ {
		finish := s.dialect.slow(t, at.Address)
		m.Upgrade()
		if err := finish(); err != nil {
			t.Errorf("the slow answer of generation %d: %v", generation, err)
		}
		moreAnswers(t, clients)
	}
	// Whatever answers after this is the last generation.
	m.WaitState(count, "gone")
	moreAnswers(t, clients)
	if err := clients.stop(); err != nil {
		t.Errorf("%d upgrades: %v", count, err)
	}
	t.Logf("%d upgrades, %d requests", count, clients.requests())
	m.Stop()
}

func moreAnswers(t testing.TB, clients crowd) {
	t.Helper()
	before := clients.requests()
	testkit.Until(t, "more requests are answered", func() error {
		if now := clients.requests(); now < before+32 {
			return errors.New(fmt.Sprint(now-before, " of 32"))
		}
		return nil
	})
}
