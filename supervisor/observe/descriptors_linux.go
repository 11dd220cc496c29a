package observe

import (
	"bytes"
	"strconv"

	"golang.org/x/sys/unix"
)

// visitor gets a descriptor's number and what it refers to: "socket:[17]",
// "anon_inode:[eventpoll]", a path. The text is valid during the call only.
type visitor func(fd int, target []byte)

func inodesOf(pids []int) (map[uint64]struct{}, bool) {
	inodes, complete := make(map[uint64]struct{}), true
	collect := func(_ int, target []byte) {
		if inode, ok := socketInode(target); ok {
			inodes[inode] = struct{}{}
		}
	}
	for _, pid := range pids {
		complete = walkDescriptors(pid, collect) && complete
	}
	return inodes, complete
}

func holders(inode uint64) []int {
	pids, err := numbers("/proc")
	if err != nil {
		return nil
	}
	var list []int
	for _, pid := range pids {
		holds := false
		walkDescriptors(pid, func(_ int, target []byte) {
			held, ok := socketInode(target)
			holds = holds || ok && held == inode
		})
		if holds {
			list = append(list, pid)
		}
	}
	return list
}

// walkDescriptors visits the descriptor table of a process and tells whether all
// of it could be seen. A process that has ended has none, and hides nothing.
func walkDescriptors(pid int, visit visitor) (complete bool) {
	n, err := walkTable(procPath(pid, "fd"), visit)
	if err == nil && n > 0 {
		return true
	}
	// Where the main thread has left, its table looks empty, to ordinary users
	// forbidden, and shows under the threads that remain, which share it.
	n, threadErr := walkThreads(pid, visit)
	if threadErr == nil && n > 0 {
		return true
	}
	return err == nil && threadErr == nil || gone(pid)
}

// walkThreads visits the first table that shows under a thread other than the
// main one.
func walkThreads(pid int, visit visitor) (n int, err error) {
	tids, err := numbers(procPath(pid, "task"))
	for _, tid := range tids {
		if tid == pid {
			continue
		}
		if n, err = walkTable(taskPath(pid, tid, "fd"), visit); n > 0 {
			break
		}
	}
	return n, err
}

// walkTable reads the links of one fd directory and counts them. They are read,
// never followed: a stat through a link may hang on a dead network file system.
func walkTable(path string, visit visitor) (n int, err error) {
	dir, err := open(path, unix.O_DIRECTORY)
	if err != nil {
		return 0, err
	}
	defer unix.Close(dir)
	fds, err := numbersIn(dir)
	if err != nil {
		return 0, err
	}
	var room [64]byte
	for _, fd := range fds {
		length, err := unix.Readlinkat(dir, strconv.Itoa(fd), room[:])
		switch absent(err) {
		case nil:
			visit(fd, room[:length])
		case unix.ENOENT: // closed since it was listed
		default:
			return n, err
		}
		n++
	}
	return n, nil
}

func socketInode(target []byte) (uint64, bool) {
	digits, ok := bytes.CutPrefix(target, []byte("socket:["))
	if !ok {
		return 0, false
	}
	n, ok := number(bytes.TrimSuffix(digits, []byte("]")))
	return uint64(n), ok
}
