package fdpass

import (
	"os"
	"testing"
	"time"
)

// roleVariable makes the test binary play a program that a test starts.
const roleVariable = "FDPASS_TEST_ROLE"

var roles = map[string]func(){}

func TestMain(m *testing.M) {
	RunShimIfAsked()
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

func mustParse(t testing.TB, text string) Address {
	t.Helper()
	a, err := ParseAddress(text)
	must(t, err)
	return a
}

// mustOpen opens an address for the time of the test.
func mustOpen(t testing.TB, text string, opt Options) *Socket {
	t.Helper()
	s, err := Open(mustParse(t, text), opt)
	must(t, err)
	t.Cleanup(s.Close)
	return s
}

func mustJoin(t testing.TB, s *Socket, gen int) *Member {
	t.Helper()
	m, err := s.Join(gen)
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
