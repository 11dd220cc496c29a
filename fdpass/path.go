package fdpass

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

func openUnix(a Address) (int, error) {
	var fd int
	err := ClaimPath(a, func() (err error) {
		fd, err = BindUnix(a, a.Path)
		if err != nil || a.Network != "unix" {
			return err
		}
		if err = a.listen(fd); err != nil {
			closeDescriptor(fd)
			removePath(a.Path)
		}
		return err
	})
	if err != nil {
		return -1, err
	}
	return fd, nil
}

// ClaimPath calls bind, which is to make the socket file of a's path, when it
// has removed what a dead program has left there. Other masters that ask for the
// same path wait meanwhile, for a second at most. A socket that somebody listens
// on is an error that wraps syscall.EADDRINUSE, and any other file is an error too.
func ClaimPath(a Address, bind func() error) error {
	if a.isAbstract() {
		return bind()
	}
	defer lockDirectory(a.Path)()
	if err := clearStale(a.Path, a.Network == "unix"); err != nil {
		return err
	}
	return bind()
}

// BindUnix makes a socket of a's network, mode and owner and binds it to path.
// It does not listen yet, so that nobody connects to it with the wrong ones. The
// descriptor is the caller's; with an error there is neither it nor the file. A
// path where anything stands is an error that wraps syscall.EADDRINUSE.
func BindUnix(a Address, path string) (int, error) {
	kind := syscall.SOCK_STREAM
	if a.Network == "unixgram" {
		kind = syscall.SOCK_DGRAM
	}
	fd, err := newSocket(syscall.AF_UNIX, kind, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	if err := syscall.Bind(fd, &syscall.SockaddrUnix{Name: path}); err != nil {
		closeDescriptor(fd)
		return -1, os.NewSyscallError("bind", err)
	}
	if strings.HasPrefix(path, "@") || !a.HasMode && a.UID < 0 && a.GID < 0 {
		return fd, nil
	}
	if err := permit(path, a); err != nil {
		closeDescriptor(fd)
		removePath(path)
		return -1, err
	}
	return fd, nil
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

func removePath(path string) {
	if path != "" && !strings.HasPrefix(path, "@") {
		_ = os.Remove(path)
	}
}

// FreeName calls try with names beside path until one is free, which is so
// unless the error wraps EADDRINUSE or EEXIST: try must not take what is there.
// They are not longer than the path, so that where that fits into a socket's
// address they do too, and nobody can know them beforehand.
func FreeName(path string, try func(name string) error) error {
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
