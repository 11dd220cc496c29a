package worker

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// load is a number of clients that never retry: what goes wrong is counted,
// and a connection is given up only where the server has said that it will be
// closed.
type load struct {
	addr  string
	think time.Duration // at most, between two requests

	stop     chan struct{}
	wg       sync.WaitGroup
	requests atomic.Int64
	failures atomic.Int64
	mu       sync.Mutex
	first    []error // some of the failures
	by       map[string]int
}

func startLoad(addr string, clients int, think time.Duration) *load {
	l := &load{addr: addr, think: think, stop: make(chan struct{}), by: make(map[string]int)}
	body := bytes.Repeat([]byte("0123456789abcdef"), 4096) // 64 KB
	for i := range clients {
		l.wg.Go(func() {
			if i%2 == 0 {
				l.client(nil)
			} else {
				l.client(body)
			}
		})
	}
	return l
}

// end stops the clients after the answer in hand.
func (l *load) end() {
	close(l.stop)
	l.wg.Wait()
}

func (l *load) check(t testing.TB) {
	t.Helper()
	t.Logf("%d requests, %d failures, %d processes answered", l.requests.Load(), l.failures.Load(), len(l.by))
	if n := l.failures.Load(); n > 0 {
		t.Errorf("%d of %d requests failed, for example: %v", n, l.requests.Load(), l.first)
	}
}

func (l *load) fail(err error) {
	l.failures.Add(1)
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.first) < 3 {
		l.first = append(l.first, err)
	}
}

func (l *load) stopped() bool {
	select {
	case <-l.stop:
		return true
	default:
		return false
	}
}

func (l *load) client(body []byte) {
	for !l.stopped() {
		nc, err := net.Dial("tcp", l.addr)
		if err != nil {
			l.requests.Add(1)
			l.fail(err)
			time.Sleep(time.Millisecond) // or a refused port would be hammered
			continue
		}
		l.connection(nc, body)
		_ = nc.Close()
	}
}

// connection sends requests until the server ends it or the load is over.
func (l *load) connection(nc net.Conn, body []byte) {
	in := bufio.NewReader(nc)
	for !l.stopped() {
		l.requests.Add(1)
		last, err := l.exchange(nc, in, body)
		if err != nil {
			l.fail(err)
			return
		}
		if last {
			return
		}
		if l.think > 0 {
			time.Sleep(rand.N(l.think))
		}
	}
}

func (l *load) exchange(nc net.Conn, in *bufio.Reader, body []byte) (last bool, err error) {
	_ = nc.SetDeadline(time.Now().Add(20 * time.Second))
	method := "GET"
	if body != nil {
		method = "POST"
	}
	var req bytes.Buffer
	fmt.Fprintf(&req, "%s / HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n", method, len(body))
	req.Write(body)
	if _, err := nc.Write(req.Bytes()); err != nil {
		return false, fmt.Errorf("%s: write: %w", method, err)
	}
	resp, err := http.ReadResponse(in, nil)
	if err != nil {
		return false, fmt.Errorf("%s: read: %w", method, err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return false, fmt.Errorf("%s: body: %w", method, err)
	}
	sum := sha256.Sum256(body)
	pid, got, _ := strings.Cut(strings.TrimSpace(string(answer)), " ")
	if resp.StatusCode != http.StatusOK || got != hex.EncodeToString(sum[:]) {
		return false, fmt.Errorf("%s: wrong answer %d %q", method, resp.StatusCode, answer)
	}
	l.mu.Lock()
	l.by[pid]++
	l.mu.Unlock()
	return resp.Close, nil
}
