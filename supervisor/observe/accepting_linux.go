package observe

import (
	"bytes"
	"strconv"
)

// table is what matters of a process's descriptors when asking who accepts.
type table struct {
	held   []int // descriptors of the socket in question
	epolls []int
	ring   bool // holds an io_uring
}

func readTable(pid int, inode uint64) (t table, complete bool) {
	complete = walkDescriptors(pid, func(fd int, target []byte) {
		switch string(target) {
		case "anon_inode:[eventpoll]":
			t.epolls = append(t.epolls, fd)
		case "anon_inode:[io_uring]":
			t.ring = true
		default:
			if held, ok := socketInode(target); ok && held == inode {
				t.held = append(t.held, fd)
			}
		}
	})
	return t, complete
}

// accepts asks one process. Only one that holds the socket itself can accept: an
// epoll instance goes on watching a socket that its process has closed for as
// long as another process, the master for one, holds a duplicate.
func accepts(pid int, inode uint64) Verdict {
	t, complete := readTable(pid, inode)
	answer := No
	if !complete {
		answer = Unknown
	}
	if len(t.held) == 0 {
		return answer
	}
	if t.ring {
		answer = Unknown
	}
	for _, fd := range t.epolls {
		answer = answer.or(watches(pid, fd, inode))
		if answer == Yes {
			return Yes
		}
	}
	return answer.or(threadsWait(pid, t.held))
}

// watches tells whether an epoll descriptor has the socket registered for input.
func watches(pid, epoll int, inode uint64) Verdict {
	text, err := readFile(procPath(pid, "fdinfo/"+strconv.Itoa(epoll)), make([]byte, 0, 8192))
	if err != nil {
		return verdictOnFailure(err, pid)
	}
	for line := range bytes.Lines(text) {
		if watched, events := parseWatch(line); watched == inode && events&inputEvents != 0 {
			return Yes
		}
	}
	return No
}

// inputEvents are EPOLLIN and EPOLLRDNORM, which have the numbers of POLLIN and
// POLLRDNORM. One-shot registrations that have fired lose them until renewed.
const inputEvents = 0x1 | 0x40

// parseWatch reads a line of an epoll's fdinfo (proc_pid_fdinfo(5)):
//
//	tfd:        5 events:     2019 data:             1234  pos:0 ino:abc sdev:8
//
// Event mask and inode are hexadecimal. Other lines give zeros.
func parseWatch(line []byte) (inode uint64, events uint64) {
	if !bytes.HasPrefix(line, []byte("tfd:")) {
		return 0, 0
	}
	words := bytes.Fields(line)
	for i, word := range words {
		if string(word) == "events:" && i+1 < len(words) {
			events = hex(words[i+1])
		}
		if digits, ok := bytes.CutPrefix(word, []byte("ino:")); ok {
			inode = hex(digits)
		}
	}
	return inode, events
}

func hex(digits []byte) uint64 {
	n, err := strconv.ParseUint(string(digits), 16, 64)
	if err != nil {
		return 0
	}
	return n
}
