//go:build linux

package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moult/moult/supervisor/load"
)

// Workers that bind unix sockets.

func pythonOnUnix(t testing.TB, path string) []string {
	return []string{requireProgram(t, "python3"), testdata(t, "intercept/unixserver.py"), path}
}

// A connection is a failure if the name is gone or nobody listens behind it at
// any moment.
func TestInterceptedUnixPath(t *testing.T) {
	tests := []struct {
		name    string
		command func(t testing.TB, path string) []string
	}{
		{"removes it before it binds, and at the end", unixWorker("remove={s} unix={s} end=graceful")},
		{"removes it before it binds", unixWorker("remove={s} unix={s}")},
		{"in a child", unixWorker("remove={s} fork=1 unix={s} end=graceful")},
		{"python", pythonOnUnix},
	}
	for _, test := range tests {
		for _, flag := range []string{"--intercept-unlink", ""} {
			t.Run(test.name+flag, func(t *testing.T) {
				t.Parallel()
				path := filepath.Join(t.TempDir(), "s")
				var flags []string
				if flag != "" {
					flags = append(flags, flag)
				}
				m := run(t, flags, test.command(t, path))
				m.waitServing(1)
				if flag == "" {
					// Before it was known that the worker binds a path,
					// nothing kept it from removing the path.
					m.upgrade()
					m.waitState(1, "gone")
				}
				clients := traffic(t, load.Config{Network: "unix", Address: path, Clients: 8})
				for range times(20, 5, 100) {
					flowing(t, clients)
					m.upgrade()
				}
				m.waitState(m.generation()-1, "gone")
				flowing(t, clients)
				report := lossless(t, clients)
				if report.Generations[fmt.Sprint(m.generation())] == 0 {
					t.Errorf("the last generation has never answered: %v", report)
				}
				m.stop()
				onlyTheSocket(t, path)
			})
		}
	}
}

func unixWorker(steps string) func(testing.TB, string) []string {
	return func(_ testing.TB, path string) []string {
		return worker("binds", strings.Fields(strings.ReplaceAll(steps, "{s}", path))...)
	}
}

// onlyTheSocket checks that no temporary name stays beside the path.
func onlyTheSocket(t *testing.T, path string) {
	t.Helper()
	files, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if file.Name() != filepath.Base(path) {
			t.Errorf("left behind: %s", file.Name())
		}
	}
}

// The mode that a worker gives its socket after it has bound it is that of the
// path, whatever name the socket has at that time.
func TestModeOfAnInterceptedUnixPath(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s")
	steps := func(mode string) string {
		return "binds remove=" + path + " unix=" + path + " mode=" + mode + "," + path + " end=graceful"
	}
	p := newPlan(t, steps("640"))
	m := run(t, []string{"--intercept-unlink"}, p.command())
	m.waitServing(1)
	for _, mode := range []string{"640", "666", "600"} {
		p.set(t, steps(mode))
		m.upgrade()
		m.waitState(m.generation()-1, "gone")
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Type() != fs.ModeSocket || fmt.Sprintf("%o", info.Mode().Perm()) != mode {
			t.Errorf("generation %d has mode %v, want %s", m.generation(), info.Mode(), mode)
		}
		if got := generationAt("unix", path); got != m.generation() {
			t.Errorf("generation %d answers, want %d", got, m.generation())
		}
	}
	m.stop()
}

// A path that is not a socket of ours is removed as ever.
func TestOtherFilesAreRemoved(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	path, other := filepath.Join(folder, "s"), filepath.Join(folder, "other")
	if err := os.WriteFile(other, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	stale := listening(t, "unix", filepath.Join(folder, "stale"))
	stale.Close()
	m := binds(t, []string{"--intercept-unlink"}, "unix="+path, "remove="+other, "remove="+filepath.Join(folder, "stale"), "end=graceful")
	m.waitServing(1)
	until(t, "the others are removed", func() error {
		if files, err := os.ReadDir(folder); err != nil || len(files) != 1 {
			return fmt.Errorf("%v, %v", files, err)
		}
		return nil
	})
	m.upgrade()
	m.waitState(1, "gone")
	if got := generationAt("unix", path); got != 2 {
		t.Errorf("generation %d answers, want 2", got)
	}
	m.stop()
}

// An abstract name cannot be taken over: its socket is shared.
func TestInterceptedAbstractSocket(t *testing.T) {
	t.Parallel()
	name := "@moult-test-" + newToken()
	m := binds(t, nil, "unix="+name, "end=graceful")
	m.waitServing(1)
	clients := traffic(t, load.Config{Network: "unix", Address: name, Clients: 8})
	upgrades := times(5, 2, 50)
	for range upgrades {
		flowing(t, clients)
		m.upgrade()
	}
	m.waitState(upgrades, "gone")
	flowing(t, clients)
	if got := generationAt("unix", name); got != upgrades+1 {
		t.Errorf("generation %d answers, want %d", got, upgrades+1)
	}
	atMostShutdownLosses(t, clients, upgrades)
	m.stop()
}
