//go:build linux

package servers

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/moult/moult/supervisor/cli/demo/load"
	"github.com/moult/moult/supervisor/e2e/testkit"
)

// dialect is how the clients of a server talk to it.
type dialect struct {
	// crowd starts clients that ask again and again, each time over a new
	// connection, and never ask twice for the same.
	crowd func(t testing.TB, address string, clients int) crowd
	// slow begins an exchange that cannot end before finish is called, which
	// completes it and says whether all of the answer was right. When slow
	// returns, the server has the exchange in hand.
	slow func(t testing.TB, address string) (finish func() error)
}

type crowd struct {
	flow     func() // waits for more answers
	lossless func() // lets each client finish, and checks that no request failed
}

var (
	webDialect       = dialect{webCrowd, download}
	redisDialect     = dialect{redisTalk.crowd, redisWait}
	memcachedDialect = dialect{memcachedTalk.crowd, memcachedHalf}
)

// askingPause keeps the clients from taking the processor that a starting
// server needs.
const askingPause = 4 * time.Millisecond

func webCrowd(t testing.TB, address string, clients int) crowd {
	c := testkit.Ask(t, load.Config{
		Address: address, Path: "/small", Clients: clients, Pause: askingPause, Answer: testkit.IsSmall,
	})
	return crowd{c.Flow, func() { c.Lossless() }}
}

// download asks for the big answer and leaves it in the kernel's buffers and
// the server's until it is to be finished.
func download(t testing.TB, address string) (finish func() error) {
	t.Helper()
	conn := connect(t, address, "GET /big HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", "")
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
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
			return fmt.Errorf("after %d bytes: %w", len(content), err)
		}
		return nil
	}
}

// connect gives a connection that has a deadline, and on which the words were
// said and answered.
func connect(t testing.TB, address, words, answer string) net.Conn {
	t.Helper()
	conn := testkit.Dial(t, address)
	conn.SetDeadline(time.Now().Add(40 * time.Second))
	testkit.OK(t, hear(conn, words, answer))
	return conn
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
	conn, err := net.DialTimeout("tcp", address, 20*time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	if err := hear(conn, w.question, w.answer); err != nil {
		return err
	}
	if more, err := io.ReadAll(conn); err != nil || len(more) > 0 {
		return fmt.Errorf("after the answer: %q, %v", more, err)
	}
	return nil
}

// crowd has the conversation again and again.
func (w talk) crowd(t testing.TB, address string, clients int) crowd {
	l := testkit.Repeat(t, clients, askingPause, func() (func() error, error) {
		return func() error { return w.once(address) }, nil
	})
	return crowd{l.Flow, l.Lossless}
}

// redisWait waits for an element of a list, which a second connection to the
// same generation has begun to add.
func redisWait(t testing.TB, address string) (finish func() error) {
	t.Helper()
	waiting := connect(t, address, "PING\r\nBLPOP list 30\r\n", "+PONG\r\n")
	adding := connect(t, address, "PING\r\n*3\r\n$5\r\nRPUSH\r\n$4\r\nlist\r\n", "+PONG\r\n")
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
	conn := connect(t, address, "mn\r\n", "MN\r\n")
	testkit.OK(t, hear(conn, "set slow 0 0 10\r\nfirst", ""))
	return func() error {
		defer conn.Close()
		return hear(conn, "after\r\nget slow\r\n", "STORED\r\nVALUE slow 0 10\r\nfirstafter\r\nEND\r\n")
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
