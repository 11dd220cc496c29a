//go:build !linux

package fdpass

import (
	"errors"
	"io/fs"
	"os"
)

// What workers bind themselves is heard of on Linux only.

// ResolvePath knows no other process's paths.
func ResolvePath(int, []byte) (abs string, ok bool) { return "", false }

// LeadsTo knows no other process's paths.
func LeadsTo(int, int, string) (os.FileInfo, error) { return nil, errors.ErrUnsupported }

// BindPath binds nothing.
func (s *Socket) BindPath(int, Identity) error { return errors.ErrUnsupported }

// Forget has nothing to remove.
func (s *Socket) Forget(uint64) {}

// AdoptPath closes fd.
func (s *Socket) AdoptPath(fd, _, _ int, _ Identity) (*Member, error) {
	closeDescriptor(fd)
	return nil, errors.ErrUnsupported
}

func (s *Socket) showLearned(*Member) error        { return errors.ErrUnsupported }
func (id Identity) removeFile(string, fs.FileInfo) {}
