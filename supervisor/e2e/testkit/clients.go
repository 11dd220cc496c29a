//go:build linux

package testkit

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moult/moult/supervisor/control/api"
	"github.com/moult/moult/supervisor/load"
)

// Clients that do one special thing, and workers without a master.

// AskSelf returns what the worker that serves found when it began.
func AskSelf(t testing.TB, network, address string) Self {
	t.Helper()
	_, body, err := Get(network, address, "/self")
	var s Self
	if err == nil {
		err = json.Unmarshal([]byte(body), &s)
	}
	if err != nil {
		t.Fatalf("cannot ask the worker about itself: %v", err)
	}
	return s
}

func (s Self) Variable(name string) string {
	for _, kv := range s.Env {
		if value, found := strings.CutPrefix(kv, name+"="); found {
			return value
		}
	}
	return ""
}

func (s Self) Has(name string) bool {
	for _, kv := range s.Env {
		if strings.HasPrefix(kv, name+"=") {
			return true
		}
	}
	return false
}

func Answers(t testing.TB, network, address string) {
	t.Helper()
	Until(t, address+" answers", func() error {
		_, _, err := Get(network, address, "/")
		return err
	})
}

// HeldRequest is a request whose answer has not been read.
type HeldRequest struct{ conn net.Conn }

// Hold sends a request for a slow answer and returns once a worker has it in
// hand.
func Hold(t testing.TB, address, path string) HeldRequest {
	t.Helper()
	before := Busy(t, address)
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", path); err != nil {
		t.Fatal(err)
	}
	Until(t, "the request is in hand", func() error { return AtLeast(Busy(t, address), before+1) })
	return HeldRequest{conn}
}

func (h HeldRequest) Finish() error {
	h.conn.SetReadDeadline(time.Now().Add(Patience))
	response, err := http.ReadResponse(bufio.NewReader(h.conn), nil)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	_, err = io.Copy(io.Discard, response.Body)
	return err
}

// Busy is the number of slow requests that the serving worker has in hand.
func Busy(t testing.TB, address string) int {
	t.Helper()
	_, body, err := Get("tcp", address, "/busy")
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(body)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

type TcpSocket struct{ Local, state, inode string }

// TcpSockets reads the kernel's table, as this thread sees it: the first thread
// of the process may be in a namespace that some test has made.
func TcpSockets(t testing.TB) (all []TcpSocket) {
	t.Helper()
	table, err := os.ReadFile("/proc/thread-self/net/tcp")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(table)) {
		fields := strings.Fields(line)
		var ip, port uint32
		if len(fields) < 10 {
			continue
		}
		if _, err := fmt.Sscanf(fields[1], "%X:%X", &ip, &port); err != nil {
			continue
		}
		local := fmt.Sprintf("%d.%d.%d.%d:%d", byte(ip), byte(ip>>8), byte(ip>>16), byte(ip>>24), port)
		all = append(all, TcpSocket{local, fields[3], fields[9]})
	}
	return all
}

// Listening is a socket of the test's own, blocking, for others to inherit.
func Listening(t testing.TB, network, address string) *os.File {
	t.Helper()
	config := new(net.ListenConfig)
	config.SetMultipathTCP(false) // plain TCP, as systemd opens it
	listener, err := config.Listen(t.Context(), network, address)
	if err != nil {
		t.Fatal(err)
	}
	if l, isUnix := listener.(*net.UnixListener); isUnix {
		l.SetUnlinkOnClose(false)
	}
	file, err := listener.(interface{ File() (*os.File, error) }).File()
	if err := errors.Join(err, listener.Close()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	return file
}

// StartBare starts a worker with no master above it, on a socket at 3.
func StartBare(t testing.TB, socket *os.File, generation int, command []string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(command[0], command[1:]...)
	token := NewToken()
	cmd.Env = append(os.Environ(), TokenVariable+"="+token, "LISTEN_FDS=1", fmt.Sprintf("MOULT_GENERATION=%d", generation))
	cmd.ExtraFiles = []*os.File{socket}
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			cmd.Process.Kill()
			cmd.Wait()
		}
		for _, pid := range processesWith(token) {
			KillProcess(pid)
		}
	})
	return cmd
}

// StatusOf asks the master as a script does.
func StatusOf(t *testing.T, control string) api.Status {
	t.Helper()
	code, out := Client(t, "status", "--json", "--control", control)
	var status api.Status
	if err := json.Unmarshal([]byte(out), &status); code != 0 || err != nil {
		t.Fatalf("exit code %d, %v: %s", code, err, out)
	}
	return status
}

func Dial(t *testing.T, address string) {
	t.Helper()
	conn, err := net.DialTimeout("tcp", address, 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
}

// OnlyInHand checks that a crash has cost no more than one request per client.
func OnlyInHand(t *testing.T, clients *load.Traffic, crashes int) {
	t.Helper()
	report := clients.Stop()
	total := report.Total()
	cut := total.Failed[load.Reset] + total.Failed[load.Short]
	if total.Failures() != cut || cut > crashes {
		t.Errorf("more was lost than was in hand (%d at most): %v", crashes, report)
	}
}

// Get asks once, over a new connection.
func Get(network, address, path string) (*http.Response, string, error) {
	conn, err := net.DialTimeout(network, address, 5*time.Second)
	if err != nil {
		return nil, "", err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	return exchange(conn, path)
}

func exchange(conn net.Conn, path string) (*http.Response, string, error) {
	if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", path); err != nil {
		return nil, "", err
	}
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return nil, "", err
	}
	defer response.Body.Close()
	body := new(strings.Builder)
	if _, err := bufio.NewReader(response.Body).WriteTo(body); err != nil {
		return nil, "", err
	}
	return response, body.String(), nil
}

// GenerationAt returns which generation answers, 0 if none does.
func GenerationAt(network, address string) int {
	response, _, err := Get(network, address, "/")
	if err != nil {
		return 0
	}
	generation, err := strconv.Atoi(response.Header.Get(load.GenerationHeader))
	if err != nil {
		return 0
	}
	return generation
}

func AnsweredBy(t testing.TB, address string, generation int) {
	t.Helper()
	if got := GenerationAt("tcp", address); got != generation {
		t.Errorf("generation %d answers, want %d", got, generation)
	}
}

// Traffic starts clients; what they counted is checked by lossless or read by
// Stop.
func Traffic(t testing.TB, config load.Config) *load.Traffic {
	t.Helper()
	if config.Clients == 0 {
		config.Clients = 16
	}
	ctx, cancel := context.WithCancel(context.Background())
	running := load.Start(ctx, config)
	t.Cleanup(func() { cancel(); running.Stop() })
	return running
}

// Flowing waits until the traffic has got some more answers.
func Flowing(t testing.TB, running *load.Traffic) {
	t.Helper()
	before := running.Snapshot()
	Until(t, "traffic flows", func() error {
		if now := running.Snapshot(); now.Requests() < before.Requests()+32 {
			return errors.New(now.String())
		}
		return nil
	})
}

// Lossless stops the traffic and checks that nothing was lost.
func Lossless(t testing.TB, running *load.Traffic) load.Report {
	t.Helper()
	report := running.Stop()
	if report.Failures() != 0 || report.Requests() == 0 {
		t.Errorf("lost requests: %v", report)
	}
	return report
}

// Refused waits until nobody listens on an address.
func Refused(t testing.TB, address string) {
	t.Helper()
	Until(t, address+" is refused", func() error {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			return nil
		}
		conn.Close()
		return fmt.Errorf("somebody listens")
	})
}

// SendTo sends requests over n connections that nobody has to accept yet.
func SendTo(t *testing.T, address string, n int) (queue []HeldRequest) {
	t.Helper()
	for i := range n {
		conn, err := net.DialTimeout("tcp", address, 5*time.Second)
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		t.Cleanup(func() { conn.Close() })
		fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		queue = append(queue, HeldRequest{conn})
	}
	return queue
}

// Client runs a client command and returns its exit code and what it said.
func Client(t *testing.T, args ...string) (int, string) {
	t.Helper()
	cmd := exec.Command(Executable(), args...)
	cmd.Env = append(os.Environ(), TokenVariable+"="+NewToken())
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), string(out)
}

// Queued counts established connections that nobody has accepted.
func Queued(t *testing.T, address string) (n int) {
	t.Helper()
	for _, s := range TcpSockets(t) {
		if s.Local == address && s.state == "01" && s.inode == "0" {
			n++
		}
	}
	return n
}

// AtMostShutdownLosses is what a shared socket can promise: net/http drops the
// requests that it has just read when Shutdown begins (golang/go#75591), and
// nothing else is lost: at most one request of each of the 16 clients.
func AtMostShutdownLosses(t *testing.T, clients *load.Traffic, upgrades int) {
	t.Helper()
	report := clients.Stop()
	total := report.Total()
	unexplained := total.Failures() - total.Failed[load.Short] - total.Failed[load.Reset]
	if unexplained != 0 || total.Failures() > 16*upgrades {
		t.Errorf("%d upgrades: %v", upgrades, report)
	}
}
