package fdpass

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// inheritVariable makes TestInheritingProcess play a program that was started
// with sockets.
const inheritVariable = "FDPASS_TEST_INHERIT"

// TestInheritingProcess is not a test but the other process of TestInherit.
func TestInheritingProcess(t *testing.T) {
	if os.Getenv(inheritVariable) == "" {
		t.Skip("only as a child of TestInherit")
	}
	if os.Getenv("LISTEN_PID") == "self" {
		os.Setenv("LISTEN_PID", strconv.Itoa(os.Getpid()))
	}
	sockets, err := Inherit()
	fmt.Printf("error: %v\n", err)
	for _, s := range sockets {
		addr, err := s.Addr()
		fmt.Printf("socket: %d %s %v %v %v\n", s.FD, s.Name, addr, err, closedOnExec(s.FD))
	}
	for _, kv := range os.Environ() {
		if strings.HasPrefix(kv, "LISTEN_") {
			fmt.Println("left:", kv)
		}
	}
	again, err := Inherit()
	fmt.Println("again:", len(again), err)
	serveInherited(sockets)
}

func serveInherited(sockets []Inherited) {
	if len(sockets) == 0 {
		return
	}
	ln, err := sockets[0].Listener()
	if err != nil {
		fmt.Println(err)
		return
	}
	defer ln.Close()
	fmt.Println("serving")
	c, err := ln.Accept()
	if err != nil {
		fmt.Println(err)
		return
	}
	_, _ = io.WriteString(c, "hello")
	_ = c.Close()
}

func closedOnExec(fd int) bool {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	return err == nil && flags&syscall.FD_CLOEXEC != 0
}

// inheriting starts the other process with sockets and variables.
func inheriting(t *testing.T, files []*os.File, env ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestInheritingProcess$", "-test.v")
	cmd.Env = append(CleanEnviron(os.Environ()), append(env, inheritVariable+"=1")...)
	cmd.ExtraFiles = files
	return cmd
}

func listenFile(t *testing.T, ln interface{ File() (*os.File, error) }) *os.File {
	t.Helper()
	f, err := ln.File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func TestInherit(t *testing.T) {
	path := filepath.Join(t.TempDir(), "web.sock")
	unixLn, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer unixLn.Close()
	tcpLn, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer tcpLn.Close()
	files := []*os.File{listenFile(t, unixLn), listenFile(t, tcpLn)}
	cmd := inheriting(t, files, "LISTEN_PID=self", "LISTEN_FDS=2", "LISTEN_FDNAMES=web:api", "LISTEN_PIDFDID=7")
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if got, err := io.ReadAll(c); string(got) != "hello" || err != nil {
		t.Errorf("the socket answers %q, %v", got, err)
	}
	_ = c.Close()
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	for _, want := range []string{
		"error: <nil>",
		"socket: 3 web " + path + " <nil> true",
		"socket: 4 api " + tcpLn.Addr().String() + " <nil> true",
		"again: 0 <nil>",
		"serving",
	} {
		if !strings.Contains(out.String(), want+"\n") {
			t.Errorf("no %q in:\n%s", want, out.String())
		}
	}
	if strings.Contains(out.String(), "left:") {
		t.Errorf("variables are left for children:\n%s", out.String())
	}
	if _, err := os.Stat(path); err != nil {
		t.Errorf("closing the listener removed the path: %v", err)
	}
}

func TestInheritNothing(t *testing.T) {
	for _, env := range [][]string{
		nil,
		{"LISTEN_FDS=1"},
		{"LISTEN_PID=1", "LISTEN_FDS=1", "LISTEN_FDNAMES=web"}, // another's
	} {
		out, err := inheriting(t, nil, env...).CombinedOutput()
		if err != nil || !strings.Contains(string(out), "error: <nil>\nagain: 0 <nil>\n") {
			t.Errorf("%q: %v\n%s", env, err, out)
		}
	}
}

func TestInheritErrors(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	for want, env := range map[string][]string{
		`LISTEN_FDS="many" is not a number`: {"LISTEN_FDS=many"},
		"2 names for 1 descriptors":         {"LISTEN_FDS=1", "LISTEN_FDNAMES=a:b"},
		"descriptor 3 is not a socket":      {"LISTEN_FDS=1"},
	} {
		out, _ := inheriting(t, []*os.File{r}, append(env, "LISTEN_PID=self")...).CombinedOutput()
		if !strings.Contains(string(out), "error: cannot take the inherited sockets: ") || !strings.Contains(string(out), want) {
			t.Errorf("%q: no %q in\n%s", env, want, out)
		}
		if strings.Contains(string(out), "\nsocket:") {
			t.Errorf("%q: a partial result comes with the error:\n%s", env, out)
		}
	}
}

func TestInheritedMatches(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.sock")
	for _, test := range []struct {
		open, asked string
		want        bool
	}{
		{"web=127.0.0.1:0", "web=:9999", true}, // by name
		{"x=127.0.0.1:0", "y=127.0.0.1:PORT", true},
		{"x=127.0.0.1:0", "y=127.0.0.2:PORT", false},
		{"x=127.0.0.1:0", "y=:PORT", false},
		{"x=127.0.0.1:0", "y=udp://127.0.0.1:PORT", false},
		{"x=tcp4://0.0.0.0:0", "y=:PORT", true},
		{"x=tcp4://0.0.0.0:0", "y=127.0.0.1:PORT", false},
		{"x=udp://127.0.0.1:0", "y=udp://127.0.0.1:PORT", true},
		{"x=" + path, "y=" + path, true},
		{"x=" + path + "2", "y=" + path, false},
		{"x=127.0.0.1:0", "y=systemd://x", true},
		{"x=127.0.0.1:0", "y=fd://FD", true},
		{"x=127.0.0.1:0", "y=fd://99999", false},
	} {
		own := openOwn(t, test.open)
		asked := strings.NewReplacer("PORT", portOf(t, own), "FD", strconv.Itoa(own.FD)).Replace(test.asked)
		if got := own.Matches(parse(t, asked)); got != test.want {
			t.Errorf("%s matches %s: %v, want %v", test.open, asked, got, test.want)
		}
	}
}

func parse(t *testing.T, s string) Address {
	t.Helper()
	a, err := ParseAddress(s)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// openOwn opens a socket that is closed at the end of the test.
func openOwn(t *testing.T, addr string) Inherited {
	t.Helper()
	own, err := OpenOwn(parse(t, addr))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Close(own.FD) })
	return own
}

func portOf(t *testing.T, i Inherited) string {
	t.Helper()
	addr, err := i.Addr()
	if err != nil {
		t.Fatal(err)
	}
	_, port, err := net.SplitHostPort(addr.String())
	if err != nil {
		return "" // a path
	}
	return port
}

func TestOpenOwnInUse(t *testing.T) {
	own := openOwn(t, "127.0.0.1:0")
	again, err := OpenOwn(parse(t, "127.0.0.1:"+portOf(t, own)))
	if !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("%+v, %v; want an address in use", again, err)
	}
}

// TestInheritedStaysNonblocking: the description is shared with processes
// that are in the middle of accepting from it.
func TestInheritedStaysNonblocking(t *testing.T) {
	own, err := OpenOwn(parse(t, "127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.SetNonblock(own.FD, true); err != nil {
		t.Fatal(err)
	}
	dup, err := dupCloexec(own.FD)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(dup)
	ln, err := own.Listener()
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	flags, err := unix.FcntlInt(uintptr(dup), unix.F_GETFL, 0)
	if err != nil || flags&unix.O_NONBLOCK == 0 {
		t.Errorf("flags %x, %v; want O_NONBLOCK", flags, err)
	}
}

func TestInheritedPacketConn(t *testing.T) {
	own, err := OpenOwn(parse(t, "udp://127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := own.PacketConn()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.WriteTo([]byte("x"), conn.LocalAddr()); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 2)
	if n, _, err := conn.ReadFrom(p); n != 1 || err != nil {
		t.Errorf("%d bytes, %v", n, err)
	}
}
