package fdpass

import (
	"os"
	"testing"
)

// roleVariable makes the test binary play a program that a test starts.
const roleVariable = "FDPASS_TEST_ROLE"

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
