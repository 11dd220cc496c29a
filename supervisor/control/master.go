// Package control is how a master is seen and steered from outside: an HTTP
// server on a unix socket that answers its own user and root alone, the client
// for it, and on request an HTTP address for probes and metrics. The types of
// the wire are in package api.
package control

import (
	"context"

	"github.com/moult/moult/supervisor/control/api"
)

// Master is what the servers need of one; *supervisor.Supervisor is one. Both
// methods may be called from any goroutine.
type Master interface {
	// Status asks the master for its state and the kernel for the rest.
	Status(ctx context.Context) (api.Status, error)
	// Begin takes an operation on; ctx is for the asking alone. The events
	// come over the channel, which never blocks the master and is closed
	// after the last; who goes away just stops to read. An error is an
	// *api.Refused where the operation makes no sense now.
	Begin(ctx context.Context, op api.Operation) (<-chan api.Event, error)
}
