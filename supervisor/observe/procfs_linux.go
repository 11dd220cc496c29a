package observe

import (
	"bytes"
	"encoding/binary"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Files of /proc are read by plain system calls: os.Open would offer each to the
// runtime's poller and attach a finalizer, which costs more than the read.

// procPath returns "/proc/PID/name".
func procPath(pid int, name string) string {
	return "/proc/" + strconv.Itoa(pid) + "/" + name
}

// taskPath returns "/proc/PID/task/TID/name".
func taskPath(pid, tid int, name string) string {
	return procPath(pid, "task/"+strconv.Itoa(tid)+"/"+name)
}

func retry[T any](call func() (T, error)) (T, error) {
	for {
		v, err := call()
		if err != unix.EINTR {
			return v, err
		}
	}
}

// open opens for reading; the caller closes. A process that ended between two
// steps shows as ESRCH, which means the same as ENOENT to all callers.
func open(path string, flags int) (int, error) {
	fd, err := retry(func() (int, error) {
		return unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|flags, 0)
	})
	return fd, absent(err)
}

func absent(err error) error {
	if err == unix.ESRCH {
		return unix.ENOENT
	}
	return err
}

// readFile reads a whole file into the room of buf, or more where that is too
// small. A large buf matters for long files: the kernel writes them per read.
func readFile(path string, buf []byte) ([]byte, error) {
	fd, err := open(path, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	buf = buf[:0]
	for {
		if len(buf) == cap(buf) {
			buf = append(buf, make([]byte, max(4096, len(buf)))...)[:len(buf)]
		}
		n, err := retry(func() (int, error) { return unix.Read(fd, buf[len(buf):cap(buf)]) })
		if err != nil {
			return nil, absent(err)
		}
		if n == 0 {
			return buf, nil
		}
		buf = buf[:len(buf)+n]
	}
}

// numbers lists the numeric names in a directory: pids, thread ids, descriptors.
func numbers(path string) ([]int, error) {
	fd, err := open(path, unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	return numbersIn(fd)
}

func numbersIn(dir int) ([]int, error) {
	var list []int
	buf := make([]byte, 16<<10)
	for {
		n, err := retry(func() (int, error) { return unix.Getdents(dir, buf) })
		if err != nil {
			return nil, absent(err)
		}
		if n == 0 {
			return list, nil
		}
		list = appendNumbers(list, buf[:n])
	}
}

// appendNumbers reads the records of getdents64(2).
func appendNumbers(list []int, records []byte) []int {
	const lengthAt = int(unsafe.Offsetof(unix.Dirent{}.Reclen))
	const nameAt = int(unsafe.Offsetof(unix.Dirent{}.Name))
	for len(records) > nameAt {
		length := int(binary.NativeEndian.Uint16(records[lengthAt:]))
		name, _, _ := bytes.Cut(records[nameAt:length], []byte{0})
		if n, ok := number(name); ok {
			list = append(list, n)
		}
		records = records[length:]
	}
	return list
}

func number(name []byte) (int, bool) {
	n := 0
	for _, c := range name {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int(c-'0')
	}
	return n, len(name) > 0
}

// gone tells whether a process that could not be looked into holds nothing any
// more: it has ended, or is a zombie. With hidepid a living process looks absent
// in /proc, but not to kill(2).
func gone(pid int) bool {
	if p, err := readProc(pid); err == nil {
		return !p.Alive()
	}
	return unix.Kill(pid, 0) == unix.ESRCH
}

func verdict(yes bool) Verdict {
	if yes {
		return Yes
	}
	return No
}
