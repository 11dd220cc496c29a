package observe

import (
	"bytes"
	"errors"
	"strconv"
)

var errMalformed = errors.New("malformed stat line")

// Places of the fields that are used, counted from the state, which follows the
// name (proc_pid_stat(5)).
const (
	statPPID      = 1
	statPGID      = 2
	statSID       = 3
	statThreads   = 17
	statStartTime = 19
	statFields    = 20
)

// parseStat reads a line of /proc/PID/stat. The name stands between the first
// opening and the *last* closing parenthesis: it may hold parentheses, spaces
// and newlines itself, and all that follows it are numbers.
func parseStat(line []byte) (Proc, error) {
	head, rest, ok := bytes.Cut(line, []byte(" ("))
	end := bytes.LastIndexByte(rest, ')')
	if !ok || end < 0 {
		return Proc{}, errMalformed
	}
	fields := bytes.Fields(rest[end+1:])
	if len(fields) < statFields || len(fields[0]) != 1 {
		return Proc{}, errMalformed
	}
	n := numberReader{}
	p := Proc{
		PID:       n.int(head),
		PPID:      n.int(fields[statPPID]),
		PGID:      n.int(fields[statPGID]),
		SID:       n.int(fields[statSID]),
		State:     fields[0][0],
		Threads:   n.int(fields[statThreads]),
		StartTime: n.uint(fields[statStartTime]),
		Comm:      string(rest[:end]),
	}
	if n.err != nil {
		return Proc{}, errMalformed
	}
	return p, nil
}

// numberReader keeps the first error of a row of conversions.
type numberReader struct{ err error }

func (n *numberReader) int(b []byte) int {
	v, err := strconv.Atoi(string(b))
	n.keep(err)
	return v
}

func (n *numberReader) uint(b []byte) uint64 {
	v, err := strconv.ParseUint(string(b), 10, 64)
	n.keep(err)
	return v
}

func (n *numberReader) keep(err error) {
	if n.err == nil {
		n.err = err
	}
}
