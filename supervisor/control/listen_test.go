package control

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

func inOwnDirectory(t *testing.T) (dir string) {
	t.Helper()
	runtime := t.TempDir()
	t.Setenv("XDG_RUNTIME_DIR", runtime)
	return filepath.Join(runtime, "moult")
}

// opened is a listener that is closed with the test.
func opened(t *testing.T, l *Listener, err error) *Listener {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func listenAt(t *testing.T, path string) *Listener {
	t.Helper()
	l, err := Listen(path)
	return opened(t, l, err)
}

func listenByName(t *testing.T, name string, chosen bool) *Listener {
	t.Helper()
	l, err := ListenDefault(name, chosen)
	return opened(t, l, err)
}

func hasMode(t *testing.T, path string, want os.FileMode) {
	t.Helper()
	if info, err := os.Lstat(path); err != nil || info.Mode().Perm() != want {
		t.Errorf("%s: %v, %v, want mode %o", path, info.Mode(), err, want)
	}
}

func isLive(t *testing.T, path string) {
	t.Helper()
	if live, pid, err := probe(path); !live || pid != os.Getpid() || err != nil {
		t.Errorf("%s: live %v, pid %d, %v", path, live, pid, err)
	}
}

// leaveStale leaves a socket behind as a killed master does.
func leaveStale(t *testing.T, path string) {
	t.Helper()
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ln.SetUnlinkOnClose(false)
	ln.Close()
}

func TestDefaultSocketIsPrivate(t *testing.T) {
	dir := inOwnDirectory(t)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if path, want := listenByName(t, "web", false).Path(), filepath.Join(dir, "web.sock"); path != want {
		t.Errorf("socket at %s, want %s", path, want)
	}
	hasMode(t, dir, 0o700)
	hasMode(t, filepath.Join(dir, "web.sock"), 0o600)
}

func TestStaleSocketIsReplacedAndOwnOneRemoved(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a", "b", "c.sock")
	if err := makeParent(path); err != nil {
		t.Fatal(err)
	}
	hasMode(t, filepath.Dir(path), 0o700)
	leaveStale(t, path)
	l := listenAt(t, path)
	isLive(t, path)
	l.Close()
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("socket is still there: %v", err)
	}
}

func TestWhatIsThereIsLeftAlone(t *testing.T) {
	dir := t.TempDir()
	live, file := filepath.Join(dir, "c.sock"), filepath.Join(dir, "notes.txt")
	listenAt(t, live)
	if err := os.WriteFile(file, []byte("dear"), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, says := range map[string]string{
		live: strconv.Itoa(os.Getpid()), file: "no socket", filepath.Join(dir, strings.Repeat("x", 100)): "at most",
	} {
		var used *InUse
		if _, err := Listen(path); err == nil || !strings.Contains(err.Error(), says) || errors.As(err, &used) != (path == live) {
			t.Errorf("%s: %v", path, err)
		}
	}
	isLive(t, live)
	if text, _ := os.ReadFile(file); string(text) != "dear" {
		t.Error("the file was touched")
	}
}

func TestDefaultNameMakesRoomAndChosenNameDoesNot(t *testing.T) {
	dir := inOwnDirectory(t)
	listenByName(t, "web", false)
	second := listenByName(t, "web", false)
	if want := filepath.Join(dir, "web-"+strconv.Itoa(os.Getpid())+".sock"); second.Path() != want {
		t.Errorf("second socket at %s, want %s", second.Path(), want)
	}
	var used *InUse
	if _, err := ListenDefault("web", true); !errors.As(err, &used) {
		t.Errorf("a chosen name: %v", err)
	}
}

func TestCloseLeavesTheSuccessorsSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.sock")
	first := listenAt(t, path)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	listenAt(t, path)
	first.Close()
	isLive(t, path)
}

func TestUnusableDefaultDirectoryIsAnErrorOfItsOwn(t *testing.T) {
	runtime := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(runtime, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("XDG_RUNTIME_DIR", runtime)
	_, err := ListenDefault("web", true)
	var used *InUse
	if err == nil || errors.As(err, &used) {
		t.Errorf("ListenDefault: %v", err)
	}
}
