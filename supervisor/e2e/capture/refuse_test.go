//go:build linux

package capture

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moult/moult/supervisor/e2e/testkit"
)

// Where interception cannot work, moult says so at once, and what to do.

// upgradeRefused upgrades to a plan that fails, with the words in one line, and
// back.
func upgradeRefused(t *testing.T, m *testkit.Master, plan string, words ...string) {
	t.Helper()
	clients := m.Ask(16)
	clients.Flow()
	m.Next(plan)
	m.UpgradeFails(words...)
	clients.Flow()
	m.AnsweredBy(1)
	m.Next("binds tcp={a}")
	m.Upgrade()
	clients.Flow()
	clients.Lossless()
}

// The process that moult started leaves, and another one goes on: it cannot be
// followed, and serves nobody. The daemon waits, so that it does not serve
// before its parent has left.
func TestDaemonIsRefused(t *testing.T) {
	t.Parallel()
	for _, steps := range []string{
		"daemon wait={gate} tcp={a}",
		"idle={a} daemon wait={gate} inherit=1 end=graceful",
		"idle={a} daemon wait={gate} inherit=1 tcp={b}",
	} {
		t.Run(steps, func(t *testing.T) {
			t.Parallel()
			m := testkit.Capture(t, "binds "+steps)
			m.Explains(-1, "foreground")
			testkit.Refused(t, m.Address)
		})
	}
	t.Run("by an upgrade", func(t *testing.T) {
		t.Parallel()
		m := testkit.Capture(t, "binds tcp={a}").Serving()
		upgradeRefused(t, m, "binds idle={a} daemon wait={gate} inherit=1 end=graceful", "foreground")
	})
}

// Where it serves before its parent leaves, it is too late to refuse it; the
// log says why it is started again and again.
func TestDaemonThatServesBeforeItsParentLeaves(t *testing.T) {
	t.Parallel()
	m := testkit.Capture(t, "binds daemon={gate} tcp={a}").Serving()
	mark := m.Mark()
	m.Pass(1)
	m.WaitLog(mark, "what is wrong", testkit.Mentions("foreground"))
	m.ExitsWith(1)
}

// What io_uring binds, no filter sees.
func TestBindByRing(t *testing.T) {
	t.Parallel()
	if err := testkit.TryRing(testkit.FreeAddress(t)); err != nil {
		t.Skip("no bind by io_uring here: ", err)
	}
	t.Run("of the first generation", func(t *testing.T) {
		t.Parallel()
		m := testkit.Capture(t, "binds uring={a}")
		m.Explains(1, "--listen", m.Address)
		testkit.Refused(t, m.Address)
	})
	t.Run("of an upgrade", func(t *testing.T) {
		t.Parallel()
		upgradeRefused(t, testkit.Capture(t, "binds tcp={a}").Serving(), "binds uring={a}")
	})
}

// A program of the other architecture enters the kernel where the filter does
// not look.
func TestProgramOf32Bits(t *testing.T) {
	if goarch := os.Getenv("GOARCH"); goarch != "" && goarch != "amd64" {
		t.Skip("there is no 32-bit twin of ", goarch)
	}
	t.Parallel()
	path := filepath.Join(t.TempDir(), "tiny")
	build := exec.Command(testkit.RequireProgram(t, "go"), "build", "-o", path, testkit.Module+"/testdata/intercept/tiny")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOARCH=386")
	if output, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, output)
	}
	err := exec.Command(path).Run()
	if left, isExit := err.(*exec.ExitError); !isExit || left.ExitCode() != 1 {
		t.Skip("this kernel does not execute it: ", err)
	}
	testkit.Run(t, nil, []string{path, "{p}"}).Explains(126, "32", "--listen")
	upgradeRefused(t, testkit.Capture(t, "binds tcp={a}").Serving(), "sh exec "+path+" {p}")
}

// Without privileges the filter takes no_new_privs, with which a setuid program
// does not become what it must be.
func TestSetuidProgram(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"su", "passwd", "mount", "newgrp"} {
		path, _ := exec.LookPath(name)
		if info, err := os.Stat(path); err == nil && info.Mode()&os.ModeSetuid != 0 {
			l := testkit.Launch{Public: true, Wrap: testkit.Ordinary(t)}
			l.Start(t, "run", "--", path, "--version").Explains(126, "setuid", "--listen")
			return
		}
	}
	testkit.Skip(t, "no setuid program is installed")
}

// inner is a master below the one of the test.
func inner(words string) []string {
	return append([]string{testkit.Executable()}, strings.Fields(words)...)
}

// A master under a master cannot have a listener of its own.
func TestInterceptionUnderInterception(t *testing.T) {
	t.Parallel()
	command := append(inner("run --name inner --control off --"), testkit.Worker("binds", "tcp={a}")...)
	m := testkit.Run(t, nil, command)
	m.Explains(1, "already", "--listen")
	testkit.Refused(t, m.Address)
}

// The inner one with --listen is a server like any other.
func TestListeningMasterUnderInterception(t *testing.T) {
	t.Parallel()
	command := append(inner("run -l {a} --name inner --control off --"), testkit.Worker("plain")...)
	m := testkit.Run(t, nil, command).Serving()
	testkit.Answers(t, m.Address)
}

// The check under another moult knows as well that there cannot be two.
func TestCheckUnderInterception(t *testing.T) {
	t.Parallel()
	check := append(inner("check --"), testkit.Worker("binds", "tcp={a}")...)
	script := []string{"/bin/sh", "-c", "\"$@\"; echo code=$? >&2; exec sleep 60", "sh"}
	m := testkit.Run(t, []string{"--ready", "alive=50ms"}, append(script, check...))
	line := m.WaitLog(0, "the check's exit code", testkit.Says("code="))
	if line.Raw != "code=2" {
		t.Errorf("%s, want 2", line.Raw)
	}
	if m.Logged(func(e testkit.Entry) bool {
		return strings.Contains(e.Raw, "already") && strings.Contains(e.Raw, "--listen")
	}) == 0 {
		t.Error("it is not said what is in the way")
	}
	m.WaitServing(1)
}

// What a worker binds in another network is its own business.
func TestWorkerInAnotherNetwork(t *testing.T) {
	testkit.RequireRoot(t, "make a network namespace")
	t.Parallel()
	command := append([]string{testkit.RequireProgram(t, "unshare"), "--net"}, testkit.Worker("binds", "tcp=0.0.0.0:{p}")...)
	m := testkit.Run(t, []string{"--ready", "alive=300ms"}, command)
	pid := m.WaitServing(1).PID
	m.BoundBy(1, 1)
	testkit.Until(t, "it listens in its network", func() error {
		table, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/tcp6", pid))
		more, _ := os.ReadFile(fmt.Sprintf("/proc/%d/net/tcp", pid))
		var number int
		fmt.Sscan(m.Fill("{p}"), &number)
		if !strings.Contains(string(table)+string(more), fmt.Sprintf(":%04X ", number)) {
			return fmt.Errorf("not in its table: %v", err)
		}
		return nil
	})
	if _, err := net.Dial("tcp", m.Address); err == nil {
		t.Error("the master listens in its own network instead")
	}
	m.Upgrade()
	m.BoundBy(2, 1)
}
