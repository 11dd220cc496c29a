// Package group holds the addresses that a master serves: each is a Group, one
// address in the kernel with the sockets through which workers serve it.
//
// There are four kinds, each in a file of its own, and which one an address gets
// is decided once, when it is opened or learned:
//
//   - tcp: each worker has a socket of its own in a SO_REUSEPORT group, and a
//     classic BPF program names those that get new connections.
//   - udp: the same for datagrams, where workers have bound the address themselves.
//   - path: each generation has a unix stream socket of its own, and the path is
//     renamed from one to the next.
//   - shared: one socket for all, where nothing better works or none is wanted:
//     abstract names, datagrams that the master opens, other systems than Linux.
//
// An address is declared (Open: the master binds it, or was started with it) or
// learned (LearnInet, LearnPath: a worker binds it, and its sockets are adopted).
//
// No method waits for a worker or a client. Some talk to the kernel by loopback
// and wait for its answer, for a second at most.
package group

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/moult/moult/fdpass"
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

var (
	// ErrLost says that the kernel's group holds a listener that is not ours,
	// so that nobody can know any more which member a program's index names.
	ErrLost = errors.New("another program listens on this address too")
	// ErrListens says that a socket that is to be adopted listens already:
	// somebody else has had it before the worker, and it is left alone.
	ErrListens = errors.New("the socket listens already: it came from another program")

	errNobody = errors.New("nobody has a socket there that could be had")
)

// Options are what holds for all addresses that one master opens.
type Options struct {
	Share bool // one socket for all generations, even where steering works
}

// Description is what is known of an address without asking the kernel again.
type Description struct {
	Name      string // in LISTEN_FDNAMES, templates and log lines
	Spec      string // as SERVER_STARTER_PORT quotes it; a port that the kernel chose is told
	Network   string // tcp, udp, unix, unixgram
	Bound     string // "127.0.0.1:8080", "/run/app.sock", "@app"; port 0 resolved
	Port      int    // TCP or UDP port, 0 for unix
	Backlog   int    // length of the accept queue that was asked for
	How       Handover
	Why       string // why it is shared where one would expect better
	Learned   bool   // bound by the workers themselves
	Inherited bool   // came from outside: its owner will want it again
	Stream    bool   // accepts connections
}

// Passed describes the address to the worker that finds it as descriptor fd.
func (d Description) Passed(fd int) fdpass.Passed {
	return fdpass.Passed{Name: d.Name, Spec: d.Spec, Network: d.Network, Addr: d.Bound, FD: fd}
}

// A Group is one address in the kernel with its members. It is not safe for
// concurrent use: whoever has it calls one method at a time, from any goroutine.
type Group interface {
	Describe() Description

	// Members lists what the master holds, spares included.
	Members() []*Member

	// Join returns a member for a worker of generation gen, which gets no new
	// connection before Steer names it: a new one (steered), the generation's
	// (renamed) or the one that there is (shared). Each Join wants one Leave.
	Join(gen int) (*Member, error)

	// Steer names the members that get new connections from now on. A packet
	// that another CPU has in hand may still go by the old rule: Barrier waits
	// for it. Handshakes that began before end in the member they began in.
	// With an error the old ones go on. After Refuse it does nothing.
	Steer(serving []*Member) error

	// Leave gives a member back when the worker that had it is gone, and
	// closes it with its last user where the kind has one for each. What waits
	// in its queue is lost then, except where the kernel moves it
	// (net.ipv4.tcp_migrate_req): see that it is empty first.
	Leave(m *Member)

	// Refuse turns new clients away while what is queued can still be served:
	// the last thing that happens to an address. Sockets that came from
	// outside are left to their owner.
	Refuse() error

	// Verify follows what happened without us: a worker that called
	// shutdown(2) on its listener has taken it out of the kernel's array. It
	// is cheap, and called at every look while something drains.
	Verify() error

	// Relisten restores what a worker may have changed when it called
	// listen(2) itself: the length of the queue, which belongs to the socket
	// and not to who called (gunicorn and asyncio shrink 4096 to 5).
	Relisten(m *Member) error

	// Close gives all members back to the kernel and removes a unix path that
	// is still ours.
	Close()
}

// Inet is a Group of an inet address, which workers' own sockets can join.
type Inet interface {
	Group

	// Binding is the address in the form that bind(2) had. It is false before
	// the address has one, and where the kernel does not tell.
	Binding() (fdpass.Binding, bool)

	// Permit sets what lets the worker's own bind(2) share the address:
	// SO_REUSEADDR and SO_REUSEPORT. fd is a duplicate of its socket and stays
	// the caller's. The worker binds it itself afterwards, under its own
	// rights. Where one socket serves all, the error wraps EADDRINUSE.
	//
	// A datagram socket joins the kernel's array as soon as it is bound, so
	// that the next one is permitted only when this one was adopted or is
	// known to be closed.
	Permit(fd int) error

	// Adopt makes a member for a worker of generation gen of the worker's own
	// socket. It calls listen(2) on it, since the order of the kernel's array
	// matters; a datagram socket has just been bound. fd is a duplicate, or
	// what stands in for it; it belongs to the member, and is closed with an
	// error, which wraps the errno that listen(2) gave, or ErrListens, after
	// which the socket is as it was. The queue has backlog places, and not
	// fewer than fdpass.DefaultBacklog. New connections reach it when Steer
	// names it, or at once where there is no other. Each Adopt wants one Leave.
	Adopt(fd, gen, backlog int) (*Member, error)

	// Resume is listen(2) by the worker on its member again, also after it
	// has taken it out by shutdown(2).
	Resume(m *Member, backlog int) error

	// Listening tells whether a member is in the group still.
	Listening(m *Member) bool

	// Share notes that one more worker has m, which it got from the first
	// (SCM_RIGHTS). Each Share wants one Leave.
	Share(m *Member) error
}

// Path is a Group of a unix path or abstract name. Workers bind those that are
// learned themselves; of a declared one only HasName and Shows are of use.
type Path interface {
	Group

	// Bind binds fd, a duplicate of a worker's socket that stays the
	// caller's, on the worker's behalf: to a free name beside the path, which
	// Adopt finds again. The error is, or wraps, the errno that bind(2) gave.
	// The name stays until the member leaves or Forget is called.
	Bind(fd int, id Identity) error

	// Adopt is Inet's. id is as whom the worker called bind(2), where that is
	// known; else as whom it calls listen(2). Where it may not make a second
	// name beside the path, the member cannot get the path back once another
	// one has it.
	Adopt(fd, gen, backlog int, id Identity) (*Member, error)

	// Forget removes the name that Bind gave to a socket that was closed, or
	// whose worker has gone, without ever listening. It does nothing for others.
	Forget(inode uint64)

	// HasName tells whether a name of one of its sockets ends in base.
	HasName(base string) bool

	// Shows tells whether a directory entry, of which info is the Lstat, leads
	// to one of its sockets: a member's, or one that Bind has bound.
	Shows(info os.FileInfo) bool
}

// Mender is what groups of unix paths implement, declared and learned.
type Mender interface {
	// Mend puts the path back that a leaving worker has removed, and tells
	// whether it had to. What a worker has bound itself is its own to remove
	// or to rename as long as no other one has the path too. Where somebody
	// else's file stands, a declared path is an error that wraps EEXIST.
	Mend() (mended bool, err error)

	// Reachable tells whether clients can get to a member, now or when Mend
	// has been called. It is false where somebody else's file stands at the
	// path, and for a learned path that the worker has renamed or removed.
	Reachable() bool
}

// Prober is implemented by groups that can connect to one chosen member.
type Prober interface {
	// Probe begins to connect to m through the address that it serves. The
	// caller closes the probe, before the group.
	Probe(m *Member) (*Probe, error)
}

// Open opens what a is about: binds and listens, or takes over the descriptor
// that the process was started with. The first worker's Join returns the socket
// that was opened here.
//
// An address that somebody else holds is an error that wraps
// syscall.EADDRINUSE, although all members of a steered group carry
// SO_REUSEPORT.
func Open(a fdpass.Address, opt Options) (Group, error) {
	if strings.HasPrefix(a.Network, "tcp") && !opt.Share {
		why := whyNotSteered(a)
		if why == "" {
			return openTCP(a)
		}
		return openShared(a, why)
	}
	if a.Network == "unix" && !strings.HasPrefix(a.Path, "@") && !opt.Share && renames {
		return openPath(a)
	}
	g, err := openShared(a, "")
	if err != nil {
		return nil, err
	}
	if g.network == "tcp" && !opt.Share {
		return steerPassed(g), nil
	}
	return withPath(g), nil
}

// An address is what the four kinds have in common.
type address struct {
	addr    fdpass.Address
	at      fdpass.Binding // inet: exactly where it is bound
	network string         // as workers and templates know it
	bound   string
	backlog int
	how     Handover
	why     string
	learned bool

	members []*Member // steered: mirror of the kernel's array, in its order
	serving []*Member // those that get new connections
	refused bool      // new connections are turned away: the end has come
}

// openSocket opens a with one socket; listen is fdpass.OpenSocket's.
func openSocket(a fdpass.Address, listen func(fd int) error) (*address, error) {
	fd, err := fdpass.OpenSocket(a, listen)
	if err != nil {
		return nil, err
	}
	m, err := newMember(fd)
	if err != nil {
		return nil, err
	}
	l, err := fdpass.LocalOf(fd)
	g := &address{addr: a, network: l.Network, bound: l.String(), backlog: a.QueueLength(), how: Shared, members: []*Member{m}}
	if err == nil && !g.isUnix() {
		g.at, err = fdpass.BindingOf(fd)
	}
	if err != nil {
		m.close()
		return nil, err
	}
	return g, nil
}

// learnedAddress describes what a worker binds.
func learnedAddress(network, spec string) address {
	g := address{
		addr: fdpass.Address{Name: spec, Spec: spec, Network: network, UID: -1, GID: -1},
		how:  Shared, network: network, bound: spec, learned: true,
	}
	if g.isStream() {
		g.backlog = fdpass.DefaultBacklog
	}
	return g
}

func (g *address) isUnix() bool   { return strings.HasPrefix(g.network, "unix") }
func (g *address) isStream() bool { return g.network == "tcp" || g.network == "unix" }

// Describe implements Group.
func (g *address) Describe() Description {
	return Description{
		Name: g.addr.Name, Spec: g.spec(), Network: g.network, Bound: g.bound, Port: int(g.at.Addr.Port()),
		Backlog: g.backlog, How: g.how, Why: g.why, Learned: g.learned, Stream: g.isStream(),
		Inherited: slices.ContainsFunc(g.members, func(m *Member) bool { return m.foreign }),
	}
}

func (g *address) spec() string {
	if g.addr.Spec != "" && (g.isUnix() || g.learned || g.addr.Port != 0) {
		return g.addr.Spec
	}
	return g.bound
}

// Members implements Group.
func (g *address) Members() []*Member { return g.members }

// Binding implements Inet.
func (g *address) Binding() (fdpass.Binding, bool) { return g.at, g.at.Addr.IsValid() }

// Share implements Inet.
func (g *address) Share(m *Member) error {
	m.users++
	return nil
}

// Relisten implements Group.
func (g *address) Relisten(m *Member) error {
	if !g.isStream() || m.foreign {
		return nil
	}
	return m.listen(g.backlog)
}

// remove takes m out of the members in the order in which the kernel does it:
// the last one takes the free place.
func (g *address) remove(m *Member) {
	if i := slices.Index(g.members, m); i >= 0 {
		last := len(g.members) - 1
		g.members[i] = g.members[last]
		g.members = g.members[:last]
	}
}

func (g *address) closeMembers() {
	for _, m := range g.members {
		m.close()
	}
	g.members, g.serving = nil, nil
}

func (g *address) cannotJoin(gen int, err error) error {
	return fmt.Errorf("cannot open a socket on %s for generation %d: %w", g.addr.Name, gen, err)
}
