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
	"strings"
	"sync"
	"testing"
	"text/template"
)

// What every web server of the tests answers: at /small these few bytes, at
// /big more than the kernel's buffers of a connection take (4 MB at the sender
// by tcp_wmem), so that it cannot end before the client reads.
const smallAnswer = "ok\n"

// BigAnswer is the content of /big.
var BigAnswer = sync.OnceValue(func() []byte {
	content := make([]byte, 8<<20)
	rand.NewChaCha8([32]byte{}).Read(content)
	return content
})

// IsSmall judges answers from /small, as load.Config wants it.
func IsSmall(response *http.Response, body []byte) (string, error) {
	if response.StatusCode != http.StatusOK || string(body) != smallAnswer {
		return "", fmt.Errorf("status %s, %d bytes", response.Status, len(body))
	}
	return "", nil
}

// programs are the servers with what each needs to stay in the foreground and
// to let a second one of its kind live beside it. The lines are for a shell, of
// which each takes the place, and templates for a Site. nginx and Apache write a
// pid file in any case; two generations must not share one.
var programs = map[string]string{
	"nginx":    `nginx -p {{.Dir}} -c {{.Configure "nginx/nginx.conf"}} -e stderr -g "daemon off; pid $$.pid;"`,
	"apache":   `apache2 -f {{.Configure "apache/httpd.conf"}} -c "PidFile $$.pid" -D FOREGROUND`,
	"haproxy":  `haproxy -db -f {{.Configure "haproxy/haproxy.cfg"}}`,
	"caddy":    `caddy run --adapter caddyfile --config {{.Configure "caddy/Caddyfile"}}`,
	"lighttpd": `lighttpd -D -f {{.Configure "lighttpd/lighttpd.conf"}}`,
	"gunicorn": `gunicorn --bind {{.Address}} --workers 2 --log-level critical --chdir {{.Data "python"}} application:wsgi`,
	"uvicorn":  `uvicorn --host {{.Host}} --port {{.Port}} --lifespan off --log-level critical --app-dir {{.Data "python"}} application:asgi`,
	"puma":     `puma --config - --quiet --environment production --bind tcp://{{.Address}} {{.Data "puma/config.ru"}}`,
	"module":   `python3 -m http.server --bind {{.Host}} --directory {{.Root}} {{.Port}}`,
	"blocking": `python3 {{.Data "python/blocking.py"}} {{.Host}} {{.Port}}`,
	"lookup":   `python3 {{.Data "lookup/server.py"}} {{.Host}} {{.Port}}`,
	"php":      `php -q -q -S {{.Address}} -t {{.Root}}`,
	"node":     `node {{.Data "node/server.js"}} {{.Host}} {{.Port}} {{.Variant}}`,
	"go":       `{{.GoServer}} {{.Address}} {{.Variant}}`,
	// Java starts fast rather than getting fast: it never runs for long.
	"java": `java -XX:TieredStopAtLevel=1 -XX:+UseSerialGC -Xshare:auto -cp {{.JavaClasses}} Server {{.Host}} {{.Port}} {{.Variant}}`,
	"redis": `redis-server --bind {{.Host}} --port {{.Port}} --save "" --daemonize no --dir {{.Dir}} ` +
		`--loglevel warning`,
	"memcached": `memcached -l {{.Host}} -p {{.Port}} -U 0 -m 16 {{if .User}}-u {{.User}}{{end}}`,
}

// Fixtures are what the servers of one test have in common; what takes long is
// made when the first one asks for it.
type Fixtures struct {
	root        string // documents: small and big
	buildGo     func() (string, error)
	compileJava func() (string, error)
}

// NewFixtures needs the test that outlives the servers' own.
func NewFixtures(t testing.TB) *Fixtures {
	dir := PublicDir(t)
	f := &Fixtures{root: filepath.Join(dir, "root")}
	OK(t, errors.Join(os.Mkdir(f.root, 0o755),
		os.WriteFile(filepath.Join(f.root, "small"), []byte(smallAnswer), 0o644),
		os.WriteFile(filepath.Join(f.root, "big"), BigAnswer(), 0o644)))
	f.buildGo = sync.OnceValues(func() (string, error) {
		path := filepath.Join(dir, "goserver")
		build := exec.Command("go", "build", "-o", path, Module+"/testdata/servers/goserver")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		return path, quietly(build)
	})
	f.compileJava = sync.OnceValues(func() (string, error) {
		return dir, quietly(exec.Command("javac", "-d", dir, Testdata(t, "servers/java/Server.java")))
	})
	return f
}

func quietly(cmd *exec.Cmd) error {
	output, err := cmd.CombinedOutput()
	if err != nil {
		return errors.Join(err, errors.New(string(output)))
	}
	return nil
}

// Site is one server's own place. What is exported is for its command line and
// its configuration's template.
type Site struct {
	Address, Host, Port string
	Dir                 string // for what it writes
	Root                string // the documents
	User, Group         string // what it becomes when it starts as root; else ""
	Variant             string
	fixtures            *Fixtures
	t                   testing.TB
}

// NewSite is for one server.
func NewSite(t testing.TB, common *Fixtures) *Site {
	s := &Site{Address: FreeAddress(t), Dir: PublicDir(t), Root: common.root, fixtures: common, t: t}
	s.Host, s.Port, _ = net.SplitHostPort(s.Address)
	if os.Geteuid() == 0 {
		account, err := user.Lookup("nobody")
		OK(t, err)
		group, err := user.LookupGroupId(account.Gid)
		OK(t, err)
		s.User, s.Group = account.Username, group.Name
	}
	return s
}

// Command is the command line of a program with its variant, as in "go dies".
func (s *Site) Command(words string) []string {
	s.t.Helper()
	name, variant, _ := strings.Cut(words, " ")
	s.Variant = variant
	line, err := template.New(name).Parse(programs[name])
	OK(s.t, err)
	program, _, _ := strings.Cut(programs[name], " ")
	if !strings.Contains(program, "{{") {
		RequireProgram(s.t, program)
	}
	var text strings.Builder
	OK(s.t, line.Execute(&text, s))
	return []string{"/bin/sh", "-c", "exec " + text.String()}
}

// Environment is for the servers that run code: where the big answer is, and a
// home to write to.
func (s *Site) Environment() []string {
	return []string{"BIG=" + filepath.Join(s.Root, "big"), "HOME=" + s.Dir, "PYTHONDONTWRITEBYTECODE=1"}
}

// Data is the path of a file of testdata/servers.
func (s *Site) Data(name string) string { return Testdata(s.t, filepath.Join("servers", name)) }

// Configure fills in a configuration of testdata/servers and returns its path.
func (s *Site) Configure(name string) (string, error) {
	content, err := template.ParseFiles(s.Data(name))
	if err != nil {
		return "", err
	}
	path := filepath.Join(s.Dir, filepath.Base(name))
	file, err := os.Create(path)
	if err != nil {
		return "", err
	}
	return path, errors.Join(content.Execute(file, s), file.Close())
}

// Backend starts a server behind a proxy, with the same two answers.
func (s *Site) Backend() string {
	server := httptest.NewServer(http.FileServer(http.Dir(s.Root)))
	s.t.Cleanup(server.Close)
	return server.Listener.Addr().String()
}

func (s *Site) GoServer() (string, error) { return s.fixtures.buildGo() }

func (s *Site) JavaClasses() (string, error) {
	RequireProgram(s.t, "javac")
	return s.fixtures.compileJava()
}
