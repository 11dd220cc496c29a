package fdpass

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
)

// Handover says how connections move from one generation to the next on one
// address.
type Handover string

const (
	// Steered: each worker has a socket of its own in a SO_REUSEPORT group,
	// and a classic BPF program names those that get new connections.
	Steered Handover = "steer"
	// Renamed: each generation has a unix socket of its own, and the path
	// is renamed from one to the next.
	Renamed Handover = "rename"
	// Shared: all workers of all generations have the same socket.
	Shared Handover = "share"
)

// ErrLost says that the kernel's group holds a listener that is not ours, so
// that nobody can know any more which member a program's index names.
var ErrLost = errors.New("another program listens on this address too")

// Options are what holds for all addresses that one master opens.
type Options struct {
	Share bool // one socket for all generations, even where steering works
}

// A Socket is one address that the master holds, with the members through
// which the workers serve it. It is not safe for concurrent use.
type Socket struct {
	addr    Address
	how     Handover
	why     string // why it is shared although it might be steered; empty otherwise
	network string // as workers and templates know it: tcp, unix, udp, unixgram
	bound   string
	backlog int
	share   bool // by the user's wish: one socket for all
	learned bool // bound by the workers themselves
	device  int  // learned: index of the interface that it is tied to; 0: none

	members []*Member // steered: mirror of the kernel's array, in its order
	serving []*Member // those that get new connections
	probes  []*Probe  // the program has a rule for each
	at      *inetTarget
	refused bool // new connections are turned away: the end has come

	pending map[uint64]pendingName // learned path: sockets that do not listen yet, by inode
}

// Addr is the address as it was asked for.
func (s *Socket) Addr() Address { return s.addr }

// Name is the socket's name in LISTEN_FDNAMES, templates and log lines.
func (s *Socket) Name() string { return s.addr.Name }

// Network is tcp, unix, udp or unixgram.
func (s *Socket) Network() string { return s.network }

// Bound is where the socket is bound: "127.0.0.1:8080", "[::]:8080",
// "/run/app.sock", "@app". A port 0 that was asked for is the real one here.
func (s *Socket) Bound() string { return s.bound }

// Port is the TCP or UDP port, 0 for unix sockets.
func (s *Socket) Port() int {
	_, port, err := net.SplitHostPort(s.bound)
	if err != nil || s.IsUnix() {
		return 0
	}
	n, _ := strconv.Atoi(port)
	return n
}

// How tells how connections move on this address, and why it is shared where
// one would expect better.
func (s *Socket) How() (Handover, string) { return s.how, s.why }

// IsUnix tells unix sockets from inet ones.
func (s *Socket) IsUnix() bool { return strings.HasPrefix(s.network, "unix") }

// Inherited tells that the socket came from outside, whose maker will hold it
// when we are gone.
func (s *Socket) Inherited() bool {
	return slices.ContainsFunc(s.members, func(m *Member) bool { return m.foreign })
}

// Learned tells that the workers have bound the address themselves.
func (s *Socket) Learned() bool { return s.learned }

// IsStream tells sockets that accept connections from datagram ones.
func (s *Socket) IsStream() bool { return s.network == "tcp" || s.network == "unix" }

// Members lists what the master holds for this address, spares included.
func (s *Socket) Members() []*Member { return s.members }

// Backlog is the length of the accept queue that was asked for.
func (s *Socket) Backlog() int { return s.backlog }

// Passed describes the socket to the worker that finds it as descriptor fd.
func (s *Socket) Passed(fd int) Passed {
	return Passed{Name: s.addr.Name, Spec: s.spec(), Network: s.network, Addr: s.bound, FD: fd}
}

// spec is what SERVER_STARTER_PORT quotes; a port that the kernel chose is
// told, since 0 would be of no use to the worker.
func (s *Socket) spec() string {
	if s.addr.Spec != "" && (s.IsUnix() || s.addr.Port != 0) {
		return s.addr.Spec
	}
	return s.bound
}

// Join returns a member for a worker of generation gen. It gets no new
// connection before Steer names it. Each Join wants one Leave.
func (s *Socket) Join(gen int) (*Member, error) {
	m, err := s.join(gen)
	if err != nil {
		return nil, fmt.Errorf("cannot open a socket on %s for generation %d: %w", s.addr.Name, gen, err)
	}
	m.users++
	return m, nil
}

func (s *Socket) join(gen int) (*Member, error) {
	switch s.how {
	case Steered:
		return s.joinGroup()
	case Renamed:
		return s.joinPath(gen)
	}
	return s.members[0], nil
}

// Steer names the members that get new connections from now on. A packet that
// another CPU has in hand at this moment may still go by the old rule: Barrier
// waits for it. Handshakes that began before end in the member they began in.
//
// With an error the old members go on. After Refuse nothing is steered any more.
func (s *Socket) Steer(serving []*Member) error {
	if s.refused {
		return nil
	}
	before := s.serving
	s.serving = slices.Clone(serving)
	var err error
	switch s.how {
	case Steered:
		err = s.steerGroup()
	case Renamed:
		err = s.steerPath()
	}
	if err != nil {
		s.serving = before
		return fmt.Errorf("cannot steer new connections on %s: %w", s.addr.Name, err)
	}
	return nil
}

// Serving tells whether new connections may reach m.
func (s *Socket) Serving(m *Member) bool {
	return s.how == Shared || slices.Contains(s.serving, m)
}

// Served tells whether new connections reach anybody.
func (s *Socket) Served() bool { return s.how == Shared || len(s.serving) > 0 }

// stopServing forgets a member without touching the caller's list.
func (s *Socket) stopServing(m *Member) {
	s.serving = slices.DeleteFunc(slices.Clone(s.serving), func(x *Member) bool { return x == m })
}

// Leave gives a member back when the worker that had it is gone. Connections
// in its queue are lost with the last user, except where the kernel moves them
// (net.ipv4.tcp_migrate_req): see that it is empty first.
func (s *Socket) Leave(m *Member) {
	if m.users--; m.users > 0 {
		return
	}
	switch s.how {
	case Steered:
		s.leaveGroup(m)
	case Renamed:
		s.leavePath(m)
	}
}

// Relisten restores what a worker may have changed when it called listen(2)
// itself: the length of the queue, which belongs to the socket and not to who
// called (gunicorn and asyncio shrink 4096 to 5).
func (s *Socket) Relisten(m *Member) error {
	if !s.IsStream() || m.foreign {
		return nil
	}
	if s.how == Steered && !isListening(m.fd) {
		// Listening again would put it into the kernel's array unseen.
		return fmt.Errorf("cannot restore the queue of %s: the worker has shut its socket down", s.addr.Name)
	}
	return m.listen(s.backlog)
}

// Refuse turns new clients away while what is queued can still be served: the
// last thing that happens to an address. Sockets that came from outside are
// left as they are, since their owner will want them again.
func (s *Socket) Refuse() error {
	if s.refused {
		return nil
	}
	s.refused = true
	if s.IsUnix() {
		s.hidePath()
		return nil
	}
	return s.refuse()
}

// Close gives all members back to the kernel and removes a unix path that is
// still ours.
func (s *Socket) Close() {
	s.closePath()
	for _, m := range s.members {
		closeDescriptor(m.fd)
	}
	s.members, s.serving, s.probes = nil, nil, nil
}

// remove takes m out of the slice of members in the order in which the kernel
// does it: the last one takes the free place.
func (s *Socket) remove(m *Member) {
	if i := slices.Index(s.members, m); i >= 0 {
		last := len(s.members) - 1
		s.members[i] = s.members[last]
		s.members = s.members[:last]
	}
}
