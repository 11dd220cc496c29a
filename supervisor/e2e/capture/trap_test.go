//go:build linux

package capture

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

	"github.com/moult/moult/supervisor/e2e/testkit"
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
			address, door := testkit.FreeAddress(t), testkit.NewGate(t)
			line := strings.NewReplacer("{a}", address, "{b}", testkit.FreeAddress(t)).Replace(steps)
			p := testkit.NewPlan(t, "binds "+line)
			m := testkit.Run(t, []string{"--restart-delay", "10ms..50ms"}, p.Command())
			pid := m.WaitServing(1).PID
			p.Set(t, "binds "+door.Step()+" "+line)
			clients := testkit.Traffic(t, load.Config{Address: address, Clients: 8})
			kills := testkit.Times(5, 2, 20)
			for range kills {
				testkit.Flowing(t, clients)
				mark := m.Mark()
				testkit.KillProcess(pid)
				m.WaitLog(mark, "the replacement waits", func(e testkit.Entry) bool { return strings.HasPrefix(e.Raw, "waits ") })
				queue := testkit.SendTo(t, address, 20)
				door.Pass(t)
				pid = m.WaitLog(mark, "the replacement serves", func(e testkit.Entry) bool { return !e.IsPhase() && e.To == "serving" }).PID
				for i, request := range queue {
					if err := request.Finish(); err != nil {
						t.Errorf("request %d that came while nobody lived: %v", i, err)
					}
				}
			}
			testkit.Flowing(t, clients)
			testkit.OnlyInHand(t, clients, 8*kills)
			p.Set(t, "binds "+line)
			m.UpgradeUnderLoadOf(1, address)
			m.Stop()
		})
	}
}

// A queue as short as the server asked for would drop most of a burst.
func TestShortQueueIsMadeLonger(t *testing.T) {
	t.Parallel()
	address := testkit.FreeAddress(t)
	m := testkit.Binds(t, nil, "backlog=5,"+address)
	for generation := 1; generation <= 2; generation++ {
		pid := m.WaitServing(generation).PID
		testkit.Freeze(t, pid)
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
		m.Upgrade()
	}
	m.Stop()
}

// A bind that a signal has interrupted, and that starts again, is the same bind.
func TestSignalsDuringBind(t *testing.T) {
	t.Parallel()
	address := testkit.FreeAddress(t)
	m := testkit.Binds(t, nil, "alarms=127.0.81.5,200", "tcp="+address)
	m.WaitServing(1)
	if said := m.Said(1, "alarmed"); !strings.HasSuffix(said, " failed map[]") {
		t.Errorf("200 binds: %s", said)
	}
	m.Stop()
}

// asNobody starts the worker as root's servant without privileges, from where
// everybody may execute it.
func asNobody(t *testing.T, flags []string, steps ...string) *testkit.Master {
	t.Helper()
	requireLowPorts(t)
	command := append([]string{testkit.PublicCopy(t)}, testkit.WorkerCommand("binds", steps...)[1:]...)
	return testkit.Run(t, append([]string{"--user", "nobody"}, flags...), command)
}

func requireLowPorts(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root may bind a low port, and become somebody else")
	}
	start, err := os.ReadFile("/proc/sys/net/ipv4/ip_unprivileged_port_start")
	if n, _ := strconv.Atoi(strings.TrimSpace(string(start))); err != nil || n <= 81 {
		testkit.Skip(t, "port 81 is nothing special here")
	}
}

// What a worker could not have bound itself, the master does not bind for it,
// unless it was told to.
func TestLowPorts(t *testing.T) {
	t.Run("refused to a worker without privileges", func(t *testing.T) {
		t.Parallel()
		address := testkit.FreeAddress(t)
		m := asNobody(t, nil, "try=127.0.81.1:81", "tcp="+address)
		m.WaitServing(1)
		if got := m.Said(1, "tried"); got != "127.0.81.1:81 EACCES" {
			t.Errorf("the worker tried %s, want EACCES", got)
		}
		m.Stop()
	})
	t.Run("declared", func(t *testing.T) {
		t.Parallel()
		const address = "127.0.81.2:81"
		m := asNobody(t, []string{"--listen", address, "--intercept"}, "try=127.0.81.2:82", "tcp="+address, "end=graceful")
		m.WaitServing(1)
		if got := m.Said(1, "tried"); got != "127.0.81.2:82 EACCES" {
			t.Errorf("the worker tried %s, want EACCES: it was not declared", got)
		}
		if uid := testkit.AskSelf(t, "tcp", address).UID; uid != 65534 {
			t.Errorf("the worker's uid is %d", uid)
		}
		m.UpgradeUnderLoadOf(testkit.Times(3, 2, 20), address)
		m.Stop()
	})
	t.Run("bound before privileges are dropped", func(t *testing.T) {
		t.Parallel()
		requireLowPorts(t)
		const address = "127.0.81.4:81"
		m := testkit.Binds(t, nil, "tcp="+address, "drop", "try=127.0.81.4:82")
		m.WaitServing(1)
		if got := m.Said(1, "tried"); got != "127.0.81.4:82 EACCES" {
			t.Errorf("the worker tried %s, want EACCES: it has no privilege any more", got)
		}
		m.UpgradeUnderLoadOf(testkit.Times(3, 2, 20), address)
		m.Stop()
	})
}

// All sockets of a group belong to one user, whoever made them.
func TestInterceptedSocketsOfOtherUsers(t *testing.T) {
	t.Parallel()
	requireLowPorts(t)
	address := testkit.FreeAddress(t)
	asRoot, asNobody := "binds tcp="+address, "binds drop tcp="+address
	p := testkit.NewPlan(t, asRoot)
	m := testkit.Run(t, nil, p.Command())
	m.WaitServing(1)
	for _, line := range []string{asNobody, asRoot, asNobody, asNobody} {
		p.Set(t, line)
		m.UpgradeUnderLoadOf(1, address)
	}
	m.Stop()
}

// The address in the worker's memory is read once, and what was checked is what
// is bound.
func TestAddressThatChangesDuringBind(t *testing.T) {
	t.Parallel()
	address := testkit.FreeAddress(t)
	m := asNobody(t, nil, "flip=127.0.81.3,33081,81", "tcp="+address)
	testkit.Until(t, "it has bound thousands of times", func() error {
		if slices.ContainsFunc(testkit.TcpSockets(t), func(s testkit.TcpSocket) bool { return s.Local == "127.0.81.3:81" }) {
			t.Fatal("somebody listens on the forbidden port")
		}
		return testkit.AtLeast(m.Logged(func(e testkit.Entry) bool { return strings.HasPrefix(e.Raw, "flipped ") }), 1)
	})
	var held, refused, wrong int
	said := m.Said(1, "flipped")
	if _, err := fmt.Sscan(said, &held, &refused, &wrong); err != nil {
		t.Fatalf("%q: %v", said, err)
	}
	if wrong != 0 || held == 0 || refused == 0 {
		t.Errorf("it got the port that it may have %d times, another one %d times, none %d times", held, wrong, refused)
	}
	m.WaitServing(1)
	m.Upgrade()
	testkit.AnsweredBy(t, address, 2)
	m.Stop()
}

// A worker cannot make the master hold sockets without end, nor keep it from
// answering others.
func TestWorkerThatBindsThousands(t *testing.T) {
	t.Parallel()
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil || limit.Max < 12000 {
		testkit.Skip(t, "it would run out of descriptors first")
	}
	address, control := testkit.FreeAddress(t), filepath.Join(t.TempDir(), "c")
	p := testkit.NewPlan(t, "binds tcp="+address+" many=127.0.81.6,10000")
	m := testkit.Run(t, []string{"--control", control}, p.Command())
	var bound int
	var errno string
	said := m.Said(1, "listens")
	if _, err := fmt.Sscan(said, &bound, &errno); err != nil {
		t.Fatalf("%q: %v", said, err)
	}
	if errno != "ENOBUFS" || bound < 64 {
		t.Errorf("after %d sockets the worker got %s, want ENOBUFS", bound, errno)
	}
	testkit.Answers(t, "tcp", address)
	if got := testkit.StatusOf(t, control).PID; got != m.Pid() {
		t.Errorf("status tells of pid %d, want %d", got, m.Pid())
	}
	m.Stop()
}

// Name lookups do not need the master: they pass while it lives, and go on when
// it is gone.
func TestNameLookups(t *testing.T) {
	t.Parallel()
	address := testkit.FreeAddress(t)
	m := testkit.Binds(t, nil, "tcp="+address)
	m.WaitServing(1)
	looksUp := func(when string) {
		t.Helper()
		for range 5 {
			if response, body, err := testkit.Get("tcp", address, "/lookup"); err != nil || response.StatusCode != 200 {
				t.Fatalf("a lookup %s: %v %s", when, err, body)
			}
		}
	}
	looksUp("while the master lives")
	m.Cmd.Process.Kill()
	<-m.Exited
	looksUp("after the master's death")
}

func TestInterceptedWorkersOutliveTheMaster(t *testing.T) {
	t.Parallel()
	address := testkit.FreeAddress(t)
	m := testkit.Binds(t, []string{"-n", "2"}, "tcp="+address)
	m.WaitServing(1)
	m.Upgrade()
	var kids []int
	testkit.Until(t, "two workers are left", func() error {
		if kids = testkit.Children(m.Pid()); len(kids) != 2 {
			return errors.New(testkit.Describe(kids))
		}
		return nil
	})
	m.Cmd.Process.Kill()
	<-m.Exited
	clients := testkit.Traffic(t, load.Config{Address: address})
	testkit.Flowing(t, clients)
	testkit.Lossless(t, clients)
	for _, pid := range kids {
		if !testkit.Alive(pid) {
			t.Errorf("worker %d has gone with the master", pid)
		}
	}
}

// TERM at each moment: the exit code is 0, nothing is left, and the port is
// free.
func TestStopOfInterceptedWorkersAtEveryMoment(t *testing.T) {
	tests := []struct {
		name   string
		moment func(m *testkit.Master, door testkit.Gate)
	}{
		{"before it binds", func(m *testkit.Master, _ testkit.Gate) { m.Said(1, "waits") }},
		{"as soon as it has bound", func(m *testkit.Master, door testkit.Gate) { door.Pass(m.T); m.BoundBy(1, 1) }},
		{"it serves", func(m *testkit.Master, door testkit.Gate) { door.Pass(m.T); m.WaitServing(1) }},
		{"the next one has not bound", func(m *testkit.Master, door testkit.Gate) {
			door.Pass(m.T)
			m.WaitServing(1)
			m.Signal(syscall.SIGHUP)
			m.Said(2, "waits")
		}},
		{"the next one has just bound", func(m *testkit.Master, door testkit.Gate) {
			door.Pass(m.T)
			m.WaitServing(1)
			door.Pass(m.T)
			m.Signal(syscall.SIGHUP)
			m.BoundBy(2, 1)
		}},
		{"the next one serves", func(m *testkit.Master, door testkit.Gate) {
			door.Pass(m.T)
			m.WaitServing(1)
			door.Pass(m.T)
			m.Upgrade()
		}},
		{"its replacement has not bound", func(m *testkit.Master, door testkit.Gate) {
			door.Pass(m.T)
			pid := m.WaitServing(1).PID
			mark := m.Mark()
			testkit.KillProcess(pid)
			m.WaitLog(mark, "the replacement waits", func(e testkit.Entry) bool { return strings.HasPrefix(e.Raw, "waits ") })
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			address, door := testkit.FreeAddress(t), testkit.NewGate(t)
			m := testkit.Binds(t, []string{"--restart-delay", "10ms..50ms"}, door.Step(), "tcp="+address)
			test.moment(m, door)
			m.Stop()
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
	address, control := testkit.FreeAddress(t), filepath.Join(t.TempDir(), "c")
	m := testkit.Binds(t, []string{"--control", control}, "tcp="+address)
	m.WaitServing(1)
	clients := testkit.Traffic(t, load.Config{Address: address, Clients: 4})
	testkit.Flowing(t, clients)
	if code, out := testkit.Client(t, "stop", "--control", control); code != 0 {
		t.Errorf("exit code %d: %s", code, out)
	}
	m.ExitsWith(0)
	report := clients.Stop()
	if total := report.Total(); total.Failures() != total.Failed[load.Refused] {
		t.Errorf("clients were not only refused: %v", report)
	}
	if _, err := net.Dial("tcp", address); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("after the end: %v, want refused", err)
	}
}
