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

// askThreads finds the sockets for which a thread sleeps until one of them has
// something for it.
func (l *look) askThreads() {
	if l.over() {
		return
	}
	tids, err := numbers(procPath(l.pid, "task"))
	if err != nil {
		l.withheld(err)
		return
	}
	for _, tid := range tids {
		l.askThread(tid)
		if l.over() {
			return
		}
	}
}

func (l *look) askThread(tid int) {
	var room [256]byte
	line, err := readFile(taskPath(l.pid, tid, "syscall"), room[:])
	if err != nil {
		l.unsure = l.unsure || !threadGone(l.pid, tid)
		return
	}
	call, ok := parseSyscall(line)
	if !ok {
		return // running
	}
	if waits == nil || call.stack < 1<<32 {
		// Another table of system calls: one of a 32-bit program, whose stack
		// lies below 4 GB.
		l.unsure = true
		return
	}
	switch waits[call.number] {
	case waitsOnFirst:
		l.saw(int(int32(call.args[0])))
	case waitsInPoll, waitsInSelect:
		l.askSet(tid, line, call)
	case restarted:
		l.unsure = true
	}
}

// askSet finds sockets in the set that a sleeping thread waits for. The set
// counts only if the thread has slept on while it was read.
func (l *look) askSet(tid int, line []byte, call syscallLine) {
	address, size := call.set()
	if address == 0 || size == 0 {
		return
	}
	if size > maxSet {
		l.unsure = true
		return
	}
	set, err := readMemory(l.pid, address, int(size))
	var room [256]byte
	if again, _ := readFile(taskPath(l.pid, tid, "syscall"), room[:]); !bytes.Equal(line, again) {
		return
	}
	switch {
	case err != nil:
		l.unsure = true
	case waits[call.number] == waitsInPoll:
		l.sawPoll(set)
	default:
		l.sawSelect(set, int(uint32(call.args[0])))
	}
}

// set is where in the thread's memory its set lies, and its size in bytes.
func (c syscallLine) set() (address, size uint64) {
	if waits[c.number] == waitsInSelect {
		bits := uint64(uint32(c.args[0]))
		return c.args[1], (bits + 63) / 64 * 8
	}
	return c.args[0], 8 * uint64(uint32(c.args[1]))
}

// sawPoll reads an array of struct pollfd: descriptor, events, returned events.
func (l *look) sawPoll(set []byte) {
	for entry := range slices.Chunk(set, 8) {
		if events := binary.NativeEndian.Uint16(entry[4:]); events&inputEvents != 0 {
			l.saw(int(int32(binary.NativeEndian.Uint32(entry))))
		}
	}
}

// sawSelect reads an fd_set of so many bits: words of 64, descriptor 0 in the
// lowest bit of the first.
func (l *look) sawSelect(set []byte, bits int) {
	for fd := range l.held {
		if fd < bits && binary.NativeEndian.Uint64(set[fd/64*8:])&(1<<(fd%64)) != 0 {
			l.saw(fd)
		}
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
