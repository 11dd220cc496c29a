package supervisor

import "syscall"

// exitStatus is the code that a shell shows for a status: 128+n for signal n.
func exitStatus(status syscall.WaitStatus) int {
	if status.Signaled() {
		return 128 + int(status.Signal())
	}
	return status.ExitStatus()
}
