package cli

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moult/moult/supervisor/control"
	"github.com/moult/moult/supervisor/control/api"
)

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
	if !slices.Equal(m.begun, want) {
		t.Errorf("the master was asked for %+v, want %+v", m.begun, want)
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
	if others, _ := control.Find(); len(others) > 0 {
		t.Skip("other masters run on this machine, and this user may see them")
	}
	directory := filepath.Join(dir, "moult")
	ask := func(variable, args string, code int, stdout, stderr string) {
		t.Helper()
		t.Setenv("MOULT_CONTROL", variable)
		gotCode, gotOut, gotErr := command(append([]string{"status"}, strings.Fields(args)...)...)
		if gotCode != code || !strings.HasPrefix(gotOut, stdout) || !strings.Contains(gotErr, stderr) {
			t.Errorf("%s %s: exit code %d, %q %q", variable, args, gotCode, gotOut, gotErr)
		}
	}
	ask("", "", 3, "", "no master found")
	ask("", "--name no-such-master", 3, "", "")
	ask("", "--control "+dir+"/none.sock", 3, "", "")
	listenAs(t, "a", &scriptedMaster{status: api.Status{Name: "a", PID: 1}})
	ask("", "", 0, "a ", "")
	listenAs(t, "b", &scriptedMaster{status: api.Status{Name: "b", PID: 1}})
	ask("", "", 2, "", "--name a ")
	ask("", "", 2, "", "--name b ")
	ask("", "--name b", 0, "b ", "")
	ask("", "--control "+directory+"/a.sock", 0, "a ", "")
	ask(directory+"/a.sock", "", 0, "a ", "") // as a worker of a finds it
	ask(directory+"/a.sock", "--name b", 0, "b ", "")
	t.Chdir(directory)
	ask("", "--control a.sock", 0, "a ", "")
}

func TestStatusAsJSONIsWhole(t *testing.T) {
	ownRuntimeDirectory(t)
	connections := 161
	want := api.Status{Name: "web", StartedAt: time.Now(), Workers: []api.Worker{{PID: 1, Connections: &connections}, {PID: 2}}}
	listenAs(t, "web", &scriptedMaster{status: want})
	_, stdout, _ := command("status", "--name", "web", "--json")
	var got api.Status
	if err := json.Unmarshal([]byte(stdout), &got); err != nil {
		t.Fatal(err)
	}
	if got.Name != want.Name || len(got.Workers) != len(want.Workers) || *got.Workers[0].Connections != 161 || got.Workers[1].Connections != nil {
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

func TestStatusLineOfAnOperation(t *testing.T) {
	now := time.Now()
	connections, deadline := 161, now.Add(9*time.Second)
	old := api.Worker{PID: 1, Generation: 3, State: "draining", Connections: &connections, Deadline: &deadline}
	silent := api.Worker{PID: 3, Generation: 3, State: "draining"}
	fresh := api.Worker{PID: 10, Generation: 4, State: "starting", Says: "warming\x1b up"}
	upgrade, stop := api.Operation{Kind: api.OpUpgrade}, api.Operation{Kind: api.OpStop}
	stopping := api.Event{Event: api.EventDraining, From: 3}
	for _, test := range []struct {
		op      api.Operation
		last    *api.Event
		state   string
		workers []api.Worker
		want    string
	}{
		{upgrade, nil, api.Serving, nil, ""},
		{upgrade, nil, api.Upgrading, nil, "waiting for the upgrade that is under way"},
		{stop, nil, api.Upgrading, nil, ""},
		{upgrade, &startingEvent, api.Upgrading, []api.Worker{old, fresh}, "it says: warming  up"},
		{upgrade, &readyEvent, api.Serving, []api.Worker{old, fresh}, ""},
		{upgrade, &drainingEvent, api.Serving, []api.Worker{old, fresh}, "161 connections, 9s left"},
		{stop, &stopping, api.Stopping, []api.Worker{old, silent}, "9s left"},
		{stop, &stopping, api.Stopping, []api.Worker{silent}, ""},
	} {
		if got := statusLine(test.op, test.last, api.Status{State: test.state, Workers: test.workers}, now); got != test.want {
			t.Errorf("%s after %+v: %q, want %q", test.op.Kind, test.last, got, test.want)
		}
	}
}
