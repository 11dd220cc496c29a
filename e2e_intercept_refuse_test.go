//go:build linux

package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moult/moult/supervisor/load"
	"golang.org/x/sys/unix"
)

// Where interception cannot work, moult says so at once, and what to do.

// explains checks that a start failed, soon, with a log or a line of another
// moult that has all of the words. The exit code -1 stands for any but 0.
func (m *master) explains(code int, words ...string) {
	m.t.Helper()
	began := time.Now()
	if got := m.wait(); got != code && (code >= 0 || got == 0) {
		m.t.Errorf("exit code %d, want %d", got, code)
	}
	m.nothingLeft()
	if took := time.Since(began); took > 10*time.Second {
		m.t.Errorf("it took %v", took)
	}
	until(m.t, "the reason has been read", func() error {
		text := strings.ToLower(m.log())
		for _, word := range words {
			if !strings.Contains(text, word) {
				return fmt.Errorf("nothing is said about %q", word)
			}
		}
		return nil
	})
}

// The process that moult started leaves, and another one goes on: it cannot be
// followed, and serves nobody. The daemon waits, so that it does not serve
// before its parent has left.
func TestDaemonIsRefused(t *testing.T) {
	for _, steps := range []string{"daemon {door} tcp={a}", "idle={a} daemon {door} inherit=1 end=graceful", "idle={a} daemon {door} inherit=1 tcp={b}"} {
		t.Run(steps, func(t *testing.T) {
			t.Parallel()
			address := freeAddress(t)
			places := strings.NewReplacer("{a}", address, "{b}", freeAddress(t), "{door}", newGate(t).step())
			m := binds(t, nil, strings.Fields(places.Replace(steps))...)
			m.explains(-1, "foreground")
			refused(t, address)
		})
	}
}

// Where it serves before its parent leaves, it is too late to refuse it; the
// log says why it is started again and again.
func TestDaemonThatServesBeforeItsParentLeaves(t *testing.T) {
	t.Parallel()
	address, door := freeAddress(t), newGate(t)
	m := binds(t, nil, "daemon="+door.pipe.Name(), "tcp="+address)
	m.waitServing(1)
	mark := m.mark()
	door.pass(t)
	m.waitLog(mark, "what is wrong", mentions("foreground"))
	m.exitsWith(1)
}

// An upgrade to a daemon fails and changes nothing.
func TestUpgradeToADaemonFails(t *testing.T) {
	t.Parallel()
	address := freeAddress(t)
	p := newPlan(t, "binds tcp="+address)
	m := run(t, nil, p.command())
	m.waitServing(1)
	clients := traffic(t, load.Config{Address: address})
	flowing(t, clients)
	p.set(t, "binds idle="+address+" daemon "+newGate(t).step()+" inherit=1 end=graceful")
	mark := m.mark()
	m.upgradeFails()
	m.waitLog(mark, "why", mentions("foreground"))
	flowing(t, clients)
	lossless(t, clients)
	answeredBy(t, address, 1)
	m.stop()
}

func requireRing(t *testing.T) {
	t.Helper()
	fd, err := ringSocket(freeAddress(t))
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
		address := freeAddress(t)
		binds(t, nil, "uring="+address).explains(1, "--listen", address)
		refused(t, address)
	})
	t.Run("of an upgrade", func(t *testing.T) {
		t.Parallel()
		requireRing(t)
		address := freeAddress(t)
		p := newPlan(t, "binds tcp="+address)
		m := run(t, nil, p.command())
		m.waitServing(1)
		clients := traffic(t, load.Config{Address: address})
		flowing(t, clients)
		p.set(t, "binds uring="+address)
		m.upgradeFails()
		flowing(t, clients)
		lossless(t, clients)
		answeredBy(t, address, 1)
		m.stop()
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
	address := freeAddress(t)
	run(t, nil, []string{path, portOf(address)}).explains(126, "32", "--listen")
	p := newPlan(t, "binds tcp="+address)
	m := run(t, nil, p.command())
	m.waitServing(1)
	p.set(t, "sh exec "+path+" "+portOf(address))
	m.upgradeFails()
	answeredBy(t, address, 1)
	m.stop()
}

// buildFor builds the tiny server for another architecture, which must run
// here.
func buildFor(t *testing.T, architecture string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "tiny")
	build := exec.Command(requireProgram(t, "go"), "build", "-o", path, "./testdata/intercept/tiny")
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
	l := launch{args: []string{"run", "--", path, "--version"}, dir: "/"}
	if os.Getuid() == 0 {
		l.exe = publicCopy(t)
		l.wrap = []string{requireProgram(t, "setpriv"), "--reuid=65534", "--regid=65534", "--clear-groups", "--"}
	}
	m := l.start(t)
	m.explains(126, "setuid", "--listen")
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
	skip(t, "no setuid program is installed")
	return ""
}

// A master under a master cannot have a listener of its own.
func TestInterceptionUnderInterception(t *testing.T) {
	t.Parallel()
	address := freeAddress(t)
	inner := append([]string{executable(), "run", "--name", "inner", "--control", "off", "--"}, worker("binds", "tcp="+address)...)
	run(t, nil, inner).explains(1, "already", "--listen")
	refused(t, address)
}

// The inner one with --listen is a server like any other.
func TestListeningMasterUnderInterception(t *testing.T) {
	t.Parallel()
	address := freeAddress(t)
	inner := append([]string{executable(), "run", "-l", address, "--name", "inner", "--control", "off", "--"}, worker("plain")...)
	m := run(t, nil, inner)
	m.waitServing(1)
	answers(t, "tcp", address)
	m.stop()
}

// What a worker binds in another network is its own business.
func TestWorkerInAnotherNetwork(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root may make a network namespace")
	}
	t.Parallel()
	address := freeAddress(t)
	port := portOf(address)
	command := append([]string{requireProgram(t, "unshare"), "--net"}, worker("binds", "tcp=0.0.0.0:"+port)...)
	m := run(t, []string{"--ready", "alive=300ms"}, command)
	pid := m.waitServing(1).PID
	m.boundBy(1, 1)
	until(t, "it listens in its network", func() error {
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
	m.upgrade()
	m.boundBy(2, 1)
	m.stop()
}
