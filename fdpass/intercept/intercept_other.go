//go:build !linux

package intercept

import (
	"os"
	"syscall"
)

// unsupported is what everything answers here.
func unsupported() error {
	return &Unsupported{Reason: "interception needs Linux"}
}

// Install does nothing here.
func Install(Traps) (fd int, noNewPrivs bool, err error) { return -1, false, unsupported() }

// CheckProgram has nothing against any program here.
func CheckProgram(string, bool) error { return nil }

// NeedsNoNewPrivs is false here.
func NeedsNoNewPrivs() bool { return false }

// Works says that interception needs Linux.
func Works() error { return unsupported() }

// Duplicates is false here.
func Duplicates() bool { return false }

// Listener never comes to be here.
type Listener struct{}

// Listen closes f.
func Listen(f *os.File) (*Listener, error) {
	f.Close()
	return nil, unsupported()
}

// Next never has a call here.
func (*Listener) Next() (*Call, error) { return nil, unsupported() }

// Close does nothing here.
func (*Listener) Close() error { return nil }

// Alive is false here.
func (*Call) Alive() bool { return false }

// Duplicate has nothing to give here.
func (*Call) Duplicate() (int, error) { return -1, unsupported() }

// Inode has nothing to give here.
func (*Call) Inode() (uint64, error) { return 0, unsupported() }

// Flags has nothing to give here.
func (*Call) Flags() (nonblock, cloexec bool, err error) { return false, false, unsupported() }

// Protocol has nothing to give here.
func (*Call) Protocol() (string, error) { return "", unsupported() }

// Replace has nobody to give anything to here.
func (*Call) Replace(int, bool) error { return unsupported() }

// Answer has nobody to answer here.
func (*Call) Answer(syscall.Errno) error { return unsupported() }

// Proceed has nobody to let go here.
func (*Call) Proceed() error { return unsupported() }

// SharesNetwork is false here.
func (*Call) SharesNetwork() bool { return false }

// SharesFiles is false here.
func (*Call) SharesFiles() bool { return false }

// MayBindLowPorts is false here.
func (*Call) MayBindLowPorts() bool { return false }
