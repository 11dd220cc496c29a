package observe

import (
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// diagBuffer is the longest message of a dump. The kernel fills as much as the
// reader offers, up to this, so it also sets the number of system calls.
const diagBuffer = 32 << 10

// dump asks sock_diag(7) for all sockets that fit the request and calls each
// with every answer; the answer is the callee's to keep.
func dump(request []byte, each func(answer []byte)) error {
	return ask(request, netlink.Dump, each)
}

// ask opens a connection for one question. Keeping one open would save 20 µs a
// time, and cost a descriptor that every start of a worker has to think of.
func ask(request []byte, flags netlink.HeaderFlags, each func(answer []byte)) error {
	c, err := netlink.Dial(unix.NETLINK_SOCK_DIAG, &netlink.Config{MessageBufferSize: diagBuffer})
	if err != nil {
		return err
	}
	defer c.Close()
	question := netlink.Message{
		Header: netlink.Header{Type: unix.SOCK_DIAG_BY_FAMILY, Flags: netlink.Request | flags},
		Data:   request,
	}
	if _, err := c.Send(question); err != nil {
		return err
	}
	for m, err := range c.ReceiveIter() {
		if err != nil {
			return err
		}
		each(m.Data)
	}
	return nil
}
