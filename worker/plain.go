package worker

import (
	"context"
	"errors"
	"net"
	"runtime/debug"
	"time"
)

// Conns accepts connections of any protocol on ln and runs handle for each in
// a goroutine of its own; the connection is closed when handle returns. ctx is
// done when the grace period begins; Ending(ctx) is done earlier, once the
// connection should end after the transaction in hand. Conns returns at once.
func (w *Worker) Conns(ln net.Listener, handle func(ctx context.Context, c net.Conn)) {
	l := w.watch(ln, statePlain)
	w.serve(func() error { return w.acceptLoop(l, handle) })
}

// Watch returns a listener whose connections are watched and waited for, for
// servers with an accept loop of their own: gRPC's, fasthttp's. It is closed
// when the drain begins; tell the server with a Hook at a stage below 0.
func (w *Worker) Watch(ln net.Listener) net.Listener {
	return w.watch(ln, statePlain)
}

func (w *Worker) acceptLoop(l *listener, handle func(context.Context, net.Conn)) error {
	var pause time.Duration
	for {
		nc, err := l.Accept()
		switch {
		case err == nil:
			pause = 0
			go w.handleConn(nc.(*conn), handle)
		case errors.Is(err, net.ErrClosed):
			return err
		default:
			// Out of descriptors, most likely: connections that end give
			// some back.
			pause = min(max(5*time.Millisecond, 2*pause), time.Second)
			w.log.Warn("cannot accept a connection", "reason", err, "retry", pause)
			time.Sleep(pause)
		}
	}
}

func (w *Worker) handleConn(c *conn, handle func(context.Context, net.Conn)) {
	defer c.Close()
	defer func() {
		if r := recover(); r != nil {
			w.log.Error("a connection's handler panicked", "remote", c.RemoteAddr().String(), "panic", r, "stack", string(debug.Stack()))
		}
	}()
	handle(context.WithValue(w.watcher.base, connKey{}, c), c)
}
