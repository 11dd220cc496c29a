//go:build linux

package capture

import (
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/moult/moult/supervisor/e2e/testkit"
)

// Workers that bind unix sockets and UDP ports.

// A connection is a failure if the name is gone or nobody listens behind it at
// any moment.
func TestInterceptedUnixPath(t *testing.T) {
	t.Parallel()
	python := func() string {
		return "sh exec " + testkit.RequireProgram(t, "python3") + " " + testkit.Testdata(t, "intercept/unixserver.py") + " {s}"
	}
	played := func(plan string) func() string { return func() string { return plan } }
	const early, both = "binds remove={s} unix={s}", "--intercept-unlink"
	tests := []struct {
		name   string
		plan   func() string
		launch testkit.Launch
		flags  []string
	}{
		{"removes it before it binds, and at the end", played(early + " end=graceful"), testkit.Launch{}, nil},
		{"removes it before it binds, and at the end, unlink", played(early + " end=graceful"), testkit.Launch{}, []string{both}},
		{"removes it before it binds", played(early), testkit.Launch{}, nil},
		{"removes it before it binds, unlink", played(early), testkit.Launch{}, []string{both}},
		{"in a child", played("binds remove={s} fork=1 unix={s} end=graceful"), testkit.Launch{}, nil},
		{"in a child, unlink", played("binds remove={s} fork=1 unix={s} end=graceful"), testkit.Launch{}, []string{both}},
		{"python", python, testkit.Launch{}, nil},
		{"python, unlink", python, testkit.Launch{}, []string{both}},
		{"without duplicates", played("binds unix={s} end=graceful"), testkit.NoDuplicates(), []string{both}},
		{"without duplicates, removes it", played(early), testkit.NoDuplicates(), []string{both}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			m := test.launch.Capture(t, test.plan(), test.flags...).Serving()
			if test.flags == nil {
				// Before it was known that the worker binds a path,
				// nothing kept it from removing the path.
				m.Upgrade()
				m.Retire()
			}
			m.UpgradeUnderLoad(testkit.Times(5, 5, 100), "{s}")
			m.Stop()
			testkit.OnlyTheSocket(t, m.Fill("{s}"))
		})
	}
}

// The mode that a worker gives its socket after it has bound it is that of the
// path, whatever name the socket has at that time.
func TestModeOfAnInterceptedUnixPath(t *testing.T) {
	t.Parallel()
	plan := func(mode string) string { return "binds remove={s} unix={s} mode=" + mode + ",{s} end=graceful" }
	m := testkit.Capture(t, plan("640"), "--intercept-unlink").Serving()
	path := m.Fill("{s}")
	for _, mode := range []string{"640", "666", "600"} {
		m.Next(plan(mode))
		m.Upgrade()
		m.Retire()
		info, err := os.Stat(path)
		testkit.OK(t, err)
		if info.Mode().Type() != fs.ModeSocket || fmt.Sprintf("%o", info.Mode().Perm()) != mode {
			t.Errorf("generation %d has mode %v, want %s", m.Generation(), info.Mode(), mode)
		}
		testkit.AnsweredBy(t, path, m.Generation())
	}
}

// A path that is not a socket of ours is removed as ever.
func TestOtherFilesAreRemoved(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	path, other, stale := filepath.Join(folder, "s"), filepath.Join(folder, "other"), filepath.Join(folder, "stale")
	testkit.OK(t, os.WriteFile(other, nil, 0o600))
	testkit.Listening(t, "unix", stale).Close()
	m := testkit.Capture(t, "binds unix="+path+" remove="+other+" remove="+stale+" end=graceful", "--intercept-unlink").Serving()
	testkit.Until(t, "the others are removed", func() error {
		if files, err := os.ReadDir(folder); err != nil || len(files) != 1 {
			return fmt.Errorf("%v, %v", files, err)
		}
		return nil
	})
	m.Upgrade()
	m.Retire()
	testkit.AnsweredBy(t, path, 2)
}

// A worker that is in another directory when it listens than when it bound. An
// upgrade that fails leaves the path as it is.
func TestRelativePath(t *testing.T) {
	t.Parallel()
	m := testkit.Capture(t, "binds relative={s}").Serving()
	path := m.Fill("{s}")
	clients := testkit.AskAt(t, path, 8)
	clients.Flow()
	m.Next("binds relative={s} exit=3")
	m.UpgradeFails()
	clients.Flow()
	testkit.AnsweredBy(t, path, 1)
	m.Next("binds relative={s}")
	upgradesOnPath(t, m, clients, 0)
	testkit.OnlyTheSocket(t, path)
}

// upgradesOnPath upgrades workers of which so many wait at the gate, and stops.
func upgradesOnPath(t *testing.T, m *testkit.Master, clients *testkit.Clients, waiting int) {
	t.Helper()
	for range testkit.Times(3, 2, 20) {
		clients.Flow()
		if waiting > 0 {
			m.Pass(waiting)
		}
		m.Upgrade()
		m.Retire()
		testkit.AnsweredBy(t, m.Fill("{s}"), m.Generation())
	}
	clients.Flow()
	clients.Lossless()
	m.Stop()
}

// A socket whose name is gone before it listens cannot be held: the next
// generation could not bind it beside.
func TestPathThatCannotBeFound(t *testing.T) {
	t.Parallel()
	m := testkit.Capture(t, "binds nameless={s}")
	m.Explains(1, "cannot be found", "--listen")
	if _, err := os.Lstat(m.Fill("{s}")); !os.IsNotExist(err) {
		t.Errorf("something stands there: %v", err)
	}
}

// Two workers that make room for their socket before they bind it: the second
// finds the socket of the first.
func TestWorkersThatMakeRoomOnOnePath(t *testing.T) {
	t.Parallel()
	m := testkit.Capture(t, "binds wait={gate} remove={s} unix={s} end=graceful", "-n", "2")
	m.Pass(1)
	m.BoundBy(1, 1)
	clients := testkit.AskAt(t, m.Fill("{s}"), 8)
	clients.Flow()
	m.Pass(1)
	m.BoundBy(1, 2)
	m.WaitServing(1)
	upgradesOnPath(t, m, clients, 2)
}

// Every datagram is answered, by the old generation until the flip and by the
// new one from then on; a flow moves with it.
func TestInterceptedDatagrams(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, plan string
		launch     testkit.Launch
		flags      []string
	}{
		{"one worker", "binds udp={a}", testkit.Launch{}, nil},
		{"two workers", "binds udp={a}", testkit.Launch{}, []string{"-n", "2"}},
		{"without duplicates", "binds tcp={a} udp={a}", testkit.NoDuplicates(), nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			m := test.launch.Capture(t, test.plan, test.flags...).Serving()
			m.BoundBy(1, 1)
			flow, err := net.Dial("udp", m.Address)
			testkit.OK(t, err)
			defer flow.Close()
			clients := testkit.AskByDatagrams(t, m.Address, 32)
			for range testkit.Times(8, 5, 100) {
				clients.Flow()
				m.Upgrade()
				m.Retire()
				generation, err := testkit.Echoed(flow, "hello")
				if err != nil || generation != strconv.Itoa(m.Generation()) {
					t.Errorf("the flow is answered by generation %q (%v), want %d", generation, err, m.Generation())
				}
			}
			clients.Flow()
			clients.Lossless()
		})
	}
}

// A server on both transports at one port, as a name server is.
func TestInterceptedDatagramsBesideTCP(t *testing.T) {
	t.Parallel()
	m := testkit.Capture(t, "binds tcp={a} udp={a}").Serving()
	clients := testkit.AskByDatagrams(t, m.Address, 8)
	m.UpgradeUnderLoad(testkit.Times(3, 2, 20))
	clients.Flow()
	clients.Lossless()
}

// A server that tries port after port with one socket gets the one that its
// predecessor got.
func TestDatagramPortHunt(t *testing.T) {
	t.Parallel()
	taken, err := net.ListenPacket("udp", testkit.FreeAddress(t))
	testkit.OK(t, err)
	defer taken.Close()
	m := testkit.Capture(t, "binds hunt="+taken.LocalAddr().String()+",{b},{c} tcp={a}").Serving()
	clients := testkit.AskByDatagrams(t, m.Fill("{b}"), 8)
	for range testkit.Times(3, 2, 20) {
		clients.Flow()
		m.Upgrade()
		m.Retire()
		clients.Flow()
	}
	clients.Lossless()
	for generation := 1; generation <= m.Generation(); generation++ {
		if tried(m, generation, taken.LocalAddr().String(), "EADDRINUSE") != 1 || tried(m, generation, "{b}", "ok") != 1 {
			t.Errorf("generation %d has not got %s", generation, m.Fill("{b}"))
		}
	}
}
