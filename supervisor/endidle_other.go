//go:build !linux

package supervisor

import "errors"

func shutdownRead([]int, map[uint64]struct{}) (int, error) { return 0, errors.ErrUnsupported }
