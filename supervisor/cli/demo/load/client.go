package load

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// After a failure a client waits a moment: a server that refuses would
// otherwise be asked as fast as the machine can, and one outage would count
// differently on each machine.
const pauseAfterFailure = 10 * time.Millisecond

// An answer longer than this is taken for a wrong one.
const maxBody = 16 << 20

var errTooMuch error = &wrongAnswer{errors.New("more bytes than the answer has")}

type client struct {
	traffic *Traffic
	request []byte
	dialer  net.Dialer
	source  source
	in      *bufio.Reader // reads from source
	body    bytes.Buffer

	mu   sync.Mutex // guards conn and over against cut
	conn net.Conn
	over bool
}

func newClient(t *Traffic) *client {
	host := t.config.Address
	if t.config.Network == "unix" {
		host = "localhost"
	}
	header := fmt.Sprintf("GET %s HTTP/1.1\r\nHost: %s\r\n", t.config.Path, host)
	if t.config.Mode == PerRequest {
		header += "Connection: close\r\n"
	}
	c := &client{traffic: t, request: []byte(header + "\r\n")}
	c.in = bufio.NewReader(&c.source)
	return c
}

// source reads a connection and remembers how it ended: a head that was cut
// within a line looks merely malformed to net/http.
type source struct {
	conn net.Conn
	end  error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.conn.Read(p)
	if err != nil {
		s.end = err
	}
	return n, err
}

// blame returns the connection's end as the cause of err if it has ended, and
// a wrong answer otherwise.
func (s *source) blame(err error) error {
	if s.end != nil {
		return s.end
	}
	return &wrongAnswer{err}
}

func (c *client) run(ctx context.Context) {
	defer c.hangUp()
	for !c.stopped(0) {
		pause := c.traffic.config.Pause
		if !c.once(ctx) {
			pause = max(pause, pauseAfterFailure)
		}
		if pause > 0 && c.stopped(pause) {
			return
		}
	}
}

// stopped waits for at most d for the end.
func (c *client) stopped(d time.Duration) bool {
	if d == 0 {
		select {
		case <-c.traffic.quit:
			return true
		default:
			return false
		}
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-c.traffic.quit:
		return true
	case <-timer.C:
		return false
	}
}

// once sends one request and counts what became of it.
func (c *client) once(ctx context.Context) bool {
	start := time.Now()
	generation, err := c.ask(ctx, start.Add(c.traffic.config.Timeout))
	if ctx.Err() != nil {
		return false
	}
	if err != nil {
		c.hangUp()
		c.traffic.failed(classify(err), err)
		return false
	}
	c.traffic.answered(generation, time.Since(start))
	return true
}

func (c *client) ask(ctx context.Context, deadline time.Time) (generation string, err error) {
	conn, err := c.connection(ctx, deadline)
	if err != nil {
		return "", err
	}
	if _, err := conn.Write(c.request); err != nil {
		return "", fmt.Errorf("cannot send the request: %w", err)
	}
	response, err := c.read()
	if err != nil {
		return "", err
	}
	if response.Close || c.traffic.config.Mode == PerRequest {
		c.hangUp()
	}
	generation, err = c.traffic.config.Answer(response, c.body.Bytes())
	if err != nil {
		return "", &wrongAnswer{err}
	}
	return generation, nil
}

// read takes one whole answer from the connection, its body into c.body.
func (c *client) read() (*http.Response, error) {
	if _, err := c.in.Peek(1); err != nil {
		return nil, fmt.Errorf("no answer: %w", err)
	}
	response, err := http.ReadResponse(c.in, nil)
	if err != nil {
		return nil, fmt.Errorf("cannot read the answer's head: %w", c.source.blame(err))
	}
	defer response.Body.Close()
	c.body.Reset()
	n, err := c.body.ReadFrom(io.LimitReader(response.Body, maxBody+1))
	if err != nil {
		return nil, fmt.Errorf("cannot read the answer's body: %w", c.source.blame(err))
	}
	if n > maxBody {
		return nil, &wrongAnswer{fmt.Errorf("more than %d bytes", maxBody)}
	}
	return response, nil
}

// connection returns the kept connection, or a new one, with its deadline set.
func (c *client) connection(ctx context.Context, deadline time.Time) (net.Conn, error) {
	if c.conn != nil {
		switch err := c.silent(); {
		case err == nil:
			return c.conn, c.adopt(c.conn, deadline)
		case errors.Is(err, io.EOF):
			c.hangUp()
			c.traffic.reconnected()
		default:
			return nil, fmt.Errorf("connection broke while idle: %w", err)
		}
	}
	conn, err := c.dial(ctx, deadline)
	if err != nil {
		return nil, err
	}
	c.source = source{conn: conn}
	c.in.Reset(&c.source)
	return conn, c.adopt(conn, deadline)
}

// dial waits, as a blocking connect(2) does, where the queue of a unix socket
// is full; the non-blocking one that net uses says EAGAIN instead.
func (c *client) dial(ctx context.Context, deadline time.Time) (net.Conn, error) {
	config := &c.traffic.config
	c.dialer.Deadline = deadline
	for {
		conn, err := c.dialer.DialContext(ctx, config.Network, config.Address)
		if !errors.Is(err, syscall.EAGAIN) || time.Now().After(deadline) || c.stopped(time.Millisecond) {
			return conn, err
		}
	}
}

// adopt makes conn the client's, unless cut was there first.
func (c *client) adopt(conn net.Conn, deadline time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conn = conn
	if c.over {
		deadline = time.Unix(1, 0)
	}
	return conn.SetDeadline(deadline)
}

func (c *client) hangUp() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn != nil {
		c.conn.Close()
		c.conn = nil
	}
}

// cut ends whatever the client waits for.
func (c *client) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.over = true
	if c.conn != nil {
		c.conn.SetDeadline(time.Unix(1, 0))
	}
}

// silent looks, without waiting, at the kept connection, on which nothing is
// expected: nil if there is nothing, io.EOF if the server has closed it.
func (c *client) silent() error {
	if c.in.Buffered() > 0 {
		return errTooMuch
	}
	raw, err := c.conn.(syscall.Conn).SyscallConn()
	if err != nil {
		return err
	}
	var one [1]byte
	var n int
	var peeked error
	err = raw.Read(func(fd uintptr) bool {
		n, _, peeked = unix.Recvfrom(int(fd), one[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		return true
	})
	switch {
	case err != nil:
		return err
	case errors.Is(peeked, unix.EAGAIN):
		return nil
	case peeked != nil:
		return peeked
	case n == 0:
		return io.EOF
	default:
		return errTooMuch
	}
}
