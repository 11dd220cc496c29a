//go:build !linux

package fdpass

import "errors"

// Identity is as whom a worker's thread names files. Only Linux tells.
type Identity struct{}

// IdentityOf is for workers that are intercepted, which only Linux can do.
func IdentityOf(int) (Identity, error) { return Identity{}, errors.ErrUnsupported }

// Do runs nothing.
func (Identity) Do(func() error) error { return errors.ErrUnsupported }

func (Identity) do(func() error) error { return errors.ErrUnsupported }
