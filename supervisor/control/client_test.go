package control

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moult/moult/supervisor/control/api"
)

func TestStatusArrivesWhole(t *testing.T) {
	m := newFakeMaster()
	path, _ := serveFake(t, m)
	c := dial(t, path)
	s, err := c.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if s.Name != "web" || len(s.Workers) != 2 || *s.Workers[0].Connections != 7 || s.Workers[1].Connections != nil {
		t.Errorf("status is %+v", s)
	}
	if c.PID() != os.Getpid() {
		t.Errorf("the master's pid is %d", c.PID())
	}
}

func TestOperationsReachTheMaster(t *testing.T) {
	for _, op := range []api.Operation{{Kind: api.OpUpgrade}, {Kind: api.OpRollback}, {Kind: api.OpScale, Workers: 3}} {
		m := newFakeMaster()
		m.events <- api.Event{Event: api.EventStarting}
		m.events <- doneEvent
		path, _ := serveFake(t, m)
		var heard []string
		for e, err := range dial(t, path).Do(t.Context(), op) {
			if err != nil {
				t.Error(err)
			}
			heard = append(heard, e.Event)
		}
		if !slices.Equal(heard, []string{api.EventStarting, api.EventDone}) || !slices.Equal(m.operations(), []api.Operation{op}) {
			t.Errorf("%v: heard %v, asked for %v", op, heard, m.operations())
		}
	}
}

// ending runs an operation to its end and returns the last event and error.
func ending(ctx context.Context, c *Client, op api.Operation) (last api.Event, err error) {
	for e, problem := range c.Do(ctx, op) {
		last, err = e, problem
	}
	return last, err
}

func TestFailuresHaveTheirKind(t *testing.T) {
	for _, test := range []struct {
		name    string
		refused error
		events  []api.Event
		is      func(error) bool
		text    string
	}{
		{"refused", &api.Refused{Reason: "rewritten in place"}, nil, is[*api.Refused], "rewritten in place"},
		{"failed", nil, []api.Event{{Event: api.EventFailed, Reason: "exit status 3"}}, is[*Failed], "exit status 3"},
		{"lost", nil, []api.Event{{Event: api.EventStarting}}, func(err error) bool { return errors.Is(err, ErrLost) }, ErrLost.Error()},
		{"ended", errors.New("the master has ended"), nil, func(err error) bool { return !is[*api.Refused](err) }, "the master has ended"},
	} {
		m := newFakeMaster()
		m.err = test.refused
		for _, e := range test.events {
			m.events <- e
		}
		close(m.events)
		path, _ := serveFake(t, m)
		if _, err := ending(t.Context(), dial(t, path), api.Operation{Kind: api.OpUpgrade}); err == nil || !test.is(err) || !strings.HasSuffix(err.Error(), test.text) {
			t.Errorf("%s: error is %v", test.name, err)
		}
	}
}

func is[E error](err error) bool {
	var want E
	return errors.As(err, &want)
}

func TestNobodyIsThere(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.sock")
	if _, err := Dial(path); !errors.Is(err, ErrNoMaster) {
		t.Errorf("no socket: %v", err)
	}
	leaveStale(t, path)
	if _, err := Dial(path); !errors.Is(err, ErrNoMaster) {
		t.Errorf("a stale socket: %v", err)
	}
}

func TestTimeoutEndsTheLookingOnly(t *testing.T) {
	m := newFakeMaster()
	m.events <- api.Event{Event: api.EventStarting}
	path, s := serveFake(t, m)
	cause := errors.New("too late")
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	var last error
	for e, err := range dial(t, path).Do(ctx, api.Operation{Kind: api.OpUpgrade}) {
		if last = err; e.Event == api.EventStarting {
			cancel(cause)
		}
	}
	if !errors.Is(last, cause) {
		t.Errorf("error is %v", last)
	}
	eventually(t, "the server lets the client go", func() bool { return len(s.waiting) == 0 })
	m.events <- doneEvent // nobody minds
}

func TestStopIsDoneWhenTheProcessIsGone(t *testing.T) {
	m := newFakeMaster()
	m.events <- api.Event{Event: api.EventDraining}
	path, s := serveFake(t, m)
	c := dial(t, path)
	c.pid = 0 // this process stays: the socket alone tells
	heard := []string{}
	for e, err := range c.Do(t.Context(), api.Operation{Kind: api.OpStop, Now: true}) {
		if err != nil {
			t.Fatal(err)
		}
		if heard = append(heard, e.Event); e.Event == api.EventDraining {
			go s.Close()
		}
	}
	if !slices.Equal(heard, []string{api.EventDraining, api.EventDone}) {
		t.Errorf("heard %v", heard)
	}
	if op := m.operations()[0]; !op.Now {
		t.Error("--now did not reach the master")
	}
}

func TestStopWaitsForTheProcess(t *testing.T) {
	m := newFakeMaster()
	m.events <- api.Event{Event: api.EventDraining}
	m.events <- doneEvent
	path, _ := serveFake(t, m)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if last, err := ending(ctx, dial(t, path), api.Operation{Kind: api.OpStop}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("this process lives, yet the stop ended with %v, %v", last, err)
	}
}

func TestFindListsTheLiveOnes(t *testing.T) {
	dir := inOwnDirectory(t)
	elsewhere, _ := Find() // masters of this machine, if any, where they can be seen
	for _, name := range []string{"b", "a"} {
		listenByName(t, name, true)
	}
	leaveStale(t, filepath.Join(dir, "dead.sock"))
	found, err := Find()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range found[:len(found)-len(elsewhere)] {
		names = append(names, f.Name)
		if f.PID != os.Getpid() || f.Path != filepath.Join(dir, f.Name+".sock") {
			t.Errorf("found %+v", f)
		}
	}
	if !slices.Equal(names, []string{"a", "b"}) {
		t.Errorf("found %v", names)
	}
}

func TestDialByName(t *testing.T) {
	inOwnDirectory(t)
	l := listenByName(t, "some-name", true)
	if c := dial(t, "some-name"); c.Path() != l.Path() {
		t.Errorf("found %s", c.Path())
	}
	if _, err := Dial("no-such-master-here"); !errors.Is(err, ErrNoMaster) {
		t.Errorf("an unknown name: %v", err)
	}
}

func TestForeignAnswersAreToldAsSuch(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.sock")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Write([]byte("220 mail.example ESMTP\r\n"))
			conn.Close()
		}
	}()
	defer func() { ln.Close(); <-served }()
	if _, err := dial(t, path).Status(t.Context()); err == nil {
		t.Error("a mail server was taken for a master")
	}
}
