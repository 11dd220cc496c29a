package group

import (
	"errors"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moult/moult/fdpass"
)

var verdict struct {
	sync.Mutex
	known bool
	err   error
}

// SelfTest tries the whole mechanism on two loopback sockets: kernels that only
// look like Linux (gVisor among them) accept the option and do not steer. It is
// nil where steering works.
//
// What it has found out about the kernel holds for the process's life. Where it
// has found out nothing, because loopback gives no answer within a second or
// there are no descriptors left, the next call tries again.
func SelfTest() error {
	verdict.Lock()
	defer verdict.Unlock()
	if verdict.known {
		return verdict.err
	}
	err := selfTest()
	var told kernelSays
	if err == nil || errors.As(err, &told) {
		verdict.known, verdict.err = true, err
	}
	return err
}

// kernelSays is an error that says something about the kernel.
type kernelSays struct{ error }

func (e kernelSays) Unwrap() error { return e.error }

func selfTest() error {
	loopback := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 0)
	const backlog = 2
	g := newTCP(address{network: "tcp", backlog: backlog, at: fdpass.Binding{Network: "tcp", Addr: loopback}})
	defer g.Close()
	for range 2 {
		m, err := g.bindMember(nil)
		if err != nil {
			return onlyDefinite(err)
		}
		g.members = append(g.members, m)
		if g.at, err = fdpass.BindingOf(m.fd); err != nil { // now with the port
			return err
		}
	}
	for _, m := range g.members {
		if err := g.attach([]*Member{m}); err != nil {
			return onlyDefinite(err)
		}
		if err := g.reaches(m); err != nil {
			return err
		}
	}
	return nil
}

// onlyDefinite marks what a kernel says that knows an option or does not. That
// there is no memory, no descriptor or no port says nothing about it.
func onlyDefinite(err error) error {
	for _, errno := range []error{unix.ENOPROTOOPT, unix.EOPNOTSUPP, unix.EINVAL, unix.ENOSYS} {
		if errors.Is(err, errno) {
			return kernelSays{err}
		}
	}
	return err
}

// reaches connects to the group and looks whose queue fills. The client's end of
// the handshake may be over before the server's is.
func (g *tcpGroup) reaches(m *Member) error {
	client, err := g.at.WithPort(0).Bind(func(fd int) error {
		return errors.Join(reuseAddr(fd, 0)(), syscall.SetNonblock(fd, true))
	})
	if err != nil {
		return err
	}
	defer closeDescriptor(client)
	if err := syscall.Connect(client, g.at.Sockaddr()); err != nil && !errors.Is(err, syscall.EINPROGRESS) {
		return os.NewSyscallError("connect", err)
	}
	const patience = time.Second
	switch whoseQueueFills(g.members, patience) {
	case m:
		return nil
	case nil:
		return errors.New("a connection on loopback takes longer than a second")
	}
	return kernelSays{errors.New("a connection reached another member than the program named")}
}
