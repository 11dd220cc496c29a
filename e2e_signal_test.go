//go:build linux

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Every row of the table of signals, and the moments at which they are
// awkward.

func TestStopDrains(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run(unix.SignalName(sig), func(t *testing.T) {
			t.Parallel()
			for _, name := range []string{"graceful", "plain"} {
				address := freeAddress(t)
				m := run(t, []string{"-l", address}, worker(name))
				m.waitServing(1)
				held := hold(t, address, "/?sleep=1s")
				m.signal(sig)
				if err := held.finish(); err != nil {
					t.Errorf("%s: a request in hand was cut: %v", name, err)
				}
				m.exitsWith(0)
			}
		})
	}
}

// What waits in the queue when the stop begins is served; who comes later is
// refused and not left hanging.
func TestStopServesTheQueueAndRefusesLaterClients(t *testing.T) {
	t.Parallel()
	address := freeAddress(t)
	m := run(t, []string{"-l", address}, worker("graceful"))
	pid := m.waitServing(1).PID
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	queued := make([]heldRequest, 20)
	for i := range queued {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		queued[i] = heldRequest{conn}
	}
	mark := m.mark()
	m.signal(syscall.SIGTERM)
	m.waitLog(mark, "stopping", phase("stopping"))
	if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	for i, request := range queued {
		if err := request.finish(); err != nil {
			t.Errorf("queued request %d: %v", i, err)
		}
	}
	m.exitsWith(0)
	if conn, err := net.DialTimeout("tcp", address, time.Second); err == nil {
		conn.Close()
		t.Error("still accepts after the stop")
	}
}

func TestClientsDuringTheStopAreRefusedSoon(t *testing.T) {
	t.Parallel()
	address := freeAddress(t)
	m := run(t, []string{"-l", address}, worker("graceful"))
	m.waitServing(1)
	held := hold(t, address, "/?sleep=8s")
	mark := m.mark()
	m.signal(syscall.SIGTERM)
	m.waitLog(mark, "the worker drains", reaches(1, "draining"))
	// Turned away at first, then refused: the request in hand is still made
	// an answer for.
	conn, err := net.DialTimeout("tcp", address, patience)
	if err == nil {
		conn.Close()
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a late client heard %v, want a refusal", err)
	}
	if !m.running() {
		t.Error("the late client was not refused before the master was gone")
	}
	if err := held.finish(); err != nil {
		t.Errorf("the request in hand was cut: %v", err)
	}
	m.exitsWith(0)
}

func TestSecondStopEndsAtOnce(t *testing.T) {
	for _, second := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT} {
		t.Run(unix.SignalName(second), func(t *testing.T) {
			t.Parallel()
			address := freeAddress(t)
			m := run(t, []string{"-l", address}, worker("stubborn"))
			m.waitServing(1)
			mark := m.mark()
			m.signal(syscall.SIGTERM)
			m.waitLog(mark, "stopping", phase("stopping"))
			m.signal(second)
			m.waitFor(3 * time.Second)
			m.nothingLeft()
		})
	}
}

func TestQuitStopsAtOnce(t *testing.T) {
	t.Parallel()
	address := freeAddress(t)
	m := run(t, []string{"-l", address}, worker("stubborn"))
	m.waitServing(1)
	hold(t, address, "/?sleep=1m")
	m.signal(syscall.SIGQUIT)
	if code := m.waitFor(3 * time.Second); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	m.nothingLeft()
}

func TestUSR2IsAnsweredWithALogLine(t *testing.T) {
	t.Parallel()
	address := freeAddress(t)
	m := run(t, []string{"-l", address}, worker("graceful"))
	m.waitServing(1)
	mark := m.mark()
	m.signal(syscall.SIGUSR2)
	m.waitLog(mark, "a line about USR2", func(e entry) bool { return strings.Contains(e.Raw, "USR2") })
	answeredBy(t, address, 1)
	m.stop()
}

func TestSignalsArePassedOn(t *testing.T) {
	t.Parallel()
	address := freeAddress(t)
	m := run(t, []string{"-l", address, "--workers", "2"}, worker("graceful"))
	m.waitServing(1)
	m.signal(syscall.SIGUSR1)
	m.signal(syscall.SIGWINCH)
	until(t, "both workers have seen both signals", func() error {
		seen := map[string]string{}
		for range 40 {
			response, body, err := get("tcp", address, "/signals")
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
		return atLeast(len(seen), 2)
	})
	m.stop()
}

// A signal that is the worker's drain signal would make it leave.
func TestTheDrainSignalIsNotPassedOn(t *testing.T) {
	t.Parallel()
	address := freeAddress(t)
	m := run(t, []string{"-l", address, "--drain-signal", "WINCH", "--drain-timeout", "300ms"}, worker("graceful"))
	m.waitServing(1)
	m.signal(syscall.SIGWINCH)
	m.signal(syscall.SIGUSR1)
	until(t, "USR1 has come through", func() error {
		_, body, err := get("tcp", address, "/signals")
		if err == nil && !strings.Contains(body, "SIGUSR1") {
			err = fmt.Errorf("seen: %s", body)
		}
		return err
	})
	if _, body, _ := get("tcp", address, "/signals"); strings.Contains(body, "SIGWINCH") {
		t.Errorf("the worker saw %s", body)
	}
	m.stop()
}

func TestHangupStaysIgnoredUnderNohup(t *testing.T) {
	t.Parallel()
	address := freeAddress(t)
	nohup := []string{"/bin/sh", "-c", `trap "" HUP; exec "$@"`, "sh"}
	args := append([]string{"run", "-l", address, "--"}, worker("graceful")...)
	m := launch{wrap: nohup, args: args}.start(t)
	m.waitServing(1)
	mark := m.mark()
	m.signal(syscall.SIGHUP)
	m.signal(syscall.SIGUSR2) // its line comes after whatever HUP would have done
	m.waitLog(mark, "a line about USR2", func(e entry) bool { return strings.Contains(e.Raw, "USR2") })
	answeredBy(t, address, 1)
	if n := m.logged(phase("upgrading")); n != 0 {
		t.Error("HUP was not ignored")
	}
	m.stop()
}

// Workers start with no signal blocked or ignored, whatever the master does
// with its own.
func TestWorkersStartWithCleanSignals(t *testing.T) {
	t.Parallel()
	address := freeAddress(t)
	m := run(t, []string{"-l", address}, []string{"/bin/sh", "-c",
		"exec " + strings.Join(worker("graceful"), " ")})
	m.waitServing(1)
	_, body, err := get("tcp", address, "/self")
	if err != nil {
		t.Fatal(err)
	}
	var s self
	if err := json.Unmarshal([]byte(body), &s); err != nil {
		t.Fatal(err)
	}
	const none = "0000000000000000"
	if s.Blocked != none || s.Ignor != none {
		t.Errorf("blocked %s, ignored %s", s.Blocked, s.Ignor)
	}
	m.stop()
}

// A signal in the first moment of the master's life, before a worker runs.
func TestSignalsBeforeTheFirstWorkerRuns(t *testing.T) {
	for _, test := range []struct {
		sig  syscall.Signal
		then func(*master, string)
	}{
		{syscall.SIGTERM, func(m *master, _ string) { m.exitsWith(0) }},
		{syscall.SIGQUIT, func(m *master, _ string) { m.exitsWith(0) }},
		{syscall.SIGHUP, func(m *master, address string) { answers(m.t, "tcp", address); m.stop() }},
		{syscall.SIGUSR1, func(m *master, address string) { answers(m.t, "tcp", address); m.stop() }},
	} {
		t.Run(unix.SignalName(test.sig), func(t *testing.T) {
			t.Parallel()
			address := freeAddress(t)
			m := run(t, []string{"-l", address}, worker("graceful"))
			caughtBy(t, m.pid(), test.sig)
			m.signal(test.sig)
			test.then(m, address)
		})
	}
}

// caughtBy waits until the process has a handler of its own for a signal; Go's
// runtime installs most before main begins.
func caughtBy(t *testing.T, pid int, sig syscall.Signal) {
	t.Helper()
	until(t, "the master catches signals", func() error {
		set := statusField(pid, "SigCgt")
		var bits uint64
		fmt.Sscanf(set, "%x", &bits)
		if bits&(1<<(sig-1)) == 0 {
			return fmt.Errorf("caught: %s", set)
		}
		return nil
	})
	// The runtime's handlers are there from its start: what tells moult's
	// own apart is that its first socket listens.
	until(t, "the master holds its socket", func() error {
		for _, target := range descriptors(pid) {
			if strings.HasPrefix(target, "socket:") {
				return nil
			}
		}
		return fmt.Errorf("descriptors %v", sortedTargets(pid))
	})
}

func TestOneWorkerMoreAndOneFewer(t *testing.T) {
	t.Parallel()
	address := freeAddress(t)
	m := run(t, []string{"-l", address}, worker("graceful"))
	m.waitServing(1)
	count := func(want int) {
		t.Helper()
		until(t, fmt.Sprintf("%d workers", want), func() error {
			if kids := children(m.pid()); len(kids) != want {
				return fmt.Errorf("workers: %s", describe(kids))
			}
			return nil
		})
	}
	count(1)
	m.signal(syscall.SIGTTIN)
	count(2)
	mark := m.mark()
	m.signal(syscall.SIGTTOU)
	count(1)
	m.waitLog(mark, "one is gone", func(e entry) bool { return e.To == "gone" })
	answeredBy(t, address, 1)
	m.stop()
}

// The worker's output is its own.
func TestWorkerOutputIsUntouched(t *testing.T) {
	t.Parallel()
	address := freeAddress(t)
	var out bytes.Buffer
	command := []string{"/bin/sh", "-c", `echo to stdout; echo to stderr >&2; cat; exec "$@"`, "sh"}
	args := append([]string{"run", "-l", address, "--"}, append(command, worker("graceful")...)...)
	m := launch{args: args}.startWith(t, &out)
	m.waitServing(1)
	m.waitLog(0, "the worker's own line", func(e entry) bool { return e.Raw == "to stderr" })
	m.stop()
	if out.String() != "to stdout\n" {
		t.Errorf("stdout: %q", out.String())
	}
}

func TestLogIsOneObjectPerTransition(t *testing.T) {
	t.Parallel()
	address := freeAddress(t)
	m := run(t, []string{"-l", address, "--name", "web"}, worker("graceful"))
	m.waitServing(1)
	m.upgrade()
	m.waitState(1, "gone")
	m.stop()
	m.mu.Lock()
	defer m.mu.Unlock()
	var path []string
	for _, e := range m.entries {
		if e.Level == "" || e.Message == "" || e.Name != "web" {
			t.Errorf("not a log line of master web: %s", e.Raw)
		}
		if !e.isPhase() && e.Generation == 1 && e.To != "" {
			path = append(path, e.To)
		}
	}
	for _, state := range []string{"starting", "serving", "draining", "gone"} {
		if n := len(slices.DeleteFunc(slices.Clone(path), func(s string) bool { return s != state })); n != 1 {
			t.Errorf("generation 1 came to %s %d times: %v", state, n, path)
		}
	}
}
