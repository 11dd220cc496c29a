package worker

import (
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// emptyQuiet is for how long nobody must come before the queue of a
	// listener counts as empty.
	emptyQuiet = 20 * time.Millisecond
	// emptyLimit bounds how long late clients can keep a listener open.
	emptyLimit = time.Second
)

// A listener watches the connections that it accepts.
type listener struct {
	net.Listener
	watcher *watcher
	first   connState // of each connection

	// accepting is held for reading while a connection is accepted and
	// counted, so that none slips by when the listener is closed.
	accepting sync.RWMutex

	mode    atomic.Uint32
	emptied chan struct{}
	empty   sync.Once // closes emptied

	// closing makes a second Close wait for the first: package net would
	// return at once, with the port still open for an instant.
	closing sync.Once
	result  error // of closing
}

const (
	listening uint32 = iota
	emptying
	closed
)

func newListener(ln net.Listener, w *watcher, first connState) *listener {
	return &listener{Listener: ln, watcher: w, first: first, emptied: make(chan struct{})}
}

// Accept is net.Listener's. After stop its error is net.ErrClosed.
func (l *listener) Accept() (net.Conn, error) {
	l.accepting.RLock()
	defer l.accepting.RUnlock()
	for {
		mode := l.mode.Load()
		if mode == emptying {
			l.setDeadline(time.Now().Add(emptyQuiet))
		}
		nc, err := l.Listener.Accept()
		if err == nil {
			return l.watcher.add(nc, l.first), nil
		}
		switch {
		case l.mode.Load() == listening:
			return nil, err
		case mode == listening && errors.Is(err, os.ErrDeadlineExceeded):
			continue // woken by stop
		}
		l.empty.Do(func() { close(l.emptied) })
		return nil, net.ErrClosed
	}
}

// stop closes the listener. With empty, connections that wait in the kernel's
// queue are accepted first, within bounds; that only makes sense where nobody
// else accepts from the same socket.
func (l *listener) stop(empty bool) {
	if empty && l.mode.CompareAndSwap(listening, emptying) && l.setDeadline(distantPast) {
		select {
		case <-l.emptied:
		case <-time.After(emptyLimit):
		}
	}
	_ = l.Close()
	l.accepting.Lock()
	defer l.accepting.Unlock()
}

func (l *listener) setDeadline(t time.Time) bool {
	d, ok := l.Listener.(interface{ SetDeadline(time.Time) error })
	return ok && d.SetDeadline(t) == nil
}

// Close is net.Listener's, for servers that close what they serve.
func (l *listener) Close() error {
	l.mode.Store(closed)
	l.closing.Do(func() { l.result = l.Listener.Close() })
	return l.result
}
