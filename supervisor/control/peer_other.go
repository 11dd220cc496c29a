//go:build !linux

package control

import (
	"net"

	"golang.org/x/sys/unix"
)

// solLocal is the level of LOCAL_PEERCRED.
const solLocal = 0

// peer tells whose process is at the other end; its pid is not known here.
func peer(conn *net.UnixConn) (uid, pid int, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, 0, err
	}
	var cred *unix.Xucred
	var credErr error
	err = raw.Control(func(fd uintptr) { cred, credErr = unix.GetsockoptXucred(int(fd), solLocal, unix.LOCAL_PEERCRED) })
	if err == nil {
		err = credErr
	}
	if err != nil {
		return 0, 0, err
	}
	return int(cred.Uid), 0, nil
}
