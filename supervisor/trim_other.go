//go:build !linux

package supervisor

import "runtime/debug"

// trim gives memory back when there is nothing to do for a while.
func trim() { debug.FreeOSMemory() }
