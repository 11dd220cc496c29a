package worker

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cloudflare/tableflip"
	"golang.org/x/net/websocket"
)

// roleVariable makes the test binary play a server program.
const roleVariable = "WORKER_TEST_ROLE"

var roles = map[string]func() error{
	"worker":    serveWithWorker,
	"activated": serveActivated,
	"simple":    serveSimply,
	"shutdown":  serveWithShutdown,
	"flipper":   serveWithTableflip,
}

func TestMain(m *testing.M) {
	if name := os.Getenv(roleVariable); name != "" {
		role, ok := roles[name]
		if !ok {
			fmt.Fprintln(os.Stderr, "there is no role", name)
			os.Exit(2)
		}
		if err := role(); err != nil {
			fmt.Fprintln(os.Stderr, name+":", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// answering is what all roles serve: who answers, and what it got.
func answering() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(rw http.ResponseWriter, r *http.Request) {
		sum := sha256.New()
		if _, err := io.Copy(sum, r.Body); err != nil {
			http.Error(rw, err.Error(), http.StatusBadRequest)
			return
		}
		fmt.Fprintln(rw, os.Getpid(), hex.EncodeToString(sum.Sum(nil)))
	})
	mux.HandleFunc("/stuck", func(http.ResponseWriter, *http.Request) {
		say("stuck")
		select {}
	})
	mux.Handle("/ws", websocket.Handler(echoUntilTold))
	mux.HandleFunc("/download", func(rw http.ResponseWriter, _ *http.Request) {
		for range downloadParts {
			_, _ = io.WriteString(rw, downloadPart)
			_ = http.NewResponseController(rw).Flush()
			time.Sleep(10 * time.Millisecond)
		}
	})
	mux.HandleFunc("/held", func(_ http.ResponseWriter, r *http.Request) {
		say("held")
		<-r.Context().Done() // the client has gone
	})
	return mux
}

const (
	downloadParts = 100
	downloadPart  = "part of a download\n"
)

// echoUntilTold says "bye" in its own time and waits for the client to close.
func echoUntilTold(ws *websocket.Conn) {
	stop := context.AfterFunc(Ending(ws.Request().Context()), func() { _ = websocket.Message.Send(ws, "bye") })
	defer stop()
	_, _ = io.Copy(ws, ws)
}

// say is how a role talks to the test: a line on the standard output that it
// shares with its descendants.
func say(words ...any) { fmt.Fprintln(os.Stdout, words...) }

// serveWithWorker is a server as its users write it.
func serveWithWorker() error {
	cfg := Config{Idle: 2 * time.Second}
	if os.Getenv("WORKER_TEST_LOG") != "" {
		cfg.Logger = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	w, err := New(cfg)
	if err != nil {
		return err
	}
	ln, err := w.Listen(os.Getenv("WORKER_TEST_LISTEN"))
	if err != nil {
		return err
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	w.HTTP(ln, &http.Server{Handler: answering(), Protocols: protocols})
	if _, err := os.Stat(os.Getenv("WORKER_TEST_BROKEN_FILE")); err == nil {
		return errors.New("broken on purpose")
	}
	if err := w.Ready(); err != nil {
		return err
	}
	say("ready", os.Getpid(), ln.Addr())
	r := w.Wait()
	say("ended", os.Getpid(), r)
	return r.Err()
}

// serveWithShutdown is the same with what net/http offers.
func serveWithShutdown() error {
	upgrader, err := tableflip.New(tableflip.Options{})
	if err != nil {
		return err
	}
	ln, err := upgrader.Listen("tcp", os.Getenv("WORKER_TEST_LISTEN"))
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: answering()}
	go srv.Serve(ln)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGHUP, syscall.SIGTERM)
	go func() {
		for sig := range signals {
			if sig == syscall.SIGTERM {
				upgrader.Stop()
				return
			}
			_ = upgrader.WaitForParent(context.Background())
			if err := upgrader.Upgrade(); err != nil {
				fmt.Fprintln(os.Stderr, err)
			}
		}
	}()
	if err := upgrader.Ready(); err != nil {
		return err
	}
	say("ready", os.Getpid(), ln.Addr())
	<-upgrader.Exit()
	err = srv.Shutdown(context.Background())
	say("ended", os.Getpid(), err)
	return err
}

// serveWithTableflip is a program of somebody else's that upgrades into the
// program that WORKER_TEST_NEXT names as a role.
func serveWithTableflip() error {
	os.Setenv(roleVariable, os.Getenv("WORKER_TEST_NEXT"))
	return serveWithShutdown()
}

// A family is a role's process and those that it upgrades into. All write to
// the same pipe, so its end means that all of them are gone.
type family struct {
	t     testing.TB
	cmd   *exec.Cmd
	lines chan string
	pids  []int // of those that said ready
	addr  string

	master int // takes the signals, if not 0

	mu  sync.Mutex
	log strings.Builder // what it wrote to standard error
}

// startFamily starts a role and waits until it is ready.
func startFamily(t testing.TB, role string, env ...string) *family {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), roleVariable+"="+role, "WORKER_TEST_LISTEN=127.0.0.1:0")
	cmd.Env = append(cmd.Env, env...)
	return startCommand(t, cmd)
}

func startCommand(t testing.TB, cmd *exec.Cmd) *family {
	t.Helper()
	r, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	f := &family{t: t, cmd: cmd, lines: make(chan string, 1000)}
	cmd.Stdout, cmd.Stderr = out, f
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = out.Close()
	go f.read(r)
	go cmd.Wait()
	t.Cleanup(f.end)
	f.awaitReady()
	return f
}

func (f *family) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.log.Write(p)
}

func (f *family) errors() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.log.String()
}

func (f *family) read(r *os.File) {
	defer r.Close()
	defer close(f.lines)
	for in := bufio.NewScanner(r); in.Scan(); {
		f.lines <- in.Text()
	}
}

// next returns the words of the next line, or nil when all are gone.
func (f *family) next() []string {
	f.t.Helper()
	select {
	case line, ok := <-f.lines:
		if !ok {
			return nil
		}
		return strings.Fields(line)
	case <-time.After(30 * time.Second):
		f.t.Fatalf("nothing was said for 30s; standard error:\n%s", f.errors())
		return nil
	}
}

// awaitReady waits for the next process to be ready.
func (f *family) awaitReady() {
	f.t.Helper()
	for {
		words := f.next()
		if words == nil {
			f.t.Fatalf("all processes are gone; standard error:\n%s", f.errors())
		}
		if words[0] == "ready" {
			pid, err := strconv.Atoi(words[1])
			if err != nil {
				f.t.Fatal(err)
			}
			f.pids, f.addr = append(f.pids, pid), words[2]
			return
		}
	}
}

func (f *family) pid() int { return f.pids[len(f.pids)-1] }

func (f *family) signal(sig syscall.Signal) {
	f.t.Helper()
	pid := f.pid()
	if f.master != 0 {
		pid = f.master
	}
	if err := syscall.Kill(pid, sig); err != nil {
		f.t.Fatal(err)
	}
}

// upgrade returns when the next process is ready.
func (f *family) upgrade() {
	f.t.Helper()
	f.signal(syscall.SIGHUP)
	f.awaitReady()
}

// stop asks the last process to end and waits until all have.
func (f *family) stop() {
	f.t.Helper()
	f.signal(syscall.SIGTERM)
	for f.next() != nil {
	}
}

func (f *family) end() {
	for _, pid := range append(f.pids, f.cmd.Process.Pid) {
		if syscall.Kill(pid, 0) == nil && isOurs(pid) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	if f.t.Failed() {
		f.t.Logf("standard error:\n%s", f.errors())
	}
}

// isOurs keeps a pid that has been used again from harm.
func isOurs(pid int) bool {
	cmdline, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
	return err != nil || strings.HasPrefix(string(cmdline), os.Args[0])
}
