package control

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/moult/moult/supervisor/control/api"
	"github.com/moult/moult/supervisor/e2e/testkit/leak"
)

// roleVariable makes the test binary a client that reports what it hears.
const roleVariable = "CONTROL_TEST_CONNECTS_TO"

// patience bounds every wait for what is bound to happen.
const patience = 20 * time.Second

func TestMain(m *testing.M) {
	if path := os.Getenv(roleVariable); path != "" {
		fmt.Print(connectAndAsk(path))
		os.Exit(0)
	}
	leak.Main(m)
}

// connectAndAsk is what the re-executed test does as another user.
func connectAndAsk(path string) string {
	conn, err := net.Dial("unix", path)
	if err != nil {
		return "dial: " + err.Error()
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	_, _ = io.WriteString(conn, "POST /v1/upgrade HTTP/1.1\r\nHost: moult\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
	answer, err := io.ReadAll(conn)
	if len(answer) == 0 && err != nil {
		return "read: " + err.Error()
	}
	return string(answer)
}

// fakeMaster answers what it was told to, and remembers what it was asked.
type fakeMaster struct {
	mu     sync.Mutex
	status api.Status
	err    error
	events chan api.Event // of operations, shared by all that hear them
	last   *api.Event     // if set, all that the next operations hear
	begun  []api.Operation
}

func (f *fakeMaster) Status(context.Context) (api.Status, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.status, f.err
}

func (f *fakeMaster) Begin(_ context.Context, op api.Operation) (<-chan api.Event, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.begun = append(f.begun, op)
	if f.err != nil {
		return nil, f.err
	}
	if f.last == nil {
		return f.events, nil
	}
	events := make(chan api.Event, 1)
	events <- *f.last
	close(events)
	return events, nil
}

// answer has operations from now on hear this event alone.
func (f *fakeMaster) answer(e api.Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.last = &e
}

func (f *fakeMaster) operations() []api.Operation {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]api.Operation(nil), f.begun...)
}

func newFakeMaster() *fakeMaster {
	connections := 7
	return &fakeMaster{
		events: make(chan api.Event, 8),
		status: api.Status{
			Name: "web", Version: "v1", PID: os.Getpid(), State: api.Serving, Generation: 3, StartedAt: time.Unix(1700000000, 0),
			Sockets:  []api.Socket{{Name: "w\"e\\b\n", Network: "tcp", Address: "127.0.0.1:80", Backlog: 128, Queued: 5}},
			Workers:  []api.Worker{{PID: 10, Generation: 3, State: "serving", Connections: &connections}, {PID: 9, Generation: 2, State: "draining"}},
			Upgrades: api.Upgrades{Succeeded: 5, Failed: 2, RolledBack: 1},
		},
	}
}

// serveFake serves a fake master on a socket of its own.
func serveFake(t *testing.T, m Master) (path string, s *Server) {
	t.Helper()
	ln := listenAt(t, filepath.Join(t.TempDir(), "c.sock"))
	s = Serve(ln, m, NewMetrics())
	t.Cleanup(s.Close)
	return ln.Path(), s
}

func dial(t *testing.T, path string) *Client {
	t.Helper()
	c, err := Dial(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// rawClient connects and sends what it is told to.
func rawClient(t *testing.T, path, words string) net.Conn {
	t.Helper()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(patience))
	_, _ = conn.Write([]byte(words)) // the server may have sent it away by then
	return conn
}

func eventually(t *testing.T, what string, fact func() bool) {
	t.Helper()
	for limit := time.Now().Add(patience); !fact(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatalf("%s: not so after %s", what, patience)
		}
	}
}

func get(t *testing.T, url string) (code int, body string) {
	t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
	resp, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(text)
}
