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
