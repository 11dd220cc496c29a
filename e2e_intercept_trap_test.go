//go:build linux

package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/moult/moult/supervisor/load"
	"golang.org/x/sys/unix"
)

// Workers that end, fail or attack while the master answers their binds.

// Whoever comes while no worker lives waits in the queue, and is served by the
// replacement.
func TestCrashOfAnInterceptedWorker(t *testing.T) {
	for _, steps := range []string{"tcp={a}", "threads=3,{a}", "tcp={a} tcp={b} end=graceful"} {
		t.Run(steps, func(t *testing.T) {
			t.Parallel()
			address, door := freeAddress(t), newGate(t)
			line := strings.NewReplacer("{a}", address, "{b}", freeAddress(t)).Replace(steps)
			p := newPlan(t, "binds "+line)
			m := run(t, []string{"--restart-delay", "10ms..50ms"}, p.command())
			pid := m.waitServing(1).PID
			p.set(t, "binds "+door.step()+" "+line)
			clients := traffic(t, load.Config{Address: address, Clients: 8})
			kills := times(5, 2, 20)
			for range kills {
				flowing(t, clients)
				mark := m.mark()
				killProcess(pid)
				m.waitLog(mark, "the replacement waits", func(e entry) bool { return strings.HasPrefix(e.Raw, "waits ") })
				queue := sendTo(t, address, 20)
				door.pass(t)
				pid = m.waitLog(mark, "the replacement serves", func(e entry) bool { return !e.isPhase() && e.To == "serving" }).PID
				for i, request := range queue {
					if err := request.finish(); err != nil {
						t.Errorf("request %d that came while nobody lived: %v", i, err)
					}
				}
			}
			flowing(t, clients)
			onlyInHand(t, clients, 8*kills)
			p.set(t, "binds "+line)
			m.upgradeUnderLoadOf(1, address)
			m.stop()
		})
	}
}

// sendTo sends requests over n connections that nobody has to accept yet.
func sendTo(t *testing.T, address string, n int) (queue []heldRequest) {
	t.Helper()
	for i := range n {
		conn, err := net.DialTimeout("tcp", address, 5*time.Second)
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		t.Cleanup(func() { conn.Close() })
		fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		queue = append(queue, heldRequest{conn})
	}
	return queue
}

// A queue as short as the server asked for would drop most of a burst.
func TestShortQueueIsMadeLonger(t *testing.T) {
	t.Parallel()
	address := freeAddress(t)
	m := binds(t, nil, "backlog=5,"+address)
	for generation := 1; generation <= 2; generation++ {
		pid := m.waitServing(generation).PID
		freeze(t, pid)
		var burst sync.WaitGroup
		for range 64 {
			burst.Go(func() {
				conn, err := net.DialTimeout("tcp", address, 900*time.Millisecond) // before a SYN is repeated
				if err != nil {
					t.Errorf("it did not fit into the queue of generation %d: %v", generation, err)
					return
				}
				conn.Close()
			})
		}
		burst.Wait()
		if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		m.upgrade()
	}
	m.stop()
}

// Handshakes are under way at the switch: the clients are 80 ms away.
func TestHandshakesUnderWayAtAnInterceptedSwitch(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root may make a network namespace")
	}
	serverSide, clientSide := farApart(t, 40*time.Millisecond)
	address := net.JoinHostPort(serverHost, "8080")
	var m *master
	serverSide.enter(t, func() { m = binds(t, nil, "tcp="+address) })
	m.waitServing(1)
	clients := startFarClients(t, clientSide, address, 24)
	for range times(10, 3, 100) {
		clients.flow(t)
		m.upgrade()
	}
	clients.flow(t)
	m.waitState(m.generation()-1, "gone")
	if requests, failures := clients.stop(); len(failures) > 0 || requests == 0 {
		t.Errorf("%d requests, %d failures, the first: %v", requests, len(failures), failures[:min(3, len(failures))])
	}
	m.stop()
}

// A bind that a signal has interrupted, and that starts again, is the same bind.
func TestSignalsDuringBind(t *testing.T) {
	t.Parallel()
	address := freeAddress(t)
	m := binds(t, nil, "alarms=127.0.81.5,200", "tcp="+address)
	m.waitServing(1)
	if said := m.said(1, "alarmed"); !strings.HasSuffix(said, " failed map[]") {
		t.Errorf("200 binds: %s", said)
	}
	m.stop()
}

// asNobody starts the worker as root's servant without privileges, from where
// everybody may execute it.
func asNobody(t *testing.T, flags []string, steps ...string) *master {
	t.Helper()
	requireLowPorts(t)
	command := append([]string{publicCopy(t)}, worker("binds", steps...)[1:]...)
	return run(t, append([]string{"--user", "nobody"}, flags...), command)
}

func requireLowPorts(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root may bind a low port, and become somebody else")
	}
	start, err := os.ReadFile("/proc/sys/net/ipv4/ip_unprivileged_port_start")
	if n, _ := strconv.Atoi(strings.TrimSpace(string(start))); err != nil || n <= 81 {
		skip(t, "port 81 is nothing special here")
	}
}

// What a worker could not have bound itself, the master does not bind for it,
// unless it was told to.
func TestLowPorts(t *testing.T) {
	t.Run("refused to a worker without privileges", func(t *testing.T) {
		t.Parallel()
		address := freeAddress(t)
		m := asNobody(t, nil, "try=127.0.81.1:81", "tcp="+address)
		m.waitServing(1)
		if got := m.said(1, "tried"); got != "127.0.81.1:81 EACCES" {
			t.Errorf("the worker tried %s, want EACCES", got)
		}
		m.stop()
	})
	t.Run("declared", func(t *testing.T) {
		t.Parallel()
		const address = "127.0.81.2:81"
		m := asNobody(t, []string{"--listen", address, "--intercept"}, "try=127.0.81.2:82", "tcp="+address, "end=graceful")
		m.waitServing(1)
		if got := m.said(1, "tried"); got != "127.0.81.2:82 EACCES" {
			t.Errorf("the worker tried %s, want EACCES: it was not declared", got)
		}
		if uid := askSelf(t, "tcp", address).UID; uid != 65534 {
			t.Errorf("the worker's uid is %d", uid)
		}
		m.upgradeUnderLoadOf(times(3, 2, 20), address)
		m.stop()
	})
	t.Run("bound before privileges are dropped", func(t *testing.T) {
		t.Parallel()
		requireLowPorts(t)
		const address = "127.0.81.4:81"
		m := binds(t, nil, "tcp="+address, "drop", "try=127.0.81.4:82")
		m.waitServing(1)
		if got := m.said(1, "tried"); got != "127.0.81.4:82 EACCES" {
			t.Errorf("the worker tried %s, want EACCES: it has no privilege any more", got)
		}
		m.upgradeUnderLoadOf(times(3, 2, 20), address)
		m.stop()
	})
}

// All sockets of a group belong to one user, whoever made them.
func TestInterceptedSocketsOfOtherUsers(t *testing.T) {
	t.Parallel()
	requireLowPorts(t)
	address := freeAddress(t)
	asRoot, asNobody := "binds tcp="+address, "binds drop tcp="+address
	p := newPlan(t, asRoot)
	m := run(t, nil, p.command())
	m.waitServing(1)
	for _, line := range []string{asNobody, asRoot, asNobody, asNobody} {
		p.set(t, line)
		m.upgradeUnderLoadOf(1, address)
	}
	m.stop()
}

// The address in the worker's memory is read once, and what was checked is what
// is bound.
func TestAddressThatChangesDuringBind(t *testing.T) {
	t.Parallel()
	address := freeAddress(t)
	m := asNobody(t, nil, "flip=127.0.81.3,33081,81", "tcp="+address)
	until(t, "it has bound thousands of times", func() error {
		if slices.ContainsFunc(tcpSockets(t), func(s tcpSocket) bool { return s.local == "127.0.81.3:81" }) {
			t.Fatal("somebody listens on the forbidden port")
		}
		return atLeast(m.logged(func(e entry) bool { return strings.HasPrefix(e.Raw, "flipped ") }), 1)
	})
	var held, refused, wrong int
	said := m.said(1, "flipped")
	if _, err := fmt.Sscan(said, &held, &refused, &wrong); err != nil {
		t.Fatalf("%q: %v", said, err)
	}
	if wrong != 0 || held == 0 || refused == 0 {
		t.Errorf("it got the port that it may have %d times, another one %d times, none %d times", held, wrong, refused)
	}
	m.waitServing(1)
	m.upgrade()
	answeredBy(t, address, 2)
	m.stop()
}

// A worker cannot make the master hold sockets without end, nor keep it from
// answering others.
func TestWorkerThatBindsThousands(t *testing.T) {
	t.Parallel()
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil || limit.Max < 12000 {
		skip(t, "it would run out of descriptors first")
	}
	address, control := freeAddress(t), filepath.Join(t.TempDir(), "c")
	p := newPlan(t, "binds tcp="+address+" many=127.0.81.6,10000")
	m := run(t, []string{"--control", control}, p.command())
	var bound int
	var errno string
	said := m.said(1, "listens")
	if _, err := fmt.Sscan(said, &bound, &errno); err != nil {
		t.Fatalf("%q: %v", said, err)
	}
	if errno != "ENOBUFS" || bound < 64 {
		t.Errorf("after %d sockets the worker got %s, want ENOBUFS", bound, errno)
	}
	answers(t, "tcp", address)
	if got := statusOf(t, control).PID; got != m.pid() {
		t.Errorf("status tells of pid %d, want %d", got, m.pid())
	}
	m.stop()
}

// Name lookups do not need the master: they pass while it lives, and go on when
// it is gone.
func TestNameLookups(t *testing.T) {
	t.Parallel()
	address := freeAddress(t)
	m := binds(t, nil, "tcp="+address)
	m.waitServing(1)
	looksUp := func(when string) {
		t.Helper()
		for range 5 {
			if response, body, err := get("tcp", address, "/lookup"); err != nil || response.StatusCode != 200 {
				t.Fatalf("a lookup %s: %v %s", when, err, body)
			}
		}
	}
	looksUp("while the master lives")
	m.cmd.Process.Kill()
	<-m.exited
	looksUp("after the master's death")
}

func TestInterceptedWorkersOutliveTheMaster(t *testing.T) {
	t.Parallel()
	address := freeAddress(t)
	m := binds(t, []string{"-n", "2"}, "tcp="+address)
	m.waitServing(1)
	m.upgrade()
	var kids []int
	until(t, "two workers are left", func() error {
		if kids = children(m.pid()); len(kids) != 2 {
			return errors.New(describe(kids))
		}
		return nil
	})
	m.cmd.Process.Kill()
	<-m.exited
	clients := traffic(t, load.Config{Address: address})
	flowing(t, clients)
	lossless(t, clients)
	for _, pid := range kids {
		if !alive(pid) {
			t.Errorf("worker %d has gone with the master", pid)
		}
	}
}

// TERM at each moment: the exit code is 0, nothing is left, and the port is
// free.
func TestStopOfInterceptedWorkersAtEveryMoment(t *testing.T) {
	tests := []struct {
		name   string
		moment func(m *master, door gate)
	}{
		{"before it binds", func(m *master, _ gate) { m.said(1, "waits") }},
		{"as soon as it has bound", func(m *master, door gate) { door.pass(m.t); m.boundBy(1, 1) }},
		{"it serves", func(m *master, door gate) { door.pass(m.t); m.waitServing(1) }},
		{"the next one has not bound", func(m *master, door gate) {
			door.pass(m.t)
			m.waitServing(1)
			m.signal(syscall.SIGHUP)
			m.said(2, "waits")
		}},
		{"the next one has just bound", func(m *master, door gate) {
			door.pass(m.t)
			m.waitServing(1)
			door.pass(m.t)
			m.signal(syscall.SIGHUP)
			m.boundBy(2, 1)
		}},
		{"the next one serves", func(m *master, door gate) {
			door.pass(m.t)
			m.waitServing(1)
			door.pass(m.t)
			m.upgrade()
		}},
		{"its replacement has not bound", func(m *master, door gate) {
			door.pass(m.t)
			pid := m.waitServing(1).PID
			mark := m.mark()
			killProcess(pid)
			m.waitLog(mark, "the replacement waits", func(e entry) bool { return strings.HasPrefix(e.Raw, "waits ") })
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			address, door := freeAddress(t), newGate(t)
			m := binds(t, []string{"--restart-delay", "10ms..50ms"}, door.step(), "tcp="+address)
			test.moment(m, door)
			m.stop()
			listener, err := net.Listen("tcp", address)
			if err != nil {
				t.Fatalf("the port is not free: %v", err)
			}
			listener.Close()
		})
	}
}

func TestStopCommandEndsInterceptedWorkers(t *testing.T) {
	t.Parallel()
	address, control := freeAddress(t), filepath.Join(t.TempDir(), "c")
	m := binds(t, []string{"--control", control}, "tcp="+address)
	m.waitServing(1)
	clients := traffic(t, load.Config{Address: address, Clients: 4})
	flowing(t, clients)
	if code, out := client(t, "stop", "--control", control); code != 0 {
		t.Errorf("exit code %d: %s", code, out)
	}
	m.exitsWith(0)
	report := clients.Stop()
	if total := report.Total(); total.Failures() != total.Failed[load.Refused] {
		t.Errorf("clients were not only refused: %v", report)
	}
	if _, err := net.Dial("tcp", address); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("after the end: %v, want refused", err)
	}
}
