//go:build linux

package testkit

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// GrowsNot compares what the master holds after the first upgrades with what
// it holds after many more. Each group of sockets has spare members of its own.
func (m *Master) GrowsNot(upgrades, groups int) {
	m.T.Helper()
	many := func(n int) {
		for range n {
			m.Upgrade()
		}
		m.WaitState(m.Generation()-1, "gone")
		Settled(m.T, m)
	}
	many(5)
	before, threads := TakeStock(m.Pid()), StatusNumber(m.T, m.Pid(), "Threads")
	before.descriptors += (groups - 1) * spareDescriptors
	rss, _ := Memory(m.T, m.Pid())
	many(upgrades)
	m.BackTo(before)
	if now := StatusNumber(m.T, m.Pid(), "Threads"); now > threads+4 {
		m.T.Errorf("%d threads after %d upgrades, %d before", now, upgrades, threads)
	}
	now, _ := Memory(m.T, m.Pid())
	m.T.Logf("%d upgrades: resident %d → %d kB, %+v → %+v", upgrades, rss, now, before, TakeStock(m.Pid()))
	if now > rss+3072 {
		m.T.Errorf("resident memory grew from %d to %d kB over %d upgrades", rss, now, upgrades)
	}
}

// The tests of this file's kind start moult as a process of its own and look
// at it from outside only: what its server's clients see, what it logs, how it
// exits, and what /proc says. The test binary plays moult, by its real main,
// and every worker (e2e_worker_test.go).

// Plan is a file that says what the next worker shall be: a worker's name with
// its options, or "sh" with a command line.
type Plan string

func NewPlan(t testing.TB, content string) Plan {
	p := Plan(filepath.Join(t.TempDir(), "plan"))
	p.Set(t, content)
	return p
}

func (p Plan) Set(t testing.TB, content string) {
	t.Helper()
	temporary := string(p) + ".new"
	if err := os.WriteFile(temporary, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(temporary, string(p)); err != nil {
		t.Fatal(err)
	}
}

func (p Plan) Command() []string { return WorkerCommand("plan", string(p)) }

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

// Launch is how a master is started.
type Launch struct {
	Wrap  []string   // a command that executes the rest of its arguments
	Args  []string   // after "moult"
	Env   []string   // in addition to the test's
	Files []*os.File // descriptors from 3 on; stay the caller's
	Dir   string
	Exe   string // another moult than the test binary
	bare  bool   // do not ask for JSON lines
}

// Master is a running moult.
type Master struct {
	T      testing.TB
	Cmd    *exec.Cmd
	token  string
	Exited chan struct{} // closed once code is set

	Mu      sync.Mutex
	Entries []Entry
	news    chan struct{} // closed and replaced with each entry
	code    int
}

var tokens atomic.Int64

func NewToken() string { return fmt.Sprintf("%d-%d", os.Getpid(), tokens.Add(1)) }

// Run starts "moult run" with flags in front of the command.
func Run(t testing.TB, flags []string, command []string) *Master {
	t.Helper()
	args := append(append([]string{"run"}, flags...), "--")
	return Launch{Args: append(args, command...)}.Start(t)
}

func (l Launch) Start(t testing.TB) *Master {
	t.Helper()
	return l.StartWith(t, nil)
}

// StartWith copies what workers write to stdout.
func (l Launch) StartWith(t testing.TB, stdout io.Writer) *Master {
	t.Helper()
	m := &Master{
		T: t, Exited: make(chan struct{}), news: make(chan struct{}),
		token: NewToken(),
	}
	m.Cmd = l.command(m.token)
	m.Cmd.Stdout = stdout
	stderr, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	m.Cmd.Stderr = write
	if err := m.Cmd.Start(); err != nil {
		t.Fatal(err)
	}
	write.Close()
	go m.follow(stderr)
	go m.await()
	t.Cleanup(func() { m.cleanUp(); stderr.Close() })
	return m
}

// controlOf is short enough for a unix socket, wherever the test's folder is.
func controlOf(token string) string {
	return filepath.Join(os.TempDir(), "moult-test-"+token+".sock")
}

func (l Launch) command(token string) *exec.Cmd {
	line := append(slices.Clone(l.Wrap), Executable())
	if l.Exe != "" {
		line[len(line)-1] = l.Exe
	}
	cmd := exec.Command(line[0], append(line[1:], l.Args...)...)
	cmd.Dir = l.Dir
	cmd.ExtraFiles = l.Files
	cmd.Env = append(os.Environ(), TokenVariable+"="+token)
	if !l.bare {
		// A control socket of its own: in the default place masters of
		// one name look whether the others live, and so wake them.
		cmd.Env = append(cmd.Env, "MOULT_LOG_FORMAT=json", "MOULT_CONTROL="+controlOf(token))
	}
	cmd.Env = append(cmd.Env, l.Env...)
	// Out of the terminal's process group: its signals are meant for the test.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return cmd
}

func (m *Master) follow(stderr *os.File) {
	lines := bufio.NewScanner(stderr)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var e Entry
		if json.Unmarshal(lines.Bytes(), &e) != nil {
			e = Entry{}
		}
		e.Raw = lines.Text()
		m.Mu.Lock()
		m.Entries = append(m.Entries, e)
		close(m.news)
		m.news = make(chan struct{})
		m.Mu.Unlock()
	}
}

func (m *Master) await() {
	m.Cmd.Wait()
	status := m.Cmd.ProcessState.Sys().(syscall.WaitStatus)
	m.code = status.ExitStatus()
	if status.Signaled() {
		m.code = 128 + int(status.Signal())
	}
	close(m.Exited)
}

// cleanUp ends what the test left running: the master, and by the token what
// it started.
func (m *Master) cleanUp() {
	defer os.Remove(controlOf(m.token))
	if m.Running() {
		m.Cmd.Process.Kill()
		<-m.Exited
	}
	for _, pid := range processesWith(m.token) {
		KillProcess(pid)
	}
	if m.T.Failed() {
		m.T.Logf("log of the master (pid %d, exit code %d):\n%s", m.Pid(), m.code, m.Log())
	}
}

func (m *Master) Pid() int { return m.Cmd.Process.Pid }

func (m *Master) Running() bool {
	select {
	case <-m.Exited:
		return false
	default:
		return true
	}
}

func (m *Master) Log() string {
	m.Mu.Lock()
	defer m.Mu.Unlock()
	lines := make([]string, 0, len(m.Entries))
	for _, e := range m.Entries[max(0, len(m.Entries)-200):] {
		lines = append(lines, e.Raw)
	}
	return strings.Join(lines, "\n")
}

// Mark is the number of log lines so far, for waits that only look at later
// ones.
func (m *Master) Mark() int {
	m.Mu.Lock()
	defer m.Mu.Unlock()
	return len(m.Entries)
}

// WaitLog returns the first line from mark on that matches.
func (m *Master) WaitLog(mark int, what string, matches func(Entry) bool) Entry {
	m.T.Helper()
	return m.WaitLogFor(Patience, mark, what, matches)
}

func (m *Master) WaitLogFor(limit time.Duration, mark int, what string, matches func(Entry) bool) Entry {
	m.T.Helper()
	deadline := time.After(limit)
	for {
		m.Mu.Lock()
		entries, news := m.Entries, m.news
		m.Mu.Unlock()
		for ; mark < len(entries); mark++ {
			if matches(entries[mark]) {
				return entries[mark]
			}
		}
		select {
		case <-news:
		case <-deadline:
			m.T.Fatalf("no log line within %v: %s", limit, what)
		}
	}
}

// Logged counts the matching lines so far.
func (m *Master) Logged(matches func(Entry) bool) (n int) {
	m.Mu.Lock()
	defer m.Mu.Unlock()
	for _, e := range m.Entries {
		if matches(e) {
			n++
		}
	}
	return n
}

// IsPhase tells a line about the master itself from one about a worker.
func (e Entry) IsPhase() bool { return e.PID == 0 && e.To != "" }

func Reaches(generation int, state string) func(Entry) bool {
	return func(e Entry) bool { return !e.IsPhase() && e.Generation == generation && e.To == state }
}

func Phase(to string) func(Entry) bool {
	return func(e Entry) bool { return e.IsPhase() && e.To == to }
}

// Over matches the line that ends an upgrade: the master serves, with the
// generation that it serves with from then on.
func Over(generation int) func(Entry) bool {
	return func(e Entry) bool { return Phase("serving")(e) && e.Generation == generation }
}

// failure matches the line that says why an upgrade failed.
func failure(e Entry) bool {
	return (e.Level == "warn" || e.Level == "error") && e.Reason != "" && e.PID == 0
}

// WaitState waits until a worker of the generation has come to a state.
func (m *Master) WaitState(generation int, state string) Entry {
	m.T.Helper()
	return m.WaitLog(0, fmt.Sprintf("generation %d to %s", generation, state), Reaches(generation, state))
}

// WaitServing waits until the generation serves for good, and returns the line
// of its first worker.
func (m *Master) WaitServing(generation int) Entry {
	m.T.Helper()
	m.WaitLog(0, fmt.Sprintf("generation %d serves", generation), Over(generation))
	return m.WaitState(generation, "serving")
}

// Generation is the youngest that has served.
func (m *Master) Generation() (youngest int) {
	m.Mu.Lock()
	defer m.Mu.Unlock()
	for _, e := range m.Entries {
		if !e.IsPhase() && e.To == "serving" {
			youngest = max(youngest, e.Generation)
		}
	}
	return youngest
}

// Upgrade asks for an upgrade and waits until it is over; the old generation
// may still drain then.
func (m *Master) Upgrade() {
	m.T.Helper()
	mark, next := m.Mark(), m.Generation()+1
	m.Signal(syscall.SIGHUP)
	m.WaitLog(mark, fmt.Sprintf("the upgrade to generation %d is over", next), Over(next))
}

// UpgradeFails asks for an upgrade and returns the line that says why it
// failed.
func (m *Master) UpgradeFails() Entry {
	m.T.Helper()
	mark := m.Mark()
	m.Signal(syscall.SIGHUP)
	return m.WaitLog(mark, "why the upgrade failed", failure)
}

func (m *Master) Signal(sig syscall.Signal) {
	m.T.Helper()
	if err := m.Cmd.Process.Signal(sig); err != nil {
		m.T.Fatalf("cannot send %v to the master: %v", sig, err)
	}
}

// Wait returns the exit code.
func (m *Master) Wait() int {
	m.T.Helper()
	return m.WaitFor(Patience)
}

func (m *Master) WaitFor(limit time.Duration) int {
	m.T.Helper()
	select {
	case <-m.Exited:
		return m.code
	case <-time.After(limit):
		m.T.Fatalf("the master still runs after %v", limit)
		return -1
	}
}

// Stop ends the master by TERM and checks the promise that every process ends.
func (m *Master) Stop() {
	m.T.Helper()
	m.Signal(syscall.SIGTERM)
	m.ExitsWith(0)
}

func (m *Master) ExitsWith(code int) {
	m.T.Helper()
	if got := m.Wait(); got != code {
		m.T.Errorf("exit code %d, want %d", got, code)
	}
	m.NothingLeft()
}

func (m *Master) NothingLeft() {
	m.T.Helper()
	Until(m.T, "nothing of the master's is left running", func() error {
		if pids := processesWith(m.token); len(pids) > 0 {
			return fmt.Errorf("still running: %s", Describe(pids))
		}
		return nil
	})
}
