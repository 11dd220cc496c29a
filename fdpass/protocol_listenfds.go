package fdpass

import (
	"slices"
	"strconv"
	"strings"
)

// listenFDsVariables are those of sd_listen_fds(3). They are named one by one:
// LISTEN_ADDR and the like belong to applications. With a LISTEN_PIDFDID that
// is not the worker's, libsystemd from version 258 on ignores the others.
var listenFDsVariables = []string{"LISTEN_FDS", "LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDNAMES"}

// listenFDsEnviron speaks systemd's protocol, sd_listen_fds(3): the number of
// descriptors from 3 on, and their names, as many, separated by colons.
func (h Handoff) listenFDsEnviron() []string {
	if !h.fitsListenFDs() {
		return nil
	}
	names := make([]string, len(h.Sockets))
	for i, s := range h.Sockets {
		names[i] = s.Name
	}
	return []string{
		"LISTEN_FDS=" + strconv.Itoa(len(names)),
		"LISTEN_FDNAMES=" + strings.Join(names, ":"),
	}
}

// fitsListenFDs guards against a promise that would be wrong: the protocol has
// no way to say that the descriptors lie elsewhere than at 3, 4, 5.
func (h Handoff) fitsListenFDs() bool {
	for i, s := range h.Sockets {
		if s.FD != firstPassedFD+i {
			return false
		}
	}
	return len(h.Sockets) > 0
}

// NeedsListenPID tells whether LISTEN_PID has to be set to the worker's own
// pid between fork and exec: nearly every reader compares the two.
func (h Handoff) NeedsListenPID() bool {
	return slices.ContainsFunc(h.Environ(), func(kv string) bool {
		return strings.HasPrefix(kv, "LISTEN_FDS=")
	})
}
