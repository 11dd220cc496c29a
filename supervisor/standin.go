package supervisor

import (
	"syscall"
	"time"

	"github.com/moult/moult/fdpass"
	"github.com/moult/moult/fdpass/intercept"
)

// Where the master may not have a duplicate of a worker's socket, it makes one
// of its own in the moment of the bind and puts it in the place of the worker's.

// standIn makes the socket that takes the place of the worker's own, with what
// the worker has set on that.
func (w *worker) standIn(c *intercept.Call, own *ownSocket) error {
	nonblock, _, err := c.Flags()
	if err != nil {
		return err
	}
	fd, err := own.StandIn(w.own.options[own.Inode])
	if err != nil {
		return err
	}
	own.fd = fd
	return syscall.SetNonblock(fd, nonblock)
}

// replace puts it there. What was set on the worker's socket is still of use:
// this one may have to be replaced as well.
func (w *worker) replace(c *intercept.Call, own *ownSocket) error {
	ws, err := fdpass.InspectSocket(own.fd)
	if err != nil {
		return err
	}
	if err := c.Replace(own.fd, closesOnExec(c)); err != nil {
		return err
	}
	if options, some := w.own.options[own.Inode]; some {
		delete(w.own.options, own.Inode)
		w.own.options[ws.Inode] = options
	}
	own.Inode = ws.Inode
	return nil
}

// keepStandIn keeps the master's descriptor until the worker listens, or until
// it is seen that it does not.
func (w *worker) keepStandIn(own *ownSocket, bound *boundSocket) {
	bound.standIn = own.keep()
	w.own.watched = time.Now()
	w.watchClosed()
}

// bindAnyPort lets the kernel choose the port of a stand-in. The master keeps
// nothing of it: most such sockets are clients', whose connections would
// outlive the worker's close. One that begins to listen is replaced again.
func (w *worker) bindAnyPort(c *intercept.Call, own *ownSocket, b fdpass.Binding) error {
	if err := w.bindStandIn(c, own, b); err != nil {
		return err
	}
	ws, err := fdpass.InspectSocket(own.fd)
	if err != nil {
		return err
	}
	bound := &boundSocket{binding: b, chosen: ws.Bound(), reusePort: own.ReusePort, standIn: -1}
	w.own.bound[own.Inode] = bound
	bound.unanswered = !w.answer(c, nil)
	return nil
}

// listenOnChosen makes a member of an address whose port the kernel has chosen.
func (w *worker) listenOnChosen(c *intercept.Call, own *ownSocket, bound *boundSocket) error {
	before := own.Inode
	if err := w.bindStandIn(c, own, bound.chosen); err != nil {
		return err
	}
	delete(w.own.bound, before)
	return w.adopt(c, own.keep(), bound.chosen, bound)
}

// bindStandIn needs SO_REUSEADDR, with which two sockets may have one port as
// long as neither listens.
func (w *worker) bindStandIn(c *intercept.Call, own *ownSocket, b fdpass.Binding) error {
	if err := w.standIn(c, own); err != nil {
		return err
	}
	if err := syscall.SetsockoptInt(own.fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1); err != nil {
		return err
	}
	if err := fdpass.Learn(b, w.master.options()).BindOwn(own.fd, b, false); err != nil {
		return err
	}
	return w.replace(c, own)
}

// isBound tells that a second bind is the kernel's to refuse.
func (w *worker) isBound(own *ownSocket) bool {
	if !own.standIn {
		return own.Local.Port() != 0
	}
	return w.own.bound[own.Inode] != nil || w.memberBy(own.Inode) != nil
}

// dropStale gives up stand-ins for this port that the worker has closed before
// they listened, as one does that looks whether a port is free.
func (w *worker) dropStale(b fdpass.Binding) {
	for _, bound := range w.own.bound {
		if bound.standIn >= 0 && bound.path == nil && bound.binding.Addr.Port() == b.Addr.Port() {
			w.forgetBound()
			return
		}
	}
}

// dropConnected gives up stand-ins that were clients' after all: with a
// descriptor of the master's open, their connections would not end.
func (w *worker) dropConnected() {
	for inode, bound := range w.own.bound {
		if bound.standIn < 0 {
			continue
		}
		if _, err := syscall.Getpeername(bound.standIn); err == nil {
			w.own.dropBound(inode, bound)
		}
	}
}
