package observe

import (
	"errors"

	"golang.org/x/sys/unix"
)

func acceptQueue(fd int) (int, error) {
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return 0, err
	}
	if kind == unix.SOCK_DGRAM {
		return 0, nil
	}
	if !Listening(fd) {
		return 0, ErrNotListening
	}
	family, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return 0, err
	}
	switch family {
	case unix.AF_INET, unix.AF_INET6:
		return tcpQueue(fd)
	case unix.AF_UNIX:
		return unixQueueOf(fd)
	}
	return 0, errors.ErrUnsupported
}

// firstDatagram is what SIOCINQ says of a datagram socket; a listener has no
// answer.
func firstDatagram(fd int) int {
	n, _ := unix.IoctlGetInt(fd, unix.SIOCINQ)
	return n
}

// tcpQueue reads tcpi_unacked, which counts the queue where the socket listens
// and unacknowledged segments where it does not.
func tcpQueue(fd int) (int, error) {
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return 0, err
	}
	if info.State != unix.BPF_TCP_LISTEN {
		return 0, ErrNotListening
	}
	return int(info.Unacked), nil
}

func unixQueueOf(fd int) (int, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, err
	}
	return unixQueue(st.Ino)
}
