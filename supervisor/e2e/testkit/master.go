//go:build linux

package testkit

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// Entry is one line of the master's stderr. Of a line that is not JSON (a
// worker's own) only Raw is set.
type Entry struct {
	Level      string
	Message    string
	Name       string
	Generation int
	PID        int
	From, To   string
	Reason     string
	Took       string
	Raw        string `json:"-"`
}

// Master is a running moult. Where the test does not end it otherwise, it is
// stopped when the test ends, and that must go well: see Stop.
type Master struct {
	Address string // its place {a}

	t      testing.TB
	cmd    *exec.Cmd
	wrap   []string
	token  string
	places map[string]string
	plan   string        // the file
	gate   *os.File      // the place {gate}
	exited chan struct{} // closed once code is set

	mu      sync.Mutex
	entries []Entry
	news    chan struct{} // closed and replaced with each entry
	code    int
}

var tokens atomic.Int64

func newToken() string { return fmt.Sprintf("%d-%d", os.Getpid(), tokens.Add(1)) }

func (m *Master) follow(stderr *os.File) {
	lines := bufio.NewScanner(stderr)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var e Entry
		if json.Unmarshal(lines.Bytes(), &e) != nil {
			e = Entry{}
		}
		e.Raw = lines.Text()
		m.mu.Lock()
		m.entries = append(m.entries, e)
		close(m.news)
		m.news = make(chan struct{})
		m.mu.Unlock()
	}
}

func (m *Master) await() {
	m.cmd.Wait()
	status := m.cmd.ProcessState.Sys().(syscall.WaitStatus)
	m.code = status.ExitStatus()
	if status.Signaled() {
		m.code = 128 + int(status.Signal())
	}
	close(m.exited)
}

// cleanUp stops the master, or ends what a failed test has left of it: the
// master, and by the token what it started.
func (m *Master) cleanUp() {
	defer os.Remove(m.control())
	defer func() {
		m.Kill()
		for _, pid := range processesWith(m.token) {
			KillProcess(pid)
		}
		if m.t.Failed() {
			m.t.Logf("log of the master (pid %d, exit code %d):\n%s", m.PID(), m.code, m.Log())
		}
	}()
	if m.Running() && !m.t.Failed() {
		m.Stop()
	}
}

// Kill ends the master and nothing else.
func (m *Master) Kill() {
	m.cmd.Process.Kill()
	<-m.exited
}

func (m *Master) PID() int { return m.cmd.Process.Pid }

func (m *Master) Running() bool {
	select {
	case <-m.exited:
		return false
	default:
		return true
	}
}

// Log is the end of what was logged.
func (m *Master) Log() string {
	all := m.Entries(0)
	var lines []string
	for _, e := range all[max(0, len(all)-200):] {
		lines = append(lines, e.Raw)
	}
	return strings.Join(lines, "\n")
}

// Mark is the number of log lines so far, for waits that only look at later
// ones.
func (m *Master) Mark() int { return len(m.Entries(0)) }

// Entries are the log lines so far from mark on.
func (m *Master) Entries(mark int) []Entry {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clip(m.entries[mark:])
}

// WaitLog returns the first line from mark on that matches.
func (m *Master) WaitLog(mark int, what string, matches func(Entry) bool) Entry {
	m.t.Helper()
	return m.WaitLogFor(patience, mark, what, matches)
}

func (m *Master) WaitLogFor(limit time.Duration, mark int, what string, matches func(Entry) bool) Entry {
	m.t.Helper()
	deadline := time.After(limit)
	for {
		m.mu.Lock()
		entries, news := m.entries, m.news
		m.mu.Unlock()
		for ; mark < len(entries); mark++ {
			if matches(entries[mark]) {
				return entries[mark]
			}
		}
		select {
		case <-news:
		case <-deadline:
			m.t.Fatalf("no log line within %v: %s", limit, what)
		}
	}
}

// Logged counts the matching lines so far.
func (m *Master) Logged(matches func(Entry) bool) (n int) {
	for _, e := range m.Entries(0) {
		if matches(e) {
			n++
		}
	}
	return n
}

// IsPhase tells a line about the master itself from one about a worker.
func (e Entry) IsPhase() bool { return e.PID == 0 && e.To != "" }

// Reaches matches the line of a worker that comes to a state.
func Reaches(generation int, state string) func(Entry) bool {
	return func(e Entry) bool { return !e.IsPhase() && e.Generation == generation && e.To == state }
}

// Phase matches the line of the master that comes to a state.
func Phase(to string) func(Entry) bool {
	return func(e Entry) bool { return e.IsPhase() && e.To == to }
}

// Over matches the line that ends an upgrade: the master serves, with the
// generation that it serves with from then on.
func Over(generation int) func(Entry) bool {
	return func(e Entry) bool { return Phase("serving")(e) && e.Generation == generation }
}

// Replaced matches the line of any worker that serves from now on.
func Replaced(e Entry) bool { return !e.IsPhase() && e.To == "serving" }

// Says matches a worker's own line that begins with the words.
func Says(words string) func(Entry) bool {
	return func(e Entry) bool { return e.Level == "" && strings.HasPrefix(e.Raw, words) }
}

// Mentions matches a line of the master's that has all of the words.
func Mentions(words ...string) func(Entry) bool {
	return func(e Entry) bool {
		for _, word := range words {
			if e.Level == "" || !strings.Contains(e.Raw, word) {
				return false
			}
		}
		return true
	}
}

// failure matches the line that says why an upgrade failed.
func failure(e Entry) bool {
	return (e.Level == "warn" || e.Level == "error") && e.Reason != "" && e.PID == 0
}

// WaitState waits until a worker of the generation has come to a state.
func (m *Master) WaitState(generation int, state string) Entry {
	m.t.Helper()
	return m.WaitLog(0, fmt.Sprintf("generation %d to %s", generation, state), Reaches(generation, state))
}

// WaitServing waits until the generation serves for good, and returns the line
// of its first worker.
func (m *Master) WaitServing(generation int) Entry {
	m.t.Helper()
	m.WaitLog(0, fmt.Sprintf("generation %d serves", generation), Over(generation))
	return m.WaitState(generation, "serving")
}

// Serving waits until the first generation serves.
func (m *Master) Serving() *Master {
	m.t.Helper()
	m.WaitServing(1)
	return m
}

// WaitReplaced waits until a worker serves since mark, and returns its pid.
func (m *Master) WaitReplaced(mark int) int {
	m.t.Helper()
	return m.WaitLog(mark, "the replacement serves", Replaced).PID
}

// Generation is the youngest that has served: one that was ready may have been
// turned away still.
func (m *Master) Generation() (youngest int) {
	for _, e := range m.Entries(0) {
		if Phase("serving")(e) {
			youngest = max(youngest, e.Generation)
		}
	}
	return youngest
}

// Hangup asks for an upgrade.
func (m *Master) Hangup() {
	m.t.Helper()
	m.Signal(syscall.SIGHUP)
}

// Upgrade asks for an upgrade and waits until it is over; the old generation
// may still drain then.
func (m *Master) Upgrade() {
	m.t.Helper()
	mark, next := m.Mark(), m.Generation()+1
	m.Signal(syscall.SIGHUP)
	m.WaitLog(mark, fmt.Sprintf("the upgrade to generation %d is over", next), Over(next))
}

// Retire waits until the generation before the one that serves is gone.
func (m *Master) Retire() {
	m.t.Helper()
	m.WaitState(m.Generation()-1, "gone")
}

// UpgradeFails asks for an upgrade and returns the line that says why it failed.
// Each of the words must be in one line about it.
func (m *Master) UpgradeFails(words ...string) Entry {
	m.t.Helper()
	mark := m.Mark()
	m.Signal(syscall.SIGHUP)
	why := m.WaitLog(mark, "why the upgrade failed", failure)
	if len(words) > 0 {
		m.WaitLog(mark, fmt.Sprintf("a line with %q", words), Mentions(words...))
	}
	return why
}

func (m *Master) Signal(sig syscall.Signal) {
	m.t.Helper()
	if err := m.cmd.Process.Signal(sig); err != nil {
		m.t.Fatalf("cannot send %v to the master: %v", sig, err)
	}
}

// Wait returns the exit code.
func (m *Master) Wait() int {
	m.t.Helper()
	return m.WaitFor(patience)
}

func (m *Master) WaitFor(limit time.Duration) int {
	m.t.Helper()
	select {
	case <-m.exited:
		return m.code
	case <-time.After(limit):
		m.t.Fatalf("the master still runs after %v", limit)
		return -1
	}
}

// Stop ends the master by TERM and checks the promise that every process ends.
func (m *Master) Stop() {
	m.t.Helper()
	m.Signal(syscall.SIGTERM)
	m.ExitsWith(0)
}

func (m *Master) ExitsWith(code int) {
	m.t.Helper()
	if got := m.Wait(); got != code {
		m.t.Errorf("exit code %d, want %d", got, code)
	}
	m.NothingLeft()
}

func (m *Master) NothingLeft() {
	m.t.Helper()
	Until(m.t, "nothing of the master's is left running", func() error {
		if pids := processesWith(m.token); len(pids) > 0 {
			return fmt.Errorf("still running: %s", Describe(pids))
		}
		return nil
	})
}

// Explains checks that a start failed, soon, with a log or a line of another
// moult that has all of the words. The exit code -1 stands for any but 0.
func (m *Master) Explains(code int, words ...string) {
	m.t.Helper()
	began := time.Now()
	if got := m.Wait(); got != code && (code >= 0 || got == 0) {
		m.t.Errorf("exit code %d, want %d", got, code)
	}
	m.NothingLeft()
	if took := time.Since(began); took > 10*time.Second {
		m.t.Errorf("it took %v", took)
	}
	Until(m.t, "the reason has been read", func() error {
		text := strings.ToLower(m.Log())
		for _, word := range words {
			if !strings.Contains(text, strings.ToLower(word)) {
				return fmt.Errorf("nothing is said about %q", word)
			}
		}
		return nil
	})
}

// Said returns what the first worker of a generation that said so added, once
// one has.
func (m *Master) Said(generation int, what string) string {
	m.t.Helper()
	prefix := fmt.Sprintf("%s %d", what, generation)
	line := m.WaitLog(0, "a worker says "+prefix, func(e Entry) bool { return strings.HasPrefix(e.Raw+" ", prefix+" ") })
	return strings.TrimSpace(strings.TrimPrefix(line.Raw, prefix))
}

// BoundBy waits until a generation has bound n addresses, and returns them in
// their order.
func (m *Master) BoundBy(generation, n int) (addresses []string) {
	m.t.Helper()
	Until(m.t, fmt.Sprintf("generation %d has bound %d addresses", generation, n), func() error {
		addresses = nil
		for _, e := range m.Entries(0) {
			if address, found := strings.CutPrefix(e.Raw, fmt.Sprintf("bound %d ", generation)); found {
				addresses = append(addresses, address)
			}
		}
		return AtLeast(len(addresses), n)
	})
	return addresses
}
