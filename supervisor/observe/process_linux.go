package observe

import (
	"bytes"
	"errors"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

func readProc(pid int) (Proc, error) {
	var room [512]byte
	line, err := readFile(procPath(pid, "stat"), room[:])
	if err != nil {
		return Proc{}, err
	}
	return parseStat(line)
}

func processes() ([]Proc, error) {
	pids, err := numbers("/proc")
	if err != nil {
		return nil, err
	}
	all := make([]Proc, 0, len(pids))
	for _, pid := range pids {
		if p, err := readProc(pid); err == nil {
			all = append(all, p)
		}
	}
	return all, nil
}

// childrenOf asks the kernel for the children of each thread, which costs far
// less than a pass over all processes; ok is false on kernels that were built
// without it (CONFIG_PROC_CHILDREN).
func childrenOf(pid int) (list []int, ok bool) {
	tids, err := numbers(procPath(pid, "task"))
	if err != nil {
		return nil, true
	}
	for _, tid := range tids {
		text, err := readFile(taskPath(pid, tid, "children"), nil)
		if err != nil && !threadGone(pid, tid) {
			return nil, false
		}
		list = appendChildren(list, text)
	}
	return list, true
}

func appendChildren(list []int, text []byte) []int {
	for _, field := range bytes.Fields(text) {
		pid, ok := number(field)
		if !ok {
			continue
		}
		if p, err := readProc(pid); err == nil && p.Alive() {
			list = append(list, pid)
		}
	}
	return list
}

// threadGone is the check after a file of a thread could not be read: stat is
// there and readable as long as the thread is.
func threadGone(pid, tid int) bool {
	return unix.Access(taskPath(pid, tid, "stat"), unix.F_OK) != nil
}

// handles reads the masks of /proc/PID/status: 16 hex digits, the lowest bit for
// signal 1. A zombie's are all zero, which says nothing.
func handles(pid int, sig syscall.Signal) Verdict {
	text, err := readFile(procPath(pid, "status"), make([]byte, 0, 4096))
	if err != nil || bytes.Equal(field(text, "State:"), []byte("Z")) {
		return Unknown
	}
	var mask uint64
	for _, name := range []string{"SigIgn:", "SigCgt:"} {
		m, err := strconv.ParseUint(string(field(text, name)), 16, 64)
		if err != nil {
			return Unknown
		}
		mask |= m
	}
	return verdict(mask&(1<<(sig-1)) != 0)
}

func memory(pid int) (rss, pss uint64, err error) {
	text, err := readFile(procPath(pid, "smaps_rollup"), make([]byte, 0, 4096))
	if err != nil {
		return 0, 0, err
	}
	n := numberReader{}
	rss = n.uint(field(text, "Rss:"))
	pss = n.uint(field(text, "Pss:"))
	if n.err != nil {
		return 0, 0, errors.New("malformed smaps_rollup")
	}
	return rss * 1024, pss * 1024, nil
}

// field returns the first word after name at the beginning of a line.
func field(text []byte, name string) []byte {
	for line := range bytes.Lines(text) {
		if rest, ok := bytes.CutPrefix(line, []byte(name)); ok {
			if words := bytes.Fields(rest); len(words) > 0 {
				return words[0]
			}
		}
	}
	return nil
}
