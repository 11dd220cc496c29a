package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
	"time"

	"golang.org/x/net/netutil"

	"github.com/moult/moult/supervisor/control/api"
)

// What clients may take up. A request is a line and a few headers; an answer
// fits into the socket's buffer unless nobody reads it.
//
// Who is one too many waits in the kernel's queue, where it costs nothing. Who
// says nothing is sent away soon, so that the queue moves; who waits for an
// upgrade may do so for hours, and therefore leaves most places to others.
const (
	maxClients  = 128
	maxWaiting  = 32 // for operations; a stop is not among them
	maxHeader   = 4 << 10
	maxBody     = 4 << 10
	requestTime = 2 * time.Second  // for a header, for a body, and between requests
	answerTime  = 10 * time.Second // for each piece that is written
	lastWords   = 500 * time.Millisecond
)

// Server answers on one listener until it is closed. While nobody talks to it,
// it does nothing at all.
type Server struct {
	http    *http.Server
	waiting chan struct{} // has an entry for each client that waits for an operation
	closing chan struct{} // closed when streams have to come to an end
	once    sync.Once
	served  sync.WaitGroup
}

// Serve answers the control API on a listener, which it closes in the end.
func Serve(ln net.Listener, m Master, metrics *Metrics) *Server {
	s := newServer()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", statusHandler(m))
	mux.HandleFunc("GET /metrics", metricsHandler(m, metrics))
	for _, kind := range []string{api.OpUpgrade, api.OpRollback, api.OpStop, api.OpScale} {
		mux.HandleFunc("POST /v1/"+kind, s.operation(m, kind))
	}
	s.serve(ln, mux)
	return s
}

func newServer() *Server {
	return &Server{waiting: make(chan struct{}, maxWaiting), closing: make(chan struct{})}
}

func (s *Server) serve(ln net.Listener, handler http.Handler) {
	s.http = &http.Server{
		Handler:           bounded(handler),
		ReadHeaderTimeout: requestTime,
		IdleTimeout:       requestTime,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          log.New(io.Discard, "", 0),
	}
	s.served.Go(func() { _ = s.http.Serve(netutil.LimitListener(ln, maxClients)) })
}

// Close stops to listen, removes a unix socket's name, lets the streams tell
// what they know for half a second at most, and ends every connection.
func (s *Server) Close() {
	s.once.Do(func() { close(s.closing) })
	ctx, cancel := context.WithTimeout(context.Background(), lastWords)
	defer cancel()
	if s.http.Shutdown(ctx) != nil {
		s.http.Close()
	}
	s.served.Wait()
}

// bounded reads a request to its end before anything is done for it, within
// limits, and puts a limit to each write.
func bounded(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn := http.NewResponseController(w)
		_ = conn.SetReadDeadline(time.Now().Add(requestTime))
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
		if err != nil {
			refuse(w, http.StatusRequestEntityTooLarge, "the request is too long, or took too long")
			return
		}
		// From here on only the client's leaving is heard, whenever.
		_ = conn.SetReadDeadline(time.Time{})
		r.Body = io.NopCloser(bytes.NewReader(body))
		next.ServeHTTP(&patient{w, conn}, r)
	})
}

// patient gives each write its own time.
type patient struct {
	http.ResponseWriter
	conn *http.ResponseController
}

func (p *patient) Write(b []byte) (int, error) {
	_ = p.conn.SetWriteDeadline(time.Now().Add(answerTime))
	return p.ResponseWriter.Write(b)
}

// Unwrap is for http.ResponseController.
func (p *patient) Unwrap() http.ResponseWriter { return p.ResponseWriter }

func refuse(w http.ResponseWriter, code int, reason string) {
	answer(w, code, &api.Refused{Reason: reason})
}

func answer(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(v)
}

func statusHandler(m Master) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		status, err := m.Status(r.Context())
		if err != nil {
			refuse(w, http.StatusServiceUnavailable, err.Error())
			return
		}
		answer(w, http.StatusOK, status)
	}
}

// operation begins what is asked for and streams its events. The master goes
// on with it whether or not anybody listens.
func (s *Server) operation(m Master, kind string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		op, err := readOperation(r.Body, kind)
		if err != nil {
			refuse(w, http.StatusBadRequest, err.Error())
			return
		}
		if kind != api.OpStop {
			select {
			case s.waiting <- struct{}{}:
				defer func() { <-s.waiting }()
			default:
				refuse(w, http.StatusServiceUnavailable, "too many clients wait for an operation already")
				return
			}
		}
		events, err := m.Begin(r.Context(), op)
		var refused *api.Refused
		switch {
		case errors.As(err, &refused):
			refuse(w, http.StatusConflict, refused.Reason)
		case err != nil:
			refuse(w, http.StatusServiceUnavailable, err.Error())
		default:
			w.Header().Set("Content-Type", "application/x-ndjson")
			s.stream(r.Context(), w, events)
		}
	}
}

// readOperation takes an empty body for one that leaves everything as it is.
func readOperation(body io.Reader, kind string) (api.Operation, error) {
	op := api.Operation{}
	decoder := json.NewDecoder(body)
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&op); err != nil && err != io.EOF {
		return op, errors.New("cannot read the request: " + err.Error())
	}
	op.Kind = kind
	return op, nil
}

// stream writes events as they come, until the last, until the client leaves,
// or until the server closes: then it tells what is known by now.
func (s *Server) stream(ctx context.Context, w http.ResponseWriter, events <-chan api.Event) {
	flusher := http.NewResponseController(w)
	_ = flusher.Flush() // the request was taken on
	write := func(e api.Event) bool { return json.NewEncoder(w).Encode(e) == nil && flusher.Flush() == nil }
	for {
		select {
		case e, more := <-events:
			if !more || !write(e) {
				return
			}
		case <-ctx.Done():
			return
		case <-s.closing:
			for len(events) > 0 {
				if !write(<-events) {
					return
				}
			}
			return
		}
	}
}
