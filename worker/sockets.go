package worker

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/cloudflare/tableflip"
	"github.com/moult/moult/fdpass"
)

// sockets finds the sockets of this process: those that it was started with,
// and otherwise it opens them.
type sockets struct {
	underMoult bool // the master upgrades, not we
	// alone is set where no other process accepts from our sockets, but the
	// one that comes after us.
	alone    bool
	upgrader *tableflip.Upgrader // nil where this process does not upgrade itself

	mu        sync.Mutex
	inherited []fdpass.Inherited // not taken yet
	opened    []net.Listener

	pidPipe *os.File // to the parent; nil without one
}

// heldPrefix begins the names under which sockets from outside go through
// tableflip as plain files: it would remove the path of a unix socket that it
// knows as such, and this one belongs to systemd.
const heldPrefix = "held:"

func newSockets(cfg Config) (*sockets, error) {
	s := &sockets{underMoult: os.Getenv("MOULT_GENERATION") != ""}
	var err error
	if s.inherited, err = fdpass.Inherit(); err != nil {
		return nil, err
	}
	child := os.Getenv(tableflipVariable) != ""
	s.alone = !s.underMoult && len(s.inherited) == 0
	if child || s.mayUpgrade(cfg) == nil {
		if s.upgrader, err = newUpgrader(cfg); err != nil {
			return nil, err
		}
		return s, s.takeHeld()
	}
	return s, nil
}

// takeHeld makes the sockets that the previous process had from outside look
// as if they had come to us.
func (s *sockets) takeHeld() error {
	files, err := s.upgrader.Files()
	if err != nil {
		return fmt.Errorf("cannot take the sockets of the previous process: %w", err)
	}
	for _, f := range files {
		name := strings.TrimSuffix(strings.TrimPrefix(f.Name(), "fd:"), ":")
		if name == pidFile {
			s.pidPipe = f
			continue
		}
		err := s.takeHeldFile(f, name)
		_ = f.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *sockets) takeHeldFile(f *os.File, name string) error {
	name, held := strings.CutPrefix(name, heldPrefix)
	if !held {
		return nil
	}
	fd, err := duplicate(f)
	if err != nil {
		return fmt.Errorf("cannot take the socket %q: %w", name, err)
	}
	s.inherited = append(s.inherited, fdpass.Inherited{FD: fd, Name: name})
	s.alone = false
	return nil
}

// names lists what was inherited and not taken.
func (s *sockets) names() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var names []string
	for _, i := range s.inherited {
		names = append(names, i.Name)
	}
	return names
}

// take removes the inherited socket that is meant from those not taken.
func (s *sockets) take(matches func(fdpass.Inherited) bool) (fdpass.Inherited, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for n, i := range s.inherited {
		if matches(i) {
			s.inherited = append(s.inherited[:n:n], s.inherited[n+1:]...)
			return i, true
		}
	}
	return fdpass.Inherited{}, false
}

func (s *sockets) listen(addr string) (net.Listener, error) {
	a, passed, err := s.find(addr, true)
	if err != nil {
		return nil, err
	}
	if passed != nil {
		return s.keep(passed.Listener())
	}
	open := func(string, string) (net.Listener, error) {
		own, err := fdpass.OpenOwn(a)
		if err != nil {
			return nil, err
		}
		return own.Listener()
	}
	if s.upgrader == nil {
		return s.keep(open("", ""))
	}
	network, target := endpoint(a)
	return s.keep(s.upgrader.ListenWithCallback(network, target, open))
}

func (s *sockets) listenPacket(addr string) (net.PacketConn, error) {
	a, passed, err := s.find(addr, false)
	if err != nil {
		return nil, err
	}
	if passed != nil {
		return passed.PacketConn()
	}
	open := func(string, string) (net.PacketConn, error) {
		own, err := fdpass.OpenOwn(a)
		if err != nil {
			return nil, err
		}
		return own.PacketConn()
	}
	if s.upgrader == nil {
		return open("", "")
	}
	network, target := endpoint(a)
	return s.upgrader.ListenPacketWithCallback(network, target, open)
}

// find reads addr and takes the socket that was passed for it; nil means that
// it has to be opened.
func (s *sockets) find(addr string, stream bool) (fdpass.Address, *fdpass.Inherited, error) {
	a, err := fdpass.ParseAddress(addr)
	if err != nil {
		return a, nil, err
	}
	wrong := "udp unixgram"
	if !stream {
		wrong = "tcp unix"
	}
	if slices.Contains(strings.Fields(wrong), strings.TrimRight(a.Network, "46")) {
		return a, nil, fmt.Errorf("cannot use the address %q: Listen is for streams and ListenPacket for datagrams", addr)
	}
	i, ok := s.take(func(i fdpass.Inherited) bool { return isStream(i) == stream && i.Matches(a) })
	if !ok {
		return a, nil, nil
	}
	return a, &i, s.holdOn(i)
}

func (s *sockets) keep(ln net.Listener, err error) (net.Listener, error) {
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.opened = append(s.opened, ln)
	return ln, nil
}

// leave is for a listener that closes later than the others.
func (s *sockets) leave(ln net.Listener) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.opened = slices.DeleteFunc(s.opened, func(o net.Listener) bool { return o == ln })
}

// endpoint spells an address as most programs pass it to package net: the
// parent, if it is another program, used the same strings.
func endpoint(a fdpass.Address) (network, address string) {
	if a.Path != "" {
		return a.Network, a.Path
	}
	host := a.Host
	if ip, err := netip.ParseAddr(host); err == nil {
		host = ip.String()
	}
	return a.Network, net.JoinHostPort(host, strconv.Itoa(a.Port))
}

// close gives back what is still open, of our own and of tableflip's, whose
// duplicates would go on filling their queues. The paths of unix sockets that
// we made are removed, if no process comes after us.
func (s *sockets) close() {
	s.mu.Lock()
	opened, unused := s.opened, s.inherited
	s.opened, s.inherited = nil, nil
	s.mu.Unlock()
	for _, ln := range opened {
		_ = ln.Close()
	}
	for _, i := range unused {
		_ = os.NewFile(uintptr(i.FD), i.Name).Close()
	}
	// Under moult the paths are the master's.
	if s.upgrader != nil && !s.underMoult {
		s.upgrader.Stop()
		<-s.upgrader.Exit()
	}
}

var errNoListener = errors.New("there is nothing to listen on: name an address in Config.Listen or in the server's Addr")

// all returns a listener for each address; without addresses, or where a
// parent passed sockets and none of them is asked for, one for each socket
// that was passed.
func (s *sockets) all(addrs []string) ([]net.Listener, error) {
	if len(addrs) == 0 || !s.anyInherited(addrs) {
		if lns, err := s.allInherited(); err != nil || len(lns) > 0 {
			return lns, err
		}
	}
	if len(addrs) == 0 {
		return nil, errNoListener
	}
	var lns []net.Listener
	for _, addr := range addrs {
		ln, err := s.listen(addr)
		if err != nil {
			return nil, err
		}
		lns = append(lns, ln)
	}
	return lns, nil
}

func (s *sockets) anyInherited(addrs []string) bool {
	for _, addr := range addrs {
		a, err := fdpass.ParseAddress(addr)
		if err != nil {
			return true // listen says what is wrong with it
		}
		for _, i := range s.inherited {
			if i.Matches(a) {
				return true
			}
		}
	}
	return false
}

func (s *sockets) allInherited() ([]net.Listener, error) {
	var lns []net.Listener
	for {
		i, ok := s.take(isStream)
		if !ok {
			return lns, nil
		}
		if err := s.holdOn(i); err != nil {
			return nil, err
		}
		ln, err := s.keep(i.Listener())
		if err != nil {
			return nil, err
		}
		lns = append(lns, ln)
	}
}

func isStream(i fdpass.Inherited) bool {
	addr, err := i.Addr()
	return err == nil && (addr.Network() == "tcp" || addr.Network() == "unix")
}
