//go:build linux

package servers

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/moult/moult/supervisor/e2e/testkit"
	"github.com/moult/moult/supervisor/load"
)

// askingPause keeps the clients from taking the processor that a starting
// server needs.
const askingPause = 2 * time.Millisecond

var (
	webDialect       = dialect{newWebCrowd, download}
	redisDialect     = dialect{newTextCrowd(redisTalk), redisWait}
	memcachedDialect = dialect{newTextCrowd(memcachedTalk), memcachedHalf}
)

type webCrowd struct{ traffic *load.Traffic }

func newWebCrowd(t testing.TB, address string, clients int) crowd {
	return webCrowd{testkit.Traffic(t, load.Config{
		Address: address, Path: "/small", Clients: clients, Pause: askingPause, Answer: testkit.IsSmall,
	})}
}

func (c webCrowd) requests() int {
	report := c.traffic.Snapshot()
	return report.Requests()
}

func (c webCrowd) stop() error {
	if report := c.traffic.Stop(); report.Failures() != 0 {
		return errors.New(report.String())
	}
	return nil
}

// download asks for the big answer and leaves it in the kernel's buffers and
// the server's until it is to be finished.
func download(t testing.TB, address string) (finish func() error) {
	t.Helper()
	conn := connect(t, address)
	sendText(t, conn, "GET /big HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
	in := bufio.NewReader(conn)
	response, err := http.ReadResponse(in, nil)
	if err != nil {
		t.Fatalf("no slow answer: %v", err)
	}
	return func() error {
		defer conn.Close()
		content, err := io.ReadAll(response.Body)
		if err == nil && !bytes.Equal(content, testkit.BigAnswer()) {
			err = errors.New("wrong content")
		}
		if err != nil {
			return fmt.Errorf("%d bytes of %d: %w", len(content), testkit.BigSize, err)
		}
		return nil
	}
}

// connect gives a connection that has a deadline.
func connect(t testing.TB, address string) net.Conn {
	t.Helper()
	conn, err := net.DialTimeout("tcp", address, testkit.Patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(2 * testkit.Patience))
	return conn
}

func sendText(t testing.TB, conn net.Conn, words string) {
	t.Helper()
	if _, err := io.WriteString(conn, words); err != nil {
		t.Fatal(err)
	}
}

// talk is a whole conversation of a line protocol: what the client says at
// once, with its goodbye, and what it then reads to the end of the connection.
type talk struct{ question, answer string }

var (
	redisTalk = talk{"PING\r\nSET k v\r\nGET k\r\nQUIT\r\n", "+PONG\r\n+OK\r\n$1\r\nv\r\n+OK\r\n"}
	// Protocol: doc/protocol.txt of memcached.
	memcachedTalk = talk{"set k 0 0 1\r\nv\r\nget k\r\nquit\r\n", "STORED\r\nVALUE k 0 1\r\nv\r\nEND\r\n"}
)

func (w talk) once(address string) error {
	conn, err := net.DialTimeout("tcp", address, testkit.Patience)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(conn, w.question); err != nil {
		return err
	}
	got, err := io.ReadAll(conn)
	if err == nil && string(got) != w.answer {
		err = errors.New("wrong answer")
	}
	if err != nil {
		return fmt.Errorf("after %q: %w", got, err)
	}
	return nil
}

// textCrowd has the conversation again and again.
type textCrowd struct {
	quit    func()
	clients sync.WaitGroup

	mu     sync.Mutex
	ended  int
	failed int
	sample error // the first failure
}

func newTextCrowd(words talk) func(testing.TB, string, int) crowd {
	return func(t testing.TB, address string, clients int) crowd {
		quit := make(chan struct{})
		c := &textCrowd{quit: sync.OnceFunc(func() { close(quit) })}
		for range clients {
			c.clients.Go(func() { c.run(quit, func() error { return words.once(address) }) })
		}
		t.Cleanup(func() { c.stop() })
		return c
	}
}

func (c *textCrowd) run(quit <-chan struct{}, once func() error) {
	for {
		c.count(once())
		select {
		case <-quit:
			return
		case <-time.After(askingPause):
		}
	}
}

func (c *textCrowd) count(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended++
	if err != nil {
		c.failed++
		c.sample = cmp.Or(c.sample, err)
	}
}

func (c *textCrowd) requests() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ended
}

func (c *textCrowd) stop() error {
	c.quit()
	c.clients.Wait()
	if c.failed != 0 {
		return fmt.Errorf("%d requests, %d failures: %w", c.ended, c.failed, c.sample)
	}
	return nil
}

// redisWait waits for an element of a list, which a second connection to the
// same generation has begun to add.
func redisWait(t testing.TB, address string) (finish func() error) {
	t.Helper()
	waiting, adding := connect(t, address), connect(t, address)
	sendText(t, waiting, "PING\r\nBLPOP list 30\r\n")
	expect(t, waiting, "+PONG\r\n")
	sendText(t, adding, "PING\r\n*3\r\n$5\r\nRPUSH\r\n$4\r\nlist\r\n")
	expect(t, adding, "+PONG\r\n")
	return func() error {
		defer waiting.Close()
		defer adding.Close()
		return errors.Join(
			hear(adding, "$7\r\nelement\r\n", ":1\r\n"),
			hear(waiting, "", "*2\r\n$4\r\nlist\r\n$7\r\nelement\r\n"))
	}
}

// memcachedHalf has sent half of a value. The answer to what it says before
// shows that the server has the connection; memcached keeps it back where a
// value has begun in the same packet.
func memcachedHalf(t testing.TB, address string) (finish func() error) {
	t.Helper()
	conn := connect(t, address)
	sendText(t, conn, "mn\r\n")
	expect(t, conn, "MN\r\n")
	sendText(t, conn, "set slow 0 0 10\r\nfirst")
	return func() error {
		defer conn.Close()
		return hear(conn, "after\r\nget slow\r\n", "STORED\r\nVALUE slow 0 10\r\nfirstafter\r\nEND\r\n")
	}
}

func expect(t testing.TB, conn net.Conn, answer string) {
	t.Helper()
	if err := hear(conn, "", answer); err != nil {
		t.Fatal(err)
	}
}

// hear says the words and reads as many bytes as the answer has.
func hear(conn net.Conn, words, answer string) error {
	if _, err := io.WriteString(conn, words); err != nil {
		return err
	}
	got := make([]byte, len(answer))
	n, err := io.ReadFull(conn, got)
	if err == nil && string(got) != answer {
		err = errors.New("wrong answer")
	}
	if err != nil {
		return fmt.Errorf("%q instead of %q: %w", got[:n], answer, err)
	}
	return nil
}
