package fdpass

import (
	"errors"
	"net"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// steeringWorks tries the whole mechanism once on two loopback sockets:
// kernels that only look like Linux (gVisor among them) accept the option and
// do not steer.
var steeringWorks = sync.OnceValue(selfTest)

func selfTest() error {
	s := &Socket{addr: Address{Name: "self-test", Network: "tcp"}, network: "tcp", how: Steered, backlog: 2}
	defer s.Close()
	loopback := inetTarget{ip: net.IPv4(127, 0, 0, 1), family: unix.AF_INET}
	for range 2 {
		m, err := s.bindTestMember(loopback)
		if err != nil {
			return err
		}
		s.members = append(s.members, m)
		if loopback, err = s.target(); err != nil { // now with the port
			return err
		}
	}
	for _, m := range s.members {
		if err := s.attach([]*Member{m}); err != nil {
			return err
		}
		if err := s.reaches(m); err != nil {
			return err
		}
	}
	return nil
}

// bindTestMember differs from bindInet in that it must not ask whether
// steering works.
func (s *Socket) bindTestMember(t inetTarget) (*Member, error) {
	fd, err := newSocket(t.family, unix.SOCK_STREAM, unix.IPPROTO_TCP)
	if err != nil {
		return nil, err
	}
	sa, err := t.sockaddr()
	err = inTurn(
		func() error { return err },
		func() error { return enableReusePort(fd) },
		func() error { return syscall.Bind(fd, sa) },
		func() error { return syscall.Listen(fd, s.backlog) })
	if err != nil {
		closeDescriptor(fd)
		return nil, err
	}
	return s.newMember(fd)
}

// reaches connects to the group and looks in whose queue the connection is.
func (s *Socket) reaches(m *Member) error {
	t, err := s.target()
	if err != nil {
		return err
	}
	sa, err := t.sockaddr()
	if err != nil {
		return err
	}
	client, err := newSocket(t.family, unix.SOCK_STREAM, unix.IPPROTO_TCP)
	if err != nil {
		return err
	}
	defer closeDescriptor(client)
	if err := syscall.Connect(client, sa); err != nil {
		return os.NewSyscallError("connect", err)
	}
	queued, err := queueLength(m.fd)
	if err != nil {
		return err
	}
	if queued == 0 {
		return errors.New("a connection reached another member than the program named")
	}
	return nil
}
