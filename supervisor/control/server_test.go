package control

import (
	"bufio"
	"bytes"
	"errors"
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
	"github.com/moult/moult/supervisor/e2e/testkit/leak"
)

var doneEvent = api.Event{Event: api.EventDone, To: 4}

// some is more memory than noise, and less than what clients could take up.
const some = 3 << 20

// upgradeWorks asks for an upgrade as a deploy script would.
func upgradeWorks(t *testing.T, m *fakeMaster, path string) {
	t.Helper()
	m.answer(doneEvent)
	if last, err := ending(t.Context(), dial(t, path), api.Operation{Kind: api.OpUpgrade}); last.Event != api.EventDone || err != nil {
		t.Errorf("upgrade: %+v, %v", last, err)
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

const upgradeRequest = "POST /v1/upgrade HTTP/1.1\r\nHost: moult\r\nContent-Length: 0\r\n\r\n"

// Clients that say nothing, or half of a request, cost little while they are
// there, keep nobody out for long, and cost nothing once they are gone.
func TestSilentClientsKeepNobodyOut(t *testing.T) {
	m := newFakeMaster()
	path, _ := serveFake(t, m)
	upgradeWorks(t, m, path)
	before, goroutines := heap(), runtime.NumGoroutine()
	var conns []net.Conn
	for _, words := range []string{"", "POST /v1/upgrade HTT", "POST /v1/upgrade HTTP/1.1\r\nHost: moult\r\nX: ", "POST /v1/upgrade HTTP/1.1\r\nHost: moult\r\nContent-Length: 100\r\n\r\n{"} {
		for range maxClients / 2 {
			conns = append(conns, rawClient(t, path, words))
		}
	}
	const perClient = 32 << 10
	if during := heap(); during > before+some+maxClients*perClient {
		t.Errorf("memory grew from %d to %d bytes", before, during)
	}
	if n := runtime.NumGoroutine(); n > goroutines+maxClients {
		t.Errorf("%d goroutines for %d clients", n-goroutines, len(conns))
	}
	began := time.Now()
	upgradeWorks(t, m, path)
	if took, limit := time.Since(began), time.Duration(len(conns)/maxClients+2)*requestTime; took > limit {
		t.Errorf("the upgrade behind %d silent clients took %s", len(conns), took)
	}
	for _, conn := range conns {
		conn.Close()
	}
	upgradeWorks(t, m, path)
	eventually(t, "memory is free again", func() bool { return heap() < before+some })
	if n := len(m.operations()); n != 3 {
		t.Errorf("the master was asked %d times", n)
	}
}

// Those who wait for an upgrade that hangs leave room for those who want to see
// why, and for the one who ends it.
func TestHangingOperationsLeaveRoom(t *testing.T) {
	m := newFakeMaster()
	path, s := serveFake(t, m)
	var waiting []net.Conn
	for range maxWaiting {
		waiting = append(waiting, rawClient(t, path, upgradeRequest))
	}
	eventually(t, "all are served", func() bool { return len(m.operations()) == maxWaiting })
	c := dial(t, path)
	if _, err := ending(t.Context(), c, api.Operation{Kind: api.OpScale, Workers: 2}); err == nil || !strings.Contains(err.Error(), "too many") {
		t.Errorf("one too many: %v", err)
	}
	if _, err := c.Status(t.Context()); err != nil {
		t.Errorf("status: %v", err)
	}
	var stopping []net.Conn
	for range maxWaiting {
		stopping = append(stopping, rawClient(t, path, strings.Replace(upgradeRequest, "upgrade", "stop", 1)))
	}
	eventually(t, "the stops reach the master", func() bool { return len(m.operations()) == 2*maxWaiting })
	for _, conn := range append(waiting[:1], stopping...) {
		conn.Close()
	}
	eventually(t, "a place is free", func() bool { return len(s.waiting) < maxWaiting })
	upgradeWorks(t, m, path)
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
	if after := heap(); after > before+some {
		t.Errorf("memory grew from %d to %d bytes", before, after)
	}
	upgradeWorks(t, m, path)
	if n := len(m.operations()); n != 1 {
		t.Errorf("the master was asked %d times", n)
	}
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
	upgradeWorks(t, m, path)
	if n := len(m.operations()); n != 1 {
		t.Errorf("the master was asked %d times", n)
	}
}

func TestAnswers(t *testing.T) {
	m := newFakeMaster()
	close(m.events)
	path, _ := serveFake(t, m)
	for _, test := range []struct {
		request, header, body string
		want, asked           int
	}{
		{"GET /v1/status", "", "", 200, 0},
		{"GET /metrics", "", "", 200, 0},
		{"POST /v1/upgrade", "", "", 200, 1},
		{"POST /v1/stop", "", `{"now":true}`, 200, 2},
		{"POST /v1/stop", "", `{"noww":true}`, 400, 2},
		{"GET /v1/upgrade", "", "", 405, 2},
		{"POST /v1/status", "", "", 405, 2},
		{"DELETE /v1/stop", "", "", 405, 2},
		{"GET /", "", "", 404, 2},
		{"GET /v1/status", "X: " + strings.Repeat("x", 3*maxHeader) + "\r\n", "", 431, 2},
	} {
		conn := rawClient(t, path, fmt.Sprintf("%s HTTP/1.1\r\nHost: moult\r\nConnection: close\r\n%sContent-Length: %d\r\n\r\n%s", test.request, test.header, len(test.body), test.body))
		line, _ := bufio.NewReader(conn).ReadString('\n')
		if !strings.HasPrefix(line, fmt.Sprintf("HTTP/1.1 %d", test.want)) || len(m.operations()) != test.asked {
			t.Errorf("%s %s: %q, want %d; the master was asked %d times", test.request, test.body, line, test.want, len(m.operations()))
		}
	}
}

func TestCloseTellsWhatIsKnownAndEndsQuickly(t *testing.T) {
	m := newFakeMaster()
	path, s := serveFake(t, m)
	conn := rawClient(t, path, strings.Replace(upgradeRequest, "upgrade", "stop", 1))
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
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
}

func TestNobodyTalkingWakesNothing(t *testing.T) {
	m := newFakeMaster()
	known := leak.Left(nil)
	path, _ := serveFake(t, m)
	m.answer(doneEvent)
	c := dial(t, path)
	_, _ = ending(t.Context(), c, api.Operation{Kind: api.OpUpgrade})
	c.Close()
	if left := leak.Left(known); len(left) != 1 || !strings.Contains(left[0], "Accept") {
		t.Errorf("beside the goroutine that accepts there is:\n%s", strings.Join(left, "\n\n"))
	}
}
