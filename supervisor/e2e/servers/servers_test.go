//go:build linux

package servers

import (
	"slices"
	"testing"

	"github.com/moult/moult/supervisor/e2e/testkit"
	"golang.org/x/sys/unix"
)

// anyServer is a server as its authors ship it: it binds its own address and
// has never heard of moult.
type anyServer struct {
	name    string
	signal  string // the drain signal
	clients int    // at once; few where the server answers one at a time
	dialect dialect
	program string // of testkit, with its variant
}

var anyServers = []anyServer{
	{"nginx, TERM", "TERM", 16, webDialect, "nginx"},
	{"nginx, QUIT", "QUIT", 16, webDialect, "nginx"},
	{"nginx with reuseport, TERM", "TERM", 16, webDialect, "nginx reuseport"},
	{"nginx with reuseport, QUIT", "QUIT", 16, webDialect, "nginx reuseport"},
	{"Apache, TERM", "TERM", 16, webDialect, "apache"},
	{"Apache, WINCH", "WINCH", 16, webDialect, "apache"},
	{"haproxy, TERM", "TERM", 16, webDialect, "haproxy"},
	{"haproxy, USR1", "USR1", 16, webDialect, "haproxy"},
	{"Caddy", "TERM", 16, webDialect, "caddy"},
	{"lighttpd, TERM", "TERM", 16, webDialect, "lighttpd"},
	{"lighttpd, INT", "INT", 16, webDialect, "lighttpd"},
	{"gunicorn", "TERM", 4, webDialect, "gunicorn"},
	{"uvicorn", "TERM", 16, webDialect, "uvicorn"},
	{"puma", "TERM", 16, webDialect, "puma"},
	{"python's http.server", "TERM", 8, webDialect, "module"},
	{"python, one connection at a time", "TERM", 4, webDialect, "blocking"},
	{"PHP's own server", "TERM", 4, webDialect, "php"},
	{"node without a signal handler", "TERM", 16, webDialect, "node dies"},
	{"node with server.close", "TERM", 16, webDialect, "node closes"},
	{"Go without Shutdown", "TERM", 16, webDialect, "go dies"},
	{"Go with Shutdown", "TERM", 16, webDialect, "go shutdown"},
	{"java without a hook", "TERM", 16, webDialect, "java dies"},
	{"java with a hook", "TERM", 16, webDialect, "java hook"},
	{"redis", "TERM", 16, redisDialect, "redis"},
	{"memcached", "TERM", 16, memcachedDialect, "memcached"},
}

// Servers of every make, upgraded while clients ask.
func TestAnyServer(t *testing.T) {
	t.Parallel()
	var names []string
	if testing.Short() { // one of each kind
		names = []string{"nginx with reuseport, TERM", "Apache, TERM", "gunicorn", "node without a signal handler", "redis"}
	}
	upgradeAll(t, testkit.Launch{}, testkit.Times(5, 3, 100), names...)
}

// They work as well with sockets that the master makes in their place.
func TestAnyServerWithoutDuplicates(t *testing.T) {
	t.Parallel()
	testkit.TakesLong(t)
	names := []string{
		"nginx, QUIT", "nginx with reuseport, QUIT", "Apache, TERM", "haproxy, TERM", "gunicorn", "python's http.server",
		"node without a signal handler", "Go without Shutdown", "java with a hook", "redis",
	}
	if testkit.Soak() {
		names = nil
	}
	upgradeAll(t, testkit.NoDuplicates(), testkit.Times(3, 2, 20), names...)
}

// The capabilities that Docker leaves root are not enough to look into the
// processes of a user that the server becomes, once it has bound its address.
func TestAnyServerWithDockersCapabilities(t *testing.T) {
	t.Parallel()
	testkit.TakesLong(t)
	testkit.RequireRoot(t, "be left with some capabilities")
	const left = "+chown,+dac_override,+fowner,+fsetid,+kill,+setgid,+setuid,+setpcap,+net_bind_service,+net_raw,+sys_chroot,+mknod,+audit_write,+setfcap"
	wrap := append(testkit.Without("pidfd_getfd", unix.EPERM), testkit.RequireProgram(t, "setpriv"), "--bounding-set=-all,"+left, "--")
	upgradeAll(t, testkit.Launch{Wrap: wrap}, testkit.Times(3, 2, 20),
		"nginx, TERM", "nginx with reuseport, QUIT", "Apache, WINCH", "haproxy, USR1", "lighttpd, TERM", "Go with Shutdown", "redis")
}

// slots are for servers: one that starts needs a processor, and so do its
// clients.
var slots = make(chan struct{}, 3)

// upgradeAll upgrades those servers, or all.
func upgradeAll(t *testing.T, launch testkit.Launch, times int, names ...string) {
	common := testkit.NewFixtures(t)
	for _, s := range anyServers {
		if names != nil && !slices.Contains(names, s.name) {
			continue
		}
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			slots <- struct{}{}
			defer func() { <-slots }()
			s.upgrades(t, launch, testkit.NewSite(t, common), times)
		})
	}
}

// upgrades upgrades the server under load, each time with a slow answer under
// way.
func (s anyServer) upgrades(t *testing.T, launch testkit.Launch, at *testkit.Site, count int) {
	launch.Env = at.Environment()
	m := launch.Start(t, append([]string{"--drain-signal", s.signal, "--"}, at.Command(s.program)...)...).Serving()
	clients := s.dialect.crowd(t, at.Address, s.clients)
	clients.flow()
	for generation := 1; generation <= count; generation++ {
		finish := s.dialect.slow(t, at.Address)
		m.Upgrade()
		if err := finish(); err != nil {
			t.Errorf("the slow answer of generation %d: %v", generation, err)
		}
		clients.flow()
	}
	m.Retire()
	clients.flow() // whatever answers after this is the last generation
	clients.lossless()
	m.Stop()
}
