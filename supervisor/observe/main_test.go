package observe

import (
	"os"
	"testing"

	"github.com/moult/moult/supervisor/e2e/testkit/leak"
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
	leak.Main(m)
}
