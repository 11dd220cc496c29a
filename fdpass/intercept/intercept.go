// Package intercept stops the bind(2) and listen(2) of a program at another
// process, which answers them: a seccomp filter with user notification (see
// seccomp_unotify(2)). Install puts the filter on the thread that is about to
// become the program, Listen reads what the program and all its descendants
// are stopped at. It works for every program of the native architecture,
// static ones included. Requests pay nothing: what moves data is never trapped.
//
// It needs Linux 5.9, and 5.19 for a program that signals cannot disturb while
// it waits. On other systems everything returns an *Unsupported.
package intercept

import (
	"errors"
	"fmt"
)

// Traps are the system calls that are stopped beyond bind and listen.
type Traps struct {
	// Unlink stops unlink(2), and unlinkat(2) where it removes no directory.
	Unlink bool

	// ShortNames stops a bind whose address has the length that is let pass
	// otherwise: that of a netlink socket, which name lookups make, but also
	// of a unix socket whose name has ten bytes, with its NUL if it has one.
	ShortNames bool

	// Options stops the setsockopt(2) of what a listening socket has to be
	// given again where it is made anew: V6ONLY, REUSEADDR, REUSEPORT, RCVBUF,
	// SNDBUF, BINDTODEVICE, DEFER_ACCEPT, FASTOPEN, FREEBIND, BIND_ADDRESS_NO_PORT,
	// PKTINFO. All others pass.
	Options bool
}

// ErrGone says that nobody waits for the answer any more: the thread was
// killed, or a signal took it out of the call.
var ErrGone = errors.New("the caller is gone")

// Unsupported says why interception cannot work here. What to do about it is
// for the caller to add.
type Unsupported struct {
	Reason string // "this kernel or container has no seccomp(2)"
	Err    error  // what the kernel said; may be nil
}

func (u *Unsupported) Error() string {
	if u.Err == nil {
		return u.Reason
	}
	return fmt.Sprintf("%s (%v)", u.Reason, u.Err)
}

// Unwrap returns what the kernel said.
func (u *Unsupported) Unwrap() error { return u.Err }

// Kind is the system call that a thread is stopped at.
type Kind uint8

// ListenCall is not called Listen because the function is.
const (
	Bind Kind = iota
	ListenCall
	Unlink
	SetOption
)

// Call is a thread that waits in a system call for Answer or Proceed. Its
// fields are a copy: nothing that the program does to its memory afterwards
// changes them.
type Call struct {
	Kind Kind
	TID  int // thread that waits, in our pid namespace
	PID  int // the leader of its thread group

	// FD is the program's descriptor: of the socket, or of the directory of
	// an Unlink (AT_FDCWD is -100). Nothing says that it is open.
	FD int

	Address []byte // Bind: the sockaddr, at most 128 bytes
	Backlog int    // ListenCall
	Path    string // Unlink: as the program wrote it
	Level   int    // SetOption
	Option  int    // SetOption
	Value   []byte // SetOption, at most 64 bytes

	// Err says why Address, Path, Value or PID could not be read: EACCES
	// or EPERM of a program that hides its memory from us.
	Err error

	id       uint64
	listener *Listener
}
