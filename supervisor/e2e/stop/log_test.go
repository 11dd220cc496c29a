//go:build linux

package stop

import (
	"bytes"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moult/moult/supervisor/e2e/testkit"
)

// A log that nobody reads holds nobody up: the master upgrades and stops as if it
// were read.
func TestLogThatNobodyReads(t *testing.T) {
	t.Parallel()
	read, write := testkit.Pipe(t)
	const smallest = 4096
	_, err := unix.FcntlInt(write.Fd(), unix.F_SETPIPE_SZ, smallest)
	testkit.OK(t, err)
	_, err = write.Write(bytes.Repeat([]byte("x"), smallest))
	testkit.OK(t, err)
	address := testkit.FreeAddress(t)
	flags := []string{"run", "--control", "off", "--log-level", "debug", "--log-format", "json", "--",
		"sh", "-c", `exec "$@" 2>/dev/null`, "sh"} // what the worker says is its own matter
	moult := exec.Command(testkit.MoultBinary(t), append(flags, testkit.Worker("binds", "tcp="+address, "end=graceful")...)...)
	moult.Stderr = write
	testkit.OK(t, moult.Start())
	t.Cleanup(func() { _ = moult.Process.Kill() })
	for generation := 1; generation <= 3; generation++ {
		testkit.Until(t, "the generation answers", func() error { return testkit.AtLeast(testkit.GenerationAt(address), generation) })
		if generation < 3 {
			testkit.OK(t, moult.Process.Signal(unix.SIGHUP))
		}
	}
	testkit.OK(t, moult.Process.Signal(unix.SIGTERM))
	ended := make(chan error, 1)
	go func() { ended <- moult.Wait() }()
	select {
	case err := <-ended:
		testkit.OK(t, err)
	case <-time.After(20 * time.Second):
		t.Error("the master waits for whoever reads its log")
	}
	read.Close()
}
