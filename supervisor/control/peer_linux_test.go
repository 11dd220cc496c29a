package control

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// asUser runs the client in the test binary as another user.
func asUser(t *testing.T, uid uint32, path string) string {
	t.Helper()
	binary := filepath.Join(publicDirectory(t), "client")
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(binary, self, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binary)
	cmd.Env = []string{roleVariable + "=" + path}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return string(out)
}

func publicDirectory(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "moult")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestAnotherUserIsRefused(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to become somebody else")
	}
	ln := listenAt(t, filepath.Join(publicDirectory(t), "c.sock"))
	m := newFakeMaster()
	s := Serve(ln, m, NewMetrics())
	defer s.Close()
	const nobody = 65534
	if said := asUser(t, nobody, ln.Path()); !strings.Contains(said, "permission denied") {
		t.Errorf("with the socket's own mode: %q", said)
	}
	if err := os.Chmod(ln.Path(), 0o666); err != nil {
		t.Fatal(err)
	}
	if said := asUser(t, nobody, ln.Path()); !strings.HasPrefix(said, "HTTP/1.1 403") {
		t.Errorf("with a socket that lets everybody in: %q", said)
	}
	if done := m.operations(); len(done) != 0 {
		t.Errorf("the master was asked for %v", done)
	}
	close(m.events)
	if said := asUser(t, 0, ln.Path()); !strings.HasPrefix(said, "HTTP/1.1 200") {
		t.Errorf("root heard %q", said)
	}
}

func TestRootAsksAnotherUsersMaster(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	ln := listenAt(t, filepath.Join(t.TempDir(), "c.sock"))
	ln.uid = 1 // as if the master were daemon's
	s := Serve(ln, newFakeMaster(), NewMetrics())
	defer s.Close()
	if _, err := dial(t, ln.Path()).Status(t.Context()); err != nil {
		t.Error(err)
	}
}
