//go:build linux

package main

import (
	"encoding/json"
	"path/filepath"
	"testing"

	"github.com/moult/moult/supervisor/control/api"
)

// statusOf asks the master as a script does.
func statusOf(t *testing.T, control string) api.Status {
	t.Helper()
	code, out := client(t, "status", "--json", "--control", control)
	var status api.Status
	if err := json.Unmarshal([]byte(out), &status); code != 0 || err != nil {
		t.Fatalf("exit code %d, %v: %s", code, err, out)
	}
	return status
}

// When scale returns, there are as many workers as it was asked for, all of
// them ready, and no other.
func TestScaleReturnsWhenItIsDone(t *testing.T) {
	t.Parallel()
	control := filepath.Join(t.TempDir(), "c")
	m := run(t, []string{"-l", freeAddress(t), "--control", control}, worker("graceful"))
	m.waitServing(1)
	for _, want := range []string{"3", "1", "2"} {
		if code, out := client(t, "scale", "--control", control, want); code != 0 {
			t.Fatalf("exit code %d: %s", code, out)
		}
		workers := statusOf(t, control).Workers
		if got := len(workers); got != int(want[0]-'0') {
			t.Errorf("%d workers after scale %s", got, want)
		}
		for _, w := range workers {
			if w.State != "serving" {
				t.Errorf("worker %d is %s after scale %s", w.PID, w.State, want)
			}
		}
	}
	m.stop()
}

// A master that is itself a worker has a name and a control socket of its own:
// the variables that it finds are those of the master above.
func TestMasterUnderAMaster(t *testing.T) {
	t.Parallel()
	address, inner := freeAddress(t), freeAddress(t)
	control := filepath.Join(t.TempDir(), "c")
	nested := append([]string{executable(), "run", "-l", inner, "--name", "inner", "--control", "off", "--"}, worker("graceful")...)
	m := run(t, []string{"-l", address, "--control", control, "--ready", "alive=100ms"}, nested)
	m.waitServing(1)
	answeredBy(t, inner, 1)
	if got := statusOf(t, control).PID; got != m.pid() {
		t.Errorf("the control socket answers for pid %d, want %d", got, m.pid())
	}
	m.stop()
}
