package supervisor

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/moult/moult/fdpass"
	"github.com/moult/moult/fdpass/intercept"
	"github.com/moult/moult/supervisor/observe"
)

// maxOwnSockets is how many sockets of one worker the master holds: far more
// than servers have, and few enough that a worker cannot use up the master.
const maxOwnSockets = 1024

// bind answers bind(2). The address is acted upon as it was read when the
// thread stopped: what the program writes there afterwards changes nothing.
func (w *worker) bind(c *intercept.Call) {
	own, ours := w.take(c)
	defer own.close()
	if !ours {
		_ = c.Proceed()
		return
	}
	switch own.Network {
	case "tcp", "udp":
		w.bindInet(c, own)
	case "unix":
		w.bindPath(c, own)
	default:
		_ = c.Proceed()
	}
}

func (w *worker) bindInet(c *intercept.Call, own *ownSocket) {
	b, fits := own.Binding(c.Address)
	before := w.own.bound[own.Inode]
	switch {
	case before != nil && before.unanswered && fits && (b.WithPort(0) == before.binding.WithPort(0)):
		// A signal took the thread out of the call that had succeeded.
		before.unanswered = !w.answer(c, nil)
		return
	case !fits || own.Client || w.isBound(own) || !c.SharesNetwork(), own.Network == "udp" && !w.isService(b):
		_ = c.Proceed()
		return
	case b.Addr.Port() == 0:
		learned := w.master.learnedPort(w, b)
		if learned == nil {
			w.bindUnlearned(c, own, b)
			return
		}
		b = b.WithPort(learned.Port())
	}
	if own.Network == "tcp" {
		w.own.news = time.Now()
	}
	w.dropClosedAt(b)
	sock := w.master.socketAt(b)
	if m := w.vacant(sock); m != nil {
		w.answer(c, w.claim(c, own, m))
		return
	}
	if err := w.bindNew(c, own, sock, b); err != nil {
		w.answer(c, err)
	}
}

// bindNew binds a socket that becomes a member of its own.
func (w *worker) bindNew(c *intercept.Call, own *ownSocket, sock *fdpass.Socket, b fdpass.Binding) (err error) {
	join := false
	switch {
	case w.ownSockets() >= maxOwnSockets:
		w.refuse(tooManySockets)
		return syscall.ENOBUFS
	case sock == nil:
		if !mayBind(c, b) {
			w.refuse(fmt.Sprintf("port %d is below net.ipv4.ip_unprivileged_port_start, and the server lacks CAP_NET_BIND_SERVICE; declare the address: --listen %s --intercept", b.Addr.Port(), b))
			return syscall.EACCES
		}
		sock = fdpass.Learn(b, w.master.options())
		if join, err = w.besideBound(own, b); err != nil {
			return err
		}
	case !own.ReusePort && w.listensOn(sock):
		return syscall.EADDRINUSE
	}
	if how, _ := sock.How(); how == fdpass.Shared && len(sock.Members()) > 0 {
		return w.share(c, own, sock)
	}
	if own.standIn {
		w.dropStale(b)
		if err := w.standIn(c, own); err != nil {
			return err
		}
	}
	if err := sock.BindOwn(own.fd, b, join); err != nil {
		w.explain(err, b)
		return err
	}
	if own.standIn {
		if err := w.replace(c, own); err != nil {
			return err
		}
	}
	bound := &boundSocket{binding: b, reuseAddr: own.ReuseAddr, reusePort: own.ReusePort, standIn: -1}
	if own.Network == "udp" {
		err := w.adopt(c, own.keep(), b, bound) // there is no listen that would follow
		if err == nil {
			w.answer(c, nil)
		}
		return err
	}
	if own.standIn {
		w.keepStandIn(own, bound)
	}
	w.own.bound[own.Inode] = bound
	bound.unanswered = !w.answer(c, nil)
	return nil
}

// besideBound looks for sockets that are bound to the same address and do not
// listen yet. One of another worker's may be joined; one of its own stands in
// the way, unless the worker has asked that it should not.
func (w *worker) besideBound(own *ownSocket, b fdpass.Binding) (join bool, err error) {
	if w.boundAt(b) != nil {
		w.forgetBound()
	}
	if mine := w.boundAt(b); mine != nil {
		if !own.ReusePort && !(mine.reuseAddr && own.ReuseAddr) {
			return false, syscall.EADDRINUSE
		}
		return own.ReusePort, nil
	}
	return slices.ContainsFunc(w.master.workers(), func(other *worker) bool { return other.boundAt(b) != nil }), nil
}

// boundAt finds a socket of the worker that is on its way to an address.
func (w *worker) boundAt(b fdpass.Binding) *boundSocket {
	for _, bound := range w.own.bound {
		if bound.path == nil && bound.binding == b {
			return bound
		}
	}
	return nil
}

// isService tells a datagram socket that serves from one that asks, or that
// serves one call: resolvers take a port for each question, media servers one
// for each call. Those come when the worker serves already, or out of the range
// that clients get their ports from.
func (w *worker) isService(b fdpass.Binding) bool {
	if w.state != starting && w.master.socketAt(b) == nil || w.ownSockets() >= maxOwnSockets {
		return false
	}
	text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err != nil {
		return true
	}
	var first, last int
	if _, err := fmt.Sscan(string(text), &first, &last); err != nil {
		return true
	}
	port := int(b.Addr.Port())
	return port != 0 && (port < first || port > last)
}

// bindUnlearned lets the kernel choose a port, and notes what was asked for.
// Most such sockets are clients', of which nothing more is heard.
func (w *worker) bindUnlearned(c *intercept.Call, own *ownSocket, b fdpass.Binding) {
	switch {
	case w.ownSockets() >= maxOwnSockets, len(w.own.bound) >= 2*maxOwnSockets: // no more is remembered
	case !own.standIn:
		w.own.bound[own.Inode] = &boundSocket{binding: b, reusePort: own.ReusePort, standIn: -1}
	case own.Network == "tcp":
		if err := w.bindAnyPort(c, own, b); err != nil {
			w.answer(c, err)
		}
		return
	}
	_ = c.Proceed()
}

// claim puts a member that waits for its worker in the place of the worker's
// socket: one that a worker left behind when it died, or that was declared with
// --listen. The duplicates that the worker has of its socket, and what it has
// told epoll about it, do not follow.
func (w *worker) claim(c *intercept.Call, own *ownSocket, m *fdpass.Member) error {
	nonblock, cloexec, err := c.Flags()
	if err == nil {
		err = m.Claim(nonblock)
	}
	if err == nil {
		err = c.Replace(m.Descriptor(), cloexec)
	}
	if err == nil {
		w.has(m, claim{inherited: true})
	}
	return err
}

// share gives the worker the one socket that all generations have.
func (w *worker) share(c *intercept.Call, own *ownSocket, sock *fdpass.Socket) error {
	m, err := sock.Join(w.slot.gen.key)
	if err != nil {
		return err
	}
	if err := w.claim(c, own, m); err != nil {
		sock.Leave(m)
		return err
	}
	w.slot.members = append(w.slot.members, m)
	w.answer(c, nil)
	return nil
}

// answer gives the worker the errno of err, 0 for nil, and is false where
// nobody waits for it any more.
func (w *worker) answer(c *intercept.Call, err error) bool {
	var errno syscall.Errno
	if err != nil && !errors.As(err, &errno) {
		errno = syscall.EINVAL
	}
	return c.Answer(errno) == nil
}

func closesOnExec(c *intercept.Call) bool {
	_, cloexec, err := c.Flags()
	return err != nil || cloexec
}

// options are those of every address.
func (s *Supervisor) options() fdpass.Options { return fdpass.Options{Share: s.cfg.Share} }

// socketAt finds the address that was bound, or opened, in exactly this form.
func (s *Supervisor) socketAt(b fdpass.Binding) *fdpass.Socket {
	for _, sock := range s.sockets {
		if at, ok := sock.Binding(); ok && at == b {
			return sock
		}
	}
	return nil
}

// learnedPort finds the port that the worker shall have when it asks for any:
// that of a member which waits for it, or else one that an earlier generation got
// and nobody in its own has yet.
func (s *Supervisor) learnedPort(w *worker, asked fdpass.Binding) *fdpass.Socket {
	var untaken *fdpass.Socket
	for _, sock := range s.sockets {
		if at, any := s.anyPort[sock]; !any || at != asked {
			continue
		}
		if w.vacant(sock) != nil {
			return sock
		}
		if w.hasBound(sock) {
			w.forgetBound() // Go binds and closes one to see whether there is IPv6
		}
		if untaken == nil && !w.slot.gen.takes(sock) {
			untaken = sock
		}
	}
	return untaken
}

// takes tells whether a worker of the generation has an address, or is about to
// listen on it.
func (g *generation) takes(sock *fdpass.Socket) bool {
	return slices.ContainsFunc(g.slots, func(sl *slot) bool {
		return len(sl.membersOf(sock)) > 0 || sl.worker != nil && sl.worker.hasBound(sock)
	})
}

// hasBound tells whether a socket of the worker is on its way to this address.
func (w *worker) hasBound(sock *fdpass.Socket) bool {
	at, ok := sock.Binding()
	return ok && w.boundAt(at) != nil
}

// vacant is a member of this address that the worker's slot holds and the
// worker does not have.
func (w *worker) vacant(sock *fdpass.Socket) *fdpass.Member {
	if sock == nil {
		return nil
	}
	for _, m := range w.slot.membersOf(sock) {
		if _, has := w.own.claimed[m]; !has && sock.Listening(m) {
			return m
		}
	}
	return nil
}

// listensOn tells whether the worker has a member of this address. One more
// needs SO_REUSEPORT: that the first has it as well is not asked, since the
// worker may have set it after its bind, and by then the master had.
func (w *worker) listensOn(sock *fdpass.Socket) bool {
	for m := range w.own.claimed {
		if m.Socket() == sock {
			return true
		}
	}
	return false
}

// ownSockets counts what the master holds or remembers for the worker.
func (w *worker) ownSockets() int {
	if len(w.own.bound) >= maxOwnSockets/2 {
		w.forgetNowAndThen()
	}
	n := len(w.slot.members)
	for _, b := range w.own.bound {
		if b.path != nil || b.binding.Addr.Port() != 0 {
			n++
		}
	}
	return n
}

// forgetNowAndThen bounds what a worker can make the master do.
func (w *worker) forgetNowAndThen() {
	const often = time.Second
	if now := time.Now(); now.Sub(w.own.forgot) >= often {
		w.own.forgot = now
		w.forgetBound()
	}
}

// forgetBound forgets sockets that were closed without ever listening.
func (w *worker) forgetBound() {
	held, complete := observe.Inodes(w.tree())
	if !complete {
		return
	}
	for inode, b := range w.own.bound {
		if _, holds := held[inode]; !holds {
			w.own.dropBound(inode, b)
		}
	}
	for inode := range w.own.options {
		if _, holds := held[inode]; !holds {
			delete(w.own.options, inode)
		}
	}
}

// mayBind applies the rule that the kernel would apply to the worker, where it
// sees the master's privileges instead.
func mayBind(c *intercept.Call, b fdpass.Binding) bool {
	const path = "/proc/sys/net/ipv4/ip_unprivileged_port_start"
	first := 1024
	if text, err := os.ReadFile(path); err == nil {
		if n, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil {
			first = n
		}
	}
	return int(b.Addr.Port()) >= first || c.MayBindLowPorts()
}

// explain says why an address that is in use could not be had.
func (w *worker) explain(err error, b fdpass.Binding) {
	const often = time.Second // who has it is looked for in all of /proc
	if !errors.Is(err, syscall.EADDRINUSE) || time.Since(w.own.explained) < often {
		return
	}
	reason := fmt.Sprintf("%s is in use", b)
	if sock := w.master.overlapping(b); sock != nil {
		reason = fmt.Sprintf("it asks for %s, which overlaps %s, held by moult: an address has to keep its form from one generation to the next", b.Form(), formOf(sock))
	} else if who := holderOf(b); who != "" {
		reason += who
	}
	w.refuse(reason)
}

// refuse says why a worker's call fails, and remembers it for the case that the
// start fails with it.
func (w *worker) refuse(reason string) {
	w.own.refused, w.own.explained = reason, time.Now()
	if reason == w.own.said {
		return
	}
	w.own.said = reason
	w.master.log.Warn().Int("generation", w.number).Int("pid", w.pid).Str("reason", reason).Msg("a bind was refused")
}

var tooManySockets = fmt.Sprintf("moult holds no more than %d sockets of one worker", maxOwnSockets)

func formOf(sock *fdpass.Socket) string {
	at, _ := sock.Binding()
	return at.Form()
}

func (s *Supervisor) overlapping(b fdpass.Binding) *fdpass.Socket {
	for _, sock := range s.sockets {
		if at, ok := sock.Binding(); ok && at.Overlaps(b) {
			return sock
		}
	}
	return nil
}

// holderOf says who listens on the port of an address.
func holderOf(b fdpass.Binding) string {
	listeners, _ := observe.Listeners(b.Addr.Port())
	for _, l := range listeners {
		if who := holders(l.Inode); who != "" {
			return who + " (listens on " + l.Local.String() + ")"
		}
	}
	return ""
}
