package load

import "golang.org/x/sys/unix"

// unacknowledged is the number of bytes that the peer has not taken yet.
func unacknowledged(fd int) int {
	n, err := unix.IoctlGetInt(fd, unix.SIOCOUTQ)
	if err != nil {
		return 0
	}
	return n
}
