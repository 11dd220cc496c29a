package fdpass

import (
	"fmt"
	"io/fs"
	"os"
)

// A Member is one listening (or datagram) socket of an address: what a worker
// is given, and what the master keeps when the worker is gone.
//
// The descriptor is a plain integer on purpose. An *os.File or a net.Listener
// may end up in the Go runtime's poller, and then every connection that
// arrives wakes the master, which has no use for it.
type Member struct {
	socket *Socket
	fd     int
	inode  uint64

	users   int         // workers that were given it and have not left it
	gen     int         // generation it was made for, where a generation shares one
	path    string      // unix: the name it was bound to
	file    fs.FileInfo // of that name, by which it is known under others
	maker   *Identity   // learned path: as whom its names are made and removed
	own     bool        // a worker made it itself
	foreign bool        // came from outside: its listening outlives us, it is never shut down
	spare   bool        // in the kernel's array, given to nobody
	tainted bool        // its place in the kernel's array is not known for certain
}

// Inode is the socket's inode number, by which the kernel's tables name it.
func (m *Member) Inode() uint64 { return m.inode }

// Descriptor is the number of the master's own descriptor. It stays the
// member's: callers neither close it nor make it an *os.File.
func (m *Member) Descriptor() int { return m.fd }

// Own tells that a worker made the socket itself, and the master holds a
// duplicate.
func (m *Member) Own() bool { return m.own }

// Path is the name that a unix socket was bound to, which its connections bear;
// it is not the path that clients use where that is renamed.
func (m *Member) Path() string {
	name, _ := boundAddress(m.fd)
	return name
}

// Socket is the address that the member belongs to.
func (m *Member) Socket() *Socket { return m.socket }

// Duplicate returns a second descriptor of the same socket as a file, for the
// moment of a start (exec.Cmd.ExtraFiles). The caller closes it; the member is
// not affected.
func (m *Member) Duplicate() (*os.File, error) {
	fd, err := dupCloexec(m.fd)
	if err != nil {
		return nil, fmt.Errorf("cannot duplicate the socket of %s: %w", m.socket.addr.Name, err)
	}
	return os.NewFile(uintptr(fd), m.socket.addr.Name), nil
}
