//go:build linux

package upgrade

import (
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/moult/moult/supervisor/e2e/testkit"
)

func TestReplacedBinaryIsNotTheShim(t *testing.T) {
	t.Parallel()
	directory := t.TempDir()
	moult := filepath.Join(directory, "moult")
	content, err := os.ReadFile(testkit.MoultBinary(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(moult, content, 0o755); err != nil {
		t.Fatal(err)
	}
	address := testkit.FreeAddress(t)
	m := testkit.Launch{Exe: moult, Args: append([]string{"run", "-l", address, "--"}, testkit.WorkerCommand("graceful")...)}.Start(t)
	m.WaitServing(1)
	other := filepath.Join(directory, "other")
	if err := os.WriteFile(other, []byte("#!/bin/sh\nexit 77\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(other, moult); err != nil {
		t.Fatal(err)
	}
	m.Upgrade()
	testkit.AnsweredBy(t, address, 2)
	m.Stop()
}

// A rollback runs the program that served before, whatever has become of its
// file: each generation's executable is held open.

// deployed is a program in a folder of releases, with a link to the one that is
// to run.
type deployed struct{ dir string }

func deploy(t *testing.T) deployed {
	d := deployed{t.TempDir()}
	if err := os.Chmod(d.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	d.release(t, "v1")
	return d
}

func (d deployed) server() string { return filepath.Join(d.dir, "current") }

// release copies the test binary to a file of its own and moves the link.
func (d deployed) release(t *testing.T, name string) {
	t.Helper()
	from, err := os.Open(testkit.Executable())
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	to, err := os.OpenFile(filepath.Join(d.dir, name), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(to, from); err != nil {
		t.Fatal(err)
	}
	if err := to.Close(); err != nil {
		t.Fatal(err)
	}
	link := d.server() + ".new"
	if err := os.Symlink(name, link); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(link, d.server()); err != nil {
		t.Fatal(err)
	}
}

// program is the file that a process runs, without what /proc adds to the name
// of one that was removed.
func program(t *testing.T, pid int) string {
	t.Helper()
	path, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/exe")
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Base(strings.TrimSuffix(path, " (deleted)"))
}

func TestRollback(t *testing.T) {
	for _, who := range []string{"", "nobody"} {
		t.Run("as "+who, func(t *testing.T) {
			if who != "" && os.Getuid() != 0 {
				t.Skip("only root starts workers as somebody else")
			}
			t.Parallel()
			d := deploy(t)
			control := filepath.Join(t.TempDir(), "c")
			flags := []string{"-l", testkit.FreeAddress(t), "--control", control}
			if who != "" {
				// The folder of the test is closed to others.
				for dir := d.dir; dir != "/"; dir = filepath.Dir(dir) {
					if info, err := os.Stat(dir); err == nil && info.Mode()&0o001 == 0 {
						if err := os.Chmod(dir, info.Mode()|0o011); err != nil {
							t.Fatal(err)
						}
					}
				}
				flags = append(flags, "--user", who)
			}
			m := testkit.Run(t, flags, append([]string{d.server()}, testkit.WorkerCommand("graceful")[1:]...))
			m.WaitServing(1)
			if code, out := testkit.Client(t, "rollback", "--control", control); code != 1 || !strings.Contains(out, "no program has served before") {
				t.Errorf("with nothing to go back to: exit code %d, %s", code, out)
			}

			d.release(t, "v2")
			m.Upgrade()
			if err := os.Remove(filepath.Join(d.dir, "v1")); err != nil {
				t.Fatal(err)
			}
			for i, want := range []string{"v1", "v2", "v1"} {
				if code, out := testkit.Client(t, "rollback", "--control", control); code != 0 {
					t.Fatalf("exit code %d: %s", code, out)
				}
				pid := m.WaitServing(i + 3).PID
				if got := program(t, pid); got != want {
					t.Errorf("after rollback %d %s runs, want %s", i+1, got, want)
				}
			}
			// An upgrade goes by the link again.
			m.Upgrade()
			if got := program(t, m.WaitServing(6).PID); got != "v2" {
				t.Errorf("after an upgrade %s runs, want v2", got)
			}
			m.Stop()
		})
	}
}

func TestRollbackToARewrittenFileIsRefused(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	address, control := testkit.FreeAddress(t), filepath.Join(t.TempDir(), "c")
	m := testkit.Run(t, []string{"-l", address, "--control", control}, append([]string{d.server()}, testkit.WorkerCommand("graceful")[1:]...))
	m.WaitServing(1)
	d.release(t, "v2")
	m.Upgrade()
	m.WaitState(1, "gone")
	f, err := os.OpenFile(filepath.Join(d.dir, "v1"), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("rewritten"); err != nil {
		t.Fatal(err)
	}
	f.Close()
	code, out := testkit.Client(t, "rollback", "--control", control)
	if code != 1 || !strings.Contains(out, "rewritten in place") || !strings.Contains(out, "v1") {
		t.Errorf("exit code %d: %s", code, out)
	}
	testkit.AnsweredBy(t, address, 2)
	m.Stop()
}

func TestRollbackOfAScriptIsRefused(t *testing.T) {
	t.Parallel()
	script := filepath.Join(t.TempDir(), "server.sh")
	// It becomes another program: what runs is not what the command names.
	content := "#!/bin/sh\nexec \"$@\"\n"
	if err := os.WriteFile(script, []byte(content), 0o755); err != nil {
		t.Fatal(err)
	}
	address, control := testkit.FreeAddress(t), filepath.Join(t.TempDir(), "c")
	m := testkit.Run(t, []string{"-l", address, "--control", control},
		append([]string{script}, testkit.WorkerCommand("graceful")...))
	m.WaitServing(1)
	m.Upgrade()
	code, out := testkit.Client(t, "rollback", "--control", control)
	if code != 1 || !strings.Contains(out, "only its interpreter") {
		t.Errorf("exit code %d: %s", code, out)
	}
	testkit.AnsweredBy(t, address, 2)
	m.Stop()
}
