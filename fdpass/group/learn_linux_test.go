package group

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moult/moult/fdpass"
)

// What a worker sets on its socket before it binds.
const (
	reuseNothing = 0
	reuseAddress = 1
	reuseTwins   = 2 // SO_REUSEPORT alone
	reuseBoth    = reuseAddress | reuseTwins
)

// workerSocket is a socket as a worker makes it, bound to nothing yet.
func workerSocket(t testing.TB, b fdpass.Binding, reuse int) int {
	t.Helper()
	family, kind := unix.AF_INET, unix.SOCK_STREAM
	if b.Addr.Addr().Is6() {
		family = unix.AF_INET6
	}
	if b.Network == "udp" {
		kind = unix.SOCK_DGRAM
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	if reuse&reuseAddress != 0 {
		must(t, reuseAddr(fd, 1)())
	}
	if reuse&reuseTwins != 0 {
		must(t, reusePort(fd, 1)())
	}
	return fd
}

func bindTo(fd int, b fdpass.Binding) error { return syscall.Bind(fd, b.Sockaddr()) }

func loopback(t testing.TB, network string) fdpass.Binding {
	t.Helper()
	b := fdpass.Binding{Network: network, Addr: netip.MustParseAddrPort("127.0.0.1:0")}
	return b.WithPort(freePort(t))
}

// learnAt is the group for b for the time of the test.
func learnAt(t testing.TB, b fdpass.Binding, opt Options) Inet {
	t.Helper()
	g := LearnInet(b, opt)
	t.Cleanup(g.Close)
	return g
}

func mustAdopt(t testing.TB, g Inet, fd, gen int) *Member {
	t.Helper()
	m, err := g.Adopt(fd, gen, 5)
	must(t, err)
	return m
}

// permitted is what a worker of a later generation does: its own bind, with
// what the master has permitted.
func permitted(t testing.TB, g Inet, b fdpass.Binding, reuse, gen int) *Member {
	t.Helper()
	fd := workerSocket(t, b, reuse)
	must(t, g.Permit(fd))
	must(t, bindTo(fd, b))
	return mustAdopt(t, g, fd, gen)
}

// TestAdopt: whatever the first worker has set, its socket becomes the first of
// a group that later ones join and that is steered.
func TestAdopt(t *testing.T) {
	needSteering(t)
	needIPv6(t)
	for _, at := range []string{"127.0.0.1:0", "0.0.0.0:0", "[::1]:0", "[::]:0", "[::ffff:127.0.0.1]:0"} {
		for reuse := range reuseBoth + 1 {
			t.Run(fmt.Sprintf("%s reuse=%d", at, reuse), func(t *testing.T) {
				b := fdpass.Binding{Network: "tcp", Addr: netip.MustParseAddrPort(at)}.WithPort(freePort(t))
				g := learnAt(t, b, Options{})
				fd := workerSocket(t, b, reuse)
				must(t, bindTo(fd, b))
				first := mustAdopt(t, g, fd, 1)
				d := g.Describe()
				if have, ok := g.Binding(); !ok || have != b || d.How != Steered || !d.Learned || !first.Own() || d.Bound != b.String() {
					t.Fatalf("it is %+v at %v", d, have)
				}
				connect(t, g, 3, first) // before it is steered to
				must(t, g.Steer([]*Member{first}))
				connect(t, g, 20, first)
				serving := first
				for gen := 2; gen < 6; gen++ {
					next := permitted(t, g, b, reuse, gen)
					connect(t, g, 10, serving)
					probe, err := g.(Prober).Probe(next)
					must(t, err)
					eventually(t, "the probe is connected", func() bool {
						ok, err := probe.Connected()
						must(t, err)
						return ok
					})
					probe.Close()
					takeAll(t, next)
					must(t, g.Steer([]*Member{next}))
					connect(t, g, 10, next)
					g.Leave(serving)
					serving = next
				}
				connect(t, g, 10, serving)
				if n := len(g.Members()); n != 1 {
					t.Errorf("%d sockets for one worker at rest", n)
				}
				g.Leave(serving)
				if n := len(g.Members()); n != 0 {
					t.Errorf("%d sockets for nobody", n)
				}
			})
		}
	}
}

// TestBindAllThenListenAll: siblings that are all bound before the first of
// them listens.
func TestBindAllThenListenAll(t *testing.T) {
	needSteering(t)
	for _, test := range []struct {
		name  string
		reuse int
		bind  func(g Inet, fd int, b fdpass.Binding) error
	}{
		{"by themselves", reuseAddress, func(_ Inet, fd int, b fdpass.Binding) error { return bindTo(fd, b) }},
		{"as prefork servers do", reuseBoth, func(_ Inet, fd int, b fdpass.Binding) error { return bindTo(fd, b) }},
		{"as other prefork servers do", reuseTwins, func(_ Inet, fd int, b fdpass.Binding) error { return bindTo(fd, b) }},
		{"permitted before", reuseNothing, func(g Inet, fd int, b fdpass.Binding) error {
			return errors.Join(g.Permit(fd), bindTo(fd, b))
		}},
		{"permitted afterwards too", reuseNothing, func(g Inet, fd int, b fdpass.Binding) error {
			if len(bound) > 0 {
				_ = g.Permit(bound[0])
				_ = g.Permit(fd)
			}
			return bindTo(fd, b)
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := loopback(t, "tcp")
			g := learnAt(t, b, Options{})
			for gen := range 3 {
				bound = nil
				for range 4 {
					fd := workerSocket(t, b, test.reuse)
					if gen > 0 {
						must(t, g.Permit(fd))
					}
					must(t, test.bind(g, fd, b))
					bound = append(bound, fd)
				}
				var members []*Member
				for _, i := range []int{2, 0, 3, 1} {
					members = append(members, mustAdopt(t, g, bound[i], gen))
				}
				old := slices.Clone(g.(*tcpGroup).serving)
				must(t, g.Steer(members))
				for _, m := range old {
					g.Leave(m)
				}
				connect(t, g, 40, members...)
				checkMirror(t, g)
			}
			if n := len(g.Members()); n != 4 {
				t.Errorf("%d sockets for 4 workers at rest", n)
			}
		})
	}
}

var bound []int // by the test that runs: the sockets of this generation

// TestOutsiders: whoever was not permitted hears what the kernel would say
// without us.
func TestOutsiders(t *testing.T) {
	needSteering(t)
	b := loopback(t, "tcp")
	g := learnAt(t, b, Options{})
	fd := workerSocket(t, b, reuseAddress)
	must(t, bindTo(fd, b))
	outside := workerSocket(t, b, reuseAddress) // another master's, at the same time
	must(t, bindTo(outside, b))
	m := mustAdopt(t, g, fd, 1)
	other := learnAt(t, b, Options{})
	before := openDescriptors(t)
	if _, err := other.Adopt(duplicateOf(t, outside), 1, 5); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("two masters share an address: %v", err)
	}
	wantDescriptors(t, before)
	if on, _ := unix.GetsockoptInt(outside, unix.SOL_SOCKET, unix.SO_REUSEPORT); on != 0 {
		t.Error("the worker that was refused finds its socket changed")
	}
	closeDescriptor(outside)
	for _, reuse := range []int{reuseNothing, reuseAddress} {
		fd := workerSocket(t, b, reuse)
		if err := bindTo(fd, b); err != syscall.EADDRINUSE {
			t.Errorf("an outsider with %d: %v", reuse, err)
		}
		closeDescriptor(fd)
	}
	must(t, g.Steer([]*Member{m}))
	connect(t, g, 10, m)
}

func duplicateOf(t testing.TB, fd int) int {
	t.Helper()
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	must(t, err)
	return own
}

// TestAnotherUser: the kernel's rule stays in force for what workers bind, and
// sockets of our own take on the workers' user.
func TestAnotherUser(t *testing.T) {
	needSteering(t)
	id := other(t)
	b := loopback(t, "tcp")
	g := learnAt(t, b, Options{})
	theirs := func(reuse int) (fd int) {
		must(t, id.do(func() (err error) {
			fd = workerSocket(t, b, reuse)
			return nil
		}))
		return fd
	}
	fd := theirs(reuseAddress)
	must(t, bindTo(fd, b))
	first := mustAdopt(t, g, fd, 1)
	fd = theirs(reuseAddress)
	must(t, g.Permit(fd))
	must(t, bindTo(fd, b))
	second := mustAdopt(t, g, fd, 2)
	must(t, g.Steer([]*Member{second})) // wants a spare
	g.Leave(first)
	connect(t, g, 20, second)
	fd = workerSocket(t, b, reuseAddress) // root's, who was nobody before
	defer closeDescriptor(fd)
	must(t, g.Permit(fd))
	if err := bindTo(fd, b); err != syscall.EADDRINUSE {
		t.Errorf("another user's socket: %v, want EADDRINUSE", err)
	}
	var st unix.Stat_t
	if must(t, unix.Fstat(fd, &st)); st.Uid != 0 {
		t.Errorf("the worker's socket belongs to %d now", st.Uid)
	}
	must(t, g.Refuse())
}

// TestSocketOfABroker: one that listens already is left as it is.
func TestSocketOfABroker(t *testing.T) {
	needSteering(t)
	ln := listenOther(t, "tcp", "127.0.0.1:0", false).(*net.TCPListener)
	f, err := ln.File()
	must(t, err)
	defer f.Close()
	b, err := fdpass.BindingOf(int(f.Fd()))
	must(t, err)
	for _, opt := range []Options{{}, {Share: true}} {
		before := openDescriptors(t)
		g := learnAt(t, b, opt)
		if _, err := g.Adopt(duplicateOf(t, int(f.Fd())), 1, 5); !errors.Is(err, ErrListens) {
			t.Errorf("%v, want ErrListens", err)
		}
		wantDescriptors(t, before)
	}
	if on, _ := unix.GetsockoptInt(int(f.Fd()), unix.SOL_SOCKET, unix.SO_REUSEPORT); on != 0 || !isListening(int(f.Fd())) {
		t.Error("it was changed")
	}
}

// TestSharedByAWorker: a member that another worker got from the first stays
// until both have left.
func TestSharedByAWorker(t *testing.T) {
	needSteering(t)
	b := loopback(t, "tcp")
	g := learnAt(t, b, Options{})
	fd := workerSocket(t, b, reuseAddress)
	must(t, bindTo(fd, b))
	m := mustAdopt(t, g, fd, 1)
	must(t, g.Share(m))
	must(t, g.Steer([]*Member{m}))
	g.Leave(m)
	connect(t, g, 5, m)
	g.Leave(m)
	if len(g.Members()) != 0 {
		t.Error("it is held for nobody")
	}
}

func TestLearnedAndShared(t *testing.T) {
	b := loopback(t, "tcp")
	g := learnAt(t, b, Options{Share: true})
	fd := workerSocket(t, b, reuseAddress)
	must(t, g.Permit(fd))
	must(t, bindTo(fd, b))
	m := mustAdopt(t, g, fd, 1)
	if on, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT); err != nil || on != 0 {
		t.Errorf("others may take a share of it: %d, %v", on, err)
	}
	next := workerSocket(t, b, reuseNothing)
	if err := g.Permit(next); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("a second one is permitted: %v", err)
	}
	if _, err := g.Adopt(next, 2, 5); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("a second one is adopted: %v", err)
	}
	if again := mustJoin(t, g, 2); again != m {
		t.Error("another generation gets another socket")
	}
	g.Leave(m)
	connect(t, g, 5, m)
	g.Leave(m)
	if _, err := g.Join(3); err == nil {
		t.Error("joined where nobody has a socket")
	}
}

// TestResume: a worker calls listen(2) again, or for the first time after its
// own shutdown(2).
func TestResume(t *testing.T) {
	needSteering(t)
	b := loopback(t, "tcp")
	g := learnAt(t, b, Options{})
	fd := workerSocket(t, b, reuseAddress)
	must(t, bindTo(fd, b))
	first := mustAdopt(t, g, fd, 1)
	second := permitted(t, g, b, reuseAddress, 1)
	both := []*Member{first, second}
	must(t, g.Steer(both))
	must(t, g.Resume(first, 9999))
	if g.Describe().Backlog != 9999 {
		t.Error("the queue is as long as before")
	}
	must(t, syscall.Shutdown(first.fd, syscall.SHUT_RDWR))
	must(t, g.Verify())
	if g.Listening(first) || !g.Listening(second) {
		t.Error("nobody has seen who has left")
	}
	connect(t, g, 10, second)
	must(t, g.Resume(first, 5))
	must(t, g.Steer(both))
	connect(t, g, 20, both...)
	checkMirror(t, g)
	for _, m := range both {
		must(t, syscall.Shutdown(m.fd, syscall.SHUT_RDWR))
	}
	must(t, g.Resume(second, 5)) // nobody has looked, and it is the first again
	must(t, g.Steer([]*Member{second}))
	connect(t, g, 10, second)
}

// TestNothingIsLeftAtRest: after a storm of upgrades whose workers all drain at
// the same time, no socket is open that nobody has, in whatever order they leave.
func TestNothingIsLeftAtRest(t *testing.T) {
	needSteering(t)
	for _, workers := range []int{1, 3} {
		for name, order := range map[string]func([]*Member){
			"oldest first": func([]*Member) {},
			"newest first": slices.Reverse[[]*Member],
			"some by themselves": func(draining []*Member) {
				for i := 0; i < len(draining); i += 3 {
					must(t, syscall.Shutdown(draining[i].fd, syscall.SHUT_RDWR))
				}
			},
		} {
			t.Run(fmt.Sprint(workers, " ", name), func(t *testing.T) {
				s := mustOpen(t, "tcp://127.0.0.1:0", Options{})
				join := func(gen int) (members []*Member) {
					for range workers {
						members = append(members, mustJoin(t, s, gen))
					}
					return members
				}
				serving := join(0)
				must(t, s.Steer(serving))
				before := openDescriptors(t)
				for storm := range 4 {
					var draining []*Member
					for gen := range 12 {
						next := join(storm*100 + gen)
						must(t, s.Steer(next))
						draining = append(draining, serving...)
						serving = next
					}
					order(draining)
					for _, m := range draining {
						s.Leave(m)
					}
					connect(t, s, 10*workers, serving...)
					checkMirror(t, s)
					wantDescriptors(t, before)
				}
			})
		}
	}
}

// TestSocketFromOutsideAtRest: beside the socket that was passed only those are
// left that workers have.
func TestSocketFromOutsideAtRest(t *testing.T) {
	needSteering(t)
	a, _ := outside(t, false)
	s, err := Open(a, Options{})
	must(t, err)
	t.Cleanup(s.Close)
	if n := len(s.Members()); n != 1 {
		t.Errorf("%d sockets before anybody has joined", n)
	}
	var members []*Member
	for gen := range 8 {
		members = append(members, mustJoin(t, s, gen))
		must(t, s.Steer(members[gen:]))
	}
	for _, m := range members[:7] {
		s.Leave(m)
	}
	connect(t, s, 10, members[7])
	checkMirror(t, s)
	if n := len(s.Members()); n != 2 {
		t.Errorf("%d sockets for one worker", n)
	}
}

// TestNobodyIsLostWhileSparesAreClosed: each connection of clients that never
// pause is accepted by a member that serves.
func TestNobodyIsLostWhileSparesAreClosed(t *testing.T) {
	needSteering(t)
	s := mustOpen(t, "tcp://127.0.0.1:0", Options{})
	accept := func(m *Member) {
		f := duplicate(t, m)
		ln, err := net.FileListener(f)
		must(t, err)
		f.Close()
		t.Cleanup(func() { ln.Close() })
		go func() {
			for {
				conn, err := ln.Accept()
				if err != nil {
					return
				}
				_, _ = conn.Write([]byte("x"))
				conn.Close()
			}
		}()
	}
	first := mustJoin(t, s, 0)
	accept(first)
	serving := []*Member{first}
	must(t, s.Steer(serving))
	address, stop := s.Describe().Bound, make(chan struct{})
	var wg sync.WaitGroup
	var mu sync.Mutex
	asked, slow := 0, 0
	for range 4 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for {
				select {
				case <-stop:
					return
				default:
				}
				begin := time.Now()
				err := hearFrom(address)
				mu.Lock()
				asked++
				if time.Since(begin) > 500*time.Millisecond {
					slow++
				}
				mu.Unlock()
				if err != nil {
					t.Error(err)
					return
				}
			}
		}()
	}
	for storm := range 15 {
		var draining []*Member
		for gen := range 4 {
			next := mustJoin(t, s, storm*100+gen)
			accept(next)
			must(t, s.Steer([]*Member{next}))
			draining = append(draining, serving...)
			serving = []*Member{next}
		}
		Barrier()
		for _, m := range draining {
			eventually(t, "its queue is empty", func() bool { return queued(t, m) == 0 })
			s.Leave(m)
		}
		if n := len(s.Members()); n != 1 {
			t.Errorf("%d sockets for one worker", n)
		}
	}
	close(stop)
	wg.Wait()
	t.Logf("%d connections, %d of them at the second try", asked, slow)
	if slow > asked/100+5 {
		t.Errorf("%d of %d connections were not heard at first", slow, asked)
	}
}

func hearFrom(address string) error {
	conn, err := net.DialTimeout("tcp", address, 10*time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	_, err = conn.Read(make([]byte, 1))
	return err
}

// TestLearnedDatagrams: each generation's own socket, and flows that stay
// together.
func TestLearnedDatagrams(t *testing.T) {
	needSteering(t)
	b := loopback(t, "udp")
	const first = 1
	g := learnAt(t, b, Options{})
	fd := workerSocket(t, b, reuseNothing)
	must(t, PrepareDatagram(fd, b))
	must(t, bindTo(fd, b))
	taken := workerSocket(t, b, reuseNothing)
	defer closeDescriptor(taken)
	if err := PrepareDatagram(taken, b); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("another program's first socket: %v, want EADDRINUSE", err)
	}
	serving := []*Member{mustAdopt(t, g, fd, first)}
	must(t, g.Steer(serving))
	send(t, b, serving...)
	before := openDescriptors(t)
	for gen := first + 1; gen < 9; gen++ {
		next := []*Member{permitted(t, g, b, reuseNothing, gen)}
		if gen%3 == 0 {
			next = append(next, permitted(t, g, b, reuseNothing, gen))
		}
		send(t, b, serving...)
		must(t, g.Steer(next))
		send(t, b, next...)
		for _, m := range serving {
			g.Leave(m)
		}
		send(t, b, next...)
		serving = next
	}
	if len(serving) != 1 {
		t.Fatal("the test wants one at the end")
	}
	wantDescriptors(t, before)
	replacement := mustJoin(t, g, 10) // of a worker that has crashed
	must(t, g.Steer([]*Member{replacement}))
	send(t, b, replacement)
	must(t, g.Refuse())
	g.Leave(replacement)
	g.Leave(serving[0])
	if len(g.Members()) != 0 {
		t.Error("the port is held for nobody")
	}
}

// send sends datagrams from several clients, of which the members must get all,
// each client's the same one.
func send(t testing.TB, to fdpass.Binding, members ...*Member) {
	t.Helper()
	for range 16 {
		conn, err := net.Dial("udp", to.String())
		must(t, err)
		got := map[*Member]int{}
		for range 3 {
			_, err := conn.Write([]byte("x"))
			must(t, err)
			var set []unix.PollFd
			for _, m := range members {
				set = append(set, unix.PollFd{Fd: int32(m.fd), Events: unix.POLLIN})
			}
			if poll(set, time.Now().Add(10*time.Second)) != 1 {
				t.Fatal("a datagram reached nobody who serves")
			}
			m := members[slices.IndexFunc(set, func(p unix.PollFd) bool { return p.Revents != 0 })]
			_, _, err = unix.Recvfrom(m.fd, make([]byte, 1), 0)
			must(t, err)
			got[m]++
		}
		conn.Close()
		if len(got) != 1 {
			t.Fatalf("a flow was spread over %d members", len(got))
		}
	}
}

// TestUnprepared: what bound its port before anybody had prepared it is left to
// its worker.
func TestUnprepared(t *testing.T) {
	needSteering(t)
	b := loopback(t, "udp")
	fd := workerSocket(t, b, reuseNothing)
	must(t, bindTo(fd, b))
	before := openDescriptors(t)
	if _, err := learnAt(t, b, Options{}).Adopt(duplicateOf(t, fd), 1, 0); err == nil {
		t.Error("adopted")
	}
	wantDescriptors(t, before)
	closeDescriptor(fd)
}

func TestInspectSocket(t *testing.T) {
	needIPv6(t)
	for _, test := range []struct {
		network, at, given string
		reuse              int
	}{
		{"tcp", "127.0.0.1:0", "127.0.0.1:8080", reuseAddress},
		{"tcp", "[::]:0", "[::]:8080", reuseBoth},
		{"udp", "[::1]:0", "[::1]:53", reuseNothing},
	} {
		b := fdpass.Binding{Network: test.network, Addr: netip.MustParseAddrPort(test.at)}
		fd := workerSocket(t, b, test.reuse)
		w, err := InspectSocket(fd)
		must(t, err)
		if w.Network != test.network || w.Inode != inodeOf(t, fd) || w.Local.Port() != 0 || w.Elsewhere || w.Client ||
			w.ReuseAddr != (test.reuse != reuseNothing) || w.ReusePort != (test.reuse == reuseBoth) {
			t.Errorf("before bind it is %+v", w)
		}
		want := fdpass.Binding{Network: test.network, Addr: netip.MustParseAddrPort(test.given)}
		if have, ok := w.Binding(sockaddrBytes(want.Addr)); !ok || have != want {
			t.Errorf("bind would be to %v, %v", have, ok)
		}
		if have, ok := w.Binding(sockaddrBytes(want.Addr)[:4]); ok {
			t.Errorf("half an address is %v", have)
		}
		twin, err := w.StandIn([]SockOption{{Level: unix.SOL_SOCKET, Name: unix.SO_REUSEADDR, Value: []byte{1, 0, 0, 0}}})
		must(t, err)
		must(t, bindTo(fd, b))
		w, err = InspectSocket(fd)
		must(t, err)
		if have, err := fdpass.BindingOf(fd); err != nil || w.Bound() != have || w.Local.Port() == 0 {
			t.Errorf("it is bound to %v, %v", have, err)
		}
		if s, err := InspectSocket(twin); err != nil || s.Network != w.Network || s.IPv6 != w.IPv6 || !s.ReuseAddr {
			t.Errorf("what stands in for it is %+v", s)
		}
		closeDescriptor(twin)
		closeDescriptor(fd)
	}
}

func sockaddrBytes(at netip.AddrPort) []byte {
	raw := []byte{unix.AF_INET, 0, byte(at.Port() >> 8), byte(at.Port())}
	if at.Addr().Is4() {
		return append(append(raw, at.Addr().AsSlice()...), make([]byte, 8)...)
	}
	raw[0] = unix.AF_INET6
	return append(append(append(raw, 0, 0, 0, 0), at.Addr().AsSlice()...), 0, 0, 0, 0)
}

func init() { roles["loopback"] = onLoopback }

// onLoopback is alone in a network namespace, and does to its loopback what
// befalls it elsewhere.
func onLoopback() {
	say := func(err error) {
		if err != nil {
			fmt.Println(err)
		}
	}
	begin := time.Now()
	if SelfTest() == nil {
		fmt.Println("steering works without loopback")
	}
	say(loopbackUp())
	say(SelfTest()) // what went wrong before was not about the kernel
	verdict.known = false
	const add, remove = unix.NLM_F_CREATE | unix.NLM_F_EXCL, 0
	say(dropOnLoopback(unix.RTM_NEWQDISC, add))
	if SelfTest() == nil {
		fmt.Println("steering works where all packets are dropped")
	}
	say(dropOnLoopback(unix.RTM_DELQDISC, remove))
	say(SelfTest())
	if took := time.Since(begin); took > 5*time.Second {
		fmt.Println("it took", took)
	}
	// Packets that another CPU takes arrive after connect(2) has returned.
	say(unix.Mount("none", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	if err := unix.Mount("sysfs", "/sys", "sysfs", 0, ""); err != nil {
		return
	}
	if os.WriteFile("/sys/class/net/lo/queues/rx-0/rps_cpus", []byte("3"), 0) != nil {
		return
	}
	for range 150 {
		verdict.known = false
		say(SelfTest())
	}
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer closeDescriptor(fd)
	flags, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	flags.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, flags)
}

// dropOnLoopback puts a queue without places in front of loopback, or takes it
// away (rtnetlink(7), struct tcmsg, "pfifo" with a limit of 0).
func dropOnLoopback(kind, flags uint16) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer closeDescriptor(fd)
	const root, loopbackIndex = 0xffffffff, 1
	request := unix.NLM_F_REQUEST | unix.NLM_F_ACK | uint32(flags)
	body := []uint32{56, uint32(kind) | request<<16, 1, 0, // nlmsghdr
		unix.AF_UNSPEC, loopbackIndex, 0, root, 0, // tcmsg
		10 | unix.TCA_KIND<<16, 'p' | 'f'<<8 | 'i'<<16 | 'f'<<24, 'o',
		8 | unix.TCA_OPTIONS<<16, 0}
	raw, err := binary.Append(nil, binary.NativeEndian, body)
	if err != nil {
		return err
	}
	if err := unix.Sendto(fd, raw, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	answer := make([]byte, 256)
	if _, _, err := unix.Recvfrom(fd, answer, 0); err != nil {
		return err
	}
	if errno := -int32(binary.NativeEndian.Uint32(answer[16:])); errno != 0 {
		return fmt.Errorf("rtnetlink: %w", syscall.Errno(errno))
	}
	return nil
}

func TestSelfTestJudgesTheKernelAlone(t *testing.T) {
	needSteering(t)
	playAlone(t, "loopback", &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
	})
}
