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
	"github.com/moult/moult/supervisor/load"
	"golang.org/x/sys/unix"
)

// Where interception cannot work, moult says so at once, and what to do.

// The process that moult started leaves, and another one goes on: it cannot be
// followed, and serves nobody. The daemon waits, so that it does not serve
// before its parent has left.
func TestDaemonIsRefused(t *testing.T) {
	for _, steps := range []string{"daemon {door} tcp={a}", "idle={a} daemon {door} inherit=1 end=graceful", "idle={a} daemon {door} inherit=1 tcp={b}"} {
		t.Run(steps, func(t *testing.T) {
			t.Parallel()
			address := testkit.FreeAddress(t)
			places := strings.NewReplacer("{a}", address, "{b}", testkit.FreeAddress(t), "{door}", testkit.NewGate(t).Step())
			m := testkit.Binds(t, nil, strings.Fields(places.Replace(steps))...)
			m.Explains(-1, "foreground")
			testkit.Refused(t, address)
		})
	}
}

// Where it serves before its parent leaves, it is too late to refuse it; the
// log says why it is started again and again.
func TestDaemonThatServesBeforeItsParentLeaves(t *testing.T) {
	t.Parallel()
	address, door := testkit.FreeAddress(t), testkit.NewGate(t)
	m := testkit.Binds(t, nil, "daemon="+door.Pipe.Name(), "tcp="+address)
	m.WaitServing(1)
	mark := m.Mark()
	door.Pass(t)
	m.WaitLog(mark, "what is wrong", testkit.Mentions("foreground"))
	m.ExitsWith(1)
}

// An upgrade to a daemon fails and changes nothing.
func TestUpgradeToADaemonFails(t *testing.T) {
	t.Parallel()
	address := testkit.FreeAddress(t)
	p := testkit.NewPlan(t, "binds tcp="+address)
	m := testkit.Run(t, nil, p.Command())
	m.WaitServing(1)
	clients := testkit.Traffic(t, load.Config{Address: address})
	testkit.Flowing(t, clients)
	p.Set(t, "binds idle="+address+" daemon "+testkit.NewGate(t).Step()+" inherit=1 end=graceful")
	mark := m.Mark()
	m.UpgradeFails()
	m.WaitLog(mark, "why", testkit.Mentions("foreground"))
	testkit.Flowing(t, clients)
	testkit.Lossless(t, clients)
	testkit.AnsweredBy(t, address, 1)
	m.Stop()
}

func requireRing(t *testing.T) {
	t.Helper()
	fd, err := testkit.RingSocket(testkit.FreeAddress(t))
	if err != nil {
		t.Skip("no bind by io_uring here: ", err)
	}
	unix.Close(fd)
}

// What io_uring binds, no filter sees.
func TestBindByRing(t *testing.T) {
	t.Run("of the first generation", func(t *testing.T) {
		t.Parallel()
		requireRing(t)
		address := testkit.FreeAddress(t)
		testkit.Binds(t, nil, "uring="+address).Explains(1, "--listen", address)
		testkit.Refused(t, address)
	})
	t.Run("of an upgrade", func(t *testing.T) {
		t.Parallel()
		requireRing(t)
		address := testkit.FreeAddress(t)
		p := testkit.NewPlan(t, "binds tcp="+address)
		m := testkit.Run(t, nil, p.Command())
		m.WaitServing(1)
		clients := testkit.Traffic(t, load.Config{Address: address})
		testkit.Flowing(t, clients)
		p.Set(t, "binds uring="+address)
		m.UpgradeFails()
		testkit.Flowing(t, clients)
		testkit.Lossless(t, clients)
		testkit.AnsweredBy(t, address, 1)
		m.Stop()
	})
}

// A program of the other architecture enters the kernel where the filter does
// not look.
func TestProgramOf32Bits(t *testing.T) {
	if goarch := os.Getenv("GOARCH"); goarch != "" && goarch != "amd64" {
		t.Skip("there is no 32-bit twin of ", goarch)
	}
	t.Parallel()
	path := buildFor(t, "386")
	address := testkit.FreeAddress(t)
	testkit.Run(t, nil, []string{path, testkit.PortOf(address)}).Explains(126, "32", "--listen")
	p := testkit.NewPlan(t, "binds tcp="+address)
	m := testkit.Run(t, nil, p.Command())
	m.WaitServing(1)
	p.Set(t, "sh exec "+path+" "+testkit.PortOf(address))
	m.UpgradeFails()
	testkit.AnsweredBy(t, address, 1)
	m.Stop()
}

// buildFor builds the tiny server for another architecture, which must run
// here.
func buildFor(t *testing.T, architecture string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "tiny")
	build := exec.Command(testkit.RequireProgram(t, "go"), "build", "-o", path, testkit.Module+"/testdata/intercept/tiny")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOARCH="+architecture)
	if output, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, output)
	}
	err := exec.Command(path).Run()
	if left, isExit := err.(*exec.ExitError); !isExit || left.ExitCode() != 1 {
		t.Skip("this kernel does not execute it: ", err)
	}
	return path
}

// Without privileges the filter takes no_new_privs, with which a setuid program
// does not become what it must be.
func TestSetuidProgram(t *testing.T) {
	t.Parallel()
	path := setuidProgram(t)
	l := testkit.Launch{Args: []string{"run", "--", path, "--version"}, Dir: "/"}
	if os.Getuid() == 0 {
		l.Exe = testkit.PublicCopy(t)
		l.Wrap = []string{testkit.RequireProgram(t, "setpriv"), "--reuid=65534", "--regid=65534", "--clear-groups", "--"}
	}
	m := l.Start(t)
	m.Explains(126, "setuid", "--listen")
}

func setuidProgram(t *testing.T) string {
	t.Helper()
	for _, name := range []string{"su", "passwd", "mount", "newgrp"} {
		path, err := exec.LookPath(name)
		if err != nil {
			continue
		}
		if info, err := os.Stat(path); err == nil && info.Mode()&os.ModeSetuid != 0 {
			return path
		}
	}
	testkit.Skip(t, "no setuid program is installed")
	return ""
}

// A master under a master cannot have a listener of its own.
func TestInterceptionUnderInterception(t *testing.T) {
	t.Parallel()
	address := testkit.FreeAddress(t)
	inner := append([]string{testkit.Executable(), "run", "--name", "inner", "--control", "off", "--"}, testkit.WorkerCommand("binds", "tcp="+address)...)
	testkit.Run(t, nil, inner).Explains(1, "already", "--listen")
	testkit.Refused(t, address)
}

// The inner one with --listen is a server like any other.
func TestListeningMasterUnderInterception(t *testing.T) {
	t.Parallel()
	address := testkit.FreeAddress(t)
	inner := append([]string{testkit.Executable(), "run", "-l", address, "--name", "inner", "--control", "off", "--"}, testkit.WorkerCommand("plain")...)
	m := testkit.Run(t, nil, inner)
	m.WaitServing(1)
	testkit.Answers(t, "tcp", address)
	m.Stop()
}

// What a worker binds in another network is its own business.
func TestWorkerInAnotherNetwork(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root may make a network namespace")
	}
	t.Parallel()
	address := testkit.FreeAddress(t)
	port := testkit.PortOf(address)
	command := append([]string{testkit.RequireProgram(t, "unshare"), "--net"}, testkit.WorkerCommand("binds", "tcp=0.0.0.0:"+port)...)
	m := testkit.Run(t, []string{"--ready", "alive=300ms"}, command)
	pid := m.WaitServing(1).PID
	m.BoundBy(1, 1)
	testkit.Until(t, "it listens in its network", func() error {
		table, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/tcp6", pid))
		more, _ := os.ReadFile(fmt.Sprintf("/proc/%d/net/tcp", pid))
		var number int
		fmt.Sscan(port, &number)
		if !strings.Contains(string(table)+string(more), fmt.Sprintf(":%04X ", number)) {
			return fmt.Errorf("not in its table: %v", err)
		}
		return nil
	})
	if _, err := net.Dial("tcp", address); err == nil {
		t.Error("the master listens in its own network instead")
	}
	m.Upgrade()
	m.BoundBy(2, 1)
	m.Stop()
}
