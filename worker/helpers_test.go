package worker

import (
	"bytes"
	"log/slog"
	"net"
	"os"
	"sync"
	"testing"
	"time"
)

// newTestWorker is a worker that leaves the process's signals alone and is
// over when the test is.
func newTestWorker(t testing.TB, cfg Config) *Worker {
	t.Helper()
	cfg.NoUpgrade = true
	cfg.Signals = []os.Signal{}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.NewTextHandler(&testLog{t: t}, nil))
	}
	w, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		w.Kill()
		w.Wait()
	})
	return w
}

// testLog shows what the worker says where the test fails.
type testLog struct {
	t   testing.TB
	mu  sync.Mutex
	buf bytes.Buffer
	set bool
}

func (l *testLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.set {
		l.set = true
		l.t.Cleanup(func() {
			if l.t.Failed() {
				l.t.Logf("log:\n%s", l.buf.String())
			}
		})
	}
	return l.buf.Write(p)
}

func listenLocal(t testing.TB) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	return ln
}

// eventually waits for a fact.
func eventually(t testing.TB, what string, fact func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if fact() {
			return
		}
	}
	t.Fatalf("not true within 10s: %s", what)
}
