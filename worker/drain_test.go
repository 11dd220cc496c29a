package worker

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/moult/moult/supervisor/e2e/testkit/leak"
)

// serveHTTP starts a worker with one server on a TCP port.
func serveHTTP(t testing.TB, cfg Config, h http.Handler) (*Worker, string) {
	t.Helper()
	w := newTestWorker(t, cfg)
	ln := listenLocal(t)
	w.HTTP(ln, &http.Server{Handler: h})
	if err := w.Ready(); err != nil {
		t.Fatal(err)
	}
	return w, ln.Addr().String()
}

var sayOK = http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(rw, "ok\n") })

// drainBegun asks for the drain and waits until connections are being ended.
func drainBegun(t testing.TB, w *Worker) {
	t.Helper()
	w.Drain("test")
	eventually(t, "the drain has begun", func() bool { return w.watcher.draining.Load() })
}

func wantGraceful(t testing.TB, w *Worker) Result {
	t.Helper()
	r := w.Wait()
	if err := r.Err(); err != nil {
		t.Error(err)
	}
	return r
}

func TestIdleConnectionIsServedOnceMore(t *testing.T) {
	w, addr := serveHTTP(t, Config{}, sayOK)
	c := dialEcho(t, addr)
	if resp := c.get(t); resp.Close {
		t.Fatal("the connection is closed before the drain")
	}
	drainBegun(t, w)
	if resp := c.get(t); resp.StatusCode != http.StatusOK || !resp.Close {
		t.Errorf("answer %v, close %v; want 200 and the end of the connection", resp.Status, resp.Close)
	}
	if _, err := c.in.ReadByte(); err != io.EOF {
		t.Errorf("after the last answer: %v, want EOF", err)
	}
	_ = c.Close()
	wantGraceful(t, w)
}

// TestRequestThatIsArrivingIsServed: golang/go#75591, and worse: half of the
// header is there when the drain begins.
func TestRequestThatIsArrivingIsServed(t *testing.T) {
	w, addr := serveHTTP(t, Config{}, sayOK)
	for _, first := range []bool{true, false} {
		c := dialEcho(t, addr)
		if !first {
			c.get(t)
		}
		mustWrite2(t, c, "GET / HTTP/1.1\r\nHo")
		defer func() {
			mustWrite2(t, c, "st: test\r\n\r\n")
			resp, err := http.ReadResponse(c.in, nil)
			if err != nil || resp.StatusCode != http.StatusOK {
				t.Errorf("first on its connection %v: %v, %v", first, resp, err)
			}
			_ = c.Close()
		}()
	}
	eventually(t, "both are being read", func() bool { return w.Counts().Reading == 2 })
	drainBegun(t, w)
}

func mustWrite2(t testing.TB, w io.Writer, s string) {
	t.Helper()
	if _, err := io.WriteString(w, s); err != nil {
		t.Fatal(err)
	}
}

// TestAnswerBegunBeforeTheDrain has said nothing about closing, so the
// connection must take another request.
func TestAnswerBegunBeforeTheDrain(t *testing.T) {
	begun, goOn := make(chan struct{}), make(chan struct{})
	h := func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/stream" {
			rw.Header().Set("Content-Length", "4")
			rw.(http.Flusher).Flush()
			close(begun)
			<-goOn
		}
		_, _ = io.WriteString(rw, "done")
	}
	w, addr := serveHTTP(t, Config{}, http.HandlerFunc(h))
	c := dialEcho(t, addr)
	mustWrite2(t, c, "GET /stream HTTP/1.1\r\nHost: test\r\n\r\n")
	<-begun
	drainBegun(t, w)
	close(goOn)
	resp, err := http.ReadResponse(c.in, nil)
	if err != nil || resp.Close {
		t.Fatalf("%v, %v; want an answer that leaves the connection open", resp, err)
	}
	if body, err := io.ReadAll(resp.Body); string(body) != "done" || err != nil {
		t.Fatalf("body %q, %v", body, err)
	}
	if resp := c.get(t); !resp.Close {
		t.Error("the next answer does not end the connection")
	}
	_ = c.Close()
	wantGraceful(t, w)
}

// TestQueueIsServed: clients that the kernel has accepted and nobody else.
func TestQueueIsServed(t *testing.T) {
	w := newTestWorker(t, Config{})
	ln := listenLocal(t)
	var conns []*echoConn
	for range 50 {
		c := dialEcho(t, ln.Addr().String())
		mustWrite2(t, c, "GET / HTTP/1.1\r\nHost: test\r\n\r\n")
		conns = append(conns, c)
	}
	w.HTTP(ln, &http.Server{Handler: sayOK})
	w.Drain("test")
	for i, c := range conns {
		resp, err := http.ReadResponse(c.in, nil)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("client %d: %v, %v", i, resp, err)
		}
		_ = c.Close()
	}
	wantGraceful(t, w)
	if _, err := net.Dial("tcp", ln.Addr().String()); err == nil {
		t.Error("the port is still open")
	}
}

// TestQueueIsLeftToOthers: where the socket is shared, its queue is not ours.
func TestQueueIsLeftToOthers(t *testing.T) {
	w := newTestWorker(t, Config{})
	w.sockets.alone = false
	ln := listenLocal(t)
	l := w.watch(ln, stateNew)
	w.Drain("test")
	w.Wait()
	if nc, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("accepted %v, %v after the end", nc, err)
	}
}

func TestSilentAndSlowClientsAreEnded(t *testing.T) {
	w, addr := serveHTTP(t, Config{Idle: 200 * time.Millisecond}, sayOK)
	silent := dialEcho(t, addr)
	slow := dialEcho(t, addr)
	mustWrite2(t, slow, "GET / HTTP/1.1\r\n")
	var wg sync.WaitGroup
	defer wg.Wait()
	defer slow.Close()
	wg.Go(func() {
		for {
			if _, err := io.WriteString(slow, "X-Slow: loris\r\n"); err != nil {
				return
			}
			time.Sleep(5 * time.Millisecond)
		}
	})
	eventually(t, "both are seen", func() bool { c := w.Counts(); return c.New == 1 && c.Reading == 1 })
	w.Drain("test")
	if _, err := silent.in.ReadByte(); err != io.EOF {
		t.Errorf("silent client: %v, want EOF", err)
	}
	_ = silent.Close()
	if r := wantGraceful(t, w); r.Took > 15*time.Second { // half of what they might hold it up for
		t.Errorf("they have held the drain up for %v", r.Took)
	}
}

// TestEverythingAtOnce opens and closes connections by the thousand while the
// drain begins, for the race detector, and leaves nothing behind.
func TestEverythingAtOnce(t *testing.T) {
	defer leak.Check(t)()
	w, addr := serveHTTP(t, Config{Idle: 300 * time.Millisecond}, sayOK)
	var clients sync.WaitGroup
	var opened atomic.Int64
	for range 64 {
		clients.Go(func() {
			for fewRequests(addr) == nil {
				opened.Add(1)
			}
		})
	}
	eventually(t, "thousands have come and gone", func() bool { return opened.Load() > 2000 })
	go func() {
		for w.Stage() != StageEnded {
			_ = w.Counts()
			time.Sleep(time.Millisecond)
		}
	}()
	w.Drain("test")
	wantGraceful(t, w)
	clients.Wait()
}

// TestOneServerOnTwoListeners is watched once.
func TestOneServerOnTwoListeners(t *testing.T) {
	w := newTestWorker(t, Config{})
	srv := &http.Server{Handler: sayOK}
	for range 2 {
		ln := listenLocal(t)
		w.HTTP(ln, srv)
		c := dialEcho(t, ln.Addr().String())
		c.get(t)
		_ = c.Close()
	}
	if h := srv.Handler.(*handler); h.next == nil || len(w.servers) != 1 {
		t.Errorf("%d servers are known, want one", len(w.servers))
	}
	w.Drain("test")
	wantGraceful(t, w)
}

// fewRequests fails once the port is closed.
func fewRequests(addr string) error {
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer nc.Close()
	in := bufio.NewReader(nc)
	for range 3 {
		if _, err := io.WriteString(nc, "GET / HTTP/1.1\r\nHost: test\r\n\r\n"); err != nil {
			return nil
		}
		resp, err := http.ReadResponse(in, nil)
		if err != nil || resp.Close {
			return nil
		}
		_, _ = io.Copy(io.Discard, resp.Body)
	}
	return nil
}

func TestHandlerPanicEndsOnlyItsConnection(t *testing.T) {
	w := newTestWorker(t, Config{})
	ln := listenLocal(t)
	w.Conns(ln, func(_ context.Context, c net.Conn) {
		b := make([]byte, 1)
		if _, err := c.Read(b); err != nil || b[0] == 'p' {
			panic("on purpose")
		}
		_, _ = c.Write(b)
	})
	bad, good := dialEcho(t, ln.Addr().String()), dialEcho(t, ln.Addr().String())
	mustWrite2(t, bad, "p")
	if _, err := bad.in.ReadByte(); err != io.EOF {
		t.Errorf("the bad one: %v, want EOF", err)
	}
	mustWrite2(t, good, "g")
	if b, err := good.in.ReadByte(); b != 'g' || err != nil {
		t.Errorf("the good one: %q, %v", b, err)
	}
	eventually(t, "both are gone", func() bool { return w.Counts().Open == 0 })
}

// TestServersOwnHooksAreKept: what the user put into the server still works.
func TestServersOwnHooksAreKept(t *testing.T) {
	type key string
	var mu sync.Mutex
	var states []string
	got := make(chan string, 1)
	srv := &http.Server{
		Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			got <- fmt.Sprint(r.Context().Value(key("base")), r.Context().Value(key("conn")))
		}),
		BaseContext: func(net.Listener) context.Context { return context.WithValue(t.Context(), key("base"), "base") },
		ConnContext: func(ctx context.Context, _ net.Conn) context.Context {
			return context.WithValue(ctx, key("conn"), "conn")
		},
		ConnState: func(_ net.Conn, s http.ConnState) {
			mu.Lock()
			defer mu.Unlock()
			states = append(states, s.String())
		},
	}
	shutdown := make(chan struct{})
	srv.RegisterOnShutdown(func() { close(shutdown) })
	w := newTestWorker(t, Config{})
	ln := listenLocal(t)
	w.HTTP(ln, srv)
	c := dialEcho(t, ln.Addr().String())
	c.get(t)
	if s := <-got; s != "baseconn" {
		t.Errorf("the request's context has %q", s)
	}
	_ = c.Close()
	eventually(t, "the connection is closed", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return strings.Join(states, " ") == "new active idle closed"
	})
	w.Drain("test")
	<-shutdown
	wantGraceful(t, w)
}

// TestFilesAreStillSentByTheKernel: net/http finds ReadFrom on the connection.
func TestFilesAreStillSentByTheKernel(t *testing.T) {
	var nc net.Conn = &conn{}
	if _, ok := nc.(io.ReaderFrom); !ok {
		t.Error("a watched connection is no io.ReaderFrom, so that sendfile is not used")
	}
	w := newWatcher(time.Second)
	c, peer := connPair(t, w, stateActive)
	if n, err := c.ReadFrom(strings.NewReader("hello")); n != 5 || err != nil {
		t.Fatalf("%d, %v", n, err)
	}
	_ = c.Close()
	if b, err := io.ReadAll(peer); !bytes.Equal(b, []byte("hello")) || err != nil {
		t.Errorf("%q, %v", b, err)
	}
}
