package group

import (
	"errors"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/moult/moult/fdpass"
)

// roleVariable makes the test binary play a program that a test starts.
const roleVariable = "GROUP_TEST_ROLE"

var roles = map[string]func(){}

func TestMain(m *testing.M) {
	if role, ok := roles[os.Getenv(roleVariable)]; ok {
		role()
		os.Exit(0)
	}
	// The runtime's poller opens descriptors of its own at first use, which
	// no test shall count.
	if r, w, err := os.Pipe(); err == nil {
		r.Close()
		w.Close()
	}
	os.Exit(m.Run())
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually waits for a fact.
func eventually(t testing.TB, what string, fact func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !fact(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}

func mustParse(t testing.TB, text string) fdpass.Address {
	t.Helper()
	a, err := fdpass.ParseAddress(text)
	must(t, err)
	return a
}

// mustOpen opens an address for the time of the test.
func mustOpen(t testing.TB, text string, opt Options) Group {
	t.Helper()
	g, err := Open(mustParse(t, text), opt)
	must(t, err)
	t.Cleanup(g.Close)
	return g
}

func mustJoin(t testing.TB, g Group, gen int) *Member {
	t.Helper()
	m, err := g.Join(gen)
	must(t, err)
	return m
}

// openDescriptors counts this process's descriptors.
func openDescriptors(t testing.TB) int {
	t.Helper()
	entries, err := os.ReadDir("/dev/fd")
	must(t, err)
	return len(entries)
}

// wantDescriptors compares with a count from before. What earlier tests have
// open for a moment longer may be gone since.
func wantDescriptors(t testing.TB, before int) {
	t.Helper()
	if now := openDescriptors(t); now > before {
		t.Errorf("%d descriptors leaked", now-before)
	}
}

// playAlone runs a role, which says nothing unless something is wrong.
func playAlone(t testing.TB, role string, attr *syscall.SysProcAttr, args ...string) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), roleVariable+"="+role, "GORACE=atexit_sleep_ms=0")
	cmd.SysProcAttr = attr
	out, err := cmd.CombinedOutput()
	if errors.Is(err, syscall.EPERM) && attr != nil {
		t.Skip("no namespaces here: ", err)
	}
	if err != nil || len(out) > 0 {
		t.Errorf("%s%v", out, err)
	}
}
