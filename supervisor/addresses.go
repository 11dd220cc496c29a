package supervisor

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/rs/zerolog"

	"github.com/moult/moult/fdpass"
	"github.com/moult/moult/fdpass/group"
	"github.com/moult/moult/supervisor/control/api"
	"github.com/moult/moult/supervisor/machine"
	"github.com/moult/moult/supervisor/observe"
)

// sockets are the addresses that the master holds. The loop alone adds and
// removes; what is done on one is done in turn, beside the loop.
type sockets struct {
	link
	paths   *pathWatch
	options group.Options
	last    machine.AddressID
	opened  []*address // in the order of the configuration
	homes   sync.Map   // of each socket, by its inode: the *address
	all     map[machine.AddressID]*address
	ending  map[machine.AddressID]*address  // not in the book any more
	once    map[string]bool                 // keys of all that were ever learned
	known   atomic.Pointer[map[string]bool] // for captures: network and key of each, and each port
	seen    atomic.Pointer[map[machine.AddressID]*address]
	renamed atomic.Pointer[[]*address] // unix paths
}

// link leads from a room of the shell to its loop.
type link struct {
	send   func(machine.Event) bool
	beside func(func())
	log    zerolog.Logger
}

// address is one group. Its tasks touch it one at a time.
type address struct {
	id    machine.AddressID
	key   string
	about atomic.Pointer[group.Description]

	mu    sync.Mutex
	tasks []func()
	busy  bool

	homes *sync.Map

	// For tasks alone.
	group   group.Group
	members map[machine.Inode]*group.Member
	probes  map[machine.Inode]*group.Probe
	mendErr string // what was said last
}

func newSockets(share bool, l link) *sockets {
	s := &sockets{link: l, options: group.Options{Share: share}, all: map[machine.AddressID]*address{}, ending: map[machine.AddressID]*address{}, once: map[string]bool{}}
	s.publish()
	return s
}

// info is what was known of the group last.
func (a *address) info() group.Description { return *a.about.Load() }

// refresh is a task.
func (a *address) refresh() {
	d := a.group.Describe()
	a.about.Store(&d)
}

// do runs f when all that was to be done before has been.
func (a *address) do(f func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.tasks = append(a.tasks, f)
	if !a.busy {
		a.busy = true
		go a.work()
	}
}

func (a *address) work() {
	for {
		a.mu.Lock()
		if len(a.tasks) == 0 {
			a.busy, a.tasks = false, nil
			a.mu.Unlock()
			return
		}
		f := a.tasks[0]
		a.tasks = a.tasks[1:]
		a.mu.Unlock()
		f()
	}
}

// call is do, and waits: not for the loop.
func (a *address) call(f func()) {
	done := make(chan struct{})
	a.do(func() { defer close(done); f() })
	<-done
}

func (s *sockets) add(id machine.AddressID, g group.Group, key string) *address {
	a := &address{group: g}
	return s.put(a, id, key, g.Describe())
}

// addLater is add where it takes up to a second to make the group, as the first
// task. about is what is known before.
func (s *sockets) addLater(id machine.AddressID, key string, about group.Description, newGroup func() group.Group) *address {
	a := s.put(&address{}, id, key, about)
	a.do(func() {
		a.group = newGroup()
		a.refresh()
	})
	return a
}

func (s *sockets) put(a *address, id machine.AddressID, key string, about group.Description) *address {
	a.id, a.key, a.homes = id, key, &s.homes
	a.members, a.probes = map[machine.Inode]*group.Member{}, map[machine.Inode]*group.Probe{}
	a.about.Store(&about)
	s.all[id] = a
	s.last = max(s.last, id)
	if len(s.once) < maxKeys {
		s.once[about.Network+" "+key] = true
		if about.Port != 0 {
			s.once[about.Network+" "+portKey(about.Port)] = true
		}
	}
	s.publish()
	return a
}

// view is what there is, for those beside the loop.
func (s *sockets) view() map[machine.AddressID]*address { return *s.seen.Load() }

// publish shows those beside the loop what there is.
func (s *sockets) publish() {
	known, renamed := maps.Clone(s.once), []*address{}
	for _, a := range s.all {
		if a.info().How == group.Renamed {
			renamed = append(renamed, a)
		}
	}
	seen := maps.Clone(s.all)
	s.seen.Store(&seen)
	s.known.Store(&known)
	s.renamed.Store(&renamed)
}

// maxKeys is how many addresses are remembered of which workers may have closed
// one and bind it again.
const maxKeys = 1 << 14

func portKey(port int) string { return "port " + strconv.Itoa(port) }

// open opens an address, and says who has it where it is in use.
func (s *sockets) open(addr fdpass.Address, cfg *Config) error {
	g, err := group.Open(addr, s.options)
	if err == nil && cfg.MustSteer {
		if about := g.Describe(); about.How == group.Shared && about.Network == "tcp" {
			g.Close()
			return fmt.Errorf("cannot steer connections on %s: %s; --handover auto shares the socket instead", addr.Name, about.Why)
		}
	}
	if err == nil {
		s.opened = append(s.opened, s.add(s.last+1, g, keyOf(g)))
		return nil
	}
	if !errors.Is(err, syscall.EADDRINUSE) {
		return err
	}
	listeners, _ := observe.Listeners(uint16(addr.Port))
	for _, l := range listeners {
		if who := holders(l.Inode); who != "" {
			return fmt.Errorf("%w%s (listens on %s)", err, who, l.Local)
		}
	}
	return err
}

// keyOf names the exact form of an address, as workers' calls do.
func keyOf(g group.Group) string {
	if inet, ok := g.(group.Inet); ok {
		if b, ok := inet.Binding(); ok {
			return b.Form()
		}
	}
	return g.Describe().Bound
}

// begin tells the machine what was opened.
func (s *sockets) begin() []machine.Opened {
	var list []machine.Opened
	for _, a := range s.opened {
		list = append(list, machine.Opened{Address: a.id, Socket: a.plain()})
	}
	return list
}

// plain is what the machine knows of an address.
func (a *address) plain() machine.Socket {
	d := a.info()
	return machine.Socket{
		Name: d.Name, Network: d.Network, Bound: d.Bound, Key: a.key, Port: d.Port, Backlog: d.Backlog,
		Handover: string(d.How), Why: d.Why, Stream: d.Stream, Learned: d.Learned, Inherited: d.Inherited,
	}
}

// drop closes an address that is not in the book any more.
func (s *sockets) drop(a *address) {
	delete(s.all, a.id)
	s.publish()
	maps.DeleteFunc(s.ending, func(_ machine.AddressID, old *address) bool { return old.idle() })
	s.ending[a.id] = a
	a.do(a.shut)
}

// before is the address on which something has to be done first.
func (s *sockets) before(id machine.AddressID) *address {
	if a := s.all[id]; a != nil {
		return a
	}
	return s.ending[id]
}

// idle tells whether nothing is left to do.
func (a *address) idle() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return !a.busy
}

func (s *sockets) describe() []api.Socket {
	var list []api.Socket
	for _, a := range s.opened {
		d := a.info()
		list = append(list, api.Socket{Name: d.Name, Network: d.Network, Address: d.Bound, Backlog: d.Backlog, Handover: string(d.How), Reason: d.Why})
	}
	return list
}

// close gives everything back.
func (s *sockets) close() {
	for _, a := range s.all {
		a.call(func() { a.shut() })
	}
	s.all, s.opened = map[machine.AddressID]*address{}, nil
	s.publish()
}

// shut is a task.
func (a *address) shut() {
	for _, p := range a.probes {
		p.Close()
	}
	clear(a.probes)
	a.group.Close()
	for inode := range a.members {
		a.lose(inode)
	}
}

// keep and lose are for tasks.
func (a *address) keep(m *group.Member) {
	inode := machine.Inode(m.Inode())
	a.members[inode] = m
	a.homes.Store(inode, a)
}

func (a *address) lose(inode machine.Inode) {
	delete(a.members, inode)
	a.homes.CompareAndDelete(inode, a)
}

// queued counts what waits in all members.
func (a *address) queued() (n int) {
	a.call(func() {
		for _, m := range a.group.Members() {
			if waiting, err := observe.AcceptQueue(m.Descriptor()); err == nil {
				n += waiting
			}
		}
	})
	return n
}

// bookAddresses lists the addresses in the order in which Status has them.
func (s *Supervisor) bookAddresses() []*address {
	var list []*address
	for _, a := range s.mind.Book.Addresses {
		if have := s.sockets.all[a.ID]; have != nil {
			list = append(list, have)
		} else {
			list = append(list, &address{id: a.ID, group: nothing{}}) // on its way
		}
	}
	return list
}

// nothing is the group of an address that is on its way.
type nothing struct{ group.Group }

func (nothing) Members() []*group.Member { return nil }

func (s *sockets) perform(o machine.Order) {
	switch o := o.(type) {
	case machine.Furnish:
		s.furnish(o)
	case machine.CountQueue:
		s.countQueue(o)
	case machine.Steer:
		s.steer(o)
	case machine.Leave:
		s.leave(o)
	case machine.Drop:
		if a := s.all[o.Address]; a != nil {
			s.drop(a)
		}
	case machine.Relisten:
		s.relisten(o.Held)
	case machine.Refuse:
		s.refuse()
	case machine.Release:
		for _, a := range s.all {
			a.do(a.shut)
		}
	case machine.WatchPaths:
		s.watchPaths(o.On)
	case machine.Mend:
		s.mend()
	}
}

// furnish makes a socket on each address that was opened, for each slot.
func (s *sockets) furnish(o machine.Furnish) {
	opened := slices.Clone(s.opened)
	s.beside(func() {
		members := make([][]machine.Held, o.Slots)
		var failed error
		for _, a := range opened {
			a.call(func() {
				if failed == nil {
					failed = a.furnish(o.Generation, members)
				}
			})
		}
		s.send(machine.Furnished{First: o.First, Members: members, Err: errorText(failed)})
	})
}

// furnish is a task.
func (a *address) furnish(generation int, members [][]machine.Held) error {
	if err := a.refuseForeign(); err != nil {
		return err
	}
	for i := range members {
		m, err := a.join(generation)
		if err != nil {
			return err
		}
		members[i] = append(members[i], machine.Held{Address: a.id, Inode: machine.Inode(m.Inode())})
	}
	return nil
}

// join is a task. The group is to count a member once, however many workers have
// it: the machine counts those, and tells when the last one has left.
func (a *address) join(generation int) (*group.Member, error) {
	m, err := a.group.Join(generation)
	if err != nil {
		return nil, err
	}
	if inode := machine.Inode(m.Inode()); a.members[inode] == m {
		a.group.Leave(m)
	} else {
		a.keep(m)
	}
	return m, nil
}

// refuseForeign finds listeners that another program of the same user has put
// into the group: they would shift the indices that the program names. It is a
// task.
func (a *address) refuseForeign() error {
	if a.info().How != group.Steered || a.info().Network != "tcp" {
		return nil
	}
	listeners, err := observe.Listeners(uint16(a.info().Port))
	if err != nil {
		return nil // cannot be seen here; steering itself works
	}
	ours := map[uint64]bool{}
	for _, m := range a.group.Members() {
		ours[m.Inode()] = true
	}
	type form struct {
		local  netip.AddrPort
		v6only bool
		device int
	}
	forms := map[form]bool{}
	for _, l := range listeners {
		if ours[l.Inode] {
			forms[form{l.Local, l.V6Only, l.Device}] = true
		}
	}
	for _, l := range listeners {
		if !ours[l.Inode] && forms[form{l.Local, l.V6Only, l.Device}] {
			return fmt.Errorf("cannot serve on %s: %w%s", a.info().Bound, group.ErrLost, holders(l.Inode))
		}
	}
	return nil
}

func holders(inode uint64) string {
	for _, pid := range observe.Holders(inode) {
		if p, err := observe.ReadProc(pid); err == nil {
			return fmt.Sprintf(": %s, pid %d", p.Comm, pid)
		}
	}
	return ""
}

// countQueue counts what waits in the members of a slot.
func (s *sockets) countQueue(o machine.CountQueue) {
	byAddress := s.sort(o.Members)
	s.beside(func() {
		n := 0
		for a, inodes := range byAddress {
			n += a.waiting(inodes)
		}
		s.send(machine.QueueSeen{Slot: o.Slot, Count: n})
	})
}

// waiting counts what waits in some members.
func (a *address) waiting(inodes []machine.Inode) (n int) {
	a.call(func() {
		for _, inode := range inodes {
			if m := a.members[inode]; m != nil {
				if waiting, err := observe.Queue(m.Descriptor()); err == nil {
					n += waiting
				}
			}
		}
	})
	return n
}

// sort groups members by address.
func (s *sockets) sort(members []machine.Held) map[*address][]machine.Inode {
	sorted := map[*address][]machine.Inode{}
	for _, h := range members {
		if a := s.all[h.Address]; a != nil {
			sorted[a] = append(sorted[a], h.Inode)
		}
	}
	return sorted
}

func (s *sockets) steer(o machine.Steer) {
	a := s.all[o.Address]
	if a == nil {
		s.beside(func() { s.send(machine.Steered{Address: o.Address, Err: "the address is gone"}) })
		return
	}
	a.do(func() {
		gone, err := a.steer(o)
		s.send(machine.Steered{Address: o.Address, Err: errorText(err), Gone: gone})
	})
}

// steer is a task.
func (a *address) steer(o machine.Steer) (gone []machine.Inode, err error) {
	if o.Confirm {
		if err := a.refuseForeign(); err != nil {
			return nil, err
		}
	}
	if err := a.group.Verify(); err != nil {
		return nil, err
	}
	var members []*group.Member
	for _, inode := range o.Members {
		m := a.members[inode]
		if m == nil {
			return nil, fmt.Errorf("socket %d is not there any more", inode)
		}
		if inet, ok := a.group.(group.Inet); ok && m.Own() && !inet.Listening(m) {
			gone = append(gone, inode)
			continue
		}
		members = append(members, m)
	}
	if len(members) == 0 {
		return gone, errors.New("its worker has shut its socket down")
	}
	return gone, a.group.Steer(members)
}

func (s *sockets) leave(o machine.Leave) {
	a := s.all[o.Held.Address]
	if a == nil {
		return
	}
	a.do(func() {
		m := a.members[o.Held.Inode]
		if m == nil {
			return
		}
		if o.Lost != "" {
			if n, err := observe.Queue(m.Descriptor()); err == nil && n > 0 {
				s.log.Error().Int("generation", o.Generation).Str("address", a.info().Bound).Int("connections", n).Msg(o.Lost)
			}
		}
		a.leave(o.Held.Inode, m)
	})
}

// leave is a task.
func (a *address) leave(inode machine.Inode, m *group.Member) {
	if p := a.probes[inode]; p != nil {
		p.Close()
		delete(a.probes, inode)
	}
	a.group.Leave(m)
	if a.info().How != group.Shared || !slices.Contains(a.group.Members(), m) {
		a.lose(inode)
	}
}

func (s *sockets) relisten(h machine.Held) {
	a := s.all[h.Address]
	if a == nil {
		return
	}
	a.do(func() {
		m := a.members[h.Inode]
		if m == nil {
			return
		}
		if err := errors.Join(a.group.Verify(), a.group.Relisten(m)); err != nil {
			s.log.Warn().Err(err).Msg("cannot restore the length of the queue")
		}
	})
}

func (s *sockets) refuse() {
	for _, a := range s.all {
		a.do(func() {
			if err := a.group.Refuse(); err != nil {
				s.log.Warn().Err(err).Msg("cannot turn new clients away before the end")
			}
		})
	}
}

// mend puts unix paths back that a leaving worker has removed.
func (s *sockets) mend() {
	for _, a := range *s.renamed.Load() {
		a.do(func() {
			mender, ok := a.group.(group.Mender)
			if !ok {
				return
			}
			mended, err := mender.Mend()
			if text := errorText(err); text != a.mendErr {
				a.mendErr = text
				if err != nil {
					s.log.Error().Err(err).Msg("cannot mend a path")
				}
			}
			if mended {
				s.send(machine.Mended{Address: a.id})
			}
		})
	}
}

// Hints says what would make these sockets safer, and can only be set from
// outside.
func Hints(sockets []api.Socket) []string {
	steered := slices.ContainsFunc(sockets, func(s api.Socket) bool { return s.Handover == string(group.Steered) })
	migrate, err := os.ReadFile("/proc/sys/net/ipv4/tcp_migrate_req")
	if !steered || err != nil || strings.TrimSpace(string(migrate)) != "0" {
		return nil
	}
	return []string{"with sysctl net.ipv4.tcp_migrate_req=1 the kernel itself moves what waits for a worker that was killed to another one"}
}
