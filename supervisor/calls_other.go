//go:build !linux

package supervisor

import (
	"os"

	"github.com/moult/moult/supervisor/machine"
)

// calls never stop here.
type calls struct{}

func newCalls(*Supervisor, *worker) *calls { return nil }

func (s *Supervisor) listenTo(*worker, *os.File) {}

func (c *calls) ready() {}
func (c *calls) close() {}

func (s *Supervisor) reply(machine.Reply) {}

func (s *sockets) ambiguous() bool { return false }
