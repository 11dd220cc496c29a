//go:build !linux

package fdpass

import "errors"

// Probe does not exist where nothing is steered.
type Probe struct{}

// StartProbe is for steered sockets, which only Linux has.
func (s *Socket) StartProbe(*Member) (*Probe, error) { return nil, errors.ErrUnsupported }

// Connected is never reached: there is no probe.
func (p *Probe) Connected() (bool, error) { return false, errors.ErrUnsupported }

// Close ends the connection.
func (p *Probe) Close() {}

func (s *Socket) mayGroup() bool { return false }

func (s *Socket) listenFirst(fd int) error { return listenAgain(fd, s.backlog) }

func (s *Socket) tryGroup() error {
	if !s.share {
		s.why = "only Linux steers connections"
	}
	return nil
}

// Verify has nothing to follow where there are no groups.
func (s *Socket) Verify() error { return nil }

func (s *Socket) joinGroup() (*Member, error) { return nil, errors.ErrUnsupported }
func (s *Socket) steerGroup() error           { return errors.ErrUnsupported }
func (s *Socket) leaveGroup(*Member)          {}
func (s *Socket) refuse() error               { return nil }
func (m *Member) makeFresh() error            { return nil }

// Barrier waits for nothing: no program runs in the kernel here.
func Barrier() {}
