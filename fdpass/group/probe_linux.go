package group

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moult/moult/fdpass"
)

// A Probe is a connection to the real address that the kernel was told to give
// to one member, so that it meets the worker that has it and no other. It
// sends nothing: a worker proves that it accepts by taking it off its queue.
type Probe struct {
	group  *tcpGroup
	member *Member
	fd     int
	from   netip.AddrPort
	over   bool // the handshake, at both ends
}

// Probe implements Prober.
func (g *tcpGroup) Probe(m *Member) (*Probe, error) {
	err := g.Verify()
	if err == nil && g.index(m) < 0 {
		err = errors.New("the worker has shut its socket down")
	}
	var p *Probe
	if err == nil {
		p, err = g.startProbe(m)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot probe %s at %s: %w", g.addr.Name, g.bound, err)
	}
	return p, nil
}

// startProbe begins at the address that it goes to, or at loopback. Without
// SO_REUSEADDR the kernel chooses a port that nobody has.
func (g *tcpGroup) startProbe(m *Member) (*Probe, error) {
	to := g.at
	if ip := to.Addr.Addr(); ip.IsUnspecified() {
		loopback := netip.AddrFrom4([4]byte{127, 0, 0, 1}) // a dual-stack socket takes IPv4 too
		if to.V6Only {
			loopback = netip.IPv6Loopback()
		}
		to.Addr = netip.AddrPortFrom(loopback, to.Addr.Port())
	}
	fd, err := to.WithPort(0).Bind(func(fd int) error {
		return errors.Join(reuseAddr(fd, 0)(), syscall.SetNonblock(fd, true))
	})
	if err != nil {
		return nil, err
	}
	p := &Probe{group: g, member: m, fd: fd}
	if err := p.connect(to); err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

func (p *Probe) connect(to fdpass.Binding) error {
	own, err := fdpass.LocalOf(p.fd)
	if err != nil {
		return err
	}
	// IPv4 in IPv6 is IPv4 on the wire, which is what the program sees.
	p.from = netip.AddrPortFrom(own.Addr.Addr().Unmap().WithZone(""), own.Addr.Port())
	p.group.probes = append(p.group.probes, p)
	if err := p.group.attach(p.group.serving); err != nil {
		return err
	}
	err = syscall.Connect(p.fd, to.Sockaddr())
	if err != nil && !errors.Is(err, syscall.EINPROGRESS) {
		return os.NewSyscallError("connect", err)
	}
	return nil
}

// States of a connection, net/tcp_states.h.
const (
	tcpEstablished = 1
	tcpSynSent     = 2
	tcpFinWait1    = 4
)

// Connected tells whether the handshake is over. Once it is, the connection is
// in the member's queue until the worker accepts it.
//
// The client's end is through when the server's answer comes; the last packet
// may still be on its way then (on a busy machine even on loopback), and the
// queue empty because the connection is not in it yet. So the client says
// goodbye, and waits for the acknowledgement, which only a connection that has
// been in the queue can send.
func (p *Probe) Connected() (bool, error) {
	if p.over {
		return true, nil
	}
	if n, err := unix.GetsockoptInt(p.fd, unix.SOL_SOCKET, unix.SO_ERROR); err != nil || n != 0 {
		return false, errors.Join(err, os.NewSyscallError("connect", errnoOrNil(n)))
	}
	state, err := p.state()
	if err == nil && state == tcpEstablished {
		_ = syscall.Shutdown(p.fd, syscall.SHUT_WR)
		state, err = p.state()
	}
	if err != nil || state == tcpSynSent || state == tcpFinWait1 {
		return false, err
	}
	p.over = true
	p.dropRule()
	return true, nil
}

func errnoOrNil(n int) error {
	if n == 0 {
		return nil
	}
	return syscall.Errno(n)
}

func (p *Probe) state() (uint8, error) {
	info, err := unix.GetsockoptTCPInfo(p.fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return 0, os.NewSyscallError("getsockopt TCP_INFO", err)
	}
	return info.State, nil
}

// dropRule takes the probe's rule out of the program. Where that fails the rule
// stays for one client in 28 000, until the next change.
func (p *Probe) dropRule() {
	g := p.group
	if i := slices.Index(g.probes, p); i >= 0 {
		g.probes = slices.Delete(g.probes, i, i+1)
		_ = g.attach(g.serving)
	}
}

// Close ends the connection.
func (p *Probe) Close() {
	if p.fd >= 0 {
		closeDescriptor(p.fd)
		p.fd = -1
		p.dropRule()
	}
}

// sortOut finds out where tainted spares are: the program gives a connection to
// one index, and the queue of one of them fills, on which nobody else accepts.
// What it cannot find out stays tainted.
func (g *tcpGroup) sortOut() {
	spares := g.tainted()
	if slices.ContainsFunc(spares, func(m *Member) bool { return !m.spare }) {
		return
	}
	at := map[int]*Member{}
	for _, m := range spares {
		if found := g.knock(m, spares); found != nil {
			at[g.index(m)] = found
		}
	}
	if len(at) != len(spares) || len(g.departed()) > 0 {
		return
	}
	for i, m := range at {
		g.members[i], m.tainted = m, false
	}
}

// knock sends a connection to the place where m should be and returns who gets
// it.
func (g *tcpGroup) knock(m *Member, spares []*Member) *Member {
	p, err := g.Probe(m)
	if err != nil {
		return nil
	}
	defer p.Close()
	const patience = 100 * time.Millisecond // on loopback it takes microseconds
	return whoseQueueFills(spares, patience)
}

// whoseQueueFills waits for a connection in one of the queues, which were empty,
// and takes it out. It is nil where none comes, or several do.
func whoseQueueFills(members []*Member, patience time.Duration) *Member {
	set := make([]unix.PollFd, len(members))
	for i, m := range members {
		set[i] = unix.PollFd{Fd: int32(m.fd), Events: unix.POLLIN}
	}
	if poll(set, time.Now().Add(patience)) != 1 {
		return nil
	}
	m := members[slices.IndexFunc(set, func(p unix.PollFd) bool { return p.Revents != 0 })]
	m.acceptOne()
	return m
}

// acceptOne takes a connection out of a queue that is not empty.
func (m *Member) acceptOne() {
	if conn, _, err := unix.Accept4(m.fd, unix.SOCK_CLOEXEC); err == nil {
		closeDescriptor(conn)
	}
}

// poll is poll(2) until a moment, whatever signals the runtime sends itself. It
// returns how many are ready.
func poll(set []unix.PollFd, end time.Time) int {
	for {
		left := max(time.Until(end), 0)
		n, err := unix.Poll(set, int((left+time.Millisecond-1)/time.Millisecond))
		if err != unix.EINTR {
			return n
		}
	}
}
