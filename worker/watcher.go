package worker

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// A watcher knows every connection, and brings them to an end.
type watcher struct {
	patience time.Duration // with connections that are without a request

	// draining and toldRest are set once: HTTP connections, then all others,
	// shall end.
	draining atomic.Bool
	toldRest atomic.Bool

	// base is the parent of all that handlers do; cancelled when the grace
	// period begins.
	base   context.Context
	cancel context.CancelFunc

	poked chan struct{} // something changed while draining

	mu    sync.Mutex
	began time.Time // of draining
	conns map[*conn]struct{}
	holds map[*hold]struct{}
}

// A hold is a piece of work that is no connection.
type hold struct {
	name  string
	since time.Time
}

func newWatcher(patience time.Duration) *watcher {
	w := &watcher{
		patience: patience,
		poked:    make(chan struct{}, 1),
		conns:    make(map[*conn]struct{}),
		holds:    make(map[*hold]struct{}),
	}
	w.base, w.cancel = context.WithCancel(context.Background())
	return w
}

func (w *watcher) add(nc net.Conn, s connState) *conn {
	c := &conn{Conn: nc, watcher: w}
	c.state.Store(uint32(s))
	w.mu.Lock()
	w.conns[c] = struct{}{}
	w.mu.Unlock()
	c.stamp()
	return c
}

func (w *watcher) remove(c *conn) {
	w.mu.Lock()
	delete(w.conns, c)
	w.mu.Unlock()
	w.pokeIfDraining()
}

// hold makes the drain wait for a piece of work until release is called.
func (w *watcher) hold(name string) (release func()) {
	h := &hold{name: name, since: time.Now()}
	w.mu.Lock()
	w.holds[h] = struct{}{}
	w.mu.Unlock()
	return func() {
		w.mu.Lock()
		delete(w.holds, h)
		w.mu.Unlock()
		w.pokeIfDraining()
	}
}

func (w *watcher) pokeIfDraining() {
	if w.draining.Load() {
		w.poke()
	}
}

func (w *watcher) poke() {
	select {
	case w.poked <- struct{}{}:
	default:
	}
}

// snapshot is for those who look at each connection without holding mu.
func (w *watcher) snapshot() []*conn {
	w.mu.Lock()
	defer w.mu.Unlock()
	list := make([]*conn, 0, len(w.conns))
	for c := range w.conns {
		list = append(list, c)
	}
	return list
}

// drainHTTP begins the drain: from now on answers say "Connection: close",
// and connections without a request are closed after a while.
func (w *watcher) drainHTTP() {
	w.mu.Lock()
	w.began = time.Now()
	w.mu.Unlock()
	w.draining.Store(true)
	w.tell(connState.isHTTP)
}

// drainRest tells hijacked and plain connections.
func (w *watcher) drainRest() {
	w.toldRest.Store(true)
	w.tell(func(connState) bool { return true })
}

func (w *watcher) tell(whom func(connState) bool) {
	for _, c := range w.snapshot() {
		if whom(c.load()) {
			c.tellToEnd()
		}
	}
}

// hasTold tells whether a connection in state s has been asked to end.
func (w *watcher) hasTold(s connState) bool {
	return w.toldRest.Load() || w.draining.Load() && s.isHTTP()
}

// awaitHTTP waits until no connection is left that ends by the rules of HTTP;
// false means that ctx ended first.
func (w *watcher) awaitHTTP(ctx context.Context) bool {
	return w.await(ctx, func() (bool, time.Time) {
		left, again := w.sweep()
		return left == 0, again
	})
}

// awaitAll waits until no connection and no hold is left.
func (w *watcher) awaitAll(ctx context.Context) bool {
	return w.await(ctx, func() (bool, time.Time) {
		_, again := w.sweep()
		w.mu.Lock()
		defer w.mu.Unlock()
		return len(w.conns)+len(w.holds) == 0, again
	})
}

// await asks done after every change, and when the time comes that it names.
func (w *watcher) await(ctx context.Context, done func() (bool, time.Time)) bool {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		ok, again := done()
		if ok {
			return true
		}
		timer.Stop()
		if !again.IsZero() {
			timer.Reset(time.Until(again))
		}
		select {
		case <-ctx.Done():
			return false
		case <-w.poked:
		case <-timer.C:
		}
	}
}

// sweep ends the HTTP connections that are due. It returns how many there are
// still, and when the next one is due; zero where only a change can tell.
func (w *watcher) sweep() (left int, again time.Time) {
	now := time.Now()
	for _, c := range w.snapshot() {
		if !c.load().isHTTP() {
			continue
		}
		left++
		due := c.endIfDue(now, w.began, w.patience)
		if !due.IsZero() && (again.IsZero() || due.Before(again)) {
			again = due
		}
	}
	return left, again
}

// cutAll closes what is still open and names it.
func (w *watcher) cutAll() []Cut {
	var cut []Cut
	for _, c := range w.snapshot() {
		cut = append(cut, c.describe())
		c.cut()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for h := range w.holds {
		cut = append(cut, Cut{State: "held", Request: h.name})
	}
	clear(w.holds)
	return cut
}

func (c *conn) describe() Cut {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.load()
	cut := Cut{State: s.String(), Local: c.LocalAddr().String(), Remote: c.RemoteAddr().String()}
	if c.method != "" && s >= stateActive {
		cut.Request = c.method + " " + c.target
	}
	return cut
}

// Counts says how many connections are in which state.
type Counts struct {
	Open     int `json:"open"`     // all of them
	New      int `json:"new"`      // nothing has been read yet
	Idle     int `json:"idle"`     // between two requests
	Reading  int `json:"reading"`  // part of a request has been read
	Active   int `json:"active"`   // in a request
	Hijacked int `json:"hijacked"` // WebSockets and other upgraded connections
	Plain    int `json:"plain"`    // of handlers and servers other than net/http
	Holds    int `json:"holds"`    // work that is held by Hold, not counted as open
}

func (w *watcher) counts() Counts {
	var by [statePlain + 1]int
	w.mu.Lock()
	defer w.mu.Unlock()
	for c := range w.conns {
		by[c.load()]++
	}
	return Counts{
		Open: len(w.conns), New: by[stateNew], Idle: by[stateIdle], Reading: by[stateReading],
		Active: by[stateActive], Hijacked: by[stateHijacked], Plain: by[statePlain], Holds: len(w.holds),
	}
}
