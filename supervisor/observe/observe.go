// Package observe tells the master what the kernel knows about sockets and
// processes: who accepts, how long the queues are, which connections a worker
// still has, who descends from whom.
//
// It only looks. Nothing it does changes a socket or a process, it keeps no
// state between calls, starts no goroutine, and every descriptor it opens is
// close-on-exec and closed before the call returns. All functions may be called
// from several goroutines at once.
//
// The answers come from /proc and from sock_diag netlink, and describe the
// network namespace of the calling thread. Linux only: elsewhere, functions
// with an error return [errors.ErrUnsupported] and those with a [Verdict]
// answer [Unknown].
package observe

import "strconv"

// Verdict answers a question that the kernel may refuse to answer.
type Verdict int

// The verdicts. Unknown means that the answer was withheld (permission,
// hidepid, another system), and must never be taken for a No.
const (
	No Verdict = iota
	Yes
	Unknown
)

// String returns "no", "yes" or "unknown".
func (v Verdict) String() string {
	switch v {
	case No:
		return "no"
	case Yes:
		return "yes"
	case Unknown:
		return "unknown"
	}
	return "Verdict(" + strconv.Itoa(int(v)) + ")"
}
