//go:build linux

package main

import (
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

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
	return func(testing.TB) []string { return worker(name, options...) }
}

func testdata(t testing.TB, name string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func pythonServer(t testing.TB) []string {
	return []string{requireProgram(t, "python3"), testdata(t, "fdserver.py"), "{fd}"}
}

func nodeServer(t testing.TB) []string {
	return []string{requireProgram(t, "node"), testdata(t, "fdserver.js"), "{fd}"}
}

func gunicornServer(t testing.TB) []string {
	return []string{requireProgram(t, "gunicorn"), "--log-level", "critical", "--workers", "2",
		"--chdir", testdata(t, ""), "wsgi:application"}
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
			address := freeAddress(t)
			m := run(t, append([]string{"-l", address}, s.flags...), s.command(t))
			m.waitServing(1)
			clients := traffic(t, load.Config{Address: address})
			flowing(t, clients)
			upgrades := times(s.times, 3, 200)
			for range upgrades {
				m.upgrade()
				flowing(t, clients)
			}
			report := lossless(t, clients)
			if last := strconv.Itoa(upgrades + 1); report.Generations[last] == 0 {
				t.Errorf("nothing was answered by generation %s: %v", last, report)
			}
			m.stop()
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
			m := run(t, []string{"-l", "unix://" + address}, worker("graceful"))
			m.waitServing(1)
			clients := traffic(t, load.Config{Network: "unix", Address: address})
			for range times(15, 3, 200) {
				flowing(t, clients)
				m.upgrade()
			}
			if form == "path" {
				lossless(t, clients)
			} else {
				atMostShutdownLosses(t, clients, times(15, 3, 200))
			}
			m.stop()
		})
	}
}

// atMostShutdownLosses is what a shared socket can promise: net/http drops the
// requests that it has just read when Shutdown begins (golang/go#75591), and
// nothing else is lost: at most one request of each of the 16 clients.
func atMostShutdownLosses(t *testing.T, clients *load.Traffic, upgrades int) {
	t.Helper()
	report := clients.Stop()
	total := report.Total()
	unexplained := total.Failures() - total.Failed[load.Short] - total.Failed[load.Reset]
	if unexplained != 0 || total.Failures() > 16*upgrades {
		t.Errorf("%d upgrades: %v", upgrades, report)
	}
}

func TestSharedSocketUpgradeOfAGracefulServer(t *testing.T) {
	t.Parallel()
	address := freeAddress(t)
	m := run(t, []string{"-l", address, "--handover", "share"}, worker("graceful"))
	m.waitServing(1)
	clients := traffic(t, load.Config{Address: address})
	for range times(10, 3, 50) {
		flowing(t, clients)
		m.upgrade()
	}
	atMostShutdownLosses(t, clients, times(10, 3, 50))
	m.stop()
}

func TestSlowAnswersInFlightComplete(t *testing.T) {
	for _, name := range []string{"graceful", "plain"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			address := freeAddress(t)
			m := run(t, []string{"-l", address, "--max-draining", "32"}, worker(name))
			m.waitServing(1)
			sleep := 600 * time.Millisecond
			if soak() {
				sleep = 2 * time.Second
			}
			clients := traffic(t, load.Config{Address: address, Path: "/?sleep=" + sleep.String()})
			for range times(8, 2, 50) {
				before := clients.Snapshot()
				until(t, "answers arrive", func() error {
					if now := clients.Snapshot(); now.Requests() == before.Requests() {
						return errors.New(now.String())
					}
					return nil
				})
				m.upgrade()
			}
			lossless(t, clients)
			m.stop()
		})
	}
}

// The old worker keeps what it is answering beyond the drain signal, and the
// drain signal comes only after it, at any --quiesce.
func TestSlowAnswerOutlivesTheUpgrade(t *testing.T) {
	t.Parallel()
	address := freeAddress(t)
	m := run(t, []string{"-l", address, "--quiesce", "0s"}, worker("graceful"))
	m.waitServing(1)
	clients := traffic(t, load.Config{Address: address, Clients: 4, Path: "/?sleep=1500ms"})
	until(t, "requests are in hand", func() error { return atLeast(busy(t, address), 4) })
	m.upgrade()
	m.waitState(1, "gone")
	lossless(t, clients)
	m.stop()
}

func TestUpgradesWhileGenerationsStillDrain(t *testing.T) {
	t.Parallel()
	address := freeAddress(t)
	m := run(t, []string{"-l", address, "--max-draining", "2"}, worker("graceful"))
	m.waitServing(1)
	var held []heldRequest
	for generation := 1; generation <= 4; generation++ {
		held = append(held, hold(t, address, "/?sleep=4s"))
		if generation < 4 {
			m.upgrade()
		}
	}
	// Three are left over, two may be: the oldest has to go.
	early := m.waitState(1, "gone")
	if early.Generation != 1 {
		t.Errorf("generation %d went first", early.Generation)
	}
	for _, request := range held[1:] {
		if err := request.finish(); err != nil {
			t.Errorf("a younger generation was cut: %v", err)
		}
	}
	m.stop()
}

func TestCommandIsLookedUpAnew(t *testing.T) {
	t.Parallel()
	releases := t.TempDir()
	for _, release := range []string{"1", "2"} {
		directory := filepath.Join(releases, release)
		script := fmt.Sprintf("#!/bin/sh\nRELEASE=%s exec %s %sgraceful\n", release, executable(), workerPrefix)
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
	address := freeAddress(t)
	m := run(t, []string{"-l", address, "--chdir", current}, []string{filepath.Join(current, "server")})
	m.waitServing(1)
	first := askSelf(t, "tcp", address)
	deploy("2")
	if err := os.RemoveAll(filepath.Join(releases, "1")); err != nil {
		t.Fatal(err)
	}
	m.upgrade()
	second := askSelf(t, "tcp", address)
	if first.variable("RELEASE") != "1" || second.variable("RELEASE") != "2" {
		t.Errorf("releases %q and %q", first.variable("RELEASE"), second.variable("RELEASE"))
	}
	if second.Dir != filepath.Join(releases, "2") {
		t.Errorf("the second release runs in %s", second.Dir)
	}
	m.stop()
}

func TestOneImplementationTakesOverFromAnother(t *testing.T) {
	address := freeAddress(t)
	shell := func(command []string) string {
		return "sh exec " + strings.ReplaceAll(strings.Join(command, " "), "{fd}", "3")
	}
	plans := []string{"plain", shell(pythonServer(t)), shell(nodeServer(t)), "graceful", shell(pythonServer(t))}
	p := newPlan(t, plans[0])
	m := run(t, []string{"-l", address}, p.command())
	m.waitServing(1)
	clients := traffic(t, load.Config{Address: address})
	for _, next := range plans[1:] {
		flowing(t, clients)
		p.set(t, next)
		m.upgrade()
	}
	flowing(t, clients)
	lossless(t, clients)
	m.stop()
}

func TestHangupsDuringAnUpgradeAreOneMore(t *testing.T) {
	t.Parallel()
	address := freeAddress(t)
	m := run(t, []string{"-l", address}, worker("graceful", "delay=400ms"))
	m.waitServing(1)
	clients := traffic(t, load.Config{Address: address})
	m.signal(syscall.SIGHUP)
	m.waitState(2, "starting")
	for range 5 {
		m.signal(syscall.SIGHUP)
		flowing(t, clients)
	}
	m.waitServing(3)
	answeredBy(t, address, 3)
	lossless(t, clients)
	m.stop()
	if youngest := m.generation(); youngest != 3 {
		t.Errorf("generation %d came, want 3 at most", youngest)
	}
}

func TestHangupWhileTheFirstStarts(t *testing.T) {
	t.Parallel()
	address := freeAddress(t)
	p := newPlan(t, "graceful delay=500ms")
	m := run(t, []string{"-l", address}, p.command())
	m.waitState(1, "starting")
	m.signal(syscall.SIGHUP)
	m.waitServing(2)
	m.waitState(1, "gone")
	answeredBy(t, address, 2)
	m.stop()
}

func TestTheProgramOfTheLastHangupServes(t *testing.T) {
	address := freeAddress(t)
	p := newPlan(t, "graceful")
	m := run(t, []string{"-l", address}, p.command())
	m.waitServing(1)
	m.upgrade()
	m.waitState(1, "gone")
	before := takeStock(m.pid())
	clients := traffic(t, load.Config{Address: address})
	hangups := times(40, 20, 200)
	for range hangups {
		m.signal(syscall.SIGHUP)
		time.Sleep(10 * time.Millisecond) // the rate that is asked for: 200 in 2 s
	}
	p.set(t, "sh exec env LAST=yes "+strings.Join(worker("graceful"), " "))
	m.signal(syscall.SIGHUP)
	until(t, "the last program serves", func() error {
		if self := askSelf(t, "tcp", address); self.variable("LAST") != "yes" {
			return fmt.Errorf("generation %s serves", self.variable("MOULT_GENERATION"))
		}
		return nil
	})
	lossless(t, clients)
	m.backTo(before)
	m.stop()
}

func TestEveryWorkerOfAGenerationServes(t *testing.T) {
	t.Parallel()
	address := freeAddress(t)
	m := run(t, []string{"-l", address, "--workers", "3"}, worker("plain"))
	m.waitServing(1)
	pids := map[string]bool{}
	for range 200 {
		response, _, err := get("tcp", address, "/")
		if err != nil {
			t.Fatal(err)
		}
		pids[response.Header.Get("Worker-Pid")] = true
	}
	if len(pids) != 3 {
		t.Errorf("%d workers answered, want 3", len(pids))
	}
	m.stop()
}

// Kept connections that are hardly ever idle: ours must lose no more than the
// same server loses when its drain signal is sent to it directly.
func TestKeepAliveLossesAreTheServersOwn(t *testing.T) {
	for _, name := range []string{"graceful", "plain"} {
		t.Run(name, func(t *testing.T) {
			upgrades := times(8, 2, 50)
			ours, direct := keepAliveLosses(t, name, upgrades)
			t.Logf("%d upgrades, %d kept connections: %d lost under moult, %d by the signal alone",
				upgrades, keptConnections, ours.Failures(), direct.Failures())
			// How many requests are on their way when the server leaves is
			// chance, the same for both: the difference of two such sums
			// stays within this, unless there is a reason.
			chance := int(keptConnections * math.Sqrt(2*float64(upgrades)))
			if ours.Failures() > direct.Failures()+chance {
				t.Errorf("under moult: %v\n\tdirect: %v", ours, direct)
			}
			total := ours.Total()
			if total.Failed[load.Refused]+total.Failed[load.TimedOut]+total.Failed[load.Wrong] != 0 || total.Failures() > upgrades*keptConnections {
				t.Errorf("under moult: %v", ours)
			}
		})
	}
}

const keptConnections = 16

// keepAliveLosses upgrades the same server under moult and by hand, in turns
// and with both under load, so that both have the same machine.
func keepAliveLosses(t testing.TB, name string, upgrades int) (ours, direct load.Report) {
	t.Helper()
	kept := func(address string) *load.Traffic {
		return traffic(t, load.Config{Address: address, Mode: load.KeepAlive, Clients: keptConnections, Pause: time.Millisecond})
	}
	address := freeAddress(t)
	// These connections never end by themselves: to wait for it is in vain.
	m := run(t, []string{"-l", address, "--quiesce", "200ms"}, worker(name))
	m.waitServing(1)
	byHand := newByHand(t, name)
	ourClients, directClients := kept(address), kept(byHand.address)
	for generation := range upgrades {
		flowing(t, ourClients)
		m.upgrade()
		m.waitState(generation+1, "gone")
		flowing(t, directClients)
		byHand.upgrade(t)
	}
	flowing(t, ourClients)
	flowing(t, directClients)
	ours, direct = ourClients.Stop(), directClients.Stop()
	m.stop()
	return ours, direct
}

// byHand does what the simplest supervisor would: the next process on the same
// socket, then the drain signal to the one before.
type byHand struct {
	name       string
	address    string
	socket     *os.File
	process    *exec.Cmd
	generation int
}

func newByHand(t testing.TB, name string) *byHand {
	t.Helper()
	h := &byHand{name: name, address: freeAddress(t), generation: 1}
	h.socket = listening(t, "tcp", h.address)
	h.process = startBare(t, h.socket, 1, worker(name))
	answers(t, "tcp", h.address)
	return h
}

func (h *byHand) upgrade(t testing.TB) {
	t.Helper()
	h.generation++
	old := h.process
	h.process = startBare(t, h.socket, h.generation, worker(h.name))
	until(t, "the next process serves", func() error {
		if n := generationAt("tcp", h.address); n != h.generation {
			return fmt.Errorf("generation %d", n)
		}
		return nil
	})
	// By a process of its own, as a supervisor is one: the moment at which the
	// clients' own process sends it is not a random one.
	kill := exec.Command("/bin/sh", "-c", fmt.Sprintf("sleep 0.2; kill -TERM %d", old.Process.Pid))
	if err := kill.Run(); err != nil {
		t.Fatal(err)
	}
	old.Wait()
}
