//go:build linux

package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/moult/moult/supervisor/load"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Where the system refuses a part of what interception needs, as profiles of
// containers do.

const withoutPrefix = "without:"

// without is a command that executes the rest of its arguments, which find one
// system call refused, as do all that they start.
func without(call string, errno syscall.Errno) []string {
	return []string{executable(), fmt.Sprintf("%s%s=%s", withoutPrefix, call, unix.ErrnoName(errno))}
}

// The test binary plays this one as well, before anything else of it runs.
func init() {
	if len(os.Args) < 3 {
		return
	}
	if what, asked := strings.CutPrefix(os.Args[1], withoutPrefix); asked {
		call, errno, _ := strings.Cut(what, "=")
		refuseCall(call, errno)
		fail("%v", syscall.Exec(os.Args[2], os.Args[2:], os.Environ()))
	}
}

// refuseCall installs a filter on this thread, which is the one that executes.
func refuseCall(call, errno string) {
	numbers := map[string]uint32{"pidfd_getfd": unix.SYS_PIDFD_GETFD, "seccomp": unix.SYS_SECCOMP}
	errnos := map[string]syscall.Errno{"EPERM": unix.EPERM, "ENOSYS": unix.ENOSYS}
	program, err := bpf.Assemble([]bpf.Instruction{
		bpf.LoadAbsolute{Off: 0, Size: 4}, // the number, in struct seccomp_data of linux/seccomp.h
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: numbers[call], SkipFalse: 1},
		bpf.RetConstant{Val: unix.SECCOMP_RET_ERRNO | uint32(errnos[errno])},
		bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW},
	})
	if err != nil || numbers[call] == 0 || errnos[errno] == 0 {
		fail("cannot refuse %s with %s: %v", call, errno, err)
	}
	runtime.LockOSThread()
	if os.Geteuid() != 0 {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			fail("no_new_privs: %v", err)
		}
	}
	filter := make([]unix.SockFilter, len(program))
	for i, in := range program {
		filter[i] = unix.SockFilter{Code: in.Op, Jt: in.Jt, Jf: in.Jf, K: in.K}
	}
	whole := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	_, _, failed := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&whole)))
	runtime.KeepAlive(filter)
	if failed != 0 {
		fail("seccomp: %v", failed)
	}
}

// runWithoutDuplicates is run, where nobody may have a duplicate of another
// process's descriptor.
func runWithoutDuplicates(t testing.TB, flags, command []string) *master {
	t.Helper()
	args := append(append([]string{"run"}, flags...), "--")
	return launch{wrap: without("pidfd_getfd", unix.EPERM), args: append(args, command...)}.start(t)
}

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
				requireIPv6(t)
			}
			a := freeAddress(t)
			places := strings.NewReplacer("{a}", a, "{p}", portOf(a), "{b}", freeAddress(t))
			m := runWithoutDuplicates(t, nil, worker("binds", strings.Fields(places.Replace(test.steps))...))
			m.waitServing(1)
			var ask []string
			for _, address := range test.ask {
				ask = append(ask, places.Replace(address))
				answers(t, "tcp", places.Replace(address))
			}
			m.upgradeUnderLoadOf(times(5, 2, 20), ask...)
			m.stop()
		})
	}
}

// The port that the kernel chose for the first generation is everybody's.
func TestPortZeroWithoutDuplicates(t *testing.T) {
	t.Parallel()
	requireIPv6(t)
	m := runWithoutDuplicates(t, nil, worker("binds", "tcp=127.0.0.1:0", "tcp=127.0.0.1:0", "tcp=[::]:0", "end=graceful"))
	m.waitServing(1)
	first := m.boundBy(1, 3)
	m.upgradeUnderLoadOf(times(5, 2, 20), first...)
	for generation := 2; generation <= m.generation(); generation++ {
		if got := m.boundBy(generation, 3); !slices.Equal(got, first) {
			t.Errorf("generation %d has bound %v, the first %v", generation, got, first)
		}
	}
	m.stop()
}

func TestCloseAndBindAgainWithoutDuplicates(t *testing.T) {
	t.Parallel()
	address := freeAddress(t)
	m := runWithoutDuplicates(t, nil, worker("binds", "tcp="+address, "end=graceful"))
	for generation := 1; generation <= 3; generation++ {
		m.waitServing(generation)
		for range 5 {
			if _, _, err := get("tcp", address, "/again"); err != nil {
				t.Fatal(err)
			}
			answeredBy(t, address, generation)
		}
		m.upgradeUnderLoadOf(1, address)
	}
	m.stop()
}

// The replacement gets the socket with the queue.
func TestCrashWithoutDuplicates(t *testing.T) {
	t.Parallel()
	address, door := freeAddress(t), newGate(t)
	p := newPlan(t, "binds tcp="+address)
	args := append([]string{"run", "--restart-delay", "10ms..50ms", "--"}, p.command()...)
	m := launch{wrap: without("pidfd_getfd", unix.EPERM), args: args}.start(t)
	pid := m.waitServing(1).PID
	p.set(t, "binds "+door.step()+" tcp="+address)
	for range times(3, 2, 20) {
		mark := m.mark()
		killProcess(pid)
		m.waitLog(mark, "the replacement waits", func(e entry) bool { return strings.HasPrefix(e.Raw, "waits ") })
		queue := sendTo(t, address, 20)
		door.pass(t)
		pid = m.waitLog(mark, "the replacement serves", func(e entry) bool { return !e.isPhase() && e.To == "serving" }).PID
		for i, request := range queue {
			if err := request.finish(); err != nil {
				t.Errorf("request %d that came while nobody lived: %v", i, err)
			}
		}
	}
	p.set(t, "binds tcp="+address)
	m.upgradeUnderLoadOf(times(3, 2, 20), address)
	m.stop()
}

func TestUnixPathWithoutDuplicates(t *testing.T) {
	for _, steps := range []string{"unix={s} end=graceful", "remove={s} unix={s}"} {
		t.Run(steps, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "s")
			m := runWithoutDuplicates(t, []string{"--intercept-unlink"}, unixWorker(steps)(t, path))
			m.waitServing(1)
			clients := traffic(t, load.Config{Network: "unix", Address: path, Clients: 8})
			for range times(5, 2, 20) {
				flowing(t, clients)
				m.upgrade()
			}
			m.waitState(m.generation()-1, "gone")
			flowing(t, clients)
			lossless(t, clients)
			m.stop()
			onlyTheSocket(t, path)
		})
	}
}

func TestDatagramsWithoutDuplicates(t *testing.T) {
	t.Parallel()
	address := freeAddress(t)
	m := runWithoutDuplicates(t, nil, worker("binds", "tcp="+address, "udp="+address))
	m.waitServing(1)
	clients := askByDatagrams(t, address, 16)
	for range times(5, 2, 20) {
		clients.flow(t)
		m.upgrade()
		m.waitState(m.generation()-1, "gone")
	}
	clients.flow(t)
	clients.stop()
	if lost := clients.lost.Load(); lost > 0 {
		t.Errorf("%d of %d were lost, the first: %v", lost, lost+clients.answered.Load(), *clients.first.Load())
	}
	m.stop()
}

// What a worker has set on its socket before it was bound is there afterwards,
// as is that it blocks or not, and closes on exec or not.
func TestOptionsWithoutDuplicates(t *testing.T) {
	for _, flags := range []int{0, unix.SOCK_NONBLOCK, unix.SOCK_CLOEXEC} {
		t.Run(fmt.Sprintf("flags %#x", flags), func(t *testing.T) {
			t.Parallel()
			requireIPv6(t)
			step := fmt.Sprintf("tuned=%d,[::1]:%s", flags, portOf(freeAddress(t)))
			want := optionsUnsupervised(t, worker("binds", step))
			m := runWithoutDuplicates(t, nil, worker("binds", step))
			for generation := 1; generation <= 2; generation++ {
				m.waitServing(generation)
				if got := m.said(generation, "options"); got != want {
					t.Errorf("generation %d has\n%s, without moult it has\n%s", generation, got, want)
				}
				if got := m.said(generation, "rebound"); got != "EINVAL" {
					t.Errorf("a second bind of the socket: %s, want EINVAL", got)
				}
				m.upgrade()
			}
			m.stop()
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
	address := freeAddress(t)
	for range 2 {
		m := runWithoutDuplicates(t, nil, worker("binds", "tcp="+address))
		m.waitServing(1)
		answeredBy(t, address, 1)
		m.stop()
	}
}

// A connection from a port that the worker has bound ends when the worker
// closes it.
func TestClientsWithoutDuplicates(t *testing.T) {
	for _, port := range []string{"0", portOf(freeAddress(t))} {
		t.Run(port, func(t *testing.T) {
			t.Parallel()
			peer, err := net.Listen("tcp4", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer peer.Close()
			m := runWithoutDuplicates(t, nil, worker("binds", "tcp="+freeAddress(t), "call="+port+","+peer.Addr().String()))
			conn, err := peer.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(5 * time.Second))
			if words, err := io.ReadAll(conn); string(words) != "hello" || err != nil {
				t.Errorf("got %q, %v", words, err)
			}
			m.waitServing(1)
			m.stop()
		})
	}
}

// Servers of every make work with the sockets that they are given.
func TestAnyServerWithoutDuplicates(t *testing.T) {
	takesLong(t)
	names := []string{
		"nginx, QUIT", "nginx with reuseport, QUIT", "Apache, TERM", "haproxy, TERM", "gunicorn", "python's http.server",
		"node without a signal handler", "Go without Shutdown", "java with a hook", "redis",
	}
	if soak() {
		names = nil
	}
	someServers(t, without("pidfd_getfd", unix.EPERM), names...)
}

// someServers upgrades those, or all.
func someServers(t *testing.T, wrap []string, names ...string) {
	common := newFixtures(t)
	slots := make(chan struct{}, 3)
	for _, s := range anyServers() {
		if names != nil && !slices.Contains(names, s.name) {
			continue
		}
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			slots <- struct{}{}
			defer func() { <-slots }()
			s.upgrades(t, newSite(t, common), times(5, 2, 20), wrap...)
		})
	}
}

// The capabilities that Docker leaves root are not enough to look into the
// processes of a user that the server becomes, once it has bound its address.
func TestAnyServerWithDockersCapabilities(t *testing.T) {
	takesLong(t)
	if os.Geteuid() != 0 {
		t.Skip("only root can be left with some capabilities")
	}
	const left = "+chown,+dac_override,+fowner,+fsetid,+kill,+setgid,+setuid,+setpcap,+net_bind_service,+net_raw,+sys_chroot,+mknod,+audit_write,+setfcap"
	wrap := append(without("pidfd_getfd", unix.EPERM), requireProgram(t, "setpriv"), "--bounding-set=-all,"+left, "--")
	someServers(t, wrap, "nginx, TERM", "nginx with reuseport, QUIT", "Apache, WINCH", "haproxy, USR1", "lighttpd, TERM", "Go with Shutdown", "redis")
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
				args := append([]string{command.name, "--"}, worker("binds", "tcp="+freeAddress(t))...)
				m := launch{wrap: without("seccomp", errno), args: args}.start(t)
				m.explains(command.code, "seccomp", "--listen")
				if n := m.logged(func(e entry) bool { return strings.HasPrefix(e.Raw, "bound ") }); n > 0 {
					t.Error("the worker was started")
				}
			})
		}
	}
}

// What was declared needs no filter.
func TestListenWhereSeccompIsRefused(t *testing.T) {
	t.Parallel()
	address := freeAddress(t)
	args := append([]string{"run", "-l", address, "--"}, worker("plain")...)
	m := launch{wrap: without("seccomp", unix.EPERM), args: args}.start(t)
	m.waitServing(1)
	m.upgradeUnderLoadOf(1, address)
	m.stop()
}

// The check under another moult knows as well that there cannot be two.
func TestCheckUnderInterception(t *testing.T) {
	t.Parallel()
	inner := append([]string{executable(), "check", "--"}, worker("binds", "tcp="+freeAddress(t))...)
	script := "\"$@\"; echo code=$? >&2; exec sleep 60"
	m := run(t, []string{"--ready", "alive=50ms"}, append([]string{"/bin/sh", "-c", script, "sh"}, inner...))
	line := m.waitLog(0, "the check's exit code", func(e entry) bool { return strings.HasPrefix(e.Raw, "code=") })
	if line.Raw != "code=2" {
		t.Errorf("%s, want 2", line.Raw)
	}
	if m.logged(func(e entry) bool { return strings.Contains(e.Raw, "already") && strings.Contains(e.Raw, "--listen") }) == 0 {
		t.Error("it is not said what is in the way")
	}
	m.waitServing(1)
	m.stop()
}

// That the sockets are others than the server's own is said beforehand.
func TestCheckWithoutDuplicates(t *testing.T) {
	t.Parallel()
	args := append([]string{"check", "--"}, worker("binds", "tcp="+freeAddress(t))...)
	var plan strings.Builder
	m := launch{wrap: without("pidfd_getfd", unix.EPERM), args: args}.startWith(t, &plan)
	m.exitsWith(0)
	if !strings.Contains(plan.String(), "pidfd_getfd") {
		t.Errorf("nothing is said about pidfd_getfd:\n%s", plan.String())
	}
}

// ordinary starts what follows as a user without privileges; whoever is one
// needs no help.
func ordinary(t *testing.T) []string {
	if os.Geteuid() != 0 {
		return nil
	}
	return []string{requireProgram(t, "setpriv"), "--reuid=65534", "--regid=65534", "--clear-groups", "--"}
}

// tracerless starts what follows as root without CAP_SYS_PTRACE, as containers
// do.
func tracerless(t *testing.T) []string {
	if os.Geteuid() != 0 {
		t.Skip("only root may keep the other capabilities")
	}
	return []string{requireProgram(t, "setpriv"), "--bounding-set=-sys_ptrace", "--"}
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
		{"from a user", ordinary, "", "hide tcp={a}"},
		{"behind another user", tracerless, "", "drop tcp={a}"},
		{"behind the user that moult gave it", tracerless, "65534", "tcp={a}"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			wrap, address, exe := test.wrap(t), freeAddress(t), publicCopy(t)
			steps := strings.Fields("binds " + strings.ReplaceAll(test.bind, "{a}", address))
			args := []string{"run", "--", exe, workerPrefix + steps[0]}
			if test.user != "" {
				args = slices.Insert(args, 1, "--user", test.user)
			}
			args = append(args, steps[1:]...)
			m := launch{wrap: wrap, exe: exe, args: args, dir: "/"}.start(t)
			m.explains(1, "cannot look into", "cap_sys_ptrace", "--listen")
			refused(t, address)
		})
	}
}

// The next generation hides; the one that serves does not notice.
func TestUpgradeToAWorkerThatHides(t *testing.T) {
	t.Parallel()
	wrap, address, exe := ordinary(t), freeAddress(t), publicCopy(t)
	plan := filepath.Join(filepath.Dir(exe), "plan")
	say := func(steps string) {
		t.Helper()
		if err := os.WriteFile(plan, []byte("binds "+steps+"tcp="+address), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	say("")
	m := launch{wrap: wrap, exe: exe, args: []string{"run", "--", exe, workerPrefix + "plan", plan}, dir: "/"}.start(t)
	m.waitServing(1)
	clients := traffic(t, load.Config{Address: address})
	flowing(t, clients)
	say("hide ")
	mark := m.mark()
	m.upgradeFails()
	m.waitLog(mark, "why", mentions("cannot look into"))
	flowing(t, clients)
	say("")
	m.upgrade()
	flowing(t, clients)
	lossless(t, clients)
	m.stop()
}

// Root without CAP_SYS_PTRACE sees its own processes; those of a user that the
// server becomes after its bind are hidden from it.
func TestServerThatDropsPrivilegesWithoutTracer(t *testing.T) {
	for _, steps := range []string{"tcp={a}", "tcp={a} drop", "tcp={a} drop end=graceful", "tcp={a} fork=2 inherit=0 drop"} {
		t.Run(steps, func(t *testing.T) {
			t.Parallel()
			wrap, address, exe := append(tracerless(t), without("pidfd_getfd", unix.EPERM)...), freeAddress(t), publicCopy(t)
			wrap[len(wrap)-2] = exe
			args := append([]string{"run", "--", exe, workerPrefix + "binds"}, strings.Fields(strings.ReplaceAll(steps, "{a}", address))...)
			m := launch{wrap: wrap, exe: exe, args: args, dir: "/"}.start(t)
			m.waitServing(1)
			m.upgradeUnderLoadOf(times(5, 2, 20), address)
			m.stop()
		})
	}
}
