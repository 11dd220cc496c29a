//go:build linux

package capture

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moult/moult/supervisor/e2e/testkit"
	"golang.org/x/sys/unix"
)

// Where the system refuses a part of what interception needs, as profiles of
// containers do.

// What a worker has set on its socket before it was bound is there afterwards,
// as is that it blocks or not, and closes on exec or not.
func TestOptionsWithoutDuplicates(t *testing.T) {
	t.Parallel()
	for _, flags := range []int{0, unix.SOCK_NONBLOCK, unix.SOCK_CLOEXEC} {
		t.Run(fmt.Sprintf("flags %#x", flags), func(t *testing.T) {
			t.Parallel()
			testkit.RequireIPv6(t)
			step := fmt.Sprintf("tuned=%d,[::1]:%s", flags, testkit.PortOf(testkit.FreeAddress(t)))
			want := optionsUnsupervised(t, testkit.Worker("binds", step))
			m := testkit.NoDuplicates().Capture(t, "binds "+step)
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
		})
	}
}

// optionsUnsupervised starts the worker without moult.
func optionsUnsupervised(t *testing.T, command []string) string {
	t.Helper()
	cmd := exec.Command(command[0], command[1:]...)
	stderr, err := cmd.StderrPipe()
	testkit.OK(t, err)
	testkit.OK(t, cmd.Start())
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
		m := testkit.NoDuplicates().Capture(t, "binds tcp="+address).Serving()
		testkit.AnsweredBy(t, address, 1)
		m.Stop()
	}
}

// A connection from a port that the worker has bound ends when the worker
// closes it.
func TestClientsWithoutDuplicates(t *testing.T) {
	t.Parallel()
	for _, port := range []string{"0", "{p}"} {
		t.Run(port, func(t *testing.T) {
			t.Parallel()
			peer, err := net.Listen("tcp4", "127.0.0.1:0")
			testkit.OK(t, err)
			defer peer.Close()
			m := testkit.NoDuplicates().Capture(t, "binds tcp={b} call="+port+","+peer.Addr().String())
			conn, err := peer.Accept()
			testkit.OK(t, err)
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(5 * time.Second))
			if words, err := io.ReadAll(conn); string(words) != "hello" || err != nil {
				t.Errorf("got %q, %v", words, err)
			}
			m.WaitServing(1)
		})
	}
}

// A profile that forbids seccomp(2), or a kernel without it: the start fails
// before anything is started, and so does the check, which says the same.
func TestSeccompIsRefused(t *testing.T) {
	t.Parallel()
	for _, errno := range []syscall.Errno{unix.EPERM, unix.ENOSYS} {
		for name, code := range map[string]int{"run": 1, "check": 2} {
			t.Run(name+" "+unix.ErrnoName(errno), func(t *testing.T) {
				t.Parallel()
				launch := testkit.Launch{Wrap: testkit.Without("seccomp", errno)}
				m := launch.Start(t, append([]string{name, "--"}, testkit.Worker("binds", "tcp={a}")...)...)
				m.Explains(code, "seccomp", "--listen")
				if n := m.Logged(testkit.Says("bound ")); n > 0 {
					t.Error("the worker was started")
				}
			})
		}
	}
}

// What was declared needs no filter.
func TestListenWhereSeccompIsRefused(t *testing.T) {
	t.Parallel()
	testkit.Launch{Wrap: testkit.Without("seccomp", unix.EPERM)}.Listen(t, "plain").Serving().UpgradeUnderLoad(1)
}

// That the sockets are others than the server's own is said beforehand.
func TestCheckWithoutDuplicates(t *testing.T) {
	t.Parallel()
	var said strings.Builder
	launch := testkit.NoDuplicates()
	launch.Stdout = &said
	launch.Start(t, append([]string{"check", "--"}, testkit.Worker("binds", "tcp={a}")...)...).ExitsWith(0)
	if !strings.Contains(said.String(), "pidfd_getfd") {
		t.Errorf("nothing is said about pidfd_getfd:\n%s", said.String())
	}
}

// A worker that the master may not look into: its memory is closed to the master, which
// cannot even see the address that it asks for. Whoever has CAP_SYS_PTRACE can.
func TestWorkerThatHides(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name  string
		wrap  func(testing.TB) []string
		steps string
		flags []string
	}{
		{"from a user", testkit.Ordinary, "hide tcp={a}", nil},
		{"behind another user", testkit.Tracerless, "drop tcp={a}", nil},
		{"behind the user that moult gave it", testkit.Tracerless, "tcp={a}", []string{"--user", "65534"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			m := testkit.Launch{Wrap: test.wrap(t), Public: true}.Capture(t, "binds "+test.steps, test.flags...)
			m.Explains(1, "cannot look into", "cap_sys_ptrace", "--listen")
			testkit.Refused(t, m.Address)
		})
	}
	// The next generation hides; the one that serves does not notice.
	t.Run("of an upgrade", func(t *testing.T) {
		t.Parallel()
		m := testkit.Launch{Wrap: testkit.Ordinary(t), Public: true}.Capture(t, "binds tcp={a}").Serving()
		upgradeRefused(t, m, "binds hide tcp={a}", "cannot look into")
	})
}

// Root without CAP_SYS_PTRACE sees its own processes; those of a user that the
// server becomes after its bind are hidden from it.
func TestServerThatDropsPrivilegesWithoutTracer(t *testing.T) {
	t.Parallel()
	for _, steps := range []string{"tcp={a}", "tcp={a} drop", "tcp={a} drop end=graceful", "tcp={a} fork=2 inherit=0 drop"} {
		t.Run(steps, func(t *testing.T) {
			t.Parallel()
			wrap := slices.Concat(testkit.Tracerless(t), testkit.Without("pidfd_getfd", unix.EPERM))
			testkit.Launch{Wrap: wrap, Public: true}.Capture(t, "binds "+steps).Serving().UpgradeUnderLoad(testkit.Times(3, 2, 20))
		})
	}
}
