package worker

import (
	"bytes"
	"cmp"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// roleAfter is the role of the program that gets the sockets.
const roleAfter = "WORKER_TEST_ROLE_AFTER"

// serveActivated stands for the step between fork and exec of whoever hands
// sockets over: LISTEN_PID must be the pid of the program itself.
func serveActivated() error {
	os.Setenv("LISTEN_PID", strconv.Itoa(os.Getpid()))
	os.Setenv(roleVariable, cmp.Or(os.Getenv(roleAfter), "worker"))
	return syscall.Exec("/proc/self/exe", os.Args, os.Environ())
}

// activate starts the role "worker" with a socket, as systemd does.
func activate(t *testing.T, ln interface{ File() (*os.File, error) }, name string, env ...string) *family {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("needs /proc/self/exe")
	}
	file, err := ln.File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	cmd := exec.Command(os.Args[0])
	cmd.ExtraFiles = []*os.File{file}
	cmd.Env = append(os.Environ(), roleVariable+"=activated", "LISTEN_FDS=1", "LISTEN_FDNAMES="+name)
	cmd.Env = append(cmd.Env, env...)
	return startCommand(t, cmd)
}

func get(t *testing.T, network, addr string) {
	t.Helper()
	nc, err := net.Dial(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if resp := (&echoConn{nc, newReader(nc)}).get(t); resp.StatusCode != 200 {
		t.Errorf("answer %v", resp.Status)
	}
}

func TestFailedUpgradeChangesNothing(t *testing.T) {
	dir := t.TempDir()
	broken := filepath.Join(dir, "broken")
	f := startFamily(t, "worker", "WORKER_TEST_BROKEN_FILE="+broken, "WORKER_TEST_LOG=1")
	if err := os.WriteFile(broken, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	l := startLoad(f.addr, 4, 0)
	f.signal(syscall.SIGHUP)
	eventually(t, "the upgrade has failed", func() bool { return strings.Contains(f.errors(), "cannot upgrade: child") })
	get(t, "tcp", f.addr)
	if err := os.Remove(broken); err != nil {
		t.Fatal(err)
	}
	f.upgrade()
	l.end()
	f.stop()
	l.check(t)
}

// TestSignalForTheWrongProcess: SIGHUP to a process that has handed over is
// meant for the one that serves, and that one waits until its parent has ended.
func TestSignalForTheWrongProcess(t *testing.T) {
	f := startFamily(t, "worker")
	c := dialEcho(t, f.addr)
	mustWrite2(t, c, "GET /held HTTP/1.1\r\nHost: test\r\n\r\n")
	if words := f.next(); words[0] != "held" {
		t.Fatalf("it said %q", words)
	}
	f.upgrade()
	if err := syscall.Kill(f.pids[0], syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	get(t, "tcp", f.addr)
	_ = c.Close() // now the first process can end
	f.awaitReady()
	get(t, "tcp", f.addr)
	f.stop()
}

// TestForeignTableflipParent: another program that stands on tableflip hands
// over to one that is built with this package.
func TestForeignTableflipParent(t *testing.T) {
	f := startFamily(t, "flipper", "WORKER_TEST_NEXT=worker")
	first := f.addr
	f.upgrade()
	if f.addr != first {
		t.Errorf("the new process listens on %s, not on %s", f.addr, first)
	}
	// The other program loses requests when it ends.
	eventually(t, "the first process is gone", func() bool { return syscall.Kill(f.pids[0], 0) != nil })
	l := startLoad(f.addr, 8, 0)
	f.upgrade()
	l.end()
	f.stop()
	l.check(t)
}

// TestSocketFromSystemd is found by name, survives upgrades, and its path is
// not ours to remove.
func TestSocketFromSystemd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "web.sock")
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	f := activate(t, ln, "web", "WORKER_TEST_LISTEN=web=/nowhere/else.sock")
	for range 3 {
		get(t, "unix", path)
		f.upgrade()
	}
	get(t, "unix", path)
	f.stop()
	if _, err := os.Stat(path); err != nil {
		t.Errorf("the socket's path: %v", err)
	}
}

// TestOwnUnixSocket is kept by an upgrade and removed at the end.
func TestOwnUnixSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "web.sock")
	f := startFamily(t, "worker", "WORKER_TEST_LISTEN="+path)
	f.upgrade()
	f.upgrade()
	get(t, "unix", path)
	f.stop()
	if _, err := os.Stat(path); err == nil {
		t.Error("the socket's path is still there")
	}
}

// TestUnderMoult: the master upgrades, the worker does not.
func TestUnderMoult(t *testing.T) {
	ln, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	f := activate(t, ln, "8080", "WORKER_TEST_LISTEN=:8080", "MOULT_GENERATION=3", "WORKER_TEST_LOG=1")
	if f.addr != ln.Addr().String() {
		t.Fatalf("it listens on %s, not on the socket it got (%s)", f.addr, ln.Addr())
	}
	f.signal(syscall.SIGHUP)
	eventually(t, "it refuses", func() bool { return strings.Contains(f.errors(), "send SIGHUP to moult") })
	get(t, "tcp", f.addr)
	f.stop()
}

// TestSecondSignal ends at once, with the status of a failure.
func TestSecondSignal(t *testing.T) {
	f := startFamily(t, "worker", "WORKER_TEST_LOG=1")
	c := dialEcho(t, f.addr)
	mustWrite2(t, c, "GET /stuck HTTP/1.1\r\nHost: test\r\n\r\n")
	if words := f.next(); words[0] != "stuck" {
		t.Fatalf("it said %q", words)
	}
	f.signal(syscall.SIGTERM)
	eventually(t, "it drains", func() bool { return strings.Contains(f.errors(), "to=ending") })
	f.stop()
	eventually(t, "standard error names what was cut", func() bool {
		return strings.Contains(f.errors(), "cut: in a request GET /stuck")
	})
}

// TestServiceManagerHearsOfEverything, in the words of sd_notify(3).
func TestServiceManagerHearsOfEverything(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	heard := func() string {
		t.Helper()
		_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		p := make([]byte, 1000)
		n, err := conn.Read(p)
		if err != nil {
			t.Fatal(err)
		}
		return string(p[:n])
	}
	f := startFamily(t, "worker", "NOTIFY_SOCKET="+path)
	if got := heard(); got != "READY=1" {
		t.Errorf("heard %q at the start", got)
	}
	f.upgrade()
	if got := heard(); runtime.GOOS == "linux" && !strings.HasPrefix(got, "RELOADING=1\nMONOTONIC_USEC=") {
		t.Errorf("heard %q when the upgrade began", got)
	}
	// From the old process, for the new one is not the main one yet, and what
	// it says counts only with NotifyAccess=all.
	if got, want := heard(), "MAINPID="+strconv.Itoa(f.pid())+"\nREADY=1"; got != want {
		t.Errorf("heard %q, want %q", got, want)
	}
	f.stop()
	if got := heard(); got != "STOPPING=1" {
		t.Errorf("heard %q at the end", got)
	}
}

// TestProcessOneDoesNotUpgrade, for its end would be the container's.
func TestProcessOneDoesNotUpgrade(t *testing.T) {
	unshare, err := exec.LookPath("unshare")
	if err != nil || os.Getuid() != 0 {
		t.Skip("needs root and unshare(1)")
	}
	cmd := exec.Command(unshare, "--pid", "--fork", "--kill-child", os.Args[0])
	cmd.Env = append(os.Environ(), roleVariable+"=worker", "WORKER_TEST_LISTEN=127.0.0.1:0", "WORKER_TEST_LOG=1")
	f := startCommand(t, cmd)
	f.pids = []int{childOf(t, cmd.Process.Pid)}
	f.signal(syscall.SIGHUP)
	eventually(t, "it refuses and says why", func() bool { return strings.Contains(f.errors(), "this is process 1") })
	get(t, "tcp", f.addr)
	f.stop()
}

func childOf(t *testing.T, pid int) int {
	t.Helper()
	id := strconv.Itoa(pid)
	list, err := os.ReadFile("/proc/" + id + "/task/" + id + "/children")
	if err != nil {
		t.Fatal(err)
	}
	child, err := strconv.Atoi(string(bytes.TrimSpace(list)))
	if err != nil {
		t.Fatal(err)
	}
	return child
}
