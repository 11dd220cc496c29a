package control

import (
	"container/list"
	"context"
	"net"
	"net/http"
	"sync"
)

// clients bounds how many connections there are. One too many takes the place
// of the one that has gone longest without having asked for anything; where
// all wait for an answer, it is sent away.
type clients struct {
	limit int

	mu    sync.Mutex
	all   list.List // of *client, the one quiet for longest first
	known map[net.Conn]*client
}

// client is one connection.
type client struct {
	conn net.Conn
	busy bool // its request has been read, and it waits for the answer
	at   *list.Element
}

type clientKey struct{}

// busyText is the answer to one too many.
const busyText = "HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: 31\r\n\r\n" +
	`{"reason":"too many clients"}` + "\r\n"

func newClients(limit int) *clients {
	return &clients{limit: limit, known: make(map[net.Conn]*client)}
}

// welcome is the server's ConnContext.
func (c *clients) welcome(ctx context.Context, conn net.Conn) context.Context {
	c.mu.Lock()
	defer c.mu.Unlock()
	newcomer := &client{conn: conn}
	newcomer.at = c.all.PushBack(newcomer)
	c.known[conn] = newcomer
	if c.all.Len() > c.limit {
		if one := c.dispensable(); one == newcomer {
			c.forget(one)
			dismiss(conn, busyText)
		} else {
			c.forget(one)
			one.conn.Close()
		}
	}
	return context.WithValue(ctx, clientKey{}, newcomer)
}

// dispensable is never nil: the newcomer has not asked for anything yet.
func (c *clients) dispensable() *client {
	for e := c.all.Front(); e != nil; e = e.Next() {
		if one := e.Value.(*client); !one.busy {
			return one
		}
	}
	return nil
}

func (c *clients) forget(one *client) {
	if _, known := c.known[one.conn]; known {
		delete(c.known, one.conn)
		c.all.Remove(one.at)
	}
}

// changed is the server's ConnState.
func (c *clients) changed(conn net.Conn, state http.ConnState) {
	if state != http.StateClosed {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if one := c.known[conn]; one != nil {
		c.forget(one)
	}
}

// serving marks a request's client as one that waits for an answer, until the
// function that it returns is called.
func (c *clients) serving(ctx context.Context) (done func()) {
	one := ctx.Value(clientKey{}).(*client)
	c.mark(one, true)
	return func() { c.mark(one, false) }
}

func (c *clients) mark(one *client, busy bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, known := c.known[one.conn]; !known {
		return
	}
	one.busy = busy
	c.all.MoveToBack(one.at)
}
