//go:build linux

package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Clients that do one special thing, and workers without a master.

// askSelf returns what the worker that serves found when it began.
func askSelf(t testing.TB, network, address string) self {
	t.Helper()
	_, body, err := get(network, address, "/self")
	var s self
	if err == nil {
		err = json.Unmarshal([]byte(body), &s)
	}
	if err != nil {
		t.Fatalf("cannot ask the worker about itself: %v", err)
	}
	return s
}

func (s self) variable(name string) string {
	for _, kv := range s.Env {
		if value, found := strings.CutPrefix(kv, name+"="); found {
			return value
		}
	}
	return ""
}

func (s self) has(name string) bool {
	for _, kv := range s.Env {
		if strings.HasPrefix(kv, name+"=") {
			return true
		}
	}
	return false
}

func answers(t testing.TB, network, address string) {
	t.Helper()
	until(t, address+" answers", func() error {
		_, _, err := get(network, address, "/")
		return err
	})
}

// heldRequest is a request whose answer has not been read.
type heldRequest struct{ conn net.Conn }

// hold sends a request for a slow answer and returns once a worker has it in
// hand.
func hold(t testing.TB, address, path string) heldRequest {
	t.Helper()
	before := busy(t, address)
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", path); err != nil {
		t.Fatal(err)
	}
	until(t, "the request is in hand", func() error { return atLeast(busy(t, address), before+1) })
	return heldRequest{conn}
}

func (h heldRequest) finish() error {
	h.conn.SetReadDeadline(time.Now().Add(patience))
	response, err := http.ReadResponse(bufio.NewReader(h.conn), nil)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	_, err = io.Copy(io.Discard, response.Body)
	return err
}

// busy is the number of slow requests that the serving worker has in hand.
func busy(t testing.TB, address string) int {
	t.Helper()
	_, body, err := get("tcp", address, "/busy")
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(body)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

type tcpSocket struct{ local, state, inode string }

// tcpSockets reads the kernel's table, as this thread sees it: the first thread
// of the process may be in a namespace that some test has made.
func tcpSockets(t testing.TB) (all []tcpSocket) {
	t.Helper()
	table, err := os.ReadFile("/proc/thread-self/net/tcp")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(table)) {
		fields := strings.Fields(line)
		var ip, port uint32
		if len(fields) < 10 {
			continue
		}
		if _, err := fmt.Sscanf(fields[1], "%X:%X", &ip, &port); err != nil {
			continue
		}
		local := fmt.Sprintf("%d.%d.%d.%d:%d", byte(ip), byte(ip>>8), byte(ip>>16), byte(ip>>24), port)
		all = append(all, tcpSocket{local, fields[3], fields[9]})
	}
	return all
}

// listening is a socket of the test's own, blocking, for others to inherit.
func listening(t testing.TB, network, address string) *os.File {
	t.Helper()
	config := new(net.ListenConfig)
	config.SetMultipathTCP(false) // plain TCP, as systemd opens it
	listener, err := config.Listen(t.Context(), network, address)
	if err != nil {
		t.Fatal(err)
	}
	if l, isUnix := listener.(*net.UnixListener); isUnix {
		l.SetUnlinkOnClose(false)
	}
	file, err := listener.(interface{ File() (*os.File, error) }).File()
	if err := errors.Join(err, listener.Close()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	return file
}

// startBare starts a worker with no master above it, on a socket at 3.
func startBare(t testing.TB, socket *os.File, generation int, command []string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(command[0], command[1:]...)
	token := newToken()
	cmd.Env = append(os.Environ(), tokenVariable+"="+token, "LISTEN_FDS=1", fmt.Sprintf("MOULT_GENERATION=%d", generation))
	cmd.ExtraFiles = []*os.File{socket}
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			cmd.Process.Kill()
			cmd.Wait()
		}
		for _, pid := range processesWith(token) {
			killProcess(pid)
		}
	})
	return cmd
}
