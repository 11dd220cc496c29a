package intercept

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestWorks(t *testing.T) {
	must(t, Works())
	before := descriptors(t)
	for range 10 { // some of them begin on the first thread
		must(t, try())
	}
	if now := descriptors(t); now != before {
		t.Errorf("%d descriptors leaked", now-before)
	}
	noFilterLeft(t)
}

func TestWorksOnOneProcessor(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	must(t, try())
	noFilterLeft(t)
}

func descriptors(t testing.TB) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(entries)
}

// noFilterLeft waits until no thread of the test has a filter, or has given
// anything up for one.
func noFilterLeft(t testing.TB) {
	t.Helper()
	own := "NoNewPrivs:\t0"
	if set, _ := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0); set == 1 {
		own = "NoNewPrivs:\t1"
	}
	eventually(t, "no thread with a filter", func() bool {
		threads, err := filepath.Glob("/proc/self/task/*/status")
		must(t, err)
		for _, thread := range threads {
			text, err := os.ReadFile(thread)
			if err == nil && (!strings.Contains(string(text), "Seccomp_filters:\t0") || !strings.Contains(string(text), own)) {
				return false
			}
		}
		return true
	})
}

func TestSecondFilterIsRefused(t *testing.T) {
	p := startPuppet(t, false, 0)
	p.do("install")
	got := p.result()
	if want := explain(unix.EBUSY).Error(); got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestExplain(t *testing.T) {
	for _, errno := range []unix.Errno{unix.ENOSYS, unix.EINVAL, unix.EPERM, unix.EACCES, unix.EBUSY} {
		var u *Unsupported
		if err := explain(errno); !errors.As(err, &u) || u.Reason == "" || !errors.Is(err, errno) {
			t.Errorf("%v is explained as %v", errno, err)
		}
	}
	var u *Unsupported
	if err := explain(unix.ENOMEM); errors.As(err, &u) || !errors.Is(err, unix.ENOMEM) {
		t.Errorf("no memory is explained as %v", err)
	}
}

func write(t testing.TB, content string, mode os.FileMode) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "program")
	must(t, os.WriteFile(file, []byte(content), 0o600))
	must(t, os.Chmod(file, mode))
	return file
}

func elf(class byte) string {
	return "\x7fELF" + string([]byte{class, 1, 1}) + strings.Repeat("\x00", 57)
}

func TestCheckProgramOfAnotherWidth(t *testing.T) {
	narrow := write(t, elf(1), 0o755)
	tests := []struct {
		name, path string
		fits       bool
	}{
		{"itself", "/proc/self/exe", true},
		{"64 bits", write(t, elf(2), 0o755), true},
		{"32 bits", narrow, false},
		{"script of 32 bits", write(t, "#! "+narrow+" -x\n", 0o755), false},
		{"script of a script", write(t, "#!"+write(t, "#!"+narrow, 0o755)+"\n", 0o755), false},
		{"script", write(t, "#!/bin/sh\n", 0o755), true},
		{"script without interpreter", write(t, "#!\n", 0o755), true},
		{"not executable", write(t, elf(1), 0o644), true},
		{"too short", write(t, "\x7fELF", 0o755), true},
		{"empty", write(t, "", 0o755), true},
		{"a directory", t.TempDir(), true},
		{"absent", "/nowhere/program", true},
	}
	endless := filepath.Join(t.TempDir(), "endless")
	must(t, os.WriteFile(endless, []byte("#!"+endless+"\n"), 0o755))
	must(t, CheckProgram(endless, true))
	for _, test := range tests {
		for _, noNewPrivs := range []bool{false, true} {
			var u *Unsupported
			err := CheckProgram(test.path, noNewPrivs)
			if test.fits && err != nil || !test.fits && !errors.As(err, &u) {
				t.Errorf("%s: %v", test.name, err)
			}
		}
	}
}

// Only root can give a file to somebody else.
func TestCheckProgramOfAnotherOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to give files away")
	}
	tests := []struct {
		name     string
		uid, gid int
		mode     uint32
		want     string
	}{
		{"plain", 1, 1, 0o755, ""},
		{"setuid to oneself", 0, 0, 0o4755, ""},
		{"setuid", 1, 0, 0o4755, "it is setuid"},
		{"setgid to oneself", 0, 0, 0o2755, ""},
		{"setgid", 0, 1, 0o2755, "it is setgid"},
		{"mandatory locks", 0, 1, 0o2745, ""},
	}
	for _, test := range tests {
		file := write(t, elf(2), 0o755)
		must(t, os.Chown(file, test.uid, test.gid))
		must(t, unix.Chmod(file, test.mode))
		must(t, CheckProgram(file, false))
		err := CheckProgram(file, true)
		if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.HasPrefix(err.Error(), test.want) || !errors.Is(err, unix.EPERM)) {
			t.Errorf("%s: %v", test.name, err)
		}
	}
}

// Root has what a file could give it; only what it lacks would be missed.
func TestFileCapabilities(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to give capabilities")
	}
	file := write(t, elf(2), 0o755)
	const revision2, effective = 0x02000000, 1
	data := make([]byte, 20)
	binary.LittleEndian.PutUint32(data, revision2|effective)
	binary.LittleEndian.PutUint32(data[4:], 1<<unix.CAP_NET_BIND_SERVICE)
	binary.LittleEndian.PutUint32(data[12:], 1<<(unix.CAP_BPF-32))
	if err := unix.Setxattr(file, "security.capability", data, 0); err != nil {
		t.Skipf("no file capabilities here: %v", err)
	}
	const want = 1<<unix.CAP_NET_BIND_SERVICE | 1<<unix.CAP_BPF
	if got := fileCapabilities(file); got != want {
		t.Errorf("capabilities %#x, want %#x", got, want)
	}
	must(t, CheckProgram(file, true))
	lost := make(chan error)
	go onThrowAwayThread(func() { // which loses its capabilities
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		none[0].Permitted = 1 << unix.CAP_DAC_OVERRIDE
		if err := unix.Capset(&header, &none[0]); err != nil {
			lost <- err
			return
		}
		lost <- CheckProgram(file, true)
	})
	if err := <-lost; !errors.Is(err, unix.EPERM) || !strings.HasPrefix(err.Error(), "it has file capabilities") {
		t.Errorf("without capabilities: %v", err)
	}
}

func TestNeedsNoNewPrivs(t *testing.T) {
	if want := os.Geteuid() != 0; NeedsNoNewPrivs() != want {
		t.Errorf("no_new_privs needed: %t", !want)
	}
	given := make(chan bool)
	go onThrowAwayThread(func() {
		_ = unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
		given <- NeedsNoNewPrivs()
	})
	if <-given {
		t.Error("needed where it is set")
	}
}

// BenchmarkTry is what Works costs at the start of a master.
func BenchmarkTry(b *testing.B) {
	for b.Loop() {
		must(b, try())
	}
}
