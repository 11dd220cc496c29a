//go:build linux

package testkit

import (
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// datagramClients ask in a closed loop, each over a socket of its own.
type datagramClients struct {
	running  sync.WaitGroup
	over     atomic.Bool
	Answered atomic.Int64
	Lost     atomic.Int64
	First    atomic.Pointer[error]
}

func AskByDatagrams(t *testing.T, address string, n int) *datagramClients {
	t.Helper()
	c := new(datagramClients)
	for range n {
		conn, err := net.Dial("udp", address)
		if err != nil {
			t.Fatal(err)
		}
		c.running.Go(func() {
			defer conn.Close()
			for i := 0; !c.over.Load(); i++ {
				if _, err := Echoed(conn, strconv.Itoa(i)); err != nil {
					c.Lost.Add(1)
					c.First.CompareAndSwap(nil, &err)
					continue
				}
				c.Answered.Add(1)
			}
		})
	}
	t.Cleanup(c.Stop)
	return c
}

func (c *datagramClients) Stop() {
	c.over.Store(true)
	c.running.Wait()
}

func (c *datagramClients) Flow(t *testing.T) {
	t.Helper()
	before := c.Answered.Load()
	Until(t, "datagrams are answered", func() error { return AtLeast(int(c.Answered.Load()-before), 64) })
}

// Echoed sends words and returns the generation that sent them back.
func Echoed(conn net.Conn, words string) (generation string, err error) {
	conn.SetDeadline(time.Now().Add(2 * time.Second))
	if _, err := conn.Write([]byte(words)); err != nil {
		return "", err
	}
	buffer := make([]byte, 100)
	n, err := conn.Read(buffer)
	if err != nil {
		return "", err
	}
	generation, same, _ := strings.Cut(string(buffer[:n]), " ")
	if same != words {
		return "", fmt.Errorf("got %q, want %q", same, words)
	}
	return generation, nil
}
