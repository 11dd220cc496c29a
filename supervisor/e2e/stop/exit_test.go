//go:build linux

package stop

import (
	"bytes"
	"errors"
	"fmt"
	"net"
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
	directory := t.TempDir()
	notExecutable := filepath.Join(directory, "not-executable")
	if err := os.WriteFile(notExecutable, []byte("#!/bin/sh\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	listen := func(more ...string) []string {
		return append([]string{"run", "-l", "LISTEN"}, more...)
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
		{"the first worker is not ready in time", with(listen("--ready-timeout", "300ms"), testkit.WorkerCommand("silent")...), 1, "ready"},
		{"a worker fails, --restart never", with(listen("--restart", "never"), testkit.WorkerCommand("plain", "die=300ms", "code=9")...), 9, ""},
		{"a worker leaves, --restart never", with(listen("--restart", "never"), testkit.WorkerCommand("plain", "die=300ms", "code=0")...), 0, ""},
		{"a worker leaves, --restart on-failure", with(listen("--restart", "on-failure"), testkit.WorkerCommand("plain", "die=300ms", "code=0")...), 0, ""},
		{"too many failures", with(listen("--restart-limit", "2/1m", "--restart-delay", "10ms..20ms"), testkit.WorkerCommand("plain", "die=300ms", "code=6")...), 6, ""},
		{"unknown flag", with(listen("--no-such-flag"), "true"), 2, "no-such-flag"},
		{"no command", []string{"run", "-l", "LISTEN"}, 2, ""},
		{"neither listen nor intercept", with([]string{"run", "--intercept=false"}, "true"), 2, "--listen"},
		{"intercept-unlink without intercept", with(listen("--intercept-unlink"), "true"), 2, "--intercept"},
		{"nothing is bound", with([]string{"run"}, "true"), 1, ""},
		{"bad address", with([]string{"run", "-l", "tcp://nonsense"}, "true"), 2, "nonsense"},
		{"bad port", with([]string{"run", "-l", "127.0.0.1:99999"}, "true"), 2, "99999"},
		{"unknown option of an address", with([]string{"run", "-l", "127.0.0.1:80?nonsense=1"}, "true"), 2, "nonsense"},
		{"unknown socket in a template", with([]string{"run", "-l", "web=LISTEN"}, "true", "{fd:wbe}"), 2, "wbe"},
		{"unknown socket in --env", with([]string{"run", "-l", "web=LISTEN", "--env", "A={port:wbe}"}, "true"), 2, "wbe"},
		{"one name twice", with([]string{"run", "-l", "a=LISTEN", "-l", "a=127.0.0.1:1"}, "true"), 2, ""},
		{"bad duration", with(listen("--ready-timeout", "soon"), "true"), 2, "soon"},
		{"bad way to be ready", with(listen("--ready", "soon"), "true"), 2, "soon"},
		{"bad signal", with(listen("--drain-signal", "NOPE"), "true"), 2, "NOPE"},
		{"bad handover", with(listen("--handover", "nope"), "true"), 2, "nope"},
		{"bad restart", with(listen("--restart", "nope"), "true"), 2, "nope"},
		{"bad restart limit", with(listen("--restart-limit", "many"), "true"), 2, "many"},
		{"no worker at all", with(listen("--workers", "0"), "true"), 2, ""},
		{"unknown user", with(listen("--user", "no-such-user"), "true"), -2, "no-such-user"},
		{"directory that does not exist", with(listen("--chdir", "/nonexistent"), "true"), -2, "/nonexistent"},
		{"check of a good line", with([]string{"check", "-l", "LISTEN"}, "true"), 0, ""},
		{"check of a command that does not exist", with([]string{"check", "-l", "LISTEN"}, "/nonexistent/server"), 2, "/nonexistent/server"},
		{"check of a bad flag", with([]string{"check", "-l", "LISTEN", "--ready", "soon"}, "true"), 2, "soon"},
		{"version", []string{"version"}, 0, ""},
		{"help", []string{"--help"}, 0, ""},
		{"help of run", []string{"run", "--help"}, 0, ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			args := make([]string, len(test.args))
			address := testkit.FreeAddress(t)
			for i, arg := range test.args {
				args[i] = strings.ReplaceAll(arg, "LISTEN", address)
			}
			m := testkit.Launch{Args: args}.Start(t)
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
	m := testkit.Run(t, []string{"-l", testkit.FreeAddress(t), "--restart", "always", "--restart-delay", "1ms..1ms"},
		[]string{"/bin/sh", "-c", "echo once >>" + mark + "; exit 5"})
	m.ExitsWith(5)
	if starts, _ := os.ReadFile(mark); string(starts) != "once\n" {
		t.Errorf("started: %q", starts)
	}
}

func TestAddressInUseIsAnError(t *testing.T) {
	t.Parallel()
	address := testkit.FreeAddress(t)
	listener, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	m := testkit.Run(t, []string{"-l", address}, testkit.WorkerCommand("graceful"))
	m.ExitsWith(1)
	if !strings.Contains(m.Log(), "address already in use") {
		t.Error("the log does not say that the address is in use")
	}
}

func TestTwoMastersNeverShareAPort(t *testing.T) {
	t.Parallel()
	address := testkit.FreeAddress(t)
	first := testkit.Run(t, []string{"-l", address}, testkit.WorkerCommand("graceful"))
	first.WaitServing(1)
	second := testkit.Run(t, []string{"-l", address}, testkit.WorkerCommand("graceful"))
	second.ExitsWith(1)
	first.Upgrade() // two members of one group by now
	third := testkit.Run(t, []string{"-l", address}, testkit.WorkerCommand("graceful"))
	third.ExitsWith(1)
	testkit.AnsweredBy(t, address, 2)
	first.Stop()
}

// TIME_WAIT of the run before is no "address in use".
func TestPortCanBeTakenAgainAtOnce(t *testing.T) {
	t.Parallel()
	address := testkit.FreeAddress(t)
	for range 3 {
		m := testkit.Run(t, []string{"-l", address}, testkit.WorkerCommand("graceful"))
		m.WaitServing(1)
		if _, _, err := testkit.Get("tcp", address, "/"); err != nil { // the server closes first
			t.Fatal(err)
		}
		m.Stop()
	}
}

func TestBareFormAndEnvironmentVariables(t *testing.T) {
	t.Parallel()
	address := testkit.FreeAddress(t)
	bare := testkit.Launch{Args: append([]string{"-l", address, "--"}, testkit.WorkerCommand("graceful")...)}.Start(t)
	bare.WaitServing(1)
	bare.Stop()

	address = testkit.FreeAddress(t)
	byVariable := testkit.Launch{
		Args: append([]string{"--"}, testkit.WorkerCommand("graceful")...),
		Env:  []string{"MOULT_LISTEN=web=" + address + ",more=" + testkit.FreeAddress(t)},
	}.Start(t)
	byVariable.WaitServing(1)
	if names := testkit.AskSelf(t, "tcp", address).Variable("LISTEN_FDNAMES"); names != "web:more" {
		t.Errorf("sockets %q", names)
	}
	byVariable.Stop()
}

// "moult -- version" runs a program called version.
func TestDashesEndMoultsOwnWords(t *testing.T) {
	t.Parallel()
	directory := t.TempDir()
	script := "#!/bin/sh\nexec " + strings.Join(testkit.WorkerCommand("graceful"), " ") + "\n"
	if err := os.WriteFile(filepath.Join(directory, "version"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	m := testkit.Launch{
		Args: []string{"--listen", testkit.FreeAddress(t), "--", "version"},
		Env:  []string{"PATH=" + directory + ":" + os.Getenv("PATH")},
	}.Start(t)
	m.WaitServing(1)
	m.Stop()
}

func TestPIDFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "pid")
	p := testkit.NewPlan(t, "graceful delay=200ms")
	m := testkit.Run(t, []string{"-l", testkit.FreeAddress(t), "--pid-file", path}, p.Command())
	m.WaitState(1, "starting")
	if _, err := os.Stat(path); err == nil && m.Generation() == 0 {
		t.Error("written before the first generation was ready")
	}
	m.WaitServing(1)
	testkit.Until(t, "the pid is in the file", func() error {
		if content, _ := os.ReadFile(path); strings.TrimSpace(string(content)) != strconv.Itoa(m.Pid()) {
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
	if output, code := demo(t, "--upgrades", "2"); code != 0 || !strings.Contains(output, "at rest") {
		t.Errorf("exit code %d, want 0:\n%s", code, output)
	}
	// A server that dies of TERM, on one socket for all: the count must show it.
	if output, code := demo(t, "--upgrades", "2", "--abrupt", "--handover", "share"); code != 1 {
		t.Errorf("exit code %d, want 1:\n%s", code, output)
	}
}

// demo runs "moult demo" to its end.
func demo(t *testing.T, flags ...string) (string, int) {
	t.Helper()
	cmd := exec.Command(testkit.MoultBinary(t), append([]string{"demo"}, flags...)...)
	cmd.Env = append(os.Environ(), testkit.TokenVariable+"=demo")
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	limit := time.AfterFunc(2*time.Minute, func() { cmd.Process.Kill() })
	defer limit.Stop()
	cmd.Wait()
	return output.String(), cmd.ProcessState.ExitCode()
}
