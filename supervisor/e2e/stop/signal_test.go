//go:build linux

package stop

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moult/moult/supervisor/e2e/testkit"
	"golang.org/x/sys/unix"
)

// As PID 1 of a namespace of its own, the master reaps what is orphaned onto
// it, and its end does not cut a generation that still drains.
func TestAsPID1(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root may make a PID namespace")
	}
	t.Parallel()
	unshare := testkit.RequireProgram(t, "unshare")
	address := testkit.FreeAddress(t)
	args := append([]string{"run", "-l", address, "--"}, testkit.WorkerCommand("orphans", "n=20")...)
	m := testkit.Launch{
		Wrap: []string{unshare, "--pid", "--fork", "--mount-proc", "--kill-child"}, Args: args,
	}.Start(t)
	// Outside, the pid that was started is unshare's; the master is its child.
	testkit.Until(t, "generation 1 answers", func() error { return testkit.AtLeast(testkit.GenerationAt("tcp", address), 1) })
	inside := testkit.Children(m.Pid())
	if len(inside) != 1 {
		t.Fatalf("children of unshare: %s", testkit.Describe(inside))
	}
	pid := inside[0]
	testkit.Until(t, "no zombie and one child", func() error {
		if kids := testkit.Children(pid); len(kids) != 1 || testkit.Zombies(pid) != 0 {
			return os.ErrDeadlineExceeded
		}
		return nil
	})
	held := testkit.Hold(t, address, "/?sleep=2s")
	mark := m.Mark()
	syscall.Kill(pid, syscall.SIGHUP)
	m.WaitLog(mark, "upgraded", testkit.Over(2))
	syscall.Kill(pid, syscall.SIGTERM)
	if err := held.Finish(); err != nil {
		t.Errorf("a generation that still drained was cut: %v", err)
	}
	m.ExitsWith(0)
}

// Every row of the table of signals, and the moments at which they are
// awkward.

func TestStopDrains(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run(unix.SignalName(sig), func(t *testing.T) {
			t.Parallel()
			for _, name := range []string{"graceful", "plain"} {
				address := testkit.FreeAddress(t)
				m := testkit.Run(t, []string{"-l", address}, testkit.WorkerCommand(name))
				m.WaitServing(1)
				held := testkit.Hold(t, address, "/?sleep=1s")
				m.Signal(sig)
				if err := held.Finish(); err != nil {
					t.Errorf("%s: a request in hand was cut: %v", name, err)
				}
				m.ExitsWith(0)
			}
		})
	}
}

// What waits in the queue when the stop begins is served; who comes later is
// refused and not left hanging.
func TestStopServesTheQueueAndRefusesLaterClients(t *testing.T) {
	t.Parallel()
	address := testkit.FreeAddress(t)
	m := testkit.Run(t, []string{"-l", address}, testkit.WorkerCommand("graceful"))
	pid := m.WaitServing(1).PID
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	queued := testkit.SendTo(t, address, 20)
	mark := m.Mark()
	m.Signal(syscall.SIGTERM)
	m.WaitLog(mark, "stopping", testkit.Phase("stopping"))
	if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	for i, request := range queued {
		if err := request.Finish(); err != nil {
			t.Errorf("queued request %d: %v", i, err)
		}
	}
	m.ExitsWith(0)
	if conn, err := net.DialTimeout("tcp", address, time.Second); err == nil {
		conn.Close()
		t.Error("still accepts after the stop")
	}
}

func TestClientsDuringTheStopAreRefusedSoon(t *testing.T) {
	t.Parallel()
	address := testkit.FreeAddress(t)
	m := testkit.Run(t, []string{"-l", address}, testkit.WorkerCommand("graceful"))
	m.WaitServing(1)
	held := testkit.Hold(t, address, "/?sleep=8s")
	mark := m.Mark()
	m.Signal(syscall.SIGTERM)
	m.WaitLog(mark, "the worker drains", testkit.Reaches(1, "draining"))
	// Turned away at first, then refused: the request in hand is still made
	// an answer for.
	conn, err := net.DialTimeout("tcp", address, testkit.Patience)
	if err == nil {
		conn.Close()
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a late client heard %v, want a refusal", err)
	}
	if !m.Running() {
		t.Error("the late client was not refused before the master was gone")
	}
	if err := held.Finish(); err != nil {
		t.Errorf("the request in hand was cut: %v", err)
	}
	m.ExitsWith(0)
}

func TestSecondStopEndsAtOnce(t *testing.T) {
	for _, second := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT} {
		t.Run(unix.SignalName(second), func(t *testing.T) {
			t.Parallel()
			address := testkit.FreeAddress(t)
			m := testkit.Run(t, []string{"-l", address}, testkit.WorkerCommand("stubborn"))
			m.WaitServing(1)
			mark := m.Mark()
			m.Signal(syscall.SIGTERM)
			m.WaitLog(mark, "stopping", testkit.Phase("stopping"))
			m.Signal(second)
			m.WaitFor(3 * time.Second)
			m.NothingLeft()
		})
	}
}

func TestQuitStopsAtOnce(t *testing.T) {
	t.Parallel()
	address := testkit.FreeAddress(t)
	m := testkit.Run(t, []string{"-l", address}, testkit.WorkerCommand("stubborn"))
	m.WaitServing(1)
	testkit.Hold(t, address, "/?sleep=1m")
	m.Signal(syscall.SIGQUIT)
	if code := m.WaitFor(3 * time.Second); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	m.NothingLeft()
}

func TestUSR2IsAnsweredWithALogLine(t *testing.T) {
	t.Parallel()
	address := testkit.FreeAddress(t)
	m := testkit.Run(t, []string{"-l", address}, testkit.WorkerCommand("graceful"))
	m.WaitServing(1)
	mark := m.Mark()
	m.Signal(syscall.SIGUSR2)
	m.WaitLog(mark, "a line about USR2", func(e testkit.Entry) bool { return strings.Contains(e.Raw, "USR2") })
	testkit.AnsweredBy(t, address, 1)
	m.Stop()
}

func TestSignalsArePassedOn(t *testing.T) {
	t.Parallel()
	address := testkit.FreeAddress(t)
	m := testkit.Run(t, []string{"-l", address, "--workers", "2"}, testkit.WorkerCommand("graceful"))
	m.WaitServing(1)
	m.Signal(syscall.SIGUSR1)
	m.Signal(syscall.SIGWINCH)
	testkit.Until(t, "both workers have seen both signals", func() error {
		seen := map[string]string{}
		for range 40 {
			response, body, err := testkit.Get("tcp", address, "/signals")
			if err != nil {
				return err
			}
			seen[response.Header.Get("Worker-Pid")] = body
		}
		for pid, signals := range seen {
			if !strings.Contains(signals, "SIGUSR1") || !strings.Contains(signals, "SIGWINCH") {
				return fmt.Errorf("worker %s saw %s", pid, signals)
			}
		}
		return testkit.AtLeast(len(seen), 2)
	})
	m.Stop()
}

// A signal that is the worker's drain signal would make it leave.
func TestTheDrainSignalIsNotPassedOn(t *testing.T) {
	t.Parallel()
	address := testkit.FreeAddress(t)
	m := testkit.Run(t, []string{"-l", address, "--drain-signal", "WINCH", "--drain-timeout", "300ms"}, testkit.WorkerCommand("graceful"))
	m.WaitServing(1)
	m.Signal(syscall.SIGWINCH)
	m.Signal(syscall.SIGUSR1)
	testkit.Until(t, "USR1 has come through", func() error {
		_, body, err := testkit.Get("tcp", address, "/signals")
		if err == nil && !strings.Contains(body, "SIGUSR1") {
			err = fmt.Errorf("seen: %s", body)
		}
		return err
	})
	if _, body, _ := testkit.Get("tcp", address, "/signals"); strings.Contains(body, "SIGWINCH") {
		t.Errorf("the worker saw %s", body)
	}
	m.Stop()
}

func TestHangupStaysIgnoredUnderNohup(t *testing.T) {
	t.Parallel()
	address := testkit.FreeAddress(t)
	nohup := []string{"/bin/sh", "-c", `trap "" HUP; exec "$@"`, "sh"}
	args := append([]string{"run", "-l", address, "--"}, testkit.WorkerCommand("graceful")...)
	m := testkit.Launch{Wrap: nohup, Args: args}.Start(t)
	m.WaitServing(1)
	mark := m.Mark()
	m.Signal(syscall.SIGHUP)
	m.Signal(syscall.SIGUSR2) // its line comes after whatever HUP would have done
	m.WaitLog(mark, "a line about USR2", func(e testkit.Entry) bool { return strings.Contains(e.Raw, "USR2") })
	testkit.AnsweredBy(t, address, 1)
	if n := m.Logged(testkit.Phase("upgrading")); n != 0 {
		t.Error("HUP was not ignored")
	}
	m.Stop()
}

// Workers start with no signal blocked or ignored, whatever the master does
// with its own.
func TestWorkersStartWithCleanSignals(t *testing.T) {
	t.Parallel()
	address := testkit.FreeAddress(t)
	m := testkit.Run(t, []string{"-l", address}, []string{"/bin/sh", "-c",
		"exec " + strings.Join(testkit.WorkerCommand("graceful"), " ")})
	m.WaitServing(1)
	_, body, err := testkit.Get("tcp", address, "/self")
	if err != nil {
		t.Fatal(err)
	}
	var s testkit.Self
	if err := json.Unmarshal([]byte(body), &s); err != nil {
		t.Fatal(err)
	}
	const none = "0000000000000000"
	if s.Blocked != none || s.Ignor != none {
		t.Errorf("blocked %s, ignored %s", s.Blocked, s.Ignor)
	}
	m.Stop()
}

// A signal in the first moment of the master's life, before a worker runs.
func TestSignalsBeforeTheFirstWorkerRuns(t *testing.T) {
	for _, test := range []struct {
		sig  syscall.Signal
		then func(*testkit.Master, string)
	}{
		{syscall.SIGTERM, func(m *testkit.Master, _ string) { m.ExitsWith(0) }},
		{syscall.SIGQUIT, func(m *testkit.Master, _ string) { m.ExitsWith(0) }},
		{syscall.SIGHUP, func(m *testkit.Master, address string) { testkit.Answers(m.T, "tcp", address); m.Stop() }},
		{syscall.SIGUSR1, func(m *testkit.Master, address string) { testkit.Answers(m.T, "tcp", address); m.Stop() }},
	} {
		t.Run(unix.SignalName(test.sig), func(t *testing.T) {
			t.Parallel()
			address := testkit.FreeAddress(t)
			m := testkit.Run(t, []string{"-l", address}, testkit.WorkerCommand("graceful"))
			caughtBy(t, m.Pid(), test.sig)
			m.Signal(test.sig)
			test.then(m, address)
		})
	}
}

// caughtBy waits until the process has a handler of its own for a signal; Go's
// runtime installs most before main begins.
func caughtBy(t *testing.T, pid int, sig syscall.Signal) {
	t.Helper()
	testkit.Until(t, "the master catches signals", func() error {
		set := testkit.StatusField(pid, "SigCgt")
		var bits uint64
		fmt.Sscanf(set, "%x", &bits)
		if bits&(1<<(sig-1)) == 0 {
			return fmt.Errorf("caught: %s", set)
		}
		return nil
	})
	// The runtime's handlers are there from its start: what tells moult's
	// own apart is that its first socket listens.
	testkit.Until(t, "the master holds its socket", func() error {
		for _, target := range testkit.Descriptors(pid) {
			if strings.HasPrefix(target, "socket:") {
				return nil
			}
		}
		return fmt.Errorf("descriptors %v", testkit.SortedTargets(pid))
	})
}

func TestOneWorkerMoreAndOneFewer(t *testing.T) {
	t.Parallel()
	address := testkit.FreeAddress(t)
	m := testkit.Run(t, []string{"-l", address}, testkit.WorkerCommand("graceful"))
	m.WaitServing(1)
	count := func(want int) {
		t.Helper()
		testkit.Until(t, fmt.Sprintf("%d workers", want), func() error {
			if kids := testkit.Children(m.Pid()); len(kids) != want {
				return fmt.Errorf("workers: %s", testkit.Describe(kids))
			}
			return nil
		})
	}
	count(1)
	m.Signal(syscall.SIGTTIN)
	count(2)
	mark := m.Mark()
	m.Signal(syscall.SIGTTOU)
	count(1)
	m.WaitLog(mark, "one is gone", func(e testkit.Entry) bool { return e.To == "gone" })
	testkit.AnsweredBy(t, address, 1)
	m.Stop()
}

// The worker's output is its own.
func TestWorkerOutputIsUntouched(t *testing.T) {
	t.Parallel()
	address := testkit.FreeAddress(t)
	var out bytes.Buffer
	command := []string{"/bin/sh", "-c", `echo to stdout; echo to stderr >&2; cat; exec "$@"`, "sh"}
	args := append([]string{"run", "-l", address, "--"}, append(command, testkit.WorkerCommand("graceful")...)...)
	m := testkit.Launch{Args: args}.StartWith(t, &out)
	m.WaitServing(1)
	m.WaitLog(0, "the worker's own line", func(e testkit.Entry) bool { return e.Raw == "to stderr" })
	m.Stop()
	if out.String() != "to stdout\n" {
		t.Errorf("stdout: %q", out.String())
	}
}

func TestLogIsOneObjectPerTransition(t *testing.T) {
	t.Parallel()
	address := testkit.FreeAddress(t)
	m := testkit.Run(t, []string{"-l", address, "--name", "web"}, testkit.WorkerCommand("graceful"))
	m.WaitServing(1)
	m.Upgrade()
	m.WaitState(1, "gone")
	m.Stop()
	m.Mu.Lock()
	defer m.Mu.Unlock()
	var path []string
	for _, e := range m.Entries {
		if e.Level == "" || e.Message == "" || e.Name != "web" {
			t.Errorf("not a log line of master web: %s", e.Raw)
		}
		if !e.IsPhase() && e.Generation == 1 && e.To != "" {
			path = append(path, e.To)
		}
	}
	for _, state := range []string{"starting", "serving", "draining", "gone"} {
		if n := len(slices.DeleteFunc(slices.Clone(path), func(s string) bool { return s != state })); n != 1 {
			t.Errorf("generation 1 came to %s %d times: %v", state, n, path)
		}
	}
}
