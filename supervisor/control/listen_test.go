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

func mode(t *testing.T, path string) os.FileMode {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Mode().Perm()
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
	l, err := ListenDefault("web", false)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if l.Path() != filepath.Join(dir, "web.sock") {
		t.Errorf("socket at %s", l.Path())
	}
	if m := mode(t, dir); m != 0o700 {
		t.Errorf("directory has mode %o", m)
	}
	if m := mode(t, l.Path()); m != 0o600 {
		t.Errorf("socket has mode %o", m)
	}
}

func TestStaleSocketIsReplacedAndOwnOneRemoved(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a", "b", "c.sock")
	if err := makeParent(path); err != nil {
		t.Fatal(err)
	}
	leaveStale(t, path)
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if live, pid, err := probe(path); !live || pid != os.Getpid() || err != nil {
		t.Errorf("probe: live %v, pid %d, %v", live, pid, err)
	}
	l.Close()
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("socket is still there: %v", err)
	}
	if m := mode(t, filepath.Dir(path)); m != 0o700 {
		t.Errorf("directory was made with mode %o", m)
	}
}

func TestLiveSocketIsRefusedWithItsPID(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.sock")
	first, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	_, err = Listen(path)
	var used *InUse
	if !errors.As(err, &used) || used.PID != os.Getpid() || !strings.Contains(err.Error(), strconv.Itoa(os.Getpid())) {
		t.Fatalf("second listener: %v", err)
	}
	if live, _, _ := probe(path); !live {
		t.Error("the first one lost its socket")
	}
}

func TestDefaultNameMakesRoomAndChosenNameDoesNot(t *testing.T) {
	dir := inOwnDirectory(t)
	first, err := ListenDefault("web", false)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	second, err := ListenDefault("web", false)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	if want := filepath.Join(dir, "web-"+strconv.Itoa(os.Getpid())+".sock"); second.Path() != want {
		t.Errorf("second socket at %s, want %s", second.Path(), want)
	}
	var used *InUse
	if _, err := ListenDefault("web", true); !errors.As(err, &used) {
		t.Errorf("a chosen name: %v", err)
	}
}

func TestListenLeavesAloneWhatIsNoSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notes.txt")
	if err := os.WriteFile(path, []byte("dear"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(path); err == nil || !strings.Contains(err.Error(), "no socket") {
		t.Errorf("listen on a file: %v", err)
	}
	if text, _ := os.ReadFile(path); string(text) != "dear" {
		t.Error("the file was touched")
	}
}

func TestListenRefusesLongPathsWithTheReason(t *testing.T) {
	path := filepath.Join(t.TempDir(), strings.Repeat("x", 100))
	if _, err := Listen(path); err == nil || !strings.Contains(err.Error(), "at most") {
		t.Errorf("a long path: %v", err)
	}
}

func TestCloseLeavesTheSuccessorsSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.sock")
	first, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	second, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	first.Close()
	if live, _, _ := probe(path); !live {
		t.Error("the first one's end took the second one's socket")
	}
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
