package fdpass

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// A Probe is a connection to the real address that the kernel was told to give
// to one member, so that it meets the worker that has it and no other. It
// sends nothing: a worker proves that it accepts by taking it off its queue.
type Probe struct {
	member *Member
	fd     int
	from   netip.AddrPort
	over   bool // the handshake, at both ends
}

// StartProbe begins to connect to m through the address that it serves. The
// caller closes the probe, before the socket.
func (s *Socket) StartProbe(m *Member) (*Probe, error) {
	if s.how != Steered || s.network != "tcp" {
		return nil, fmt.Errorf("cannot probe %s: %w", s.addr.Name, errors.ErrUnsupported)
	}
	err := s.Verify()
	if err == nil && s.index(m) < 0 {
		err = errors.New("the worker has shut its socket down")
	}
	var p *Probe
	if err == nil {
		p, err = s.startProbe(m)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot probe %s at %s: %w", s.addr.Name, s.bound, err)
	}
	return p, nil
}

func (s *Socket) startProbe(m *Member) (*Probe, error) {
	to, err := s.target()
	if err != nil {
		return nil, err
	}
	if to.ip.IsUnspecified() {
		// A dual-stack socket takes IPv4 too, which every loopback has.
		to.ip = net.IPv4(127, 0, 0, 1)
		if to.v6only {
			to.ip = net.IPv6loopback
		}
	}
	p := &Probe{member: m}
	if p.fd, err = newSocket(to.family, unix.SOCK_STREAM, unix.IPPROTO_TCP); err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if err := s.connectProbe(p, to); err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

func (s *Socket) connectProbe(p *Probe, to inetTarget) error {
	from := to
	from.port = 0
	source, err := from.sockaddr()
	if err != nil {
		return err
	}
	target, err := to.sockaddr()
	if err != nil {
		return err
	}
	if err := setInetOptions(p.fd, to, false); err != nil {
		return err
	}
	if err := syscall.SetNonblock(p.fd, true); err != nil {
		return err
	}
	if err := syscall.Bind(p.fd, source); err != nil {
		return os.NewSyscallError("bind", err)
	}
	own, err := boundAddress(p.fd)
	if err != nil {
		return err
	}
	if p.from, err = netip.ParseAddrPort(own); err != nil {
		return err
	}
	p.from = netip.AddrPortFrom(p.from.Addr().WithZone(""), p.from.Port())
	s.probes = append(s.probes, p)
	if err := s.attach(s.serving); err != nil {
		return err
	}
	err = syscall.Connect(p.fd, target)
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
	s := p.member.socket
	if i := slices.Index(s.probes, p); i >= 0 {
		s.probes = slices.Delete(s.probes, i, i+1)
		_ = s.attach(s.serving)
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
