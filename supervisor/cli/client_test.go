package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moult/moult/supervisor/control"
	"github.com/moult/moult/supervisor/control/api"
)

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

var (
	startingEvent = api.Event{Event: api.EventStarting, From: 3, To: 4, PIDs: []int{10, 11}}
	readyEvent    = api.Event{Event: api.EventReady, From: 3, To: 4, TookMS: 312}
	drainingEvent = api.Event{Event: api.EventDraining, From: 3, To: 4}
	doneEvent     = api.Event{Event: api.EventDone, From: 3, To: 4, TookMS: 5100}
	failedEvent   = api.Event{Event: api.EventFailed, From: 3, To: 4, Reason: `exit status 3; it last said "no database"`}
)

func TestOperationsOnTheCommandLine(t *testing.T) {
	upgrade := []api.Event{startingEvent, readyEvent, drainingEvent, doneEvent}
	for _, test := range []struct {
		name           string
		args           string
		events         []api.Event
		refused        error
		stays          bool
		code           int
		stdout, stderr string
	}{
		{name: "ready is enough", args: "upgrade", events: upgrade[:3], stays: true,
			stdout: "generation 4 starting (pid 10, 11)\ngeneration 4 serves after 312ms\n"},
		{name: "--wait", args: "upgrade --wait", events: upgrade,
			stdout: "generation 4 starting (pid 10, 11)\ngeneration 4 serves after 312ms\ngeneration 3 draining\ngeneration 3 gone after 5.1s\n"},
		{name: "failed", args: "upgrade", events: []api.Event{startingEvent, failedEvent}, code: 1,
			stdout: "generation 4 starting (pid 10, 11)\n",
			stderr: "moult: upgrade failed, generation 3 keeps serving: exit status 3; it last said \"no database\"\n"},
		{name: "time-out", args: "upgrade --timeout 50ms", events: upgrade[:1], stays: true, code: 1,
			stdout: "generation 4 starting (pid 10, 11)\n", stderr: "moult: the upgrade is not over after 50ms; it goes on\n"},
		{name: "lost", args: "upgrade", events: upgrade[:1], code: 1,
			stdout: "generation 4 starting (pid 10, 11)\n",
			stderr: "moult: nobody knows what came of the upgrade: the master went away before it told the end\n"},
		{name: "refused", args: "rollback", refused: &api.Refused{Reason: "cannot roll back: rewritten"}, code: 1,
			stderr: "moult: cannot roll back: rewritten\n"},
		{name: "scale", args: "scale 3", events: []api.Event{doneEvent}, stdout: "3 workers per generation\n"},
		{name: "scale to nothing", args: "scale 0", code: 2, stderr: "moult: want one number of workers, at least 1: moult scale [flags] N\n"},
		{name: "scale to a word", args: "scale many", code: 2, stderr: "moult: want one number of workers, at least 1: moult scale [flags] N\n"},
		{name: "an argument too many", args: "upgrade web", code: 2, stderr: "moult: moult upgrade takes no argument \"web\"; see moult help upgrade\n"},
		{name: "unknown flag", args: "stop --force", code: 2, stderr: "moult: flag provided but not defined: -force; see moult help stop\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			ownRuntimeDirectory(t)
			t.Setenv("MOULT_NAME", "only")
			listenAs(t, "only", &scriptedMaster{events: test.events, refused: test.refused, stays: test.stays})
			code, stdout, stderr := command(strings.Fields(test.args)...)
			if code != test.code || stdout != test.stdout || stderr != test.stderr {
				t.Errorf("exit code %d, want %d\nstdout %q\n  want %q\nstderr %q\n  want %q", code, test.code, stdout, test.stdout, stderr, test.stderr)
			}
		})
	}
}

func TestFlagsReachTheMaster(t *testing.T) {
	ownRuntimeDirectory(t)
	m := &scriptedMaster{events: []api.Event{doneEvent}}
	listenAs(t, "web", m)
	for _, args := range []string{"upgrade --name web", "scale --name web 5", "rollback --name web"} {
		if code, _, stderr := command(strings.Fields(args)...); code != 0 {
			t.Errorf("%s: exit code %d, %s", args, code, stderr)
		}
	}
	want := []api.Operation{{Kind: api.OpUpgrade}, {Kind: api.OpScale, Workers: 5}, {Kind: api.OpRollback}}
	for i, op := range m.begun {
		if op != want[i] {
			t.Errorf("the master was asked for %+v, want %+v", op, want[i])
		}
	}
}

func TestEventsAsJSON(t *testing.T) {
	ownRuntimeDirectory(t)
	listenAs(t, "web", &scriptedMaster{events: []api.Event{startingEvent, failedEvent}})
	code, stdout, stderr := command("upgrade", "--name", "web", "--json")
	if code != 1 || !strings.Contains(stderr, "exit status 3") {
		t.Errorf("exit code %d, stderr %q", code, stderr)
	}
	decoder := json.NewDecoder(strings.NewReader(stdout))
	for _, want := range []string{"starting", "failed"} {
		var e api.Event
		if err := decoder.Decode(&e); err != nil || e.Event != want {
			t.Errorf("event %q, %v, want %q", e.Event, err, want)
		}
	}
}

func TestWhichMasterIsMeant(t *testing.T) {
	dir := ownRuntimeDirectory(t)
	// Other masters may be found on this machine by those who may look.
	others, _ := control.Find()
	if code, _, stderr := command("status"); len(others) == 0 && (code != 3 || !strings.Contains(stderr, "no master found")) {
		t.Errorf("none: exit code %d, %q", code, stderr)
	}
	if code, _, _ := command("status", "--name", "no-such-master"); code != 3 {
		t.Errorf("an unknown name: exit code %d", code)
	}
	if code, _, _ := command("status", "--control", filepath.Join(dir, "none.sock")); code != 3 {
		t.Errorf("a path where nobody is: exit code %d", code)
	}
	listenAs(t, "a", &scriptedMaster{status: api.Status{Name: "a", PID: 1}})
	if code, stdout, stderr := command("status"); len(others) == 0 && (code != 0 || !strings.HasPrefix(stdout, "a ")) {
		t.Errorf("the only one: exit code %d, %q %q", code, stdout, stderr)
	}
	listenAs(t, "b", &scriptedMaster{status: api.Status{Name: "b", PID: 1}})
	if code, _, stderr := command("status"); code != 2 || !strings.Contains(stderr, "--name a ") || !strings.Contains(stderr, "--name b ") {
		t.Errorf("two: exit code %d, %q", code, stderr)
	}
	for args, want := range map[string]string{
		"status --name b": "b ", "status --control " + dir + "/moult/a.sock": "a ",
	} {
		if _, stdout, stderr := command(strings.Fields(args)...); !strings.HasPrefix(stdout, want) {
			t.Errorf("%s: %q %q", args, stdout, stderr)
		}
	}
	t.Setenv("MOULT_CONTROL", dir+"/moult/a.sock")
	if _, stdout, _ := command("status"); !strings.HasPrefix(stdout, "a ") {
		t.Errorf("a worker of a: %q", stdout)
	}
	if _, stdout, _ := command("status", "--name", "b"); !strings.HasPrefix(stdout, "b ") {
		t.Errorf("the flag does not beat the environment: %q", stdout)
	}
}

func TestControlByRelativePath(t *testing.T) {
	dir := ownRuntimeDirectory(t)
	listenAs(t, "web", &scriptedMaster{status: api.Status{Name: "web", PID: 1}})
	t.Chdir(filepath.Join(dir, "moult"))
	if code, stdout, stderr := command("status", "--control", "web.sock"); code != 0 || !strings.HasPrefix(stdout, "web ") {
		t.Errorf("exit code %d, %q %q", code, stdout, stderr)
	}
}

func TestStatusAsJSONIsWhole(t *testing.T) {
	ownRuntimeDirectory(t)
	want := busyStatus(time.Now())
	listenAs(t, "web", &scriptedMaster{status: want})
	_, stdout, _ := command("status", "--name", "web", "--json")
	var got api.Status
	if err := json.Unmarshal([]byte(stdout), &got); err != nil {
		t.Fatal(err)
	}
	if got.Name != want.Name || len(got.Workers) != len(want.Workers) || *got.Workers[0].Connections != 161 || got.Workers[2].Connections != nil {
		t.Errorf("got %+v", got)
	}
	if !strings.Contains(stdout, `"connections":null`) {
		t.Error("unknown connections are not null")
	}
}

func TestWatchNeedsATerminal(t *testing.T) {
	ownRuntimeDirectory(t)
	listenAs(t, "web", &scriptedMaster{})
	if code, _, stderr := command("status", "--name", "web", "--watch"); code != 2 || !strings.Contains(stderr, "terminal") {
		t.Errorf("exit code %d, %q", code, stderr)
	}
}

func TestAdminIsCheckedBeforeAnythingStarts(t *testing.T) {
	ownRuntimeDirectory(t)
	args := []string{"run", "--admin", "0.0.0.0:0", "-l", "127.0.0.1:0", "--name", "web", "--", "sleep", "1"}
	if code, _, stderr := command(args...); code != 2 || !strings.Contains(stderr, "--admin-public") {
		t.Errorf("exit code %d, %q", code, stderr)
	}
	left, _ := filepath.Glob(os.Getenv("XDG_RUNTIME_DIR") + "/moult/*")
	if len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}
