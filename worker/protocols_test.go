package worker

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/websocket"
)

// httpsConfig borrows the certificate of package httptest.
func httpsConfig(t *testing.T) (server, client *tls.Config) {
	t.Helper()
	srv := httptest.NewUnstartedServer(nil)
	srv.StartTLS()
	defer srv.Close()
	return &tls.Config{Certificates: srv.TLS.Certificates}, &tls.Config{InsecureSkipVerify: true}
}

// startHTTP2 serves h over TLS or without, and returns a client and the URL.
func startHTTP2(t *testing.T, w *Worker, secure bool, h http.Handler) (*http.Client, string) {
	t.Helper()
	ln := listenLocal(t)
	protocols := new(http.Protocols)
	transport := &http.Transport{Protocols: protocols}
	t.Cleanup(transport.CloseIdleConnections)
	client := &http.Client{Transport: transport}
	if !secure {
		protocols.SetUnencryptedHTTP2(true)
		w.HTTP(ln, &http.Server{Handler: h, Protocols: protocols})
		return client, "http://" + ln.Addr().String()
	}
	protocols.SetHTTP2(true)
	srv := &http.Server{Handler: h}
	srv.TLSConfig, transport.TLSClientConfig = httpsConfig(t)
	w.HTTPS(ln, srv, "", "")
	return client, "https://" + ln.Addr().String()
}

func forSecureAndNot(t *testing.T, f func(t *testing.T, secure bool)) {
	for _, secure := range []bool{true, false} {
		name := "h2c"
		if secure {
			name = "tls"
		}
		t.Run(name, func(t *testing.T) { f(t, secure) })
	}
}

// TestHTTP2StreamsInFlight are all answered, although the client is told to go
// away at once.
func TestHTTP2StreamsInFlight(t *testing.T) {
	forSecureAndNot(t, func(t *testing.T, secure bool) {
		const streams = 20
		w := newTestWorker(t, Config{Idle: 500 * time.Millisecond})
		var begun sync.WaitGroup
		begun.Add(streams)
		goOn := make(chan struct{})
		client, url := startHTTP2(t, w, secure, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			begun.Done()
			<-goOn
			_, _ = fmt.Fprint(rw, r.Proto)
		}))
		var clients sync.WaitGroup
		for range streams {
			clients.Go(func() {
				resp, err := client.Get(url)
				if err != nil {
					t.Error(err)
					return
				}
				defer resp.Body.Close()
				if body, err := io.ReadAll(resp.Body); string(body) != "HTTP/2.0" || err != nil {
					t.Errorf("%q, %v", body, err)
				}
			})
		}
		begun.Wait()
		if c := w.Counts(); c.Active == 0 {
			t.Errorf("counts %+v, want a connection in a request", c)
		}
		drainBegun(t, w)
		close(goOn)
		clients.Wait()
		wantGraceful(t, w)
	})
}

// TestHTTP2GoAway: an idle connection hears GOAWAY when the drain begins, and
// does not wait for HTTP/1 requests.
func TestHTTP2GoAway(t *testing.T) {
	forSecureAndNot(t, func(t *testing.T, secure bool) {
		w := newTestWorker(t, Config{Idle: 2 * time.Second}) // longer than the second after GOAWAY
		goOn := make(chan struct{})
		held := http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-goOn })
		_, url := startHTTP2(t, w, secure, held)
		plain := listenLocal(t)
		w.HTTP(plain, &http.Server{Handler: held})
		conn := dialHTTP2(t, url)
		f := http2.NewFramer(conn, conn)
		if err := f.WriteSettings(); err != nil {
			t.Fatal(err)
		}
		awaitFrame(t, f, http2.FrameSettings)
		eventually(t, "the connection is idle", func() bool { return w.Counts().Idle+w.Counts().Reading == 1 })
		request := dialEcho(t, plain.Addr().String())
		mustWrite2(t, request, "GET / HTTP/1.1\r\nHost: test\r\n\r\n")
		eventually(t, "a request is in progress", func() bool { return w.Counts().Active == 1 })
		w.Drain("test")
		awaitFrame(t, f, http2.FrameGoAway)
		_ = conn.Close()
		close(goOn)
		_, _ = io.Copy(io.Discard, request)
		_ = request.Close()
		wantGraceful(t, w)
	})
}

func dialHTTP2(t *testing.T, url string) net.Conn {
	t.Helper()
	var conn net.Conn
	var err error
	if addr, secure := strings.CutPrefix(url, "https://"); secure {
		conn, err = tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	} else {
		conn, err = net.Dial("tcp", url[len("http://"):])
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	mustWrite2(t, conn, http2.ClientPreface)
	return conn
}

func awaitFrame(t *testing.T, f *http2.Framer, want http2.FrameType) {
	t.Helper()
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			t.Fatalf("no %v: %v", want, err)
		}
		if frame.Header().Type == want {
			return
		}
	}
}

// TestHTTP2StaysOff where the user switched it off, and another's
// configuration stays as it is.
func TestHTTP2StaysOff(t *testing.T) {
	off := &http.Server{TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){}}
	instrument(off, newWatcher(time.Second))
	if len(off.TLSNextProto) != 0 {
		t.Error("HTTP/2 was switched on")
	}
	own := &http.Server{TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){"h2": nil}}
	if h := instrument(own, newWatcher(time.Second)); h.goAway != nil {
		t.Error("the user's HTTP/2 was replaced")
	}
	only1 := &http.Server{Protocols: new(http.Protocols)}
	only1.Protocols.SetHTTP1(true)
	if h := instrument(only1, newWatcher(time.Second)); h.goAway != nil {
		t.Error("HTTP/2 was switched on against Protocols")
	}
}

// TestTLSKeepAlive: the idle connection of a TLS client is served once more,
// and one that sends nothing ends with a proper goodbye.
func TestTLSKeepAlive(t *testing.T) {
	w := newTestWorker(t, Config{Idle: 300 * time.Millisecond})
	ln := listenLocal(t)
	srv := &http.Server{Handler: sayOK}
	var client *tls.Config
	srv.TLSConfig, client = httpsConfig(t)
	w.HTTPS(ln, srv, "", "")
	var conns []*echoConn
	for range 2 {
		nc, err := tls.Dial("tcp", ln.Addr().String(), client)
		if err != nil {
			t.Fatal(err)
		}
		c := &echoConn{nc, bufio.NewReader(nc)}
		c.get(t)
		conns = append(conns, c)
	}
	eventually(t, "both are idle", func() bool { return w.Counts().Idle == 2 })
	drainBegun(t, w)
	if resp := conns[0].get(t); !resp.Close {
		t.Error("the answer does not end the connection")
	}
	for _, c := range conns {
		if _, err := c.in.ReadByte(); err != io.EOF {
			t.Errorf("%v, want EOF, which stands for close_notify", err)
		}
		_ = c.Close()
	}
	wantGraceful(t, w)
}

// TestWebSockets echo throughout the drain until they are told.
func TestWebSockets(t *testing.T) {
	goOn := make(chan struct{})
	mux := http.NewServeMux()
	mux.Handle("/ws", websocket.Handler(func(ws *websocket.Conn) {
		go func() {
			<-Ending(ws.Request().Context()).Done()
			_ = websocket.Message.Send(ws, "bye")
		}()
		for {
			var m string
			if websocket.Message.Receive(ws, &m) != nil {
				return
			}
			_ = websocket.Message.Send(ws, m)
		}
	}))
	mux.HandleFunc("/request", func(http.ResponseWriter, *http.Request) { <-goOn })
	w, addr := serveHTTP(t, Config{Idle: 500 * time.Millisecond}, mux)
	ws, err := websocket.Dial("ws://"+addr+"/ws", "", "http://"+addr)
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Close()
	echo := func(m string) string {
		_ = websocket.Message.Send(ws, m)
		var got string
		if err := websocket.Message.Receive(ws, &got); err != nil {
			t.Fatal(err)
		}
		return got
	}
	if echo("before") != "before" || w.Counts().Hijacked != 1 {
		t.Fatalf("no echo; counts %+v", w.Counts())
	}
	request := dialEcho(t, addr)
	mustWrite2(t, request, "GET /request HTTP/1.1\r\nHost: test\r\n\r\n")
	eventually(t, "a request is in progress", func() bool { return w.Counts().Active == 1 })
	drainBegun(t, w)
	if got := echo("during"); got != "during" {
		t.Errorf("got %q while a request is in progress", got)
	}
	close(goOn)
	_, _ = io.Copy(io.Discard, request)
	_ = request.Close()
	var got string
	if err := websocket.Message.Receive(ws, &got); got != "bye" || err != nil {
		t.Errorf("%q, %v; want to be told", got, err)
	}
	_ = ws.Close()
	wantGraceful(t, w)
}

// TestNewWebSocketDuringTheDrain: the handshake keeps its Connection header.
func TestNewWebSocketDuringTheDrain(t *testing.T) {
	h := func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Add("Connection", "Upgrade")
		rw.Header().Set("Upgrade", "test")
		rw.WriteHeader(http.StatusSwitchingProtocols)
	}
	w, addr := serveHTTP(t, Config{}, http.HandlerFunc(h))
	c := dialEcho(t, addr)
	eventually(t, "it is connected", func() bool { return w.Counts().Open == 1 })
	drainBegun(t, w)
	mustWrite2(t, c, "GET / HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: test\r\n\r\n")
	resp, err := http.ReadResponse(c.in, nil)
	if err != nil || resp.Header.Get("Connection") != "Upgrade" {
		t.Errorf("%v, %v", resp, err)
	}
}

// TestWhatIsCutIsNamed: request, state and peer of each.
func TestWhatIsCutIsNamed(t *testing.T) {
	stuck := make(chan struct{})
	defer close(stuck)
	h := func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/hijack" {
			if _, _, err := http.NewResponseController(rw).Hijack(); err != nil {
				t.Error(err)
			}
		}
		<-stuck
	}
	w, addr := serveHTTP(t, Config{Drain: 100 * time.Millisecond, Grace: 100 * time.Millisecond}, http.HandlerFunc(h))
	want := map[string]string{}
	for path, state := range map[string]string{"/download?id=1": "in a request", "/hijack": "hijacked"} {
		c := dialEcho(t, addr)
		mustWrite2(t, c, "GET "+path+" HTTP/1.1\r\nHost: test\r\n\r\n")
		want[c.LocalAddr().String()] = state + " GET " + path
	}
	eventually(t, "both are in progress", func() bool { c := w.Counts(); return c.Active == 1 && c.Hijacked == 1 })
	w.Drain("test")
	r := w.Wait()
	for _, c := range r.Cut {
		if want[c.Remote] != c.State+" "+c.Request {
			t.Errorf("cut %+v, want %q", c, want[c.Remote])
		}
	}
	if len(r.Cut) != 2 || r.Err() == nil {
		t.Errorf("cut %v, want both", r.Cut)
	}
}

// TestPlainConnections finish the transaction in hand and say goodbye.
func TestPlainConnections(t *testing.T) {
	w := newTestWorker(t, Config{})
	ln := listenLocal(t)
	w.Conns(ln, func(ctx context.Context, c net.Conn) {
		stop := context.AfterFunc(Ending(ctx), func() { _ = c.SetReadDeadline(time.Now()) })
		defer stop()
		for {
			b := make([]byte, 1)
			if _, err := c.Read(b); err != nil {
				_, _ = io.WriteString(c, "bye")
				return
			}
			_, _ = c.Write(b)
		}
	})
	c := dialEcho(t, ln.Addr().String())
	mustWrite2(t, c, "x")
	if b, err := c.in.ReadByte(); b != 'x' || err != nil {
		t.Fatalf("%q, %v", b, err)
	}
	if got := w.Counts(); got != (Counts{Open: 1, Plain: 1}) {
		t.Errorf("counts %+v", got)
	}
	w.Drain("test")
	if b, err := io.ReadAll(c.in); string(b) != "bye" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
	_ = c.Close()
	wantGraceful(t, w)
}

// TestWatchForServersWithALoopOfTheirOwn, as gRPC has one: a hook of an early
// stage tells the server, and its connections are waited for.
func TestWatchForServersWithALoopOfTheirOwn(t *testing.T) {
	w := newTestWorker(t, Config{})
	ln := w.Watch(listenLocal(t))
	stopped := make(chan struct{})
	loop := make(chan error, 1)
	go func() {
		nc, err := ln.Accept()
		if err != nil {
			loop <- err
			return
		}
		go func() {
			<-stopped
			_ = nc.Close()
		}()
		_, err = ln.Accept()
		loop <- err
	}()
	c := dialEcho(t, ln.Addr().String())
	eventually(t, "it is accepted", func() bool { return w.Counts().Plain == 1 })
	w.Hook(Hook{Stage: -1, Name: "server", Run: func(context.Context) error { close(stopped); return nil }})
	w.Drain("test")
	if err := <-loop; !errors.Is(err, net.ErrClosed) {
		t.Errorf("the loop ends with %v", err)
	}
	if _, err := c.in.ReadByte(); err != io.EOF {
		t.Errorf("%v, want EOF", err)
	}
	_ = c.Close()
	wantGraceful(t, w)
}
