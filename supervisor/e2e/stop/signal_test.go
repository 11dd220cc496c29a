//go:build linux

package stop

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moult/moult/supervisor/e2e/testkit"
	"golang.org/x/sys/unix"
)

// Every row of the table of signals, and the moments at which they are
// awkward.

func TestStopDrains(t *testing.T) {
	t.Parallel()
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		for _, worker := range []string{"graceful", "plain"} {
			t.Run(unix.SignalName(sig)+" "+worker, func(t *testing.T) {
				t.Parallel()
				m := testkit.Listen(t, worker).Serving()
				held := m.Hold("/?sleep=1s")
				m.Signal(sig)
				testkit.Finish(t, "in hand at the stop", held)
				m.ExitsWith(0)
			})
		}
	}
}

// What waits in the queue when the stop begins is served; who comes later is
// refused and not left hanging.
func TestStopServesTheQueueAndRefusesLaterClients(t *testing.T) {
	t.Parallel()
	m := testkit.Listen(t, "graceful")
	pid := m.WaitServing(1).PID
	testkit.Freeze(t, pid)
	queue := testkit.Queue(t, m.Address, 20)
	mark := m.Mark()
	m.Signal(syscall.SIGTERM)
	m.WaitLog(mark, "stopping", testkit.Phase("stopping"))
	testkit.Thaw(t, pid)
	testkit.Finish(t, "in the queue at the stop", queue...)
	m.ExitsWith(0)
	if conn, err := net.DialTimeout("tcp", m.Address, time.Second); err == nil {
		conn.Close()
		t.Error("still accepts after the stop")
	}
}

func TestClientsDuringTheStopAreRefusedSoon(t *testing.T) {
	t.Parallel()
	m := testkit.Listen(t, "graceful").Serving()
	held := m.Hold("/?sleep=8s")
	m.Signal(syscall.SIGTERM)
	m.WaitState(1, "draining")
	// Turned away at first, then refused: the request in hand is still made
	// an answer for.
	conn, err := net.DialTimeout("tcp", m.Address, 20*time.Second)
	if err == nil {
		conn.Close()
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a late client heard %v, want a refusal", err)
	}
	if !m.Running() {
		t.Error("the late client was not refused before the master was gone")
	}
	testkit.Finish(t, "in hand", held)
	m.ExitsWith(0)
}

func TestSecondStopEndsAtOnce(t *testing.T) {
	t.Parallel()
	for _, second := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT} {
		t.Run(unix.SignalName(second), func(t *testing.T) {
			t.Parallel()
			m := testkit.Listen(t, "stubborn").Serving()
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
	m := testkit.Listen(t, "stubborn").Serving()
	m.Hold("/?sleep=1m")
	m.Signal(syscall.SIGQUIT)
	if code := m.WaitFor(3 * time.Second); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	m.NothingLeft()
}

func TestUSR2IsAnsweredWithALogLine(t *testing.T) {
	t.Parallel()
	m := testkit.Listen(t, "graceful").Serving()
	mark := m.Mark()
	m.Signal(syscall.SIGUSR2)
	m.WaitLog(mark, "a line about USR2", testkit.Mentions("USR2"))
	m.AnsweredBy(1)
}

func TestSignalsArePassedOn(t *testing.T) {
	t.Parallel()
	m := testkit.Listen(t, "graceful", "--workers", "2").Serving()
	m.Signal(syscall.SIGUSR1)
	m.Signal(syscall.SIGWINCH)
	testkit.Until(t, "both workers have seen both signals", func() error {
		seen := map[string]string{}
		for range 40 {
			response, body, err := testkit.Get("tcp", m.Address, "/signals")
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
}

// A signal that is the worker's drain signal would make it leave.
func TestTheDrainSignalIsNotPassedOn(t *testing.T) {
	t.Parallel()
	m := testkit.Listen(t, "graceful", "--drain-signal", "WINCH", "--drain-timeout", "300ms").Serving()
	m.Signal(syscall.SIGWINCH)
	m.Signal(syscall.SIGUSR1)
	var seen string
	testkit.Until(t, "USR1 has come through", func() error {
		if seen = testkit.MustGet(t, m.Address, "/signals"); !strings.Contains(seen, "SIGUSR1") {
			return errors.New("seen: " + seen)
		}
		return nil
	})
	if strings.Contains(seen, "SIGWINCH") {
		t.Errorf("the worker saw %s", seen)
	}
}

func TestHangupStaysIgnoredUnderNohup(t *testing.T) {
	t.Parallel()
	nohup := []string{"/bin/sh", "-c", `trap "" HUP; exec "$@"`, "sh"}
	m := testkit.Launch{Wrap: nohup}.Listen(t, "graceful").Serving()
	mark := m.Mark()
	m.Signal(syscall.SIGHUP)
	m.Signal(syscall.SIGUSR2) // its line comes after whatever HUP would have done
	m.WaitLog(mark, "a line about USR2", testkit.Mentions("USR2"))
	m.AnsweredBy(1)
	if n := m.Logged(testkit.Phase("upgrading")); n != 0 {
		t.Error("HUP was not ignored")
	}
}

// Workers start with no signal blocked or ignored, whatever the master does
// with its own.
func TestWorkersStartWithCleanSignals(t *testing.T) {
	t.Parallel()
	shell := []string{"/bin/sh", "-c", "exec " + strings.Join(testkit.Worker("graceful"), " ")}
	m := testkit.Run(t, []string{"-l", "{a}"}, shell).Serving()
	const none = "0000000000000000"
	if s := m.Self(); s.Blocked != none || s.Ignor != none {
		t.Errorf("blocked %s, ignored %s", s.Blocked, s.Ignor)
	}
}

// A signal in the first moment of the master's life, before a worker runs.
func TestSignalsBeforeTheFirstWorkerRuns(t *testing.T) {
	t.Parallel()
	for sig, serves := range map[syscall.Signal]bool{
		syscall.SIGTERM: false, syscall.SIGQUIT: false, syscall.SIGHUP: true, syscall.SIGUSR1: true,
	} {
		t.Run(unix.SignalName(sig), func(t *testing.T) {
			t.Parallel()
			m := testkit.Listen(t, "graceful")
			caughtBy(t, m.PID(), sig)
			m.Signal(sig)
			if serves {
				testkit.Answers(t, m.Address)
				m.Stop()
			} else {
				m.ExitsWith(0)
			}
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
	m := testkit.Listen(t, "graceful").Serving()
	count := func(want int) {
		t.Helper()
		testkit.Until(t, fmt.Sprintf("%d workers", want), func() error {
			if kids := testkit.Children(m.PID()); len(kids) != want {
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
	m.WaitLog(mark, "one is gone", testkit.Reaches(1, "gone"))
	m.AnsweredBy(1)
}

// The worker's output is its own.
func TestWorkerOutputIsUntouched(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	plan := "sh echo to stdout; echo to stderr >&2; cat; exec " + strings.Join(testkit.Worker("graceful"), " ")
	m := testkit.Launch{Stdout: &out}.Listen(t, plan).Serving()
	m.WaitLog(0, "the worker's own line", func(e testkit.Entry) bool { return e.Raw == "to stderr" })
	m.Stop()
	if out.String() != "to stdout\n" {
		t.Errorf("stdout: %q", out.String())
	}
}

func TestLogIsOneObjectPerTransition(t *testing.T) {
	t.Parallel()
	m := testkit.Listen(t, "graceful", "--name", "web").Serving()
	m.Upgrade()
	m.Retire()
	m.Stop()
	times := map[string]int{}
	for _, e := range m.Entries(0) {
		if e.Level == "" || e.Message == "" || e.Name != "web" {
			t.Errorf("not a log line of master web: %s", e.Raw)
		}
		if !e.IsPhase() && e.Generation == 1 {
			times[e.To]++
		}
	}
	for _, state := range []string{"starting", "serving", "draining", "gone"} {
		if times[state] != 1 {
			t.Errorf("generation 1 came to %s %d times", state, times[state])
		}
	}
}

// As PID 1 of a namespace of its own, the master reaps what is orphaned onto
// it, and its end does not cut a generation that still drains.
func TestAsPID1(t *testing.T) {
	testkit.RequireRoot(t, "make a PID namespace")
	t.Parallel()
	unshare := []string{testkit.RequireProgram(t, "unshare"), "--pid", "--fork", "--mount-proc", "--kill-child"}
	m := testkit.Launch{Wrap: unshare}.Listen(t, "orphans n=20")
	// Outside, the pid that was started is unshare's; the master is its child.
	testkit.Until(t, "generation 1 answers", func() error { return testkit.AtLeast(testkit.GenerationAt(m.Address), 1) })
	inside := testkit.Children(m.PID())
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
	held := m.Hold("/?sleep=2s")
	mark := m.Mark()
	testkit.OK(t, syscall.Kill(pid, syscall.SIGHUP))
	m.WaitLog(mark, "upgraded", testkit.Over(2))
	testkit.OK(t, syscall.Kill(pid, syscall.SIGTERM))
	testkit.Finish(t, "of a generation that still drained", held)
	m.ExitsWith(0)
}
