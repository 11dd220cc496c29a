//go:build linux

package testkit

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"sync"
	"testing"
	"text/template"
)

func IsSmall(response *http.Response, body []byte) (string, error) {
	if response.StatusCode != http.StatusOK || string(body) != smallAnswer {
		return "", fmt.Errorf("status %s, %d bytes", response.Status, len(body))
	}
	return "", nil
}

// What every server of TestAnyServer answers: at /small these few bytes, at
// /big more than the kernel's buffers of a connection take (4 MB at the sender
// by tcp_wmem), so that it cannot end before the client reads.
const smallAnswer = "ok\n"

const BigSize = 8 << 20

var BigAnswer = sync.OnceValue(func() []byte {
	content := make([]byte, BigSize)
	rand.NewChaCha8([32]byte{}).Read(content)
	return content
})

// Fixtures are what the servers of one test have in common; what takes long is
// made when the first one asks for it.
type Fixtures struct {
	root        string // documents: small and big
	buildGo     func() (string, error)
	compileJava func() (string, error)
}

// NewFixtures needs the test that outlives the servers' own.
func NewFixtures(t testing.TB) *Fixtures {
	dir := publicDir(t)
	s := &Fixtures{root: filepath.Join(dir, "root")}
	err := errors.Join(os.Mkdir(s.root, 0o755),
		os.WriteFile(filepath.Join(s.root, "small"), []byte(smallAnswer), 0o644),
		os.WriteFile(s.big(), BigAnswer(), 0o644))
	if err != nil {
		t.Fatal(err)
	}
	s.buildGo = sync.OnceValues(func() (string, error) {
		path := filepath.Join(dir, "goserver")
		build := exec.Command("go", "build", "-o", path, Module+"/testdata/servers/goserver")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		return path, quietly(build)
	})
	s.compileJava = sync.OnceValues(func() (string, error) {
		return dir, quietly(exec.Command("javac", "-d", dir, Testdata(t, "servers/java/Server.java")))
	})
	return s
}

func (s *Fixtures) big() string { return filepath.Join(s.root, "big") }

func quietly(cmd *exec.Cmd) error {
	output, err := cmd.CombinedOutput()
	if err != nil {
		return errors.Join(err, errors.New(string(output)))
	}
	return nil
}

func (s *Fixtures) goServer(t testing.TB) string {
	t.Helper()
	return madeBy(t, s.buildGo)
}

func (s *Fixtures) javaClasses(t testing.TB) string {
	t.Helper()
	RequireProgram(t, "javac")
	return madeBy(t, s.compileJava)
}

func madeBy(t testing.TB, make func() (string, error)) string {
	t.Helper()
	path, err := make()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// backend is a server behind a proxy, with the same two answers.
func (s *Fixtures) backend(t testing.TB) string {
	server := httptest.NewServer(http.FileServer(http.Dir(s.root)))
	t.Cleanup(server.Close)
	return server.Listener.Addr().String()
}

// Site is one server's own place. The exported fields are for its
// configuration's template.
type Site struct {
	Address, Host, Port string
	Dir                 string // for what it writes
	Root                string // the documents
	User, Group         string // what it becomes when it starts as root; else ""
	Backend             string // where a proxy passes requests on to
	Variant             string
	fixtures            *Fixtures
}

func NewSite(t testing.TB, common *Fixtures) *Site {
	s := &Site{Address: FreeAddress(t), Dir: publicDir(t), Root: common.root, fixtures: common}
	var err error
	if s.Host, s.Port, err = net.SplitHostPort(s.Address); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		s.User, s.Group = nobody(t)
	}
	return s
}

// publicDir is a folder that a server can still read in once it has dropped
// its privileges.
func publicDir(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	if err := errors.Join(os.Chmod(filepath.Dir(dir), 0o755), os.Chmod(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	return dir
}

func nobody(t testing.TB) (name, group string) {
	t.Helper()
	account, err := user.Lookup("nobody")
	if err != nil {
		t.Fatal(err)
	}
	own, err := user.LookupGroupId(account.Gid)
	if err != nil {
		t.Fatal(err)
	}
	return account.Username, own.Name
}

// Environment is for the servers that run code: where the big answer is, and a
// home to write to.
func (s *Site) Environment() []string {
	return []string{"BIG=" + s.fixtures.big(), "HOME=" + s.Dir, "PYTHONDONTWRITEBYTECODE=1"}
}

// configure fills in a configuration of testdata/servers and returns its path.
func (s *Site) configure(t testing.TB, name string) string {
	t.Helper()
	content, err := template.ParseFiles(Testdata(t, filepath.Join("servers", name)))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(s.Dir, filepath.Base(name))
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(content.Execute(file, s), file.Close()); err != nil {
		t.Fatal(err)
	}
	return path
}
