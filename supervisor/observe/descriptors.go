package observe

import "maps"

// Inodes returns the inodes of all sockets that the processes hold. complete is
// false where a descriptor table could not be read, as it happens to root
// without CAP_SYS_PTRACE and a worker of another uid: then there may be more,
// and an empty set does not mean none. A process that has ended is no error.
func Inodes(pids []int) (inodes map[uint64]struct{}, complete bool) {
	return inodesOf(pids)
}

// Holders lists the processes that hold the socket with that inode, as far as
// they let themselves be looked into, in order of pid. It looks into every
// process of the system: for error messages.
func Holders(inode uint64) []int {
	return holders(inode)
}

// Accepting tells for each socket with one of these inodes whether any of pids
// waits for connections or datagrams on it: an epoll instance watches it for
// input, or a thread sleeps in accept or recv on it, or in poll or select with it
// in the set. The answer has every one of inodes as a key. The processes are
// walked once for all sockets: ask for many in one call. Among several processes
// one Yes settles the matter, and one that refuses leaves it open.
//
// Unknown means that /proc does not tell: no permission, hidepid, an io_uring
// (which may accept without a trace), a system call that was restarted after
// SIGCONT, a foreign system call table. No means looked and not found, which a
// thread that is just between two calls of accept also gives: ask again.
func Accepting(pids []int, inodes []uint64) map[uint64]Verdict {
	answers, open := map[uint64]Verdict{}, map[uint64]Verdict{}
	for _, inode := range inodes {
		answers[inode], open[inode] = Yes, No
	}
	for _, pid := range pids {
		if len(open) == 0 {
			break
		}
		accepts(pid, open)
	}
	maps.Copy(answers, open)
	return answers
}
