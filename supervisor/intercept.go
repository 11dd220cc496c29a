package supervisor

import (
	"errors"
	"io"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/moult/moult/fdpass"
	"github.com/moult/moult/fdpass/intercept"
)

// interception is what is known of the sockets that one worker makes itself.
// Each bind(2) and listen(2) of its processes waits for an answer of the
// master: bind.go and listen.go give it, closed.go follows what the worker
// closes without a word.
type interception struct {
	listener  *intercept.Listener
	bound     map[uint64]*boundSocket // by inode: bound, and does not listen yet
	options   map[uint64][]fdpass.SockOption
	claimed   map[*fdpass.Member]claim     // members of the slot that the worker has
	missed    map[*fdpass.Member]time.Time // since when nobody has them
	news      time.Time                    // when it last bound something or began to listen
	watched   time.Time                    // since when it is looked whether it has closed something
	refused   string                       // why a bind was refused, in words; the last one
	said      string                       // the reason that was logged last
	explained time.Time
	waited    bool      // it was said that addresses are waited for
	escaped   bool      // something could not be held, and that was said
	forgot    time.Time // when closed ones were taken out of bound, last
	looked    time.Time // when its descriptors were, last
}

// claim is how a worker came by a member.
type claim struct {
	inherited bool // the member was there before the worker
}

// boundSocket is a worker's socket between bind(2) and listen(2).
type boundSocket struct {
	binding    fdpass.Binding
	reuseAddr  bool // what the worker has asked for itself
	reusePort  bool
	unanswered bool           // the worker was interrupted and does not know
	standIn    int            // the master's descriptor, where that took the place of the worker's; else -1
	chosen     fdpass.Binding // where a stand-in is that the master has not kept
	path       *fdpass.Socket
	identity   fdpass.Identity
}

// traps are what stops a worker, nil where nothing does.
func (s *Supervisor) traps() *intercept.Traps {
	if !s.cfg.Intercept {
		return nil
	}
	// Where several workers make room for one path, the second takes it from
	// the first.
	traps := intercept.Traps{Unlink: s.cfg.InterceptUnlink || s.wanted > 1, Options: !intercept.Duplicates()}
	for _, sock := range s.sockets {
		how, _ := sock.How()
		traps.Unlink = traps.Unlink || how == fdpass.Renamed
		for _, m := range sock.Members() {
			n := len(m.Path())
			traps.ShortNames = traps.ShortNames || m.Own() && (n == ambiguousName || n == ambiguousName-1)
		}
	}
	return &traps
}

// ambiguousName is the length of a unix socket's name that looks like netlink's
// address to a filter, with the NUL that most programs put at its end.
const ambiguousName = 10

// listenTo begins to hear of what the worker binds. It takes the descriptor
// over.
func (w *worker) listenTo(f *os.File) {
	if f == nil {
		return
	}
	l, err := intercept.Listen(f)
	if err != nil {
		w.master.log.Error().Err(err).Int("generation", w.number).Msg("cannot hear what the worker binds")
		return
	}
	w.own.listener = l
	go func() {
		for {
			call, err := l.Next()
			if err != nil {
				if !errors.Is(err, io.EOF) && !errors.Is(err, os.ErrClosed) {
					w.master.log.Error().Err(err).Int("generation", w.number).Msg("cannot hear any more what the worker binds: it is told ENOSYS")
				}
				_ = l.Close()
				return
			}
			if !w.master.send(func() { w.called(call) }) {
				_ = call.Proceed()
			}
		}
	}()
}

// close is for the end of the worker. Whatever is left of it and calls bind
// from now on is told that there is no such call.
func (own *interception) close() {
	if own.listener != nil {
		_ = own.listener.Close()
	}
	for inode, b := range own.bound {
		own.dropBound(inode, b)
	}
}

func (own *interception) dropBound(inode uint64, b *boundSocket) {
	if b.standIn >= 0 {
		_ = syscall.Close(b.standIn)
	}
	if b.path != nil {
		b.path.Forget(inode)
	}
	delete(own.bound, inode)
}

// called answers one call of one of the worker's threads, exactly once.
func (w *worker) called(c *intercept.Call) {
	if c.Err != nil {
		w.cannotSee(c)
		return
	}
	if w.state == gone || w.master.released || w.master.phase >= phaseEnding {
		_ = c.Proceed()
		return
	}
	switch c.Kind {
	case intercept.Bind:
		w.bind(c)
	case intercept.ListenCall:
		w.listen(c)
	case intercept.Unlink:
		w.unlink(c)
	case intercept.SetOption:
		w.recordOption(c)
	}
}

// cannotSee lets a call pass that cannot be understood, and says that the
// sockets of this worker cannot be kept.
func (w *worker) cannotSee(c *intercept.Call) {
	_ = c.Proceed()
	w.bypassed("cannot look into the worker's process to see what it binds (" + c.Err.Error() +
		"): it runs as another user, hides itself, or Yama forbids it; give moult CAP_SYS_PTRACE, start it as the same user, or use --listen")
}

// bypassed says that an address of the worker cannot be held. A start fails:
// the next upgrade could not bind it again.
func (w *worker) bypassed(reason string) {
	if w.state != starting {
		if w.own.escaped {
			return
		}
		w.own.escaped = true
		w.master.log.Error().Int("generation", w.number).Int("pid", w.pid).Str("reason", reason).Msg("cannot hold what the worker listens on")
		return
	}
	if w.ready.failed == "" {
		w.ready.failed = reason
		w.happen(wEnd, reason)
	}
}

// ownSocket is a worker's socket in the master's hands for the time of a call.
type ownSocket struct {
	fdpass.WorkerSocket
	fd      int  // a duplicate, or the socket that stands in; -1 once it was given away
	standIn bool // it stands in: the worker's own cannot be had
}

// keep gives the descriptor to somebody who closes it.
func (o *ownSocket) keep() int {
	fd := o.fd
	o.fd = -1
	return fd
}

func (o *ownSocket) close() {
	if o != nil && o.fd >= 0 {
		_ = syscall.Close(o.fd)
	}
}

// take looks at the socket of a call, which the caller closes. It is false where
// the call is none of ours, and may proceed: what is to be bound in another
// network namespace is a matter of that.
func (w *worker) take(c *intercept.Call) (*ownSocket, bool) {
	fd, err := c.Duplicate()
	switch {
	case err == nil:
		ws, err := fdpass.InspectSocket(fd)
		if err != nil {
			_ = syscall.Close(fd)
			return nil, false
		}
		return &ownSocket{WorkerSocket: ws, fd: fd}, !ws.Elsewhere
	case errors.Is(err, syscall.EPERM), errors.Is(err, syscall.EACCES), errors.Is(err, syscall.ENOSYS):
		return w.takeByLook(c)
	}
	return nil, false
}

// takeByLook is for where no duplicate can be had (Docker's default profile
// forbids pidfd_getfd): /proc tells what kind of socket it is.
func (w *worker) takeByLook(c *intercept.Call) (*ownSocket, bool) {
	inode, err := c.Inode()
	if err != nil {
		return nil, false
	}
	protocol, err := c.Protocol()
	if err != nil {
		return nil, false
	}
	o := &ownSocket{WorkerSocket: fdpass.WorkerSocket{Inode: inode}, fd: -1, standIn: true}
	switch protocol {
	case "TCP", "UDP":
	case "TCPv6", "UDPv6":
		o.IPv6 = true
	case "UNIX-STREAM":
		o.Network = "unix"
		return o, true
	default:
		return o, true
	}
	o.Network = "tcp"
	if protocol[0] == 'U' {
		o.Network = "udp"
	}
	o.V6Only = o.IPv6 && fdpass.V6OnlyByDefault()
	for _, option := range w.own.options[inode] {
		o.Recall(option)
	}
	return o, true
}

// recordOption keeps what a socket that stands in has to be given again.
func (w *worker) recordOption(c *intercept.Call) {
	if len(w.own.options) >= maxOwnSockets {
		w.forgetNowAndThen()
	}
	if inode, err := c.Inode(); err == nil && len(w.own.options) < maxOwnSockets {
		option := fdpass.SockOption{Level: c.Level, Name: c.Option, Value: c.Value}
		w.own.options[inode] = append(slices.DeleteFunc(w.own.options[inode], option.Repeats), option)
	}
	_ = c.Proceed()
}

func newInterception() interception {
	return interception{
		bound:   map[uint64]*boundSocket{},
		options: map[uint64][]fdpass.SockOption{},
		claimed: map[*fdpass.Member]claim{},
		missed:  map[*fdpass.Member]time.Time{},
	}
}
