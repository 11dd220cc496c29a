//go:build linux

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/moult/moult/fdpass"
	"github.com/moult/moult/supervisor/load"
)

// The tests of this file's kind start moult as a process of its own and look
// at it from outside only: what its server's clients see, what it logs, how it
// exits, and what /proc says. The test binary plays moult, by its real main,
// and every worker (e2e_worker_test.go).

// tokenVariable marks every process of one master, so that those which outlive
// it are found. Its name must not be one that moult takes out of a worker's
// environment.
const tokenVariable = "E2E_TOKEN"

const workerPrefix = "worker:"

// patience bounds every wait for something that is bound to happen.
const patience = 20 * time.Second

func TestMain(m *testing.M) {
	fdpass.RunShimIfAsked()
	if len(os.Args) > 1 && strings.HasPrefix(os.Args[1], workerPrefix) {
		playWorker(strings.TrimPrefix(os.Args[1], workerPrefix), os.Args[2:])
		return
	}
	if os.Getenv(tokenVariable) != "" {
		main()
		return
	}
	closeStraysOnExec()
	code := m.Run()
	removeBuilt()
	os.Exit(code)
}

// closeStraysOnExec keeps what this process was started with to itself: a
// shell or a CI runner leaves descriptors open, and what a worker inherits is
// to be judged by what the master does.
func closeStraysOnExec() {
	for fd := range descriptors(os.Getpid()) {
		if fd > 2 {
			syscall.CloseOnExec(fd)
		}
	}
}

// soak tells whether the full counts are asked for.
func soak() bool { return os.Getenv("MOULT_SOAK") == "1" }

// times chooses how often something is done: in a normal run, with -short, and
// in a soak run.
func times(normal, short, long int) int {
	switch {
	case soak():
		return long
	case testing.Short():
		return short
	default:
		return normal
	}
}

// takesLong leaves a test out of runs with -short, which are made besides the
// normal one.
func takesLong(t testing.TB) {
	t.Helper()
	if testing.Short() {
		t.Skip("takes long: left out with -short")
	}
}

// requireProgram skips the test where a server is not installed. In CI that is
// a failure: it would hide that nothing was tested.
func requireProgram(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		skip(t, "install "+name)
	}
	return path
}

func skip(t testing.TB, reason string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(reason)
	}
	t.Skip(reason)
}

// worker is the command line that makes the test binary play a worker.
func worker(name string, options ...string) []string {
	return append([]string{executable(), workerPrefix + name}, options...)
}

var executable = sync.OnceValue(func() string {
	path, err := os.Executable()
	if err != nil {
		panic(err)
	}
	return path
})

// plan is a file that says what the next worker shall be: a worker's name with
// its options, or "sh" with a command line.
type plan string

func newPlan(t testing.TB, content string) plan {
	p := plan(filepath.Join(t.TempDir(), "plan"))
	p.set(t, content)
	return p
}

func (p plan) set(t testing.TB, content string) {
	t.Helper()
	temporary := string(p) + ".new"
	if err := os.WriteFile(temporary, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(temporary, string(p)); err != nil {
		t.Fatal(err)
	}
}

func (p plan) command() []string { return worker("plan", string(p)) }

// entry is one line of the master's stderr. Of a line that is not JSON (a
// worker's own) only Raw is set.
type entry struct {
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

// launch is how a master is started.
type launch struct {
	wrap  []string   // a command that executes the rest of its arguments
	args  []string   // after "moult"
	env   []string   // in addition to the test's
	files []*os.File // descriptors from 3 on; stay the caller's
	dir   string
	exe   string // another moult than the test binary
	bare  bool   // do not ask for JSON lines
}

// master is a running moult.
type master struct {
	t      testing.TB
	cmd    *exec.Cmd
	token  string
	exited chan struct{} // closed once code is set

	mu      sync.Mutex
	entries []entry
	news    chan struct{} // closed and replaced with each entry
	code    int
}

var tokens atomic.Int64

func newToken() string { return fmt.Sprintf("%d-%d", os.Getpid(), tokens.Add(1)) }

// run starts "moult run" with flags in front of the command.
func run(t testing.TB, flags []string, command []string) *master {
	t.Helper()
	args := append(append([]string{"run"}, flags...), "--")
	return launch{args: append(args, command...)}.start(t)
}

func (l launch) start(t testing.TB) *master {
	t.Helper()
	return l.startWith(t, nil)
}

// startWith copies what workers write to stdout.
func (l launch) startWith(t testing.TB, stdout io.Writer) *master {
	t.Helper()
	m := &master{
		t: t, exited: make(chan struct{}), news: make(chan struct{}),
		token: newToken(),
	}
	m.cmd = l.command(m.token)
	m.cmd.Stdout = stdout
	stderr, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	m.cmd.Stderr = write
	if err := m.cmd.Start(); err != nil {
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

func (l launch) command(token string) *exec.Cmd {
	line := append(slices.Clone(l.wrap), executable())
	if l.exe != "" {
		line[len(line)-1] = l.exe
	}
	cmd := exec.Command(line[0], append(line[1:], l.args...)...)
	cmd.Dir = l.dir
	cmd.ExtraFiles = l.files
	cmd.Env = append(os.Environ(), tokenVariable+"="+token)
	if !l.bare {
		// A control socket of its own: in the default place masters of
		// one name look whether the others live, and so wake them.
		cmd.Env = append(cmd.Env, "MOULT_LOG_FORMAT=json", "MOULT_CONTROL="+controlOf(token))
	}
	cmd.Env = append(cmd.Env, l.env...)
	// Out of the terminal's process group: its signals are meant for the test.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return cmd
}

func (m *master) follow(stderr *os.File) {
	lines := bufio.NewScanner(stderr)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var e entry
		if json.Unmarshal(lines.Bytes(), &e) != nil {
			e = entry{}
		}
		e.Raw = lines.Text()
		m.mu.Lock()
		m.entries = append(m.entries, e)
		close(m.news)
		m.news = make(chan struct{})
		m.mu.Unlock()
	}
}

func (m *master) await() {
	m.cmd.Wait()
	status := m.cmd.ProcessState.Sys().(syscall.WaitStatus)
	m.code = status.ExitStatus()
	if status.Signaled() {
		m.code = 128 + int(status.Signal())
	}
	close(m.exited)
}

// cleanUp ends what the test left running: the master, and by the token what
// it started.
func (m *master) cleanUp() {
	defer os.Remove(controlOf(m.token))
	if m.running() {
		m.cmd.Process.Kill()
		<-m.exited
	}
	for _, pid := range processesWith(m.token) {
		killProcess(pid)
	}
	if m.t.Failed() {
		m.t.Logf("log of the master (pid %d, exit code %d):\n%s", m.pid(), m.code, m.log())
	}
}

func (m *master) pid() int { return m.cmd.Process.Pid }

func (m *master) running() bool {
	select {
	case <-m.exited:
		return false
	default:
		return true
	}
}

func (m *master) log() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	lines := make([]string, 0, len(m.entries))
	for _, e := range m.entries[max(0, len(m.entries)-200):] {
		lines = append(lines, e.Raw)
	}
	return strings.Join(lines, "\n")
}

// mark is the number of log lines so far, for waits that only look at later
// ones.
func (m *master) mark() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.entries)
}

// waitLog returns the first line from mark on that matches.
func (m *master) waitLog(mark int, what string, matches func(entry) bool) entry {
	m.t.Helper()
	return m.waitLogFor(patience, mark, what, matches)
}

func (m *master) waitLogFor(limit time.Duration, mark int, what string, matches func(entry) bool) entry {
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

// logged counts the matching lines so far.
func (m *master) logged(matches func(entry) bool) (n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, e := range m.entries {
		if matches(e) {
			n++
		}
	}
	return n
}

// isPhase tells a line about the master itself from one about a worker.
func (e entry) isPhase() bool { return e.PID == 0 && e.To != "" }

func reaches(generation int, state string) func(entry) bool {
	return func(e entry) bool { return !e.isPhase() && e.Generation == generation && e.To == state }
}

func phase(to string) func(entry) bool {
	return func(e entry) bool { return e.isPhase() && e.To == to }
}

// over matches the line that ends an upgrade: the master serves, with the
// generation that it serves with from then on.
func over(generation int) func(entry) bool {
	return func(e entry) bool { return phase("serving")(e) && e.Generation == generation }
}

// failure matches the line that says why an upgrade failed.
func failure(e entry) bool {
	return (e.Level == "warn" || e.Level == "error") && e.Reason != "" && e.PID == 0
}

// waitState waits until a worker of the generation has come to a state.
func (m *master) waitState(generation int, state string) entry {
	m.t.Helper()
	return m.waitLog(0, fmt.Sprintf("generation %d to %s", generation, state), reaches(generation, state))
}

// waitServing waits until the generation serves for good, and returns the line
// of its first worker.
func (m *master) waitServing(generation int) entry {
	m.t.Helper()
	m.waitLog(0, fmt.Sprintf("generation %d serves", generation), over(generation))
	return m.waitState(generation, "serving")
}

// generation is the youngest that has served.
func (m *master) generation() (youngest int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, e := range m.entries {
		if !e.isPhase() && e.To == "serving" {
			youngest = max(youngest, e.Generation)
		}
	}
	return youngest
}

// upgrade asks for an upgrade and waits until it is over; the old generation
// may still drain then.
func (m *master) upgrade() {
	m.t.Helper()
	mark, next := m.mark(), m.generation()+1
	m.signal(syscall.SIGHUP)
	m.waitLog(mark, fmt.Sprintf("the upgrade to generation %d is over", next), over(next))
}

// upgradeFails asks for an upgrade and returns the line that says why it
// failed.
func (m *master) upgradeFails() entry {
	m.t.Helper()
	mark := m.mark()
	m.signal(syscall.SIGHUP)
	return m.waitLog(mark, "why the upgrade failed", failure)
}

func (m *master) signal(sig syscall.Signal) {
	m.t.Helper()
	if err := m.cmd.Process.Signal(sig); err != nil {
		m.t.Fatalf("cannot send %v to the master: %v", sig, err)
	}
}

// wait returns the exit code.
func (m *master) wait() int {
	m.t.Helper()
	return m.waitFor(patience)
}

func (m *master) waitFor(limit time.Duration) int {
	m.t.Helper()
	select {
	case <-m.exited:
		return m.code
	case <-time.After(limit):
		m.t.Fatalf("the master still runs after %v", limit)
		return -1
	}
}

// stop ends the master by TERM and checks the promise that every process ends.
func (m *master) stop() {
	m.t.Helper()
	m.signal(syscall.SIGTERM)
	m.exitsWith(0)
}

func (m *master) exitsWith(code int) {
	m.t.Helper()
	if got := m.wait(); got != code {
		m.t.Errorf("exit code %d, want %d", got, code)
	}
	m.nothingLeft()
}

func (m *master) nothingLeft() {
	m.t.Helper()
	until(m.t, "nothing of the master's is left running", func() error {
		if pids := processesWith(m.token); len(pids) > 0 {
			return fmt.Errorf("still running: %s", describe(pids))
		}
		return nil
	})
}

// until polls a fact until it holds (nil).
func until(t testing.TB, what string, fact func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := fact()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s: %v", patience, what, err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

var nextPort atomic.Int64

// freeAddress is a loopback address with a port that nobody uses, outside of
// the range from which clients get theirs.
func freeAddress(t testing.TB) string {
	t.Helper()
	start := 20000 + int64(os.Getpid()%1000)*10
	for range 2000 {
		port := start + nextPort.Add(1)
		address := net.JoinHostPort("127.0.0.1", strconv.FormatInt(port%12000+20000, 10))
		if listener, err := net.Listen("tcp", address); err == nil {
			listener.Close()
			return address
		}
	}
	t.Fatal("no free port")
	return ""
}

// get asks once, over a new connection.
func get(network, address, path string) (*http.Response, string, error) {
	conn, err := net.DialTimeout(network, address, 5*time.Second)
	if err != nil {
		return nil, "", err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	return exchange(conn, path)
}

func exchange(conn net.Conn, path string) (*http.Response, string, error) {
	if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", path); err != nil {
		return nil, "", err
	}
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return nil, "", err
	}
	defer response.Body.Close()
	body := new(strings.Builder)
	if _, err := bufio.NewReader(response.Body).WriteTo(body); err != nil {
		return nil, "", err
	}
	return response, body.String(), nil
}

// generationAt returns which generation answers, 0 if none does.
func generationAt(network, address string) int {
	response, _, err := get(network, address, "/")
	if err != nil {
		return 0
	}
	generation, err := strconv.Atoi(response.Header.Get(load.GenerationHeader))
	if err != nil {
		return 0
	}
	return generation
}

func answeredBy(t testing.TB, address string, generation int) {
	t.Helper()
	if got := generationAt("tcp", address); got != generation {
		t.Errorf("generation %d answers, want %d", got, generation)
	}
}

// traffic starts clients; what they counted is checked by lossless or read by
// Stop.
func traffic(t testing.TB, config load.Config) *load.Traffic {
	t.Helper()
	if config.Clients == 0 {
		config.Clients = 16
	}
	ctx, cancel := context.WithCancel(context.Background())
	running := load.Start(ctx, config)
	t.Cleanup(func() { cancel(); running.Stop() })
	return running
}

// flowing waits until the traffic has got some more answers.
func flowing(t testing.TB, running *load.Traffic) {
	t.Helper()
	before := running.Snapshot()
	until(t, "traffic flows", func() error {
		if now := running.Snapshot(); now.Requests() < before.Requests()+32 {
			return errors.New(now.String())
		}
		return nil
	})
}

// lossless stops the traffic and checks that nothing was lost.
func lossless(t testing.TB, running *load.Traffic) load.Report {
	t.Helper()
	report := running.Stop()
	if report.Failures() != 0 || report.Requests() == 0 {
		t.Errorf("lost requests: %v", report)
	}
	return report
}

var built struct {
	once sync.Once
	dir  string
	err  error
}

// moultBinary is the real program, for measurements that the test binary's own
// weight would spoil.
func moultBinary(t testing.TB) string {
	t.Helper()
	built.once.Do(func() {
		if built.dir, built.err = os.MkdirTemp("", "moult-e2e-"); built.err != nil {
			return
		}
		build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", built.dir, ".")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if output, err := build.CombinedOutput(); err != nil {
			built.err = fmt.Errorf("go build: %w\n%s", err, output)
		}
	})
	if built.err != nil {
		t.Fatal(built.err)
	}
	return filepath.Join(built.dir, "moult")
}

func removeBuilt() {
	if built.dir != "" {
		os.RemoveAll(built.dir)
	}
}
