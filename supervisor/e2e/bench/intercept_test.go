//go:build linux

package bench

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

	"github.com/moult/moult/supervisor/e2e/testkit"
	"github.com/moult/moult/supervisor/load"
	"golang.org/x/sys/unix"
)

// What interception costs, measured from outside, as in bench_test.go.

func init() {
	testkit.Workers["binds-many"] = func(m testkit.Manners) { timeBinds(m.N) }
	testkit.Workers["unlinks-many"] = func(m testkit.Manners) { timeUnlinks(m.N) }
}

// startOwn starts the real moult over a worker that binds its own address.
func startOwn(b testing.TB, flags []string, command []string, env ...string) *testkit.Master {
	b.Helper()
	args := append(append([]string{"run"}, flags...), "--")
	m := testkit.Launch{Exe: testkit.MoultBinary(b), Args: append(args, command...), Env: env}.Start(b)
	m.WaitServing(1)
	return m
}

// startAlone starts a command with no master above it. What it writes
// to stdout goes there. end kills it with its descendants.
func startAlone(b testing.TB, stdout *os.File, command []string, env ...string) (pid int, end func()) {
	b.Helper()
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Env = append(append(os.Environ(), testkit.TokenVariable+"="+testkit.NewToken(), "MOULT_GENERATION=1"), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	said := new(strings.Builder)
	cmd.Stderr, cmd.WaitDelay = said, testkit.Patience
	if stdout != nil {
		cmd.Stdout = stdout
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	end = sync.OnceFunc(func() {
		for _, pid := range family(cmd.Process.Pid) {
			testkit.KillProcess(pid)
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
	for _, child := range testkit.Children(pid) {
		pids = append(pids, family(child)...)
	}
	return pids
}

// contest is a server against itself: intercepted and alone.
type contest struct {
	name    string
	mode    load.Mode
	command func(testing.TB, *testkit.Site) []string
	control bool // alone and alone: what the machine itself makes of it
}

// rival is one of the two servers of a contest.
type rival struct {
	address string
	pid     int             // its first process
	master  *testkit.Master // nil where it is alone
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
		{name: "go-keep-alive", mode: load.KeepAlive, command: testkit.GoServerCommand("shutdown")},
		{name: "go-new-connections", command: testkit.GoServerCommand("shutdown")},
		{name: "nginx-new-connections", command: testkit.NginxCommand("")},
		{name: "name-lookups", command: testkit.LookupCommand},
		{name: "control-go-new-connections", command: testkit.GoServerCommand("shutdown"), control: true},
	} {
		b.Run(c.name, func(b *testing.B) {
			common := testkit.NewFixtures(b)
			for b.Loop() {
				c.run(b, common)
			}
		})
	}
}

func (c contest) run(b *testing.B, common *testkit.Fixtures) {
	var all []quadruple
	woken := 0
	for range testkit.Times(4, 2, 20) {
		alone, own := c.alone(b, testkit.NewSite(b, common)), c.rival(b, testkit.NewSite(b, common))
		before := own.switches()
		for i := range testkit.Times(16, 3, 32) {
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
	clients := testkit.Traffic(b, load.Config{Address: r.address, Path: "/small", Mode: c.mode, Answer: testkit.IsSmall})
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
func (c contest) environment(s *testkit.Site) []string {
	return append(s.Environment(), "GODEBUG=multipathtcp=0")
}

func (c contest) rival(b testing.TB, s *testkit.Site) rival {
	if c.control {
		return c.alone(b, s)
	}
	return c.own(b, s)
}

// own has been upgraded, so that the kernel steers.
func (c contest) own(b testing.TB, s *testkit.Site) rival {
	m := startOwn(b, nil, c.command(b, s), c.environment(s)...)
	m.Upgrade()
	m.WaitState(1, "gone")
	testkit.Settled(b, m)
	kids := testkit.Children(m.Pid())
	if len(kids) != 1 {
		b.Fatalf("the master's children: %s", testkit.Describe(kids))
	}
	r := rival{s.Address, kids[0], m, m.Stop}
	c.round(b, r)
	return r
}

func (c contest) alone(b testing.TB, s *testkit.Site) rival {
	command := c.command(b, s)
	pid, end := startAlone(b, nil, command, c.environment(s)...)
	testkit.Until(b, command[0]+" answers", func() error {
		_, _, err := testkit.Get("tcp", s.Address, "/small")
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
	return testkit.Switches(r.master.Pid())
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
		for range testkit.Times(21, 5, 101) {
			alone = append(alone, aloneToAnswer(b))
			listen = append(listen, toAnswer(b, func(address string) []string {
				return append([]string{"run", "-l", address, "--"}, testkit.WorkerCommand("graceful")...)
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

func bindsGracefully(address string) []string {
	return testkit.WorkerCommand("binds", "tcp="+address, "end=graceful")
}

// aloneToAnswer is how long a server takes that binds its own address.
func aloneToAnswer(b testing.TB) time.Duration {
	address := testkit.FreeAddress(b)
	began := time.Now()
	_, end := startAlone(b, nil, bindsGracefully(address))
	defer end()
	return firstAnswer(b, address, 1, began)
}

func toAnswer(b testing.TB, args func(address string) []string) time.Duration {
	address := testkit.FreeAddress(b)
	began := time.Now()
	m := testkit.Launch{Exe: testkit.MoultBinary(b), Args: args(address)}.Start(b)
	took := firstAnswer(b, address, 1, began)
	m.WaitServing(1)
	m.Stop()
	return took
}

// firstAnswer is when a generation has first answered.
func firstAnswer(b testing.TB, address string, generation int, began time.Time) time.Duration {
	b.Helper()
	for testkit.GenerationAt("tcp", address) != generation {
		if time.Since(began) > testkit.Patience {
			b.Fatalf("generation %d does not answer", generation)
		}
		time.Sleep(200 * time.Microsecond) // leave the processor to it
	}
	return time.Since(began)
}

// What a bind(2) and a listen(2) take, alone and intercepted.
func BenchmarkInterceptedBind(b *testing.B) {
	const ports = 200
	command := testkit.WorkerCommand("binds-many", "n="+strconv.Itoa(ports))
	for b.Loop() {
		var alone, own [2][]time.Duration // bind, listen
		for range testkit.Times(11, 3, 51) {
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
	command := testkit.WorkerCommand("unlinks-many", "n="+strconv.Itoa(files))
	for b.Loop() {
		var alone, without, with []time.Duration
		for range testkit.Times(11, 3, 51) {
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
		m := testkit.Launch{Exe: testkit.MoultBinary(b), Args: append(args, command...)}.StartWith(b, stdout)
		return func() { m.WaitServing(1); m.Stop() }
	})
}

// said reads how long things took from the first line that a worker writes.
func said(b testing.TB, start func(stdout *os.File) (end func())) (took []time.Duration) {
	b.Helper()
	read, write := testkit.Pipe(b)
	end := start(write)
	defer end()
	read.SetReadDeadline(time.Now().Add(testkit.Patience))
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
			testkit.Fail("port %d: %v", 20000+i, err)
		}
		binding, listens = binding+bound.Sub(began), listens+time.Since(bound)
		go http.Serve(testkit.ListenerOf(fd), http.HandlerFunc(testkit.Answer))
	}
	fmt.Println(binding, listens)
	select {}
}

// timeUnlinks makes and unlinks n files, and says how long the latter took.
func timeUnlinks(n int) {
	listener, err := net.Listen("tcp", "127.0.82.2:20000")
	if err != nil {
		testkit.Fail("%v", err)
	}
	go http.Serve(listener, http.HandlerFunc(testkit.Answer))
	folder, err := os.MkdirTemp("", "moult-test-")
	if err != nil {
		testkit.Fail("%v", err)
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
		testkit.Fail("%v", err)
	}
	began := time.Now()
	if err := unix.Unlink(path); err != nil {
		testkit.Fail("unlink: %v", err)
	}
	return time.Since(began)
}

// From SIGHUP to the first answer by the new generation, against a bare start
// of the same server to its first answer.
func BenchmarkInterceptedUpgrade(b *testing.B) {
	for b.Loop() {
		address := testkit.FreeAddress(b)
		m := startOwn(b, nil, bindsGracefully(address))
		var bare, upgraded, logged []time.Duration
		for range testkit.Times(21, 5, 101) {
			bare = append(bare, aloneToAnswer(b))
			answered, serving := upgradeToAnswer(b, m, address)
			upgraded, logged = append(upgraded, answered), append(logged, serving)
		}
		m.Stop()
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
		for name, start := range map[string]func(address string) *testkit.Master{
			"listen":      func(a string) *testkit.Master { return startReal(b, a, nil, testkit.WorkerCommand("graceful")) },
			"intercepted": func(a string) *testkit.Master { return startOwn(b, nil, bindsGracefully(a)) },
		} {
			m := start(testkit.FreeAddress(b))
			reportMemory(b, m, name)
			for range testkit.Times(50, 10, 1000) {
				m.Upgrade()
			}
			m.WaitState(m.Generation()-1, "gone")
			reportMemory(b, m, name+"-later")
			m.Stop()
		}
	}
}

// Once the worker has bound what it binds, the master sleeps: nobody wakes it
// while nothing happens, nor does a connection, nor a name that is looked up.
func TestInterceptedMasterSleeps(t *testing.T) {
	testkit.TakesLong(t)
	t.Parallel()
	address := testkit.FreeAddress(t)
	m := startOwn(t, nil, bindsGracefully(address))
	m.Upgrade() // steering is at work
	m.WaitState(1, "gone")
	testkit.Settled(t, m)
	before := testkit.Switches(m.Pid())
	idle := 5 * time.Second
	if testkit.Soak() {
		idle = time.Minute
	}
	<-time.After(idle)
	asleep := testkit.Switches(m.Pid())
	if n := asleep - before; n > 5 {
		t.Errorf("%d context switches in %v of idleness", n, idle)
	}
	for path, wanted := range map[string]int{"/": testkit.Times(20000, 5000, 100000), "/lookup": testkit.Times(200, 50, 2000)} {
		clients := testkit.Traffic(t, load.Config{Address: address, Path: path, Clients: 8})
		testkit.Until(t, "connections to "+path, func() error {
			now := clients.Snapshot()
			return testkit.AtLeast(now.Requests(), wanted)
		})
		report := testkit.Lossless(t, clients)
		n := testkit.Switches(m.Pid()) - asleep
		if n > 30 {
			t.Errorf("%d context switches of the master during %d connections to %s", n, report.Requests(), path)
		}
		t.Logf("%d context switches of the master during %d connections to %s", n, report.Requests(), path)
		asleep += n
	}
	m.Stop()
}

// What starts and upgrades took is given back, as it is under --listen.
func TestInterceptedMasterGivesMemoryBack(t *testing.T) {
	testkit.TakesLong(t)
	t.Parallel()
	first, second := testkit.FreeAddress(t), testkit.FreeAddress(t)
	listen := startReal(t, first, nil, testkit.WorkerCommand("graceful"))
	own := startOwn(t, nil, bindsGracefully(second))
	kept := map[*testkit.Master]int{}
	for _, m := range []*testkit.Master{listen, own} {
		m.Upgrade()
		m.WaitState(1, "gone")
		testkit.Settled(t, m)
		kept[m], _ = testkit.Memory(t, m.Pid())
		m.Stop()
	}
	t.Logf("resident %d kB under --listen, %d kB intercepting", kept[listen], kept[own])
	if kept[own] > kept[listen]+2048 {
		t.Errorf("the master keeps %d kB, and %d kB under --listen", kept[own], kept[listen])
	}
}

// Upgrades leave nothing behind, whatever the worker binds and closes.
func TestNothingGrowsOverInterceptedUpgrades(t *testing.T) {
	testkit.TakesLong(t)
	closes := strings.Repeat("tcp={b} close tcp=127.0.0.1:0 close ", 10)
	for _, test := range []struct {
		name, steps   string
		groups, count int
	}{
		{"binds once", "tcp={a} end=graceful", 1, testkit.Times(50, 20, 1000)},
		{"dies at TERM", "tcp={a}", 1, testkit.Times(20, 5, 200)},
		{"binds several", "threads=3,{a} tcp={b} end=graceful", 2, testkit.Times(20, 5, 200)},
		{"binds and closes", closes + "free={a} tcp={a} try={a} end=graceful", 1, testkit.Times(20, 5, 200)},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			a := testkit.FreeAddress(t)
			steps := strings.NewReplacer("{a}", a, "{b}", testkit.FreeAddress(t)).Replace(test.steps)
			m := startOwn(t, []string{"--quiesce", "0s"}, testkit.WorkerCommand("binds", strings.Fields(steps)...))
			m.GrowsNot(test.count, test.groups)
			testkit.AnsweredBy(t, a, m.Generation())
			if n := testkit.Goroutines(t, m); n > 40 {
				t.Errorf("%d goroutines after %d upgrades:\n%s", n, test.count, m.Log())
			}
		})
	}
}
