package worker

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/websocket"
)

// slowed is set under the race detector, with which a process needs a second
// to start.
var slowed bool

// upgrades is how many a test makes: enough to meet a loss of one in a
// thousand requests many times over.
func upgrades(long int) int {
	if testing.Short() || slowed {
		return max(long/10, 2)
	}
	return long
}

// TestUpgradesLoseNothing is the heart of the package: clients that keep their
// connections and never retry, while the server upgrades itself.
func TestUpgradesLoseNothing(t *testing.T) {
	f := startFamily(t, "worker")
	l := startLoad(f.addr, 32, 0)
	n := upgrades(100)
	for range n {
		f.upgrade()
	}
	l.end()
	f.stop()
	l.check(t)
	if len(l.by) < n*9/10 {
		t.Errorf("only %d processes answered in %d upgrades", len(l.by), n)
	}
}

// TestUpgradesLoseNothingOfPausingClients has connections that are idle when
// the drain begins.
func TestUpgradesLoseNothingOfPausingClients(t *testing.T) {
	f := startFamily(t, "worker")
	l := startLoad(f.addr, 32, 100*time.Millisecond)
	for range upgrades(20) {
		f.upgrade()
	}
	l.end()
	f.stop()
	l.check(t)
}

// TestUpgradesWithClientsOfEveryKind: HTTP/2, WebSockets that echo throughout,
// downloads that take a second each.
func TestUpgradesWithClientsOfEveryKind(t *testing.T) {
	f := startFamily(t, "worker")
	addr := f.addr
	var clients sync.WaitGroup
	stop := make(chan struct{})
	for name, client := range map[string]func(addr string) error{"http2": useHTTP2, "websocket": useWebSocket, "download": download} {
		for range 4 {
			clients.Go(func() {
				for n := 0; ; n++ {
					select {
					case <-stop:
						t.Logf("%s: %d rounds", name, n)
						return
					default:
					}
					if err := client(addr); err != nil {
						t.Errorf("%s: %v", name, err)
						return
					}
				}
			})
		}
	}
	for range upgrades(5) {
		f.upgrade()
	}
	close(stop)
	clients.Wait()
	f.stop()
}

// useHTTP2 sends requests on one connection, several at a time.
func useHTTP2(addr string) error {
	transport := &http.Transport{Protocols: new(http.Protocols)}
	transport.Protocols.SetUnencryptedHTTP2(true)
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	results := make(chan error)
	const streams, rounds = 4, 50
	for range streams {
		go func() {
			var err error
			for range rounds {
				err = errors.Join(err, oneRequest(client, "http://"+addr))
			}
			results <- err
		}()
	}
	var err error
	for range streams {
		err = errors.Join(err, <-results)
	}
	return err
}

func oneRequest(client *http.Client, url string) error {
	resp, err := client.Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}

// useWebSocket exchanges messages until it is told to go.
func useWebSocket(addr string) error {
	ws, err := websocket.Dial("ws://"+addr+"/ws", "", "http://"+addr)
	if err != nil {
		return err
	}
	defer ws.Close()
	for n := range 500 {
		want := strconv.Itoa(n)
		if err := websocket.Message.Send(ws, want); err != nil {
			return err
		}
		var got string
		if err := websocket.Message.Receive(ws, &got); err != nil {
			return fmt.Errorf("message %d: %w", n, err)
		}
		if got == "bye" {
			return nil
		}
		if got != want {
			return fmt.Errorf("message %q came back as %q", want, got)
		}
		time.Sleep(time.Millisecond)
	}
	return nil
}

func download(addr string) error {
	resp, err := http.Get("http://" + addr + "/download")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if want := downloadParts * len(downloadPart); err == nil && len(got) != want {
		err = fmt.Errorf("%d bytes, want %d", len(got), want)
	}
	return err
}

// TestUpgradesUnderMoultLoseNothing runs the same server and the same clients
// under the master.
func TestUpgradesUnderMoultLoseNothing(t *testing.T) {
	moult := buildMoult(t)
	for _, handover := range []string{"steer", "share"} {
		t.Run(handover, func(t *testing.T) {
			// Without a quiesce time the clients would stay with the first
			// generation, for they never pause.
			cmd := exec.Command(moult, "run", "--name", "worker-test", "--handover", handover, "--quiesce", "0s",
				"--listen", "web="+freeAddress(t), "--", os.Args[0])
			cmd.Env = append(os.Environ(), roleVariable+"=worker", "WORKER_TEST_LISTEN=web=:1", "XDG_RUNTIME_DIR="+t.TempDir())
			f := startCommand(t, cmd)
			f.master = cmd.Process.Pid
			l := startLoad(f.addr, 32, 0)
			for range upgrades(100) {
				f.upgrade()
			}
			l.end()
			f.stop()
			l.check(t)
		})
	}
}

// buildMoult builds the program at the root of the module.
func buildMoult(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "moult")
	if out, err := exec.Command("go", "build", "-o", path, "github.com/moult/moult").CombinedOutput(); err != nil {
		t.Fatalf("cannot build moult: %v\n%s", err, out)
	}
	return path
}

func freeAddress(t *testing.T) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}
