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

	"github.com/moult/moult/supervisor/e2e/testkit"
	"github.com/moult/moult/supervisor/load"
)

// server is something to upgrade under load.
type server struct {
	name    string
	command func(testing.TB) []string
	times   int // upgrades in a normal run
	flags   []string
}

func played(name string, options ...string) func(testing.TB) []string {
	return func(testing.TB) []string { return testkit.WorkerCommand(name, options...) }
}

func pythonServer(t testing.TB) []string {
	return []string{testkit.RequireProgram(t, "python3"), testkit.Testdata(t, "fdserver.py"), "{fd}"}
}

func nodeServer(t testing.TB) []string {
	return []string{testkit.RequireProgram(t, "node"), testkit.Testdata(t, "fdserver.js"), "{fd}"}
}

func gunicornServer(t testing.TB) []string {
	return []string{testkit.RequireProgram(t, "gunicorn"), "--log-level", "critical", "--workers", "2",
		"--chdir", testkit.Testdata(t, ""), "wsgi:application"}
}

func servers() []server {
	return []server{
		{"graceful", played("graceful"), 40, nil},
		{"no signal handling", played("plain"), 40, nil},
		{"three workers", played("plain"), 4, []string{"--workers", "3"}},
		{"prefork", played("prefork", "n=3"), 8, nil},
		{"listens again with a backlog of 5", played("relisten"), 8, nil},
		{"shuts its listening socket down", played("shuts"), 8, nil},
		{"leaves a process in a session of its own", played("daemonizes"), 8, []string{"--drain-timeout", "1s", "--kill-grace", "300ms"}},
		{"ready by a child that is gone", played("notifies"), 8, []string{"--ready", "notify"}},
		{"python", pythonServer, 8, nil},
		{"node", nodeServer, 8, nil},
		{"gunicorn", gunicornServer, 5, nil},
	}
}

func TestUpgradesLoseNoNewConnection(t *testing.T) {
	for _, s := range servers() {
		t.Run(s.name, func(t *testing.T) {
			address := testkit.FreeAddress(t)
			m := testkit.Run(t, append([]string{"-l", address}, s.flags...), s.command(t))
			m.WaitServing(1)
			clients := testkit.Traffic(t, load.Config{Address: address})
			testkit.Flowing(t, clients)
			upgrades := testkit.Times(s.times, 3, 200)
			for range upgrades {
				m.Upgrade()
				testkit.Flowing(t, clients)
			}
			report := testkit.Lossless(t, clients)
			if last := strconv.Itoa(upgrades + 1); report.Generations[last] == 0 {
				t.Errorf("nothing was answered by generation %s: %v", last, report)
			}
			m.Stop()
		})
	}
}

func TestUpgradesOverUnixSocketsLoseNothing(t *testing.T) {
	for _, form := range []string{"path", "abstract"} {
		t.Run(form, func(t *testing.T) {
			t.Parallel()
			address := filepath.Join(t.TempDir(), "s")
			if form == "abstract" {
				address = "@moult-test-" + strconv.Itoa(os.Getpid())
			}
			m := testkit.Run(t, []string{"-l", "unix://" + address}, testkit.WorkerCommand("graceful"))
			m.WaitServing(1)
			clients := testkit.Traffic(t, load.Config{Network: "unix", Address: address})
			for range testkit.Times(15, 3, 200) {
				testkit.Flowing(t, clients)
				m.Upgrade()
			}
			if form == "path" {
				testkit.Lossless(t, clients)
			} else {
				testkit.AtMostShutdownLosses(t, clients, testkit.Times(15, 3, 200))
			}
			m.Stop()
		})
	}
}

func TestSharedSocketUpgradeOfAGracefulServer(t *testing.T) {
	t.Parallel()
	address := testkit.FreeAddress(t)
	m := testkit.Run(t, []string{"-l", address, "--handover", "share"}, testkit.WorkerCommand("graceful"))
	m.WaitServing(1)
	clients := testkit.Traffic(t, load.Config{Address: address})
	for range testkit.Times(10, 3, 50) {
		testkit.Flowing(t, clients)
		m.Upgrade()
	}
	testkit.AtMostShutdownLosses(t, clients, testkit.Times(10, 3, 50))
	m.Stop()
}

func TestSlowAnswersInFlightComplete(t *testing.T) {
	for _, name := range []string{"graceful", "plain"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			address := testkit.FreeAddress(t)
			m := testkit.Run(t, []string{"-l", address, "--max-draining", "32"}, testkit.WorkerCommand(name))
			m.WaitServing(1)
			sleep := 600 * time.Millisecond
			if testkit.Soak() {
				sleep = 2 * time.Second
			}
			clients := testkit.Traffic(t, load.Config{Address: address, Path: "/?sleep=" + sleep.String()})
			for range testkit.Times(8, 2, 50) {
				before := clients.Snapshot()
				testkit.Until(t, "answers arrive", func() error {
					if now := clients.Snapshot(); now.Requests() == before.Requests() {
						return errors.New(now.String())
					}
					return nil
				})
				m.Upgrade()
			}
			testkit.Lossless(t, clients)
			m.Stop()
		})
	}
}

// The old worker keeps what it is answering beyond the drain signal, and the
// drain signal comes only after it, at any --quiesce.
func TestSlowAnswerOutlivesTheUpgrade(t *testing.T) {
	t.Parallel()
	address := testkit.FreeAddress(t)
	m := testkit.Run(t, []string{"-l", address, "--quiesce", "0s"}, testkit.WorkerCommand("graceful"))
	m.WaitServing(1)
	clients := testkit.Traffic(t, load.Config{Address: address, Clients: 4, Path: "/?sleep=1500ms"})
	testkit.Until(t, "requests are in hand", func() error { return testkit.AtLeast(testkit.Busy(t, address), 4) })
	m.Upgrade()
	m.WaitState(1, "gone")
	testkit.Lossless(t, clients)
	m.Stop()
}

func TestUpgradesWhileGenerationsStillDrain(t *testing.T) {
	t.Parallel()
	address := testkit.FreeAddress(t)
	m := testkit.Run(t, []string{"-l", address, "--max-draining", "2"}, testkit.WorkerCommand("graceful"))
	m.WaitServing(1)
	var held []testkit.HeldRequest
	for generation := 1; generation <= 4; generation++ {
		held = append(held, testkit.Hold(t, address, "/?sleep=4s"))
		if generation < 4 {
			m.Upgrade()
		}
	}
	// Three are left over, two may be: the oldest has to go.
	early := m.WaitState(1, "gone")
	if early.Generation != 1 {
		t.Errorf("generation %d went first", early.Generation)
	}
	for _, request := range held[1:] {
		if err := request.Finish(); err != nil {
			t.Errorf("a younger generation was cut: %v", err)
		}
	}
	m.Stop()
}

func TestCommandIsLookedUpAnew(t *testing.T) {
	t.Parallel()
	releases := t.TempDir()
	for _, release := range []string{"1", "2"} {
		directory := filepath.Join(releases, release)
		script := fmt.Sprintf("#!/bin/sh\nRELEASE=%s exec %s %sgraceful\n", release, testkit.Executable(), testkit.WorkerPrefix)
		if err := errors.Join(os.Mkdir(directory, 0o755), os.WriteFile(filepath.Join(directory, "server"), []byte(script), 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	current := filepath.Join(releases, "current")
	deploy := func(release string) {
		t.Helper()
		os.Remove(current + ".new")
		if err := errors.Join(os.Symlink(release, current+".new"), os.Rename(current+".new", current)); err != nil {
			t.Fatal(err)
		}
	}
	deploy("1")
	address := testkit.FreeAddress(t)
	m := testkit.Run(t, []string{"-l", address, "--chdir", current}, []string{filepath.Join(current, "server")})
	m.WaitServing(1)
	first := testkit.AskSelf(t, "tcp", address)
	deploy("2")
	if err := os.RemoveAll(filepath.Join(releases, "1")); err != nil {
		t.Fatal(err)
	}
	m.Upgrade()
	second := testkit.AskSelf(t, "tcp", address)
	if first.Variable("RELEASE") != "1" || second.Variable("RELEASE") != "2" {
		t.Errorf("releases %q and %q", first.Variable("RELEASE"), second.Variable("RELEASE"))
	}
	if second.Dir != filepath.Join(releases, "2") {
		t.Errorf("the second release runs in %s", second.Dir)
	}
	m.Stop()
}

func TestOneImplementationTakesOverFromAnother(t *testing.T) {
	address := testkit.FreeAddress(t)
	shell := func(command []string) string {
		return "sh exec " + strings.ReplaceAll(strings.Join(command, " "), "{fd}", "3")
	}
	plans := []string{"plain", shell(pythonServer(t)), shell(nodeServer(t)), "graceful", shell(pythonServer(t))}
	p := testkit.NewPlan(t, plans[0])
	m := testkit.Run(t, []string{"-l", address}, p.Command())
	m.WaitServing(1)
	clients := testkit.Traffic(t, load.Config{Address: address})
	for _, next := range plans[1:] {
		testkit.Flowing(t, clients)
		p.Set(t, next)
		m.Upgrade()
	}
	testkit.Flowing(t, clients)
	testkit.Lossless(t, clients)
	m.Stop()
}

func TestHangupsDuringAnUpgradeAreOneMore(t *testing.T) {
	t.Parallel()
	address := testkit.FreeAddress(t)
	m := testkit.Run(t, []string{"-l", address}, testkit.WorkerCommand("graceful", "delay=400ms"))
	m.WaitServing(1)
	clients := testkit.Traffic(t, load.Config{Address: address})
	m.Signal(syscall.SIGHUP)
	m.WaitState(2, "starting")
	for range 5 {
		m.Signal(syscall.SIGHUP)
		testkit.Flowing(t, clients)
	}
	m.WaitServing(3)
	testkit.AnsweredBy(t, address, 3)
	testkit.Lossless(t, clients)
	m.Stop()
	if youngest := m.Generation(); youngest != 3 {
		t.Errorf("generation %d came, want 3 at most", youngest)
	}
}

func TestHangupWhileTheFirstStarts(t *testing.T) {
	t.Parallel()
	address := testkit.FreeAddress(t)
	p := testkit.NewPlan(t, "graceful delay=500ms")
	m := testkit.Run(t, []string{"-l", address}, p.Command())
	m.WaitState(1, "starting")
	m.Signal(syscall.SIGHUP)
	m.WaitServing(2)
	m.WaitState(1, "gone")
	testkit.AnsweredBy(t, address, 2)
	m.Stop()
}

func TestTheProgramOfTheLastHangupServes(t *testing.T) {
	address := testkit.FreeAddress(t)
	p := testkit.NewPlan(t, "graceful")
	m := testkit.Run(t, []string{"-l", address}, p.Command())
	m.WaitServing(1)
	m.Upgrade()
	m.WaitState(1, "gone")
	before := testkit.TakeStock(m.Pid())
	clients := testkit.Traffic(t, load.Config{Address: address})
	hangups := testkit.Times(40, 20, 200)
	for range hangups {
		m.Signal(syscall.SIGHUP)
		time.Sleep(10 * time.Millisecond) // the rate that is asked for: 200 in 2 s
	}
	p.Set(t, "sh exec env LAST=yes "+strings.Join(testkit.WorkerCommand("graceful"), " "))
	m.Signal(syscall.SIGHUP)
	testkit.Until(t, "the last program serves", func() error {
		if self := testkit.AskSelf(t, "tcp", address); self.Variable("LAST") != "yes" {
			return fmt.Errorf("generation %s serves", self.Variable("MOULT_GENERATION"))
		}
		return nil
	})
	testkit.Lossless(t, clients)
	m.BackTo(before)
	m.Stop()
}

func TestEveryWorkerOfAGenerationServes(t *testing.T) {
	t.Parallel()
	address := testkit.FreeAddress(t)
	m := testkit.Run(t, []string{"-l", address, "--workers", "3"}, testkit.WorkerCommand("plain"))
	m.WaitServing(1)
	pids := map[string]bool{}
	for range 200 {
		response, _, err := testkit.Get("tcp", address, "/")
		if err != nil {
			t.Fatal(err)
		}
		pids[response.Header.Get("Worker-Pid")] = true
	}
	if len(pids) != 3 {
		t.Errorf("%d workers answered, want 3", len(pids))
	}
	m.Stop()
}
