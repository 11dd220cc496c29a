package worker

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
)

type connKey struct{}

// connOf finds the watched connection that a request or handler belongs to.
func connOf(ctx context.Context) *conn {
	c, _ := ctx.Value(connKey{}).(*conn)
	return c
}

// Ending returns a context that is done once the connection to which ctx
// belongs should end after the transaction in hand: for a WebSocket handler
// the time to say goodbye, for a stream of events the time to stop. ctx is that
// of a request, or the one that a handler of Conns got. The request's own
// context goes on until the grace period begins.
//
// HTTP requests are told at the beginning of the drain, hijacked and plain
// connections when the HTTP requests are over, so ask after hijacking. For a
// ctx that belongs to no watched connection the result is never done.
func Ending(ctx context.Context) context.Context {
	if c := connOf(ctx); c != nil {
		return c.endingContext()
	}
	return context.Background()
}

// watched finds our connection under what net/http knows, such as a tls.Conn.
func watched(nc net.Conn) *conn {
	for nc != nil {
		if c, ok := nc.(*conn); ok {
			return c
		}
		inner, ok := nc.(interface{ NetConn() net.Conn })
		if !ok {
			return nil
		}
		nc = inner.NetConn()
	}
	return nil
}

// handler is around the user's.
type handler struct {
	next    http.Handler
	watcher *watcher
}

func (h *handler) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	if c := connOf(r.Context()); c != nil {
		c.begin(r.Method, r.RequestURI)
	}
	// A handshake to another protocol needs the Connection header for itself.
	if h.watcher.draining.Load() && r.Header["Upgrade"] == nil {
		rw.Header().Set("Connection", "close")
	}
	h.next.ServeHTTP(rw, r)
}

// An httpServer is the user's server and what is ours about it.
type httpServer struct {
	*http.Server
	goAway *http.Server // nil where HTTP/2 ends with the server
}

// instrument puts the watcher around the user's hooks and handler. The server
// must not be serving yet.
func instrument(srv *http.Server, w *watcher) *httpServer {
	h := &httpServer{Server: srv, goAway: separateHTTP2(srv)}
	next := srv.Handler
	if next == nil {
		next = http.DefaultServeMux
	}
	srv.Handler = &handler{next: next, watcher: w}
	srv.ConnState = watchState(srv.ConnState)
	srv.ConnContext = watchContext(srv.ConnContext)
	srv.BaseContext = watchBase(srv.BaseContext, w)
	return h
}

func watchState(next func(net.Conn, http.ConnState)) func(net.Conn, http.ConnState) {
	return func(nc net.Conn, s http.ConnState) {
		if c := watched(nc); c != nil {
			switch s {
			case http.StateActive:
				c.set(stateActive)
			case http.StateIdle:
				c.set(stateIdle)
			case http.StateHijacked:
				c.set(stateHijacked)
			}
		}
		if next != nil {
			next(nc, s)
		}
	}
}

func watchContext(next func(context.Context, net.Conn) context.Context) func(context.Context, net.Conn) context.Context {
	return func(ctx context.Context, nc net.Conn) context.Context {
		if next != nil {
			ctx = next(ctx, nc)
		}
		return context.WithValue(ctx, connKey{}, watched(nc))
	}
}

// watchBase makes requests end with the watcher's base context as well.
func watchBase(next func(net.Listener) context.Context, w *watcher) func(net.Listener) context.Context {
	return func(ln net.Listener) context.Context {
		if next == nil {
			return w.base
		}
		ctx, cancel := context.WithCancel(next(ln))
		context.AfterFunc(w.base, cancel)
		return ctx
	}
}

// separateHTTP2 gives the HTTP/2 half of srv a server of its own for the
// purpose of shutting down. net/http sends GOAWAY only from Server.Shutdown,
// and that would drop HTTP/1 requests that have just been read
// (golang/go#75591). HTTP/2 is configured on the other server and lent to srv,
// whose handler and hooks it uses; the other's Shutdown then says GOAWAY and
// touches no HTTP/1 connection.
//
// It returns nil where HTTP/2 is off or was configured by somebody else: those
// connections get their GOAWAY with the next answer, or with srv.Shutdown.
func separateHTTP2(srv *http.Server) *http.Server {
	if _, ok := srv.TLSNextProto["h2"]; ok {
		return nil
	}
	other := &http.Server{
		IdleTimeout: srv.IdleTimeout,
		ReadTimeout: srv.ReadTimeout,
		Protocols:   srv.Protocols,
		HTTP2:       srv.HTTP2,
	}
	if srv.TLSNextProto != nil { // an empty map switches HTTP/2 off
		other.TLSNextProto = map[string]func(*http.Server, *tls.Conn, http.Handler){}
	}
	// ServeTLS configures HTTP/2 and then fails for want of a certificate.
	_ = other.ServeTLS(nil, "", "")
	if _, ok := other.TLSNextProto["h2"]; !ok {
		return nil
	}
	srv.TLSNextProto = other.TLSNextProto
	return other
}

// sayGoAway tells HTTP/2 clients to send new requests elsewhere.
func (h *httpServer) sayGoAway() {
	if h.goAway != nil {
		_ = h.goAway.Shutdown(context.Background()) // it has no connections to wait for
	}
}
