package fdpass

import (
	"os"
	"strings"
	"syscall"
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
// on is an error that wraps syscall.EADDRINUSE, and so is any other file one.
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

// FreeName calls try with names beside path until one is free, which is so
// unless the error wraps EADDRINUSE or EEXIST: try must not take what is there.
// They are not longer than the path, so that where that fits into a socket's
// address they do too, and nobody can know them beforehand.
func FreeName(path string, try func(name string) error) error { return withFreeName(path, try) }
