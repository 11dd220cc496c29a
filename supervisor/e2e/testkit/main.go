//go:build linux

package testkit

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/moult/moult/fdpass"
	"github.com/moult/moult/supervisor/cli"
)

// TokenVariable marks every process of one master, so that those which outlive
// it are found. Its name must not be one that moult takes out of a worker's
// environment.
const TokenVariable = "E2E_TOKEN"

const WorkerPrefix = "worker:"

// Module is the path by which packages of the repository are built.
const Module = "github.com/moult/moult"

// Patience bounds every wait for something that is bound to happen.
const Patience = 20 * time.Second

// Main is what TestMain of every package calls. The test binary plays moult, by
// what its real main calls, and every worker.
func Main(m *testing.M) {
	fdpass.RunShimIfAsked()
	if len(os.Args) > 1 {
		name, options := os.Args[1], os.Args[2:]
		switch {
		case strings.HasPrefix(name, withoutPrefix):
			executeWithout(strings.TrimPrefix(name, withoutPrefix), options)
		case strings.HasPrefix(name, WorkerPrefix):
			playWorker(strings.TrimPrefix(name, WorkerPrefix), options)
			return
		}
	}
	if os.Getenv(TokenVariable) != "" {
		os.Exit(cli.Main(os.Args, ""))
	}
	closeStraysOnExec()
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

// WorkerCommand is the command line that makes the test binary play a worker.
func WorkerCommand(name string, options ...string) []string {
	return append([]string{Executable(), WorkerPrefix + name}, options...)
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
	deadline := time.Now().Add(Patience)
	for {
		err := fact()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s: %v", Patience, what, err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// ports are a thousand that no other process of tests uses at the same time:
// who listens on the name of a block has it.
var ports = sync.OnceValue(func() (first int64) {
	const blocks = 12 // from 20000 on: below the range from which clients get theirs
	for i := range blocks * 1000 {
		block := (os.Getpid() + i) % blocks
		// For good: the name goes with the process.
		if _, err := net.Listen("unix", fmt.Sprintf("@moult-e2e-ports-%d", block)); err == nil {
			return 20000 + int64(block)*1000
		}
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
	built.once.Do(func() {
		if built.dir, built.err = os.MkdirTemp("", "moult-e2e-"); built.err != nil {
			return
		}
		build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", built.dir, Module)
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
func PublicCopy(t *testing.T) string {
	t.Helper()
	content, err := os.ReadFile(Executable())
	if err != nil {
		t.Fatal(err)
	}
	directory, err := os.MkdirTemp("/tmp", "moult-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(directory) })
	path := filepath.Join(directory, "server")
	if err := errors.Join(os.Chmod(directory, 0o755), os.WriteFile(path, content, 0o755)); err != nil {
		t.Fatal(err)
	}
	return path
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

func Pipe(b testing.TB) (r, w *os.File) {
	r, w, err := os.Pipe()
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { r.Close(); w.Close() })
	return r, w
}

func MustGo(t *testing.T, arguments ...string) string {
	t.Helper()
	command := exec.Command("go", arguments...)
	command.Env = append(os.Environ(), "CGO_ENABLED=0")
	output, err := command.CombinedOutput()
	if err != nil {
		t.Fatalf("go %s: %v\n%s", strings.Join(arguments, " "), err, output)
	}
	return strings.TrimSpace(string(output))
}

func AtLeast(n, want int) error {
	if n < want {
		return fmt.Errorf("%d, want %d", n, want)
	}
	return nil
}
