package worker

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"testing"
	"time"
)

// BenchmarkUpgrade shows what an upgrade costs 32 keep-alive clients that
// never retry: with this package, and with http.Server.Shutdown.
func BenchmarkUpgrade(b *testing.B) {
	for _, role := range []string{"worker", "shutdown"} {
		b.Run(role, func(b *testing.B) {
			f := startFamily(b, role)
			l := startLoad(f.addr, 32, 0)
			for b.Loop() {
				f.upgrade()
			}
			l.end()
			f.stop()
			b.ReportMetric(float64(l.failures.Load())/float64(b.N), "lost/upgrade")
			b.ReportMetric(float64(l.requests.Load())/float64(b.N), "requests/upgrade")
		})
	}
}

// BenchmarkRequest shows what being watched costs a request while nothing
// drains. The two servers take turns, in short rounds, so that whatever else
// the machine does falls on both.
func BenchmarkRequest(b *testing.B) {
	ok := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(rw, "ok\n") })
	plain := startPlain(b, ok)
	w := newTestWorker(b, Config{})
	ln := listenLocal(b)
	w.HTTP(ln, &http.Server{Handler: ok})
	watched := dialEcho(b, ln.Addr().String())

	const round = 50
	conns := []*echoConn{plain, watched}
	var took [2][]time.Duration
	for n := 0; b.Loop(); n++ {
		for k := range conns {
			i := (n + k) % 2 // neither is always the first
			started := time.Now()
			for range round {
				conns[i].get(b)
			}
			took[i] = append(took[i], time.Since(started)/round)
		}
	}
	// The median, for what disturbs a round disturbs it a lot.
	b.ReportMetric(float64(median(took[0])), "plain-ns/req")
	b.ReportMetric(float64(median(took[1])), "worker-ns/req")
	b.ReportMetric(float64(median(took[0]))/float64(median(took[1])), "ratio")
}

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}

func startPlain(b *testing.B, h http.Handler) *echoConn {
	ln := listenLocal(b)
	srv := &http.Server{Handler: h}
	go srv.Serve(ln)
	b.Cleanup(func() { _ = srv.Close() })
	return dialEcho(b, ln.Addr().String())
}

// An echoConn does as little as a client can, so that the server is measured.
type echoConn struct {
	net.Conn
	in *bufio.Reader
}

func dialEcho(t testing.TB, addr string) *echoConn {
	t.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = nc.Close() })
	return &echoConn{nc, newReader(nc)}
}

func newReader(nc net.Conn) *bufio.Reader { return bufio.NewReader(nc) }

func (c *echoConn) get(t testing.TB) *http.Response {
	t.Helper()
	if _, err := fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: test\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(c.in, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		t.Fatal(err)
	}
	return resp
}
