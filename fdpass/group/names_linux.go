package group

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/moult/moult/fdpass"
)

// ResolvePath returns what a thread means by a sun_path (unix(7)), as an
// absolute path. The directory is free of symbolic links, so that one socket
// has one path by whatever way it is named; the last element is left as it is.
// It is false for abstract and missing names, and where there is no such
// directory.
//
// The caller knows that the thread has our mount namespace and root.
func ResolvePath(tid int, name []byte) (abs string, ok bool) {
	if end := bytes.IndexByte(name, 0); end >= 0 {
		name = name[:end]
	}
	if len(name) == 0 {
		return "", false
	}
	path := seenBy(tid, string(name))
	if path[0] != '/' {
		cwd, err := os.Readlink(processDirectory(tid) + "cwd")
		if err != nil || !filepath.IsAbs(cwd) {
			return "", false // the latter with "(unreachable)" before it
		}
		path = cwd + "/" + path
	}
	dir, base := filepath.Split(path)
	if base == "" || base == "." || base == ".." {
		return "", false
	}
	dir, err := filepath.EvalSymlinks(dir)
	return filepath.Join(dir, base), err == nil
}

// LeadsTo returns the Lstat of a path as a thread means it that gives dirfd and
// path to unlinkat(2); dirfd may be unix.AT_FDCWD. The caller knows that the
// thread has our mount namespace and root.
func LeadsTo(tid, dirfd int, path string) (os.FileInfo, error) {
	if path == "" {
		return nil, unix.ENOENT
	}
	path = seenBy(tid, path)
	if path[0] != '/' {
		dir := "cwd/"
		if dirfd != unix.AT_FDCWD {
			dir = "fd/" + strconv.Itoa(dirfd) + "/"
		}
		path = processDirectory(tid) + dir + path
	}
	return os.Lstat(path)
}

func processDirectory(tid int) string { return "/proc/" + strconv.Itoa(tid) + "/" }

// seenBy translates names that mean something else for each process. A path
// that is too long for a socket's address is commonly given as
// /proc/self/fd/N/name.
func seenBy(tid int, path string) string {
	for prefix, own := range map[string]string{"/proc/self/": "", "/proc/thread-self/": "", "/dev/fd/": "fd/"} {
		if rest, ok := strings.CutPrefix(path, prefix); ok {
			return processDirectory(tid) + own + rest
		}
	}
	return path
}

// bindIn binds to the absolute name, which is what the server then reads by
// getsockname(2), or by way of the open directory where that is too long for an
// address: the worker may have given it relative to somewhere.
//
// The absolute name is resolved once more here, as it would be for the worker.
func bindIn(dir, fd int, name string) error {
	if len(name) > fdpass.MaxUnixPath {
		name = inDirectory(dir, name)
	}
	return syscall.Bind(fd, &syscall.SockaddrUnix{Name: name})
}

// applyUmask is for where the thread cannot have an umask of its own. Nobody
// has connected with the wrong mode: the socket does not listen yet.
func (id Identity) applyUmask(dir, fd int, name string) {
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil {
		return
	}
	const permissions = 0o777
	changeMode(dir, name, st.Mode&permissions&^uint32(id.umask))
}

// renameCopy makes path lead where name leads.
func renameCopy(dir int, name, path string) error {
	return fdpass.FreeName(path, func(copy string) error {
		if err := linkIn(dir, name, copy); err != nil {
			return err
		}
		err := unix.Renameat(dir, filepath.Base(copy), dir, filepath.Base(path))
		if err != nil {
			_ = unix.Unlinkat(dir, filepath.Base(copy), 0)
		}
		return err
	})
}

func linkIn(dir int, from, to string) error {
	return unix.Linkat(dir, filepath.Base(from), dir, filepath.Base(to), 0)
}

// copyPermissions does what it may. Without the owner there is no mode either:
// what that grants to one group is not meant for another.
func copyPermissions(dir int, name string, from fs.FileInfo) {
	want, ok := from.Sys().(*syscall.Stat_t)
	if ok && giveFile(dir, name, want) == nil {
		changeMode(dir, name, want.Mode&0o7777)
	}
}

func giveFile(dir int, name string, want *syscall.Stat_t) error {
	return withFile(dir, name, func(fd int, have *unix.Stat_t) error {
		if have.Uid == want.Uid && have.Gid == want.Gid {
			return nil
		}
		return unix.Fchownat(fd, "", int(want.Uid), int(want.Gid), unix.AT_EMPTY_PATH)
	})
}

func changeMode(dir int, name string, mode uint32) {
	_ = withFile(dir, name, func(fd int, have *unix.Stat_t) error {
		if have.Mode&0o7777 == mode {
			return nil
		}
		return unix.Chmod(descriptorPath(fd), mode)
	})
}

// withFile holds on to one file, which no exchange of its name replaces: chmod
// and chown follow symbolic links.
func withFile(dir int, name string, f func(fd int, have *unix.Stat_t) error) error {
	fd, err := unix.Openat(dir, filepath.Base(name), unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer closeDescriptor(fd)
	var have unix.Stat_t
	if err := unix.Fstat(fd, &have); err != nil {
		return err
	}
	if have.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return unix.ENOTSOCK
	}
	return f(fd, &have)
}

// beside runs f with the directory of path, as the worker that has bound the
// path, or as the master where that has. What was a directory when a worker's
// path was learned, and leads elsewhere by a symbolic link now, is an error:
// whoever can change it shall not choose where names are made and removed.
func beside(id *Identity, path string, f func(dir int) error) error {
	open := func(dir string) (int, error) {
		return unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	}
	as := func(f func() error) error { return f() }
	if id != nil {
		open, as = openDirectory, id.do
	}
	return as(func() error {
		dir, err := open(filepath.Dir(path))
		if err != nil {
			return &os.PathError{Op: "open", Path: filepath.Dir(path), Err: err}
		}
		defer closeDescriptor(dir)
		return f(dir)
	})
}

// openDirectory follows no symbolic link on the way. (openat2(2) does that at
// once, and is unknown to many containers' seccomp profiles.)
func openDirectory(path string) (int, error) {
	const flags = unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	at, err := unix.Open("/", flags, 0)
	for part := range strings.SplitSeq(path, "/") {
		if err != nil {
			return -1, err
		}
		if part == "" {
			continue
		}
		above := at
		at, err = unix.Openat(above, part, flags, 0)
		closeDescriptor(above)
	}
	return at, err
}

// removeFile removes a path that leads to the member.
func (m *Member) removeFile(path string) { removeFile(m.maker, path, m.file) }

// removeFile removes path if it is still the given file.
func removeFile(id *Identity, path string, file fs.FileInfo) {
	if path == "" || file == nil {
		return
	}
	_ = beside(id, path, func(dir int) error {
		if !isIn(dir, path, file) {
			return nil
		}
		return unix.Unlinkat(dir, filepath.Base(path), 0)
	})
}

func isIn(dir int, path string, file fs.FileInfo) bool {
	info, err := lookIn(dir, path)
	return err == nil && file != nil && os.SameFile(info, file)
}

// lookIn is Lstat within a directory.
func lookIn(dir int, path string) (fs.FileInfo, error) { return os.Lstat(inDirectory(dir, path)) }

func inDirectory(dir int, path string) string {
	return descriptorPath(dir) + "/" + filepath.Base(path)
}

func descriptorPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }
