package supervisor

import (
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/moult/moult/fdpass"
	"github.com/moult/moult/supervisor/observe"
)

func TestIdle(t *testing.T) {
	const after, ms = time.Second, time.Millisecond
	answered := observe.Conn{State: observe.Established, LastSent: 2000 * ms, LastRecv: 2100 * ms, LastAck: 2000 * ms, DataSegsIn: 2, DataSegsOut: 2}
	for _, c := range []struct {
		name   string
		change func(*observe.Conn)
		want   bool
	}{
		{"answered two seconds ago", func(*observe.Conn) {}, true},
		{"exactly as long ago as is asked for", func(c *observe.Conn) { c.LastSent = after }, true},
		{"answered just now", func(c *observe.Conn) { c.LastSent = 999 * ms }, false},
		{"asked after the answer", func(c *observe.Conn) { c.LastRecv = 1500 * ms }, false},
		{"asked just now", func(c *observe.Conn) { c.LastRecv = 0 }, false},
		{"a request not read yet", func(c *observe.Conn) { c.RecvQ = 1 }, false},
		{"an answer on its way", func(c *observe.Conn) { c.SendQ = 1 }, false},
		{"the client has said goodbye", func(c *observe.Conn) { c.State = observe.CloseWait }, false},
		{"answered within the tick of the request", func(c *observe.Conn) { c.LastRecv, c.LastAck = 2000*ms, 1960*ms }, true},
		{"asked within the tick of the answer, no word since", func(c *observe.Conn) { c.LastRecv, c.LastAck = 2000*ms, 2000*ms }, false},
		{"the same, acknowledged much later", func(c *observe.Conn) { c.LastRecv, c.LastAck = 2000*ms, 1000*ms }, false},
		{"the first request, answered within its tick", func(c *observe.Conn) { c.LastRecv, c.DataSegsIn, c.DataSegsOut = 2000*ms, 1, 1 }, true},
		{"never a word", func(c *observe.Conn) { c.LastRecv, c.LastAck, c.DataSegsIn, c.DataSegsOut = 2000*ms, 1960*ms, 0, 0 }, false},
		{"a request within the tick of the connection", func(c *observe.Conn) { c.LastRecv, c.DataSegsIn, c.DataSegsOut = 2000*ms, 1, 0 }, false},
	} {
		conn := answered
		c.change(&conn)
		if got := idle(conn, after); got != c.want {
			t.Errorf("%s: idle is %v", c.name, got)
		}
	}
}

// scene is a listening member of a real master, served by this process or by
// nobody, with a worker in the state of quiescing.
type scene struct {
	t        *testing.T
	worker   *worker
	listener net.Listener
}

func newScene(t *testing.T, pid int) *scene {
	t.Helper()
	address, err := fdpass.ParseAddress("tcp://127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	socket, err := fdpass.Open(address, fdpass.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(socket.Close)
	if how, why := socket.How(); how != fdpass.Steered {
		t.Skip("nothing is steered here: ", why)
	}
	member, err := socket.Join(1)
	if err == nil {
		err = socket.Steer([]*fdpass.Member{member})
	}
	if err != nil {
		t.Fatal(err)
	}
	return &scene{t: t, worker: workerOn(member, socket, pid), listener: listenerOf(t, member)}
}

func workerOn(member *fdpass.Member, socket *fdpass.Socket, pid int) *worker {
	cfg := testConfig()
	cfg.EndIdle = EndIdleOff
	s := &Supervisor{cfg: cfg, sockets: []*fdpass.Socket{socket}, log: zerolog.Nop(), phase: phaseUpgrading}
	g := &generation{number: 1, retired: true}
	sl := &slot{gen: g, members: []*fdpass.Member{member}}
	sl.worker = &worker{master: s, slot: sl, number: 1, pid: pid, state: quiescing}
	g.slots, s.old = []*slot{sl}, []*generation{g}
	return sl.worker
}

// another adds a worker of the serving generation, without a socket.
func (s *scene) another(pid int) {
	g := &generation{number: 2}
	sl := &slot{gen: g}
	sl.worker = &worker{master: s.worker.master, slot: sl, number: 2, pid: pid, state: serving}
	g.slots, s.worker.master.serving = []*slot{sl}, g
}

func listenerOf(t *testing.T, m *fdpass.Member) net.Listener {
	t.Helper()
	f, err := m.Duplicate()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// connect returns both ends of an accepted connection.
func (s *scene) connect() (client, server net.Conn) {
	s.t.Helper()
	client = s.dial()
	server, err := s.listener.Accept()
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { server.Close() })
	return client, server
}

func (s *scene) dial() net.Conn {
	s.t.Helper()
	client, err := net.Dial("tcp", s.worker.master.sockets[0].Bound())
	if err != nil {
		s.t.Fatal(err)
	}
	// Nothing stays behind in TIME_WAIT or FIN_WAIT.
	_ = client.(*net.TCPConn).SetLinger(0)
	s.t.Cleanup(func() { client.Close() })
	return client
}

func exchange(t *testing.T, client, server net.Conn) {
	t.Helper()
	buf := make([]byte, 4)
	for _, way := range [][2]net.Conn{{client, server}, {server, client}} {
		if _, err := way[0].Write([]byte("word")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(way[1], buf); err != nil {
			t.Fatal(err)
		}
	}
}

func TestNoConnectionIsNoLeftover(t *testing.T) {
	s := newScene(t, os.Getpid())
	if !newLeftover(s.worker).over(time.Now()) {
		t.Error("without a connection something is waited for")
	}
}

func TestConnectionInUseIsWaitedFor(t *testing.T) {
	s := newScene(t, os.Getpid())
	client, server := s.connect()
	l := newLeftover(s.worker)
	for range 3 {
		exchange(t, client, server)
		if l.over(time.Now()) {
			t.Fatal("a connection in use is not waited for")
		}
	}
	client.Close()
	server.Close()
	if !waitFor(func() bool { return l.over(time.Now()) }) {
		t.Error("a connection that has ended is waited for")
	}
}

func TestConnectionInTheQueueIsWaitedFor(t *testing.T) {
	s := newScene(t, os.Getpid())
	s.dial()
	if newLeftover(s.worker).over(time.Now()) {
		t.Error("a connection that nobody has accepted yet is not waited for")
	}
}

func TestConnectionsThatCameLaterAreAnothersBusiness(t *testing.T) {
	s := newScene(t, os.Getpid())
	l := newLeftover(s.worker)
	if !l.over(time.Now()) {
		t.Fatal("without a connection something is waited for")
	}
	client, server := s.connect()
	exchange(t, client, server)
	if !l.over(time.Now()) {
		t.Error("a connection that came after the first look is waited for")
	}
}

func TestConnectionsOfAnotherWorkerAreNotWaitedFor(t *testing.T) {
	s := newScene(t, helper(t).Process.Pid) // has nothing
	client, server := s.connect()           // is ours
	exchange(t, client, server)
	l := newLeftover(s.worker)
	if l.over(time.Now()) {
		t.Fatal("a connection of nobody known is not waited for")
	}
	s.another(os.Getpid())
	if !l.over(time.Now()) {
		t.Error("a connection of the other generation is waited for")
	}
}

func TestIdleConnectionsOfAServerThatFinishesAreNotWaitedFor(t *testing.T) {
	s := newScene(t, os.Getpid())
	s.worker.master.habit = habitFinishes
	client, server := s.connect()
	exchange(t, client, server)
	l := newLeftover(s.worker)
	if l.over(time.Now()) {
		t.Fatal("a connection that was silent for an instant is taken for idle")
	}
	if !waitFor(func() bool { return l.over(time.Now()) }) {
		t.Error("an idle connection is waited for")
	}
	s.worker.master.habit = habitDies
	if l.over(time.Now()) {
		t.Error("an idle connection of a server that cuts it is not waited for")
	}
	_ = server.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	if _, err := server.Read(make([]byte, 1)); err == io.EOF {
		t.Error("it was ended although --end-idle is off")
	}
}

func TestIdleConnectionsAreHelpedToEnd(t *testing.T) {
	s := newScene(t, os.Getpid())
	s.worker.master.cfg.EndIdle = 300 * time.Millisecond
	idleOne, idleServer := s.connect()
	busyOne, busyServer := s.connect()
	exchange(t, idleOne, idleServer)
	l := newLeftover(s.worker)
	ended := make(chan error, 1)
	go func() {
		_, err := idleServer.Read(make([]byte, 1))
		ended <- err
		idleServer.Close()
	}()
	if !waitFor(func() bool {
		exchange(t, busyOne, busyServer)
		if l.over(time.Now()) {
			t.Fatal("the connection in use is not waited for")
		}
		return len(ended) > 0
	}) {
		t.Fatal("the idle connection was not ended")
	}
	if err := <-ended; err != io.EOF {
		t.Errorf("the server reads %v, want the client's goodbye", err)
	}
	if _, err := idleOne.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the client reads %v, want the end", err)
	}
	exchange(t, busyOne, busyServer)
}

func TestShutdownReadTakesTheRightSocket(t *testing.T) {
	s := newScene(t, os.Getpid())
	client, server := s.connect()
	_, other := s.connect()
	n, err := shutdownRead([]int{os.Getpid()}, map[uint64]struct{}{inodeOf(t, server): {}})
	if err != nil || n == 0 {
		t.Fatalf("%d reached, %v", n, err)
	}
	if _, err := server.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the server reads %v, want the end", err)
	}
	if _, err := server.Write([]byte("x")); err != nil {
		t.Errorf("it cannot answer any more: %v", err)
	}
	if _, err := io.ReadFull(client, make([]byte, 1)); err != nil {
		t.Errorf("the answer does not arrive: %v", err)
	}
	_ = other.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	if _, err := other.Read(make([]byte, 1)); err == io.EOF {
		t.Error("another connection was ended as well")
	}
}

func TestShutdownReadOfAProcessThatIsGone(t *testing.T) {
	if n, err := shutdownRead([]int{firstFakePID}, nil); n != 0 || err == nil {
		t.Errorf("%d reached, %v; want an error", n, err)
	}
}

func inodeOf(t *testing.T, c net.Conn) uint64 {
	t.Helper()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := raw.Control(func(fd uintptr) { err = unix.Fstat(int(fd), &st) }); err != nil || st.Ino == 0 {
		t.Fatalf("inode %d: %v", st.Ino, err)
	}
	return st.Ino
}

func TestSocketInode(t *testing.T) {
	for _, c := range []struct {
		link  string
		inode uint64
		ok    bool
	}{
		{"socket:[123]", 123, true}, {"socket:[]", 0, false}, {"socket:[12x]", 0, false}, {"socket:[-1]", 0, false},
		{"pipe:[123]", 0, false}, {"/tmp/socket:[123]", 0, false}, {"", 0, false},
	} {
		if inode, ok := socketInode(c.link); inode != c.inode || ok != c.ok {
			t.Errorf("%q: %d, %v", c.link, inode, ok)
		}
	}
}

// A queue that its worker does not empty is waited for as long as a drain may
// take, and that time is not given a second time.
func TestQueueThatStaysFullCountsAgainstTheDrain(t *testing.T) {
	cfg := testConfig()
	cfg.DrainSignal = unix.SIGQUIT
	address, err := fdpass.ParseAddress("tcp://127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cfg.Addresses = []fdpass.Address{address}
	play := func(p *fakeProc) {
		readyAtOnce(p)
		p.ignores = map[unix.Signal]bool{unix.SIGQUIT: true, unix.SIGTERM: true}
	}
	bubble(t, cfg, play, func(b *trial) {
		b.pass(time.Second)
		client, err := net.Dial("tcp", b.master.sockets[0].Bound())
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		b.do(unix.SIGHUP)
		b.pass(time.Minute)
		b.wantSignals(b.nth(1), "31.001s QUIT", "31.001s TERM", "36.001s KILL")
		b.do(unix.SIGQUIT)
	})
}
