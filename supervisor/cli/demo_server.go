package cli

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/moult/moult/supervisor/load"
	"github.com/moult/moult/worker"
)

const (
	demoWorkerName = "demo-worker"

	// demoPIDHeader lets the client check the whole body.
	demoPIDHeader = "Moult-Pid"

	demoPieces  = 20 // of a slow answer
	demoSlowest = time.Minute
)

// demoWorkerCommand is the demo's server: what the master starts, not the user.
func demoWorkerCommand() *cli.Command {
	return &cli.Command{
		Name:   demoWorkerName,
		Usage:  "the server of moult demo",
		Hidden: true,
		Flags:  []cli.Flag{&cli.BoolFlag{Name: "abrupt"}},
		Action: func(c *cli.Context) error {
			cfg := worker.Config{}
			if c.Bool("abrupt") {
				cfg.Signals, cfg.NoUpgrade = []os.Signal{}, true
			}
			server := &http.Server{
				Handler:           demoHandler(os.Getenv("MOULT_GENERATION"), os.Getpid()),
				ReadHeaderTimeout: 10 * time.Second,
			}
			return worker.Serve(server, cfg)
		},
	}
}

func demoHandler(generation string, pid int) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/{$}", func(w http.ResponseWriter, _ *http.Request) {
		signDemo(w, generation, pid)
		io.WriteString(w, demoBody(generation, pid))
	})
	mux.HandleFunc("/slow", func(w http.ResponseWriter, r *http.Request) {
		d, err := time.ParseDuration(r.FormValue("d"))
		if err != nil || d < 0 || d > demoSlowest {
			http.Error(w, "write /slow?d=2s, with 0s to "+demoSlowest.String(), http.StatusBadRequest)
			return
		}
		signDemo(w, generation, pid)
		answerSlowly(w, r, d, generation, pid)
	})
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok\n") })
	return mux
}

func signDemo(w http.ResponseWriter, generation string, pid int) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set(load.GenerationHeader, generation)
	w.Header().Set(demoPIDHeader, fmt.Sprint(pid))
}

// answerSlowly sends its pieces evenly over d, or until the client has gone.
func answerSlowly(w http.ResponseWriter, r *http.Request, d time.Duration, generation string, pid int) {
	pace := time.NewTicker(max(d/demoPieces, 1))
	defer pace.Stop()
	for i := range demoPieces {
		select {
		case <-r.Context().Done():
			return
		case <-pace.C:
		}
		io.WriteString(w, demoPiece(i, generation, pid))
		if http.NewResponseController(w).Flush() != nil {
			return
		}
	}
}

func demoBody(generation string, pid any) string {
	return fmt.Sprintf("hello from generation %s, pid %v\n", generation, pid)
}

func demoPiece(i int, generation string, pid any) string {
	return fmt.Sprintf("piece %d of %d from generation %s, pid %v\n", i+1, demoPieces, generation, pid)
}

func demoSlowBody(generation string, pid any) string {
	var all strings.Builder
	for i := range demoPieces {
		all.WriteString(demoPiece(i, generation, pid))
	}
	return all.String()
}

// demoAnswer judges an answer by its every byte.
func demoAnswer(want func(generation string, pid any) string) func(*http.Response, []byte) (string, error) {
	return func(response *http.Response, body []byte) (string, error) {
		generation, err := load.Answered(response, body)
		if err != nil {
			return "", err
		}
		if generation == "" {
			return "", errors.New("the answer names no generation: it comes from another server")
		}
		if want := want(generation, response.Header.Get(demoPIDHeader)); string(body) != want {
			return "", fmt.Errorf("got %q, want %q", body, want)
		}
		return generation, nil
	}
}
