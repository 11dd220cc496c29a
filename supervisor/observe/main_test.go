package observe

import (
	"os"
	"testing"

	"go.uber.org/goleak"
)

// helperVariable makes the test binary play one of helpers instead of testing.
const helperVariable = "OBSERVE_TEST_HELPER"

// helpers are filled in by the files that have the system calls for them.
var helpers = map[string]func(){}

func TestMain(m *testing.M) {
	if play := helpers[os.Getenv(helperVariable)]; play != nil {
		play()
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

func TestVerdictsJoin(t *testing.T) {
	for _, c := range []struct{ v, w, want Verdict }{
		{No, No, No}, {No, Unknown, Unknown}, {Unknown, Unknown, Unknown},
		{No, Yes, Yes}, {Unknown, Yes, Yes}, {Yes, Yes, Yes},
	} {
		if c.v.or(c.w) != c.want || c.w.or(c.v) != c.want {
			t.Errorf("%v or %v: got %v and %v, want %v", c.v, c.w, c.v.or(c.w), c.w.or(c.v), c.want)
		}
	}
}
