package fdpass

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Unix socket paths move by rename: each generation's socket is bound to a
// name of its own beside the path and renamed over it when it begins to serve.
// The own name stays until the generation is gone, so that the path can be put
// back if the old worker removes it when it leaves.

func (s *Socket) openUnix() error {
	s.network, s.bound = s.addr.Network, s.addr.Path
	if strings.HasPrefix(s.addr.Path, "@") {
		return s.openShared(s.addr.Path)
	}
	defer lockDirectory(s.addr.Path)()
	if err := clearStale(s.addr.Path, s.network == "unix"); err != nil {
		return err
	}
	if s.share || s.network == "unixgram" {
		return s.openShared(s.addr.Path)
	}
	s.how = Renamed
	m, err := s.bindPath()
	if err != nil {
		return err
	}
	m.spare = true
	s.members = append(s.members, m)
	// Not by rename, which would take the path from whoever has it by now.
	err = os.Link(m.path, s.addr.Path)
	if errors.Is(err, fs.ErrExist) {
		return os.NewSyscallError("bind", syscall.EADDRINUSE)
	}
	return err
}

func (s *Socket) openShared(path string) error {
	m, err := s.bindUnix(path)
	if err != nil {
		return err
	}
	s.members = append(s.members, m)
	return nil
}

// clearStale removes the socket file that a dead program left behind, and
// nothing else: a live socket is an address in use, any other file is an error.
func clearStale(path string, stream bool) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode()&fs.ModeSocket == 0 {
		return fmt.Errorf("%s exists and is not a socket; remove it or choose another path", path)
	}
	live, err := answers(path, stream)
	if err != nil {
		return err
	}
	if live {
		return os.NewSyscallError("bind", syscall.EADDRINUSE)
	}
	if err := os.Remove(path); err != nil {
		return err
	}
	removeOtherNames(path, info)
	return nil
}

// lockDirectory keeps other masters from taking the same path in the same
// moment: one that has looked must not remove what the other has put there since.
// It leaves no file behind. Who may read the directory could hold the lock for
// ever, so that after a second it goes on without.
func lockDirectory(path string) (unlock func()) {
	fd, err := syscall.Open(filepath.Dir(path), syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return func() {}
	}
	const patience = time.Second
	for begin := time.Now(); time.Since(begin) < patience; time.Sleep(time.Millisecond) {
		if err := syscall.Flock(fd, syscall.LOCK_EX|syscall.LOCK_NB); !errors.Is(err, syscall.EWOULDBLOCK) {
			break
		}
	}
	return func() { closeDescriptor(fd) }
}

// removeOtherNames removes the names that lead to the same dead socket: a master
// that was killed leaves one beside the path.
func removeOtherNames(path string, info fs.FileInfo) {
	if st, ok := info.Sys().(*syscall.Stat_t); !ok || st.Nlink < 2 {
		return
	}
	dir, base := filepath.Split(path)
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		other, err := e.Info()
		if err == nil && len(e.Name()) == len(randomName(len(base))) && os.SameFile(info, other) {
			removePath(dir + e.Name())
		}
	}
}

// answers tells whether somebody listens at path. A queue that is full
// (EAGAIN) is a live one.
func answers(path string, stream bool) (bool, error) {
	kind := syscall.SOCK_DGRAM
	if stream {
		kind = syscall.SOCK_STREAM
	}
	fd, err := newSocket(syscall.AF_UNIX, kind, 0)
	if err != nil {
		return false, os.NewSyscallError("socket", err)
	}
	defer closeDescriptor(fd)
	if err := syscall.SetNonblock(fd, true); err != nil {
		return false, err
	}
	err = syscall.Connect(fd, &syscall.SockaddrUnix{Name: path})
	switch {
	case err == nil, errors.Is(err, syscall.EAGAIN), errors.Is(err, syscall.EINPROGRESS), errors.Is(err, syscall.EPROTOTYPE):
		return true, nil
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ENOENT):
		return false, nil
	}
	return false, os.NewSyscallError("connect", err)
}

// bindUnix makes a socket with the mode and the owner that were asked for. Both
// are set before it listens: nobody connects to it with the wrong ones.
func (s *Socket) bindUnix(path string) (*Member, error) {
	kind := syscall.SOCK_STREAM
	if s.network == "unixgram" {
		kind = syscall.SOCK_DGRAM
	}
	fd, err := newSocket(syscall.AF_UNIX, kind, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if err := syscall.Bind(fd, &syscall.SockaddrUnix{Name: path}); err != nil {
		closeDescriptor(fd)
		return nil, os.NewSyscallError("bind", err)
	}
	err = s.permit(path)
	if err == nil && kind == syscall.SOCK_STREAM {
		err = os.NewSyscallError("listen", syscall.Listen(fd, s.backlog))
	}
	if err != nil {
		closeDescriptor(fd)
		removePath(path)
		return nil, err
	}
	m, err := s.newMember(fd)
	if err != nil {
		removePath(path)
		return nil, err
	}
	if !strings.HasPrefix(path, "@") {
		m.path = path
		m.file, _ = os.Lstat(path) // without it the name is never known as ours
	}
	return m, nil
}

func (s *Socket) permit(path string) error {
	if strings.HasPrefix(path, "@") {
		return nil
	}
	if s.addr.HasMode {
		if err := os.Chmod(path, s.addr.Mode); err != nil {
			return err
		}
	}
	if s.addr.UID >= 0 || s.addr.GID >= 0 {
		return os.Lchown(path, s.addr.UID, s.addr.GID)
	}
	return nil
}

func removePath(path string) {
	if path != "" && !strings.HasPrefix(path, "@") {
		_ = os.Remove(path)
	}
}

// bindPath binds under a name of its own beside the path.
func (s *Socket) bindPath() (*Member, error) {
	var m *Member
	err := withFreeName(s.addr.Path, func(name string) (err error) {
		m, err = s.bindUnix(name)
		return err
	})
	return m, err
}

// withFreeName calls try with names beside path until one is free. They are
// not longer than the path: where the path fits into 108 bytes, they do too.
func withFreeName(path string, try func(name string) error) error {
	const tries = 64
	dir, base := filepath.Split(path)
	var err error
	for range tries {
		name := dir + randomName(len(base))
		if name == path {
			continue
		}
		err = try(name)
		if !errors.Is(err, syscall.EADDRINUSE) && !errors.Is(err, syscall.EEXIST) {
			return err
		}
	}
	return fmt.Errorf("cannot find a free name beside %s: %w", path, err)
}

// randomName has at most n bytes, begins with a dot where there is room, and
// is never "." or "..".
func randomName(n int) string {
	const letters = "abcdefghijklmnopqrstuvwxyz0123456789"
	const longest = 16
	name := make([]byte, min(n, longest))
	_, _ = rand.Read(name) // which never fails
	for i := range name {
		name[i] = letters[int(name[i])%len(letters)]
	}
	if len(name) > 3 {
		name[0] = '.'
	}
	return string(name)
}

// joinPath returns the generation's socket: all its workers share one.
func (s *Socket) joinPath(gen int) (*Member, error) {
	for _, m := range s.members {
		if m.spare || m.gen == gen {
			m.spare, m.gen = false, gen
			return m, nil
		}
	}
	m, err := s.bindPath()
	if err != nil {
		return nil, err
	}
	m.gen = gen
	s.members = append(s.members, m)
	return m, nil
}

func (s *Socket) steerPath() error {
	if len(s.serving) == 0 || slices.ContainsFunc(s.serving, s.showsPath) || s.movedAway(s.serving[0]) {
		return nil
	}
	return s.showPath(s.serving[0])
}

// showPath makes the path lead to m, in one step: there is no moment without.
func (s *Socket) showPath(m *Member) error {
	if s.learned {
		return s.showLearned(m)
	}
	return withFreeName(s.addr.Path, func(name string) error {
		if err := os.Link(m.path, name); err != nil {
			return err
		}
		if err := os.Rename(name, s.addr.Path); err != nil {
			removePath(name)
			return err
		}
		return nil
	})
}

func (s *Socket) showsPath(m *Member) bool {
	have, err := os.Lstat(s.addr.Path)
	return err == nil && m.file != nil && os.SameFile(m.file, have)
}

// Mend puts a unix path back that a leaving worker has removed, and tells
// whether it had to. What a worker has bound itself is its own to remove or to
// rename as long as no other one has the path too.
func (s *Socket) Mend() (bool, error) {
	if s.how != Renamed || s.refused || len(s.serving) == 0 || s.showsPath(s.serving[0]) {
		return false, nil
	}
	if s.learned && !s.mayMend(s.serving[0]) {
		return false, nil
	}
	if err := s.showPath(s.serving[0]); err != nil {
		return false, fmt.Errorf("cannot put %s back: %w", s.addr.Path, err)
	}
	return true, nil
}

func (s *Socket) leavePath(m *Member) {
	if s.learned {
		s.leaveLearned(m)
	}
	m.removeName(m.path)
	closeDescriptor(m.fd)
	s.stopServing(m)
	s.remove(m)
}

// removeName removes one of the names that lead to m.
func (m *Member) removeName(path string) {
	if m.maker == nil {
		removePath(path)
		return
	}
	m.maker.removeFile(path, m.file)
}

// hidePath takes the path away from new clients, if it is still ours.
func (s *Socket) hidePath() {
	for _, m := range s.members {
		if s.showsPath(m) {
			m.removeName(s.addr.Path)
		}
	}
}

func (s *Socket) closePath() {
	s.hidePath()
	for _, m := range s.members {
		if m.path != s.addr.Path {
			m.removeName(m.path)
		}
	}
	for inode := range s.pending {
		s.Forget(inode)
	}
}
