//go:build !linux

package group

import (
	"errors"
	"os"

	"github.com/moult/moult/fdpass"
)

// Here every address is shared, nothing is intercepted, and so there is nothing
// to learn: what follows says so where it can be reached at all.

const renames = false

func whyNotSteered(fdpass.Address) string { return "only Linux steers connections" }

func openTCP(fdpass.Address) (Group, error) { return nil, errors.ErrUnsupported }

func steerPassed(g *sharedGroup) Group {
	g.why = whyNotSteered(g.addr)
	return g
}

func openPath(fdpass.Address) (Group, error) { return nil, errors.ErrUnsupported }

func withPath(g *sharedGroup) Group { return g }

func (g *sharedGroup) refuseTCP() error { return nil }

// removeFile removes a path that leads to the member.
func (m *Member) removeFile(path string) {
	if have, err := os.Lstat(path); err == nil && m.file != nil && os.SameFile(m.file, have) {
		_ = os.Remove(path)
	}
}

// SelfTest tells that steering does not work.
func SelfTest() error { return errors.ErrUnsupported }

// Barrier waits for nothing: no program runs in the kernel here.
func Barrier() {}

// Probe does not exist where nothing is steered.
type Probe struct{}

// Connected is never reached: there is no probe.
func (p *Probe) Connected() (bool, error) { return false, errors.ErrUnsupported }

// Close is never reached.
func (p *Probe) Close() {}

// LearnInet is the group for an address that a worker binds itself.
func LearnInet(b fdpass.Binding, _ Options) Inet {
	return &sharedGroup{learnedAddress(b.Network, b.String())}
}

// PrepareDatagram is for Linux.
func PrepareDatagram(int, fdpass.Binding) error { return errors.ErrUnsupported }

// LearnPath is the group for a path that workers bind themselves.
func LearnPath(path string, _ Options) Path {
	return &unheardPath{sharedGroup{learnedAddress("unix", path)}}
}

// An unheardPath is never heard of.
type unheardPath struct{ sharedGroup }

func (*unheardPath) Bind(int, Identity) error { return errors.ErrUnsupported }
func (*unheardPath) Adopt(fd, _, _ int, _ Identity) (*Member, error) {
	closeDescriptor(fd)
	return nil, errors.ErrUnsupported
}
func (*unheardPath) Forget(uint64)          {}
func (*unheardPath) HasName(string) bool    { return false }
func (*unheardPath) Shows(os.FileInfo) bool { return false }

// InspectSocket is for Linux.
func InspectSocket(int) (WorkerSocket, error) { return WorkerSocket{}, errors.ErrUnsupported }

// V6OnlyByDefault is for Linux.
func V6OnlyByDefault() bool { return false }

// Recall is for Linux.
func (w *WorkerSocket) Recall(SockOption) {}

// StandIn is for Linux.
func (w WorkerSocket) StandIn([]SockOption) (int, error) { return -1, errors.ErrUnsupported }

// Identity is as whom a worker's thread names files. Only Linux tells.
type Identity struct{}

// IdentityOf is for workers that are intercepted, which only Linux can do.
func IdentityOf(int) (Identity, error) { return Identity{}, errors.ErrUnsupported }

// Do runs nothing.
func (Identity) Do(func() error) error { return errors.ErrUnsupported }

func (Identity) do(func() error) error { return errors.ErrUnsupported }

// ResolvePath knows no other process's paths.
func ResolvePath(int, []byte) (abs string, ok bool) { return "", false }

// LeadsTo knows no other process's paths.
func LeadsTo(int, int, string) (os.FileInfo, error) { return nil, errors.ErrUnsupported }
