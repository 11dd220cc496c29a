// Package load is traffic that hides nothing: a fixed number of clients send
// one request after the other, never repeat one, and count each that was not
// answered as it should have been.
//
// It speaks HTTP/1.1 over plain connections of its own, since
// net/http.Transport sends a request again when a kept connection turns out to
// be closed, and so hides exactly what is to be counted here.
package load

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"time"
)

// Mode says what a client does with its connection after an answer.
type Mode int

const (
	// PerRequest opens a new connection for each request.
	PerRequest Mode = iota
	// KeepAlive uses one connection until the server says goodbye: with
	// "Connection: close" in an answer, or by closing the connection before
	// the next request has been sent. Both are answered by a new connection
	// and are no failure. A connection that ends after a request was sent
	// and before its answer is one.
	KeepAlive
)

// Names of phases that every user of the package shares.
const (
	AtRest    = "at rest"
	Upgrading = "during upgrades"
)

// GenerationHeader is where Answered looks for the generation.
const GenerationHeader = "Moult-Generation"

// Config describes one kind of traffic.
type Config struct {
	Network string        // "tcp" (also when empty) or "unix"
	Address string        // host:port, or the path of a unix socket
	Path    string        // what is asked for, with the query; "/" when empty
	Mode    Mode          // PerRequest when zero
	Clients int           // how many at once; 1 when zero
	Timeout time.Duration // for one request with its connection; 10 s when zero
	Pause   time.Duration // between an answer and the client's next request

	// Answer judges a complete answer: which generation gave it ("" where
	// that cannot be told), and whether it is the right one. It is called
	// from several goroutines; body is only valid until it returns. Nil
	// means Answered.
	Answer func(response *http.Response, body []byte) (generation string, err error)
}

// Answered takes every 200 as right and the generation from GenerationHeader.
func Answered(response *http.Response, _ []byte) (string, error) {
	if response.StatusCode != http.StatusOK {
		return "", fmt.Errorf("status %s", response.Status)
	}
	return response.Header.Get(GenerationHeader), nil
}

func (c Config) withDefaults() Config {
	if c.Network == "" {
		c.Network = "tcp"
	}
	if c.Path == "" {
		c.Path = "/"
	}
	if c.Answer == nil {
		c.Answer = Answered
	}
	c.Clients = max(c.Clients, 1)
	if c.Timeout <= 0 {
		c.Timeout = 10 * time.Second
	}
	return c
}

// Traffic is load that runs until it is stopped.
type Traffic struct {
	config  Config
	clients sync.WaitGroup
	quit    chan struct{}
	stop    func()
	release func() bool

	mu     sync.Mutex
	report Report
	phase  int // index in report.Phases of the one that counts now
}

// Start begins with the traffic, in the phase AtRest. It ends by Stop; when
// ctx ends before that, requests under way are cut and not counted.
func Start(ctx context.Context, config Config) *Traffic {
	t := &Traffic{config: config.withDefaults(), quit: make(chan struct{})}
	t.stop = sync.OnceFunc(func() { close(t.quit) })
	t.Phase(AtRest)
	clients := make([]*client, t.config.Clients)
	for i := range clients {
		clients[i] = newClient(t)
	}
	// One function for all connections: one per connection would cost more
	// than the request.
	t.release = context.AfterFunc(ctx, func() {
		t.stop()
		for _, c := range clients {
			c.cut()
		}
	})
	for _, c := range clients {
		t.clients.Go(func() { c.run(ctx) })
	}
	return t
}

// Phase counts what is answered from now on under another name. A name that
// was used before is continued.
func (t *Traffic) Phase(name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.phase = t.report.phase(name)
}

// Snapshot returns what has been counted so far.
func (t *Traffic) Snapshot() Report {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.report.clone()
}

// Stop lets each client finish the request it has sent, ends all clients and
// returns the count. A second call returns the same.
func (t *Traffic) Stop() Report {
	t.stop()
	t.clients.Wait()
	t.release()
	return t.Snapshot()
}

func (t *Traffic) answered(generation string, took time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.report.answered(t.phase, generation, took)
}

func (t *Traffic) failed(class Class, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.report.failed(t.phase, class, err)
}

func (t *Traffic) reconnected() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.report.Goodbyes++
}
