//go:build !linux

package supervisor

import (
	"errors"
	"os"
)

// openPath: a running program cannot be held open here.
func openPath(string) (*os.File, error) { return nil, errors.ErrUnsupported }
