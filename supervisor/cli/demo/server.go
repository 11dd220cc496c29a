package demo

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/moult/moult/supervisor/cli/demo/load"
	"github.com/moult/moult/worker"
)

const (
	workerName = "demo-worker"

	// pidHeader lets the client check the whole body.
	pidHeader = "Moult-Pid"

	pieces  = 20 // of a slow answer
	slowest = time.Minute
)

// WorkerCommand is the demo's server: what its master starts, not the user.
func WorkerCommand() *cli.Command {
	return &cli.Command{
		Name:   workerName,
		Usage:  "the server of moult demo",
		Hidden: true,
		Flags:  []cli.Flag{&cli.BoolFlag{Name: "abrupt"}},
		Action: func(c *cli.Context) error {
			cfg := worker.Config{}
			if c.Bool("abrupt") {
				cfg.Signals, cfg.NoUpgrade = []os.Signal{}, true
			}
			server := &http.Server{
				Handler:           handler(os.Getenv("MOULT_GENERATION"), os.Getpid()),
				ReadHeaderTimeout: 10 * time.Second,
			}
			return worker.Serve(server, cfg)
		},
	}
}

func handler(generation string, pid int) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/{$}", func(w http.ResponseWriter, _ *http.Request) {
		sign(w, generation, pid)
		io.WriteString(w, helloBody(generation, pid))
	})
	mux.HandleFunc("/slow", func(w http.ResponseWriter, r *http.Request) {
		d, err := time.ParseDuration(r.FormValue("d"))
		if err != nil || d < 0 || d > slowest {
			http.Error(w, "write /slow?d=2s, with 0s to "+slowest.String(), http.StatusBadRequest)
			return
		}
		sign(w, generation, pid)
		answerSlowly(w, r, d, generation, pid)
	})
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok\n") })
	return mux
}

func sign(w http.ResponseWriter, generation string, pid int) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set(load.GenerationHeader, generation)
	w.Header().Set(pidHeader, fmt.Sprint(pid))
}

// answerSlowly sends its pieces evenly over d, or until the client has gone.
func answerSlowly(w http.ResponseWriter, r *http.Request, d time.Duration, generation string, pid int) {
	pace := time.NewTicker(max(d/pieces, 1))
	defer pace.Stop()
	for i := range pieces {
		select {
		case <-r.Context().Done():
			return
		case <-pace.C:
		}
		io.WriteString(w, piece(i, generation, pid))
		if http.NewResponseController(w).Flush() != nil {
			return
		}
	}
}

func helloBody(generation string, pid any) string {
	return fmt.Sprintf("hello from generation %s, pid %v\n", generation, pid)
}

func piece(i int, generation string, pid any) string {
	return fmt.Sprintf("piece %d of %d from generation %s, pid %v\n", i+1, pieces, generation, pid)
}

func slowBody(generation string, pid any) string {
	var all strings.Builder
	for i := range pieces {
		all.WriteString(piece(i, generation, pid))
	}
	return all.String()
}

// judge judges an answer by its every byte.
func judge(want func(generation string, pid any) string) func(*http.Response, []byte) (string, error) {
	return func(response *http.Response, body []byte) (string, error) {
		generation, err := load.Answered(response, body)
		if err != nil {
			return "", err
		}
		if generation == "" {
			return "", errors.New("the answer names no generation: it comes from another server")
		}
		if want := want(generation, response.Header.Get(pidHeader)); string(body) != want {
			return "", fmt.Errorf("got %q, want %q", body, want)
		}
		return generation, nil
	}
}
