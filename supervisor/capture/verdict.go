//go:build linux

package capture

import (
	"errors"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/moult/moult/fdpass/group"
)

// The methods of an Asked are the verdicts. Proceed, Deny, Beside, Permit and End
// end the call; exactly one of them does, and closes what the Asked holds. Adopt,
// Claim and Resume come before an End: who asks next, after that, is to find them
// written down. Those that touch a group are called by whoever has the group at
// that moment.

// ErrGone says that the member which a verdict names is not there any more.
var ErrGone = errors.New("the member is gone")

// Proceed lets the call go on as if nobody had looked; or, where IsEarly, does
// what it asks for.
func (a *Asked) Proceed() {
	if a.IsEarly() {
		a.End(a.bindEarly(false))
		return
	}
	_ = a.kernel.Proceed()
	a.close()
}

// IsEarly tells that a socket of ours has to take the place of the worker's at
// bind(2): at listen(2) it could not. The worker's own goes only when its call
// has returned, and until then has the path, and a port that it does not share.
func (a *Asked) IsEarly() bool {
	if a.Listen || !a.sock.substitute || a.Network == "tcp" && a.sock.ReuseAddr {
		return false
	}
	before, seen := a.worker.recall(a.Inode)
	return seen && !before.placed && a.Network != "udp"
}

// bindEarly binds a socket of ours as the worker would have done, and puts it in
// place. Nothing is kept of a port's; beside others it shares the port at once.
func (a *Asked) bindEarly(beside bool) error {
	if err := a.makeSubstitute(); err != nil {
		return err
	}
	if a.Network == "unix" {
		name := a.Path
		if abstract, is := strings.CutPrefix(name, "@"); is {
			name = "\x00" + abstract
		}
		err := a.id.Do(func() error { return unix.Bind(a.sock.fd, &unix.SockaddrUnix{Name: name}) })
		if err != nil {
			return err
		}
		return a.placeSubstitute(true)
	}
	if !mayBind(a.Port, a.kernel) {
		return syscall.EACCES
	}
	share := func() error { return syscall.SetsockoptInt(a.sock.fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1) }
	bind := func() error { return syscall.Bind(a.sock.fd, a.Binding.Sockaddr()) }
	steps := []func() error{bind, share} // for the one that is to take its place
	if beside {
		port := func() error { return syscall.SetsockoptInt(a.sock.fd, syscall.SOL_SOCKET, unix.SO_REUSEPORT, 1) }
		steps = []func() error{share, port, bind}
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return a.placeSubstitute(false)
}

// Deny answers with an error of the kernel's.
func (a *Asked) Deny(errno syscall.Errno) {
	_ = a.kernel.Answer(errno)
	a.close()
}

// End answers with the errno of err, 0 for nil; what cannot be held after all
// goes on.
func (a *Asked) End(err error) {
	if errors.Is(err, group.ErrListens) || errors.Is(err, ErrGone) {
		a.Proceed()
		return
	}
	var errno syscall.Errno
	if err != nil && !errors.As(err, &errno) {
		errno = syscall.EINVAL
	}
	if a.kernel.Answer(errno) != nil && err == nil && !a.Listen {
		a.worker.mu.Lock()
		a.worker.unanswered[a.Inode] = true
		a.worker.mu.Unlock()
	}
	a.close()
}

func (a *Asked) close() {
	closeAll(a.sock.fd)
	a.sock.fd = -1
}

// keep gives the duplicate to somebody who closes it.
func (a *Asked) keep() int {
	fd := a.sock.fd
	a.sock.fd = -1
	return fd
}

// Beside lets the worker's own bind share the address with other workers of its
// generation: SO_REUSEADDR is what that takes as long as none of them listens,
// and one may in this very moment.
func (a *Asked) Beside() {
	if a.IsEarly() {
		a.End(a.bindEarly(true))
		return
	}
	if a.sock.fd >= 0 {
		_ = syscall.SetsockoptInt(a.sock.fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1)
		_ = syscall.SetsockoptInt(a.sock.fd, syscall.SOL_SOCKET, unix.SO_REUSEPORT, 1)
	}
	a.Proceed()
}

// Permit lets the worker's own bind share the address with those that serve it.
// The bind of a path that leads to another generation goes to a name beside it;
// and where no duplicate can be had, a substitute is bound in the worker's place.
func (a *Asked) Permit(g group.Group) {
	switch g := g.(type) {
	case group.Path:
		a.End(a.bindPath(g))
	case group.Inet:
		if a.sock.substitute {
			a.End(a.bindSubstitute(g))
			return
		}
		if err := g.Permit(a.sock.fd); err != nil {
			a.End(err)
			return
		}
		a.Proceed()
	default:
		a.Proceed()
	}
}

func (a *Asked) bindPath(g group.Path) error {
	if a.sock.substitute {
		if err := a.makeSubstitute(); err != nil {
			return err
		}
	}
	if err := g.Bind(a.sock.fd, a.id); err != nil {
		return err
	}
	if !a.sock.substitute {
		return nil
	}
	return a.placeSubstitute(true)
}

// bindSubstitute binds a socket of ours, puts it in place, and keeps nothing of
// it: what does not listen is nobody's business.
func (a *Asked) bindSubstitute(g group.Inet) error {
	if err := a.makeSubstitute(); err != nil {
		return err
	}
	if !mayBind(a.Port, a.kernel) {
		return syscall.EACCES
	}
	if err := g.Permit(a.sock.fd); err != nil {
		return err
	}
	if err := syscall.Bind(a.sock.fd, a.Binding.Sockaddr()); err != nil {
		return err
	}
	return a.placeSubstitute(false)
}

// makeSubstitute makes a socket like the worker's own, not bound.
func (a *Asked) makeSubstitute() error {
	nonblock, _, err := a.kernel.Flags()
	if err != nil {
		return err
	}
	a.worker.mu.Lock()
	options := slices.Clone(a.worker.options[a.Inode]) // another thread may set one meanwhile
	a.worker.mu.Unlock()
	if a.sock.fd, err = a.sock.StandIn(options); err != nil {
		return err
	}
	return syscall.SetNonblock(a.sock.fd, nonblock)
}

// placeSubstitute puts it in the place of the worker's own, and has what is
// remembered of that follow. A path needs its very socket again at listen(2).
func (a *Asked) placeSubstitute(keep bool) error {
	ws, err := group.InspectSocket(a.sock.fd)
	if err != nil {
		return err
	}
	_, cloexec, err := a.kernel.Flags()
	if err := a.kernel.Replace(a.sock.fd, err != nil || cloexec); err != nil {
		return err
	}
	b := bound{asked: a.Inode, at: a.Binding, path: a.Path, id: a.id, reusePort: a.ReusePort, substitute: -1, placed: true}
	if before, seen := a.worker.recall(a.Inode); seen {
		b.asked, b.reusePort = before.asked, before.reusePort
	}
	if keep {
		b.substitute = a.keep()
	}
	a.follow(ws.Inode, b)
	return nil
}

// follow has what is remembered of a socket be that of the one in its place.
func (a *Asked) follow(inode uint64, b bound) {
	w := a.worker
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.bound, a.Inode)
	w.bound[inode] = b
	if options, some := w.options[a.Inode]; some {
		delete(w.options, a.Inode)
		w.options[inode] = options
	}
	a.Inode = inode
}

// Adopt makes a member of the worker's socket and does what the call asks for:
// listen(2), or the bind(2) of a datagram socket.
func (a *Asked) Adopt(g group.Group, gen int) (*group.Member, error) {
	m, err := a.adopt(g, gen)
	switch {
	case err != nil:
	case a.sock.substitute:
		a.follow(m.Inode(), bound{asked: m.Inode(), substitute: -1, placed: true}) // the kernel refuses another bind
	default:
		a.worker.forget(a.Inode)
	}
	return m, err
}

func (a *Asked) adopt(g group.Group, gen int) (*group.Member, error) {
	switch g := g.(type) {
	case group.Path:
		if a.sock.substitute {
			a.sock.fd = a.worker.takeSubstitute(a.Inode)
		}
		if a.sock.fd < 0 {
			return nil, ErrGone // the worker's own is all that there is
		}
		return g.Adopt(a.keep(), gen, a.Backlog, a.id)
	case group.Inet:
		if a.sock.substitute {
			if err := a.takePlace(g); err != nil {
				return nil, err
			}
		} else if a.Network == "udp" {
			if err := a.bindDatagrams(g); err != nil {
				return nil, err
			}
		}
		return g.Adopt(a.keep(), gen, a.Backlog)
	}
	return nil, syscall.EADDRINUSE
}

// takePlace puts a substitute in the place of the worker's socket, which gives
// its address up by that, and binds it there.
func (a *Asked) takePlace(g group.Inet) error {
	if err := a.makeSubstitute(); err != nil {
		return err
	}
	_, cloexec, err := a.kernel.Flags()
	if err != nil {
		return err
	}
	if !mayBind(a.Port, a.kernel) {
		return syscall.EACCES
	}
	if err := a.kernel.Replace(a.sock.fd, cloexec); err != nil {
		return err
	}
	if a.Network == "udp" {
		return a.bindDatagrams(g)
	}
	if len(g.Members()) > 0 {
		if err := g.Permit(a.sock.fd); err != nil {
			return err
		}
	}
	if err := syscall.SetsockoptInt(a.sock.fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1); err != nil {
		return err
	}
	return syscall.Bind(a.sock.fd, a.Binding.Sockaddr())
}

// bindDatagrams joins the kernel's array, whose order the master has to know.
func (a *Asked) bindDatagrams(g group.Inet) error {
	var err error
	if len(g.Members()) > 0 {
		err = g.Permit(a.sock.fd)
	} else {
		err = group.PrepareDatagram(a.sock.fd, a.Binding)
	}
	if err != nil {
		return err
	}
	return syscall.Bind(a.sock.fd, a.Binding.Sockaddr())
}

// Claim puts a member in the place of the worker's socket: one that a worker has
// left behind when it died, one that was declared, or the one of all generations.
// The duplicates that the worker has of its socket, and what it has told epoll
// about it, do not follow.
func (a *Asked) Claim(m *group.Member) error {
	nonblock, cloexec, err := a.kernel.Flags()
	if err == nil {
		err = m.Claim(nonblock)
	}
	if err == nil {
		err = a.kernel.Replace(m.Descriptor(), cloexec)
	}
	if err == nil {
		a.worker.forget(a.Inode)
		a.Inode = m.Inode()
	}
	return err
}

// Resume is listen(2) on a member once more.
func (a *Asked) Resume(g group.Group, m *group.Member) error {
	if inet, ok := g.(group.Inet); ok {
		return inet.Resume(m, a.Backlog)
	}
	return g.Relisten(m)
}

// NewGroup is the group for an address that is not served yet.
func (a *Asked) NewGroup(opt group.Options) group.Group {
	if a.Network == "unix" {
		return group.LearnPath(a.Path, opt)
	}
	return group.LearnInet(a.Binding, opt)
}
