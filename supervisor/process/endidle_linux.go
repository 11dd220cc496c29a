package process

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// ShutdownRead calls shutdown(SHUT_RD) on a duplicate of each of the sockets,
// wherever among the processes it is held, and returns how many it reached.
func ShutdownRead(pids []int, inodes map[uint64]struct{}) (int, error) {
	n := 0
	var errs []error
	for _, pid := range pids {
		done, err := shutdownReadIn(pid, inodes)
		n += done
		errs = append(errs, err)
	}
	return n, errors.Join(errs...)
}

func shutdownReadIn(pid int, inodes map[uint64]struct{}) (int, error) {
	dir := "/proc/" + strconv.Itoa(pid) + "/fd"
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, err
	}
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return 0, os.NewSyscallError("pidfd_open", err)
	}
	defer unix.Close(pidfd)
	n := 0
	for _, e := range entries {
		link, err := os.Readlink(dir + "/" + e.Name())
		inode, ok := socketInode(link)
		if _, wanted := inodes[inode]; err != nil || !ok || !wanted {
			continue
		}
		fd, _ := strconv.Atoi(e.Name())
		if err := shutdownReadOf(pidfd, fd, inode); err != nil {
			return n, fmt.Errorf("descriptor %d of pid %d: %w", fd, pid, err)
		}
		n++
	}
	return n, nil
}

// socketInode reads "socket:[123]", as /proc/PID/fd shows a socket.
func socketInode(link string) (uint64, bool) {
	number, ok := strings.CutPrefix(link, "socket:[")
	if !ok {
		return 0, false
	}
	inode, err := strconv.ParseUint(strings.TrimSuffix(number, "]"), 10, 64)
	return inode, err == nil
}

// shutdownReadOf makes sure that the descriptor is still the socket that was
// meant: the process may have closed it and opened another since.
func shutdownReadOf(pidfd, fd int, inode uint64) error {
	own, err := unix.PidfdGetfd(pidfd, fd, 0)
	if errors.Is(err, unix.EBADF) {
		return nil // closed by now
	}
	if err != nil {
		return os.NewSyscallError("pidfd_getfd", err)
	}
	defer unix.Close(own)
	var st unix.Stat_t
	if err := unix.Fstat(own, &st); err != nil || st.Ino != inode {
		return err
	}
	err = unix.Shutdown(own, unix.SHUT_RD)
	if errors.Is(err, unix.ENOTCONN) {
		return nil
	}
	return os.NewSyscallError("shutdown", err)
}
