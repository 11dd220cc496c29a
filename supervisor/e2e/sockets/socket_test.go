//go:build linux

package sockets

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/moult/moult/supervisor/cli/demo/load"
	"github.com/moult/moult/supervisor/e2e/testkit"
	"golang.org/x/sys/unix"
)

// What a worker finds, and what becomes of each kind of socket.

func TestWorkerFindsItsSocketsAndNothingElse(t *testing.T) {
	t.Parallel()
	stale := []string{
		"LISTEN_FDS=7", "LISTEN_PID=1", "LISTEN_FDNAMES=old", "LISTEN_PIDFDID=1", "SERVER_STARTER_PORT=80=3", "SERVER_STARTER_GENERATION=9",
		"EINHORN_MASTER_PID=1", "EINHORN_FD_COUNT=1", "EINHORN_FD_0=3", "EINHORN_FDS=3", "EINHORN_SOCK_PATH=/old", "NGINX=3;", "UNICORN_FD=3",
		"GUNICORN_FD=3", "GUNICORN_PID=1", "PUMA_INHERIT_0=3:tcp://x", "TABLEFLIP_HAS_PARENT_7DIU3=yes", "NOTIFY_SOCKET=/old", "WATCHDOG_USEC=1", "WATCHDOG_PID=1",
		"KEPT=as it is",
	}
	args := append([]string{"run", "-l", "web={a}", "-l", "admin={b}", "-l", "local=unix://{s}",
		"--env", "PORT={port:admin}", "--env", "LIST=1,2", "--"}, testkit.Worker("graceful")...)
	m := testkit.Launch{Env: stale}.Start(t, args...).Serving()
	s := m.Self()

	_, port, _ := net.SplitHostPort(m.Fill("{b}"))
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
		if value, found := s.Lookup(name); found {
			t.Errorf("the worker inherited %s=%s", name, value)
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
	for _, address := range []string{"{a}", "{b}", "{s}"} {
		testkit.Answers(t, m.Fill(address))
	}
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
	m := testkit.Listen(t, "graceful", "-l", "more={b}", "--workers", "2").Serving()
	for range 3 {
		m.Upgrade()
	}
	checkDescriptors(t, m.Self(), 2)
}

// What the master itself was started with is not the worker's business.
func TestInheritedDescriptorsStayOut(t *testing.T) {
	t.Parallel()
	_, stray := testkit.Pipe(t)
	m := testkit.Launch{Files: []*os.File{stray, stray, stray}}.Listen(t, "graceful").Serving()
	checkDescriptors(t, m.Self(), 1)
	m.Upgrade()
	checkDescriptors(t, m.Self(), 1)
}

func TestArgumentsAreFilledIn(t *testing.T) {
	t.Parallel()
	line := `for a; do echo "[$a]"; done >&2; shift 8; exec "$@"`
	command := append([]string{"/bin/sh", "-c", line, "sh", "{fd}", "{fd:web}", "{addr:web}", "{host:web}", "{port:web}",
		"{generation}", "{{fd:web}", `{print} {"a":1} {{.X}}`}, testkit.Worker("graceful", "delay=0s")...)
	m := testkit.Run(t, []string{"-l", "web={a}"}, command).Serving()
	m.WaitLog(0, "the last argument", testkit.Says("[delay"))
	host, port, _ := net.SplitHostPort(m.Address)
	want := []string{"[3]", "[3]", "[" + m.Address + "]", "[" + host + "]", "[" + port + "]", "[1]", "[{fd:web}]", `[{print} {"a":1} {{.X}}]`}
	var got []string
	for _, e := range m.Entries(0) {
		if strings.HasPrefix(e.Raw, "[") && len(got) < len(want) {
			got = append(got, e.Raw)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("arguments %q, want %q", got, want)
	}
}

func TestUserGroupUmaskDirectory(t *testing.T) {
	testkit.RequireRoot(t, "become somebody else")
	t.Parallel()
	m := testkit.Launch{Public: true}.Listen(t, "graceful", "--user", "nobody", "--umask", "027", "--chdir", "/").Serving()
	s := m.Self()
	if s.UID != 65534 || s.GID == 0 || slices.Contains(s.Groups, 0) || s.Umask != "0027" || s.Dir != "/" || s.Variable("USER") != "nobody" {
		t.Errorf("uid %d, gid %d, groups %v, umask %s, directory %s, USER=%s", s.UID, s.GID, s.Groups, s.Umask, s.Dir, s.Variable("USER"))
	}
	m.Upgrade()
	m.AnsweredBy(2)
}

// onPath starts a master on a path.
func onPath(t *testing.T, path, plan string, flags ...string) *testkit.Master {
	t.Helper()
	args := append(append([]string{"-l", "unix://" + path}, flags...), "--env", "E2E_UNLINK={s}")
	return testkit.Capture(t, plan, args...)
}

func TestUnixPath(t *testing.T) {
	t.Parallel()
	t.Run("mode", func(t *testing.T) {
		t.Parallel()
		m := onPath(t, "{s}?mode=0660", "graceful").Serving()
		path := m.Fill("{s}")
		for generation := 1; generation <= 2; generation++ {
			if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o660 {
				t.Errorf("generation %d: %v, %v", generation, info, err)
			}
			if generation == 1 {
				m.Upgrade()
			}
		}
		m.Stop()
		testkit.OnlyTheSocket(t, path)
	})
	t.Run("stale file is replaced", func(t *testing.T) {
		t.Parallel()
		path := filepath.Join(t.TempDir(), "s")
		testkit.Listening(t, "unix", path).Close()
		onPath(t, path, "graceful").Serving()
		testkit.Answers(t, path)
	})
	t.Run("live one is in use", func(t *testing.T) {
		t.Parallel()
		path := filepath.Join(t.TempDir(), "s")
		testkit.Listening(t, "unix", path)
		onPath(t, path, "graceful").ExitsWith(1)
		testkit.Dial(t, path) // it was not harmed
	})
	t.Run("what is no socket is left alone", func(t *testing.T) {
		t.Parallel()
		path := filepath.Join(t.TempDir(), "s")
		testkit.OK(t, os.WriteFile(path, []byte("precious"), 0o600))
		onPath(t, path, "graceful").ExitsWith(1)
		if content, err := os.ReadFile(path); string(content) != "precious" {
			t.Errorf("the file was harmed: %q, %v", content, err)
		}
	})
	t.Run("longest possible", func(t *testing.T) {
		t.Parallel()
		path := testkit.PublicDir(t) + "/"
		path += strings.Repeat("s", 107-len(path)) // the most that a socket's address holds with its end
		m := onPath(t, path, "graceful").Serving()
		m.Upgrade()
		testkit.AnsweredBy(t, path, 2)
	})
}

// A server that removes the path when it leaves would take the new
// generation's name away.
func TestUnixPathIsPutBack(t *testing.T) {
	t.Parallel()
	m := onPath(t, "{s}", "unlinks").Serving()
	for generation := 2; generation <= 4; generation++ {
		m.Upgrade()
		m.Retire()
		testkit.Until(t, "the path leads to the new generation", func() error {
			if got := testkit.GenerationAt(m.Fill("{s}")); got != generation {
				return fmt.Errorf("generation %d answers, want %d", got, generation)
			}
			return nil
		})
	}
}

func TestUDPIsShared(t *testing.T) {
	t.Parallel()
	m := testkit.Capture(t, "udp", "-l", "udp://{a}", "--ready", "alive=200ms").Serving()
	conn, err := net.Dial("udp", m.Fill("{a}"))
	testkit.OK(t, err)
	defer conn.Close()
	echo := func(want string) {
		t.Helper()
		testkit.Until(t, "echo by generation "+want, func() error {
			generation, err := testkit.Echoed(conn, "hello")
			if err == nil && generation != want {
				err = errors.New("by generation " + generation)
			}
			return err
		})
	}
	echo("1")
	m.Upgrade()
	m.Retire()
	echo("2")
}

func TestInheritedSocket(t *testing.T) {
	t.Parallel()
	address := testkit.FreeAddress(t)
	socket := testkit.Listening(t, "tcp", address)
	m := testkit.Launch{Files: []*os.File{socket}}.Capture(t, "graceful", "-l", "web=fd://3").Serving()
	clients := testkit.AskAt(t, address, 16)
	for range testkit.Times(5, 2, 50) {
		clients.Flow()
		m.Upgrade()
	}
	clients.Lossless()
	m.Stop()
	// It was never shut down: whoever passed it can go on with it.
	if accepting, err := unix.GetsockoptInt(int(socket.Fd()), unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err != nil || accepting != 1 {
		t.Errorf("the socket that came from outside does not listen any more (%v)", err)
	}
}

func TestSystemdSocketsByName(t *testing.T) {
	t.Parallel()
	web, admin := testkit.FreeAddress(t), testkit.FreeAddress(t)
	m := testkit.Launch{
		Wrap:  []string{"/bin/sh", "-c", `LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=web:admin exec "$@"`, "sh"},
		Files: []*os.File{testkit.Listening(t, "tcp", web), testkit.Listening(t, "tcp", admin)},
	}.Capture(t, "graceful", "-l", "systemd://admin", "-l", "w=systemd://web").Serving()
	if names := testkit.AskSelf(t, web).Variable("LISTEN_FDNAMES"); names != "admin:w" {
		t.Errorf("names %q", names)
	}
	m.Upgrade()
	testkit.AnsweredBy(t, web, 2)
	testkit.AnsweredBy(t, admin, 2)
}

func TestIPv6AndItsOptions(t *testing.T) {
	t.Parallel()
	testkit.RequireIPv6(t)
	for _, test := range []struct {
		flags     string
		four, six int // the generation that answers after an upgrade, 0: nobody
	}{
		{"-l tcp://:{p}", 2, 2},
		{"-l six=tcp://[::]:{p}?v6only=1 -l four=tcp4://:{p}", 2, 2},
		{"-l tcp6://[::]:{p}?v6only=1", 0, 2},
	} {
		t.Run(test.flags, func(t *testing.T) {
			t.Parallel()
			m := testkit.Capture(t, "graceful", strings.Fields(test.flags)...).Serving()
			if generation := testkit.GenerationAt(m.Fill("[::1]:{p}")); generation != 1 {
				t.Errorf("generation %d answers, want 1", generation)
			}
			m.Upgrade()
			testkit.AnsweredBy(t, m.Fill("{a}"), test.four)
			testkit.AnsweredBy(t, m.Fill("[::1]:{p}"), test.six)
		})
	}
}

// A worker that calls listen(2) again makes the queue as short as it likes;
// the master sets it back, or a burst would be dropped.
func TestBacklogIsSetBack(t *testing.T) {
	t.Parallel()
	m := testkit.Capture(t, "relisten", "-l", "{a}?backlog=200")
	pid := m.WaitServing(1).PID
	testkit.Freeze(t, pid)
	for range 100 {
		testkit.DialFor(t, 500*time.Millisecond, m.Address)
	}
	if queue := testkit.Queued(t, m.Address); queue < 100 {
		t.Errorf("%d connections are in the queue, want 100", queue)
	}
	testkit.Thaw(t, pid)
}

// The queue of the old generation is served although its worker was stopped
// while it filled.
func TestQueueOfTheOldGenerationIsServed(t *testing.T) {
	t.Parallel()
	m := testkit.Listen(t, "plain")
	pid := m.WaitServing(1).PID
	testkit.Freeze(t, pid)
	queue := testkit.Queue(t, m.Address, 30)
	m.Upgrade()
	m.AnsweredBy(2)
	if n := m.Logged(testkit.Reaches(1, "draining")); n != 0 {
		t.Error("the drain signal was sent while the queue was full")
	}
	testkit.Thaw(t, pid)
	testkit.Finish(t, "in the queue", queue...)
	m.Retire()
}

// A worker that never comes back to its queue holds nothing up for ever.
func TestDeadlockedWorkerIsGivenUp(t *testing.T) {
	t.Parallel()
	m := testkit.Listen(t, "graceful", "--drain-timeout", "1s", "--kill-grace", "300ms")
	pid := m.WaitServing(1).PID
	testkit.Freeze(t, pid)
	testkit.Dial(t, m.Address)
	m.Upgrade()
	m.Retire()
	testkit.Gone(t, pid)
	m.AnsweredBy(2)
}

// An idle kept connection is not cut in the middle, and holds nothing up. The
// clients are idle when the old worker is told to leave, 5 s after the upgrade.
func TestIdleKeptConnectionsOfAPlainServer(t *testing.T) {
	t.Parallel()
	m := testkit.Listen(t, "plain").Serving()
	clients := testkit.Ask(t, load.Config{Address: m.Address, Mode: load.KeepAlive, Pause: 4 * time.Second, Clients: 8})
	clients.Answer(8)
	m.Upgrade()
	m.Retire()
	testkit.Until(t, "the new generation answers them", func() error {
		return testkit.AtLeast(clients.Snapshot().Generations["2"], 8)
	})
	clients.Lossless()
}

// A stranger in the group would shift every index. The upgrade is refused, and
// the log names him.
func TestStrangerInTheGroup(t *testing.T) {
	t.Parallel()
	for name, start := range map[string]func(*testing.T) *testkit.Master{
		"declared": func(t *testing.T) *testkit.Master { return testkit.Listen(t, "graceful").Serving() },
		"intercepted": func(t *testing.T) *testkit.Master {
			m := testkit.Capture(t, "binds tcp={a} end=graceful").Serving()
			m.Upgrade() // a group from now on, whatever it was before
			m.Retire()
			testkit.Settled(t, m) // the one that has left is out of the group
			return m
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := start(t)
			stranger := testkit.Stranger(t, m.Address)
			if stranger == nil {
				return // kept out altogether: better still
			}
			clients := m.Ask(4)
			clients.Flow()
			if why := m.UpgradeFails(strconv.Itoa(os.Getpid())); name == "declared" && !strings.Contains(why.Reason, strconv.Itoa(os.Getpid())) {
				t.Errorf("the reason does not name process %d: %s", os.Getpid(), why.Reason)
			}
			clients.Flow()
			stranger.Close()
			m.Upgrade()
			clients.Flow()
			clients.Lossless()
		})
	}
}
