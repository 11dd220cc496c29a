//go:build linux

package container

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/moult/moult/supervisor/e2e/testkit"
)

// The image of the Dockerfile, run by podman with moult as PID 1. Nothing is
// pulled: the build stage's base image is a stand-in made of a shell and the
// tool chain of this machine, in a store of the test's own.

func TestContainer(t *testing.T) {
	requirePodman(t)
	engine := newContainerEngine(t)
	engine.buildImages(t)
	for _, test := range []struct {
		name string
		run  func(*testing.T, *containerEngine)
	}{
		{"upgrade", testContainerUpgrade},
		{"upgrade without privileges", testContainerUnprivileged},
		{"stop", testContainerStop},
		{"orphans", testContainerOrphans},
		{"exit codes", testContainerExitCodes},
		{"version", testContainerVersion},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, engine) })
	}
}

// requirePodman skips the test where it cannot run.
func requirePodman(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("builds container images: left out with -short")
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root: its client enters the container's network namespace")
	}
	for _, program := range []string{"podman", "runc", "sh"} {
		testkit.RequireProgram(t, program)
	}
}

// An upgrade is what it is anywhere else: PID 1 stays, and under load every
// request is answered, the one in flight included.
func testContainerUpgrade(t *testing.T, engine *containerEngine) {
	c := engine.start(t, nil, "-l", ":8080", "--", "/server")
	upgradeUnderLoad(t, c)
	c.stop(t)
}

// Nothing of it needs a capability, a writable root or uid 0.
func testContainerUnprivileged(t *testing.T, engine *containerEngine) {
	flags := []string{"--user", "65532:65532", "--read-only", "--read-only-tmpfs=false",
		"--cap-drop", "all", "--security-opt", "no-new-privileges"}
	c := engine.start(t, flags, "-l", ":8080", "--", "/server")
	upgradeUnderLoad(t, c)
	c.stop(t)
}

func upgradeUnderLoad(t *testing.T, c *container) {
	t.Helper()
	const upgrades = 3
	before := c.masterStart(t)
	inFlight := c.getInFlight(t, "/drain")
	load := startContainerLoad(c, 4)
	for generation := 2; generation <= 1+upgrades; generation++ {
		c.signal(t, "HUP")
		c.waitForGeneration(t, generation)
	}
	requests, failures := load.stop()
	t.Logf("%d requests, %d failures over %d upgrades", requests, len(failures), upgrades)
	if len(failures) > 0 || requests == 0 {
		t.Errorf("%d of %d requests failed: %v", len(failures), requests, failures)
	}
	if worker := <-inFlight; worker.err != nil || worker.Generation != "1" {
		t.Errorf("request in flight at the first upgrade: generation %q, error %v; want generation 1", worker.Generation, worker.err)
	}
	if after := c.masterStart(t); after != before {
		t.Errorf("PID 1 was started at %s and is now one started at %s", before, after)
	}
}

// `podman stop` sends the image's stop signal; an exit code of 137 would tell
// that the time limit and KILL have ended the container.
func testContainerStop(t *testing.T, engine *containerEngine) {
	c := engine.start(t, nil, "-l", ":8080", "--", "/server")
	inFlight := c.getInFlight(t, "/drain")
	c.stop(t)
	if worker := <-inFlight; worker.err != nil || worker.Generation != "1" {
		t.Errorf("request in flight at the stop: generation %q, error %v; want generation 1", worker.Generation, worker.err)
	}
}

// A process whose parent leaves becomes PID 1's child, and must not stay as a
// zombie when it ends.
func testContainerOrphans(t *testing.T, engine *containerEngine) {
	c := engine.start(t, nil, "-l", ":8080", "--", "/server")
	orphans := make(map[int]bool)
	for range 5 {
		var pid int
		c.mustGet(t, "/orphan", &pid)
		orphans[pid] = true
	}
	adopted := 0
	for _, p := range c.processes(t) {
		if orphans[p.PID] && p.Parent == 1 {
			adopted++
		}
	}
	if adopted != len(orphans) {
		t.Fatalf("%d of %d orphans are children of PID 1: %v", adopted, len(orphans), c.processes(t))
	}
	var ended bool
	c.mustGet(t, "/end", &ended)
	testkit.Until(t, "PID 1 has reaped the orphans", func() error {
		for _, p := range c.processes(t) {
			if orphans[p.PID] || p.State == "Z" {
				return fmt.Errorf("still there: %+v", p)
			}
		}
		return nil
	})
	c.stop(t)
}

func testContainerExitCodes(t *testing.T, engine *containerEngine) {
	for _, test := range []struct {
		command string
		code    int
	}{
		{"/absent", 127},
		{"/not-executable", 126},
	} {
		name := engine.name()
		output, err := engine.podman(append(engine.runFlags(name), engine.serverImage, "-l", ":8080", "--", test.command)...)
		// podman itself exits with 126 and 127 too, for the entry point.
		code := engine.inspect(t, name, "{{.State.ExitCode}}")
		if code != strconv.Itoa(test.code) {
			t.Errorf("%s: exit code %s, want %d (%v)\n%s", test.command, code, test.code, err, output)
		}
		if !strings.Contains(output, test.command) {
			t.Errorf("%s: the output does not name it:\n%s", test.command, output)
		}
	}
}

func testContainerVersion(t *testing.T, engine *containerEngine) {
	output, err := engine.podman(append(engine.runFlags(engine.name()), engine.serverImage, "version")...)
	if err != nil || !strings.Contains(output, containerVersion) {
		t.Errorf("version: %v; want %s in\n%s", err, containerVersion, output)
	}
}

// containerVersion is what the image is told that it is.
const containerVersion = "1.2.3-container"
