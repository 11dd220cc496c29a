package fdpass

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// Inherited is a socket that this process was started with. Whoever gets it
// owns the descriptor and closes it; Listener and PacketConn do so.
type Inherited struct {
	FD   int
	Name string // from LISTEN_FDNAMES; "unknown" where the parent gave none
}

// Inherit returns the sockets that this process was started with, in the
// order in which its parent passed them: those of the listen-fds protocol
// (sd_listen_fds(3)), if LISTEN_PID names this process. They are marked
// close-on-exec, and the variables are removed from the environment, so that
// children take nothing for theirs; a second call returns nothing.
//
// It is nil, nil where there is nothing to take. With an error there is no
// partial result, and the descriptors stay as they are.
func Inherit() ([]Inherited, error) {
	pid, count, names := takeListenVariables()
	if pid == "" || pid != strconv.Itoa(os.Getpid()) {
		return nil, nil
	}
	sockets, err := inheritedSockets(count, names)
	if err != nil {
		return nil, fmt.Errorf("cannot take the inherited sockets: %w", err)
	}
	for _, s := range sockets {
		syscall.CloseOnExec(s.FD)
	}
	return sockets, nil
}

// takeListenVariables reads and removes what systemd and its imitators set.
// LISTEN_PIDFDID goes with them: with a stale one sd_listen_fds() in a child
// returns nothing.
func takeListenVariables() (pid, count, names string) {
	pid, count, names = os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS"), os.Getenv("LISTEN_FDNAMES")
	for _, key := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID"} {
		_ = os.Unsetenv(key)
	}
	return pid, count, names
}

func inheritedSockets(count, names string) ([]Inherited, error) {
	n, err := strconv.ParseUint(count, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("LISTEN_FDS=%q is not a number of descriptors", count)
	}
	list := strings.Split(names, ":")
	if names != "" && uint64(len(list)) != n {
		return nil, fmt.Errorf("LISTEN_FDNAMES has %d names for %d descriptors", len(list), n)
	}
	var sockets []Inherited
	for i := range int(n) {
		s := Inherited{FD: listenFDsStart + i, Name: "unknown"}
		if names != "" {
			s.Name = list[i]
		}
		if _, err := s.Addr(); err != nil {
			return nil, err
		}
		sockets = append(sockets, s)
	}
	return sockets, nil
}

// Addr is the address that the socket is bound to. The path of a unix socket
// is the one that it was bound with, which a rename may have left behind.
func (i Inherited) Addr() (net.Addr, error) {
	l, err := LocalOf(i.FD)
	if err != nil {
		return nil, fmt.Errorf("descriptor %d is not a socket: %w", i.FD, err)
	}
	addr := l.netAddr()
	if addr == nil {
		return nil, fmt.Errorf("descriptor %d is no socket that can be served", i.FD)
	}
	return addr, nil
}

// OpenOwn opens a for a process that was not started with it, with all the
// options of an Address. Nobody shares the socket yet, and nothing removes the
// path of a unix socket when it is closed.
func OpenOwn(a Address) (Inherited, error) {
	fd, err := OpenSocket(a, nil)
	if err != nil {
		return Inherited{}, err
	}
	return Inherited{FD: fd, Name: a.Name}, nil
}

// Matches tells whether the socket is the one that a asks for: by its name,
// or else by the address that it is bound to. The host of a must be a literal
// address for the latter, or empty.
func (i Inherited) Matches(a Address) bool {
	if i.Name == a.Name || a.Network == "systemd" && i.Name == a.Unit {
		return true
	}
	if a.Network == "fd" {
		return i.FD == a.FD
	}
	l, err := LocalOf(i.FD)
	if err != nil {
		return false
	}
	switch l.Network {
	case "tcp", "udp":
		return strings.HasPrefix(a.Network, l.Network) && boundTo(a, l.Addr)
	}
	return l.Network != "" && a.Network == l.Network && a.Path == l.Path
}

func boundTo(a Address, at netip.AddrPort) bool {
	if int(at.Port()) != a.Port {
		return false
	}
	if a.Host == "" {
		return at.Addr().IsUnspecified()
	}
	ip, err := netip.ParseAddr(a.Host)
	return err == nil && at.Addr().Unmap().WithZone("") == ip.Unmap().WithZone("")
}

// Listener makes a listener of a stream socket and closes the descriptor,
// also with an error. Closing the listener closes this process's share of
// the socket only; the path of a unix socket stays.
func (i Inherited) Listener() (net.Listener, error) {
	f, err := i.file()
	if err != nil {
		return nil, err
	}
	defer f.Close()
	ln, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("cannot listen on the inherited socket %q: %w", i.Name, err)
	}
	return ln, nil
}

// PacketConn is the same for a datagram socket.
func (i Inherited) PacketConn() (net.PacketConn, error) {
	f, err := i.file()
	if err != nil {
		return nil, err
	}
	defer f.Close()
	conn, err := net.FilePacketConn(f)
	if err != nil {
		return nil, fmt.Errorf("cannot receive on the inherited socket %q: %w", i.Name, err)
	}
	return conn, nil
}

// file passes ownership of the descriptor on. The descriptor may be shared
// with a process that expects it to be non-blocking; os.File.Fd, which
// net.FileListener calls, makes it blocking only if os.File had made it
// non-blocking, and NewFile does not.
func (i Inherited) file() (*os.File, error) {
	f := os.NewFile(uintptr(i.FD), i.Name)
	if f == nil {
		return nil, errors.New("cannot use the inherited socket " + strconv.Quote(i.Name) + ": bad descriptor")
	}
	return f, nil
}

// listenFDsStart is the first descriptor that systemd passes
// (SD_LISTEN_FDS_START in sd_listen_fds(3)).
const listenFDsStart = 3

// activated finds the descriptor that systemd, or another master, passed to
// this process under a name. A socket unit without FileDescriptorName= is
// called after the unit: "web.socket".
func activated(name string) (int, error) {
	names, err := activatedNames()
	if err != nil {
		return -1, err
	}
	for i, n := range names {
		if n == name || n == name+".socket" {
			return listenFDsStart + i, nil
		}
	}
	return -1, fmt.Errorf("no socket of that name was passed (LISTEN_FDNAMES has: %s)", strings.Join(names, ", "))
}

func activatedNames() ([]string, error) {
	if os.Getenv("LISTEN_PID") != strconv.Itoa(os.Getpid()) {
		return nil, fmt.Errorf("no sockets were passed to this process (LISTEN_PID is %q, this is %d); systemd passes them with a .socket unit",
			os.Getenv("LISTEN_PID"), os.Getpid())
	}
	n, err := strconv.ParseUint(os.Getenv("LISTEN_FDS"), 10, 16)
	if err != nil || n < 1 {
		return nil, fmt.Errorf("cannot read LISTEN_FDS=%q", os.Getenv("LISTEN_FDS"))
	}
	names := strings.Split(os.Getenv("LISTEN_FDNAMES"), ":")
	for len(names) < int(n) {
		names = append(names, "unknown")
	}
	return names[:n], nil
}
