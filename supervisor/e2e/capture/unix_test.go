//go:build linux

package capture

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moult/moult/supervisor/e2e/testkit"
	"github.com/moult/moult/supervisor/load"
)

// Workers that bind unix sockets.

func pythonOnUnix(t testing.TB, path string) []string {
	return []string{testkit.RequireProgram(t, "python3"), testkit.Testdata(t, "intercept/unixserver.py"), path}
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
				m := testkit.Run(t, flags, test.command(t, path))
				m.WaitServing(1)
				if flag == "" {
					// Before it was known that the worker binds a path,
					// nothing kept it from removing the path.
					m.Upgrade()
					m.WaitState(1, "gone")
				}
				clients := testkit.Traffic(t, load.Config{Network: "unix", Address: path, Clients: 8})
				for range testkit.Times(20, 5, 100) {
					testkit.Flowing(t, clients)
					m.Upgrade()
				}
				m.WaitState(m.Generation()-1, "gone")
				testkit.Flowing(t, clients)
				report := testkit.Lossless(t, clients)
				if report.Generations[fmt.Sprint(m.Generation())] == 0 {
					t.Errorf("the last generation has never answered: %v", report)
				}
				m.Stop()
				onlyTheSocket(t, path)
			})
		}
	}
}

func unixWorker(steps string) func(testing.TB, string) []string {
	return func(_ testing.TB, path string) []string {
		return testkit.WorkerCommand("binds", strings.Fields(strings.ReplaceAll(steps, "{s}", path))...)
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
	p := testkit.NewPlan(t, steps("640"))
	m := testkit.Run(t, []string{"--intercept-unlink"}, p.Command())
	m.WaitServing(1)
	for _, mode := range []string{"640", "666", "600"} {
		p.Set(t, steps(mode))
		m.Upgrade()
		m.WaitState(m.Generation()-1, "gone")
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Type() != fs.ModeSocket || fmt.Sprintf("%o", info.Mode().Perm()) != mode {
			t.Errorf("generation %d has mode %v, want %s", m.Generation(), info.Mode(), mode)
		}
		if got := testkit.GenerationAt("unix", path); got != m.Generation() {
			t.Errorf("generation %d answers, want %d", got, m.Generation())
		}
	}
	m.Stop()
}

// A path that is not a socket of ours is removed as ever.
func TestOtherFilesAreRemoved(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	path, other := filepath.Join(folder, "s"), filepath.Join(folder, "other")
	if err := os.WriteFile(other, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	stale := testkit.Listening(t, "unix", filepath.Join(folder, "stale"))
	stale.Close()
	m := testkit.Binds(t, []string{"--intercept-unlink"}, "unix="+path, "remove="+other, "remove="+filepath.Join(folder, "stale"), "end=graceful")
	m.WaitServing(1)
	testkit.Until(t, "the others are removed", func() error {
		if files, err := os.ReadDir(folder); err != nil || len(files) != 1 {
			return fmt.Errorf("%v, %v", files, err)
		}
		return nil
	})
	m.Upgrade()
	m.WaitState(1, "gone")
	if got := testkit.GenerationAt("unix", path); got != 2 {
		t.Errorf("generation %d answers, want 2", got)
	}
	m.Stop()
}

// An abstract name cannot be taken over: its socket is shared.
func TestInterceptedAbstractSocket(t *testing.T) {
	t.Parallel()
	name := "@moult-test-" + testkit.NewToken()
	m := testkit.Binds(t, nil, "unix="+name, "end=graceful")
	m.WaitServing(1)
	clients := testkit.Traffic(t, load.Config{Network: "unix", Address: name, Clients: 8})
	upgrades := testkit.Times(5, 2, 50)
	for range upgrades {
		testkit.Flowing(t, clients)
		m.Upgrade()
	}
	m.WaitState(upgrades, "gone")
	testkit.Flowing(t, clients)
	if got := testkit.GenerationAt("unix", name); got != upgrades+1 {
		t.Errorf("generation %d answers, want %d", got, upgrades+1)
	}
	testkit.AtMostShutdownLosses(t, clients, upgrades)
	m.Stop()
}
