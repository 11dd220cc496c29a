//go:build linux

package container

import (
	"archive/tar"
	"bytes"
	"context"
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/moult/moult/supervisor/e2e/testkit"
)

// engine is podman with a store of its own, which goes with the test.
type engine struct {
	dir         string
	serverImage string
	names       atomic.Int64
}

func newEngine(t *testing.T) *engine {
	t.Helper()
	// Not t.TempDir: conmon puts sockets below it, whose paths must be short.
	dir, err := os.MkdirTemp("", "moult")
	testkit.OK(t, err)
	e := &engine{dir: dir, serverImage: "server"}
	t.Cleanup(func() {
		if output, err := e.podman("rm", "--all", "--force", "--time", "0"); err != nil {
			t.Errorf("cannot remove the containers: %v\n%s", err, output)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return e
}

// podman runs one command to its end and returns what it has printed.
func (e *engine) podman(arguments ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	defer cancel()
	output, err := exec.CommandContext(ctx, "podman", append([]string{
		"--root", filepath.Join(e.dir, "root"), "--runroot", filepath.Join(e.dir, "run"), "--tmpdir", filepath.Join(e.dir, "tmp"),
		"--runtime", "runc", "--cgroup-manager", "cgroupfs", "--events-backend", "none",
	}, arguments...)...).CombinedOutput()
	return strings.TrimSpace(string(output)), err
}

func (e *engine) mustPodman(t *testing.T, arguments ...string) string {
	t.Helper()
	output, err := e.podman(arguments...)
	if err != nil {
		t.Fatalf("podman %s: %v\n%s", strings.Join(arguments, " "), err, output)
	}
	return output
}

func (e *engine) inspect(t *testing.T, name, format string) string {
	t.Helper()
	return e.mustPodman(t, "inspect", "--format", format, name)
}

func (e *engine) name() string { return "moult-" + strconv.FormatInt(e.names.Add(1), 10) }

// limits keep podman from raising limits, which machines that are containers
// themselves refuse.
func (e *engine) limits() []string {
	return []string{"--network", "none", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"}
}

func (e *engine) runFlags(name string, more ...string) []string {
	flags := append([]string{"run", "--name", name, "--log-driver", "k8s-file"}, e.limits()...)
	return append(flags, more...)
}

// buildImages makes the stand-in for the base, moult's image from the
// Dockerfile, and an image with a server on top of it as a user would.
func (e *engine) buildImages(t *testing.T) {
	t.Helper()
	e.importBase(t, dockerfileBase(t))
	// Outside, since the build inside has no network.
	testkit.MustGo(t, "mod", "download")
	started := time.Now()
	build := append([]string{"build", "--build-arg", "VERSION=" + containerVersion, "--tag", "moult",
		"--volume", goEnv(t, "GOROOT") + ":/usr/local/go:ro",
		"--volume", goEnv(t, "GOMODCACHE") + ":/go/pkg/mod",
		"--volume", goEnv(t, "GOCACHE") + ":/root/.cache/go-build"}, e.limits()...)
	e.mustPodman(t, append(build, "../../..")...)
	t.Logf("image built in %v", time.Since(started).Round(time.Millisecond))

	dir := filepath.Join(e.dir, "server")
	testkit.OK(t, os.Mkdir(dir, 0o755))
	testkit.MustGo(t, "build", "-o", filepath.Join(dir, "server"), testkit.Module+"/testdata/containerserver")
	dockerfile := "FROM moult\nCOPY server /server\nCOPY Dockerfile /not-executable\n" +
		`CMD ["-l", ":8080", "--", "/server"]` + "\n"
	testkit.OK(t, os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(dockerfile), 0o644))
	e.mustPodman(t, append(append([]string{"build", "--tag", e.serverImage}, e.limits()...), dir)...)
}

// dockerfileBase returns the name of the image that the build stage begins with.
func dockerfileBase(t *testing.T) string {
	t.Helper()
	dockerfile, err := os.ReadFile("../../../Dockerfile")
	testkit.OK(t, err)
	match := regexp.MustCompile(`(?m)^FROM (golang:\S+) AS build$`).FindSubmatch(dockerfile)
	if match == nil {
		t.Fatal("the Dockerfile names no golang base")
	}
	return "docker.io/library/" + string(match[1])
}

// importBase gives name to an image that holds this machine's shell; Go comes
// as a mount.
func (e *engine) importBase(t *testing.T, name string) {
	t.Helper()
	shell, err := exec.LookPath("sh")
	testkit.OK(t, err)
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	addToTar(t, w, "bin/sh", shell)
	for _, library := range sharedObjects(t, shell) {
		addToTar(t, w, strings.TrimPrefix(library, "/"), library)
	}
	testkit.OK(t, w.WriteHeader(&tar.Header{Name: "tmp/", Typeflag: tar.TypeDir, Mode: 0o1777}))
	testkit.OK(t, w.Close())
	path := filepath.Join(e.dir, "base.tar")
	testkit.OK(t, os.WriteFile(path, archive.Bytes(), 0o644))
	e.mustPodman(t, "import", "--change", "ENV PATH=/usr/local/go/bin:/bin", "--change", "ENV GOPATH=/go", "--change", "ENV GOCACHE=/root/.cache/go-build",
		"--change", "ENV GOTOOLCHAIN=local", "--change", "ENV GOPROXY=off", path, name)
}

func addToTar(t *testing.T, w *tar.Writer, name, path string) {
	t.Helper()
	content, err := os.ReadFile(path)
	if err == nil {
		err = w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(content))})
	}
	if err == nil {
		_, err = w.Write(content)
	}
	testkit.OK(t, err)
}

// sharedObjects returns the paths of the loader and the libraries of a program.
func sharedObjects(t *testing.T, program string) []string {
	t.Helper()
	file, err := elf.Open(program)
	testkit.OK(t, err)
	defer file.Close()
	if file.Section(".interp") == nil {
		return nil
	}
	// ldd prints "NAME => PATH (0x…)" for libraries, "PATH (0x…)" for the loader.
	output, err := exec.Command("ldd", program).Output()
	if err != nil {
		t.Fatalf("ldd %s: %v", program, err)
	}
	var paths []string
	for _, match := range regexp.MustCompile(`(?m)(/\S+) \(0x`).FindAllStringSubmatch(string(output), -1) {
		paths = append(paths, match[1])
	}
	return paths
}

func goEnv(t *testing.T, name string) string {
	t.Helper()
	return testkit.MustGo(t, "env", name)
}
