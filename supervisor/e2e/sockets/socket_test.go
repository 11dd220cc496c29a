//go:build linux

package sockets

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moult/moult/supervisor/e2e/testkit"
	"github.com/moult/moult/supervisor/load"
	"golang.org/x/sys/unix"
)

// What a worker finds, and what becomes of each kind of socket.

func TestWorkerFindsItsSocketsAndNothingElse(t *testing.T) {
	t.Parallel()
	web, admin := testkit.FreeAddress(t), testkit.FreeAddress(t)
	path := filepath.Join(t.TempDir(), "s")
	stale := []string{
		"LISTEN_FDS=7", "LISTEN_PID=1", "LISTEN_FDNAMES=old", "LISTEN_PIDFDID=1", "SERVER_STARTER_PORT=80=3", "SERVER_STARTER_GENERATION=9",
		"EINHORN_MASTER_PID=1", "EINHORN_FD_COUNT=1", "EINHORN_FD_0=3", "EINHORN_FDS=3", "EINHORN_SOCK_PATH=/old", "NGINX=3;", "UNICORN_FD=3",
		"GUNICORN_FD=3", "GUNICORN_PID=1", "PUMA_INHERIT_0=3:tcp://x", "TABLEFLIP_HAS_PARENT_7DIU3=yes", "NOTIFY_SOCKET=/old", "WATCHDOG_USEC=1", "WATCHDOG_PID=1",
		"KEPT=as it is",
	}
	args := []string{"run", "-l", "web=" + web, "-l", "admin=" + admin, "-l", "local=unix://" + path,
		"--env", "PORT={port:admin}", "--env", "LIST=1,2", "--"}
	args = append(args, testkit.WorkerCommand("graceful")...)
	m := testkit.Launch{Args: args, Env: stale}.Start(t)
	m.WaitServing(1)
	s := testkit.AskSelf(t, "tcp", web)

	_, port, _ := net.SplitHostPort(admin)
	for name, want := range map[string]string{
		"LISTEN_FDS": "3", "LISTEN_PID": strconv.Itoa(s.PID), "LISTEN_FDNAMES": "web:admin:local",
		"MOULT_GENERATION": "1", "PORT": port, "LIST": "1,2", "KEPT": "as it is",
		"EINHORN_FD_COUNT": "3", "EINHORN_FD_0": "3", "EINHORN_FD_2": "5",
		"SERVER_STARTER_GENERATION": "1",
	} {
		if got := s.Variable(name); got != want {
			t.Errorf("%s=%q, want %q", name, got, want)
		}
	}
	for _, name := range []string{"LISTEN_PIDFDID", "NGINX", "UNICORN_FD", "GUNICORN_FD", "GUNICORN_PID", "PUMA_INHERIT_0",
		"TABLEFLIP_HAS_PARENT_7DIU3", "WATCHDOG_USEC", "WATCHDOG_PID", "MOULT_SHIM", "MOULT_LOG_FORMAT"} {
		if s.Has(name) {
			t.Errorf("the worker inherited %s=%s", name, s.Variable(name))
		}
	}
	if s.Variable("NOTIFY_SOCKET") == "/old" || s.Variable("EINHORN_SOCK_PATH") == "/old" {
		t.Error("the worker inherited a wire that belongs to the master")
	}
	specs := s.Variable("SERVER_STARTER_PORT")
	if !strings.HasSuffix(specs, "=5") || !strings.Contains(specs, "=3;") || !strings.Contains(specs, "=4;") || strings.Contains(specs, "80=3;"+"80=3") {
		t.Errorf("SERVER_STARTER_PORT=%q", specs)
	}
	checkDescriptors(t, s, 3)
	for _, network := range [][2]string{{"tcp", web}, {"tcp", admin}, {"unix", path}} {
		testkit.Answers(t, network[0], network[1])
	}
	m.Stop()
}

// checkDescriptors: stdin, stdout, stderr and the sockets, blocking.
func checkDescriptors(t *testing.T, s testkit.Self, sockets int) {
	t.Helper()
	for fd, target := range s.Descriptors {
		isSocket := strings.HasPrefix(target, "socket:")
		switch {
		case fd == 0 && target != os.DevNull:
			t.Errorf("stdin is %s", target)
		case fd > 2 && fd < 3+sockets && !isSocket, fd >= 3+sockets:
			t.Errorf("descriptor %d is %s", fd, target)
		}
	}
	for _, fd := range s.Nonblocking {
		if fd >= 3 {
			t.Errorf("descriptor %d is non-blocking", fd)
		}
	}
}

func TestNoDescriptorLeaksIntoLaterGenerations(t *testing.T) {
	t.Parallel()
	address := testkit.FreeAddress(t)
	m := testkit.Run(t, []string{"-l", address, "-l", "more=" + testkit.FreeAddress(t), "--workers", "2"}, testkit.WorkerCommand("graceful"))
	m.WaitServing(1)
	for range 3 {
		m.Upgrade()
	}
	checkDescriptors(t, testkit.AskSelf(t, "tcp", address), 2)
	m.Stop()
}

// What the master itself was started with is not the worker's business.
func TestInheritedDescriptorsStayOut(t *testing.T) {
	t.Parallel()
	address := testkit.FreeAddress(t)
	_, stray := testkit.Pipe(t)
	args := append([]string{"run", "-l", address, "--"}, testkit.WorkerCommand("graceful")...)
	m := testkit.Launch{Args: args, Files: []*os.File{stray, stray, stray}}.Start(t)
	m.WaitServing(1)
	checkDescriptors(t, testkit.AskSelf(t, "tcp", address), 1)
	m.Upgrade()
	checkDescriptors(t, testkit.AskSelf(t, "tcp", address), 1)
	m.Stop()
}

func TestArgumentsAreFilledIn(t *testing.T) {
	t.Parallel()
	web := testkit.FreeAddress(t)
	command := append(testkit.WorkerCommand("graceful"), "delay=0s")
	line := `for a; do echo "[$a]"; done >&2; shift 8; exec "$@"`
	args := append([]string{"/bin/sh", "-c", line, "sh", "{fd}", "{fd:web}", "{addr:web}", "{host:web}", "{port:web}",
		"{generation}", "{{fd:web}", `{print} {"a":1} {{.X}}`}, command...)
	m := testkit.Run(t, []string{"-l", "web=" + web}, args)
	m.WaitServing(1)
	m.WaitLog(0, "the last argument", func(e testkit.Entry) bool { return strings.HasPrefix(e.Raw, "[delay") })
	host, port, _ := net.SplitHostPort(web)
	want := []string{"[3]", "[3]", "[" + web + "]", "[" + host + "]", "[" + port + "]", "[1]", "[{fd:web}]", `[{print} {"a":1} {{.X}}]`}
	var got []string
	m.Mu.Lock()
	for _, e := range m.Entries {
		if strings.HasPrefix(e.Raw, "[") && len(got) < len(want) {
			got = append(got, e.Raw)
		}
	}
	m.Mu.Unlock()
	if !slices.Equal(got, want) {
		t.Errorf("arguments %q, want %q", got, want)
	}
	m.Stop()
}

func TestUserGroupUmaskDirectory(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root may become somebody else")
	}
	t.Parallel()
	address := testkit.FreeAddress(t)
	copied := testkit.PublicCopy(t)
	m := testkit.Run(t, []string{"-l", address, "--user", "nobody", "--umask", "027", "--chdir", "/"},
		append([]string{copied}, testkit.WorkerCommand("graceful")[1:]...))
	m.WaitServing(1)
	s := testkit.AskSelf(t, "tcp", address)
	if s.UID != 65534 || s.GID == 0 || slices.Contains(s.Groups, 0) || s.Umask != "0027" || s.Dir != "/" || s.Variable("USER") != "nobody" {
		t.Errorf("uid %d, gid %d, groups %v, umask %s, directory %s, USER=%s", s.UID, s.GID, s.Groups, s.Umask, s.Dir, s.Variable("USER"))
	}
	m.Upgrade()
	testkit.AnsweredBy(t, address, 2)
	m.Stop()
}

func TestUnixPath(t *testing.T) {
	t.Run("mode", func(t *testing.T) {
		t.Parallel()
		path := filepath.Join(t.TempDir(), "s")
		m := testkit.Run(t, []string{"-l", "unix://" + path + "?mode=0660"}, testkit.WorkerCommand("graceful"))
		m.WaitServing(1)
		for generation := 1; generation <= 2; generation++ {
			info, err := os.Stat(path)
			if err != nil || info.Mode().Perm() != 0o660 {
				t.Errorf("generation %d: %v, %v", generation, info, err)
			}
			if generation == 1 {
				m.Upgrade()
			}
		}
		m.Stop()
		if files, _ := os.ReadDir(filepath.Dir(path)); len(files) > 1 {
			t.Errorf("left behind: %v", files)
		}
	})
	t.Run("stale file is replaced", func(t *testing.T) {
		t.Parallel()
		path := filepath.Join(t.TempDir(), "s")
		testkit.Listening(t, "unix", path).Close()
		m := testkit.Run(t, []string{"-l", "unix://" + path}, testkit.WorkerCommand("graceful"))
		m.WaitServing(1)
		testkit.Answers(t, "unix", path)
		m.Stop()
	})
	t.Run("live one is in use", func(t *testing.T) {
		t.Parallel()
		path := filepath.Join(t.TempDir(), "s")
		listener, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer listener.Close()
		testkit.Run(t, []string{"-l", "unix://" + path}, testkit.WorkerCommand("graceful")).ExitsWith(1)
		if _, err := net.Dial("unix", path); err != nil {
			t.Errorf("the live socket was harmed: %v", err)
		}
	})
	t.Run("what is no socket is left alone", func(t *testing.T) {
		t.Parallel()
		path := filepath.Join(t.TempDir(), "s")
		if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
			t.Fatal(err)
		}
		testkit.Run(t, []string{"-l", "unix://" + path}, testkit.WorkerCommand("graceful")).ExitsWith(1)
		if content, err := os.ReadFile(path); string(content) != "precious" {
			t.Errorf("the file was harmed: %q, %v", content, err)
		}
	})
	t.Run("longest possible", func(t *testing.T) {
		t.Parallel()
		path := longestPath(t)
		m := testkit.Run(t, []string{"-l", "unix://" + path}, testkit.WorkerCommand("graceful"))
		m.WaitServing(1)
		m.Upgrade()
		if got := testkit.GenerationAt("unix", path); got != 2 {
			t.Errorf("generation %d answers, want 2", got)
		}
		m.Stop()
	})
}

// longestPath has 107 bytes, the most that a socket's address holds with its
// end.
func longestPath(t *testing.T) string {
	t.Helper()
	directory, err := os.MkdirTemp("/tmp", "m")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(directory) })
	return directory + "/" + strings.Repeat("s", 107-len(directory)-1)
}

// A server that removes the path when it leaves would take the new
// generation's name away.
func TestUnixPathIsPutBack(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s")
	m := testkit.Run(t, []string{"-l", "unix://" + path, "--env", "E2E_UNLINK=" + path}, testkit.WorkerCommand("unlinks"))
	m.WaitServing(1)
	for generation := 2; generation <= 4; generation++ {
		m.Upgrade()
		m.WaitState(generation-1, "gone")
		testkit.Until(t, "the path leads to the new generation", func() error {
			if got := testkit.GenerationAt("unix", path); got != generation {
				return fmt.Errorf("generation %d answers, want %d", got, generation)
			}
			return nil
		})
	}
	m.Stop()
}

func TestUDPIsShared(t *testing.T) {
	t.Parallel()
	address := testkit.FreeAddress(t)
	m := testkit.Run(t, []string{"-l", "udp://" + address, "--ready", "alive=200ms"}, testkit.WorkerCommand("udp"))
	m.WaitServing(1)
	conn, err := net.Dial("udp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	echo := func(want string) {
		t.Helper()
		testkit.Until(t, "echo by generation "+want, func() error {
			conn.SetDeadline(time.Now().Add(time.Second))
			if _, err := conn.Write([]byte("hello")); err != nil {
				return err
			}
			buffer := make([]byte, 100)
			n, err := conn.Read(buffer)
			if err == nil && string(buffer[:n]) != want+" hello" {
				err = fmt.Errorf("got %q", buffer[:n])
			}
			return err
		})
	}
	echo("1")
	m.Upgrade()
	m.WaitState(1, "gone")
	echo("2")
	m.Stop()
}

func TestInheritedSocket(t *testing.T) {
	t.Parallel()
	address := testkit.FreeAddress(t)
	socket := testkit.Listening(t, "tcp", address)
	args := append([]string{"run", "-l", "web=fd://3", "--"}, testkit.WorkerCommand("graceful")...)
	m := testkit.Launch{Args: args, Files: []*os.File{socket}}.Start(t)
	m.WaitServing(1)
	clients := testkit.Traffic(t, load.Config{Address: address})
	for range testkit.Times(5, 2, 50) {
		testkit.Flowing(t, clients)
		m.Upgrade()
	}
	testkit.Lossless(t, clients)
	m.Stop()
	// It was never shut down: whoever passed it can go on with it.
	if accepting, err := unix.GetsockoptInt(int(socket.Fd()), unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err != nil || accepting != 1 {
		t.Errorf("the socket that came from outside does not listen any more (%v)", err)
	}
}

func TestSystemdSocketsByName(t *testing.T) {
	t.Parallel()
	web, admin := testkit.FreeAddress(t), testkit.FreeAddress(t)
	script := `LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=web:admin exec "$@"`
	args := append([]string{"run", "-l", "systemd://admin", "-l", "w=systemd://web", "--"}, testkit.WorkerCommand("graceful")...)
	m := testkit.Launch{
		Wrap: []string{"/bin/sh", "-c", script, "sh"}, Args: args,
		Files: []*os.File{testkit.Listening(t, "tcp", web), testkit.Listening(t, "tcp", admin)},
	}.Start(t)
	m.WaitServing(1)
	if names := testkit.AskSelf(t, "tcp", web).Variable("LISTEN_FDNAMES"); names != "admin:w" {
		t.Errorf("names %q", names)
	}
	m.Upgrade()
	testkit.AnsweredBy(t, web, 2)
	testkit.AnsweredBy(t, admin, 2)
	m.Stop()
}

func TestIPv6AndItsOptions(t *testing.T) {
	t.Parallel()
	_, port, _ := net.SplitHostPort(testkit.FreeAddress(t))
	if listener, err := net.Listen("tcp6", "[::1]:"+port); err != nil {
		t.Skip("no IPv6 here: ", err)
	} else {
		listener.Close()
	}
	both := testkit.Run(t, []string{"-l", "tcp://:" + port}, testkit.WorkerCommand("graceful"))
	both.WaitServing(1)
	for _, host := range []string{"127.0.0.1", "::1"} {
		testkit.AnsweredBy(t, net.JoinHostPort(host, port), 1)
	}
	both.Upgrade()
	for _, host := range []string{"127.0.0.1", "::1"} {
		testkit.AnsweredBy(t, net.JoinHostPort(host, port), 2)
	}
	both.Stop()
	six := testkit.Run(t, []string{"-l", "six=tcp://[::]:" + port + "?v6only=1", "-l", "four=tcp4://:" + port}, testkit.WorkerCommand("graceful"))
	six.WaitServing(1)
	for _, host := range []string{"127.0.0.1", "::1"} {
		testkit.AnsweredBy(t, net.JoinHostPort(host, port), 1)
	}
	six.Stop()
	only := testkit.Run(t, []string{"-l", "tcp6://[::]:" + port + "?v6only=1"}, testkit.WorkerCommand("graceful"))
	only.WaitServing(1)
	if testkit.GenerationAt("tcp", net.JoinHostPort("127.0.0.1", port)) != 0 {
		t.Error("a v6only socket answers IPv4")
	}
	only.Stop()
}

// A worker that calls listen(2) again makes the queue as short as it likes;
// the master sets it back, or a burst would be dropped.
func TestBacklogIsSetBack(t *testing.T) {
	t.Parallel()
	address := testkit.FreeAddress(t)
	m := testkit.Run(t, []string{"-l", address + "?backlog=200"}, testkit.WorkerCommand("relisten"))
	pid := m.WaitServing(1).PID
	m.WaitServing(1)
	testkit.Freeze(t, pid)
	for i := range 100 {
		conn, err := net.DialTimeout("tcp", address, 500*time.Millisecond)
		if err != nil {
			t.Fatalf("connection %d did not fit into the queue: %v", i, err)
		}
		defer conn.Close()
	}
	if queue := testkit.Queued(t, address); queue < 100 {
		t.Errorf("%d connections are in the queue, want 100", queue)
	}
	syscall.Kill(pid, syscall.SIGCONT)
	m.Stop()
}

// A stranger in the group would shift every index. The upgrade is refused, and
// the log names him.
func TestForeignListenerInTheGroup(t *testing.T) {
	t.Parallel()
	address := testkit.FreeAddress(t)
	m := testkit.Run(t, []string{"-l", address}, testkit.WorkerCommand("graceful"))
	m.WaitServing(1)
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) })
	}}
	stranger, err := config.Listen(t.Context(), "tcp", address)
	if err != nil {
		return // kept out altogether: better still
	}
	defer stranger.Close()
	clients := testkit.Traffic(t, load.Config{Address: address, Clients: 4})
	testkit.Flowing(t, clients)
	why := m.UpgradeFails()
	if !strings.Contains(why.Reason, strconv.Itoa(os.Getpid())) {
		t.Errorf("the reason does not name process %d: %s", os.Getpid(), why.Reason)
	}
	testkit.Flowing(t, clients)
	stranger.Close()
	m.Upgrade()
	testkit.Flowing(t, clients)
	testkit.Lossless(t, clients)
	m.Stop()
}

// The queue of the old generation is served although its worker was stopped
// while it filled.
func TestQueueOfTheOldGenerationIsServed(t *testing.T) {
	t.Parallel()
	address := testkit.FreeAddress(t)
	m := testkit.Run(t, []string{"-l", address}, testkit.WorkerCommand("plain"))
	pid := m.WaitServing(1).PID
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	queue := testkit.SendTo(t, address, 30)
	m.Upgrade()
	testkit.AnsweredBy(t, address, 2)
	if n := m.Logged(testkit.Reaches(1, "draining")); n != 0 {
		t.Error("the drain signal was sent while the queue was full")
	}
	syscall.Kill(pid, syscall.SIGCONT)
	for i, request := range queue {
		if err := request.Finish(); err != nil {
			t.Errorf("queued request %d: %v", i, err)
		}
	}
	m.WaitState(1, "gone")
	m.Stop()
}

// A worker that never comes back to its queue holds nothing up for ever.
func TestDeadlockedWorkerIsGivenUp(t *testing.T) {
	t.Parallel()
	address := testkit.FreeAddress(t)
	m := testkit.Run(t, []string{"-l", address, "--drain-timeout", "1s", "--kill-grace", "300ms"}, testkit.WorkerCommand("graceful"))
	pid := m.WaitServing(1).PID
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	m.Upgrade()
	m.WaitState(1, "gone")
	testkit.Gone(t, pid)
	testkit.AnsweredBy(t, address, 2)
	m.Stop()
}

// An idle kept connection is not cut in the middle, and holds nothing up.
func TestIdleKeptConnectionsOfAPlainServer(t *testing.T) {
	t.Parallel()
	address := testkit.FreeAddress(t)
	m := testkit.Run(t, []string{"-l", address}, testkit.WorkerCommand("plain"))
	m.WaitServing(1)
	clients := testkit.Traffic(t, load.Config{Address: address, Mode: load.KeepAlive, Pause: 3 * time.Second, Clients: 8})
	testkit.Until(t, "each has asked once", func() error {
		now := clients.Snapshot()
		return testkit.AtLeast(now.Requests(), 8)
	})
	m.Upgrade()
	m.WaitState(1, "gone")
	testkit.Until(t, "the new generation answers them", func() error {
		return testkit.AtLeast(clients.Snapshot().Generations["2"], 8)
	})
	testkit.Lossless(t, clients)
	m.Stop()
}
