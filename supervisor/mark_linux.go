package supervisor

import (
	"bytes"
	"os"
	"strconv"
)

// hasMark looks into the environment that the process was started with. It may
// be unreadable (another uid) or overwritten (a process title): then it has
// none.
func hasMark(pid int, mark string) bool {
	env, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/environ")
	if err != nil {
		return false
	}
	want := []byte(markVariable + "=" + mark)
	for _, kv := range bytes.Split(env, []byte{0}) {
		if bytes.Equal(kv, want) {
			return true
		}
	}
	return false
}
