package supervisor

import (
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/moult/moult/fdpass"
)

func init() {
	// notify says READY=1 and leaves at once, as systemd-notify does.
	helpers["notify"] = func() {
		conn, err := net.Dial("unixgram", os.Getenv("NOTIFY_SOCKET"))
		if err == nil {
			_, err = conn.Write([]byte("READY=1"))
		}
		if err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
}

// helper starts a process that lives until the test ends.
func helper(t *testing.T, env ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(append(os.Environ(), helperVariable+"=stay", "GORACE=atexit_sleep_ms=0"), env...)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stdin.Close()
		_ = cmd.Wait()
	})
	return cmd
}

// listener is a worker that listens for words; its events are run by hear.
type listener struct {
	*worker
	t    *testing.T
	conn *net.UnixConn
}

func listen(t *testing.T, pid int) *listener {
	t.Helper()
	s := &Supervisor{events: make(chan func(), 64), done: make(chan struct{}), log: zerolog.Nop()}
	w := &worker{master: s, slot: &slot{gen: &generation{}}, pid: pid, mark: newMark(), state: starting}
	socket, err := listenNotify(w)
	if err != nil {
		t.Fatal(err)
	}
	w.ready.socket = socket
	t.Cleanup(func() {
		close(s.done)
		w.ready.close()
	})
	name := strings.TrimPrefix(socket.environ()[0], "NOTIFY_SOCKET=")
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Net: "unixgram", Name: name})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &listener{worker: w, t: t, conn: conn}
}

func (l *listener) send(words string) {
	l.t.Helper()
	if _, err := l.conn.Write([]byte(words)); err != nil {
		l.t.Fatal(err)
	}
}

// sendDescriptors uses a socket of its own: a net.UnixConn that is connected
// takes no control messages.
func (l *listener) sendDescriptors(words string, fds []int) {
	l.t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		l.t.Fatal(err)
	}
	defer unix.Close(fd)
	to := &unix.SockaddrUnix{Name: l.ready.socket.name}
	if err := unix.Sendmsg(fd, []byte(words), unix.UnixRights(fds...), to, 0); err != nil {
		l.t.Fatal(err)
	}
}

// hear runs the next event, as the goroutine that owns the state does.
func (l *listener) hear() {
	l.t.Helper()
	select {
	case f := <-l.master.events:
		f()
	case <-time.After(10 * time.Second):
		l.t.Fatal("nothing was heard")
	}
}

func TestNotifyReadyAndStatus(t *testing.T) {
	l := listen(t, os.Getpid())
	l.send("READY=0\nSTATUS=warming up: 3=4")
	l.hear()
	if l.ready.notified || l.ready.status != "warming up: 3=4" {
		t.Errorf("ready is %v, status %q", l.ready.notified, l.ready.status)
	}
	l.send("STATUS=done\nREADY=1\n")
	l.hear()
	if !l.ready.notified || !l.slot.gen.notifies || l.ready.status != "done" {
		t.Errorf("ready is %v, the generation's %v, status %q", l.ready.notified, l.slot.gen.notifies, l.ready.status)
	}
}

func TestNotifyOutlivesGarbage(t *testing.T) {
	l := listen(t, os.Getpid())
	for _, garbage := range []string{"", "READY", "=1", "\n\n", "\x00\xff=\x00", "ready=1", " READY=1", strings.Repeat("A", 20_000), "X=" + strings.Repeat("y\n", 5000)} {
		l.send(garbage)
		l.hear()
		if l.ready.notified || l.ready.status != "" {
			t.Fatalf("%.20q was understood", garbage)
		}
	}
	l.send("READY=1")
	if l.hear(); !l.ready.notified {
		t.Error("READY=1 after the garbage was not heard")
	}
}

func TestNotifyExtendsOnlyForwards(t *testing.T) {
	l := listen(t, os.Getpid())
	end := time.Now().Add(time.Minute)
	l.deadline = end
	for _, value := range []string{"-1000000", "1", "", "soon", "1e9", "99999999999999999999999", "1000000"} {
		l.send("EXTEND_TIMEOUT_USEC=" + value)
		if l.hear(); !l.deadline.Equal(end) {
			t.Fatalf("%q moved the deadline by %s", value, l.deadline.Sub(end))
		}
	}
	l.send("EXTEND_TIMEOUT_USEC=120000000")
	if l.hear(); l.deadline.Sub(end) < 55*time.Second {
		t.Errorf("two minutes moved the deadline by %s only", l.deadline.Sub(end))
	}
	l.state = settling
	end = l.deadline
	l.send("EXTEND_TIMEOUT_USEC=999000000")
	if l.hear(); !l.deadline.Equal(end) {
		t.Error("a worker on its way out has moved the deadline of its queue")
	}
}

// BARRIER=1 comes with a descriptor; that it is closed is the answer.
func TestNotifyBarrier(t *testing.T) {
	for _, copies := range []int{1, 8, 20} { // more than are received are closed as well
		l := listen(t, os.Getpid())
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		fds := make([]int, copies)
		for i := range fds {
			fds[i] = int(w.Fd())
		}
		l.sendDescriptors("BARRIER=1", fds)
		w.Close()
		if err := r.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := r.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("%d descriptors: %v, want the end of the pipe", copies, err)
		}
	}
}

func TestNotifyFromASenderThatIsGone(t *testing.T) {
	l := listen(t, helper(t).Process.Pid)
	sender := exec.Command(os.Args[0])
	sender.Env = append(os.Environ(), helperVariable+"=notify", "GORACE=atexit_sleep_ms=0", "NOTIFY_SOCKET="+l.ready.socket.name)
	if out, err := sender.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if l.hear(); !l.ready.notified {
		t.Error("a word of a process that has left since is not believed")
	}
}

func TestNotifyFromAForeignSender(t *testing.T) {
	l := listen(t, helper(t).Process.Pid) // we are its parent, not of its tree
	l.send("READY=1\nSTATUS=trust me")
	if l.hear(); l.ready.notified || l.ready.status != "" || l.slot.gen.notifies {
		t.Error("a word of a process that is not of the worker is believed")
	}
}

func TestTrust(t *testing.T) {
	tree, mark := helper(t), newMark()
	orphan, other := helper(t, WorkerVariable+"="+mark), helper(t, WorkerVariable+"="+newMark())
	const nobodys, stranger = firstFakePID, 54321
	w := &worker{pid: tree.Process.Pid, mark: mark}
	for _, c := range []struct {
		name string
		from notification
		as   *fdpass.Credential
		want bool
	}{
		{"the main process", notification{pid: tree.Process.Pid, uid: stranger}, nil, true},
		{"an orphan with its mark", notification{pid: orphan.Process.Pid, uid: stranger}, nil, true},
		{"an orphan with another's mark", notification{pid: other.Process.Pid, uid: os.Geteuid()}, nil, false},
		{"the master", notification{pid: os.Getpid(), uid: 0}, nil, false},
		{"one that is gone, of our user", notification{pid: nobodys, uid: os.Geteuid()}, nil, true},
		{"one that is gone, of root", notification{pid: nobodys, uid: 0}, nil, true},
		{"one that is gone, of a stranger", notification{pid: nobodys, uid: stranger}, nil, false},
		{"one that is gone, of the worker's user", notification{pid: nobodys, uid: stranger}, &fdpass.Credential{UID: stranger}, true},
		{"one that is gone, of another user", notification{pid: nobodys, uid: stranger}, &fdpass.Credential{UID: stranger + 1}, false},
	} {
		w.credential = c.as
		// The environment of a process shows only once it has been executed.
		if waitFor(func() bool { return w.trusts(c.from) == c.want }) == false {
			t.Errorf("%s: trusted is %v, want %v", c.name, !c.want, c.want)
		}
	}
}

// waitFor polls for a fact for a bounded time.
func waitFor(fact func() bool) bool {
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if fact() {
			return true
		}
	}
	return fact()
}

func TestNotifySocketsDiffer(t *testing.T) {
	seen := map[string]bool{}
	for range 20 {
		l := listen(t, os.Getpid())
		if name := l.ready.socket.name; seen[name] || !strings.HasPrefix(name, "@") {
			t.Errorf("the name %q is no abstract one of its own", name)
		} else {
			seen[name] = true
		}
	}
}

func credentials(pid int) []byte {
	return unix.UnixCredentials(&unix.Ucred{Pid: int32(pid), Uid: 7, Gid: 8})
}

func TestParseWithoutASender(t *testing.T) {
	for _, oob := range [][]byte{nil, {}, {1, 2, 3}, credentials(0), credentials(-1)} {
		if n, ok := parseNotification([]byte("READY=1"), oob); ok {
			t.Errorf("%v: a word from nobody is taken for one of %d", oob, n.pid)
		}
	}
}

func FuzzParseNotificationRoundTrip(f *testing.F) {
	f.Add("READY", "1", "STATUS", "a=b", 12)
	f.Add("", "", "\x00", "\xff", 1)
	f.Add("A", "1", "A", "2", 1<<22)
	f.Fuzz(func(t *testing.T, key1, value1, key2, value2 string, pid int) {
		if strings.ContainsAny(key1+key2, "=\n") || strings.Contains(value1+value2, "\n") {
			t.Skip()
		}
		want := map[string]string{key1: value1}
		want[key2] = value2
		n, ok := parseNotification([]byte(key1+"="+value1+"\n"+key2+"="+value2), credentials(pid))
		if ok != (int32(pid) > 0) || ok && (n.pid != int(int32(pid)) || n.uid != 7) {
			t.Errorf("pid %d, uid %d, %v", n.pid, n.uid, ok)
		}
		if ok && !maps.Equal(n.fields, want) {
			t.Errorf("%q, want %q", n.fields, want)
		}
	})
}

// The control message is the kernel's own; what the sender chooses is the text.
func FuzzParseNotification(f *testing.F) {
	f.Add([]byte("READY=1"))
	f.Add([]byte("\n=\n\x00==\xff"))
	f.Fuzz(func(t *testing.T, data []byte) {
		n, ok := parseNotification(data, credentials(1))
		if !ok || n.pid != 1 {
			t.Errorf("sender %d, %v", n.pid, ok)
		}
		for key, value := range n.fields {
			if strings.ContainsAny(key, "=\n") || strings.Contains(value, "\n") {
				t.Errorf("%q=%q is no line", key, value)
			}
		}
	})
}
