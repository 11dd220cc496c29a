//go:build linux

package container

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/moult/moult/supervisor/e2e/testkit"
	"golang.org/x/sys/unix"
)

// container is one that runs; its client's connections begin inside its network
// namespace, since it has no other network.
type container struct {
	*engine
	name   string
	pid    int // of the container's PID 1, as seen from outside
	client *http.Client
}

// start runs the server's image and returns once it answers.
func (e *engine) start(t *testing.T, flags []string, command ...string) *container {
	t.Helper()
	c := &container{engine: e, name: e.name()}
	c.client = &http.Client{
		Timeout: time.Minute,
		// A new connection for each request, as no retry hides a refused one.
		Transport: &http.Transport{DialContext: c.dial, DisableKeepAlives: true},
	}
	e.mustPodman(t, append(append(e.runFlags(c.name, append([]string{"--detach"}, flags...)...), e.serverImage), command...)...)
	t.Cleanup(func() {
		if t.Failed() {
			output, _ := e.podman("logs", c.name)
			t.Logf("what the container printed:\n%s", output)
		}
	})
	pid, err := strconv.Atoi(e.inspect(t, c.name, "{{.State.Pid}}"))
	if err != nil || pid == 0 {
		t.Fatalf("the container is not running (pid %d, %v)", pid, err)
	}
	c.pid = pid
	c.waitForGeneration(t, 1)
	return c
}

// stop stops the container with more time than moult's own limits add up to.
func (c *container) stop(t *testing.T) {
	t.Helper()
	c.mustPodman(t, "stop", "--time", "60", c.name)
	if code := c.inspect(t, c.name, "{{.State.ExitCode}}"); code != "0" {
		t.Errorf("exit code after the stop: %s, want 0", code)
	}
}

func (c *container) signal(t *testing.T, name string) {
	t.Helper()
	c.mustPodman(t, "kill", "--signal", name, c.name)
}

// masterStart returns what tells one process from the next with the same pid:
// its start time, field 22 of /proc/PID/stat.
func (c *container) masterStart(t *testing.T) string {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", c.pid))
	if err != nil {
		t.Fatalf("PID 1 of the container is gone: %v", err)
	}
	_, afterName, _ := strings.Cut(string(stat), ") ")
	return strings.Fields(afterName)[22-3]
}

// dial connects from inside the container's network namespace.
func (c *container) dial(ctx context.Context, network, address string) (net.Conn, error) {
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, err
	}
	defer home.Close()
	inside, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", c.pid))
	if err != nil {
		return nil, err
	}
	defer inside.Close()
	// The namespace belongs to the thread. A thread that cannot come back stays
	// locked, and so ends with its goroutine.
	runtime.LockOSThread()
	if err := unix.Setns(int(inside.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return nil, err
	}
	conn, err := new(net.Dialer).DialContext(ctx, network, address)
	if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
		return conn, errors.Join(err, back)
	}
	runtime.UnlockOSThread()
	return conn, err
}

func (c *container) get(path string, value any) error {
	response, err := c.client.Get("http://127.0.0.1:8080" + path)
	if err != nil {
		return err
	}
	return decodeAnswer(response, value)
}

func decodeAnswer(response *http.Response, value any) error {
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", response.Status, body)
	}
	return json.Unmarshal(body, value)
}

func (c *container) mustGet(t *testing.T, path string, value any) {
	t.Helper()
	testkit.OK(t, c.get(path, value))
}

// answer is what the server tells of itself.
type answer struct {
	PID        int    `json:"pid"`
	Generation string `json:"generation"`
	err        error
}

// getInFlight returns once the server has begun to answer; the whole answer
// arrives on the channel.
func (c *container) getInFlight(t *testing.T, path string) <-chan answer {
	t.Helper()
	response, err := c.client.Get("http://127.0.0.1:8080" + path)
	testkit.OK(t, err)
	answered := make(chan answer, 1)
	go func() {
		var worker answer
		worker.err = decodeAnswer(response, &worker)
		answered <- worker
	}()
	return answered
}

func (c *container) waitForGeneration(t *testing.T, generation int) {
	t.Helper()
	testkit.Until(t, fmt.Sprintf("generation %d answers", generation), func() error {
		var worker answer
		if err := c.get("/", &worker); err != nil {
			return err
		}
		if worker.Generation != strconv.Itoa(generation) {
			return fmt.Errorf("it is generation %s", worker.Generation)
		}
		return nil
	})
}

// process is one process as seen from inside the container.
type process struct {
	PID    int    `json:"pid"`
	Parent int    `json:"parent"`
	State  string `json:"state"`
	Name   string `json:"name"`
}

func (c *container) processes(t *testing.T) []process {
	t.Helper()
	var table []process
	c.mustGet(t, "/ps", &table)
	return table
}
