package group

import (
	"bufio"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const (
	otherUID, otherGID, otherGroup = 65534, 65533, 65532
	otherUmask                     = 0o027
)

func init() { roles["stand"] = stand }

// stand becomes somebody, says so and stands still until its input ends.
func stand() {
	fail := func(err error) {
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
	fail(os.Chdir(os.Args[1]))
	if os.Geteuid() == 0 {
		fail(syscall.Setgroups([]int{otherGroup}))
		fail(syscall.Setgid(otherGID))
		fail(syscall.Setuid(otherUID))
	}
	syscall.Umask(otherUmask)
	fmt.Println("ready")
	_, _ = os.Stdin.Read(make([]byte, 1))
}

// startStanding starts a process of another user, if we are root, with an umask
// of its own and dir as its working directory.
func startStanding(t testing.TB, dir string, attr *syscall.SysProcAttr) (pid int) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", dir)
	cmd.Env = append(os.Environ(), roleVariable+"=stand", "GORACE=atexit_sleep_ms=0")
	cmd.SysProcAttr = attr
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	if err := cmd.Start(); err != nil {
		if attr != nil {
			t.Skip("no user namespaces here: ", err)
		}
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		_ = cmd.Wait()
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("the process says %q, %v", line, err)
	}
	return cmd.Process.Pid
}

// ourselves is the test's own identity.
func ourselves(t testing.TB) Identity {
	t.Helper()
	id, err := IdentityOf(os.Getpid())
	must(t, err)
	return id
}

// other is an ordinary user's identity, which only root can take on.
func other(t testing.TB) Identity {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root acts as somebody else")
	}
	id := ourselves(t)
	id.uid, id.fsuid, id.gid, id.fsgid = otherUID, otherUID, otherGID, otherGID
	id.groups, id.capabilities = []int{otherGroup}, 0
	return id
}

// openDir is a directory that another user can pass through.
func openDir(t testing.TB) string {
	t.Helper()
	dir := shortDir(t)
	must(t, os.Chmod(dir, 0o755))
	return dir
}

func create(name string) error {
	fd, err := unix.Open(name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, 0o666)
	if err == nil {
		closeDescriptor(fd)
	}
	return err
}

func statOf(t testing.TB, path string) *syscall.Stat_t {
	t.Helper()
	info, err := os.Lstat(path)
	must(t, err)
	return info.Sys().(*syscall.Stat_t)
}

func TestIdentityOfAProcess(t *testing.T) {
	dir := openDir(t)
	root := os.Geteuid() == 0
	if root {
		must(t, os.Chown(dir, otherUID, otherGID))
	}
	id, err := IdentityOf(startStanding(t, dir, nil))
	must(t, err)
	if id.umask != otherUmask || id.cwd != dir || root && (id.capabilities != 0 || !slices.Equal(id.groups, []int{otherGroup})) {
		t.Errorf("it is %+v", id)
	}
	must(t, id.Do(func() error { return create("made") }))
	st := statOf(t, filepath.Join(dir, "made"))
	uid, gid := uint32(otherUID), uint32(otherGID)
	if !root {
		uid, gid = uint32(os.Getuid()), uint32(os.Getgid())
	}
	if st.Uid != uid || st.Gid != gid || st.Mode&0o777 != 0o640 {
		t.Errorf("the file belongs to %d:%d and has mode %o", st.Uid, st.Gid, st.Mode)
	}
	must(t, os.RemoveAll(dir))
	if err := id.Do(func() error { return create("made") }); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("%v without a working directory", err)
	}
}

func TestIdentityMayNotMoreThanTheWorker(t *testing.T) {
	dir := openDir(t)
	id := other(t)
	if err := id.Do(func() error { return create(filepath.Join(dir, "x")) }); err != syscall.EACCES {
		t.Errorf("%v in root's directory", err)
	}
	group := openDir(t)
	must(t, os.Chown(group, 0, otherGroup))
	must(t, os.Chmod(group, 0o775))
	if err := id.do(func() error { return create(filepath.Join(group, "x")) }); err != nil {
		t.Errorf("%v in the directory of a supplementary group", err)
	}
	// Root without capabilities is an ordinary user.
	powerless := ourselves(t)
	powerless.capabilities = 0
	theirs := openDir(t)
	must(t, os.Chown(theirs, otherUID, otherGID))
	if err := powerless.do(func() error { return create(filepath.Join(theirs, "x")) }); err != syscall.EACCES {
		t.Errorf("%v as root without capabilities", err)
	}
	if err := ourselves(t).do(func() error { return create(filepath.Join(theirs, "x")) }); err != nil {
		t.Errorf("%v as root", err)
	}
}

// TestCapabilitiesOfANamespace: they say nothing about files outside it.
func TestCapabilitiesOfANamespace(t *testing.T) {
	attr := &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 1, HostID: os.Getuid(), Size: 1}},
		AmbientCaps: []uintptr{unix.CAP_DAC_OVERRIDE},
	}
	pid := startStanding(t, openDir(t), attr)
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	must(t, err)
	inside, err := parseIdentity(string(text))
	must(t, err)
	id, err := IdentityOf(pid)
	must(t, err)
	if inside.capabilities == 0 || id.capabilities != 0 {
		t.Errorf("it has %x inside, and %x are believed", inside.capabilities, id.capabilities)
	}
}

// threads lists umask and file system user of each of our threads.
func threads(t testing.TB) map[string]Identity {
	t.Helper()
	all := map[string]Identity{}
	dirs, err := filepath.Glob("/proc/self/task/*")
	must(t, err)
	for _, dir := range dirs {
		text, err := os.ReadFile(dir + "/status")
		if err != nil {
			continue // it has ended since
		}
		if id, err := parseIdentity(string(text)); err == nil {
			id.cwd, _ = os.Readlink(dir + "/cwd")
			all[filepath.Base(dir)] = id
		}
	}
	return all
}

func TestOtherThreadsAreNotTouched(t *testing.T) {
	dir := openDir(t)
	before := ourselves(t)
	id := before
	if os.Geteuid() == 0 {
		id = other(t)
	}
	id.umask, id.cwd = before.umask^0o070, dir
	must(t, unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0))
	eventually(t, "other tests' threads have ended", func() bool {
		for _, have := range threads(t) {
			if have.umask != before.umask || have.fsuid != before.fsuid || have.uid != before.uid || have.cwd != before.cwd {
				return false
			}
		}
		return true
	})
	used := map[string]bool{} // threads that run f once, and end
	for range 200 {
		must(t, id.Do(func() error {
			own := strconv.Itoa(unix.Gettid())
			used[own] = true
			for tid, have := range threads(t) {
				want := before
				if tid == own {
					want = id
				} else if used[tid] {
					continue
				}
				if have.umask != want.umask || have.fsuid != want.fsuid || have.uid != want.uid || have.cwd != want.cwd {
					return fmt.Errorf("thread %s of %s is %+v", tid, own, have)
				}
			}
			return nil
		}))
	}
	eventually(t, "the threads have ended", func() bool {
		left := threads(t)
		return !slices.ContainsFunc(slices.Collect(maps.Keys(used)), func(tid string) bool { _, ok := left[tid]; return ok })
	})
	if now, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0); err != nil || now != 1 {
		t.Errorf("the process's dumpability is %d: %v", now, err)
	}
	if n := len(threads(t)); n > 100 {
		t.Errorf("there are %d threads", n)
	}
}

func TestIdentityOfNobody(t *testing.T) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0")
	cmd.Args = append(cmd.Args, "-test.run=^$")
	must(t, cmd.Start())
	status := "/proc/" + strconv.Itoa(cmd.Process.Pid) + "/status"
	eventually(t, "a zombie", func() bool {
		text, _ := os.ReadFile(status)
		return strings.Contains(string(text), "Z (zombie)")
	})
	if id, err := IdentityOf(cmd.Process.Pid); err == nil {
		t.Errorf("a zombie is %+v", id)
	}
	must(t, cmd.Wait())
	if _, err := IdentityOf(cmd.Process.Pid); err == nil {
		t.Error("a process that is gone has an identity")
	}
}

func TestIdentityWithoutPermission(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("root may become anybody")
	}
	id := ourselves(t)
	id.fsuid, id.uid = 1, 1
	ran := false
	if err := id.do(func() error { ran = true; return nil }); err != syscall.EPERM || ran {
		t.Errorf("%v; it ran: %v", err, ran)
	}
}
