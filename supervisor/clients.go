package supervisor

import (
	"context"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/moult/moult/supervisor/control/api"
	"github.com/moult/moult/supervisor/machine"
	"github.com/moult/moult/supervisor/observe"
)

// clients are those who have asked for something and hear about it until it is
// over. The master never waits for one: its events fit into the channel.
type clients struct {
	mu   sync.Mutex
	last machine.OpID
	open map[machine.OpID]*client
}

type client struct {
	began   time.Time
	events  chan api.Event
	decided chan error // accepted (nil) or turned down
}

// maxEvents is more than any operation has.
const maxEvents = 8

func (c *clients) add() (machine.OpID, *client) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last++
	if c.open == nil {
		c.open = map[machine.OpID]*client{}
	}
	one := &client{began: time.Now(), events: make(chan api.Event, maxEvents), decided: make(chan error, 1)}
	c.open[c.last] = one
	return c.last, one
}

func (c *clients) get(op machine.OpID) *client {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.open[op]
}

func (c *clients) remove(op machine.OpID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.open, op)
}

func (c *clients) accept(op machine.OpID) {
	if one := c.get(op); one != nil {
		one.decided <- nil
	}
}

func (c *clients) turnDown(o machine.TurnDown) {
	if one := c.get(o.Op); one != nil {
		c.remove(o.Op)
		one.decided <- &api.Refused{Reason: o.Reason}
	}
}

func (c *clients) inform(o machine.Inform) {
	one := c.get(o.Op)
	if one == nil {
		return
	}
	e := o.Event
	e.TookMS = milliseconds(e.At.Sub(one.began))
	select {
	case one.events <- e:
	default:
		if o.Last { // this one counts
			select {
			case <-one.events:
			default: // read meanwhile
			}
			one.events <- e
		}
	}
	if o.Last {
		close(one.events)
		c.remove(o.Op)
	}
}

// Begin takes an operation on. Its events come over the channel, which is closed
// after the last; nobody has to read them. The error is an *api.Refused where
// the operation makes no sense now.
func (s *Supervisor) Begin(ctx context.Context, op api.Operation) (<-chan api.Event, error) {
	id, one := s.clients.add()
	select {
	case s.events <- machine.Asked{Op: id, Operation: op}:
	case <-s.done:
		return nil, errEnded
	case <-ctx.Done():
		s.clients.remove(id)
		return nil, ctx.Err()
	}
	select {
	case err := <-one.decided:
		return one.begun(err)
	case <-s.done:
	}
	select {
	case err := <-one.decided: // it may have been the master's last word
		return one.begun(err)
	default:
		return nil, errEnded
	}
}

func (c *client) begun(err error) (<-chan api.Event, error) {
	if err != nil {
		return nil, err
	}
	return c.events, nil
}

// Status tells what the master knows and, because somebody looks, what the
// kernel knows of its sockets and workers. The kernel is asked outside of the
// loop, which goes on meanwhile.
func (s *Supervisor) Status(ctx context.Context) (api.Status, error) {
	var status api.Status
	var views []*address
	if err := s.ask(ctx, func() {
		status = s.mind.Status()
		views = s.bookAddresses()
		s.take(machine.Viewed{}) // looking takes memory
	}); err != nil {
		return api.Status{}, err
	}
	for i, a := range views {
		status.Sockets[i].Queued = a.queued()
	}
	s.workers.addKernelView(&status)
	return status, nil
}

// State is Status.State alone, for probes: nothing but the master is asked.
func (s *Supervisor) State(ctx context.Context) (state string, err error) {
	err = s.ask(ctx, func() { state = s.mind.State() })
	return state, err
}

// addKernelView fills in connections, memory and executables.
func (ws *workers) addKernelView(status *api.Status) {
	var ports []uint16
	for _, sock := range status.Sockets {
		if port := portOf(sock); port != 0 {
			ports = append(ports, port)
		}
	}
	conns, err := observe.Connections(ports, false)
	for i := range status.Workers {
		w := &status.Workers[i]
		w.RSSBytes, _, _ = observe.Memory(w.PID)
		w.Executable = executableOf(w.PID)
		if err != nil {
			continue
		}
		inodes, complete := observe.Inodes(ws.treeOf(w.PID))
		if !complete {
			continue
		}
		n := 0
		for _, c := range conns {
			if _, holds := inodes[c.Inode]; holds && c.State == observe.Established {
				n++
			}
		}
		w.Connections = &n
	}
}

func portOf(sock api.Socket) uint16 {
	if sock.Network != "tcp" {
		return 0
	}
	port, err := strconv.ParseUint(sock.Address[strings.LastIndexByte(sock.Address, ':')+1:], 10, 16)
	if err != nil {
		return 0
	}
	return uint16(port)
}

// executableOf is the path of the program that a process runs, empty where it
// cannot be seen.
func executableOf(pid int) string {
	path, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/exe")
	if err != nil {
		return ""
	}
	return strings.TrimSuffix(path, " (deleted)")
}

// milliseconds is how the API writes durations.
func milliseconds(d time.Duration) float64 {
	const perMicrosecond = 1000
	return float64(d.Microseconds()) / perMicrosecond
}
