package control

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/moult/moult/supervisor/control/api"
)

var doneEvent = api.Event{Event: api.EventDone, To: 4}

// upgradeWorks asks for an upgrade as a deploy script would.
func upgradeWorks(t *testing.T, m *fakeMaster, path string) {
	t.Helper()
	m.events <- doneEvent
	last := ""
	for e, err := range dial(t, path).Do(t.Context(), api.Operation{Kind: api.OpUpgrade}) {
		if err != nil {
			t.Fatalf("upgrade: %v", err)
		}
		last = e.Event
	}
	if last != api.EventDone {
		t.Errorf("the last event was %q", last)
	}
}

// heap is what is in use after everything that can go has gone.
func heap() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapInuse + m.StackInuse
}

// crowd has many clients send the same words and wait, does what is to be done
// meanwhile, and sends them home.
func crowd(t *testing.T, path, words string, meanwhile func()) {
	t.Helper()
	var conns []net.Conn
	for range 1000 {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(conn, words) // it may have been sent away by then
		conns = append(conns, conn)
	}
	meanwhile()
	for _, conn := range conns {
		conn.Close()
	}
}

func TestIdleClientsCostNothing(t *testing.T) {
	m := newFakeMaster()
	path, s := serveFake(t, m)
	kinds := []string{"", "POST /v1/upgrade HTT", "POST /v1/upgrade HTTP/1.1\r\nHost: moult\r\nX: ", "POST /v1/upgrade HTTP/1.1\r\nHost: moult\r\nContent-Length: 100\r\n\r\n{"}
	crowd(t, path, kinds[0], func() {})
	before := heap()
	for _, words := range kinds {
		crowd(t, path, words, func() {
			upgradeWorks(t, m, path)
			s.clients.mu.Lock()
			defer s.clients.mu.Unlock()
			if n := len(s.clients.known); n > maxClients {
				t.Errorf("after %q: %d clients are kept", words, n)
			}
		})
	}
	const some = 2 << 20
	if after := heap(); after > before+some {
		t.Errorf("memory grew from %d to %d bytes", before, after)
	}
	if n := len(m.operations()); n != len(kinds) {
		t.Errorf("the master was asked %d times, want %d", n, len(kinds))
	}
}

// endless is a body that never ends.
type endless struct{ sent int64 }

func (e *endless) Read(p []byte) (int, error) {
	const huge = 100 << 20
	if e.sent += int64(len(p)); e.sent > huge {
		return 0, io.EOF
	}
	return len(p), nil
}

func TestLongBodiesAreCutOff(t *testing.T) {
	m := newFakeMaster()
	path, _ := serveFake(t, m)
	before := heap()
	for _, method := range []string{http.MethodPost, http.MethodGet} {
		conn := rawClient(t, path, method+" /v1/upgrade HTTP/1.1\r\nHost: moult\r\nContent-Length: 104857600\r\n\r\n")
		body := &endless{}
		if _, err := io.Copy(conn, body); err == nil {
			t.Errorf("%s: the server took %d bytes", method, body.sent)
		}
	}
	const some = 2 << 20
	if after := heap(); after > before+some {
		t.Errorf("memory grew from %d to %d bytes", before, after)
	}
	if n := len(m.operations()); n != 0 {
		t.Errorf("the master was asked %d times", n)
	}
	upgradeWorks(t, m, path)
}

func TestGarbageIsRefused(t *testing.T) {
	m := newFakeMaster()
	path, _ := serveFake(t, m)
	random := rand.New(rand.NewPCG(1, 2))
	for i := range 200 {
		garbage := make([]byte, 1+random.IntN(10000))
		for j := range garbage {
			garbage[j] = byte(random.Uint32())
		}
		if i%2 == 0 {
			garbage = bytes.ReplaceAll(garbage, []byte{0}, []byte("\r\n\r\n"))
		}
		conn := rawClient(t, path, string(garbage))
		_ = conn.(*net.UnixConn).CloseWrite()
		if answer, _ := io.ReadAll(conn); bytes.HasPrefix(answer, []byte("HTTP/1.1 200")) {
			t.Errorf("garbage was answered by %q", answer)
		}
	}
	if n := len(m.operations()); n != 0 {
		t.Errorf("the master was asked %d times", n)
	}
	upgradeWorks(t, m, path)
}

func TestHeadersAreLimited(t *testing.T) {
	path, _ := serveFake(t, newFakeMaster())
	conn := rawClient(t, path, "GET /v1/status HTTP/1.1\r\nHost: moult\r\nX: "+strings.Repeat("x", 3*maxHeader)+"\r\n\r\n")
	line, _ := bufio.NewReader(conn).ReadString('\n')
	if !strings.Contains(line, "431") {
		t.Errorf("a long header was answered by %q", line)
	}
}

func TestWhoWaitsForAnAnswerIsNotSentAway(t *testing.T) {
	m := newFakeMaster()
	path, s := serveFake(t, m)
	const request = "POST /v1/upgrade HTTP/1.1\r\nHost: moult\r\nContent-Length: 0\r\n\r\n"
	var waiting []net.Conn
	for range maxClients {
		waiting = append(waiting, rawClient(t, path, request))
	}
	eventually(t, "all are served", func() bool { return len(m.operations()) == maxClients })
	answer, _ := io.ReadAll(rawClient(t, path, ""))
	if !bytes.HasPrefix(answer, []byte("HTTP/1.1 503")) || !bytes.HasSuffix(answer, []byte("\"}\r\n")) {
		t.Errorf("one too many heard %q", answer)
	}
	waiting[0].Close()
	eventually(t, "a place is free", func() bool {
		s.clients.mu.Lock()
		defer s.clients.mu.Unlock()
		return len(s.clients.known) < maxClients
	})
	if _, err := dial(t, path).Status(t.Context()); err != nil {
		t.Errorf("after one has left: %v", err)
	}
}

func TestAnswersForEachRoute(t *testing.T) {
	m := newFakeMaster()
	close(m.events)
	path, _ := serveFake(t, m)
	for request, want := range map[string]int{
		"GET /v1/status": 200, "GET /metrics": 200, "POST /v1/upgrade": 200, "POST /v1/stop": 200,
		"GET /v1/upgrade": 405, "POST /v1/status": 405, "GET /": 404, "DELETE /v1/stop": 405,
	} {
		conn := rawClient(t, path, request+" HTTP/1.1\r\nHost: moult\r\nConnection: close\r\n\r\n")
		line, _ := bufio.NewReader(conn).ReadString('\n')
		if !strings.HasPrefix(line, fmt.Sprintf("HTTP/1.1 %d", want)) {
			t.Errorf("%s: %q, want %d", request, line, want)
		}
	}
}

func TestUnknownWordsInARequestAreRefused(t *testing.T) {
	m := newFakeMaster()
	path, _ := serveFake(t, m)
	const body = `{"noww":true}`
	conn := rawClient(t, path, fmt.Sprintf("POST /v1/stop HTTP/1.1\r\nHost: moult\r\nContent-Length: %d\r\n\r\n%s", len(body), body))
	line, _ := bufio.NewReader(conn).ReadString('\n')
	if !strings.Contains(line, "400") || len(m.operations()) != 0 {
		t.Errorf("answered by %q, master asked %d times", line, len(m.operations()))
	}
}

func TestCloseTellsWhatIsKnownAndEndsQuickly(t *testing.T) {
	m := newFakeMaster()
	path, s := serveFake(t, m)
	conn := rawClient(t, path, "POST /v1/stop HTTP/1.1\r\nHost: moult\r\nContent-Length: 0\r\n\r\n")
	eventually(t, "the stop has begun", func() bool { return len(m.operations()) == 1 })
	rawClient(t, path, "GET /v1/sta")
	m.events <- api.Event{Event: api.EventDraining}
	m.events <- doneEvent
	began := time.Now()
	s.Close()
	if took := time.Since(began); took > 10*lastWords {
		t.Errorf("Close took %s", took)
	}
	answer, err := io.ReadAll(conn)
	if err != nil || !bytes.Contains(answer, []byte(`"done"`)) {
		t.Errorf("the stream ended with %q, %v", answer, err)
	}
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("the socket is still there: %v", err)
	}
}

func TestNobodyTalkingWakesNothing(t *testing.T) {
	m := newFakeMaster()
	path, s := serveFake(t, m)
	upgradeWorks(t, m, path)
	eventually(t, "the client is forgotten", func() bool {
		s.clients.mu.Lock()
		defer s.clients.mu.Unlock()
		return len(s.clients.known) == 0
	})
	stacks := make([]byte, 1<<20)
	text := string(stacks[:runtime.Stack(stacks, true)])
	for _, one := range strings.Split(text, "\n\n") {
		if strings.Contains(one, "control.") && !strings.Contains(one, "testing.") && !strings.Contains(one, "Accept") {
			t.Errorf("a goroutine is left beside the one that accepts:\n%s", one)
		}
	}
}
