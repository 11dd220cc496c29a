//go:build linux

package main

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

// Workers that bind UDP ports.

// datagramClients ask in a closed loop, each over a socket of its own.
type datagramClients struct {
	running  sync.WaitGroup
	over     atomic.Bool
	answered atomic.Int64
	lost     atomic.Int64
	first    atomic.Pointer[error]
}

func askByDatagrams(t *testing.T, address string, n int) *datagramClients {
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
				if _, err := echoed(conn, strconv.Itoa(i)); err != nil {
					c.lost.Add(1)
					c.first.CompareAndSwap(nil, &err)
					continue
				}
				c.answered.Add(1)
			}
		})
	}
	t.Cleanup(c.stop)
	return c
}

func (c *datagramClients) stop() {
	c.over.Store(true)
	c.running.Wait()
}

func (c *datagramClients) flow(t *testing.T) {
	t.Helper()
	before := c.answered.Load()
	until(t, "datagrams are answered", func() error { return atLeast(int(c.answered.Load()-before), 64) })
}

// echoed sends words and returns the generation that sent them back.
func echoed(conn net.Conn, words string) (generation string, err error) {
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

// Every datagram is answered, by the old generation until the flip and by the
// new one from then on; a flow moves with it.
func TestInterceptedDatagrams(t *testing.T) {
	for _, flags := range [][]string{nil, {"-n", "2"}} {
		t.Run(strings.Join(flags, ""), func(t *testing.T) {
			t.Parallel()
			address := freeAddress(t)
			m := binds(t, flags, "udp="+address)
			m.waitServing(1)
			m.boundBy(1, 1)
			flow, err := net.Dial("udp", address)
			if err != nil {
				t.Fatal(err)
			}
			defer flow.Close()
			clients := askByDatagrams(t, address, 32)
			for range times(20, 5, 100) {
				clients.flow(t)
				m.upgrade()
				m.waitState(m.generation()-1, "gone")
				generation, err := echoed(flow, "hello")
				if err != nil || generation != strconv.Itoa(m.generation()) {
					t.Errorf("the flow is answered by generation %q (%v), want %d", generation, err, m.generation())
				}
			}
			clients.flow(t)
			clients.stop()
			if lost := clients.lost.Load(); lost > 0 {
				t.Errorf("%d of %d were lost, the first: %v", lost, lost+clients.answered.Load(), *clients.first.Load())
			}
			m.stop()
		})
	}
}

// A server on both transports at one port, as a name server is.
func TestInterceptedDatagramsBesideTCP(t *testing.T) {
	t.Parallel()
	address := freeAddress(t)
	m := binds(t, nil, "tcp="+address, "udp="+address)
	m.waitServing(1)
	clients := askByDatagrams(t, address, 8)
	m.upgradeUnderLoadOf(times(3, 2, 20), address)
	clients.flow(t)
	clients.stop()
	if lost := clients.lost.Load(); lost > 0 {
		t.Errorf("%d of %d were lost, the first: %v", lost, lost+clients.answered.Load(), *clients.first.Load())
	}
	m.stop()
}
