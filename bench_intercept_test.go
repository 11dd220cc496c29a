//go:build linux

package main

import (
	"bufio"
	"cmp"
	"fmt"
	"math"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/moult/moult/supervisor/load"
	"golang.org/x/sys/unix"
)

// What interception costs, measured from outside, as in bench_test.go.

func init() {
	workers["binds-many"] = func(m manners) { timeBinds(m.n) }
	workers["unlinks-many"] = func(m manners) { timeUnlinks(m.n) }
}

// startOwn starts the real moult over a worker that binds its own address.
func startOwn(b testing.TB, flags []string, command []string, env ...string) *master {
	b.Helper()
	args := append(append([]string{"run"}, flags...), "--")
	m := launch{exe: moultBinary(b), args: append(args, command...), env: env}.start(b)
	m.waitServing(1)
	return m
}

// startAlone starts a command with no master above it. What it writes
// to stdout goes there. end kills it with its descendants.
func startAlone(b testing.TB, stdout *os.File, command []string, env ...string) (pid int, end func()) {
	b.Helper()
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Env = append(append(os.Environ(), tokenVariable+"="+newToken(), "MOULT_GENERATION=1"), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	said := new(strings.Builder)
	cmd.Stderr, cmd.WaitDelay = said, patience
	if stdout != nil {
		cmd.Stdout = stdout
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	end = sync.OnceFunc(func() {
		for _, pid := range family(cmd.Process.Pid) {
			killProcess(pid)
		}
		cmd.Wait()
		if b.Failed() {
			b.Logf("%s alone said:\n%s", command[0], said)
		}
	})
	b.Cleanup(end)
	return cmd.Process.Pid, end
}

// family is a process with its descendants.
func family(pid int) []int {
	pids := []int{pid}
	for _, child := range children(pid) {
		pids = append(pids, family(child)...)
	}
	return pids
}

// contest is a server against itself: intercepted and alone.
type contest struct {
	name    string
	mode    load.Mode
	command func(testing.TB, *site) []string
	control bool // alone and alone: what the machine itself makes of it
}

// rival is one of the two servers of a contest.
type rival struct {
	address string
	pid     int     // its first process
	master  *master // nil where it is alone
	end     func()
}

// tally is what one rival did in some rounds.
type tally struct {
	requests  int
	took, cpu time.Duration
}

// quadruple is what came of four rounds that follow one another.
type quadruple struct{ alone, own tally }

func (t tally) rate() float64 { return float64(t.requests) / t.took.Seconds() }

func (t tally) cost() float64 { return t.cpu.Seconds() / float64(t.requests) }

func (t *tally) add(more tally) {
	t.requests += more.requests
	t.took += more.took
	t.cpu += more.cpu
}

// Throughput of a server that moult intercepts, relative to the same server
// started bare. Many short rounds take turns in the order A B B A, so that what
// else goes on in the machine falls upon both; both are started anew several
// times, since where a process happens to lie in memory weighs as much as what
// is measured. ratio is the median of all quadruples, with its 95 % confidence
// interval; cpu-ratio compares the processor time that the server's processes
// take for a request, and so suffers less from others: less is better there.
func BenchmarkInterceptedThroughput(b *testing.B) {
	for _, c := range []contest{
		{name: "go-keep-alive", mode: load.KeepAlive, command: goServerCommand("shutdown")},
		{name: "go-new-connections", command: goServerCommand("shutdown")},
		{name: "nginx-new-connections", command: nginxCommand("")},
		{name: "name-lookups", command: lookupCommand},
		{name: "control-go-new-connections", command: goServerCommand("shutdown"), control: true},
	} {
		b.Run(c.name, func(b *testing.B) {
			common := newFixtures(b)
			for b.Loop() {
				c.run(b, common)
			}
		})
	}
}

func lookupCommand(t testing.TB, s *site) []string {
	return []string{requireProgram(t, "python3"), testdata(t, "servers/lookup/server.py"), s.Host, s.Port}
}

func (c contest) run(b *testing.B, common *fixtures) {
	var all []quadruple
	woken := 0
	for range times(4, 2, 20) {
		alone, own := c.alone(b, newSite(b, common)), c.rival(b, newSite(b, common))
		before := own.switches()
		for i := range times(16, 3, 32) {
			all = append(all, c.quadruple(b, alone, own, i%2 == 0))
		}
		woken += own.switches() - before
		alone.end()
		own.end()
	}
	reportConfidence(b, "ratio", all, func(q quadruple) float64 { return q.own.rate() / q.alone.rate() })
	reportConfidence(b, "cpu-ratio", all, func(q quadruple) float64 { return q.own.cost() / q.alone.cost() })
	_, rate, _ := confidence(all, func(q quadruple) float64 { return q.alone.rate() })
	b.ReportMetric(rate, "requests/s")
	if !c.control {
		b.ReportMetric(float64(woken), "master-switches")
	}
}

func reportConfidence(b *testing.B, unit string, all []quadruple, of func(quadruple) float64) {
	low, middle, high := confidence(all, of)
	b.ReportMetric(middle, unit)
	b.ReportMetric(low, unit+"-low")
	b.ReportMetric(high, unit+"-high")
}

// confidence is the median with the order statistics between which it lies in
// 95 of 100 cases, whatever the distribution.
func confidence(all []quadruple, of func(quadruple) float64) (low, middle, high float64) {
	var figures []float64
	for _, q := range all {
		figures = append(figures, of(q))
	}
	slices.Sort(figures)
	n := len(figures)
	aside := int(math.Ceil(0.98 * math.Sqrt(float64(n))))
	return figures[max(0, n/2-aside)], figures[n/2], figures[min(n-1, n/2+aside)]
}

// quadruple lets each serve for two rounds.
func (c contest) quadruple(b testing.TB, alone, own rival, swap bool) (q quadruple) {
	for _, inner := range []bool{false, true, true, false} {
		if inner != swap {
			q.own.add(c.round(b, own))
		} else {
			q.alone.add(c.round(b, alone))
		}
	}
	return q
}

func (c contest) round(b testing.TB, r rival) tally {
	cpu, began := processorTime(b, r.pid), time.Now()
	clients := traffic(b, load.Config{Address: r.address, Path: "/small", Mode: c.mode, Answer: isSmall})
	<-time.After(150 * time.Millisecond)
	report := clients.Stop()
	took := time.Since(began)
	if report.Failures() != 0 || report.Requests() == 0 {
		b.Fatalf("%s: %v", c.name, report)
	}
	return tally{report.Requests(), took, processorTime(b, r.pid) - cpu}
}

// environment is the same for both. Go's default is MPTCP, which is slower:
// without it the ratio is that of moult alone, not of what moult refuses.
func (c contest) environment(s *site) []string {
	return append(s.environment(), "GODEBUG=multipathtcp=0")
}

func (c contest) rival(b testing.TB, s *site) rival {
	if c.control {
		return c.alone(b, s)
	}
	return c.own(b, s)
}

// own has been upgraded, so that the kernel steers.
func (c contest) own(b testing.TB, s *site) rival {
	m := startOwn(b, nil, c.command(b, s), c.environment(s)...)
	m.upgrade()
	m.waitState(1, "gone")
	settled(b, m)
	kids := children(m.pid())
	if len(kids) != 1 {
		b.Fatalf("the master's children: %s", describe(kids))
	}
	r := rival{s.Address, kids[0], m, m.stop}
	c.round(b, r)
	return r
}

func (c contest) alone(b testing.TB, s *site) rival {
	command := c.command(b, s)
	pid, end := startAlone(b, nil, command, c.environment(s)...)
	until(b, command[0]+" answers", func() error {
		_, _, err := get("tcp", s.Address, "/small")
		return err
	})
	r := rival{s.Address, pid, nil, end}
	c.round(b, r)
	return r
}

func (r rival) switches() int {
	if r.master == nil {
		return 0
	}
	return switches(r.master.pid())
}

// processorTime is that of all threads of a process and of its descendants.
func processorTime(b testing.TB, pid int) (sum time.Duration) {
	b.Helper()
	for _, member := range family(pid) {
		tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", member))
		for _, task := range tasks {
			// Nanoseconds on a processor, waiting for one, and how often.
			text, _ := os.ReadFile(task)
			first, _, _ := strings.Cut(string(text), " ")
			ns, _ := strconv.ParseInt(first, 10, 64)
			sum += time.Duration(ns)
		}
	}
	return sum
}

// From the start of the command to its first answer: the server alone, under
// --listen, and intercepted.
func BenchmarkInterceptedStart(b *testing.B) {
	for b.Loop() {
		var alone, listen, own []time.Duration
		for range times(21, 5, 101) {
			alone = append(alone, aloneToAnswer(b))
			listen = append(listen, toAnswer(b, func(address string) []string {
				return append([]string{"run", "-l", address, "--"}, worker("graceful")...)
			}))
			own = append(own, toAnswer(b, func(address string) []string {
				return append([]string{"run", "--"}, bindsGracefully(address)...)
			}))
		}
		b.ReportMetric(milliseconds(median(alone)), "ms/bare")
		b.ReportMetric(milliseconds(median(listen)), "ms/listen")
		b.ReportMetric(milliseconds(median(own)), "ms/intercepted")
	}
}

func bindsGracefully(address string) []string { return worker("binds", "tcp="+address, "end=graceful") }

// aloneToAnswer is how long a server takes that binds its own address.
func aloneToAnswer(b testing.TB) time.Duration {
	address := freeAddress(b)
	began := time.Now()
	_, end := startAlone(b, nil, bindsGracefully(address))
	defer end()
	return firstAnswer(b, address, 1, began)
}

func toAnswer(b testing.TB, args func(address string) []string) time.Duration {
	address := freeAddress(b)
	began := time.Now()
	m := launch{exe: moultBinary(b), args: args(address)}.start(b)
	took := firstAnswer(b, address, 1, began)
	m.waitServing(1)
	m.stop()
	return took
}

// firstAnswer is when a generation has first answered.
func firstAnswer(b testing.TB, address string, generation int, began time.Time) time.Duration {
	b.Helper()
	for generationAt("tcp", address) != generation {
		if time.Since(began) > patience {
			b.Fatalf("generation %d does not answer", generation)
		}
		time.Sleep(200 * time.Microsecond) // leave the processor to it
	}
	return time.Since(began)
}

// What a bind(2) and a listen(2) take, alone and intercepted.
func BenchmarkInterceptedBind(b *testing.B) {
	const ports = 200
	command := worker("binds-many", "n="+strconv.Itoa(ports))
	for b.Loop() {
		var alone, own [2][]time.Duration // bind, listen
		for range times(11, 3, 51) {
			for call, took := range saidAlone(b, command) {
				alone[call] = append(alone[call], took/ports)
			}
			for call, took := range saidUnder(b, nil, command) {
				own[call] = append(own[call], took/ports)
			}
		}
		for call, name := range []string{"bind", "listen"} {
			b.ReportMetric(microseconds(median(alone[call])), "µs/"+name+"-bare")
			reportSpread(b, own[call], "µs/"+name)
		}
	}
}

// What an unlink(2) takes of a file that is nobody's socket: alone, with
// interception as it is by default, and where unlinks are intercepted too.
func BenchmarkInterceptedUnlink(b *testing.B) {
	const files = 2000
	command := worker("unlinks-many", "n="+strconv.Itoa(files))
	for b.Loop() {
		var alone, without, with []time.Duration
		for range times(11, 3, 51) {
			alone = append(alone, saidAlone(b, command)[0]/files)
			without = append(without, saidUnder(b, nil, command)[0]/files)
			with = append(with, saidUnder(b, []string{"--intercept-unlink"}, command)[0]/files)
		}
		reportSpread(b, alone, "µs/bare")
		reportSpread(b, without, "µs/without")
		reportSpread(b, with, "µs/with")
	}
}

// reportSpread gives the median, the least and the most.
func reportSpread(b *testing.B, all []time.Duration, unit string) {
	b.ReportMetric(microseconds(median(all)), unit)
	b.ReportMetric(microseconds(slices.Min(all)), unit+"-least")
	b.ReportMetric(microseconds(slices.Max(all)), unit+"-most")
}

func microseconds(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

func saidAlone(b testing.TB, command []string) []time.Duration {
	return said(b, func(stdout *os.File) (end func()) {
		_, end = startAlone(b, stdout, command)
		return end
	})
}

func saidUnder(b testing.TB, flags, command []string) []time.Duration {
	args := append(append([]string{"run"}, flags...), "--")
	return said(b, func(stdout *os.File) (end func()) {
		m := launch{exe: moultBinary(b), args: append(args, command...)}.startWith(b, stdout)
		return func() { m.waitServing(1); m.stop() }
	})
}

// said reads how long things took from the first line that a worker writes.
func said(b testing.TB, start func(stdout *os.File) (end func())) (took []time.Duration) {
	b.Helper()
	read, write := pipe(b)
	end := start(write)
	defer end()
	read.SetReadDeadline(time.Now().Add(patience))
	line, err := bufio.NewReader(read).ReadString('\n')
	for field := range strings.FieldsSeq(line) {
		d, wrong := time.ParseDuration(field)
		took, err = append(took, d), cmp.Or(err, wrong)
	}
	if err != nil || len(took) == 0 {
		b.Fatalf("the worker says %q: %v", line, err)
	}
	return took
}

// timeBinds binds n ports, says how long bind and listen took, and serves.
func timeBinds(n int) {
	var binding, listens time.Duration
	for i := range n {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		began := time.Now()
		if err == nil {
			err = unix.Bind(fd, &unix.SockaddrInet4{Port: 20000 + i, Addr: [4]byte{127, 0, 82, 1}})
		}
		bound := time.Now()
		if err == nil {
			err = unix.Listen(fd, unix.SOMAXCONN)
		}
		if err != nil {
			fail("port %d: %v", 20000+i, err)
		}
		binding, listens = binding+bound.Sub(began), listens+time.Since(bound)
		go http.Serve(listenerOf(fd), http.HandlerFunc(answer))
	}
	fmt.Println(binding, listens)
	select {}
}

// timeUnlinks makes and unlinks n files, and says how long the latter took.
func timeUnlinks(n int) {
	listener, err := net.Listen("tcp", "127.0.82.2:20000")
	if err != nil {
		fail("%v", err)
	}
	go http.Serve(listener, http.HandlerFunc(answer))
	folder, err := os.MkdirTemp("", "moult-test-")
	if err != nil {
		fail("%v", err)
	}
	var took time.Duration
	for range n {
		took += timeUnlink(filepath.Join(folder, "file"))
	}
	os.Remove(folder)
	fmt.Println(took)
	select {}
}

func timeUnlink(path string) time.Duration {
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		fail("%v", err)
	}
	began := time.Now()
	if err := unix.Unlink(path); err != nil {
		fail("unlink: %v", err)
	}
	return time.Since(began)
}

// From SIGHUP to the first answer by the new generation, against a bare start
// of the same server to its first answer.
func BenchmarkInterceptedUpgrade(b *testing.B) {
	for b.Loop() {
		address := freeAddress(b)
		m := startOwn(b, nil, bindsGracefully(address))
		var bare, upgraded, logged []time.Duration
		for range times(21, 5, 101) {
			bare = append(bare, aloneToAnswer(b))
			answered, serving := upgradeToAnswer(b, m, address)
			upgraded, logged = append(upgraded, answered), append(logged, serving)
		}
		m.stop()
		b.ReportMetric(milliseconds(median(bare)), "ms/bare-start")
		b.ReportMetric(milliseconds(median(upgraded)), "ms/upgrade")
		b.ReportMetric(milliseconds(median(logged)), "ms/upgrade-by-log")
		b.ReportMetric(float64(median(upgraded))/float64(median(bare)), "ratio")
	}
}

// Resident and proportional memory of the master, intercepting and under
// --listen, fresh and after upgrades.
func BenchmarkInterceptedMemory(b *testing.B) {
	for b.Loop() {
		for name, start := range map[string]func(address string) *master{
			"listen":      func(a string) *master { return startReal(b, a, nil, worker("graceful")) },
			"intercepted": func(a string) *master { return startOwn(b, nil, bindsGracefully(a)) },
		} {
			m := start(freeAddress(b))
			reportMemory(b, m, name)
			for range times(50, 10, 1000) {
				m.upgrade()
			}
			m.waitState(m.generation()-1, "gone")
			reportMemory(b, m, name+"-later")
			m.stop()
		}
	}
}

// Once the worker has bound what it binds, the master sleeps: nobody wakes it
// while nothing happens, nor does a connection, nor a name that is looked up.
func TestInterceptedMasterSleeps(t *testing.T) {
	takesLong(t)
	t.Parallel()
	address := freeAddress(t)
	m := startOwn(t, nil, bindsGracefully(address))
	m.upgrade() // steering is at work
	m.waitState(1, "gone")
	settled(t, m)
	before := switches(m.pid())
	idle := 5 * time.Second
	if soak() {
		idle = time.Minute
	}
	<-time.After(idle)
	asleep := switches(m.pid())
	if n := asleep - before; n > 5 {
		t.Errorf("%d context switches in %v of idleness", n, idle)
	}
	for path, wanted := range map[string]int{"/": times(20000, 5000, 100000), "/lookup": times(200, 50, 2000)} {
		clients := traffic(t, load.Config{Address: address, Path: path, Clients: 8})
		until(t, "connections to "+path, func() error {
			now := clients.Snapshot()
			return atLeast(now.Requests(), wanted)
		})
		report := lossless(t, clients)
		n := switches(m.pid()) - asleep
		if n > 30 {
			t.Errorf("%d context switches of the master during %d connections to %s", n, report.Requests(), path)
		}
		t.Logf("%d context switches of the master during %d connections to %s", n, report.Requests(), path)
		asleep += n
	}
	m.stop()
}

// What starts and upgrades took is given back, as it is under --listen.
func TestInterceptedMasterGivesMemoryBack(t *testing.T) {
	takesLong(t)
	t.Parallel()
	first, second := freeAddress(t), freeAddress(t)
	listen := startReal(t, first, nil, worker("graceful"))
	own := startOwn(t, nil, bindsGracefully(second))
	kept := map[*master]int{}
	for _, m := range []*master{listen, own} {
		m.upgrade()
		m.waitState(1, "gone")
		settled(t, m)
		kept[m], _ = memory(t, m.pid())
		m.stop()
	}
	t.Logf("resident %d kB under --listen, %d kB intercepting", kept[listen], kept[own])
	if kept[own] > kept[listen]+2048 {
		t.Errorf("the master keeps %d kB, and %d kB under --listen", kept[own], kept[listen])
	}
}

// Upgrades leave nothing behind, whatever the worker binds and closes.
func TestNothingGrowsOverInterceptedUpgrades(t *testing.T) {
	takesLong(t)
	closes := strings.Repeat("tcp={b} close tcp=127.0.0.1:0 close ", 10)
	for _, test := range []struct {
		name, steps   string
		groups, count int
	}{
		{"binds once", "tcp={a} end=graceful", 1, times(50, 20, 1000)},
		{"dies at TERM", "tcp={a}", 1, times(20, 5, 200)},
		{"binds several", "threads=3,{a} tcp={b} end=graceful", 2, times(20, 5, 200)},
		{"binds and closes", closes + "free={a} tcp={a} try={a} end=graceful", 1, times(20, 5, 200)},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			a := freeAddress(t)
			steps := strings.NewReplacer("{a}", a, "{b}", freeAddress(t)).Replace(test.steps)
			m := startOwn(t, []string{"--quiesce", "0s"}, worker("binds", strings.Fields(steps)...))
			m.growsNot(test.count, test.groups)
			answeredBy(t, a, m.generation())
			if n := goroutines(t, m); n > 40 {
				t.Errorf("%d goroutines after %d upgrades:\n%s", n, test.count, m.log())
			}
		})
	}
}

// growsNot compares what the master holds after the first upgrades with what
// it holds after many more. Each group of sockets has spare members of its own.
func (m *master) growsNot(upgrades, groups int) {
	m.t.Helper()
	many := func(n int) {
		for range n {
			m.upgrade()
		}
		m.waitState(m.generation()-1, "gone")
		settled(m.t, m)
	}
	many(5)
	before, threads := takeStock(m.pid()), statusNumber(m.t, m.pid(), "Threads")
	before.descriptors += (groups - 1) * spareDescriptors
	rss, _ := memory(m.t, m.pid())
	many(upgrades)
	m.backTo(before)
	if now := statusNumber(m.t, m.pid(), "Threads"); now > threads+4 {
		m.t.Errorf("%d threads after %d upgrades, %d before", now, upgrades, threads)
	}
	now, _ := memory(m.t, m.pid())
	m.t.Logf("%d upgrades: resident %d → %d kB, %+v → %+v", upgrades, rss, now, before, takeStock(m.pid()))
	if now > rss+3072 {
		m.t.Errorf("resident memory grew from %d to %d kB over %d upgrades", rss, now, upgrades)
	}
}
