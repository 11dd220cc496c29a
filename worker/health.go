package worker

import (
	"encoding/json"
	"net"
	"net/http"
	"time"
)

// health is the body of what the health handlers answer.
type health struct {
	Status      string `json:"status"` // "starting", "ready" or "shutting_down"
	Stage       string `json:"stage"`
	Connections Counts `json:"connections"`
}

func (w *Worker) condition() health {
	s := w.Stage()
	h := health{Status: "shutting_down", Stage: s.String(), Connections: w.Counts()}
	switch s {
	case StageStarting:
		h.Status = "starting"
	case StageServing:
		h.Status = "ready"
	}
	return h
}

// LiveHandler answers 200 for as long as the process works: mount it at
// /livez.
func (w *Worker) LiveHandler() http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		writeHealth(rw, http.StatusOK, w.condition())
	})
}

// ReadyHandler answers 200 while the worker is ready and 503 before that and
// from the first moment of the drain on: mount it at /readyz.
func (w *Worker) ReadyHandler() http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		h := w.condition()
		code := http.StatusServiceUnavailable
		if h.Status == "ready" {
			code = http.StatusOK
		}
		writeHealth(rw, code, h)
	})
}

// DrainHandler begins the drain when it is asked with POST, for a preStop hook
// or an operator. Who may reach it is up to the one who mounts it.
func (w *Worker) DrainHandler() http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost {
			rw.Header().Set("Allow", http.MethodPost)
			http.Error(rw, "use POST", http.StatusMethodNotAllowed)
			return
		}
		w.Drain("request from " + r.RemoteAddr)
		writeHealth(rw, http.StatusAccepted, w.condition())
	})
}

func writeHealth(rw http.ResponseWriter, code int, h health) {
	rw.Header().Set("Content-Type", "application/json")
	rw.Header().Set("Cache-Control", "no-store")
	rw.WriteHeader(code)
	_ = json.NewEncoder(rw).Encode(h)
}

// Health serves /livez and /readyz on ln. Where the socket is this process's
// alone, it goes on until the very end, so that probes are answered with 503
// and not refused; where another process takes over, it stops with the other
// listeners, so that probes reach that one.
func (w *Worker) Health(ln net.Listener) {
	mux := http.NewServeMux()
	mux.Handle("/livez", w.LiveHandler())
	mux.Handle("/readyz", w.ReadyHandler())
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	w.sockets.leave(ln)
	w.mu.Lock()
	w.health = append(w.health, srv)
	w.mu.Unlock()
	w.serve(func() error { return srv.Serve(ln) })
}
