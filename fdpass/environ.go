package fdpass

import "strings"

// parentVariables are what other parents leave in an environment, beyond the
// protocols that are spoken here. Only those that hand something over: a
// server's configuration, such as GUNICORN_CMD_ARGS, shares the prefix and
// stays.
var parentVariables = []string{
	"NGINX",
	"UNICORN_FD",
	"GUNICORN_FD", "GUNICORN_PID",
	"PUMA_INHERIT_*",
	"TABLEFLIP_*",
	"FPM_SOCKETS",
	// The service manager's, meant for the master alone: a worker that
	// answered would speak in the master's name.
	"NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "FDSTORE",
	// The master's own flags, and what it tells its workers.
	"MOULT_*",
}

// CleanEnviron returns env without the variables by which any parent hands
// sockets over or hears from its children, and without all of moult's own, so
// that a worker never acts on a promise made to the master. The order is kept
// and env itself is not touched.
func CleanEnviron(env []string) []string {
	clean := make([]string, 0, len(env))
	for _, kv := range env {
		key, _, _ := strings.Cut(kv, "=")
		if !isHandoffVariable(key) {
			clean = append(clean, kv)
		}
	}
	return clean
}

func isHandoffVariable(key string) bool {
	if matchesVariable(parentVariables, key) {
		return true
	}
	for _, e := range protocolTable {
		if matchesVariable(e.variables, key) {
			return true
		}
	}
	return false
}

func matchesVariable(patterns []string, key string) bool {
	for _, pattern := range patterns {
		prefix, wild := strings.CutSuffix(pattern, "*")
		if key == pattern || wild && strings.HasPrefix(key, prefix) {
			return true
		}
	}
	return false
}
