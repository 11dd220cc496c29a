package group

import (
	"io/fs"
	"os"
	"syscall"

	"github.com/moult/moult/fdpass"
)

// A Member is one listening (or datagram) socket of an address: what a worker
// is given, and what the master keeps when the worker is gone.
//
// The descriptor is a plain integer on purpose. An *os.File or a net.Listener
// may end up in the Go runtime's poller, and then every connection that
// arrives wakes the master, which has no use for it.
type Member struct {
	fd    int
	inode uint64

	users   int         // workers that were given it and have not left it
	gen     int         // generation it was made for, where a generation shares one
	path    string      // unix: the name it was bound to
	file    fs.FileInfo // of that name, by which it is known under others
	maker   *Identity   // learned path: as whom its names are made and removed
	own     bool        // a worker made it itself
	foreign bool        // came from outside: its listening outlives us, it is never shut down
	common  bool        // several workers have it at the same time
	spare   bool        // in the kernel's array, given to nobody
	tainted bool        // its place in the kernel's array is not known for certain
}

// newMember takes fd over, and closes it with an error.
func newMember(fd int) (*Member, error) {
	var st syscall.Stat_t
	if err := syscall.Fstat(fd, &st); err != nil {
		closeDescriptor(fd)
		return nil, os.NewSyscallError("fstat", err)
	}
	return &Member{fd: fd, inode: uint64(st.Ino)}, nil
}

// Inode is the socket's inode number, by which the kernel's tables name it.
func (m *Member) Inode() uint64 { return m.inode }

// Descriptor is the number of the master's own descriptor. It stays the
// member's: callers neither close it nor make it an *os.File.
func (m *Member) Descriptor() int { return m.fd }

// Own tells that a worker made the socket itself, and the master holds a
// duplicate.
func (m *Member) Own() bool { return m.own }

// Foreign tells that the socket came from outside, whose maker will hold it when
// we are gone.
func (m *Member) Foreign() bool { return m.foreign }

// Path is the name that a unix socket was bound to, which its connections bear;
// it is not the path that clients use where that is renamed.
func (m *Member) Path() string {
	l, _ := fdpass.LocalOf(m.fd)
	return l.Path
}

// Fresh undoes what the worker before may have changed, for one that is started
// with the socket: systemd hands out blocking ones, and servers in Python rely
// on it. It leaves alone what another worker has as well.
func (m *Member) Fresh() error {
	if m.common || m.users > 1 {
		return nil
	}
	return m.Claim(false)
}

// Claim prepares a member for the worker that gets it in place of a socket of
// its own, which was non-blocking or not.
func (m *Member) Claim(nonblock bool) error {
	return os.NewSyscallError("fcntl", syscall.SetNonblock(m.fd, nonblock))
}

// listen sets the length of the queue. The kernel tells clients of a unix
// socket who called listen(2) (SO_PEERCRED): for a worker's own socket that is
// the worker's user, though the process is the master.
func (m *Member) listen(backlog int) error {
	listen := func() error { return os.NewSyscallError("listen", syscall.Listen(m.fd, backlog)) }
	if m.maker == nil {
		return listen()
	}
	return m.maker.do(listen)
}

// close leaves no number behind that may be another descriptor's by then.
func (m *Member) close() {
	closeDescriptor(m.fd)
	m.fd = -1
}

// closeDescriptor drops the error: close(2) on a socket reports nothing that
// the caller could mend, and the descriptor is gone either way.
func closeDescriptor(fd int) { _ = syscall.Close(fd) }
