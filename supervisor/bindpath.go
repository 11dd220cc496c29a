package supervisor

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moult/moult/fdpass"
	"github.com/moult/moult/fdpass/intercept"
)

// sunPath is where the name begins in a struct sockaddr_un.
const sunPath = 2

// bindPath answers bind(2) of a unix stream socket. The first one of a path goes
// through; that of a later generation gets a name beside the path until it
// serves.
func (w *worker) bindPath(c *intercept.Call, own *ownSocket) {
	path, sock := w.pathOf(c, c.Address)
	switch {
	case path == "":
		_ = c.Proceed()
		return
	case sock == nil && !own.standIn:
		w.rememberPath(c, own, path)
		_ = c.Proceed()
		return
	}
	w.own.news = time.Now()
	w.dropClosedOn(sock)
	if m := w.vacant(sock); m != nil {
		w.answer(c, w.claim(c, own, m))
		return
	}
	if err := w.bindNewPath(c, own, path, sock); err != nil {
		w.answer(c, err)
	}
}

// pathOf finds out what path an address means ("@name" for an abstract one), and
// the Socket that the master has for it. The path is empty where it is not one
// that can be held.
func (w *worker) pathOf(c *intercept.Call, sockaddr []byte) (string, *fdpass.Socket) {
	if len(sockaddr) <= sunPath || !c.SharesFiles() || !c.SharesNetwork() {
		return "", nil
	}
	name := sockaddr[sunPath:]
	path := "@" + string(name[1:])
	if name[0] != 0 {
		var ok bool
		if path, ok = fdpass.ResolvePath(c.TID, name); !ok {
			return "", nil
		}
	}
	return path, w.master.pathSocket(path)
}

func (s *Supervisor) pathSocket(path string) *fdpass.Socket {
	for _, sock := range s.sockets {
		if sock.IsUnix() && sock.IsStream() && sock.Bound() == path {
			return sock
		}
	}
	return nil
}

func (w *worker) bindNewPath(c *intercept.Call, own *ownSocket, path string, sock *fdpass.Socket) error {
	if w.listensOn(sock) {
		return syscall.EADDRINUSE
	}
	if sock != nil {
		// A path leads to one socket, so that all workers of a generation have
		// the same.
		if how, _ := sock.How(); how == fdpass.Shared || len(w.slot.gen.membersOf(sock)) > 0 {
			return w.share(c, own, sock)
		}
	}
	if w.ownSockets() >= maxOwnSockets {
		return syscall.ENOBUFS
	}
	id, err := fdpass.IdentityOf(c.TID)
	if err != nil {
		_ = c.Proceed()
		return nil
	}
	if own.standIn {
		if err := w.standIn(c, own); err != nil {
			return err
		}
	}
	bound := &boundSocket{standIn: -1, path: sock, identity: id}
	if sock == nil {
		err = bindAs(id, own.fd, path)
		bound.path = fdpass.LearnPath(path, w.master.options())
	} else {
		err = sock.BindPath(own.fd, id)
	}
	if err != nil {
		return err
	}
	if own.standIn {
		if err := w.replace(c, own); err != nil {
			return err
		}
		w.keepStandIn(own, bound)
	}
	w.own.bound[own.Inode] = bound
	bound.unanswered = !w.answer(c, nil)
	return nil
}

// bindAs binds the socket that stands in for the worker's own, as the worker.
func bindAs(id fdpass.Identity, fd int, path string) error {
	name := path
	if abstract, is := strings.CutPrefix(path, "@"); is {
		name = "\x00" + abstract
	}
	return id.Do(func() error { return unix.Bind(fd, &unix.SockaddrUnix{Name: name}) })
}

// rememberPath notes where a bind goes that the kernel does: by listen(2) the
// worker may be in another directory.
func (w *worker) rememberPath(c *intercept.Call, own *ownSocket, path string) {
	id, err := fdpass.IdentityOf(c.TID)
	if err == nil && w.ownSockets() < maxOwnSockets {
		w.own.bound[own.Inode] = &boundSocket{standIn: -1, path: fdpass.LearnPath(path, w.master.options()), identity: id}
	}
}

// listenPath answers listen(2) of a unix stream socket that is no member yet.
func (w *worker) listenPath(c *intercept.Call, own *ownSocket) {
	bound := w.own.bound[own.Inode]
	if bound == nil {
		path, sock := w.pathOf(c, own.Name) // the bind could not be seen
		if path == "" || sock != nil {
			_ = c.Proceed()
			return
		}
		w.rememberPath(c, own, path)
		bound = w.own.bound[own.Inode]
	}
	if bound == nil || !leadsToSocket(bound.path) {
		_ = c.Proceed()
		w.bypassed("the path of a unix socket that it listens on cannot be found (" + printable(own.Name) + "); use --listen, or an absolute path")
		return
	}
	if sock := w.master.pathSocket(bound.path.Bound()); sock != nil {
		bound.path = sock // another worker listens there already
	}
	delete(w.own.bound, own.Inode)
	w.answer(c, w.adoptPath(c, own.keep(), bound))
}

// leadsToSocket keeps what leads nowhere, or to a file of somebody else's, from
// being held.
func leadsToSocket(sock *fdpass.Socket) bool {
	if strings.HasPrefix(sock.Bound(), "@") || len(sock.Members()) > 0 {
		return true
	}
	info, err := os.Lstat(sock.Bound())
	return err == nil && info.Mode()&fs.ModeSocket != 0
}

func printable(sockaddr []byte) string {
	if len(sockaddr) <= sunPath {
		return "it has no name"
	}
	return strings.TrimRight(string(sockaddr[sunPath:]), "\x00")
}

// adoptPath makes a member of a unix socket; fd is taken over.
func (w *worker) adoptPath(c *intercept.Call, fd int, bound *boundSocket) error {
	s, sock := w.master, bound.path
	if len(w.slot.members) >= maxOwnSockets {
		_ = syscall.Close(fd)
		return syscall.ENOBUFS
	}
	m, err := sock.AdoptPath(fd, w.slot.gen.key, c.Backlog, bound.identity)
	if err != nil {
		return err
	}
	if len(sock.Members()) == 1 {
		s.learned(sock)
	}
	w.hold(m, claim{})
	s.steerTo(sock, w.slot.gen)
	return nil
}

// hasName spares all other files a look, which may take long where they are far
// away.
func (s *Supervisor) hasName(base string) bool {
	return slices.ContainsFunc(s.sockets, func(sock *fdpass.Socket) bool { return sock.HasName(base) })
}

// unlink pretends to remove a path that leads to one of our sockets: a server
// that makes room for its own, or that leaves, would take the name from the
// generation that serves.
func (w *worker) unlink(c *intercept.Call) {
	if w.master.hasName(filepath.Base(c.Path)) && c.SharesFiles() {
		if info, err := fdpass.LeadsTo(c.TID, c.FD, c.Path); err == nil {
			for _, sock := range w.master.sockets {
				if sock.IsUnix() && sock.Shows(info) {
					w.answer(c, nil)
					return
				}
			}
		}
	}
	_ = c.Proceed()
}
