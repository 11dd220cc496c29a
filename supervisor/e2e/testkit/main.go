//go:build linux

package testkit

import (
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/moult/moult/fdpass/start"
	"github.com/moult/moult/supervisor/cli"
	"golang.org/x/sys/unix"
)

// tokenVariable marks every process of one master, so that those which outlive
// it are found. Its name must not be one that moult takes out of a worker's
// environment.
const tokenVariable = "E2E_TOKEN"

const workerPrefix = "worker:"

// Module is the path by which packages of the repository are built.
const Module = "github.com/moult/moult"

// patience bounds every wait for something that is bound to happen.
const patience = 20 * time.Second

// Main is what TestMain of every package calls. The test binary plays moult, by
// what its real main calls, and every worker.
func Main(m *testing.M) {
	start.RunShimIfAsked()
	if len(os.Args) > 1 {
		name, options := os.Args[1], os.Args[2:]
		switch {
		case strings.HasPrefix(name, withoutPrefix):
			executeWithout(strings.TrimPrefix(name, withoutPrefix), options)
		case strings.HasPrefix(name, workerPrefix):
			playWorker(strings.TrimPrefix(name, workerPrefix), options)
			return
		}
	}
	if os.Getenv(tokenVariable) != "" {
		os.Exit(cli.Main(os.Args, ""))
	}
	closeStraysOnExec()
	// Most of a test is waiting: more of them at once than there are processors.
	flag.Parse()
	if parallel := flag.Lookup("test.parallel"); parallel.Value.String() == parallel.DefValue {
		parallel.Value.Set(strconv.Itoa(3 * runtime.GOMAXPROCS(0)))
	}
	code := m.Run()
	removeBuilt()
	os.Exit(code)
}

// closeStraysOnExec keeps what this process was started with to itself: a
// shell or a CI runner leaves descriptors open, and what a worker inherits is
// to be judged by what the master does.
func closeStraysOnExec() {
	for fd := range Descriptors(os.Getpid()) {
		if fd > 2 {
			syscall.CloseOnExec(fd)
		}
	}
}

// Soak tells whether the full counts are asked for.
func Soak() bool { return os.Getenv("MOULT_SOAK") == "1" }

// Times chooses how often something is done: in a normal run, with -short, and
// in a soak run.
func Times(normal, short, long int) int {
	switch {
	case Soak():
		return long
	case testing.Short():
		return short
	default:
		return normal
	}
}

// TakesLong leaves a test out of runs with -short, which are made besides the
// normal one.
func TakesLong(t testing.TB) {
	t.Helper()
	if testing.Short() {
		t.Skip("takes long: left out with -short")
	}
}

// RequireProgram skips the test where a server is not installed. In CI that is
// a failure: it would hide that nothing was tested.
func RequireProgram(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		Skip(t, "install "+name)
	}
	return path
}

func Skip(t testing.TB, reason string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(reason)
	}
	t.Skip(reason)
}

// Worker is the command line that makes the test binary play a worker.
func Worker(name string, options ...string) []string {
	return append([]string{Executable(), workerPrefix + name}, options...)
}

var Executable = sync.OnceValue(func() string {
	path, err := os.Executable()
	if err != nil {
		panic(err)
	}
	return path
})

// Until polls a fact until it holds (nil).
func Until(t testing.TB, what string, fact func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for pause := time.Millisecond; ; pause = min(2*pause, 20*time.Millisecond) {
		err := fact()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s: %v", patience, what, err)
		}
		time.Sleep(pause)
	}
}

// AtLeast is a fact for Until.
func AtLeast(n, want int) error {
	if n < want {
		return fmt.Errorf("%d, want %d", n, want)
	}
	return nil
}

// OK ends the test at an error.
func OK(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// ports are a thousand that no other process of tests uses at the same time:
// who has bound the name of a block has it.
var ports = sync.OnceValue(func() (first int64) {
	const blocks = 12 // from 20000 on: below the range from which clients get theirs
	for i := range blocks * 1000 {
		block := (os.Getpid() + i) % blocks
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			err = unix.Bind(fd, &unix.SockaddrUnix{Name: fmt.Sprintf("@moult-e2e-ports-%d", block)})
		}
		if err == nil {
			return 20000 + int64(block)*1000 // and keeps the descriptor
		}
		unix.Close(fd)
		if i%blocks == blocks-1 {
			time.Sleep(10 * time.Millisecond) // until another one ends
		}
	}
	panic("all ports are taken by other tests")
})

var nextPort atomic.Int64

// FreeAddress is a loopback address with a port that nobody uses.
func FreeAddress(t testing.TB) string {
	t.Helper()
	for range 1000 {
		address := net.JoinHostPort("127.0.0.1", strconv.FormatInt(ports()+nextPort.Add(1)%1000, 10))
		if listener, err := net.Listen("tcp", address); err == nil {
			listener.Close()
			return address
		}
	}
	t.Fatal("no free port")
	return ""
}

var built struct {
	once sync.Once
	dir  string
	err  error
}

// MoultBinary is the real program, for measurements that the test binary's own
// weight would spoil.
func MoultBinary(t testing.TB) string {
	t.Helper()
	if other := os.Getenv("MOULT_BINARY"); other != "" {
		return other // another build, to be compared with
	}
	built.once.Do(func() {
		if built.dir, built.err = os.MkdirTemp("", "moult-e2e-"); built.err != nil {
			return
		}
		build := exec.Command("go", "build", "-trimpath", "-tags", "urfave_cli_no_docs", "-ldflags", "-s -w", "-o", built.dir, Module)
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if output, err := build.CombinedOutput(); err != nil {
			built.err = fmt.Errorf("go build: %w\n%s", err, output)
		}
	})
	if built.err != nil {
		t.Fatal(built.err)
	}
	return filepath.Join(built.dir, "moult")
}

func removeBuilt() {
	if built.dir != "" {
		os.RemoveAll(built.dir)
	}
}

// RequireRoot skips the test of an ordinary user, in CI as well: there the tests
// run as root too.
func RequireRoot(t testing.TB, why string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root may " + why)
	}
}

func RequireIPv6(t testing.TB) {
	t.Helper()
	listener, err := net.Listen("tcp6", "[::1]:0")
	if err != nil {
		Skip(t, "no IPv6 here: "+err.Error())
	}
	listener.Close()
}

func PortOf(address string) string {
	_, port, _ := net.SplitHostPort(address)
	return port
}

// PublicCopy is the test binary where everybody may execute it.
func PublicCopy(t testing.TB) string {
	t.Helper()
	content, err := os.ReadFile(Executable())
	OK(t, err)
	path := filepath.Join(PublicDir(t), "server")
	OK(t, os.WriteFile(path, content, 0o755))
	return path
}

// PublicDir is a folder of the test's that everybody may enter, also a server
// that has dropped its privileges. Its path leaves room for a unix socket's.
func PublicDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "moult-e2e-")
	OK(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	OK(t, os.Chmod(dir, 0o755))
	return dir
}

// Testdata is the path of a file below the repository's testdata.
func Testdata(t testing.TB, name string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join("../../../testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// Pipe is one whose ends are closed when the test is over.
func Pipe(b testing.TB) (r, w *os.File) {
	r, w, err := os.Pipe()
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { r.Close(); w.Close() })
	return r, w
}

// MustGo runs the go command and returns what it has printed.
func MustGo(t testing.TB, arguments ...string) string {
	t.Helper()
	command := exec.Command("go", arguments...)
	command.Env = append(os.Environ(), "CGO_ENABLED=0")
	output, err := command.CombinedOutput()
	if err != nil {
		t.Fatalf("go %s: %v\n%s", strings.Join(arguments, " "), err, output)
	}
	return strings.TrimSpace(string(output))
}
