package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/moult/moult/supervisor/control/api"
)

// ErrNoMaster says that nobody listens where a master was looked for.
var ErrNoMaster = errors.New("no master there")

// ErrLost says that the master went away before an operation was over.
var ErrLost = errors.New("the master went away before it told the end")

// Failed is the end of an operation that did not succeed; the master is as it
// was before.
type Failed struct{ Event api.Event }

func (f *Failed) Error() string { return f.Event.Reason }

// Client talks to one master. It may be used by several goroutines.
type Client struct {
	path string
	pid  int
	http http.Client
}

// Dial finds a master by the path of its control socket (whatever has a slash)
// or by its name, in the default directories. The error is ErrNoMaster where
// nobody listens, and for a name also where it could only be in a directory
// that this user must not look into. Close the client in the end.
func Dial(pathOrName string) (*Client, error) {
	if strings.Contains(pathOrName, "/") {
		return dialPath(pathOrName)
	}
	var tried []string
	for _, path := range pathsOf(pathOrName) {
		c, err := dialPath(path)
		if err == nil {
			return c, nil
		}
		if errors.Is(err, os.ErrPermission) {
			path += " (permission denied)"
		}
		tried = append(tried, path)
	}
	return nil, fmt.Errorf("cannot reach a master at %s: %w", strings.Join(tried, " or "), ErrNoMaster)
}

func dialPath(path string) (*Client, error) {
	live, pid, err := probe(path)
	switch {
	case live:
		return newClient(path, pid), nil
	case err != nil:
		return nil, fmt.Errorf("cannot reach the master at %s: %w", path, cause(err))
	}
	return nil, fmt.Errorf("cannot reach a master at %s: %w", path, ErrNoMaster)
}

func newClient(path string, pid int) *Client {
	c := &Client{path: path, pid: pid}
	c.http.Transport = &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		},
	}
	return c
}

// Path is that of the control socket.
func (c *Client) Path() string { return c.path }

// PID is the master's, 0 where it cannot be seen from here.
func (c *Client) PID() int { return c.pid }

// Close ends the connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Status asks for everything that can be seen.
func (c *Client) Status(ctx context.Context) (api.Status, error) {
	var status api.Status
	resp, err := c.do(ctx, http.MethodGet, "/v1/status", nil)
	if err != nil {
		return status, err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&status); err != nil {
		return status, fmt.Errorf("cannot read the master's status: %w", err)
	}
	return status, nil
}

// Metrics returns the text for Prometheus.
func (c *Client) Metrics(ctx context.Context) ([]byte, error) {
	resp, err := c.do(ctx, http.MethodGet, "/metrics", nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return io.ReadAll(resp.Body)
}

// Do asks for an operation and yields its events as they come, and an error
// last where it was refused (*api.Refused), failed (*Failed, after its event),
// or is out of sight (ErrLost, or that of ctx). Whoever leaves the loop, or
// ends ctx, stops to look: the operation goes on.
//
// A stop is done when the master's process is gone.
func (c *Client) Do(ctx context.Context, op api.Operation) iter.Seq2[api.Event, error] {
	return func(yield func(api.Event, error) bool) {
		master := watchProcess(c.pid)
		defer master.close()
		stream, err := c.begin(ctx, op)
		if err != nil {
			yield(api.Event{}, err)
			return
		}
		defer stream.Close()
		decoder := json.NewDecoder(stream)
		last := api.Event{}
		for !isLast(last) {
			e, err := nextEvent(ctx, decoder)
			if op.Kind == api.OpStop && (e.Event == api.EventDone || errors.Is(err, ErrLost) && last.Event == api.EventDraining) {
				e, err = c.ended(ctx, master)
			}
			if !yield(e, err) || err != nil {
				return
			}
			last = e
		}
		if last.Event == api.EventFailed {
			yield(last, &Failed{last})
		}
	}
}

func isLast(e api.Event) bool { return e.Event == api.EventDone || e.Event == api.EventFailed }

func (c *Client) begin(ctx context.Context, op api.Operation) (io.ReadCloser, error) {
	body, err := json.Marshal(op)
	if err != nil {
		return nil, err
	}
	resp, err := c.do(ctx, http.MethodPost, "/v1/"+op.Kind, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}

func nextEvent(ctx context.Context, decoder *json.Decoder) (e api.Event, err error) {
	if err = decoder.Decode(&e); err == nil {
		return e, nil
	}
	if ctx.Err() != nil {
		return e, context.Cause(ctx)
	}
	return e, ErrLost
}

// ended waits until the master's process is gone, or at least its socket.
func (c *Client) ended(ctx context.Context, master process) (api.Event, error) {
	const pace = 20 * time.Millisecond
	for master.lives() || !master.known() && c.listens() {
		select {
		case <-ctx.Done():
			return api.Event{}, context.Cause(ctx)
		case <-time.After(pace):
		}
	}
	return api.Event{Event: api.EventDone, At: time.Now()}, nil
}

func (c *Client) listens() bool {
	live, _, err := probe(c.path)
	return live || err != nil
}

// do returns an answer whose status is 200; the caller closes its body.
func (c *Client) do(ctx context.Context, method, path string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://moult"+path, body)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	switch {
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, os.ErrNotExist):
		return nil, fmt.Errorf("cannot reach a master at %s: %w", c.path, ErrNoMaster)
	case err != nil:
		return nil, fmt.Errorf("cannot talk to the master at %s: %w", c.path, cause(err))
	case resp.StatusCode == http.StatusOK:
		return resp, nil
	}
	defer resp.Body.Close()
	return nil, c.complaint(resp)
}

// complaint reads an answer that is no 200.
func (c *Client) complaint(resp *http.Response) error {
	refused := &api.Refused{}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxBody)).Decode(refused); err != nil || refused.Reason == "" {
		return fmt.Errorf("cannot talk to the master at %s: it answers %s", c.path, resp.Status)
	}
	if resp.StatusCode == http.StatusConflict {
		return refused
	}
	return fmt.Errorf("the master at %s did not do it: %s", c.path, refused.Reason)
}
