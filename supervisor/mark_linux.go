package supervisor

import (
	"bytes"
	"os"
	"strconv"
)

// markOf looks into the environment that the process was started with. It may
// be unreadable (another uid) or overwritten (a process title): then it has
// none.
func markOf(pid int) string {
	env, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/environ")
	if err != nil {
		return ""
	}
	for kv := range bytes.SplitSeq(env, []byte{0}) {
		if mark, ok := bytes.CutPrefix(kv, []byte(WorkerVariable+"=")); ok {
			return string(mark)
		}
	}
	return ""
}
