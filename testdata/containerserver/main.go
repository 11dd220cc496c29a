// Containerserver is the server of the container test: a static binary that
// takes its socket by listen-fds, or with "bind ADDRESS" opens its own, and can
// tell from inside the container what the processes there look like.
//
//	GET /        its pid and generation, as an [Identity]
//	GET /drain   the same, but answered only once the server was asked to leave
//	GET /orphan  starts a process whose parent leaves it; answers with its pid
//	GET /end     ends the processes that /orphan has started
//	GET /ps      the container's processes, as []Process
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// Identity says which worker has answered.
type Identity struct {
	PID        int    `json:"pid"`
	Generation string `json:"generation"`
}

// Process is one line of the process table: the fields pid, state and ppid of
// /proc/PID/stat (proc(5)).
type Process struct {
	PID    int    `json:"pid"`
	Parent int    `json:"parent"`
	State  string `json:"state"`
	Name   string `json:"name"`
}

func main() {
	mode := "serve"
	if len(os.Args) > 1 {
		mode = os.Args[1]
	}
	switch mode {
	case "serve":
		serve(handedOver())
	case "bind":
		serve(ownListener(os.Args[2]))
	case "parent":
		leaveChild()
	case "orphan":
		io.Copy(io.Discard, os.Stdin)
	default:
		log.Fatalf("unknown mode %q", mode)
	}
}

func serve(listener net.Listener) {
	leave, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	server := &http.Server{Handler: newHandler(leave.Done())}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	select {
	case err := <-served:
		log.Fatal(err)
	case <-leave.Done():
	}
	if err := server.Shutdown(context.Background()); err != nil {
		log.Fatal(err)
	}
}

func ownListener(address string) net.Listener {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		log.Fatal(err)
	}
	return listener
}

// handedOver returns the only socket of the listen-fds protocol
// (sd_listen_fds(3)), or ends the process.
func handedOver() net.Listener {
	if pid := os.Getenv("LISTEN_PID"); pid != strconv.Itoa(os.Getpid()) {
		log.Fatalf("LISTEN_PID=%s, but this is process %d", pid, os.Getpid())
	}
	if n := os.Getenv("LISTEN_FDS"); n != "1" {
		log.Fatalf("LISTEN_FDS=%s, want 1", n)
	}
	file := os.NewFile(3, "listen-fd")
	defer file.Close()
	listener, err := net.FileListener(file)
	if err != nil {
		log.Fatal(err)
	}
	return listener
}

func newHandler(leave <-chan struct{}) http.Handler {
	mux := http.NewServeMux()
	orphans := &orphanage{}
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) { answer(w, identity(), nil) })
	mux.HandleFunc("GET /drain", func(w http.ResponseWriter, _ *http.Request) {
		// The headers tell the client that the request is in the server's hands.
		w.WriteHeader(http.StatusOK)
		http.NewResponseController(w).Flush()
		<-leave
		answer(w, identity(), nil)
	})
	mux.HandleFunc("GET /orphan", func(w http.ResponseWriter, _ *http.Request) {
		pid, err := orphans.add()
		answer(w, pid, err)
	})
	mux.HandleFunc("GET /end", func(w http.ResponseWriter, _ *http.Request) { answer(w, true, orphans.end()) })
	mux.HandleFunc("GET /ps", func(w http.ResponseWriter, _ *http.Request) {
		table, err := processes()
		answer(w, table, err)
	})
	return mux
}

func identity() Identity {
	return Identity{PID: os.Getpid(), Generation: os.Getenv("MOULT_GENERATION")}
}

func answer(w http.ResponseWriter, value any, err error) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	json.NewEncoder(w).Encode(value)
}

// orphanage holds the write ends of the orphans' standard inputs: an orphan
// lives until its own is closed.
type orphanage struct {
	mu   sync.Mutex
	held []io.Closer
}

// add starts a process that starts an orphan and leaves, and returns the
// orphan's pid once its parent is gone.
func (o *orphanage) add() (int, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer r.Close()
	parent := exec.Command("/proc/self/exe", "parent")
	parent.Stdin, parent.Stderr = r, os.Stderr
	out, err := parent.Output()
	if err != nil {
		w.Close()
		return 0, err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.held = append(o.held, w)
	return strconv.Atoi(string(out))
}

func (o *orphanage) end() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, w := range o.held {
		if err := w.Close(); err != nil {
			return err
		}
	}
	o.held = nil
	return nil
}

// leaveChild starts an orphan on its own standard input, prints the pid and
// returns without waiting for it.
func leaveChild() {
	child := exec.Command("/proc/self/exe", "orphan")
	child.Stdin = os.Stdin
	if err := child.Start(); err != nil {
		log.Fatal(err)
	}
	fmt.Print(child.Process.Pid)
}

func processes() ([]Process, error) {
	paths, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	var table []Process
	for _, path := range paths {
		stat, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended since the listing
		}
		process, err := parseStat(string(stat))
		if err != nil {
			return nil, fmt.Errorf("cannot read %s: %w", path, err)
		}
		table = append(table, process)
	}
	return table, nil
}

// parseStat reads "PID (NAME) STATE PPID …"; the name may contain anything,
// parentheses and blanks included.
func parseStat(line string) (Process, error) {
	open, end := strings.IndexByte(line, '('), strings.LastIndexByte(line, ')')
	if open < 0 || end < open {
		return Process{}, fmt.Errorf("no name in %q", line)
	}
	p := Process{Name: line[open+1 : end]}
	if _, err := fmt.Sscan(line[:open], &p.PID); err != nil {
		return Process{}, err
	}
	_, err := fmt.Sscan(line[end+1:], &p.State, &p.Parent)
	return p, err
}
