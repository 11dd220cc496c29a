//go:build linux

package main

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
		{"the first worker is not ready in time", with(listen("--ready-timeout", "300ms"), worker("silent")...), 1, "ready"},
		{"a worker fails, --restart never", with(listen("--restart", "never"), worker("plain", "die=300ms", "code=9")...), 9, ""},
		{"a worker leaves, --restart never", with(listen("--restart", "never"), worker("plain", "die=300ms", "code=0")...), 0, ""},
		{"a worker leaves, --restart on-failure", with(listen("--restart", "on-failure"), worker("plain", "die=300ms", "code=0")...), 0, ""},
		{"too many failures", with(listen("--restart-limit", "2/1m", "--restart-delay", "10ms..20ms"), worker("plain", "die=300ms", "code=6")...), 6, ""},
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
			address := freeAddress(t)
			for i, arg := range test.args {
				args[i] = strings.ReplaceAll(arg, "LISTEN", address)
			}
			m := launch{args: args}.start(t)
			code := m.wait()
			switch {
			case test.code >= 0 && code != test.code:
				t.Errorf("exit code %d, want %d", code, test.code)
			case test.code == -1 && code != 0 && code != 1:
				t.Errorf("exit code %d, want 0 or 1", code)
			case test.code == -2 && code != 1 && code != 2:
				t.Errorf("exit code %d, want 1 or 2", code)
			}
			m.nothingLeft()
			until(t, "stderr names the culprit", func() error {
				if !strings.Contains(m.log(), test.says) {
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
	m := run(t, []string{"-l", freeAddress(t), "--restart", "always", "--restart-delay", "1ms..1ms"},
		[]string{"/bin/sh", "-c", "echo once >>" + mark + "; exit 5"})
	m.exitsWith(5)
	if starts, _ := os.ReadFile(mark); string(starts) != "once\n" {
		t.Errorf("started: %q", starts)
	}
}

func TestAddressInUseIsAnError(t *testing.T) {
	t.Parallel()
	address := freeAddress(t)
	listener, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	m := run(t, []string{"-l", address}, worker("graceful"))
	m.exitsWith(1)
	if !strings.Contains(m.log(), "address already in use") {
		t.Error("the log does not say that the address is in use")
	}
}

func TestTwoMastersNeverShareAPort(t *testing.T) {
	t.Parallel()
	address := freeAddress(t)
	first := run(t, []string{"-l", address}, worker("graceful"))
	first.waitServing(1)
	second := run(t, []string{"-l", address}, worker("graceful"))
	second.exitsWith(1)
	first.upgrade() // two members of one group by now
	third := run(t, []string{"-l", address}, worker("graceful"))
	third.exitsWith(1)
	answeredBy(t, address, 2)
	first.stop()
}

// TIME_WAIT of the run before is no "address in use".
func TestPortCanBeTakenAgainAtOnce(t *testing.T) {
	t.Parallel()
	address := freeAddress(t)
	for range 3 {
		m := run(t, []string{"-l", address}, worker("graceful"))
		m.waitServing(1)
		if _, _, err := get("tcp", address, "/"); err != nil { // the server closes first
			t.Fatal(err)
		}
		m.stop()
	}
}

func TestBareFormAndEnvironmentVariables(t *testing.T) {
	t.Parallel()
	address := freeAddress(t)
	bare := launch{args: append([]string{"-l", address, "--"}, worker("graceful")...)}.start(t)
	bare.waitServing(1)
	bare.stop()

	address = freeAddress(t)
	byVariable := launch{
		args: append([]string{"--"}, worker("graceful")...),
		env:  []string{"MOULT_LISTEN=web=" + address + ",more=" + freeAddress(t)},
	}.start(t)
	byVariable.waitServing(1)
	if names := askSelf(t, "tcp", address).variable("LISTEN_FDNAMES"); names != "web:more" {
		t.Errorf("sockets %q", names)
	}
	byVariable.stop()
}

// "moult -- version" runs a program called version.
func TestDashesEndMoultsOwnWords(t *testing.T) {
	t.Parallel()
	directory := t.TempDir()
	script := "#!/bin/sh\nexec " + strings.Join(worker("graceful"), " ") + "\n"
	if err := os.WriteFile(filepath.Join(directory, "version"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	m := launch{
		args: []string{"--listen", freeAddress(t), "--", "version"},
		env:  []string{"PATH=" + directory + ":" + os.Getenv("PATH")},
	}.start(t)
	m.waitServing(1)
	m.stop()
}

func TestPIDFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "pid")
	p := newPlan(t, "graceful delay=200ms")
	m := run(t, []string{"-l", freeAddress(t), "--pid-file", path}, p.command())
	m.waitState(1, "starting")
	if _, err := os.Stat(path); err == nil && m.generation() == 0 {
		t.Error("written before the first generation was ready")
	}
	m.waitServing(1)
	until(t, "the pid is in the file", func() error {
		if content, _ := os.ReadFile(path); strings.TrimSpace(string(content)) != strconv.Itoa(m.pid()) {
			return fmt.Errorf("content %q", content)
		}
		return nil
	})
	m.stop()
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
	cmd := exec.Command(moultBinary(t), append([]string{"demo"}, flags...)...)
	cmd.Env = append(os.Environ(), tokenVariable+"=demo")
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
