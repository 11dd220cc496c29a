package group

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moult/moult/fdpass"
)

func queued(t testing.TB, m *Member) int {
	t.Helper()
	n, err := queueLength(m.fd)
	must(t, err)
	return n
}

// takeAll accepts what waits in a member's queue, and counts it.
func takeAll(t testing.TB, m *Member) int {
	t.Helper()
	n := 0
	for queued(t, m) > 0 {
		conn, _, err := unix.Accept4(m.fd, unix.SOCK_CLOEXEC)
		must(t, err)
		closeDescriptor(conn)
		n++
	}
	return n
}

func dial(t testing.TB, s Group) net.Conn {
	t.Helper()
	host, port, err := net.SplitHostPort(s.Describe().Bound)
	must(t, err)
	switch {
	case host == "::" && bindingOf(t, s).V6Only:
		host = "::1"
	case net.ParseIP(host).IsUnspecified():
		host = "127.0.0.1"
	}
	conn, err := net.DialTimeout("tcp", net.JoinHostPort(host, port), 10*time.Second)
	must(t, err)
	t.Cleanup(func() { conn.Close() })
	return conn
}

// connect makes n connections, of which the members must get all; it returns
// how many each got.
func connect(t testing.TB, s Group, n int, members ...*Member) []int {
	t.Helper()
	for range n {
		conn := dial(t, s)
		defer conn.Close()
	}
	sum := 0
	var got []int
	eventually(t, fmt.Sprintf("%d connections in the queues of those that serve", n), func() bool {
		for _, m := range members {
			if sum == n {
				break
			}
			sum += queued(t, m)
		}
		if sum != n {
			sum = 0
		}
		return sum == n
	})
	for _, m := range members {
		got = append(got, takeAll(t, m))
	}
	return got
}

// checkMirror steers to each member in turn and sees where a connection goes.
func checkMirror(t testing.TB, s Group) {
	t.Helper()
	before := s.(*tcpGroup).serving
	for _, m := range s.Members() {
		if m.spare {
			continue
		}
		must(t, s.Steer([]*Member{m}))
		connect(t, s, 3, m)
	}
	must(t, s.Steer(before))
}

func needSteering(t testing.TB) {
	t.Helper()
	if err := SelfTest(); err != nil {
		t.Skip("this kernel does not steer:", err)
	}
}

func needIPv6(t testing.TB) {
	t.Helper()
	ln, err := net.Listen("tcp6", "[::1]:0")
	if err != nil {
		t.Skip("no IPv6 here: ", err)
	}
	ln.Close()
}

func bindingOf(t testing.TB, g Group) fdpass.Binding {
	t.Helper()
	b, ok := g.(Inet).Binding()
	if !ok {
		t.Fatal("the address has no binding")
	}
	return b
}

// duplicate is what a worker would have.
func duplicate(t testing.TB, m *Member) *os.File {
	t.Helper()
	fd, err := unix.FcntlInt(uintptr(m.fd), unix.F_DUPFD_CLOEXEC, 0)
	must(t, err)
	return os.NewFile(uintptr(fd), "worker")
}

func relisten(fd, backlog int) error { return syscall.Listen(fd, backlog) }

func inodeOf(t testing.TB, fd int) uint64 {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Fstat(fd, &st))
	return st.Ino
}

// freePort is one that nobody listens on for now.
func freePort(t testing.TB) int {
	t.Helper()
	ln, err := net.Listen("tcp", ":0")
	must(t, err)
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).Port
}

// listenOther is another program's listener.
func listenOther(t testing.TB, network, address string, share bool) net.Listener {
	t.Helper()
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		if share {
			e := c.Control(func(fd uintptr) { err = reusePort(int(fd), 1)() })
			err = errors.Join(e, err)
		}
		return err
	}}
	config.SetMultipathTCP(false)
	ln, err := config.Listen(t.Context(), network, address)
	must(t, err)
	t.Cleanup(func() { ln.Close() })
	return ln
}

func TestOpenWantsItsAddressAlone(t *testing.T) {
	needIPv6(t)
	for _, test := range []struct {
		network, host, open string
	}{
		{"tcp4", "127.0.0.1", "tcp://127.0.0.1:%d"},
		{"tcp4", "0.0.0.0", "tcp://127.0.0.1:%d"},
		{"tcp4", "127.0.0.1", "tcp4://:%d"},
		{"tcp4", "127.0.0.1", "tcp://:%d"},
		{"tcp4", "0.0.0.0", "tcp://:%d"},
		{"tcp", "::", "tcp://:%d"},
		{"tcp", "::", "tcp4://:%d"},
		{"tcp", "::", "tcp6://[::1]:%d"},
		{"tcp6", "::1", "tcp://:%d"},
	} {
		for _, reusePort := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s over %s %s reuseport=%v", test.open, test.network, test.host, reusePort), func(t *testing.T) {
				ln := listenOther(t, test.network, net.JoinHostPort(test.host, "0"), reusePort)
				port := ln.Addr().(*net.TCPAddr).Port
				fds := openDescriptors(t)
				s, err := Open(mustParse(t, fmt.Sprintf(test.open, port)), Options{})
				if err == nil {
					s.Close()
					t.Fatal("two programs listen on one address")
				}
				if !errors.Is(err, syscall.EADDRINUSE) {
					t.Fatalf("%v, want EADDRINUSE", err)
				}
				if now := openDescriptors(t); now != fds {
					t.Fatalf("%d descriptors leaked", now-fds)
				}
			})
		}
	}
}

func TestOpenLeavesRoomForOtherAddresses(t *testing.T) {
	needIPv6(t)
	port := freePort(t)
	for _, text := range []string{"a=tcp4://:%d", "b=tcp6://:%d"} {
		mustOpen(t, fmt.Sprintf(text, port), Options{})
	}
}

func TestSecondMasterIsRefused(t *testing.T) {
	for _, share := range []bool{false, true} {
		s := mustOpen(t, "tcp://127.0.0.1:0", Options{Share: share})
		m := mustJoin(t, s, 1)
		must(t, s.Steer([]*Member{m}))
		second, err := Open(mustParse(t, "tcp://"+s.Describe().Bound), Options{Share: share})
		if !errors.Is(err, syscall.EADDRINUSE) {
			t.Fatalf("%v, %v; want EADDRINUSE", second, err)
		}
		connect(t, s, 5, m)
	}
}

func TestTwoMastersAtOnceNeverShare(t *testing.T) {
	port := freePort(t)
	a := mustParse(t, fmt.Sprintf("tcp://127.0.0.1:%d", port))
	won := 0
	for range 300 {
		var wg sync.WaitGroup
		var sockets [4]Group
		begin := make(chan struct{})
		for i := range sockets {
			wg.Add(1)
			go func() {
				defer wg.Done()
				<-begin
				sockets[i], _ = Open(a, Options{})
			}()
		}
		close(begin)
		wg.Wait()
		winners := 0
		for _, s := range sockets {
			if s != nil {
				winners++
				s.Close()
			}
		}
		if winners > 1 {
			t.Fatalf("%d masters have one address", winners)
		}
		won += winners
	}
	if won == 0 {
		t.Fatal("nobody ever got the address")
	}
}

// The test above cannot choose the moment; here the steps are.
func TestListenIsWhatDecides(t *testing.T) {
	needSteering(t)
	at := fdpass.Binding{Network: "tcp", Addr: netip.MustParseAddrPort("127.0.0.1:0")}.WithPort(freePort(t))
	var fds [2]int
	for i := range fds {
		fd, err := at.Bind(nil)
		must(t, err)
		defer closeDescriptor(fd)
		fds[i] = fd
	}
	must(t, listenFirst(fds[0], 5))
	if err := listenFirst(fds[1], 5); !errors.Is(err, syscall.EADDRINUSE) {
		t.Fatalf("%v, want EADDRINUSE", err)
	}
}

func TestSteering(t *testing.T) {
	needSteering(t)
	for _, text := range []string{"tcp4://:0", "tcp://127.0.0.1:0", "tcp6://[::1]:0", "tcp://:0", "tcp://:0?v6only=1"} {
		t.Run(text, func(t *testing.T) {
			if !strings.Contains(text, "4") {
				needIPv6(t)
			}
			s := mustOpen(t, "web="+text, Options{})
			old := mustJoin(t, s, 1)
			connect(t, s, 5, old) // even before it is steered to: who connects waits
			must(t, s.Steer([]*Member{old}))
			connect(t, s, 100, old)
			next := mustJoin(t, s, 2)
			connect(t, s, 100, old)
			must(t, s.Steer([]*Member{next}))
			connect(t, s, 200, next)
			s.Leave(old)
			connect(t, s, 100, next)
		})
	}
}

func TestSpread(t *testing.T) {
	needSteering(t)
	s := mustOpen(t, "tcp://127.0.0.1:0", Options{})
	var members []*Member
	for range 4 {
		members = append(members, mustJoin(t, s, 1))
	}
	must(t, s.Steer(members))
	const all = 800
	for i, n := range connect(t, s, all, members...) {
		// Six standard deviations off the mean.
		if n < all/4-75 || n > all/4+75 {
			t.Errorf("member %d got %d of %d connections", i, n, all)
		}
	}
}

func TestMembersLeaveInAnyOrder(t *testing.T) {
	needSteering(t)
	const old = 4
	var orders [][]int
	permute([]int{0, 1, 2, 3}, 0, func(p []int) { orders = append(orders, append([]int{}, p...)) })
	for _, order := range orders {
		for _, unasked := range []bool{false, true} {
			s, err := Open(mustParse(t, "tcp://127.0.0.1:0"), Options{})
			must(t, err)
			var first, second []*Member
			for range old {
				first = append(first, mustJoin(t, s, 1))
			}
			must(t, s.Steer(first))
			for range 2 {
				second = append(second, mustJoin(t, s, 2))
			}
			must(t, s.Steer(second))
			for _, i := range order {
				if unasked {
					must(t, syscall.Shutdown(first[i].fd, syscall.SHUT_RDWR))
					connect(t, s, 4, second...) // nobody has looked yet
				}
				s.Leave(first[i])
				connect(t, s, 4, second...)
			}
			checkMirror(t, s)
			if n := len(s.Members()); n > 3+old && !unasked || n > 2*old+2 {
				t.Errorf("%d sockets are left of %d", n, old+2)
			}
			s.Close()
		}
	}
}

func permute(list []int, from int, each func([]int)) {
	if from == len(list) {
		each(list)
	}
	for i := from; i < len(list); i++ {
		list[from], list[i] = list[i], list[from]
		permute(list, from+1, each)
		list[from], list[i] = list[i], list[from]
	}
}

// Several workers may shut their listeners down between two looks, in an order
// that nobody saw. Whoever joins afterwards must still get its own connections.
func TestSeveralShutDownUnseen(t *testing.T) {
	needSteering(t)
	random := rand.New(rand.NewPCG(1, 2))
	for range 30 {
		s, err := Open(mustParse(t, "tcp://127.0.0.1:0"), Options{})
		must(t, err)
		serving := []*Member{mustJoin(t, s, 0), mustJoin(t, s, 0), mustJoin(t, s, 0)}
		must(t, s.Steer(serving))
		for gen := 1; gen < 4; gen++ {
			next := []*Member{mustJoin(t, s, gen), mustJoin(t, s, gen), mustJoin(t, s, gen)}
			must(t, s.Steer(next))
			for _, i := range random.Perm(len(serving)) {
				must(t, syscall.Shutdown(serving[i].fd, syscall.SHUT_RD))
			}
			connect(t, s, 10, next...)
			must(t, s.Verify())
			connect(t, s, 10, next...)
			for _, m := range serving {
				s.Leave(m)
			}
			serving = next
		}
		checkMirror(t, s)
		if n := len(s.Members()); n > 9 {
			t.Errorf("%d sockets for 3 workers", n)
		}
		s.Close()
	}
}

func TestServingMemberThatShutsDownIsPutBack(t *testing.T) {
	needSteering(t)
	for _, workers := range []int{1, 3} {
		s := mustOpen(t, "tcp://127.0.0.1:0", Options{})
		var members []*Member
		for range workers {
			members = append(members, mustJoin(t, s, 1))
		}
		must(t, s.Steer(members))
		bound := s.Describe().Bound
		must(t, syscall.Shutdown(members[0].fd, syscall.SHUT_RDWR))
		if err := s.Relisten(members[0]); err == nil {
			t.Error("listen(2) would have put it into the kernel's array unseen")
		}
		must(t, s.Verify())
		if now, err := fdpass.LocalOf(members[0].fd); err != nil || now.String() != bound {
			t.Errorf("it listens on %s now, %v", now, err)
		}
		connect(t, s, 20, members...)
		checkMirror(t, s)
	}
}

func TestQueueOutlivesItsWorker(t *testing.T) {
	needSteering(t)
	s := mustOpen(t, "tcp://127.0.0.1:0", Options{})
	m := mustJoin(t, s, 1)
	must(t, s.Steer([]*Member{m}))
	f := duplicate(t, m)
	must(t, syscall.SetNonblock(m.fd, true)) // as a worker in Go does
	conn := dial(t, s)
	f.Close() // the worker dies
	must(t, m.Fresh())
	if flags, err := unix.FcntlInt(uintptr(m.fd), unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK != 0 {
		t.Errorf("the replacement finds O_NONBLOCK: %#x, %v", flags, err)
	}
	fd, _, err := unix.Accept4(m.fd, unix.SOCK_CLOEXEC)
	must(t, err)
	defer closeDescriptor(fd)
	_, err = unix.Write(fd, []byte("hello"))
	must(t, err)
	got := make([]byte, 5)
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != "hello" {
		t.Errorf("%q, %v", got, err)
	}
}

// TestAllLeave: an address that was declared is there for the next ones.
func TestAllLeave(t *testing.T) {
	needSteering(t)
	s := mustOpen(t, "tcp://127.0.0.1:0", Options{})
	for gen := range 3 {
		m := mustJoin(t, s, gen)
		must(t, s.Steer([]*Member{m}))
		connect(t, s, 5, m)
		s.Leave(m)
		if n := len(s.Members()); n != 0 {
			t.Errorf("%d members are left", n)
		}
	}
}

// deferAccept keeps handshakes in SYN_RECV until the client has sent something.
func deferAccept(t testing.TB, m *Member, on int) {
	t.Helper()
	must(t, unix.SetsockoptInt(m.fd, unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, on))
}

func TestHandshakeStaysWithItsMember(t *testing.T) {
	needSteering(t)
	s := mustOpen(t, "tcp://127.0.0.1:0", Options{})
	old := mustJoin(t, s, 1)
	must(t, s.Steer([]*Member{old}))
	deferAccept(t, old, 30)
	conn := dial(t, s)
	next := mustJoin(t, s, 2)
	must(t, s.Steer([]*Member{next}))
	Barrier()
	if queued(t, old) != 0 {
		t.Fatal("the handshake is over already: the test proves nothing")
	}
	_, err := conn.Write([]byte("x"))
	must(t, err)
	eventually(t, "the connection reaches the member that it began in", func() bool { return queued(t, old) == 1 })
	if queued(t, next) != 0 {
		t.Error("it is in the new one's queue as well")
	}
}

func TestRefuse(t *testing.T) {
	needSteering(t)
	for _, test := range []struct {
		open string
		opt  Options
	}{{"tcp://127.0.0.1:0", Options{}}, {"tcp://127.0.0.1:0", Options{Share: true}}, {"tcp4://:0", Options{}}} {
		t.Run(fmt.Sprintf("%s share=%v", test.open, test.opt.Share), func(t *testing.T) {
			s := mustOpen(t, "x="+test.open, test.opt)
			m := mustJoin(t, s, 1)
			must(t, s.Steer([]*Member{m}))
			dial(t, s)
			eventually(t, "the connection is queued", func() bool { return queued(t, m) == 1 })
			deferAccept(t, m, 30)
			slow := dial(t, s)
			must(t, s.Refuse())
			must(t, s.Refuse()) // twice is once
			must(t, s.Steer([]*Member{m}))
			_, port, _ := net.SplitHostPort(s.Describe().Bound)
			target := net.JoinHostPort("127.0.0.1", port)
			if conn, err := net.DialTimeout("tcp", target, 200*time.Millisecond); err == nil {
				conn.Close()
				t.Error("a new client is let in")
			} else if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("a new client hears %v, and not nothing", err)
			}
			_, err := slow.Write([]byte("x"))
			must(t, err)
			eventually(t, "the handshake ends in its member", func() bool { return queued(t, m) == 2 })
			if n := takeAll(t, m); n != 2 {
				t.Errorf("%d connections could be accepted, not 2", n)
			}
			s.Leave(m)
			s.Close()
			if conn, err := net.DialTimeout("tcp", target, time.Second); !errors.Is(err, syscall.ECONNREFUSED) {
				if err == nil {
					conn.Close()
				}
				t.Errorf("after the end: %v, want ECONNREFUSED", err)
			}
		})
	}
}

// With reuseport=1 others are in the kernel's group, whose connections are none
// of our business.
func TestRefuseLeavesOthersAlone(t *testing.T) {
	needSteering(t)
	s := mustOpen(t, "tcp://127.0.0.1:0?reuseport=1", Options{})
	if d := s.Describe(); d.How != Shared || d.Why == "" {
		t.Errorf("%s, %q", d.How, d.Why)
	}
	mustJoin(t, s, 1)
	other := mustOpen(t, "tcp://"+s.Describe().Bound+"?reuseport=1", Options{})
	m := mustJoin(t, other, 1)
	must(t, s.Refuse())
	s.Close()
	connect(t, other, 20, m)
}

func TestRelisten(t *testing.T) {
	s := mustOpen(t, "tcp://127.0.0.1:0?backlog=77", Options{})
	m := mustJoin(t, s, 1)
	longest := func() uint32 {
		info, err := unix.GetsockoptTCPInfo(m.fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		must(t, err)
		return info.Sacked // of a listening socket: the length of its queue
	}
	must(t, relisten(m.fd, 5))
	if longest() != 5 {
		t.Fatalf("the queue has %d places, the test wants 5", longest())
	}
	must(t, s.Relisten(m))
	if longest() != 77 {
		t.Errorf("the queue has %d places, want 77", longest())
	}
}

func TestProbe(t *testing.T) {
	needSteering(t)
	for _, text := range []string{"tcp4://:0", "tcp://127.0.0.1:0", "tcp4://127.0.0.2:0", "tcp6://[::1]:0", "tcp://:0", "tcp://:0?v6only=1"} {
		t.Run(text, func(t *testing.T) {
			if !strings.Contains(text, "4") {
				needIPv6(t)
			}
			s := mustOpen(t, "web="+text, Options{})
			old := mustJoin(t, s, 1)
			must(t, s.Steer([]*Member{old}))
			next := []*Member{mustJoin(t, s, 2), mustJoin(t, s, 2)}
			var probes []*Probe
			for _, m := range next { // both at once
				p, err := s.(Prober).Probe(m)
				must(t, err)
				probes = append(probes, p)
			}
			for i, p := range probes {
				eventually(t, "the probe is connected", func() bool {
					ok, err := p.Connected()
					must(t, err)
					return ok
				})
				if queued(t, next[i]) != 1 {
					t.Errorf("probe %d is not in its member's queue", i)
				}
			}
			if queued(t, old) != 0 {
				t.Error("a probe reached the member that serves")
			}
			connect(t, s, 20, old)
			probes[0].Close()
			fd, _, err := unix.Accept4(next[1].fd, unix.SOCK_CLOEXEC)
			must(t, err)
			defer closeDescriptor(fd)
			if n, err := unix.Read(fd, make([]byte, 1)); n != 0 || err != nil {
				t.Errorf("the worker reads %d bytes, %v; want the end", n, err)
			}
			probes[1].Close()
			probes[1].Close() // twice is once
			if len(s.(*tcpGroup).probes) != 0 {
				t.Error("a rule is left")
			}
		})
	}
}

func TestProbeOfFullQueue(t *testing.T) {
	needSteering(t)
	s := mustOpen(t, "tcp://127.0.0.1:0", Options{})
	old := mustJoin(t, s, 1)
	must(t, s.Steer([]*Member{old}))
	next := mustJoin(t, s, 2)
	must(t, relisten(next.fd, 1))
	must(t, s.(*tcpGroup).fill(next, 1))
	must(t, s.(*tcpGroup).fill(next, 2))
	p, err := s.(Prober).Probe(next)
	must(t, err)
	defer p.Close()
	if ok, err := p.Connected(); ok || err != nil {
		t.Errorf("connected to a full queue: %v, %v", ok, err)
	}
	must(t, relisten(next.fd, 5))
	connect(t, s, 5, old)
	eventually(t, "its next SYN is let in", func() bool {
		ok, err := p.Connected()
		must(t, err)
		return ok
	})
	if queued(t, next) != 3 || queued(t, old) != 0 {
		t.Error("the second SYN went elsewhere")
	}
}

// outside makes a socket as systemd does, and its Address.
func outside(t testing.TB, reusePort bool) (fdpass.Address, *os.File) {
	t.Helper()
	ln := listenOther(t, "tcp", "127.0.0.1:0", reusePort).(*net.TCPListener)
	f, err := ln.File()
	must(t, err)
	t.Cleanup(func() { f.Close() })
	return mustParse(t, "web=fd://"+strconv.Itoa(int(f.Fd()))), f
}

func TestSocketFromOutside(t *testing.T) {
	needSteering(t)
	for _, reusePort := range []bool{false, true} {
		a, f := outside(t, reusePort)
		before := openDescriptors(t)
		s, err := Open(a, Options{})
		must(t, err)
		if d := s.Describe(); d.How != Steered {
			t.Fatalf("%s: %s", d.How, d.Why)
		}
		first := mustJoin(t, s, 1)
		if !first.foreign || !s.Describe().Inherited {
			t.Error("the first worker does not get the socket that was passed")
		}
		must(t, s.Steer([]*Member{first}))
		connect(t, s, 20, first)
		next := mustJoin(t, s, 2)
		must(t, s.Steer([]*Member{next}))
		connect(t, s, 20, next)
		s.Leave(first)
		connect(t, s, 20, next)
		if !isListening(int(f.Fd())) {
			t.Fatal("it was shut down")
		}
		third := mustJoin(t, s, 3)
		if third != first {
			t.Error("the next generation does not get it back")
		}
		// A worker shuts it down: its maker will want it again all the same.
		must(t, syscall.Shutdown(first.fd, syscall.SHUT_RDWR))
		must(t, s.Verify())
		if !isListening(int(f.Fd())) || !s.Describe().Inherited {
			t.Fatal("it stays shut down")
		}
		checkMirror(t, s)
		must(t, s.Refuse())
		connect(t, s, 10, first) // waits for its maker
		bound := s.Describe().Bound
		s.Close()
		wantDescriptors(t, before)
		again := mustOpen(t, "web=fd://"+strconv.Itoa(a.FD), Options{})
		if again.Describe().Bound != bound {
			t.Errorf("it is on %s now", again.Describe().Bound)
		}
		m := mustJoin(t, again, 1)
		must(t, again.Steer([]*Member{m}))
		connect(t, again, 10, m)
	}
}

func TestSocketFromSystemd(t *testing.T) {
	ln := listenOther(t, "tcp", "127.0.0.1:0", false).(*net.TCPListener)
	f, err := ln.File()
	must(t, err)
	defer f.Close()
	// The names lead to the number, whatever it is here.
	n := int(f.Fd()) - 3 + 1
	t.Setenv("LISTEN_PID", strconv.Itoa(os.Getpid()))
	t.Setenv("LISTEN_FDS", strconv.Itoa(n))
	t.Setenv("LISTEN_FDNAMES", strings.Repeat("x:", n-1)+"web.socket")
	s := mustOpen(t, "systemd://web", Options{})
	if s.Describe().Bound != ln.Addr().String() {
		t.Errorf("got %s, want %s", s.Describe().Bound, ln.Addr())
	}
	if _, err := Open(mustParse(t, "systemd://other"), Options{}); err == nil || !strings.Contains(err.Error(), "web.socket") {
		t.Errorf("the error does not name what there is: %v", err)
	}
}

func TestFromOutsideWhatCannotServe(t *testing.T) {
	r, w, err := os.Pipe()
	must(t, err)
	defer r.Close()
	defer w.Close()
	before := openDescriptors(t)
	for _, fd := range []int{int(r.Fd()), 1 << 20} {
		if s, err := Open(fdpass.Address{Name: "x", Network: "fd", FD: fd}, Options{}); err == nil {
			s.Close()
			t.Errorf("descriptor %d was taken", fd)
		}
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET, 0)
	must(t, err)
	defer closeDescriptor(pair[1])
	defer closeDescriptor(pair[0])
	if s, err := Open(fdpass.Address{Name: "x", Network: "fd", FD: pair[0]}, Options{}); err == nil {
		s.Close()
		t.Error("a SOCK_SEQPACKET socket was taken")
	}
	wantDescriptors(t, before+2)
}

func TestShare(t *testing.T) {
	s := mustOpen(t, "tcp://127.0.0.1:0", Options{Share: true})
	a, b := mustJoin(t, s, 1), mustJoin(t, s, 2)
	if a != b {
		t.Fatal("two generations have a socket each")
	}
	must(t, s.Steer([]*Member{b}))
	s.Leave(a)
	connect(t, s, 5, b)
	if _, can := s.(Prober); can {
		t.Error("a shared socket cannot be probed")
	}
	if on, err := unix.GetsockoptInt(b.fd, unix.SOL_SOCKET, unix.SO_REUSEPORT); err != nil || on != 0 {
		t.Errorf("others may take a share of it: SO_REUSEPORT is %d, %v", on, err)
	}
}

func TestUDPHasOneOwner(t *testing.T) {
	s := mustOpen(t, "udp://127.0.0.1:0", Options{})
	if _, err := Open(mustParse(t, "udp://"+s.Describe().Bound), Options{}); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("%v, want EADDRINUSE", err)
	}
	if mustJoin(t, s, 1) != mustJoin(t, s, 2) {
		t.Error("packets of one flow would be spread")
	}
	must(t, s.Refuse())
}

func TestZone(t *testing.T) {
	interfaces, err := net.Interfaces()
	must(t, err)
	for _, i := range interfaces {
		addrs, _ := i.Addrs()
		for _, a := range addrs {
			ip := a.(*net.IPNet).IP
			if !ip.IsLinkLocalUnicast() || ip.To4() != nil {
				continue
			}
			s := mustOpen(t, fmt.Sprintf("tcp://[%s%%%s]:0", ip, i.Name), Options{})
			m := mustJoin(t, s, 1)
			must(t, s.Steer([]*Member{m}))
			mustJoin(t, s, 2)
			return
		}
	}
	t.Skip("no link-local address here")
}

func TestOpenDescriptorsAreCloseOnExec(t *testing.T) {
	s := mustOpen(t, "tcp://127.0.0.1:0", Options{})
	m := mustJoin(t, s, 1)
	must(t, s.Steer([]*Member{m}))
	mustJoin(t, s, 2)
	entries, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	for _, e := range entries {
		fd, _ := strconv.Atoi(e.Name())
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		if err == nil && flags&unix.FD_CLOEXEC == 0 && strings.HasPrefix(linkOf(fd), "socket:") {
			t.Errorf("descriptor %d (%s) is inherited by every child", fd, linkOf(fd))
		}
	}
}

func linkOf(fd int) string {
	to, _ := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	return to
}
