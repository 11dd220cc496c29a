//go:build linux

package servers

import (
	"os"
	"slices"
	"testing"

	"github.com/moult/moult/supervisor/e2e/testkit"
	"golang.org/x/sys/unix"
)

// Servers of every make work with the sockets that they are given.
func TestAnyServerWithoutDuplicates(t *testing.T) {
	testkit.TakesLong(t)
	names := []string{
		"nginx, QUIT", "nginx with reuseport, QUIT", "Apache, TERM", "haproxy, TERM", "gunicorn", "python's http.server",
		"node without a signal handler", "Go without Shutdown", "java with a hook", "redis",
	}
	if testkit.Soak() {
		names = nil
	}
	someServers(t, testkit.Without("pidfd_getfd", unix.EPERM), names...)
}

// someServers upgrades those, or all.
func someServers(t *testing.T, wrap []string, names ...string) {
	common := testkit.NewFixtures(t)
	slots := make(chan struct{}, 3)
	for _, s := range anyServers() {
		if names != nil && !slices.Contains(names, s.name) {
			continue
		}
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			slots <- struct{}{}
			defer func() { <-slots }()
			s.upgrades(t, testkit.NewSite(t, common), testkit.Times(5, 2, 20), wrap...)
		})
	}
}

// The capabilities that Docker leaves root are not enough to look into the
// processes of a user that the server becomes, once it has bound its address.
func TestAnyServerWithDockersCapabilities(t *testing.T) {
	testkit.TakesLong(t)
	if os.Geteuid() != 0 {
		t.Skip("only root can be left with some capabilities")
	}
	const left = "+chown,+dac_override,+fowner,+fsetid,+kill,+setgid,+setuid,+setpcap,+net_bind_service,+net_raw,+sys_chroot,+mknod,+audit_write,+setfcap"
	wrap := append(testkit.Without("pidfd_getfd", unix.EPERM), testkit.RequireProgram(t, "setpriv"), "--bounding-set=-all,"+left, "--")
	someServers(t, wrap, "nginx, TERM", "nginx with reuseport, QUIT", "Apache, WINCH", "haproxy, USR1", "lighttpd, TERM", "Go with Shutdown", "redis")
}
