package control

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"

	"github.com/moult/moult/supervisor/control/api"
)

// ListenAdmin opens the address of the admin server. Unless it is to be
// public, an address that others than this machine can reach is an error.
func ListenAdmin(address string, public bool) (net.Listener, error) {
	at, err := net.ResolveTCPAddr("tcp", address)
	if err != nil {
		return nil, &BadAddress{fmt.Errorf("cannot use admin address %q: %w", address, err)}
	}
	if !public && !at.IP.IsLoopback() {
		return nil, &BadAddress{fmt.Errorf("cannot use admin address %q: others than this machine could reach it; choose 127.0.0.1:%d, or add --admin-public", address, at.Port)}
	}
	ln, err := net.Listen("tcp", at.String())
	if err != nil {
		return nil, fmt.Errorf("cannot listen on admin address %s: %w", at, cause(err))
	}
	return ln, nil
}

// BadAddress is an admin address that is wrong as such, whatever the state of
// the machine.
type BadAddress struct{ error }

func (e *BadAddress) Unwrap() error { return e.error }

// ServeAdmin answers probes, and shows metrics and status, on a listener that
// it closes in the end. Nothing can be changed there.
func ServeAdmin(ln net.Listener, m Master, metrics *Metrics) *Server {
	s := newServer()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") })
	mux.HandleFunc("GET /readyz", readyHandler(m))
	mux.HandleFunc("GET /metrics", metricsHandler(m, metrics))
	mux.HandleFunc("GET /status", statusHandler(m))
	s.serve(ln, mux)
	return s
}

// stater is a master that can tell its state alone. A load balancer asks for
// it every second; to count ten thousand connections each time is too much.
type stater interface {
	State(ctx context.Context) (string, error)
}

func stateOf(ctx context.Context, m Master) (string, error) {
	if m, ok := m.(stater); ok {
		return m.State(ctx)
	}
	status, err := m.Status(ctx)
	return status.State, err
}

func readyHandler(m Master) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		state, err := stateOf(r.Context(), m)
		switch {
		case err != nil:
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		case state != api.Serving && state != api.Upgrading:
			http.Error(w, state, http.StatusServiceUnavailable)
		default:
			_, _ = io.WriteString(w, state+"\n")
		}
	}
}
