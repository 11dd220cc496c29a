package fdpass

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
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
}

// StartProbe begins to connect to m through the address that it serves. The
// caller closes the probe.
func (s *Socket) StartProbe(m *Member) (*Probe, error) {
	if s.how != Steered || s.probe != nil {
		return nil, fmt.Errorf("cannot probe %s: %w", s.addr.Name, errors.ErrUnsupported)
	}
	p, err := s.startProbe(m)
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
		to.ip = net.IPv4(127, 0, 0, 1).To4()
		if to.family == unix.AF_INET6 {
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
	s.probe = p
	defer func() { s.probe = nil }()
	if err := s.attach(s.serving); err != nil {
		return err
	}
	err = syscall.Connect(p.fd, target)
	if err != nil && !errors.Is(err, syscall.EINPROGRESS) {
		return os.NewSyscallError("connect", err)
	}
	// On this machine's own address the handshake's first packet has found
	// its member when connect returns: the rule has done its work.
	s.probe = nil
	return s.attach(s.serving)
}

// Connected tells whether the handshake is over. Once it is, the connection is
// in the member's queue until the worker accepts it.
func (p *Probe) Connected() (bool, error) {
	info, err := unix.GetsockoptTCPInfo(p.fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return false, os.NewSyscallError("getsockopt TCP_INFO", err)
	}
	if n, _ := unix.GetsockoptInt(p.fd, unix.SOL_SOCKET, unix.SO_ERROR); n != 0 {
		return false, syscall.Errno(n)
	}
	const established = 1 // TCP_ESTABLISHED, net/tcp_states.h
	return info.State == established, nil
}

// Close ends the connection.
func (p *Probe) Close() {
	if p.fd >= 0 {
		closeDescriptor(p.fd)
		p.fd = -1
	}
}
