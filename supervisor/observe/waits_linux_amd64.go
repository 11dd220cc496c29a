package observe

import "golang.org/x/sys/unix"

// olderWaits are the calls that newer architectures never had.
var olderWaits = map[int]wait{
	unix.SYS_POLL:   waitsInPoll,
	unix.SYS_SELECT: waitsInSelect,
}
