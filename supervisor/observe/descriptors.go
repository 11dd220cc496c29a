package observe

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

// Accepting tells whether any of pids waits for connections or datagrams on the
// socket with that inode: an epoll instance watches it for input, or a thread
// sleeps in accept or recv on it, or in poll or select with it in the set.
//
// Unknown means that /proc does not tell: no permission, hidepid, an io_uring
// (which may accept without a trace), a system call that was restarted after
// SIGCONT, a foreign system call table. No means looked and not found, which a
// thread that is just between two calls of accept also gives: ask again.
func Accepting(pids []int, inode uint64) Verdict {
	answer := No
	for _, pid := range pids {
		answer = answer.or(accepts(pid, inode))
		if answer == Yes {
			break
		}
	}
	return answer
}
