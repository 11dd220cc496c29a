package cli

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/moult/moult/fdpass"
	"github.com/moult/moult/supervisor"
	"github.com/moult/moult/supervisor/load"
)

// playVariable makes the test binary play moult. The master's workers inherit
// it.
const playVariable = "CLI_TEST_PLAYS_MOULT"

// patience bounds every wait for what is bound to happen.
const patience = 30 * time.Second

func TestMain(m *testing.M) {
	fdpass.RunShimIfAsked()
	if os.Getenv(playVariable) != "" {
		os.Exit(Main(append([]string{"moult"}, os.Args[1:]...), "test"))
	}
	os.Exit(m.Run())
}

// moult is a process that plays moult; its output goes to two buffers.
type moult struct {
	cmd            *exec.Cmd
	stdout, stderr bytes.Buffer
}

func newMoult(t *testing.T, args ...string) *moult {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	t.Cleanup(cancel)
	m := &moult{cmd: exec.CommandContext(ctx, self, args...)}
	m.cmd.Env = append(os.Environ(), playVariable+"=1")
	m.cmd.Stdout, m.cmd.Stderr = &m.stdout, &m.stderr
	// Its workers share the pipes: Wait fails if one of them outlives it.
	m.cmd.WaitDelay = 3 * time.Second
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return m
}

// wait returns the exit code once the process and all that it started are gone.
func (m *moult) wait(t *testing.T) int {
	t.Helper()
	err := m.cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%v\n%s%s", err, &m.stdout, &m.stderr)
	}
	return m.cmd.ProcessState.ExitCode()
}

func (m *moult) run(t *testing.T) int {
	t.Helper()
	if err := m.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return m.wait(t)
}

// numbers are those in the row of a table that begins with name.
func numbers(t *testing.T, table, name string) (all []int) {
	t.Helper()
	row := regexp.MustCompile(`(?m)^  ` + name + ` +(\d.*)$`).FindStringSubmatch(table)
	if row == nil {
		t.Fatalf("no row %q in\n%s", name, table)
	}
	for _, field := range strings.Fields(row[1]) {
		n, err := strconv.Atoi(strings.ReplaceAll(field, ",", ""))
		if err != nil {
			break
		}
		all = append(all, n)
	}
	return all
}

func sum(numbers []int) (total int) {
	for _, n := range numbers {
		total += n
	}
	return total
}

func onlyWhereSteered(t *testing.T) {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("there is no steering here")
	}
}

// losesNothing runs the demo and reads its table.
func losesNothing(t *testing.T, upgrades int, flags ...string) {
	t.Helper()
	m := newMoult(t, append([]string{"demo", "-u", fmt.Sprint(upgrades)}, flags...)...)
	if code := m.run(t); code != 0 || m.stderr.Len() > 0 {
		t.Fatalf("exit code %d\n%s%s", code, &m.stdout, &m.stderr)
	}
	table := m.stdout.String()
	for _, name := range []string{"new connections", "kept connections", "slow answers", "all"} {
		row := numbers(t, table, name)
		if len(row) != 1+len(load.Classes()) || row[0] == 0 || sum(row[1:]) != 0 {
			t.Errorf("%s: %v", name, row)
		}
	}
	for generation := range upgrades + 1 {
		if n := numbers(t, table, strconv.Itoa(generation+1))[0]; n == 0 {
			t.Errorf("no answer by generation %d", generation+1)
		}
	}
	for _, line := range strings.Split(table, "\n")[1:] { // the first one names the path of the socket
		if utf8.RuneCountInString(line) > 80 || strings.Contains(line, "\x1b") {
			t.Errorf("not fit for a file of 80 columns: %q", line)
		}
	}
	if t.Failed() {
		t.Log(table)
	}
}

func TestDemoLosesNothing(t *testing.T) {
	t.Parallel()
	losesNothing(t, 2)
}

func TestDemoOverAUnixSocket(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "demo.sock")
	losesNothing(t, 2, "-l", "unix://"+path)
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the path is left: %v", err)
	}
}

func TestDemoOfAnAbruptServer(t *testing.T) {
	t.Parallel()
	onlyWhereSteered(t)
	losesNothing(t, 2, "--abrupt")
}

// One socket for all, and a server that dies at TERM: the demo has to see what
// is lost.
func TestDemoCountsWhatIsLost(t *testing.T) {
	t.Parallel()
	m := newMoult(t, "demo", "-u", "2", "--abrupt", "--handover", "share")
	if code := m.run(t); code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
	row := numbers(t, m.stdout.String(), "all")
	lost := sum(row[1:])
	if lost == 0 || lost >= row[0] {
		t.Errorf("%d of %d lost, want some", lost, row[0])
	}
	if want := fmt.Sprintf("moult: %d of %s requests failed", lost, thousands(row[0])); !strings.HasPrefix(m.stderr.String(), want) {
		t.Errorf("stderr %q, want %q", &m.stderr, want)
	}
	if t.Failed() {
		t.Logf("%s%s", &m.stdout, &m.stderr)
	}
}

func TestDemoUsage(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		flags string
		says  string
	}{
		{"-u 0", "1 to 1000"},
		{"-u 1001", "1 to 1000"},
		{"-u many", "many"},
		{"--handover steer", "auto or share"},
		{"-l udp://127.0.0.1:0", "HTTP"},
		{"-l 127.0.0.1:99999", "99999"},
		{"--serve -u 3", "SIGHUP"},
		{"./server", "./server"},
		{"--no-such-flag", "no-such-flag"},
	} {
		m := newMoult(t, append([]string{"demo"}, strings.Fields(test.flags)...)...)
		if code := m.run(t); code != exitUsage || !strings.Contains(m.stderr.String(), test.says) || m.stdout.Len() > 0 {
			t.Errorf("%s: exit code %d, %s%s", test.flags, code, &m.stdout, &m.stderr)
		}
	}
}

func TestDemoPortInUse(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	m := newMoult(t, "demo", "-l", listener.Addr().String())
	if code := m.run(t); code != exitFailed || !strings.Contains(m.stderr.String(), "in use") || m.stdout.Len() > 0 {
		t.Errorf("exit code %d, %s%s", code, &m.stdout, &m.stderr)
	}
}

// follow starts m and returns the lines of its stdout.
func (m *moult) follow(t *testing.T) *bufio.Scanner {
	t.Helper()
	m.cmd.Stdout = nil
	stdout, err := m.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := m.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.cmd.Process.Kill() })
	return bufio.NewScanner(stdout)
}

// until reads up to a line that holds all of words.
func until(t *testing.T, lines *bufio.Scanner, words ...string) string {
	t.Helper()
	var seen []string
line:
	for lines.Scan() {
		seen = append(seen, lines.Text())
		for _, word := range words {
			if !strings.Contains(lines.Text(), word) {
				continue line
			}
		}
		return lines.Text()
	}
	t.Fatalf("no line with %q in\n%s", words, strings.Join(seen, "\n"))
	return ""
}

func TestDemoInterrupted(t *testing.T) {
	t.Parallel()
	m := newMoult(t, "demo", "-u", "1000")
	lines := m.follow(t)
	until(t, lines, "upgrade 2/1000")
	m.cmd.Process.Signal(os.Interrupt)
	sent := time.Now()
	rows := until(t, lines, "  all ")
	if row := numbers(t, rows, "all"); sum(row[1:]) != 0 {
		t.Errorf("failures were counted at the end: %v", row)
	}
	until(t, lines, "Stopped after", "of 1,000 upgrades")
	if code := m.wait(t); code != 0 || m.stderr.Len() > 0 {
		t.Errorf("exit code %d, %s", code, &m.stderr)
	}
	if took := time.Since(sent); took > demoStopLimit {
		t.Errorf("the end took %v", took)
	}
}

func TestDemoServe(t *testing.T) {
	t.Parallel()
	m := newMoult(t, "demo", "--serve")
	lines := m.follow(t)
	says := until(t, lines, "server is at")
	address := regexp.MustCompile(`127\.0\.0\.1:\d+`).FindString(says)
	pid := fmt.Sprint(m.cmd.Process.Pid)
	until(t, lines, "curl", "http://"+address+"/")
	until(t, lines, "kill -HUP "+pid)
	until(t, lines, "kill -TERM "+pid)
	answeredBy(t, address, "1")
	m.cmd.Process.Signal(syscall.SIGHUP)
	answeredBy(t, address, "2")
	m.cmd.Process.Signal(syscall.SIGTERM)
	if code := m.wait(t); code != 0 {
		t.Errorf("exit code %d, %s", code, &m.stderr)
	}
	if !strings.Contains(m.stderr.String(), `"message":"upgraded"`) {
		t.Errorf("no log as of run: %s", &m.stderr)
	}
}

// answeredBy asks until the generation answers.
func answeredBy(t *testing.T, address, generation string) {
	t.Helper()
	client := http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	got := ""
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		response, err := client.Get("http://" + address + "/")
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(response.Body)
		response.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := demoAnswer(demoBody)(response, body); err != nil {
			t.Fatal(err)
		}
		if got = response.Header.Get(load.GenerationHeader); got == generation {
			return
		}
	}
	t.Fatalf("generation %s answers, want %s", got, generation)
}

func TestDemoHandler(t *testing.T) {
	handler := demoHandler("7", 4711)
	ask := func(target string) *http.Response {
		r := httptest.NewRecorder()
		handler.ServeHTTP(r, httptest.NewRequest("GET", target, nil))
		return r.Result()
	}
	for target, want := range map[string]func(string, any) string{"/": demoBody, "/slow?d=20ms": demoSlowBody, "/slow?d=0s": demoSlowBody} {
		began := time.Now()
		response := ask(target)
		body, _ := io.ReadAll(response.Body)
		if generation, err := demoAnswer(want)(response, body); generation != "7" || err != nil {
			t.Errorf("%s: generation %q, %v", target, generation, err)
		}
		if !strings.Contains(string(body), "generation 7, pid 4711") {
			t.Errorf("%s: %q", target, body)
		}
		if strings.HasSuffix(target, "20ms") && time.Since(began) < 20*time.Millisecond {
			t.Errorf("%s took %v", target, time.Since(began))
		}
	}
	for target, status := range map[string]int{"/healthz": 200, "/slow": 400, "/slow?d=-1s": 400, "/slow?d=2h": 400, "/else": 404} {
		if got := ask(target).StatusCode; got != status {
			t.Errorf("%s: status %d, want %d", target, got, status)
		}
	}
}

func TestDemoAnswerIsJudgedByEveryByte(t *testing.T) {
	answer := func(generation, pid, body string) error {
		r := httptest.NewRecorder()
		r.Header().Set(load.GenerationHeader, generation)
		r.Header().Set(demoPIDHeader, pid)
		_, err := demoAnswer(demoSlowBody)(r.Result(), []byte(body))
		return err
	}
	right := demoSlowBody("7", 1)
	if err := answer("7", "1", right); err != nil {
		t.Error(err)
	}
	for name, err := range map[string]error{
		"a piece is missing":          answer("7", "1", strings.TrimPrefix(right, demoPiece(0, "7", 1))),
		"a piece of another":          answer("7", "1", strings.Replace(right, "pid 1", "pid 2", 1)),
		"something behind it":         answer("7", "1", right+"!"),
		"header of another":           answer("8", "1", right),
		"the header is another's pid": answer("7", "2", right),
		"no header":                   answer("", "", right),
	} {
		if err == nil {
			t.Errorf("%s, and nobody noticed", name)
		}
	}
}

func plain(_, text string) string { return text }

// crowded is a result with numbers as wide as they get.
func crowded(failed error, lost int) *demoResult {
	r := &demoResult{demoOptions: demoOptions{upgrades: demoMaxUpgrades}, done: demoMaxUpgrades, steered: true, failed: failed, ready: map[int]time.Duration{}}
	report := load.Report{Phases: []load.Phase{{Name: load.AtRest, Answered: 1234567}, {Name: load.Upgrading, Answered: 7654321}}, Generations: map[string]int{}}
	if lost > 0 {
		report.Phases[1].Failed[load.Refused] = lost
		report.Samples = []load.Failure{{Phase: load.Upgrading, Class: load.Refused, Message: "connection refused"}}
	}
	for g := 1; g <= demoMaxUpgrades+1; g++ {
		report.Generations[strconv.Itoa(g)], r.ready[g] = 8880, 1234567*time.Microsecond
	}
	r.rows = []demoRow{{"kept connections", report}}
	r.total, r.fast = report, report
	return r
}

func TestDemoTablesFit(t *testing.T) {
	for _, r := range []*demoResult{crowded(nil, 0), crowded(nil, 99999), crowded(errors.New("no"), 0)} {
		for _, abrupt := range []bool{false, true} {
			r.abrupt, r.steered = abrupt, !abrupt
			text := r.text(plain)
			for _, line := range strings.Split(text, "\n") {
				if utf8.RuneCountInString(line) > 80 {
					t.Errorf("%d columns: %q", utf8.RuneCountInString(line), line)
				}
			}
			if n := strings.Count(text, "\n"); n > 30 {
				t.Errorf("%d lines", n)
			}
		}
	}
}

func TestDemoOmitsTheMiddleOfManyGenerations(t *testing.T) {
	text := crowded(nil, 0).generationTable(plain)
	if got, want := numbers(t, text, "5 to 997")[0], 993*8880; got != want {
		t.Errorf("%d answers by those not shown, want %d\n%s", got, want, text)
	}
	numbers(t, text, "1001")
}

func TestDemoError(t *testing.T) {
	for _, test := range []struct {
		failed error
		lost   int
		want   string
	}{
		{nil, 0, ""},
		{errors.New("upgrade 3 failed"), 0, "upgrade 3 failed"},
		{nil, 1234, "1,234 of 8,890,122 requests failed: 1,234 refused; the first, during upgrades: connection refused"},
		{errors.New("upgrade 3 failed"), 1, "upgrade 3 failed; 1 of 8,888,889 requests failed: 1 refused; the first, during upgrades: connection refused"},
	} {
		got := ""
		if err := crowded(test.failed, test.lost).err(); err != nil {
			got = err.Error()
		}
		if got != test.want {
			t.Errorf("got %q, want %q", got, test.want)
		}
	}
}

func TestProgressLineFits(t *testing.T) {
	step := demoStep{doing: "warming up", done: 999, half: true, generation: 1000}
	for width := 30; width < 200; width++ {
		line := progressLine(step, demoMaxUpgrades, 12345678, 0, width, plain)
		if n := utf8.RuneCountInString(line); n > width {
			t.Errorf("%d columns of %d: %q", n, width, line)
		}
		if !strings.HasPrefix(line, "999/1000") || !strings.HasSuffix(line, "0 failures") {
			t.Errorf("%d columns: %q", width, line)
		}
	}
	if line := progressLine(step, demoMaxUpgrades, 1, 1, 80, plain); !strings.HasSuffix(line, "1 failure") {
		t.Error(line)
	}
}

func TestScreenKeepsLinesApart(t *testing.T) {
	var out bytes.Buffer
	s := &screen{out: &out, live: true}
	s.progress("half")
	s.println("a line")
	s.progress("")
	if got, want := out.String(), eraseLine+"half"+eraseLine+"a line\nhalf"+eraseLine; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestNumbersForPeople(t *testing.T) {
	for n, want := range map[int]string{0: "0", 999: "999", 1000: "1,000", 1234567: "1,234,567"} {
		if got := thousands(n); got != want {
			t.Errorf("%d: %s", n, got)
		}
	}
	for d, want := range map[time.Duration]string{
		0: "0.00 ms", 123 * time.Microsecond: "0.12 ms", 12345 * time.Microsecond: "12.3 ms", 1234567 * time.Microsecond: "1,235 ms",
		9996 * time.Microsecond: "10.0 ms", 99960 * time.Microsecond: "100 ms",
	} {
		if got := milliseconds(d); got != want {
			t.Errorf("%v: %s, want %s", d, got, want)
		}
	}
}

func TestJournalAwaits(t *testing.T) {
	j := newJournal()
	ctx, cancel := context.WithCancel(t.Context())
	j.add(supervisor.Transition{To: "serving"})
	mark := j.mark()
	go j.add(supervisor.Transition{Generation: 2, To: "serving"})
	serving := func(t supervisor.Transition) bool { return isMaster(t, "serving") }
	if got, err := j.await(ctx, patience, mark, "it serves", serving); got.Generation != 2 || err != nil {
		t.Errorf("got %v, %v", got, err)
	}
	if _, err := j.await(ctx, time.Millisecond, j.mark(), "it serves", serving); err == nil || !strings.Contains(err.Error(), "it serves") {
		t.Errorf("time-out: %v", err)
	}
	cancel()
	if _, err := j.await(ctx, patience, j.mark(), "it serves", serving); !errors.Is(err, errDemoStopped) {
		t.Errorf("stopped: %v", err)
	}
}
