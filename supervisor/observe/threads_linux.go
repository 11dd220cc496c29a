package observe

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// wait says how the arguments of a sleeping system call name its descriptors.
type wait int

const (
	waitsOnFirst  wait = iota + 1 // the first argument is the descriptor
	waitsInPoll                   // pollfd array, length
	waitsInSelect                 // number of bits, read set
	restarted                     // restart_syscall(2): which call it was, nobody says
)

// maxSet bounds what is read of another process's memory: the set of a process
// with 65 536 descriptors.
const maxSet = 1 << 19

// syscallLine is /proc/PID/task/TID/syscall of a sleeping thread
// (proc_pid_syscall(5)): number, six arguments, stack pointer, program counter.
type syscallLine struct {
	number int
	args   [6]uint64
	stack  uint64
}

// threadsWait tells whether a thread of pid sleeps until one of fds, all of them
// the socket in question, has something for it.
func threadsWait(pid int, fds []int) Verdict {
	tids, err := numbers(procPath(pid, "task"))
	if err != nil {
		return verdictOnFailure(err, pid)
	}
	answer := No
	for _, tid := range tids {
		answer = answer.or(threadWaits(pid, tid, fds))
		if answer == Yes {
			break
		}
	}
	return answer
}

func threadWaits(pid, tid int, fds []int) Verdict {
	var room [256]byte
	line, err := readFile(taskPath(pid, tid, "syscall"), room[:])
	if err != nil {
		return unknownUnless(threadGone(pid, tid))
	}
	call, ok := parseSyscall(line)
	if !ok {
		return No // running
	}
	if waits == nil || call.stack < 1<<32 {
		// Another table of system calls: one of a 32-bit program, whose stack
		// lies below 4 GB.
		return Unknown
	}
	switch waits[call.number] {
	case waitsOnFirst:
		return verdict(slices.Contains(fds, int(int32(call.args[0]))))
	case waitsInPoll, waitsInSelect:
		return setHas(pid, tid, line, call, fds)
	case restarted:
		return Unknown
	}
	return No
}

// setHas looks for fds in the set that a sleeping thread waits for. The set
// counts only if the thread has slept on while it was read.
func setHas(pid, tid int, line []byte, call syscallLine, fds []int) Verdict {
	has, address, size := pollHas, call.args[0], 8*uint64(uint32(call.args[1]))
	if waits[call.number] == waitsInSelect {
		bits := uint64(uint32(call.args[0]))
		has, address, size = selectHas(int(bits)), call.args[1], (bits+63)/64*8
	}
	if address == 0 || size == 0 {
		return No
	}
	if size > maxSet {
		return Unknown
	}
	set, err := readMemory(pid, address, int(size))
	var room [256]byte
	if again, _ := readFile(taskPath(pid, tid, "syscall"), room[:]); !bytes.Equal(line, again) {
		return No
	}
	if err != nil {
		return Unknown
	}
	return verdict(has(set, fds))
}

// pollHas reads an array of struct pollfd: descriptor, events, returned events.
func pollHas(set []byte, fds []int) bool {
	for entry := range slices.Chunk(set, 8) {
		fd := int(int32(binary.NativeEndian.Uint32(entry)))
		events := binary.NativeEndian.Uint16(entry[4:])
		if events&inputEvents != 0 && slices.Contains(fds, fd) {
			return true
		}
	}
	return false
}

// selectHas reads an fd_set of so many bits: words of 64, descriptor 0 in the
// lowest bit of the first.
func selectHas(bits int) func(set []byte, fds []int) bool {
	return func(set []byte, fds []int) bool {
		return slices.ContainsFunc(fds, func(fd int) bool {
			return fd < bits && binary.NativeEndian.Uint64(set[fd/64*8:])&(1<<(fd%64)) != 0
		})
	}
}

func readMemory(pid int, address uint64, size int) ([]byte, error) {
	fd, err := open(procPath(pid, "mem"), 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	buf := make([]byte, size)
	n, err := retry(func() (int, error) { return unix.Pread(fd, buf, int64(address)) })
	if err == nil && n < size {
		err = unix.EFAULT
	}
	return buf, err
}

// parseSyscall is not ok for a thread that runs, or sleeps for another reason
// than a system call.
func parseSyscall(line []byte) (call syscallLine, ok bool) {
	words := bytes.Fields(line)
	if len(words) < 9 {
		return syscallLine{}, false
	}
	n := numberReader{}
	call.number = n.int(words[0])
	for i := range call.args {
		call.args[i] = n.hex(words[i+1])
	}
	call.stack = n.hex(words[7])
	return call, n.err == nil
}

func (n *numberReader) hex(b []byte) uint64 {
	v, err := strconv.ParseUint(string(b), 0, 64)
	n.keep(err)
	return v
}

// verdictOnFailure is for a file of pid that could not be read: what has ended
// waits for nothing, what refuses says nothing.
func verdictOnFailure(err error, pid int) Verdict {
	return unknownUnless(err == unix.ENOENT || gone(pid))
}

func unknownUnless(settled bool) Verdict {
	if settled {
		return No
	}
	return Unknown
}
