package worker

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// connState says what is known about a connection. net/http alone would not
// do: to it a connection is idle until a whole request header has been read,
// and whoever closes it then cuts the request that is just arriving.
type connState uint32

const (
	stateNew      connState = iota // accepted, not a byte read
	stateIdle                      // between two requests
	stateReading                   // the first bytes of a request are there
	stateActive                    // a handler runs
	stateHijacked                  // taken over by a handler, WebSockets above all
	statePlain                     // not HTTP: its transactions are its own
)

var stateNames = [...]string{"new", "idle", "reading a request", "in a request", "hijacked", "open"}

func (s connState) String() string { return stateNames[s] }

// isHTTP tells whether the connection ends by the rules of HTTP.
func (s connState) isHTTP() bool { return s < stateHijacked }

// lingerTime bounds how long a connection that we close first is read from
// before it is closed for good: what arrives at a closed socket is answered
// with a reset, and that may overtake the last answer on its way to the client.
const lingerTime = time.Second

// distantPast makes a read that is under way return.
var distantPast = time.Unix(1, 0)

// A conn is a watched connection. It adds no goroutine; while nothing drains
// it costs a read one atomic load.
type conn struct {
	net.Conn
	watcher *watcher
	state   atomic.Uint32

	// ending is set while a read is made to return, so that the goroutine
	// which serves the connection closes it. It changes under mu.
	ending   atomic.Bool
	deadline atomic.Int64 // of reads, as the server asked for it: Unix ns, or 0

	mu      sync.Mutex
	since   time.Time // of state, while the watcher drains
	method  string    // of the last request, with its target
	target  string
	over    bool // a read has been told that this is the end
	told    context.Context
	tell    context.CancelFunc
	closing sync.Once
	result  error // of closing
}

func (c *conn) load() connState { return connState(c.state.Load()) }

// NetConn returns the connection that is watched, as tls.Conn does. Whoever
// writes to it or closes it does so behind the watcher's back.
func (c *conn) NetConn() net.Conn { return c.Conn }

// Read is net.Conn's. The first bytes after a pause turn the connection into
// one that reads a request: from here on it is not idle any more.
func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.touch()
		return n, err
	}
	if err != nil && c.ending.Load() && errors.Is(err, os.ErrDeadlineExceeded) {
		return c.lastLook(p)
	}
	return n, err
}

func (c *conn) touch() {
	if s := c.load(); s < stateReading && c.state.CompareAndSwap(uint32(s), uint32(stateReading)) {
		c.spare()
		c.stamp()
	}
}

// set is called by the goroutine that serves the connection.
func (c *conn) set(s connState) {
	c.state.Store(uint32(s))
	if s == stateActive {
		c.spare()
	}
	c.stamp()
}

// stamp notes when the state began. Before the drain nobody asks: a
// connection that was idle then counts from the beginning of the drain.
func (c *conn) stamp() {
	if !c.watcher.draining.Load() {
		return
	}
	c.mu.Lock()
	c.since = time.Now()
	c.mu.Unlock()
	c.watcher.poke()
}

// endIfDue makes the goroutine that serves the connection close it, if it has
// been without a whole request for as long as patience. Otherwise it returns
// when to ask again; zero means not before the state changes.
func (c *conn) endIfDue(now, began time.Time, patience time.Duration) (again time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.load()
	if s >= stateActive || c.ending.Load() {
		return time.Time{}
	}
	due := began
	if c.since.After(due) {
		due = c.since
	}
	if due = due.Add(patience); due.After(now) {
		return due
	}
	// Who changes the state looks at ending afterwards, so one of the two
	// sees the other.
	c.ending.Store(true)
	if c.load() != s {
		c.ending.Store(false)
		return now
	}
	_ = c.Conn.SetReadDeadline(distantPast)
	return time.Time{}
}

// spare takes that back: a request has begun to arrive, or has arrived whole.
func (c *conn) spare() {
	if !c.ending.Load() {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.restore()
}

// restore needs mu.
func (c *conn) restore() {
	c.ending.Store(false)
	var t time.Time
	if ns := c.deadline.Load(); ns != 0 {
		t = time.Unix(0, ns)
	}
	_ = c.Conn.SetReadDeadline(t)
}

// lastLook takes what has arrived up to this instant, and otherwise ends the
// connection. An idle connection is spared by it and has time to send the rest
// of its request; one that was reading a request has had its time.
func (c *conn) lastLook(p []byte) (int, error) {
	c.mu.Lock()
	if !c.ending.Load() {
		c.mu.Unlock()
		return c.Read(p)
	}
	defer c.mu.Unlock()
	if c.over {
		return 0, io.EOF
	}
	n := readNow(c.Conn, p)
	if n == 0 {
		c.over = true // net/http sometimes reads on after an error
		_ = c.Conn.SetReadDeadline(distantPast)
		return 0, io.EOF
	}
	if s := c.load(); s < stateReading {
		c.state.Store(uint32(stateReading))
		c.since = time.Now()
		c.restore()
		c.watcher.poke()
		return n, nil
	}
	_ = c.Conn.SetReadDeadline(distantPast)
	return n, nil
}

// readNow reads what is there without waiting for more.
func readNow(nc net.Conn, p []byte) (n int) {
	_ = nc.SetReadDeadline(time.Time{})
	sc, ok := nc.(syscall.Conn)
	if !ok {
		return 0
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return 0
	}
	_ = raw.Read(func(fd uintptr) bool {
		n, _ = syscall.Read(int(fd), p)
		return true
	})
	return max(n, 0)
}

// SetReadDeadline is net.Conn's; that of endIfDue goes before the server's.
func (c *conn) SetReadDeadline(t time.Time) error {
	var ns int64
	if !t.IsZero() {
		ns = t.UnixNano()
	}
	c.deadline.Store(ns)
	err := c.Conn.SetReadDeadline(t)
	if c.ending.Load() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.ending.Load() {
			return c.Conn.SetReadDeadline(distantPast)
		}
	}
	return err
}

// SetDeadline is net.Conn's.
func (c *conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// ReadFrom lets net/http send files with sendfile(2), as it does on a
// *net.TCPConn.
func (c *conn) ReadFrom(r io.Reader) (int64, error) {
	if rf, ok := c.Conn.(io.ReaderFrom); ok {
		return rf.ReadFrom(r)
	}
	return io.Copy(writerOnly{c.Conn}, r)
}

type writerOnly struct{ io.Writer }

// CloseWrite sends the client our goodbye and leaves the other direction open.
func (c *conn) CloseWrite() error {
	if cw, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return cw.CloseWrite()
	}
	return errors.ErrUnsupported
}

// SyscallConn gives the descriptor to those who set options on it.
func (c *conn) SyscallConn() (syscall.RawConn, error) {
	if sc, ok := c.Conn.(syscall.Conn); ok {
		return sc.SyscallConn()
	}
	return nil, errors.ErrUnsupported
}

// Close is net.Conn's. While the watcher drains, it lingers: it says goodbye,
// reads until the client says so too, and only then closes.
func (c *conn) Close() error {
	c.closing.Do(func() {
		if c.watcher.draining.Load() && c.load() != stateHijacked { // a hijacked one says goodbye in its own words
			c.linger()
		}
		c.result = c.Conn.Close()
		c.watcher.remove(c)
	})
	return c.result
}

func (c *conn) linger() {
	if c.CloseWrite() != nil {
		return
	}
	c.mu.Lock()
	c.ending.Store(false)
	_ = c.Conn.SetReadDeadline(time.Now().Add(lingerTime))
	c.mu.Unlock()
	_, _ = io.Copy(io.Discard, c.Conn)
}

// cut closes the connection whatever it is doing.
func (c *conn) cut() {
	_ = c.Conn.Close()
	c.watcher.remove(c)
}

func (c *conn) begin(method, target string) {
	c.mu.Lock()
	c.method, c.target = method, target
	c.mu.Unlock()
}

// endingContext is made for those who ask.
func (c *conn) endingContext() context.Context {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.told == nil {
		c.told, c.tell = context.WithCancel(context.Background())
		if c.watcher.hasTold(c.load()) {
			c.tell()
		}
	}
	return c.told
}

func (c *conn) tellToEnd() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.tell != nil {
		c.tell()
	}
}
