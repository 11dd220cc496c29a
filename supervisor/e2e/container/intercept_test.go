//go:build linux

package container

import (
	"archive/tar"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/moult/moult/supervisor/e2e/testkit"
)

// A server in a container that binds its own address, with moult as PID 1. The
// image has nothing but the two programs.

func TestContainerWithInterception(t *testing.T) {
	requirePodman(t)
	engine := newContainerEngine(t)
	engine.importBinder(t)
	unprivileged := []string{"--user", "65532:65532", "--read-only", "--read-only-tmpfs=false",
		"--cap-drop", "all", "--security-opt", "no-new-privileges"}
	for _, test := range []struct {
		name  string
		flags []string
	}{
		{"podman's default profile", nil},
		{"podman's default profile, without privileges", unprivileged},
		{"pidfd_getfd forbidden", seccompProfile(t, "no-pidfd_getfd")},
		{"pidfd_getfd forbidden, without privileges", append(seccompProfile(t, "no-pidfd_getfd"), unprivileged...)},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := engine.start(t, test.flags, "--", "/server", "bind", ":8080")
			upgradeUnderLoad(t, c)
			c.stop(t)
		})
	}
	t.Run("check tells of the profile", func(t *testing.T) { testContainerCheck(t, engine) })
	for _, profile := range []string{"no-seccomp", "no-seccomp-at-all"} {
		t.Run(profile, func(t *testing.T) { testContainerRefuses(t, engine, profile) })
	}
}

func seccompProfile(t *testing.T, name string) []string {
	return []string{"--security-opt", "seccomp=" + testkit.Testdata(t, filepath.Join("seccomp", name+".json"))}
}

func testContainerCheck(t *testing.T, engine *containerEngine) {
	line := engine.runFlags(engine.name(), seccompProfile(t, "no-pidfd_getfd")...)
	output, err := engine.podman(append(line, engine.serverImage, "check", "--", "/server", "bind", ":8080")...)
	if err != nil || !strings.Contains(output, "pidfd_getfd") {
		t.Errorf("%v; want a word on pidfd_getfd in\n%s", err, output)
	}
}

// testContainerRefuses expects a message and an exit code, and no server.
func testContainerRefuses(t *testing.T, engine *containerEngine, profile string) {
	for _, test := range []struct {
		args []string
		code int
	}{
		{[]string{"--"}, 1},
		{[]string{"check", "--"}, 2},
	} {
		name := engine.name()
		line := append(engine.runFlags(name, seccompProfile(t, profile)...), engine.serverImage)
		output, _ := engine.podman(append(append(line, test.args...), "/server", "bind", ":8080")...)
		if code := engine.inspect(t, name, "{{.State.ExitCode}}"); code != strconv.Itoa(test.code) {
			t.Errorf("%v: exit code %s, want %d", test.args, code, test.code)
		}
		for _, word := range []string{"seccomp", "--listen"} {
			if !strings.Contains(output, word) {
				t.Errorf("%v: nothing is said about %q:\n%s", test.args, word, output)
			}
		}
	}
}

// importBinder makes the image.
func (e *containerEngine) importBinder(t *testing.T) {
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
