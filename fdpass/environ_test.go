package fdpass

import (
	"slices"
	"testing"
)

func TestCleanEnviron(t *testing.T) {
	stays := []string{
		"PATH=/bin", "LISTEN_ADDR=:80", "LISTEN_PORT=80", "GUNICORN_CMD_ARGS=--reload", "NGINX_HOST=x", "WATCHDOG=1",
		"NOTIFY_SOCKETS=1", "einhorn_fds=3", "MOULTING=1", "PUMA_WORKERS=2", "UNICORN_FDS=1", "EMPTY=", "no-equals-sign",
	}
	goes := []string{
		"LISTEN_FDS=1", "LISTEN_PID=1", "LISTEN_PIDFDID=1", "LISTEN_FDNAMES=web",
		"SERVER_STARTER_PORT=80=3", "SERVER_STARTER_GENERATION=1",
		"EINHORN_MASTER_PID=1", "EINHORN_FD_COUNT=1", "EINHORN_FD_0=3", "EINHORN_FDS=3", "EINHORN_SOCK_PATH=/x",
		"NGINX=3;", "UNICORN_FD=3", "GUNICORN_FD=3", "GUNICORN_PID=1", "PUMA_INHERIT_0=3:tcp://:80",
		"TABLEFLIP_HAS_PARENT_7DIU3=yes", "FPM_SOCKETS=:80=3",
		"NOTIFY_SOCKET=/run/n", "WATCHDOG_USEC=1", "WATCHDOG_PID=1", "FDSTORE=5",
		"MOULT_LISTEN=:80", "MOULT_GENERATION=1", "MOULT_CONTROL=/x", "LISTEN_FDS", "NOTIFY_SOCKET=",
	}
	var env []string
	for i := range max(len(stays), len(goes)) {
		env = append(env, goes[min(i, len(goes)-1)])
		if i < len(stays) {
			env = append(env, stays[i])
		}
	}
	before := slices.Clone(env)
	if got := CleanEnviron(env); !slices.Equal(got, stays) {
		t.Errorf("CleanEnviron leaves %q\nwant %q", got, stays)
	}
	if !slices.Equal(env, before) {
		t.Error("CleanEnviron has changed its argument")
	}
}

func TestCleanEnvironRemovesAllThatEnvironSets(t *testing.T) {
	env := Handoff{Sockets: threeSockets(), Generation: 1}.Environ()
	if left := CleanEnviron(env); len(env) == 0 || len(left) != 0 {
		t.Errorf("of %q there stays %q", env, left)
	}
}
