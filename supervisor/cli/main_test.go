package cli

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/moult/moult/fdpass/start"
	"github.com/moult/moult/supervisor/control"
	"github.com/moult/moult/supervisor/control/api"
)

// playVariable makes the test binary play moult. The master's workers inherit
// it.
const playVariable = "CLI_TEST_PLAYS_MOULT"

// patience bounds every wait for what is bound to happen.
const patience = 30 * time.Second

func TestMain(m *testing.M) {
	start.RunShimIfAsked()
	if os.Getenv(playVariable) != "" {
		os.Exit(Main(append([]string{"moult"}, os.Args[1:]...), "test"))
	}
	os.Exit(m.Run())
}

// command runs one command line of moult in this process.
func command(args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	app := newApp("v1")
	app.Writer, app.ErrWriter = &out, &errs
	if err := app.Run(withRun(append([]string{"moult"}, args...), app)); err != nil {
		code = report(app.ErrWriter, err)
	}
	return code, out.String(), errs.String()
}

// moult is a process that plays moult; its output goes to two buffers.
type moult struct {
	cmd            *exec.Cmd
	stdout, stderr bytes.Buffer
}

func newMoult(t *testing.T, args ...string) *moult {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	t.Cleanup(cancel)
	m := &moult{cmd: exec.CommandContext(ctx, self, args...)}
	m.cmd.Env = append(os.Environ(), playVariable+"=1")
	m.cmd.Stdout, m.cmd.Stderr = &m.stdout, &m.stderr
	// Its workers share the pipes: Wait fails if one of them outlives it.
	m.cmd.WaitDelay = 3 * time.Second
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return m
}

// wait returns the exit code once the process and all that it started are gone.
func (m *moult) wait(t *testing.T) int {
	t.Helper()
	err := m.cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%v\n%s%s", err, &m.stdout, &m.stderr)
	}
	return m.cmd.ProcessState.ExitCode()
}

func (m *moult) run(t *testing.T) int {
	t.Helper()
	if err := m.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return m.wait(t)
}

// follow starts m and returns the lines of its stdout.
func (m *moult) follow(t *testing.T) *bufio.Scanner {
	t.Helper()
	m.cmd.Stdout = nil
	stdout, err := m.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := m.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.cmd.Process.Kill() })
	return bufio.NewScanner(stdout)
}

// until reads up to a line that holds all of words.
func until(t *testing.T, lines *bufio.Scanner, words ...string) string {
	t.Helper()
	var seen []string
line:
	for lines.Scan() {
		seen = append(seen, lines.Text())
		for _, word := range words {
			if !strings.Contains(lines.Text(), word) {
				continue line
			}
		}
		return lines.Text()
	}
	t.Fatalf("no line with %q in\n%s", words, strings.Join(seen, "\n"))
	return ""
}

// scriptedMaster has its answers ready.
type scriptedMaster struct {
	status  api.Status
	refused error
	events  []api.Event
	stays   bool // the stream stays open after the last event

	mu    sync.Mutex
	begun []api.Operation
}

func (m *scriptedMaster) Status(context.Context) (api.Status, error) { return m.status, nil }

func (m *scriptedMaster) Begin(_ context.Context, op api.Operation) (<-chan api.Event, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.begun = append(m.begun, op)
	if m.refused != nil {
		return nil, m.refused
	}
	events := make(chan api.Event, len(m.events))
	for _, e := range m.events {
		events <- e
	}
	if !m.stays {
		close(events)
	}
	return events, nil
}

// listenAs serves a master under a name, in a directory of the test's own.
func listenAs(t *testing.T, name string, m control.Master) {
	t.Helper()
	ln, err := control.ListenDefault(name, true)
	if err != nil {
		t.Fatal(err)
	}
	s := control.Serve(ln, m, control.NewMetrics())
	t.Cleanup(s.Close)
}

func ownRuntimeDirectory(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	t.Setenv("XDG_RUNTIME_DIR", dir)
	t.Setenv("MOULT_NAME", "")
	t.Setenv("MOULT_CONTROL", "")
	return dir
}
