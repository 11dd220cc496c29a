package fdpass

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
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

// BindPath binds fd, a duplicate of a worker's socket that stays the caller's,
// on the worker's behalf: to a free name beside the path, which AdoptPath finds
// again. The error is, or wraps, the errno that bind(2) gave.
//
// The name stays until the member leaves or Forget is called.
func (s *Socket) BindPath(fd int, id Identity) error {
	inode, err := inodeOf(fd)
	if err != nil {
		return err
	}
	closed, reused := s.pending[inode]
	err = id.beside(s.addr.Path, func(dir int) error {
		apart := unix.Unshare(unix.CLONE_FS) == nil
		if apart {
			unix.Umask(id.umask)
		}
		return withFreeName(s.addr.Path, func(name string) error {
			if err := bindIn(dir, fd, name); err != nil {
				return err
			}
			if !apart {
				id.applyUmask(dir, fd, name)
			}
			file, err := lookIn(dir, name)
			if err == nil {
				s.pending[inode] = pendingName{path: name, file: file, id: id}
			}
			return err
		})
	})
	if err == nil && reused { // a socket is bound once: that was another one
		closed.id.removeFile(closed.path, closed.file)
	}
	return err
}

// bindIn binds to the absolute name, which is what the server then reads by
// getsockname(2), or by way of the open directory where that is too long for an
// address: the worker may have given it relative to somewhere.
//
// The absolute name is resolved once more here, as it would be for the worker.
func bindIn(dir, fd int, name string) error {
	if len(name) > MaxUnixPath {
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

// Forget removes the name that BindPath gave to a socket that was closed, or
// whose worker has gone, without ever listening. It does nothing for others.
func (s *Socket) Forget(inode uint64) {
	if p, ok := s.pending[inode]; ok {
		delete(s.pending, inode)
		p.id.removeFile(p.path, p.file)
	}
}

// AdoptPath makes a member for a worker of generation gen of the worker's own
// socket, which begins to listen here. fd is a duplicate of it; it belongs to
// the member, and is closed with an error, which wraps the errno that listen(2)
// gave. The queue is not shorter than DefaultBacklog. New connections reach the
// member when Steer names it, or at once if the worker has bound the path itself.
//
// id is as whom the worker called bind(2), where the caller knows that; else
// as whom it calls listen(2). Where it may not make a second name beside the
// path, the member cannot get the path back once another one has it.
func (s *Socket) AdoptPath(fd, gen, backlog int, id Identity) (*Member, error) {
	m, err := s.newMember(fd)
	if err != nil {
		return nil, err
	}
	m.own, m.gen, m.users, m.maker = true, gen, 1, &id
	s.backlog = max(s.backlog, backlog)
	if err := m.listen(s.backlog); err != nil {
		closeDescriptor(fd)
		return nil, err
	}
	if p, ok := s.pending[m.inode]; ok {
		m.path, m.file, m.maker = p.path, p.file, &p.id
		delete(s.pending, m.inode)
	} else {
		m.file = s.boundAfter()
	}
	s.members = append(s.members, m)
	return m, nil
}

// boundAfter is the socket file of a worker that has bound the path itself. Where
// two have, the second after it has unlinked the name of the first, the path is
// the second's, whoever listens first.
func (s *Socket) boundAfter() fs.FileInfo {
	if before := s.memberShown(); before != nil && before.path == "" {
		file := before.file
		before.file = nil
		return file
	}
	return s.strangerShown()
}

// strangerShown is the socket file at the path that is no member's.
func (s *Socket) strangerShown() fs.FileInfo {
	info, err := os.Lstat(s.addr.Path)
	if err != nil || info.Mode()&fs.ModeSocket == 0 || s.memberBehind(info) != nil {
		return nil
	}
	return info
}

// showLearned makes the path lead to m, in one step. The member that has to go
// keeps a name, by which it can be put back, and its mode and owner go with the
// path: a server that calls chmod(2) or chown(2) after bind(2) has reached the
// file of the generation before.
func (s *Socket) showLearned(m *Member) error {
	if m.path == "" {
		return errors.New("the socket has no name beside the path")
	}
	info, _ := os.Lstat(s.addr.Path)
	if before := s.memberBehind(info); before != nil {
		s.keepName(before)
	} else {
		info = nil
	}
	return m.maker.beside(s.addr.Path, func(dir int) error {
		if !isIn(dir, m.path, m.file) {
			return unix.ENOENT
		}
		if info != nil {
			copyPermissions(dir, m.path, info)
		}
		return renameCopy(dir, m.path, s.addr.Path)
	})
}

// keepName gives a member that has only the path a name beside it.
func (s *Socket) keepName(m *Member) {
	if m.path != "" {
		return
	}
	_ = m.maker.beside(s.addr.Path, func(dir int) error {
		return withFreeName(s.addr.Path, func(name string) error {
			err := linkIn(dir, s.addr.Path, name)
			if err == nil {
				m.path = name
			}
			return err
		})
	})
}

// renameCopy makes path lead where name leads.
func renameCopy(dir int, name, path string) error {
	return withFreeName(path, func(copy string) error {
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

// beside runs f as id, with the directory of path. What was a directory when
// the path was learned, and leads elsewhere by a symbolic link now, is an
// error: whoever can change it shall not choose where names are made and removed.
func (id Identity) beside(path string, f func(dir int) error) error {
	return id.do(func() error {
		dir, err := openDirectory(filepath.Dir(path))
		if err != nil {
			return err
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

// removeFile removes path if it is still the given file.
func (id Identity) removeFile(path string, file fs.FileInfo) {
	if path == "" || file == nil {
		return
	}
	_ = id.beside(path, func(dir int) error {
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
