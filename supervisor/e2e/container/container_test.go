//go:build linux

package container

import (
	"archive/tar"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/moult/moult/supervisor/e2e/testkit"
)

// moult as PID 1 of containers, run by podman. Nothing is pulled, and the store
// is the test's own.

// requirePodman skips the test where it cannot run.
func requirePodman(t *testing.T) {
	t.Helper()
	testkit.TakesLong(t)
	testkit.RequireRoot(t, "enter the container's network namespace")
	for _, program := range []string{"podman", "runc", "sh"} {
		testkit.RequireProgram(t, program)
	}
}

// unprivileged is all that can be taken away: nothing needs a capability, a
// writable root or uid 0.
var unprivileged = []string{"--user", "65532:65532", "--read-only", "--read-only-tmpfs=false",
	"--cap-drop", "all", "--security-opt", "no-new-privileges"}

var declared = []string{"-l", ":8080", "--", "/server"}

// The image of the Dockerfile: the build stage's base image is a stand-in made
// of a shell and the tool chain of this machine.
func TestContainer(t *testing.T) {
	requirePodman(t)
	t.Parallel()
	e := newEngine(t)
	e.buildImages(t)
	t.Run("upgrade", func(t *testing.T) { e.upgrades(t, nil, declared...) })
	t.Run("upgrade without privileges", func(t *testing.T) { e.upgrades(t, unprivileged, declared...) })
	t.Run("stop", func(t *testing.T) { testStop(t, e) })
	t.Run("orphans", func(t *testing.T) { testOrphans(t, e) })
	for command, code := range map[string]int{"/absent": 127, "/not-executable": 126} {
		t.Run("exit code for "+command, func(t *testing.T) {
			e.endsWith(t, code, nil, []string{"-l", ":8080", "--", command}, command)
		})
	}
	t.Run("version", func(t *testing.T) { e.endsWith(t, 0, nil, []string{"version"}, containerVersion) })
}

// containerVersion is what the image is told that it is.
const containerVersion = "1.2.3-container"

// A server in a container that binds its own address. The image has nothing but
// the two programs.
func TestContainerWithInterception(t *testing.T) {
	requirePodman(t)
	t.Parallel()
	e := newEngine(t)
	e.importBinder(t)
	command := []string{"--", "/server", "bind", ":8080"}
	check := append([]string{"check"}, command...)
	profile := func(name string, more ...string) []string {
		return append([]string{"--security-opt", "seccomp=" + testkit.Testdata(t, "seccomp/"+name+".json")}, more...)
	}
	for name, flags := range map[string][]string{
		"podman's default profile":                     nil,
		"podman's default profile, without privileges": unprivileged,
		"pidfd_getfd forbidden":                        profile("no-pidfd_getfd"),
		"pidfd_getfd forbidden, without privileges":    profile("no-pidfd_getfd", unprivileged...),
	} {
		t.Run(name, func(t *testing.T) { e.upgrades(t, flags, command...) })
	}
	t.Run("check tells of the profile", func(t *testing.T) {
		e.endsWith(t, 0, profile("no-pidfd_getfd"), check, "pidfd_getfd")
	})
	// A message and an exit code, and no server.
	for _, name := range []string{"no-seccomp", "no-seccomp-at-all"} {
		t.Run(name, func(t *testing.T) {
			e.endsWith(t, 1, profile(name), command, "seccomp", "--listen")
			e.endsWith(t, 2, profile(name), check, "seccomp", "--listen")
		})
	}
}

// endsWith runs a container to its end.
func (e *engine) endsWith(t *testing.T, code int, flags, command []string, words ...string) {
	t.Helper()
	name := e.name()
	output, err := e.podman(append(append(e.runFlags(name, flags...), e.serverImage), command...)...)
	// podman itself exits with 126 and 127 too, for the entry point.
	if got := e.inspect(t, name, "{{.State.ExitCode}}"); got != strconv.Itoa(code) {
		t.Errorf("%v: exit code %s, want %d (%v)", command, got, code, err)
	}
	for _, word := range words {
		if !strings.Contains(output, word) {
			t.Errorf("%v: nothing is said about %q:\n%s", command, word, output)
		}
	}
}

// upgrades is what it is anywhere else: PID 1 stays, and under load every
// request is answered, the one in flight included.
func (e *engine) upgrades(t *testing.T, flags []string, command ...string) {
	t.Helper()
	c := e.start(t, flags, command...)
	const upgrades = 3
	before := c.masterStart(t)
	inFlight := c.getInFlight(t, "/drain")
	clients := testkit.Repeat(t, 4, time.Millisecond, func() (func() error, error) {
		return func() error { return c.get("/", new(answer)) }, nil
	})
	for generation := 2; generation <= 1+upgrades; generation++ {
		c.signal(t, "HUP")
		c.waitForGeneration(t, generation)
	}
	clients.Lossless()
	byTheFirst(t, <-inFlight)
	if after := c.masterStart(t); after != before {
		t.Errorf("PID 1 was started at %s and is now one started at %s", before, after)
	}
	c.stop(t)
}

func byTheFirst(t *testing.T, got answer) {
	t.Helper()
	if got.err != nil || got.Generation != "1" {
		t.Errorf("request in flight: generation %q, error %v; want generation 1", got.Generation, got.err)
	}
}

// `podman stop` sends the image's stop signal; an exit code of 137 would tell
// that the time limit and KILL have ended the container.
func testStop(t *testing.T, e *engine) {
	c := e.start(t, nil, declared...)
	inFlight := c.getInFlight(t, "/drain")
	c.stop(t)
	byTheFirst(t, <-inFlight)
}

// A process whose parent leaves becomes PID 1's child, and must not stay as a
// zombie when it ends.
func testOrphans(t *testing.T, e *engine) {
	c := e.start(t, nil, declared...)
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

// importBinder makes the image.
func (e *engine) importBinder(t *testing.T) {
	t.Helper()
	server := filepath.Join(e.dir, "containerserver")
	testkit.MustGo(t, "build", "-o", server, testkit.Module+"/testdata/containerserver")
	path := filepath.Join(e.dir, "binder.tar")
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	w := tar.NewWriter(file)
	addToTar(t, w, "moult", testkit.MoultBinary(t))
	addToTar(t, w, "server", server)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	e.serverImage = "binder"
	e.mustPodman(t, "import", "--change", `ENTRYPOINT ["/moult"]`, path, e.serverImage)
}
