//go:build !linux

package fdpass

import "errors"

// Nothing is intercepted here, so that there is nothing to learn: what follows
// is never reached.

// Learn returns the Socket for what a worker binds.
func Learn(b Binding, _ Options) *Socket {
	return &Socket{addr: Address{Name: b.String()}, how: Shared, learned: true}
}

// InspectSocket is for Linux.
func InspectSocket(int) (WorkerSocket, error) { return WorkerSocket{}, errors.ErrUnsupported }

// V6OnlyByDefault is for Linux.
func V6OnlyByDefault() bool { return false }

// Recall is for Linux.
func (w *WorkerSocket) Recall(SockOption) {}

// StandIn is for Linux.
func (w WorkerSocket) StandIn([]SockOption) (int, error) { return -1, errors.ErrUnsupported }

// BindOwn is for Linux.
func (s *Socket) BindOwn(int, Binding, bool) error { return errors.ErrUnsupported }

// Adopt is for Linux.
func (s *Socket) Adopt(int, int, int) (*Member, error) { return nil, errors.ErrUnsupported }

// Listening is always true where no kernel's array is followed.
func (s *Socket) Listening(*Member) bool { return true }

// Resume is for Linux.
func (s *Socket) Resume(*Member, int) error { return errors.ErrUnsupported }

// Claim is for Linux.
func (m *Member) Claim(bool) error { return errors.ErrUnsupported }

func (s *Socket) target() (inetTarget, error) { return inetTarget{}, errors.ErrUnsupported }
func (s *Socket) disguise(int)                {}
