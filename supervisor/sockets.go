package supervisor

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/moult/moult/fdpass"
	"github.com/moult/moult/supervisor/observe"
)

// openSocket opens an address, and says who has it where it is in use.
func openSocket(a fdpass.Address, cfg *Config) (*fdpass.Socket, error) {
	sock, err := fdpass.Open(a, fdpass.Options{Share: cfg.Share})
	if err == nil && cfg.MustSteer {
		if how, why := sock.How(); how == fdpass.Shared && sock.Network() == "tcp" {
			sock.Close()
			return nil, fmt.Errorf("cannot steer connections on %s: %s; --handover auto shares the socket instead", a.Name, why)
		}
	}
	if !errors.Is(err, syscall.EADDRINUSE) {
		return sock, err
	}
	listeners, _ := observe.Listeners(uint16(a.Port))
	for _, l := range listeners {
		if who := holders(l.Inode); who != "" {
			return nil, fmt.Errorf("%w%s (listens on %s)", err, who, l.Local)
		}
	}
	return nil, err
}

// refuseForeign finds listeners that another program of the same user has put
// into the group: they would shift the indices that the program names.
func (s *Supervisor) refuseForeign() error {
	ours := map[uint64]bool{}
	for _, sock := range s.sockets {
		for _, m := range sock.Members() {
			ours[m.Inode()] = true
		}
	}
	for _, sock := range s.sockets {
		if err := foreignIn(sock, ours); err != nil {
			return err
		}
	}
	return nil
}

func foreignIn(sock *fdpass.Socket, ours map[uint64]bool) error {
	if how, _ := sock.How(); how != fdpass.Steered {
		return nil
	}
	listeners, err := observe.Listeners(uint16(sock.Port()))
	if err != nil {
		return nil // cannot be seen here; steering itself works
	}
	for _, l := range listeners {
		if !ours[l.Inode] && sameAddress(l, sock, listeners) {
			return fmt.Errorf("cannot serve on %s: %w%s", sock.Bound(), fdpass.ErrLost, holders(l.Inode))
		}
	}
	return nil
}

// sameAddress compares with one of our own members, as the kernel shows it.
func sameAddress(l observe.Listener, sock *fdpass.Socket, all []observe.Listener) bool {
	for _, own := range all {
		for _, m := range sock.Members() {
			if own.Inode == m.Inode() && own.Local == l.Local && own.V6Only == l.V6Only {
				return true
			}
		}
	}
	return false
}

func holders(inode uint64) string {
	for _, pid := range observe.Holders(inode) {
		if p, err := observe.ReadProc(pid); err == nil {
			return fmt.Sprintf(": %s, pid %d", p.Comm, pid)
		}
	}
	return ""
}
