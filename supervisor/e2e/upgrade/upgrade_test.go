//go:build linux

package upgrade

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moult/moult/supervisor/cli/demo/load"
	"github.com/moult/moult/supervisor/e2e/testkit"
)

// inheriting is the plan of a server of testdata/inherit, which takes its socket
// at descriptor 3.
func inheriting(t testing.TB, program string) string {
	line := []string{"sh exec", testkit.RequireProgram(t, program)}
	switch program {
	case "python3":
		line = append(line, testkit.Testdata(t, "inherit/fdserver.py"), "3")
	case "node":
		line = append(line, testkit.Testdata(t, "inherit/fdserver.js"), "3")
	case "gunicorn":
		line = append(line, "--log-level critical --workers 2 --chdir", testkit.Testdata(t, "inherit"), "wsgi:application")
	}
	return strings.Join(line, " ")
}

func played(plan string) func(testing.TB) string {
	return func(testing.TB) string { return plan }
}

func program(name string) func(testing.TB) string {
	return func(t testing.TB) string { return inheriting(t, name) }
}

// The clients take all of the processor that they can get.
func TestUpgradesLoseNoNewConnection(t *testing.T) {
	for _, test := range []struct {
		name  string
		plan  func(testing.TB) string
		times int // upgrades in a normal run
		flags string
	}{
		{"graceful", played("graceful"), 12, ""},
		{"no signal handling", played("plain"), 12, ""},
		{"three workers", played("plain"), 4, "--workers 3"},
		{"prefork", played("prefork n=3"), 4, ""},
		{"listens again with a backlog of 5", played("relisten"), 4, ""},
		{"shuts its listening socket down", played("shuts"), 4, ""},
		{"leaves a process in a session of its own", played("daemonizes"), 4, "--drain-timeout 1s --kill-grace 300ms"},
		{"ready by a child that is gone", played("notifies"), 4, "--ready notify"},
		{"python", program("python3"), 4, ""},
		{"node", program("node"), 4, ""},
		{"gunicorn", program("gunicorn"), 3, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := testkit.Listen(t, test.plan(t), strings.Fields(test.flags)...).Serving()
			clients := testkit.Ask(t, load.Config{Address: m.Address})
			clients.Flow()
			upgrades := testkit.Times(test.times, 3, 200)
			for range upgrades {
				m.Upgrade()
				clients.Flow()
			}
			report := clients.Lossless()
			if last := strconv.Itoa(upgrades + 1); report.Generations[last] == 0 {
				t.Errorf("nothing was answered by generation %s: %v", last, report)
			}
		})
	}
}

// Sockets of each kind; where they are shared, a server may lose what
// ShutdownLosses allows.
func TestUpgradesOfOtherSockets(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, address string
		flags         []string
		shared        bool
	}{
		{"path", "{s}", []string{"-l", "unix://{s}"}, false},
		{"abstract", "@moult-test-{p}", []string{"-l", "unix://@moult-test-{p}"}, true},
		{"tcp, shared", "{a}", []string{"-l", "{a}", "--handover", "share"}, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			m := testkit.Capture(t, "graceful", test.flags...).Serving()
			clients := testkit.AskAt(t, m.Fill(test.address), 16)
			upgrades := testkit.Times(10, 3, 200)
			for range upgrades {
				clients.Flow()
				m.Upgrade()
			}
			if test.shared {
				clients.ShutdownLosses(upgrades)
			} else {
				clients.Lossless()
			}
		})
	}
}

func TestSlowAnswersInFlightComplete(t *testing.T) {
	t.Parallel()
	for _, plan := range []string{"graceful", "plain"} {
		t.Run(plan, func(t *testing.T) {
			t.Parallel()
			m := testkit.Listen(t, plan, "--max-draining", "32").Serving()
			sleep := time.Duration(testkit.Times(6, 6, 20)) * 100 * time.Millisecond
			clients := testkit.Ask(t, load.Config{Address: m.Address, Path: "/?sleep=" + sleep.String()})
			for range testkit.Times(8, 2, 50) {
				clients.Answer(1)
				m.Upgrade()
			}
			clients.Lossless()
		})
	}
}

// The old worker keeps what it is answering beyond the drain signal, and the
// drain signal comes only after it, at any --quiesce.
func TestSlowAnswerOutlivesTheUpgrade(t *testing.T) {
	t.Parallel()
	m := testkit.Listen(t, "graceful", "--quiesce", "0s").Serving()
	clients := testkit.Ask(t, load.Config{Address: m.Address, Clients: 4, Path: "/?sleep=1500ms"})
	testkit.Until(t, "requests are in hand", func() error { return testkit.AtLeast(testkit.Busy(t, m.Address), 4) })
	m.Upgrade()
	m.Retire()
	clients.Lossless()
}

func TestUpgradesWhileGenerationsStillDrain(t *testing.T) {
	t.Parallel()
	m := testkit.Listen(t, "graceful", "--max-draining", "2").Serving()
	var held []testkit.HeldRequest
	for generation := 1; generation <= 4; generation++ {
		ask := "/?sleep=8s"
		if generation == 1 {
			ask = "/?sleep=4s" // it may be let finish, and has to be the first
		}
		held = append(held, m.Hold(ask))
		if generation < 4 {
			m.Upgrade()
		}
	}
	// Three are left over, two may be: the oldest has to go.
	m.WaitState(1, "gone")
	for _, later := range []int{2, 3} {
		if m.Logged(testkit.Reaches(later, "gone")) > 0 {
			t.Errorf("generation %d went as well", later)
		}
	}
	testkit.Finish(t, "of a younger generation", held[1:]...)
}

func TestCommandIsLookedUpAnew(t *testing.T) {
	t.Parallel()
	releases := t.TempDir()
	for _, release := range []string{"1", "2"} {
		directory := filepath.Join(releases, release)
		script := fmt.Sprintf("#!/bin/sh\nRELEASE=%s exec %s\n", release, strings.Join(testkit.Worker("graceful"), " "))
		testkit.OK(t, errors.Join(os.Mkdir(directory, 0o755), os.WriteFile(filepath.Join(directory, "server"), []byte(script), 0o755)))
	}
	current := filepath.Join(releases, "current")
	link := func(release string) { testkit.OK(t, relink(release, current)) }
	link("1")
	m := testkit.Run(t, []string{"-l", "{a}", "--chdir", current}, []string{filepath.Join(current, "server")}).Serving()
	first := m.Self()
	link("2")
	testkit.OK(t, os.RemoveAll(filepath.Join(releases, "1")))
	m.Upgrade()
	second := m.Self()
	if first.Variable("RELEASE") != "1" || second.Variable("RELEASE") != "2" {
		t.Errorf("releases %q and %q", first.Variable("RELEASE"), second.Variable("RELEASE"))
	}
	if second.Dir != filepath.Join(releases, "2") {
		t.Errorf("the second release runs in %s", second.Dir)
	}
}

// relink moves a link in one step.
func relink(to, link string) error {
	return errors.Join(os.Symlink(to, link+".new"), os.Rename(link+".new", link))
}

func TestOneImplementationTakesOverFromAnother(t *testing.T) {
	python, node := inheriting(t, "python3"), inheriting(t, "node")
	m := testkit.Listen(t, "plain").Serving()
	clients := testkit.Ask(t, load.Config{Address: m.Address})
	for _, next := range []string{python, node, "graceful", python} {
		clients.Flow()
		m.Next(next)
		m.Upgrade()
	}
	clients.Flow()
	clients.Lossless()
}

func TestHangupsDuringAnUpgradeAreOneMore(t *testing.T) {
	t.Parallel()
	m := testkit.Listen(t, "graceful delay=400ms").Serving()
	clients := m.Ask(16)
	m.Signal(syscall.SIGHUP)
	m.WaitState(2, "starting")
	for range 5 {
		m.Signal(syscall.SIGHUP)
		clients.Answer(8)
	}
	m.WaitServing(3)
	m.AnsweredBy(3)
	clients.Lossless()
	m.Stop()
	if youngest := m.Generation(); youngest != 3 {
		t.Errorf("generation %d came, want 3 at most", youngest)
	}
}

func TestHangupWhileTheFirstStarts(t *testing.T) {
	t.Parallel()
	m := testkit.Listen(t, "graceful delay=500ms")
	m.WaitState(1, "starting")
	m.Signal(syscall.SIGHUP)
	m.WaitServing(2)
	m.WaitState(1, "gone")
	m.AnsweredBy(2)
}

func TestTheProgramOfTheLastHangupServes(t *testing.T) {
	m := testkit.Listen(t, "graceful").Serving()
	m.Upgrade()
	m.Retire()
	before := testkit.TakeStock(m.PID())
	clients := testkit.Ask(t, load.Config{Address: m.Address})
	for range testkit.Times(40, 20, 200) {
		m.Signal(syscall.SIGHUP)
		time.Sleep(10 * time.Millisecond) // the rate that is asked for: 200 in 2 s
	}
	m.Next("sh exec env LAST=yes " + strings.Join(testkit.Worker("graceful"), " "))
	m.Signal(syscall.SIGHUP)
	testkit.Until(t, "the last program serves", func() error {
		if self := m.Self(); self.Variable("LAST") != "yes" {
			return fmt.Errorf("generation %s serves", self.Variable("MOULT_GENERATION"))
		}
		return nil
	})
	clients.Lossless()
	m.BackTo(before)
}

func TestEveryWorkerOfAGenerationServes(t *testing.T) {
	t.Parallel()
	m := testkit.Listen(t, "plain", "--workers", "3").Serving()
	pids := map[string]bool{}
	for range 200 {
		response, _, err := testkit.Get("tcp", m.Address, "/")
		testkit.OK(t, err)
		pids[response.Header.Get("Worker-Pid")] = true
	}
	if len(pids) != 3 {
		t.Errorf("%d workers answered, want 3", len(pids))
	}
}
