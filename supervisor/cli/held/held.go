// Package held tells of a master's sockets in plain values. It is the one place
// of the command line that knows in what form the master keeps them.
package held

import (
	"github.com/moult/moult/supervisor"
	"github.com/moult/moult/supervisor/control/api"
)

// Socket is one of the master's before anything is started.
type Socket struct {
	api.Socket
	Reason string // why it is shared, where it might have been steered
}

// By returns the sockets that a master has opened, in the order of their
// descriptors in a worker.
func By(master *supervisor.Supervisor) []Socket {
	var all []Socket
	for _, s := range master.Sockets() {
		how, why := s.How()
		all = append(all, Socket{Reason: why, Socket: api.Socket{
			Name: s.Name(), Network: s.Network(), Address: s.Bound(), Backlog: s.Backlog(), Handover: string(how), Intercepted: s.Learned(),
		}})
	}
	return all
}

// Hints says what would make a master's sockets safer.
func Hints(master *supervisor.Supervisor) []string { return supervisor.Hints(master.Sockets()) }
