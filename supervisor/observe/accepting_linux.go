package observe

import (
	"bytes"
	"strconv"

	"golang.org/x/sys/unix"
)

// look is one pass over one process that may accept on several sockets.
type look struct {
	pid    int
	held   map[int]uint64      // its descriptors of the sockets in question: inodes
	unseen map[uint64]struct{} // of those inodes, the ones not seen accepting yet
	epolls []int
	ring   bool // holds an io_uring
	unsure bool // something that could tell was withheld
}

// readTable looks for the sockets that open has as keys.
func readTable(pid int, open map[uint64]Verdict) (l look, complete bool) {
	l = look{pid: pid, held: map[int]uint64{}, unseen: map[uint64]struct{}{}}
	complete = walkDescriptors(pid, func(fd int, target []byte) {
		switch string(target) {
		case "anon_inode:[eventpoll]":
			l.epolls = append(l.epolls, fd)
		case "anon_inode:[io_uring]":
			l.ring = true
		default:
			if inode, ok := socketInode(target); ok {
				l.hold(fd, inode, open)
			}
		}
	})
	return l, complete
}

func (l *look) hold(fd int, inode uint64, open map[uint64]Verdict) {
	if _, asked := open[inode]; asked {
		l.held[fd] = inode
		l.unseen[inode] = struct{}{}
	}
}

// accepts asks one process about all sockets in open, the keys of which are
// inodes: those that it accepts on leave the map, and No becomes Unknown where it
// does not tell. Only a process that holds a socket itself can accept: an epoll
// instance goes on watching one that its process has closed for as long as
// another process, the master for one, holds a duplicate.
func accepts(pid int, open map[uint64]Verdict) {
	l, complete := readTable(pid, open)
	if !complete {
		for inode := range open {
			open[inode] = Unknown
		}
	}
	l.unsure = l.ring
	l.askEpolls()
	l.askThreads()
	for _, inode := range l.held {
		if _, unseen := l.unseen[inode]; !unseen {
			delete(open, inode)
		} else if l.unsure {
			open[inode] = Unknown
		}
	}
}

// over tells whether nothing is left to be found in this process.
func (l *look) over() bool { return len(l.unseen) == 0 }

// saw notes that one of the process's own descriptors is waited on.
func (l *look) saw(fd int) {
	if inode, held := l.held[fd]; held {
		delete(l.unseen, inode)
	}
}

// withheld notes a file of the process that could not be read: what has ended
// waits for nothing, what refuses says nothing.
func (l *look) withheld(err error) {
	l.unsure = l.unsure || err != unix.ENOENT && !gone(l.pid)
}

func (l *look) askEpolls() {
	for _, fd := range l.epolls {
		if l.over() {
			return
		}
		l.askEpoll(fd)
	}
}

// askEpoll finds the sockets that an epoll descriptor has registered for input.
func (l *look) askEpoll(epoll int) {
	text, err := readFile(procPath(l.pid, "fdinfo/"+strconv.Itoa(epoll)), make([]byte, 0, 8192))
	if err != nil {
		l.withheld(err)
		return
	}
	for line := range bytes.Lines(text) {
		if inode, events := parseWatch(line); events&inputEvents != 0 {
			delete(l.unseen, inode)
		}
	}
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
