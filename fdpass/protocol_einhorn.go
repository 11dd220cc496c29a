package fdpass

import (
	"strconv"
	"strings"
)

var einhornVariables = []string{"EINHORN_*"}

// einhornEnviron sets the descriptor variables of einhorn: a count, one
// variable per descriptor, and the older list with spaces between, which is
// all that programs for socketmaster read. EINHORN_MASTER_PID stays away: it
// would promise a socket on which a worker can acknowledge its start.
func (h Handoff) einhornEnviron() []string {
	env := []string{"EINHORN_FD_COUNT=" + strconv.Itoa(len(h.Sockets))}
	fds := make([]string, len(h.Sockets))
	for i, s := range h.Sockets {
		fds[i] = strconv.Itoa(s.FD)
		env = append(env, "EINHORN_FD_"+strconv.Itoa(i)+"="+fds[i])
	}
	return append(env, "EINHORN_FDS="+strings.Join(fds, " "))
}
