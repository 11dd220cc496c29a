package process

import (
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// ear hears a Voice.
type ear struct {
	*Voice
	t     *testing.T
	words chan Word
}

func listen(t *testing.T) *ear {
	t.Helper()
	v, err := Listen()
	must(t, err)
	e := &ear{v, t, make(chan Word, 64)}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		v.Hear(func(w Word) { e.words <- w })
	}()
	t.Cleanup(func() {
		v.Close()
		<-ended
	})
	return e
}

// send uses a socket of its own: a net.UnixConn that is connected takes no
// control messages.
func (e *ear) send(words string, fds ...int) {
	e.t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	must(e.t, err)
	defer unix.Close(fd)
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	must(e.t, unix.Sendmsg(fd, []byte(words), rights, &unix.SockaddrUnix{Name: e.name}, 0))
}

func (e *ear) hear() Word {
	e.t.Helper()
	select {
	case w := <-e.words:
		return w
	case <-time.After(10 * time.Second):
		e.t.Fatal("nothing was heard")
		return Word{}
	}
}

// said is the word with this process as its sender.
func said(w Word) Word {
	w.PID, w.UID = os.Getpid(), os.Getuid()
	return w
}

func TestHear(t *testing.T) {
	e := listen(t)
	const most = "31535999999999"
	for _, c := range []struct {
		text string
		want Word
	}{
		{"READY=1", Word{Ready: true}},
		{"READY=1\n", Word{Ready: true}},
		{"READY=0\nSTATUS=warming up: 3=4", Word{Status: "warming up: 3=4"}},
		{"STATUS=done\nREADY=1\n", Word{Ready: true, Status: "done"}},
		{"STATUS=one\nSTATUS=two", Word{Status: "two"}},
		{"EXTEND_TIMEOUT_USEC=1500000", Word{Extend: 1500 * time.Millisecond}},
		{"EXTEND_TIMEOUT_USEC=" + most, Word{Extend: maxExtend - time.Microsecond}},
		{"EXTEND_TIMEOUT_USEC=31536000000000", Word{}},
		{"EXTEND_TIMEOUT_USEC=-1000000", Word{}},
		{"EXTEND_TIMEOUT_USEC=0", Word{}},
		{"EXTEND_TIMEOUT_USEC=", Word{}},
		{"EXTEND_TIMEOUT_USEC=soon", Word{}},
		{"EXTEND_TIMEOUT_USEC=1e9", Word{}},
		{"EXTEND_TIMEOUT_USEC=99999999999999999999999", Word{}},
		// Garbage is outlived.
		{"", Word{}}, {"READY", Word{}}, {"=1", Word{}}, {"\n\n", Word{}}, {"\x00\xff=\x00", Word{}}, {"ready=1", Word{}},
		{" READY=1", Word{}}, {"READY=1 ", Word{}}, {strings.Repeat("A", 20_000), Word{}}, {"X=" + strings.Repeat("y\n", 5000), Word{}},
		{"READY=1", Word{Ready: true}},
	} {
		e.send(c.text)
		if got := e.hear(); got != said(c.want) {
			t.Errorf("%.40q: %+v, want %+v", c.text, got, said(c.want))
		}
	}
}

// BARRIER=1 comes with a descriptor; that it is closed is the answer.
func TestBarrier(t *testing.T) {
	for _, copies := range []int{1, 8, 20} { // more than are received are closed as well
		e := listen(t)
		r, w, err := os.Pipe()
		must(t, err)
		defer r.Close()
		fds := make([]int, copies)
		for i := range fds {
			fds[i] = int(w.Fd())
		}
		e.send("BARRIER=1", fds...)
		w.Close()
		must(t, r.SetReadDeadline(time.Now().Add(10*time.Second)))
		if _, err := r.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("%d descriptors: %v, want the end of the pipe", copies, err)
		}
	}
}

func TestSays(t *testing.T) {
	main, orphan, other := play(t, "stay"), play(t, "stay"), play(t, "stay")
	p := New(main.PID, -1, os.Getpid(), orphan.Mark)
	for _, c := range []*child{main, orphan, other} {
		// The environment of a process shows only once it has been executed.
		eventually(t, "it runs", func() bool { return MarkOf(c.PID) == c.Mark })
	}
	const stranger = 54321
	for _, c := range []struct {
		name string
		from Word
		uid  int
		want bool
	}{
		{"the main process", Word{PID: main.PID, UID: stranger}, -1, true},
		{"an orphan with its mark", Word{PID: orphan.PID, UID: stranger}, -1, true},
		{"an orphan with another's mark", Word{PID: other.PID, UID: os.Geteuid()}, -1, false},
		{"the master", Word{PID: os.Getpid(), UID: 0}, -1, false},
		{"one that is gone, of our user", Word{PID: nobody, UID: os.Geteuid()}, -1, true},
		{"one that is gone, of root", Word{PID: nobody, UID: 0}, -1, true},
		{"one that is gone, of a stranger", Word{PID: nobody, UID: stranger}, -1, false},
		{"one that is gone, of the worker's user", Word{PID: nobody, UID: stranger}, stranger, true},
		{"one that is gone, of another user", Word{PID: nobody, UID: stranger}, stranger + 1, false},
	} {
		if got := p.Says(c.from, c.uid); got != c.want {
			t.Errorf("%s: believed is %v, want %v", c.name, got, c.want)
		}
	}
}

func credentials(pid int) []byte {
	return unix.UnixCredentials(&unix.Ucred{Pid: int32(pid), Uid: 7, Gid: 8})
}

func TestAWordOfNobody(t *testing.T) {
	for _, oob := range [][]byte{nil, {}, {1, 2, 3}, credentials(0), credentials(-1)} {
		if w, ok := parseWord([]byte("READY=1"), oob); ok {
			t.Errorf("%v: a word from nobody is taken for one of %d", oob, w.PID)
		}
	}
}

// The control message is the kernel's own; what the sender chooses is the text.
func FuzzParseWord(f *testing.F) {
	f.Add("READY=1", "fine", int64(5))
	f.Add("\n=\n\x00==\xff", "", int64(-1))
	f.Fuzz(func(t *testing.T, text, status string, usec int64) {
		w, ok := parseWord([]byte(text), credentials(9))
		if !ok || w.PID != 9 || w.UID != 7 || strings.Contains(w.Status, "\n") || w.Extend < 0 || w.Extend >= maxExtend {
			t.Errorf("%q: %+v, %v", text, w, ok)
		}
		if !w.Ready && strings.HasSuffix("\n"+text, "\nREADY=1") {
			t.Errorf("%q: READY=1 at the end is not understood", text)
		}
		if strings.Contains(status, "\n") {
			return
		}
		// What comes last counts, whatever was before.
		w, _ = parseWord([]byte(text+"\nSTATUS="+status), credentials(9))
		if w.Status != status {
			t.Errorf("status %q, want %q", w.Status, status)
		}
	})
}

// connection returns both ends of one on loopback.
func connection(t *testing.T, ln net.Listener) (client, server net.Conn) {
	t.Helper()
	client, err := net.Dial("tcp", ln.Addr().String())
	must(t, err)
	t.Cleanup(func() { client.Close() })
	server, err = ln.Accept()
	must(t, err)
	t.Cleanup(func() { server.Close() })
	return client, server
}

func inodeOf(t *testing.T, c net.Conn) uint64 {
	t.Helper()
	raw, err := c.(*net.TCPConn).SyscallConn()
	must(t, err)
	var st unix.Stat_t
	must(t, raw.Control(func(fd uintptr) { err = unix.Fstat(int(fd), &st) }))
	must(t, err)
	return st.Ino
}

func TestShutdownReadTakesTheRightSocket(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer ln.Close()
	client, server := connection(t, ln)
	_, other := connection(t, ln)
	n, err := ShutdownRead([]int{os.Getpid()}, map[uint64]struct{}{inodeOf(t, server): {}})
	if err != nil || n != 1 {
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
	if n, err := ShutdownRead([]int{nobody}, nil); n != 0 || err == nil {
		t.Errorf("%d reached in a process that is gone, %v", n, err)
	}
	_ = other.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	if _, err := other.Read(make([]byte, 1)); err == io.EOF {
		t.Error("another connection was ended as well")
	}
}

func TestSocketInode(t *testing.T) {
	for link, want := range map[string]uint64{"socket:[123]": 123, "socket:[]": 0, "socket:[12x]": 0, "pipe:[123]": 0, "/tmp/socket:[123]": 0} {
		if inode, ok := socketInode(link); inode != want || ok != (want != 0) {
			t.Errorf("%q: %d, %v", link, inode, ok)
		}
	}
}
