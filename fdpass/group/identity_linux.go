package group

import (
	"errors"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Identity is as whom, and from where, a thread names files: what the kernel
// looks at when the thread makes, renames or removes one (credentials(7)).
type Identity struct {
	uid, gid     int // effective: what a peer reads by SO_PEERCRED
	fsuid, fsgid int
	groups       []int
	umask        int
	capabilities uint64 // effective; none where they are another user namespace's
	cwd          string // "" where it cannot be known
}

// IdentityOf reads the identity of a thread, in our pid namespace, that stands
// still. It holds nothing open.
func IdentityOf(tid int) (Identity, error) {
	dir := "/proc/" + strconv.Itoa(tid)
	text, err := os.ReadFile(dir + "/status")
	if err != nil {
		return Identity{}, err
	}
	id, err := parseIdentity(string(text))
	if err != nil {
		return Identity{}, err
	}
	if !sameNamespace(dir + "/ns/user") {
		id.capabilities = 0
	}
	id.cwd, _ = os.Readlink(dir + "/cwd")
	return id, nil
}

// sameNamespace tells whether a namespace is our own. The capabilities of a
// process in a user namespace of its own are good for nothing outside.
func sameNamespace(path string) bool {
	own, err := os.Readlink("/proc/self/ns/user")
	if err != nil {
		return false
	}
	other, err := os.Readlink(path)
	return err == nil && own == other
}

// parseIdentity reads /proc/TID/status (proc_pid_status(5)).
func parseIdentity(status string) (Identity, error) {
	fields := map[string][]string{}
	for line := range strings.Lines(status) {
		if key, value, ok := strings.Cut(line, ":"); ok {
			fields[key] = strings.Fields(value)
		}
	}
	const effective, files = 1, 3 // behind the real one; the saved one is between
	var id Identity
	var failed error
	number := func(key string, index, base int) uint64 {
		if len(fields[key]) <= index {
			failed = unix.ESRCH // it is dead: a zombie has no umask
			return 0
		}
		n, err := strconv.ParseUint(fields[key][index], base, 64)
		failed = errors.Join(failed, err)
		return n
	}
	id.uid, id.fsuid = int(number("Uid", effective, 10)), int(number("Uid", files, 10))
	id.gid, id.fsgid = int(number("Gid", effective, 10)), int(number("Gid", files, 10))
	id.umask = int(number("Umask", 0, 8))
	id.capabilities = number("CapEff", 0, 16)
	for i := range fields["Groups"] {
		id.groups = append(id.groups, int(number("Groups", i, 10)))
	}
	return id, failed
}

// Do runs f as id and returns f's error, or the errno for which id cannot be
// taken on: ENOENT where its working directory is not there any more, EPERM
// where the master may not become that user or leave its own directory (a
// container's seccomp profile that forbids unshare(2)).
//
// f runs on a thread of its own, which ends with it. It may make system calls
// that act at once on the calling thread, and nothing else: no goroutines, no
// processes, nothing that waits for another goroutine.
func (id Identity) Do(f func() error) error {
	if id.cwd == "" {
		return unix.ENOENT
	}
	return onThread(func() error {
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return err
		}
		if err := changeDirectory(id.cwd); err != nil {
			return err
		}
		unix.Umask(id.umask)
		return id.as(f)
	})
}

// do is Do without working directory and umask, which remain the master's: it
// does not depend on a directory that may be gone, nor on unshare(2).
func (id Identity) do(f func() error) error {
	return onThread(func() error { return id.as(f) })
}

// onThread runs f on a thread that the runtime throws away afterwards, so that
// f may leave it in any state.
func onThread(f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			result <- f()
			return
		}
		// The first thread is the process's face in /proc, and never
		// thrown away. While it is held here, f gets another one.
		defer runtime.UnlockOSThread()
		result <- onThread(f)
	}()
	return <-result
}

// as runs f with the ids and capabilities of id, on a thread that nobody else
// uses afterwards. The calls change the thread alone: they are the kernel's, not
// the syscall package's of the same name, which change all threads.
func (id Identity) as(f func() error) error {
	identityLock.Lock()
	defer identityLock.Unlock()
	defer rememberProcess()()
	own, err := effectiveCapabilities()
	if err != nil {
		return err
	}
	if err := id.becomeUser(); err != nil {
		return err
	}
	if err := limitCapabilities(own & id.capabilities); err != nil {
		return err
	}
	return f()
}

// changeDirectory needs no permission to read the directory.
func changeDirectory(dir string) error {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer closeDescriptor(fd)
	return unix.Fchdir(fd)
}

// becomeUser leaves real and saved ids alone: with the worker's, the worker
// might send signals to the thread, and trace it.
func (id Identity) becomeUser() error {
	if groups, err := unix.Getgroups(); err != nil || !slices.Equal(groups, id.groups) {
		if err := unix.Setgroups(id.groups); err != nil {
			return err
		}
	}
	if err := becomeID(unix.SYS_SETRESGID, id.gid, unix.Getegid); err != nil {
		return err
	}
	_ = unix.Setfsgid(id.fsgid)
	if fsgid, _ := unix.SetfsgidRetGid(-1); fsgid != id.fsgid {
		return unix.EPERM
	}
	if err := becomeID(unix.SYS_SETRESUID, id.uid, unix.Geteuid); err != nil {
		return err
	}
	_ = unix.Setfsuid(id.fsuid)
	if fsuid, _ := unix.SetfsuidRetUid(-1); fsuid != id.fsuid {
		return unix.EPERM
	}
	return nil
}

// becomeID sets an effective id and looks whether that was done: old 32-bit
// calls know 16 bits of it.
func becomeID(call uintptr, id int, now func() int) error {
	if now() == id {
		return nil
	}
	const same = ^uintptr(0)
	if _, _, errno := unix.RawSyscall(call, same, uintptr(id), same); errno != 0 {
		return errno
	}
	if now() != id {
		return unix.EPERM
	}
	return nil
}

var capabilityHeader = unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}

func effectiveCapabilities() (uint64, error) {
	header, data := capabilityHeader, [2]unix.CapUserData{}
	if err := unix.Capget(&header, &data[0]); err != nil {
		return 0, err
	}
	return uint64(data[1].Effective)<<32 | uint64(data[0].Effective), nil
}

// limitCapabilities says which of the permitted capabilities count. The ids
// have been changed by now, which has cleared some and may have raised others.
func limitCapabilities(set uint64) error {
	header, data := capabilityHeader, [2]unix.CapUserData{}
	if err := unix.Capget(&header, &data[0]); err != nil {
		return err
	}
	data[0].Effective = data[0].Permitted & uint32(set)
	data[1].Effective = data[1].Permitted & uint32(set>>32)
	return unix.Capset(&header, &data[0])
}

// identityLock keeps one thread from taking for the process's own state what
// another has changed: dumpability, which belongs to all of them.
var identityLock sync.Mutex

// rememberProcess returns what undoes the effect that a change of ids has on
// the whole process: it is not dumpable any more, so that its own user cannot
// look at it in /proc. The ids come first, since for as long as the thread has
// the worker's, its files in /proc would be the worker's too.
func rememberProcess() (restore func()) {
	uid, gid := unix.Geteuid(), unix.Getegid()
	before, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	return func() {
		err = errors.Join(err, becomeID(unix.SYS_SETRESUID, uid, unix.Geteuid), becomeID(unix.SYS_SETRESGID, gid, unix.Getegid))
		_, _ = unix.Setfsuid(uid), unix.Setfsgid(gid)
		if err == nil && before == 1 {
			_ = unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0)
		}
	}
}
