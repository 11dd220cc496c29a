package worker

import (
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moult/moult/fdpass"
)

// serveSimply is the one call for the simple case.
func serveSimply() error {
	cfg := Config{OnStage: func(s Stage) {
		if s == StageServing {
			say("ready", os.Getpid(), "-")
		}
	}}
	err := Serve(&http.Server{Addr: os.Getenv("WORKER_TEST_LISTEN"), Handler: answering()}, cfg)
	say("ended", os.Getpid(), err)
	return err
}

func TestServe(t *testing.T) {
	addr := freeAddress(t)
	f := startFamily(t, "simple", "WORKER_TEST_LISTEN="+addr)
	get(t, "tcp", addr)
	f.upgrade()
	get(t, "tcp", addr)
	f.stop()
}

// TestServeTakesWhatIsThere: with sockets of other names than its own it
// serves on those, by itself and after an upgrade.
func TestServeTakesWhatIsThere(t *testing.T) {
	ln, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	f := activate(t, ln, "something", roleAfter+"=simple", "WORKER_TEST_LISTEN=:8080")
	get(t, "tcp", ln.Addr().String())
	f.upgrade()
	get(t, "tcp", ln.Addr().String())
	f.stop()
}

func TestServeFailsWithoutAnAddress(t *testing.T) {
	err := Serve(&http.Server{}, Config{NoUpgrade: true, Signals: []os.Signal{}})
	if err == nil || !strings.Contains(err.Error(), "Config.Listen") {
		t.Errorf("error %v, want one that says what to write", err)
	}
}

func TestServeFailsOnAnAddressInUse(t *testing.T) {
	ln := listenLocal(t)
	cfg := Config{Listen: []string{ln.Addr().String()}, NoUpgrade: true, Signals: []os.Signal{}}
	if err := Serve(&http.Server{}, cfg); err == nil || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("error %v", err)
	}
}

func TestServeTLS(t *testing.T) {
	server, client := httpsConfig(t)
	addr := freeAddress(t)
	ready := make(chan struct{})
	cfg := Config{
		Listen: []string{addr}, NoUpgrade: true,
		Signals: []os.Signal{syscall.SIGUSR1},
		OnStage: func(s Stage) {
			if s == StageServing {
				close(ready)
			}
		},
	}
	served := make(chan error, 1)
	go func() { served <- Serve(&http.Server{Handler: sayOK, TLSConfig: server}, cfg) }()
	<-ready
	transport := &http.Transport{TLSClientConfig: client, ForceAttemptHTTP2: true}
	resp, err := (&http.Client{Transport: transport}).Get("https://" + addr)
	if err != nil || resp.ProtoMajor != 2 {
		t.Errorf("%v, %v; want HTTP/2", resp, err)
	}
	if err == nil {
		_ = resp.Body.Close()
	}
	transport.CloseIdleConnections()
	if err := syscall.Kill(os.Getpid(), syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// TestListenPacket finds the same socket again.
func TestListenPacket(t *testing.T) {
	w := newTestWorker(t, Config{})
	path := filepath.Join(t.TempDir(), "log.sock")
	own, err := fdpass.OpenOwn(mustParse(t, "unixgram://"+path))
	if err != nil {
		t.Fatal(err)
	}
	own.Name = "log"
	w.sockets.inherited = append(w.sockets.inherited, own)
	if got := w.Inherited(); !slices.Equal(got, []string{"log"}) {
		t.Errorf("inherited %q", got)
	}
	conn, err := w.ListenPacket("log=unixgram:///somewhere/else.sock")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got := conn.LocalAddr().String(); got != path {
		t.Errorf("it is %s, want %s", got, path)
	}
	if len(w.Inherited()) != 0 {
		t.Error("it is not taken")
	}
	fresh, err := w.ListenPacket("udp://127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = fresh.Close()
}

func mustParse(t *testing.T, addr string) fdpass.Address {
	t.Helper()
	a, err := fdpass.ParseAddress(addr)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestListenErrors(t *testing.T) {
	w := newTestWorker(t, Config{})
	for _, addr := range []string{"", "tcp://", "udp://:0", "unixgram:///tmp/x"} {
		if ln, err := w.Listen(addr); err == nil {
			_ = ln.Close()
			t.Errorf("Listen(%q) works", addr)
		}
	}
	if conn, err := w.ListenPacket("127.0.0.1:0"); err == nil {
		_ = conn.Close()
		t.Error("ListenPacket of a TCP address works")
	}
}

// TestListenersOfTheWorkerClose when the drain begins, served or not.
func TestListenersOfTheWorkerClose(t *testing.T) {
	w := newTestWorker(t, Config{})
	ln, err := w.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w.Drain("test")
	w.Wait()
	if _, err := net.DialTimeout("tcp", ln.Addr().String(), time.Second); err == nil {
		t.Error("the port is still open")
	}
}
