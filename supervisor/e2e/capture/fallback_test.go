//go:build linux

package capture

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moult/moult/supervisor/e2e/testkit"
	"github.com/moult/moult/supervisor/load"
	"golang.org/x/sys/unix"
)

// Where the system refuses a part of what interception needs, as profiles of
// containers do.

// What servers do at their start works with sockets that the master makes in
// their place.
func TestInterceptionWithoutDuplicates(t *testing.T) {
	tests := []struct {
		name, steps string
		ask         []string
		ipv6        bool
	}{
		{"one address", "tcp={a}", []string{"{a}"}, false},
		{"that drains", "tcp={a} end=graceful", []string{"{a}"}, false},
		{"two addresses", "tcp={a} tcp={b}", []string{"{a}", "{b}"}, false},
		{"dual stack", "tcp=[::]:{p}", []string{"{a}", "[::1]:{p}"}, true},
		{"v6only and IPv4", "tcp6=[::]:{p} tcp4=0.0.0.0:{p}", []string{"{a}", "[::1]:{p}"}, true},
		{"several sockets on one address", "threads=3,{a} end=graceful", []string{"{a}"}, false},
		{"is it free?", "free={a} tcp={a}", []string{"{a}"}, false},
		{"short queue", "backlog=5,{a}", []string{"{a}"}, false},
		{"children", "fork=1 tcp={a} tcp={b} end=graceful", []string{"{a}", "{b}"}, false},
		{"several that are bound before one listens", "late=3,{a} end=graceful", []string{"{a}"}, false},
		{"that shuts down", "tcp={a} end=shut", []string{"{a}"}, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			if test.ipv6 {
				testkit.RequireIPv6(t)
			}
			a := testkit.FreeAddress(t)
			places := strings.NewReplacer("{a}", a, "{p}", testkit.PortOf(a), "{b}", testkit.FreeAddress(t))
			m := testkit.RunWithoutDuplicates(t, nil, testkit.WorkerCommand("binds", strings.Fields(places.Replace(test.steps))...))
			m.WaitServing(1)
			var ask []string
			for _, address := range test.ask {
				ask = append(ask, places.Replace(address))
				testkit.Answers(t, "tcp", places.Replace(address))
			}
			m.UpgradeUnderLoadOf(testkit.Times(5, 2, 20), ask...)
			m.Stop()
		})
	}
}

// The port that the kernel chose for the first generation is everybody's.
func TestPortZeroWithoutDuplicates(t *testing.T) {
	t.Parallel()
	testkit.RequireIPv6(t)
	m := testkit.RunWithoutDuplicates(t, nil, testkit.WorkerCommand("binds", "tcp=127.0.0.1:0", "tcp=127.0.0.1:0", "tcp=[::]:0", "end=graceful"))
	m.WaitServing(1)
	first := m.BoundBy(1, 3)
	m.UpgradeUnderLoadOf(testkit.Times(5, 2, 20), first...)
	for generation := 2; generation <= m.Generation(); generation++ {
		if got := m.BoundBy(generation, 3); !slices.Equal(got, first) {
			t.Errorf("generation %d has bound %v, the first %v", generation, got, first)
		}
	}
	m.Stop()
}

func TestCloseAndBindAgainWithoutDuplicates(t *testing.T) {
	t.Parallel()
	address := testkit.FreeAddress(t)
	m := testkit.RunWithoutDuplicates(t, nil, testkit.WorkerCommand("binds", "tcp="+address, "end=graceful"))
	for generation := 1; generation <= 3; generation++ {
		m.WaitServing(generation)
		for range 5 {
			if _, _, err := testkit.Get("tcp", address, "/again"); err != nil {
				t.Fatal(err)
			}
			testkit.AnsweredBy(t, address, generation)
		}
		m.UpgradeUnderLoadOf(1, address)
	}
	m.Stop()
}

// The replacement gets the socket with the queue.
func TestCrashWithoutDuplicates(t *testing.T) {
	t.Parallel()
	address, door := testkit.FreeAddress(t), testkit.NewGate(t)
	p := testkit.NewPlan(t, "binds tcp="+address)
	args := append([]string{"run", "--restart-delay", "10ms..50ms", "--"}, p.Command()...)
	m := testkit.Launch{Wrap: testkit.Without("pidfd_getfd", unix.EPERM), Args: args}.Start(t)
	pid := m.WaitServing(1).PID
	p.Set(t, "binds "+door.Step()+" tcp="+address)
	for range testkit.Times(3, 2, 20) {
		mark := m.Mark()
		testkit.KillProcess(pid)
		m.WaitLog(mark, "the replacement waits", func(e testkit.Entry) bool { return strings.HasPrefix(e.Raw, "waits ") })
		queue := testkit.SendTo(t, address, 20)
		door.Pass(t)
		pid = m.WaitLog(mark, "the replacement serves", func(e testkit.Entry) bool { return !e.IsPhase() && e.To == "serving" }).PID
		for i, request := range queue {
			if err := request.Finish(); err != nil {
				t.Errorf("request %d that came while nobody lived: %v", i, err)
			}
		}
	}
	p.Set(t, "binds tcp="+address)
	m.UpgradeUnderLoadOf(testkit.Times(3, 2, 20), address)
	m.Stop()
}

func TestUnixPathWithoutDuplicates(t *testing.T) {
	for _, steps := range []string{"unix={s} end=graceful", "remove={s} unix={s}"} {
		t.Run(steps, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "s")
			m := testkit.RunWithoutDuplicates(t, []string{"--intercept-unlink"}, unixWorker(steps)(t, path))
			m.WaitServing(1)
			clients := testkit.Traffic(t, load.Config{Network: "unix", Address: path, Clients: 8})
			for range testkit.Times(5, 2, 20) {
				testkit.Flowing(t, clients)
				m.Upgrade()
			}
			m.WaitState(m.Generation()-1, "gone")
			testkit.Flowing(t, clients)
			testkit.Lossless(t, clients)
			m.Stop()
			onlyTheSocket(t, path)
		})
	}
}

func TestDatagramsWithoutDuplicates(t *testing.T) {
	t.Parallel()
	address := testkit.FreeAddress(t)
	m := testkit.RunWithoutDuplicates(t, nil, testkit.WorkerCommand("binds", "tcp="+address, "udp="+address))
	m.WaitServing(1)
	clients := testkit.AskByDatagrams(t, address, 16)
	for range testkit.Times(5, 2, 20) {
		clients.Flow(t)
		m.Upgrade()
		m.WaitState(m.Generation()-1, "gone")
	}
	clients.Flow(t)
	clients.Stop()
	if lost := clients.Lost.Load(); lost > 0 {
		t.Errorf("%d of %d were lost, the first: %v", lost, lost+clients.Answered.Load(), *clients.First.Load())
	}
	m.Stop()
}

// What a worker has set on its socket before it was bound is there afterwards,
// as is that it blocks or not, and closes on exec or not.
func TestOptionsWithoutDuplicates(t *testing.T) {
	for _, flags := range []int{0, unix.SOCK_NONBLOCK, unix.SOCK_CLOEXEC} {
		t.Run(fmt.Sprintf("flags %#x", flags), func(t *testing.T) {
			t.Parallel()
			testkit.RequireIPv6(t)
			step := fmt.Sprintf("tuned=%d,[::1]:%s", flags, testkit.PortOf(testkit.FreeAddress(t)))
			want := optionsUnsupervised(t, testkit.WorkerCommand("binds", step))
			m := testkit.RunWithoutDuplicates(t, nil, testkit.WorkerCommand("binds", step))
			for generation := 1; generation <= 2; generation++ {
				m.WaitServing(generation)
				if got := m.Said(generation, "options"); got != want {
					t.Errorf("generation %d has\n%s, without moult it has\n%s", generation, got, want)
				}
				if got := m.Said(generation, "rebound"); got != "EINVAL" {
					t.Errorf("a second bind of the socket: %s, want EINVAL", got)
				}
				m.Upgrade()
			}
			m.Stop()
		})
	}
}

// optionsUnsupervised starts the worker without moult.
func optionsUnsupervised(t *testing.T, command []string) string {
	t.Helper()
	cmd := exec.Command(command[0], command[1:]...)
	stderr, err := cmd.StderrPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	line, err := bufio.NewReader(stderr).ReadString('\n')
	options, found := strings.CutPrefix(strings.TrimSpace(line), "options")
	if err != nil || !found {
		t.Fatalf("it says %q, %v", line, err)
	}
	return strings.TrimSpace(options)
}

// The port is free for the next master although connections that the server
// has closed are still remembered there.
func TestSecondMasterWithoutDuplicates(t *testing.T) {
	t.Parallel()
	address := testkit.FreeAddress(t)
	for range 2 {
		m := testkit.RunWithoutDuplicates(t, nil, testkit.WorkerCommand("binds", "tcp="+address))
		m.WaitServing(1)
		testkit.AnsweredBy(t, address, 1)
		m.Stop()
	}
}

// A connection from a port that the worker has bound ends when the worker
// closes it.
func TestClientsWithoutDuplicates(t *testing.T) {
	for _, port := range []string{"0", testkit.PortOf(testkit.FreeAddress(t))} {
		t.Run(port, func(t *testing.T) {
			t.Parallel()
			peer, err := net.Listen("tcp4", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer peer.Close()
			m := testkit.RunWithoutDuplicates(t, nil, testkit.WorkerCommand("binds", "tcp="+testkit.FreeAddress(t), "call="+port+","+peer.Addr().String()))
			conn, err := peer.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(5 * time.Second))
			if words, err := io.ReadAll(conn); string(words) != "hello" || err != nil {
				t.Errorf("got %q, %v", words, err)
			}
			m.WaitServing(1)
			m.Stop()
		})
	}
}

// A profile that forbids seccomp(2), or a kernel without it: the start fails
// before anything is started, and so does the check, which says the same.
func TestSeccompIsRefused(t *testing.T) {
	for _, errno := range []syscall.Errno{unix.EPERM, unix.ENOSYS} {
		for _, command := range []struct {
			name string
			code int
		}{{"run", 1}, {"check", 2}} {
			t.Run(command.name+" "+unix.ErrnoName(errno), func(t *testing.T) {
				t.Parallel()
				args := append([]string{command.name, "--"}, testkit.WorkerCommand("binds", "tcp="+testkit.FreeAddress(t))...)
				m := testkit.Launch{Wrap: testkit.Without("seccomp", errno), Args: args}.Start(t)
				m.Explains(command.code, "seccomp", "--listen")
				if n := m.Logged(func(e testkit.Entry) bool { return strings.HasPrefix(e.Raw, "bound ") }); n > 0 {
					t.Error("the worker was started")
				}
			})
		}
	}
}

// What was declared needs no filter.
func TestListenWhereSeccompIsRefused(t *testing.T) {
	t.Parallel()
	address := testkit.FreeAddress(t)
	args := append([]string{"run", "-l", address, "--"}, testkit.WorkerCommand("plain")...)
	m := testkit.Launch{Wrap: testkit.Without("seccomp", unix.EPERM), Args: args}.Start(t)
	m.WaitServing(1)
	m.UpgradeUnderLoadOf(1, address)
	m.Stop()
}

// The check under another moult knows as well that there cannot be two.
func TestCheckUnderInterception(t *testing.T) {
	t.Parallel()
	inner := append([]string{testkit.Executable(), "check", "--"}, testkit.WorkerCommand("binds", "tcp="+testkit.FreeAddress(t))...)
	script := "\"$@\"; echo code=$? >&2; exec sleep 60"
	m := testkit.Run(t, []string{"--ready", "alive=50ms"}, append([]string{"/bin/sh", "-c", script, "sh"}, inner...))
	line := m.WaitLog(0, "the check's exit code", func(e testkit.Entry) bool { return strings.HasPrefix(e.Raw, "code=") })
	if line.Raw != "code=2" {
		t.Errorf("%s, want 2", line.Raw)
	}
	if m.Logged(func(e testkit.Entry) bool {
		return strings.Contains(e.Raw, "already") && strings.Contains(e.Raw, "--listen")
	}) == 0 {
		t.Error("it is not said what is in the way")
	}
	m.WaitServing(1)
	m.Stop()
}

// That the sockets are others than the server's own is said beforehand.
func TestCheckWithoutDuplicates(t *testing.T) {
	t.Parallel()
	args := append([]string{"check", "--"}, testkit.WorkerCommand("binds", "tcp="+testkit.FreeAddress(t))...)
	var plan strings.Builder
	m := testkit.Launch{Wrap: testkit.Without("pidfd_getfd", unix.EPERM), Args: args}.StartWith(t, &plan)
	m.ExitsWith(0)
	if !strings.Contains(plan.String(), "pidfd_getfd") {
		t.Errorf("nothing is said about pidfd_getfd:\n%s", plan.String())
	}
}

// A worker that the master may not look into: its memory is closed to the master, which
// cannot even see the address that it asks for. Whoever has CAP_SYS_PTRACE can.
func TestWorkerThatHides(t *testing.T) {
	tests := []struct {
		name string
		wrap func(*testing.T) []string
		user string
		bind string
	}{
		{"from a user", testkit.Ordinary, "", "hide tcp={a}"},
		{"behind another user", testkit.Tracerless, "", "drop tcp={a}"},
		{"behind the user that moult gave it", testkit.Tracerless, "65534", "tcp={a}"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			wrap, address, exe := test.wrap(t), testkit.FreeAddress(t), testkit.PublicCopy(t)
			steps := strings.Fields("binds " + strings.ReplaceAll(test.bind, "{a}", address))
			args := []string{"run", "--", exe, testkit.WorkerPrefix + steps[0]}
			if test.user != "" {
				args = slices.Insert(args, 1, "--user", test.user)
			}
			args = append(args, steps[1:]...)
			m := testkit.Launch{Wrap: wrap, Exe: exe, Args: args, Dir: "/"}.Start(t)
			m.Explains(1, "cannot look into", "cap_sys_ptrace", "--listen")
			testkit.Refused(t, address)
		})
	}
}

// The next generation hides; the one that serves does not notice.
func TestUpgradeToAWorkerThatHides(t *testing.T) {
	t.Parallel()
	wrap, address, exe := testkit.Ordinary(t), testkit.FreeAddress(t), testkit.PublicCopy(t)
	plan := filepath.Join(filepath.Dir(exe), "plan")
	say := func(steps string) {
		t.Helper()
		if err := os.WriteFile(plan, []byte("binds "+steps+"tcp="+address), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	say("")
	m := testkit.Launch{Wrap: wrap, Exe: exe, Args: []string{"run", "--", exe, testkit.WorkerPrefix + "plan", plan}, Dir: "/"}.Start(t)
	m.WaitServing(1)
	clients := testkit.Traffic(t, load.Config{Address: address})
	testkit.Flowing(t, clients)
	say("hide ")
	mark := m.Mark()
	m.UpgradeFails()
	m.WaitLog(mark, "why", testkit.Mentions("cannot look into"))
	testkit.Flowing(t, clients)
	say("")
	m.Upgrade()
	testkit.Flowing(t, clients)
	testkit.Lossless(t, clients)
	m.Stop()
}

// Root without CAP_SYS_PTRACE sees its own processes; those of a user that the
// server becomes after its bind are hidden from it.
func TestServerThatDropsPrivilegesWithoutTracer(t *testing.T) {
	for _, steps := range []string{"tcp={a}", "tcp={a} drop", "tcp={a} drop end=graceful", "tcp={a} fork=2 inherit=0 drop"} {
		t.Run(steps, func(t *testing.T) {
			t.Parallel()
			wrap, address, exe := append(testkit.Tracerless(t), testkit.Without("pidfd_getfd", unix.EPERM)...), testkit.FreeAddress(t), testkit.PublicCopy(t)
			wrap[len(wrap)-2] = exe
			args := append([]string{"run", "--", exe, testkit.WorkerPrefix + "binds"}, strings.Fields(strings.ReplaceAll(steps, "{a}", address))...)
			m := testkit.Launch{Wrap: wrap, Exe: exe, Args: args, Dir: "/"}.Start(t)
			m.WaitServing(1)
			m.UpgradeUnderLoadOf(testkit.Times(5, 2, 20), address)
			m.Stop()
		})
	}
}
