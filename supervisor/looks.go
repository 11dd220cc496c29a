package supervisor

import (
	"errors"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moult/moult/fdpass/group"
	"github.com/moult/moult/supervisor/drain"
	"github.com/moult/moult/supervisor/machine"
	"github.com/moult/moult/supervisor/observe"
	"github.com/moult/moult/supervisor/process"
)

// look looks at a worker, beside the loop.
func (s *Supervisor) look(o machine.Look) {
	w := s.workers.all[o.Worker]
	if w == nil || w.child == nil {
		return
	}
	l := &looker{Look: o, w: w, family: &s.workers.family, addresses: s.sockets.view(), homes: &s.sockets.homes, signal: s.cfg.DrainSignal}
	s.goBeside(func() {
		began := time.Now()
		seen := l.see()
		s.send(machine.Looked{Worker: o.Worker, Seq: o.Seq, Seen: seen, Cost: time.Since(began)})
	})
}

// looker is one look at one worker.
type looker struct {
	machine.Look
	w         *worker
	family    *atomic.Pointer[family]
	addresses map[machine.AddressID]*address
	homes     *sync.Map
	signal    syscall.Signal
}

// sight is what looks at one worker remember, each for the next of its kind.
type sight struct {
	mu         sync.Mutex
	handshakes map[observe.Peer]struct{} // that were under way at the switch
	conns      *drain.Connections
	paths      []string
}

func (s *sight) close() {}

func (l *looker) see() machine.Seen {
	// Two looks at one worker only overlap where a state has passed.
	l.w.sight.mu.Lock()
	defer l.w.sight.mu.Unlock()
	switch l.For {
	case machine.LookReady:
		return l.ready()
	case machine.LookSettled:
		return l.settled()
	case machine.LookQuiet:
		return l.quiet()
	case machine.LookHeld:
		return l.held()
	default:
		return l.left()
	}
}

// tree lists the worker's processes.
func (l *looker) tree() []int {
	return l.w.child.Tree(l.family.Load().Others, uint64s(l.Inodes))
}

func uint64s(inodes []machine.Inode) []uint64 {
	list := make([]uint64, len(inodes))
	for i, inode := range inodes {
		list[i] = uint64(inode)
	}
	return list
}

func (l *looker) ready() machine.Seen {
	var seen machine.Seen
	tree := l.tree()
	answers := observe.Accepting(tree, uint64s(l.Inodes))
	for _, inode := range l.Inodes {
		is := machine.Answer(answers[uint64(inode)])
		if is == machine.Unknown && slices.Contains(l.Ask, inode) && l.accepts(inode) {
			is = machine.Yes
		}
		seen.Accepting = append(seen.Accepting, machine.Accepting{Inode: inode, Is: is})
	}
	if len(l.Held) > 0 || l.Bypass {
		held, complete := observe.Inodes(tree)
		seen.Missing, seen.Shut = l.missing(held, complete)
		if l.Bypass && complete {
			seen.Bypass = bypass(held)
		}
	}
	for _, id := range l.Paths {
		if a := l.addresses[id]; a != nil && !a.reachable() {
			seen.Vanished = append(seen.Vanished, id)
		}
	}
	return seen
}

// bypass finds an address that is listened on although nothing was intercepted:
// the kernel was asked in a way that no filter sees.
func bypass(held map[uint64]struct{}) string {
	if len(held) == 0 {
		return ""
	}
	listeners, err := observe.ListenersAmong(held)
	if err != nil || len(listeners) == 0 {
		return ""
	}
	return listeners[0].Local.String()
}

// missing lists what no process of the worker has any more, and what has left its
// group by itself.
func (l *looker) missing(held map[uint64]struct{}, complete bool) (missing, shut []machine.Inode) {
	for _, inode := range l.Held {
		if _, holds := held[uint64(inode)]; complete && !holds {
			missing = append(missing, inode)
		} else if l.shutDown(inode) {
			shut = append(shut, inode)
		}
	}
	return missing, shut
}

// shutDown tells whether a worker has called shutdown(2) on its own listener.
func (l *looker) shutDown(inode machine.Inode) (down bool) {
	l.withMember(inode, func(a *address, m *group.Member) {
		inet, ok := a.group.(group.Inet)
		if ok && m.Own() && a.info().Network == "tcp" && a.group.Verify() == nil {
			down = !inet.Listening(m)
		}
	})
	return down
}

// withMember calls f with a member, where the group is its own.
func (l *looker) withMember(inode machine.Inode, f func(*address, *group.Member)) {
	home, ok := l.homes.Load(inode)
	if !ok {
		return
	}
	a := home.(*address)
	a.call(func() {
		if m := a.members[inode]; m != nil {
			f(a, m)
		}
	})
}

// accepts sends a connection to this one member through the real address. Once
// the handshake is over it waits in the member's queue; when the queue is empty,
// the worker has accepted it.
func (l *looker) accepts(inode machine.Inode) (yes bool) {
	l.withMember(inode, func(a *address, m *group.Member) {
		prober, ok := a.group.(group.Prober)
		if !ok {
			return // nothing is steered: the time limit says so in the end
		}
		p := a.probes[inode]
		if p == nil {
			if p, err := prober.Probe(m); err == nil {
				a.probes[inode] = p
			}
			return
		}
		connected, err := p.Connected()
		waiting, unread := observe.AcceptQueue(m.Descriptor())
		if yes = connected && err == nil && unread == nil && waiting == 0; yes || err != nil {
			p.Close()
			delete(a.probes, inode)
		}
	})
	return yes
}

func (a *address) reachable() (yes bool) {
	a.call(func() {
		mender, ok := a.group.(group.Mender)
		yes = !ok || mender.Reachable()
	})
	return yes
}

func (l *looker) settled() machine.Seen {
	if l.First {
		group.Barrier()
		l.w.sight.handshakes = map[observe.Peer]struct{}{}
		// Where the kernel does not tell, the queue alone has to do.
		for _, p := range l.underWay() {
			l.w.sight.handshakes[p] = struct{}{}
		}
	} else if len(l.w.sight.handshakes) > 0 {
		still := map[observe.Peer]struct{}{}
		for _, p := range l.underWay() {
			if _, began := l.w.sight.handshakes[p]; began {
				still[p] = struct{}{}
			}
		}
		l.w.sight.handshakes = still
	}
	seen := machine.Seen{Handshakes: len(l.w.sight.handshakes)}
	for _, inode := range l.Inodes {
		l.withMember(inode, func(a *address, m *group.Member) {
			_ = a.group.Verify()
			if n, err := observe.Queue(m.Descriptor()); err == nil {
				seen.Queued += n
			}
		})
	}
	return seen
}

func (l *looker) underWay() []observe.Peer {
	_, ports := l.locals()
	if len(ports) == 0 {
		return nil
	}
	peers, _ := observe.Handshakes(ports)
	return peers
}

// locals lists the TCP addresses of the members in question, and their ports.
func (l *looker) locals() (addresses []netip.AddrPort, ports []uint16) {
	for _, inode := range l.Inodes {
		l.withMember(inode, func(a *address, _ *group.Member) {
			if a.info().Network != "tcp" {
				return
			}
			if at, err := netip.ParseAddrPort(a.info().Bound); err == nil && !slices.Contains(addresses, at) {
				addresses = append(addresses, at)
				if !slices.Contains(ports, at.Port()) {
					ports = append(ports, at.Port())
				}
			}
		})
	}
	return addresses, ports
}

func (l *looker) quiet() machine.Seen {
	var seen machine.Seen
	addresses, ports := l.locals()
	sight := &l.w.sight
	if l.First || sight.conns == nil {
		sight.conns = drain.On(addresses)
		sight.paths = l.boundPaths()
	}
	for _, path := range sight.paths {
		if n, err := observe.UnixConnections(path); err == nil {
			seen.Busy += n
		}
	}
	seen.Handles = machine.Answer(observe.Handles(l.w.child.PID, l.signal))
	if len(ports) == 0 {
		return seen
	}
	all, err := observe.Connections(ports, true)
	if err != nil {
		seen.Unknown = true
		return seen
	}
	sight.conns.See(all)
	l.attribute(sight.conns)
	busy, idle := sight.conns.Count(l.Idle)
	seen.Busy, seen.Idle = seen.Busy+busy, idle
	if l.End {
		if end := sight.conns.End(l.Idle); len(end) > 0 {
			seen.Ended, _ = process.ShutdownRead(l.tree(), end)
		}
	}
	return seen
}

// boundPaths are the names that connections to the unix paths of the worker bear.
func (l *looker) boundPaths() []string {
	var paths []string
	for _, inode := range l.Inodes {
		l.withMember(inode, func(a *address, m *group.Member) {
			if a.info().How == group.Renamed {
				paths = append(paths, m.Path())
			}
		})
	}
	return paths
}

// attribute sorts connections by the descriptors of the processes that hold
// them. Only what is not known yet is looked for.
func (l *looker) attribute(c *drain.Connections) {
	if !c.Unknown() {
		return
	}
	own, _ := observe.Inodes(l.tree())
	c.Mine(own)
	if !c.Unknown() {
		return
	}
	f := l.family.Load()
	var others []int
	for pid, child := range f.byPID {
		if pid != l.w.child.PID {
			others = append(others, child.Tree(f.Others, nil)...)
		}
	}
	theirs, _ := observe.Inodes(others)
	c.Theirs(theirs)
}

func (l *looker) held() machine.Seen {
	held, complete := observe.Inodes(l.tree())
	seen := machine.Seen{Holds: !complete}
	seen.Missing, seen.Shut = l.missing(held, complete)
	for _, inode := range l.Inodes {
		_, holds := held[uint64(inode)]
		seen.Holds = seen.Holds || holds
	}
	return seen
}

// left finds what the main process has left behind. With the first look it has
// done its duty as a zombie.
func (l *looker) left() machine.Seen {
	left := l.w.child.Left(l.family.Load().Others, uint64s(l.Inodes))
	seen := machine.Seen{Left: len(left)}
	if len(left) > 0 {
		held, _ := observe.Inodes(left)
		seen.Serves = slices.ContainsFunc(l.Inodes, func(inode machine.Inode) bool {
			_, holds := held[uint64(inode)]
			return holds
		})
	}
	l.w.child.Reap()
	return seen
}

// handed is a member that a worker is started with.
type handed struct {
	about   group.Description
	address *address
	inode   machine.Inode
}

func newHanded(a *address, inode machine.Inode) handed { return handed{a.info(), a, inode} }

// duplicate is the caller's to close. A socket that another worker had may have
// been made non-blocking: it is as new where nobody else has it.
func (h handed) duplicate() (fd int, err error) {
	fd = -1
	h.address.call(func() {
		m := h.address.members[h.inode]
		if m == nil {
			err = errors.New("it was closed meanwhile")
			return
		}
		if h.about.How == group.Steered {
			if err = m.Fresh(); err != nil {
				return
			}
		}
		fd, err = unix.FcntlInt(uintptr(m.Descriptor()), unix.F_DUPFD_CLOEXEC, firstDescriptor)
	})
	return fd, err
}
