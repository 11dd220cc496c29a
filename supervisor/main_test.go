package supervisor

import (
	"io"
	"os"
	"testing"

	"github.com/moult/moult/supervisor/e2e/testkit/leak"
)

// helperVariable makes the test binary play a process of a worker's tree: it
// does what its value says and then stays until its stdin is closed.
const helperVariable = "SUPERVISOR_TEST_HELPER"

func TestMain(m *testing.M) {
	if word := os.Getenv(helperVariable); word != "" {
		if play := helpers[word]; play != nil {
			play()
		}
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}
	leak.Main(m)
}

// helpers are filled in by the files that have the system calls for them.
var helpers = map[string]func(){}
