package load

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/moult/moult/supervisor/e2e/testkit/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }

const right = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nMoult-Generation: 7\r\n\r\nok"

// faulty is a server whose every connection is given to one function, which
// finds the request already read.
func faulty(t *testing.T, serve func(net.Conn, *bufio.Reader)) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				in := bufio.NewReader(conn)
				if readRequest(in) == nil {
					serve(conn, in)
				}
			}()
		}
	}()
	return listener.Addr().String()
}

func readRequest(in *bufio.Reader) error {
	request, err := http.ReadRequest(in)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, request.Body)
	return err
}

// sample runs traffic until it has counted n requests.
func sample(t *testing.T, n int, config Config) Report {
	t.Helper()
	traffic := Start(t.Context(), config)
	await(t, traffic, func(r Report) bool { return r.Requests() >= n })
	return traffic.Stop()
}

func await(t *testing.T, traffic *Traffic, done func(Report) bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !done(traffic.Snapshot()) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %v", traffic.Stop())
		}
		time.Sleep(time.Millisecond)
	}
}

func onlyFailures(t *testing.T, report Report, class Class) {
	t.Helper()
	total := report.Total()
	if total.Answered != 0 || total.Failures() == 0 || total.Failed[class] != total.Failures() {
		t.Errorf("want nothing but failures of class %v, got %v", class, report)
	}
	if len(report.Samples) == 0 || report.Samples[0].Class != class {
		t.Errorf("samples %v, want class %v", report.Samples, class)
	}
}

func TestEachFailureIsToldFromTheOthers(t *testing.T) {
	write := func(text string) func(net.Conn, *bufio.Reader) {
		return func(conn net.Conn, _ *bufio.Reader) { io.WriteString(conn, text) }
	}
	reset := func(before string) func(net.Conn, *bufio.Reader) {
		return func(conn net.Conn, _ *bufio.Reader) {
			io.WriteString(conn, before)
			conn.(*net.TCPConn).SetLinger(0)
		}
	}
	hang := func(before string) func(net.Conn, *bufio.Reader) {
		return func(conn net.Conn, in *bufio.Reader) {
			io.WriteString(conn, before)
			in.ReadByte() // until the client gives up
		}
	}
	tests := []struct {
		name  string
		serve func(net.Conn, *bufio.Reader)
		want  Class
	}{
		{"reset before the answer", reset(""), Reset},
		{"closed before the answer", write(""), Short},
		{"closed within the head", write("HTTP/1.1 200 OK\r\nContent-"), Short},
		{"closed within the body", write("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nok"), Short},
		{"closed within a chunk", write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nok"), Short},
		{"closed before the last chunk", write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n"), Short},
		{"another protocol", write("220 mail.example.org\r\n\r\n"), Wrong},
		{"broken chunks", write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\nok\r\n"), Wrong},
		{"an error status", write("HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"), Wrong},
		{"silence", hang(""), TimedOut},
		{"silence within the body", hang("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nok"), TimedOut},
	}
	for _, test := range tests {
		for _, mode := range []Mode{PerRequest, KeepAlive} {
			t.Run(fmt.Sprint(test.name, mode), func(t *testing.T) {
				t.Parallel()
				address := faulty(t, test.serve)
				onlyFailures(t, sample(t, 2, Config{Address: address, Mode: mode, Clients: 2, Timeout: 200 * time.Millisecond}), test.want)
			})
		}
	}
}

func TestResetWithinTheBody(t *testing.T) {
	address := faulty(t, func(conn net.Conn, in *bufio.Reader) {
		io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nok")
		waitUntilTaken(conn)
		conn.(*net.TCPConn).SetLinger(0)
	})
	onlyFailures(t, sample(t, 2, Config{Address: address}), Reset)
}

// waitUntilTaken waits until the peer has taken everything that was sent to
// it, so that a reset cannot overtake it.
func waitUntilTaken(conn net.Conn) {
	raw, err := conn.(syscall.Conn).SyscallConn()
	if err != nil {
		return
	}
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		unsent := 1
		raw.Control(func(fd uintptr) { unsent = unacknowledged(int(fd)) })
		if unsent == 0 {
			return
		}
	}
}

func TestRefused(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	listener.Close()
	onlyFailures(t, sample(t, 2, Config{Address: address}), Refused)
	absent := filepath.Join(t.TempDir(), "absent")
	onlyFailures(t, sample(t, 2, Config{Network: "unix", Address: absent}), Refused)
}

func TestOther(t *testing.T) {
	onlyFailures(t, sample(t, 1, Config{Network: "unix", Address: strings.Repeat("x", 200)}), Other)
}

func TestJudgeDecides(t *testing.T) {
	address := faulty(t, func(conn net.Conn, _ *bufio.Reader) { io.WriteString(conn, right) })
	report := sample(t, 2, Config{Address: address, Answer: func(*http.Response, []byte) (string, error) {
		return "", errors.New("not what I asked for")
	}})
	onlyFailures(t, report, Wrong)
}

func TestKeepAlive(t *testing.T) {
	// serve answers n requests per connection, then closes it in a certain way.
	serve := func(n int, last string, end func(net.Conn, *bufio.Reader)) func(net.Conn, *bufio.Reader) {
		return func(conn net.Conn, in *bufio.Reader) {
			for range n - 1 {
				io.WriteString(conn, right)
				if readRequest(in) != nil {
					return
				}
			}
			io.WriteString(conn, last)
			if end != nil {
				end(conn, in)
			}
		}
	}
	goodbye := strings.Replace(right, "\r\n\r\n", "\r\nConnection: close\r\n\r\n", 1)

	t.Run("Connection: close is no failure", func(t *testing.T) {
		report := sample(t, 20, Config{Address: faulty(t, serve(3, goodbye, nil)), Mode: KeepAlive, Clients: 2})
		if report.Failures() != 0 || report.Goodbyes != 0 {
			t.Errorf("got %v, %d goodbyes", report, report.Goodbyes)
		}
	})
	t.Run("an idle connection that is closed is no failure", func(t *testing.T) {
		report := sample(t, 6, Config{Address: faulty(t, serve(1, right, nil)), Mode: KeepAlive, Pause: 50 * time.Millisecond})
		if report.Failures() != 0 || report.Goodbyes < 5 {
			t.Errorf("got %v, %d goodbyes", report, report.Goodbyes)
		}
	})
	t.Run("a request that is not answered is one", func(t *testing.T) {
		// The server reads the second request and leaves: net/http would repeat it.
		drop := func(conn net.Conn, in *bufio.Reader) { readRequest(in) }
		report := sample(t, 6, Config{Address: faulty(t, serve(1, right, drop)), Mode: KeepAlive})
		total := report.Total()
		if total.Answered < 3 || total.Failed[Short] < 3 || total.Failed[Short] != total.Failures() {
			t.Errorf("want a short one for each right one, got %v", report)
		}
	})
	t.Run("a reset of an idle connection is one", func(t *testing.T) {
		reset := func(conn net.Conn, _ *bufio.Reader) {
			waitUntilTaken(conn)
			conn.(*net.TCPConn).SetLinger(0)
		}
		report := sample(t, 4, Config{Address: faulty(t, serve(1, right, reset)), Mode: KeepAlive, Pause: 50 * time.Millisecond})
		if total := report.Total(); total.Failed[Reset] < 2 || total.Failed[Reset] != total.Failures() {
			t.Errorf("want a reset for each right one, got %v", report)
		}
	})
	t.Run("bytes after the answer are wrong", func(t *testing.T) {
		wait := func(_ net.Conn, in *bufio.Reader) { in.ReadByte() }
		report := sample(t, 4, Config{Address: faulty(t, serve(1, right+"more", wait)), Mode: KeepAlive})
		if total := report.Total(); total.Failed[Wrong] < 2 || total.Failed[Wrong] != total.Failures() {
			t.Errorf("want a wrong one for each right one, got %v", report)
		}
	})
}

// counting answers rightly, and counts connections.
func counting(t *testing.T, network, address string) (*httptest.Server, *atomic.Int64) {
	t.Helper()
	listener, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	var opened atomic.Int64
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, r.URL.String())
	}))
	server.Listener.Close()
	server.Listener = listener
	server.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			opened.Add(1)
		}
	}
	server.Start()
	t.Cleanup(server.Close)
	return server, &opened
}

func TestModesOverEachNetwork(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		address := "127.0.0.1:0"
		if network == "unix" {
			address = filepath.Join(t.TempDir(), "s")
		}
		server, opened := counting(t, network, address)
		address = server.Listener.Addr().String()

		report := sample(t, 100, Config{Network: network, Address: address, Clients: 3})
		if report.Failures() != 0 || int(opened.Load()) != report.Requests() {
			t.Errorf("%s, per request: %d connections, %v", network, opened.Load(), report)
		}
		opened.Store(0)
		report = sample(t, 100, Config{Network: network, Address: address, Clients: 3, Mode: KeepAlive})
		// A client that comes late may find that all has been asked already.
		if n := opened.Load(); report.Failures() != 0 || n < 1 || n > 3 {
			t.Errorf("%s, keep-alive: %d connections, %v", network, opened.Load(), report)
		}
	}
}

func TestPhases(t *testing.T) {
	var slow atomic.Bool
	address := faulty(t, func(conn net.Conn, _ *bufio.Reader) {
		if slow.Load() {
			time.Sleep(60 * time.Millisecond)
		}
		io.WriteString(conn, right)
	})
	traffic := Start(t.Context(), Config{Address: address})
	await(t, traffic, func(r Report) bool { return r.Requests() >= 20 })
	traffic.Phase(Upgrading)
	slow.Store(true)
	await(t, traffic, func(r Report) bool { return r.Phases[1].Answered >= 3 })
	slow.Store(false)
	traffic.Phase(AtRest)
	report := traffic.Stop()

	rest, upgrading := &report.Phases[0], &report.Phases[1]
	if rest.Name != AtRest || upgrading.Name != Upgrading || len(report.Phases) != 2 {
		t.Fatalf("phases %q, %q", rest.Name, upgrading.Name)
	}
	longest := upgrading.Latency(1)
	if longest < 60*time.Millisecond {
		t.Errorf("the slowest answer during upgrades took %v", longest)
	}
	if p50 := rest.Latency(0.5); p50 <= 0 || p50 >= longest {
		t.Errorf("at rest half of the answers took %v, the slowest during upgrades %v", p50, longest)
	}
	if report.Generations["7"] != report.Requests() {
		t.Errorf("generations %v of %d requests", report.Generations, report.Requests())
	}
}

func TestStopFinishesWhatWasSent(t *testing.T) {
	entered, leave := make(chan struct{}), make(chan struct{})
	address := faulty(t, func(conn net.Conn, _ *bufio.Reader) {
		close(entered)
		<-leave
		io.WriteString(conn, right)
	})
	traffic := Start(t.Context(), Config{Address: address})
	<-entered
	time.AfterFunc(20*time.Millisecond, func() { close(leave) })
	if report := traffic.Stop(); report.Requests() != 1 || report.Failures() != 0 {
		t.Errorf("got %v", report)
	}
	if again := traffic.Stop(); again.Requests() != 1 {
		t.Errorf("second Stop: %v", again)
	}
}

func TestContextCutsAndDoesNotCount(t *testing.T) {
	entered := make(chan struct{})
	address := faulty(t, func(_ net.Conn, in *bufio.Reader) {
		close(entered)
		in.ReadByte()
	})
	ctx, cancel := context.WithCancel(t.Context())
	traffic := Start(ctx, Config{Address: address, Timeout: time.Hour})
	<-entered
	cancel()
	if report := traffic.Stop(); report.Requests() != 0 {
		t.Errorf("got %v", report)
	}
}

func TestSum(t *testing.T) {
	var a, b Report
	a.answered(a.phase(AtRest), "1", time.Millisecond)
	a.failed(a.phase(Upgrading), Short, io.EOF)
	b.answered(b.phase(Upgrading), "2", time.Second)
	b.answered(b.phase(AtRest), "1", 3*time.Millisecond)
	sum := Sum(a, b)
	total := sum.Total()
	if sum.Requests() != 4 || sum.Failures() != 1 || total.Failed[Short] != 1 || total.Latency(1) != time.Second {
		t.Errorf("got %v", sum)
	}
	if sum.Generations["1"] != 2 || sum.Generations["2"] != 1 || len(sum.Phases) != 2 || len(sum.Samples) != 1 {
		t.Errorf("got %v", sum)
	}
	if a.Requests() != 2 || len(a.Generations) != 1 {
		t.Errorf("Sum changed what it was given: %v", a)
	}
}

func TestQuantilesAreExactToThreePercent(t *testing.T) {
	for _, unit := range []time.Duration{time.Microsecond, time.Millisecond, time.Second} {
		var h histogram
		for i := range 1000 {
			h.add(time.Duration(i+1) * unit)
		}
		for _, q := range []float64{0.01, 0.5, 0.99} {
			want := float64(q*1000) * float64(unit)
			if got := float64(h.quantile(q)); got < want*0.97-float64(unit) || got > want*1.03+float64(unit) {
				t.Errorf("quantile %v of 1 to 1000 %v: %v", q, unit, time.Duration(got))
			}
		}
		if h.quantile(1) != 1000*unit {
			t.Errorf("the slowest of 1000 %v: %v", unit, h.quantile(1))
		}
	}
}

func TestEveryDurationHasItsBucket(t *testing.T) {
	for _, d := range []time.Duration{-1, 0, 31 * time.Microsecond, 32 * time.Microsecond, 63 * time.Microsecond, 64 * time.Microsecond, time.Hour, 1 << 62} {
		i := bucket(d)
		if i < 0 || i >= octaves*steps {
			t.Errorf("bucket of %v: %d", d, i)
		}
		if d >= 0 && d < time.Hour && bucket(middle(i)) != i {
			t.Errorf("the middle of the bucket of %v lies in another", d)
		}
	}
}
