package cli

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/moult/moult/supervisor/cli/demo/load"
)

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

// The demo of every kind of server loses nothing, and says so in a table that is
// fit for a file of 80 columns.
func TestDemoLosesNothing(t *testing.T) {
	t.Parallel()
	for _, flags := range []string{"", "-l unix://", "--abrupt"} {
		t.Run(flags, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "demo.sock")
			if strings.HasSuffix(flags, "//") {
				flags += path
			}
			if flags == "--abrupt" && runtime.GOOS != "linux" {
				t.Skip("there is no steering here")
			}
			m := newMoult(t, append([]string{"demo", "-u", "2"}, strings.Fields(flags)...)...)
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
			if !strings.Contains(table, "answered by 3 generations, ") {
				t.Errorf("not every generation has answered")
			}
			for _, line := range strings.Split(table, "\n")[1:] { // the first one names the path of the socket
				if utf8.RuneCountInString(line) > 80 || strings.Contains(line, "\x1b") {
					t.Errorf("not fit for a file of 80 columns: %q", line)
				}
			}
			if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the path is left: %v", err)
			}
			if t.Failed() {
				t.Log(table)
			}
		})
	}
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
	if want := fmt.Sprintf("moult: %d of ", lost); !strings.HasPrefix(m.stderr.String(), want) {
		t.Errorf("stderr %q, want %q", &m.stderr, want)
	}
	if t.Failed() {
		t.Logf("%s%s", &m.stdout, &m.stderr)
	}
}

func TestDemoRefuses(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	for _, test := range []struct {
		flags string
		code  int
		says  string
	}{
		{"-u 0", exitUsage, "1 to 1000"},
		{"-u 1001", exitUsage, "1 to 1000"},
		{"-u many", exitUsage, "many"},
		{"--handover steer", exitUsage, "auto or share"},
		{"-l udp://127.0.0.1:0", exitUsage, "HTTP"},
		{"-l 127.0.0.1:99999", exitUsage, "99999"},
		{"--serve -u 3", exitUsage, "SIGHUP"},
		{"./server", exitUsage, "./server"},
		{"--no-such-flag", exitUsage, "no-such-flag"},
		{"-l " + listener.Addr().String(), exitFailed, "in use"},
	} {
		m := newMoult(t, append([]string{"demo"}, strings.Fields(test.flags)...)...)
		if code := m.run(t); code != test.code || !strings.Contains(m.stderr.String(), test.says) || m.stdout.Len() > 0 {
			t.Errorf("%s: exit code %d, %s%s", test.flags, code, &m.stdout, &m.stderr)
		}
	}
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
	const limit = 3 * time.Second
	if took := time.Since(sent); took > limit {
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
		_, err = io.Copy(io.Discard, response.Body)
		response.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		if got = response.Header.Get(load.GenerationHeader); got == generation {
			return
		}
	}
	t.Fatalf("generation %s answers, want %s", got, generation)
}
