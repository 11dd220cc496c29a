package worker

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"
)

// connPair returns a watched TCP connection and its other end.
func connPair(t *testing.T, w *watcher, s connState) (*conn, net.Conn) {
	t.Helper()
	ln := listenLocal(t)
	peer, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	nc, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = peer.Close()
		_ = nc.Close()
	})
	return w.add(nc, s), peer
}

func mustWrite(t *testing.T, nc net.Conn, s string) {
	t.Helper()
	if _, err := io.WriteString(nc, s); err != nil {
		t.Fatal(err)
	}
}

// awaitQueued waits until the bytes are in the receive queue of c.
func awaitQueued(t *testing.T, c *conn, want int) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, want)
	eventually(t, "the bytes have arrived", func() bool {
		n := 0
		_ = raw.Control(func(fd uintptr) { n, _, _ = syscall.Recvfrom(int(fd), p, syscall.MSG_PEEK) })
		return n == want
	})
}

func TestConnStates(t *testing.T) {
	w := newWatcher(time.Second)
	c, peer := connPair(t, w, stateNew)
	p := make([]byte, 10)
	mustWrite(t, peer, "x")
	if _, err := c.Read(p); err != nil || c.load() != stateReading {
		t.Errorf("after the first byte: %v, state %v; want reading", err, c.load())
	}
	c.set(stateActive)
	mustWrite(t, peer, "x")
	if _, err := c.Read(p); err != nil || c.load() != stateActive {
		t.Errorf("after a byte of the body: %v, state %v; want active", err, c.load())
	}
	c.set(stateIdle)
	if got := w.counts(); got != (Counts{Open: 1, Idle: 1}) {
		t.Errorf("counts %+v, want one idle", got)
	}
	mustWrite(t, peer, "x")
	if _, err := c.Read(p); err != nil || c.load() != stateReading {
		t.Errorf("after the next request's first byte: %v, state %v; want reading", err, c.load())
	}
	_ = c.Close()
	if got := w.counts(); got != (Counts{}) {
		t.Errorf("counts %+v after Close, want none", got)
	}
}

// TestRequestAtTheLastMoment: the time of an idle connection is over, and at
// that very moment a request lies in the queue. It must be taken.
func TestRequestAtTheLastMoment(t *testing.T) {
	w := newWatcher(time.Second)
	c, peer := connPair(t, w, stateNew)
	c.set(stateIdle)
	w.drainHTTP()
	mustWrite(t, peer, "GET")
	awaitQueued(t, c, 3)
	if again := c.endIfDue(time.Now().Add(time.Minute), w.began, w.patience); !again.IsZero() {
		t.Fatalf("not due before %v", again)
	}
	p := make([]byte, 10)
	n, err := c.Read(p)
	if string(p[:n]) != "GET" || err != nil {
		t.Fatalf("read %q, %v; want the request", p[:n], err)
	}
	if c.load() != stateReading || c.ending.Load() {
		t.Errorf("state %v, ending %v; want a connection that is spared", c.load(), c.ending.Load())
	}
	mustWrite(t, peer, " / ") // the rest comes later
	if n, err := c.Read(p); n != 3 || err != nil {
		t.Errorf("the rest of the request: %d, %v", n, err)
	}
}

func TestIdleConnectionEndsWhenItIsDue(t *testing.T) {
	w := newWatcher(time.Second)
	c, peer := connPair(t, w, stateNew)
	c.set(stateIdle)
	w.drainHTTP()
	now := time.Now()
	if again := c.endIfDue(now, w.began, w.patience); !again.After(now) {
		t.Errorf("due at %v, before its time", again)
	}
	read := make(chan error)
	go func() {
		_, err := c.Read(make([]byte, 1))
		read <- err
		_ = c.Close()
	}()
	c.endIfDue(now.Add(time.Minute), w.began, w.patience)
	if err := <-read; err != io.EOF {
		t.Errorf("the server's read ends with %v, want EOF", err)
	}
	if _, err := peer.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the client's read ends with %v, want EOF", err)
	}
}

// TestDeadlineOfTheServerSurvives: whoever serves the connection sets its own
// deadline after ours, and gets its own back when the connection is spared.
func TestDeadlineOfTheServerSurvives(t *testing.T) {
	w := newWatcher(time.Second)
	c, _ := connPair(t, w, stateNew)
	w.drainHTTP()
	c.endIfDue(time.Now().Add(time.Minute), w.began, w.patience)
	if err := c.SetReadDeadline(time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); err != io.EOF {
		t.Fatalf("read ends with %v, want EOF although the server set a later deadline", err)
	}
	if err := c.SetReadDeadline(time.Now().Add(10 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	c.set(stateActive) // the request was in a buffer
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read ends with %v, want the server's deadline", err)
	}
}

func TestActiveConnectionIsNeverDue(t *testing.T) {
	w := newWatcher(0)
	w.drainHTTP()
	for _, s := range []connState{stateActive, stateHijacked, statePlain} {
		c, _ := connPair(t, w, s)
		c.endIfDue(time.Now().Add(time.Hour), w.began, w.patience)
		if c.ending.Load() {
			t.Errorf("a connection that is %v is ended", s)
		}
	}
}

// TestLingeringClose: what the client sends after our goodbye does not turn
// into a reset that takes the answer with it.
func TestLingeringClose(t *testing.T) {
	w := newWatcher(time.Second)
	c, peer := connPair(t, w, stateActive)
	w.drainHTTP()
	mustWrite(t, c, "answer")
	closed := make(chan struct{})
	go func() {
		_ = c.Close()
		close(closed)
	}()
	mustWrite(t, peer, "more")
	got, err := io.ReadAll(peer)
	if string(got) != "answer" || err != nil {
		t.Errorf("client read %q, %v", got, err)
	}
	mustWrite(t, peer, "and more") // still no reset
	_ = peer.Close()
	<-closed
}

func TestEndingContextFollowsTheState(t *testing.T) {
	w := newWatcher(time.Minute)
	request, _ := connPair(t, w, stateActive)
	socket, _ := connPair(t, w, stateHijacked)
	early, late := request.endingContext(), socket.endingContext()
	w.drainHTTP()
	if early.Err() == nil || late.Err() != nil {
		t.Errorf("after the beginning: HTTP told %v, hijacked told %v; want only the first", early.Err(), late.Err())
	}
	w.drainRest()
	if late.Err() == nil {
		t.Error("the hijacked connection has not been told")
	}
	if other, _ := connPair(t, w, stateHijacked); other.endingContext().Err() == nil {
		t.Error("who asks afterwards is not told")
	}
}
