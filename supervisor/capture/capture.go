//go:build linux

// Package capture turns the bind(2) and listen(2) of a worker's processes into
// questions, and verdicts on those into what the kernel is told. It decides
// nothing: whom it asks knows which addresses there are and who serves them.
//
// The rule is to permit and not to perform. A bind goes on in the worker, under
// the worker's own rights, after the master has set what lets two generations
// share the address; so does everything that is nobody else's. What the master
// does itself is what only it can do: listen(2), and the bind of a datagram
// socket, because the order of the kernel's array matters; the bind of a unix
// path that is taken, with the worker's identity; and to put a socket in the
// place of the worker's where no duplicate of that can be had.
package capture

import (
	"bytes"
	"errors"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/moult/moult/fdpass"
	"github.com/moult/moult/fdpass/group"
	"github.com/moult/moult/fdpass/intercept"
)

// Kernel is what a call can be asked and told; *intercept.Call is one. Exactly
// one Answer or Proceed ends a call.
type Kernel interface {
	Duplicate() (int, error)
	Inode() (uint64, error)
	Flags() (nonblock, cloexec bool, err error)
	Protocol() (string, error)
	Replace(fd int, cloexec bool) error
	Answer(syscall.Errno) error
	Proceed() error
	SharesNetwork() bool
	SharesFiles() bool
	MayBindLowPorts() bool
}

// Desk is whom a Worker asks. All of it may be called from the worker's
// goroutine at any time, and must not wait.
type Desk struct {
	// Known tells whether an address is served, or was.
	Known func(network, key string) bool
	// Starting tells whether the worker is on its way to being ready, or was
	// a moment ago: what it opens later is its own.
	Starting func() bool
	// Ask decides; one method of the Asked ends the call, now or later, from
	// any goroutine.
	Ask func(*Asked)
	// Alone hears of what cannot be seen or held.
	Alone func(reason string)
	// Named tells whether a unix path that is looked after ends in base, and
	// Shows whether a directory entry leads to one of its sockets.
	Named func(base string) bool
	Shows func(os.FileInfo) bool
	// InUse says why a worker whose socket is this user's will be told that the
	// address is in use; empty where nothing stands in the way. The user is
	// negative where that cannot be seen.
	InUse func(b fdpass.Binding, uid int) string
}

// Worker is what is remembered of one worker's calls: of sockets that it has
// bound and on which it does not listen yet, and only while it starts.
type Worker struct {
	desk Desk

	mu         sync.Mutex
	bound      map[uint64]bound
	options    map[uint64][]group.SockOption // of sockets that cannot be had
	unanswered map[uint64]bool               // bound, but the worker was interrupted and does not know
}

// bound is a socket between bind(2) and listen(2).
type bound struct {
	asked      uint64 // its inode when it was asked about
	at         fdpass.Binding
	path       string
	id         group.Identity
	reusePort  bool
	placed     bool // one of ours has taken its place, and is bound
	substitute int  // unix, in the place of the worker's: ours to close; else -1
}

// maxRemembered is far more than servers have, and few enough that a worker
// cannot use up the master.
const maxRemembered = 2048

// New is for one worker.
func New(d Desk) *Worker {
	return &Worker{desk: d, bound: map[uint64]bound{}, options: map[uint64][]group.SockOption{}, unanswered: map[uint64]bool{}}
}

// Asked is a call that waits for a verdict.
type Asked struct {
	Listen    bool // listen(2); else bind(2)
	Network   string
	Key       string // equal for equal forms of an address; empty: of its process alone
	Bound     string
	Port      int
	Inode     uint64
	Was       uint64 // listen(2): the inode that it had at bind(2), if that is known
	Backlog   int
	ReusePort bool // the worker has set SO_REUSEPORT itself
	PID       int  // of the process that asks
	Private   bool // a unix path that seems to be of one process
	Refusal   string
	Alone     string // listens where it cannot be held, though it should

	Binding fdpass.Binding
	Path    string

	worker *Worker
	kernel Kernel
	sock   own
	id     group.Identity
}

// own is a worker's socket in the master's hands for the time of a call.
type own struct {
	group.WorkerSocket
	fd         int  // a duplicate; -1: none
	substitute bool // no duplicate can be had
}

// Take handles one call, off the master's loop. k is c itself.
func (w *Worker) Take(c *intercept.Call, k Kernel) {
	if c.Err != nil {
		_ = k.Proceed()
		w.desk.Alone("cannot look into the worker's process to see what it binds (" + c.Err.Error() +
			"): it runs as another user, hides itself, or Yama forbids it; give moult CAP_SYS_PTRACE, start it as the same user, or use --listen")
		return
	}
	switch c.Kind {
	case intercept.Bind:
		w.bind(c, k)
	case intercept.ListenCall:
		w.listen(c, k)
	case intercept.Unlink:
		w.unlink(c, k)
	case intercept.SetOption:
		w.recordOption(c, k)
	default:
		_ = k.Proceed()
	}
}

// bind asks about what may concern others, and lets the rest go on at once: no
// port yet, none of the addresses that are served by a worker that is ready.
func (w *Worker) bind(c *intercept.Call, k Kernel) {
	at, inet := fdpass.ParseSockaddr(c.Address)
	if inet && (at.Port() == 0 || !w.desk.Starting() && !w.knownPort(at.Port())) {
		_ = k.Proceed()
		return
	}
	sock, ours := w.inspect(k)
	if !ours {
		_ = k.Proceed()
		return
	}
	a := &Asked{Network: sock.Network, Inode: sock.Inode, ReusePort: sock.ReusePort, PID: c.PID, worker: w, kernel: k, sock: sock}
	ask := false
	switch sock.Network {
	case "tcp", "udp":
		ask = w.askInet(c, a)
	case "unix":
		ask = w.askPath(c, a)
	}
	switch {
	case w.interrupted(sock.Inode):
		a.End(nil)
	case !ask:
		a.Proceed()
	default:
		w.desk.Ask(a)
	}
}

// knownPort spares a client's socket the look at it: most that are bound by a
// server that runs are.
func (w *Worker) knownPort(port uint16) bool {
	return w.desk.Known("tcp", portKey(port)) || w.desk.Known("udp", portKey(port))
}

func portKey(port uint16) string { return "port " + strconv.Itoa(int(port)) }

func (w *Worker) askInet(c *intercept.Call, a *Asked) bool {
	b, fits := a.sock.Binding(c.Address)
	if !fits || a.sock.Client || a.sock.Local.Port() != 0 || !a.kernel.SharesNetwork() {
		return false
	}
	if b.Network == "udp" && !serves(a.sock, b, a.kernel) {
		return false
	}
	if before, _ := w.recall(a.Inode); before.placed {
		return false // it is bound: the kernel says so
	}
	a.Binding, a.Key, a.Bound, a.Port = b, KeyOf(b), b.String(), int(b.Addr.Port())
	if !w.desk.Starting() && !w.desk.Known(a.Network, a.Key) {
		return false
	}
	if b.Network == "tcp" {
		w.remember(a.Inode, bound{asked: a.Inode, at: b, reusePort: a.ReusePort, substitute: -1})
	}
	if !a.ReusePort || w.desk.Known(a.Network, a.Key) {
		a.Refusal = w.desk.InUse(b, a.sock.UID)
	}
	return true
}

// KeyOf names the exact form of an address.
func KeyOf(b fdpass.Binding) string { return b.Form() }

// remember notes a socket until it listens.
func (w *Worker) remember(inode uint64, b bound) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.bound) < maxRemembered {
		w.bound[inode] = b
	}
}

func (w *Worker) recall(inode uint64) (bound, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	b, ok := w.bound[inode]
	return b, ok
}

// takeSubstitute gives what took the place of a worker's unix socket to the
// caller, to close; -1 where nothing did.
func (w *Worker) takeSubstitute(inode uint64) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	b, seen := w.bound[inode]
	if !seen {
		return -1
	}
	fd := b.substitute
	b.substitute = -1
	w.bound[inode] = b
	return fd
}

// forget ends what is remembered of a socket. A substitute is the caller's then.
func (w *Worker) forget(inode uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.bound, inode)
}

// Ready forgets what has been bound and does not listen: what is opened from now
// on is the worker's own.
func (w *Worker) Ready() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, b := range w.bound {
		closeAll(b.substitute)
	}
	clear(w.bound)
}

func closeAll(fds ...int) {
	for _, fd := range fds {
		if fd >= 0 {
			_ = syscall.Close(fd)
		}
	}
}

// interrupted tells, once, that a bind had succeeded whose caller a signal took
// away before it heard.
func (w *Worker) interrupted(inode uint64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	was := w.unanswered[inode]
	delete(w.unanswered, inode)
	return was
}

// listen asks about every listen(2) but that of what is somebody else's: this is
// where a socket is learned.
func (w *Worker) listen(c *intercept.Call, k Kernel) {
	sock, ours := w.inspect(k)
	if !ours || sock.Network != "tcp" && sock.Network != "unix" {
		closeAll(sock.fd)
		_ = k.Proceed()
		return
	}
	a := &Asked{Listen: true, Network: sock.Network, Inode: sock.Inode, Backlog: c.Backlog, ReusePort: sock.ReusePort, PID: c.PID, worker: w, kernel: k, sock: sock}
	before, seen := w.recall(sock.Inode)
	a.Was = before.asked
	switch {
	case sock.Network == "unix":
		w.listenPath(c, a, before, seen)
	case sock.substitute:
		a.Binding, a.ReusePort = before.at, before.reusePort
	default:
		a.Binding = sock.Bound()
	}
	if sock.Network == "tcp" {
		a.Bound, a.Port = a.Binding.String(), int(a.Binding.Addr.Port())
		// A port that the kernel has chosen, and a socket that was made
		// elsewhere: nobody else will ask for it. What is remembered of a
		// bind may be gone when the worker has been ready for long.
		key := KeyOf(a.Binding)
		if (seen || w.desk.Known("tcp", key)) && a.Port != 0 && k.SharesNetwork() {
			a.Key = key
		}
	}
	w.desk.Ask(a)
}

// inspect looks at the socket of a call. It is false where the call is none of
// ours: what is to be bound in another network namespace is a matter of that.
func (w *Worker) inspect(k Kernel) (own, bool) {
	fd, err := k.Duplicate()
	switch {
	case err == nil:
		ws, err := group.InspectSocket(fd)
		if err != nil || ws.Elsewhere || ws.Network == "" {
			closeAll(fd)
			return own{fd: -1}, false
		}
		return own{WorkerSocket: ws, fd: fd}, true
	case errors.Is(err, syscall.EPERM), errors.Is(err, syscall.EACCES), errors.Is(err, syscall.ENOSYS):
		return w.look(k)
	}
	return own{fd: -1}, false
}

// look is for where no duplicate can be had (Docker's default profile forbids
// pidfd_getfd): /proc tells what kind of socket it is.
func (w *Worker) look(k Kernel) (own, bool) {
	o := own{fd: -1, substitute: true}
	o.UID = -1
	inode, err := k.Inode()
	if err != nil {
		return o, false
	}
	protocol, err := k.Protocol()
	if err != nil {
		return o, false
	}
	o.Inode = inode
	switch protocol {
	case "TCP", "TCPv6":
		o.Network = "tcp"
	case "UDP", "UDPv6":
		o.Network = "udp"
	case "UNIX-STREAM":
		o.Network = "unix"
		return o, true
	default:
		return o, false
	}
	o.IPv6 = strings.HasSuffix(protocol, "v6")
	o.V6Only = o.IPv6 && group.V6OnlyByDefault()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, option := range w.options[inode] {
		o.Recall(option)
	}
	return o, true
}

// recordOption keeps what a socket that takes another's place has to be given
// again.
func (w *Worker) recordOption(c *intercept.Call, k Kernel) {
	if inode, err := k.Inode(); err == nil {
		option := group.SockOption{Level: c.Level, Name: c.Option, Value: c.Value}
		w.mu.Lock()
		if len(w.options) >= maxRemembered {
			clear(w.options) // of sockets that nobody listens on, most likely
		}
		w.options[inode] = append(slices.DeleteFunc(w.options[inode], option.Repeats), option)
		w.mu.Unlock()
	}
	_ = k.Proceed()
}

// serves tells a datagram socket that serves from one that asks, or that serves
// one call: resolvers take a port for each question, media servers one for each
// call. Those come out of the range that clients get their ports from. One that
// shares its port by its own wish, or listens to many, is left to the kernel.
func serves(s own, b fdpass.Binding, k Kernel) bool {
	ip := b.Addr.Addr()
	if s.ReuseAddr || ip.IsMulticast() || ip == broadcast {
		return false
	}
	first, last := clientPorts()
	port := int(b.Addr.Port())
	return (port < first || port > last) && mayBind(port, k)
}

// mayBind applies the rule that the kernel would apply to the worker, where it
// sees the master's privileges instead.
func mayBind(port int, k Kernel) bool { return port >= unprivilegedPorts() || k.MayBindLowPorts() }

// unlink pretends to remove a path that leads to one of our sockets: a server
// that makes room for its own, or that leaves, would take the name from the
// generation that serves.
func (w *Worker) unlink(c *intercept.Call, k Kernel) {
	base := c.Path[strings.LastIndexByte(c.Path, '/')+1:]
	if w.desk.Named(base) && k.SharesFiles() {
		if info, err := group.LeadsTo(c.TID, c.FD, c.Path); err == nil && w.desk.Shows(info) {
			_ = k.Answer(0)
			return
		}
	}
	_ = k.Proceed()
}

// sunPath is where the name begins in a struct sockaddr_un.
const sunPath = 2

// askPath is for bind(2) of a unix stream socket.
func (w *Worker) askPath(c *intercept.Call, a *Asked) bool {
	path := pathOf(c, c.Address, a.kernel)
	id, err := group.IdentityOf(c.TID)
	if path == "" || err != nil {
		return false
	}
	if before, _ := w.recall(a.Inode); before.placed {
		return false // it is bound: the kernel says so
	}
	a.Path, a.Key, a.Bound, a.id = path, path, path, id
	a.Private = private(path, c.PID)
	if !w.desk.Starting() && !w.desk.Known("unix", path) {
		return false
	}
	// By listen(2) the worker may be in another directory.
	w.remember(a.Inode, bound{asked: a.Inode, path: path, id: id, substitute: -1})
	return true
}

// listenPath finds out where a unix socket is.
func (w *Worker) listenPath(c *intercept.Call, a *Asked, before bound, seen bool) {
	a.Path, a.id = before.path, before.id
	if !seen { // the bind could not be seen
		id, err := group.IdentityOf(c.TID)
		if a.Path = pathOf(c, a.sock.Name, a.kernel); a.Path == "" || err != nil {
			return
		}
		a.id = id
	}
	if !leadsToSocket(a.Path) && !w.desk.Known("unix", a.Path) {
		a.Alone = "the path of a unix socket that it listens on cannot be found (" + printable(a.sock.Name) + "); use --listen, or an absolute path"
		return
	}
	a.Key, a.Bound = a.Path, a.Path
	a.Private = private(a.Path, c.PID)
}

// pathOf finds out what path an address means ("@name" for an abstract one);
// empty where it is not one that can be held.
func pathOf(c *intercept.Call, sockaddr []byte, k Kernel) string {
	if len(sockaddr) <= sunPath || !k.SharesFiles() || !k.SharesNetwork() {
		return ""
	}
	name := sockaddr[sunPath:]
	if name[0] == 0 {
		return "@" + string(name[1:])
	}
	path, ok := group.ResolvePath(c.TID, name)
	if !ok {
		return ""
	}
	return path
}

// leadsToSocket keeps what leads nowhere, or to a file of somebody else's, from
// being held.
func leadsToSocket(path string) bool {
	if strings.HasPrefix(path, "@") {
		return true
	}
	info, err := os.Lstat(path)
	return err == nil && info.Mode()&os.ModeSocket != 0
}

func printable(sockaddr []byte) string {
	if len(sockaddr) <= sunPath {
		return "it has no name"
	}
	return string(bytes.TrimRight(sockaddr[sunPath:], "\x00"))
}
