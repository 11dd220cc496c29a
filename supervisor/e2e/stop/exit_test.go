//go:build linux

package stop

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/moult/moult/supervisor/e2e/testkit"
)

// Every row of the table of exit codes.

func TestExitCodes(t *testing.T) {
	t.Parallel()
	directory := t.TempDir()
	notExecutable := filepath.Join(directory, "not-executable")
	if err := os.WriteFile(notExecutable, []byte("#!/bin/sh\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	listen := func(more ...string) []string {
		return append([]string{"run", "-l", "{a}"}, more...)
	}
	with := func(flags []string, command ...string) []string {
		return append(append(flags, "--"), command...)
	}
	shell := func(line string) []string { return []string{"/bin/sh", "-c", line} }
	tests := []struct {
		name string
		args []string
		code int
		says string // on stderr
	}{
		{"the command does not exist", with(listen(), "/nonexistent/server"), 127, "/nonexistent/server"},
		{"the command is not in PATH", with(listen(), "nonexistent-server"), 127, "nonexistent-server"},
		{"the command cannot be executed", with(listen(), notExecutable), 126, "not-executable"},
		{"the command is a directory", with(listen(), directory), 126, ""},
		{"the first worker fails", with(listen(), shell("exit 7")...), 7, ""},
		{"the first worker is killed", with(listen(), shell("kill -9 $$")...), 137, ""},
		{"the first worker leaves with 0", with(listen(), shell("exit 0")...), -1, ""},
		{"the first worker is not ready in time", with(listen("--ready-timeout", "300ms"), testkit.Worker("silent")...), 1, "ready"},
		{"a worker fails, --restart never", with(listen("--restart", "never"), testkit.Worker("plain", "die=300ms", "code=9")...), 9, ""},
		{"a worker leaves, --restart never", with(listen("--restart", "never"), testkit.Worker("plain", "die=300ms", "code=0")...), 0, ""},
		{"a worker leaves, --restart on-failure", with(listen("--restart", "on-failure"), testkit.Worker("plain", "die=300ms", "code=0")...), 0, ""},
		{"too many failures", with(listen("--restart-limit", "2/1m", "--restart-delay", "10ms..20ms"), testkit.Worker("plain", "die=300ms", "code=6")...), 6, ""},
		{"unknown flag", with(listen("--no-such-flag"), "true"), 2, "no-such-flag"},
		{"no command", []string{"run", "-l", "{a}"}, 2, ""},
		{"neither listen nor intercept", with([]string{"run", "--intercept=false"}, "true"), 2, "--listen"},
		{"intercept-unlink without intercept", with(listen("--intercept-unlink"), "true"), 2, "--intercept"},
		{"nothing is bound", with([]string{"run"}, "true"), 1, ""},
		{"bad address", with([]string{"run", "-l", "tcp://nonsense"}, "true"), 2, "nonsense"},
		{"bad port", with([]string{"run", "-l", "127.0.0.1:99999"}, "true"), 2, "99999"},
		{"unknown option of an address", with([]string{"run", "-l", "127.0.0.1:80?nonsense=1"}, "true"), 2, "nonsense"},
		{"unknown socket in a template", with([]string{"run", "-l", "web={a}"}, "true", "{fd:wbe}"), 2, "wbe"},
		{"unknown socket in --env", with([]string{"run", "-l", "web={a}", "--env", "A={port:wbe}"}, "true"), 2, "wbe"},
		{"one name twice", with([]string{"run", "-l", "a={a}", "-l", "a=127.0.0.1:1"}, "true"), 2, ""},
		{"bad duration", with(listen("--ready-timeout", "soon"), "true"), 2, "soon"},
		{"bad way to be ready", with(listen("--ready", "soon"), "true"), 2, "soon"},
		{"bad signal", with(listen("--drain-signal", "NOPE"), "true"), 2, "NOPE"},
		{"bad handover", with(listen("--handover", "nope"), "true"), 2, "nope"},
		{"bad restart", with(listen("--restart", "nope"), "true"), 2, "nope"},
		{"bad restart limit", with(listen("--restart-limit", "many"), "true"), 2, "many"},
		{"no worker at all", with(listen("--workers", "0"), "true"), 2, ""},
		{"unknown user", with(listen("--user", "no-such-user"), "true"), -2, "no-such-user"},
		{"directory that does not exist", with(listen("--chdir", "/nonexistent"), "true"), -2, "/nonexistent"},
		{"check of a good line", with([]string{"check", "-l", "{a}"}, "true"), 0, ""},
		{"check of a command that does not exist", with([]string{"check", "-l", "{a}"}, "/nonexistent/server"), 2, "/nonexistent/server"},
		{"check of a bad flag", with([]string{"check", "-l", "{a}", "--ready", "soon"}, "true"), 2, "soon"},
		{"version", []string{"version"}, 0, ""},
		{"help", []string{"--help"}, 0, ""},
		{"help of run", []string{"run", "--help"}, 0, ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			m := testkit.Launch{}.Start(t, test.args...)
			code := m.Wait()
			switch {
			case test.code >= 0 && code != test.code:
				t.Errorf("exit code %d, want %d", code, test.code)
			case test.code == -1 && code != 0 && code != 1:
				t.Errorf("exit code %d, want 0 or 1", code)
			case test.code == -2 && code != 1 && code != 2:
				t.Errorf("exit code %d, want 1 or 2", code)
			}
			m.NothingLeft()
			testkit.Until(t, "stderr names the culprit", func() error {
				if !strings.Contains(m.Log(), test.says) {
					return errors.New("want " + test.says)
				}
				return nil
			})
		})
	}
}

// A first generation that fails is not restarted, whatever --restart says.
func TestFirstFailureEndsTheRun(t *testing.T) {
	t.Parallel()
	mark := filepath.Join(t.TempDir(), "started")
	m := testkit.Listen(t, "sh echo once >>"+mark+"; exit 5", "--restart", "always", "--restart-delay", "1ms..1ms")
	m.ExitsWith(5)
	if starts, _ := os.ReadFile(mark); string(starts) != "once\n" {
		t.Errorf("started: %q", starts)
	}
}

func TestAddressInUseIsAnError(t *testing.T) {
	t.Parallel()
	address := testkit.FreeAddress(t)
	testkit.Listening(t, "tcp", address)
	testkit.Run(t, []string{"-l", address}, testkit.Worker("graceful")).Explains(1, "address already in use")
}

func TestTwoMastersNeverShareAPort(t *testing.T) {
	t.Parallel()
	first := testkit.Listen(t, "graceful").Serving()
	second := func() { testkit.Run(t, []string{"-l", first.Address}, testkit.Worker("graceful")).ExitsWith(1) }
	second()
	first.Upgrade() // two members of one group by now
	second()
	first.AnsweredBy(2)
}

// TIME_WAIT of the run before is no "address in use".
func TestPortCanBeTakenAgainAtOnce(t *testing.T) {
	t.Parallel()
	address := testkit.FreeAddress(t)
	for range 3 {
		m := testkit.Run(t, []string{"-l", address}, testkit.Worker("graceful")).Serving()
		testkit.MustGet(t, address, "/") // the server closes first
		m.Stop()
	}
}

func TestBareFormAndEnvironmentVariables(t *testing.T) {
	t.Parallel()
	line := append([]string{"--"}, testkit.Worker("graceful")...)
	testkit.Launch{}.Start(t, append([]string{"-l", "{a}"}, line...)...).Serving()
	m := testkit.Launch{Env: []string{"MOULT_LISTEN=web={a},more={b}"}}.Start(t, line...).Serving()
	if names := m.Self().Variable("LISTEN_FDNAMES"); names != "web:more" {
		t.Errorf("sockets %q", names)
	}
}

// "moult -- version" runs a program called version.
func TestDashesEndMoultsOwnWords(t *testing.T) {
	t.Parallel()
	directory := t.TempDir()
	script := "#!/bin/sh\nexec " + strings.Join(testkit.Worker("graceful"), " ") + "\n"
	testkit.OK(t, os.WriteFile(filepath.Join(directory, "version"), []byte(script), 0o755))
	testkit.Launch{Env: []string{"PATH=" + directory + ":" + os.Getenv("PATH")}}.Start(t, "--listen", "{a}", "--", "version").Serving()
}

func TestPIDFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "pid")
	m := testkit.Listen(t, "graceful delay=200ms", "--pid-file", path)
	m.WaitState(1, "starting")
	if _, err := os.Stat(path); err == nil && m.Generation() == 0 {
		t.Error("written before the first generation was ready")
	}
	m.WaitServing(1)
	testkit.Until(t, "the pid is in the file", func() error {
		if content, _ := os.ReadFile(path); strings.TrimSpace(string(content)) != strconv.Itoa(m.PID()) {
			return fmt.Errorf("content %q", content)
		}
		return nil
	})
	m.Stop()
	if _, err := os.Stat(path); err == nil {
		t.Error("still there after the end")
	}
}

func TestDemo(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		flags []string
		code  int
		says  string
	}{
		{[]string{"--upgrades", "2"}, 0, "at rest"},
		// A server that dies of TERM, on one socket for all: the count must show it.
		{[]string{"--upgrades", "2", "--abrupt", "--handover", "share"}, 1, ""},
	} {
		t.Run(strings.Join(test.flags, " "), func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			cmd := exec.CommandContext(ctx, testkit.MoultBinary(t), append([]string{"demo"}, test.flags...)...)
			output, _ := cmd.CombinedOutput()
			if code := cmd.ProcessState.ExitCode(); code != test.code || !strings.Contains(string(output), test.says) {
				t.Errorf("exit code %d, want %d:\n%s", code, test.code, output)
			}
		})
	}
}
