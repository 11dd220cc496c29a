//go:build unix

package observe

import "golang.org/x/sys/unix"

// Listening tells whether fd is a listening socket. fd stays the caller's.
func Listening(fd int) bool {
	v, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	return err == nil && v != 0
}
