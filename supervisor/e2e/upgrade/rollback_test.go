//go:build linux

package upgrade

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moult/moult/supervisor/e2e/testkit"
)

// A rollback runs the program that served before, whatever has become of its
// file: each generation's executable is held open.

// deployed is a folder of releases, with a link to the one that is to run.
type deployed string

func deploy(t *testing.T) deployed {
	d := deployed(testkit.PublicDir(t))
	d.release(t, "v1")
	return d
}

func (d deployed) path(name string) string { return filepath.Join(string(d), name) }

// command is what the link leads to, as a worker.
func (d deployed) command() []string {
	return append([]string{d.path("current")}, testkit.Worker("graceful")[1:]...)
}

// release copies the test binary to a file of its own and moves the link.
func (d deployed) release(t *testing.T, name string) {
	t.Helper()
	content, err := os.ReadFile(testkit.Executable())
	testkit.OK(t, errors.Join(err, os.WriteFile(d.path(name), content, 0o755), relink(name, d.path("current"))))
}

// runs checks which file a process runs. /proc adds to the name of one that was
// removed.
func runs(t *testing.T, pid int, want string) {
	t.Helper()
	path, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	testkit.OK(t, err)
	if got := filepath.Base(strings.TrimSuffix(path, " (deleted)")); got != want {
		t.Errorf("%s runs, want %s", got, want)
	}
}

// rollbackRefused checks that nothing changes, and why.
func rollbackRefused(t *testing.T, m *testkit.Master, generation int, words ...string) {
	t.Helper()
	code, out := m.Client("rollback")
	for _, word := range words {
		if code != 1 || !strings.Contains(out, word) {
			t.Errorf("exit code %d, want 1 and a word on %q: %s", code, word, out)
		}
	}
	m.AnsweredBy(generation)
}

func TestRollback(t *testing.T) {
	t.Parallel()
	for _, flags := range []string{"-l {a}", "-l {a} --user nobody"} {
		t.Run(flags, func(t *testing.T) {
			if strings.Contains(flags, "--user") {
				testkit.RequireRoot(t, "start workers as somebody else")
			}
			t.Parallel()
			d := deploy(t)
			m := testkit.Run(t, strings.Fields(flags), d.command()).Serving()
			rollbackRefused(t, m, 1, "no program has served before")
			d.release(t, "v2")
			m.Upgrade()
			testkit.OK(t, os.Remove(d.path("v1")))
			for i, want := range []string{"v1", "v2", "v1"} {
				m.Succeeds("rollback")
				runs(t, m.WaitServing(i+3).PID, want)
			}
			m.Upgrade() // goes by the link again
			runs(t, m.WaitServing(6).PID, "v2")
		})
	}
}

func TestRollbackToARewrittenFileIsRefused(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	m := testkit.Run(t, []string{"-l", "{a}"}, d.command()).Serving()
	d.release(t, "v2")
	m.Upgrade()
	m.Retire()
	f, err := os.OpenFile(d.path("v1"), os.O_WRONLY|os.O_APPEND, 0)
	testkit.OK(t, err)
	_, err = f.WriteString("rewritten")
	testkit.OK(t, errors.Join(err, f.Close()))
	rollbackRefused(t, m, 2, "rewritten in place", "v1")
}

// A script becomes another program: what runs is not what the command names.
func TestRollbackOfAScriptIsRefused(t *testing.T) {
	t.Parallel()
	script := filepath.Join(t.TempDir(), "server.sh")
	testkit.OK(t, os.WriteFile(script, []byte("#!/bin/sh\nexec \"$@\"\n"), 0o755))
	m := testkit.Run(t, []string{"-l", "{a}"}, append([]string{script}, testkit.Worker("graceful")...)).Serving()
	m.Upgrade()
	rollbackRefused(t, m, 2, "only its interpreter")
}

func TestReplacedBinaryIsNotTheShim(t *testing.T) {
	t.Parallel()
	content, err := os.ReadFile(testkit.MoultBinary(t))
	moult := filepath.Join(t.TempDir(), "moult")
	testkit.OK(t, errors.Join(err, os.WriteFile(moult, content, 0o755)))
	m := testkit.Launch{Exe: moult}.Listen(t, "graceful").Serving()
	testkit.OK(t, os.WriteFile(moult+".new", []byte("#!/bin/sh\nexit 77\n"), 0o755))
	testkit.OK(t, os.Rename(moult+".new", moult))
	m.Upgrade()
	m.AnsweredBy(2)
}
