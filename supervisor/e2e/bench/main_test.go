//go:build linux

package bench

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/moult/moult/supervisor/e2e/testkit"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { testkit.Main(m) }

func init() {
	testkit.Workers["binds-many"] = func(m testkit.Manners) { timeBinds(m.N) }
	testkit.Workers["unlinks-many"] = func(m testkit.Manners) { timeUnlinks(m.N) }
}

// timeBinds binds n ports, says how long bind and listen took, and serves.
func timeBinds(n int) {
	var binding, listens time.Duration
	for i := range n {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		began := time.Now()
		if err == nil {
			err = unix.Bind(fd, &unix.SockaddrInet4{Port: 20000 + i, Addr: [4]byte{127, 0, 82, 1}})
		}
		bound := time.Now()
		if err == nil {
			err = unix.Listen(fd, unix.SOMAXCONN)
		}
		if err != nil {
			testkit.Fail("port %d: %v", 20000+i, err)
		}
		binding, listens = binding+bound.Sub(began), listens+time.Since(bound)
		go http.Serve(testkit.ListenerOf(fd), http.HandlerFunc(testkit.Answer))
	}
	fmt.Println(binding, listens)
	select {}
}

// timeUnlinks makes and unlinks n files, and says how long the latter took.
func timeUnlinks(n int) {
	listener, err := net.Listen("tcp", "127.0.82.2:20000")
	if err != nil {
		testkit.Fail("%v", err)
	}
	go http.Serve(listener, http.HandlerFunc(testkit.Answer))
	folder, err := os.MkdirTemp("", "moult-test-")
	if err != nil {
		testkit.Fail("%v", err)
	}
	var took time.Duration
	for range n {
		took += timeUnlink(filepath.Join(folder, "file"))
	}
	os.Remove(folder)
	fmt.Println(took)
	select {}
}

func timeUnlink(path string) time.Duration {
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		testkit.Fail("%v", err)
	}
	began := time.Now()
	if err := unix.Unlink(path); err != nil {
		testkit.Fail("unlink: %v", err)
	}
	return time.Since(began)
}
