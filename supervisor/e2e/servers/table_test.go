//go:build linux

package servers

import (
	"github.com/moult/moult/supervisor/e2e/testkit"
)

// anyServers are the servers with what each needs to stay in the foreground
// and to let a second one of its kind live beside it.
func anyServers() []anyServer {
	return []anyServer{
		{"nginx, TERM", "TERM", 16, webDialect, testkit.NginxCommand("")},
		{"nginx, QUIT", "QUIT", 16, webDialect, testkit.NginxCommand("")},
		{"nginx with reuseport, TERM", "TERM", 16, webDialect, testkit.NginxCommand("reuseport")},
		{"nginx with reuseport, QUIT", "QUIT", 16, webDialect, testkit.NginxCommand("reuseport")},
		{"Apache, TERM", "TERM", 16, webDialect, testkit.ApacheCommand},
		{"Apache, WINCH", "WINCH", 16, webDialect, testkit.ApacheCommand},
		{"haproxy, TERM", "TERM", 16, webDialect, testkit.HaproxyCommand},
		{"haproxy, USR1", "USR1", 16, webDialect, testkit.HaproxyCommand},
		{"Caddy", "TERM", 16, webDialect, testkit.CaddyCommand},
		{"lighttpd, TERM", "TERM", 16, webDialect, testkit.LighttpdCommand},
		{"lighttpd, INT", "INT", 16, webDialect, testkit.LighttpdCommand},
		{"gunicorn", "TERM", 4, webDialect, testkit.GunicornCommand},
		{"uvicorn", "TERM", 16, webDialect, testkit.UvicornCommand},
		{"puma", "TERM", 16, webDialect, testkit.PumaCommand},
		{"python's http.server", "TERM", 8, webDialect, testkit.PythonModuleCommand},
		{"python, one connection at a time", "TERM", 4, webDialect, testkit.PythonBlockingCommand},
		{"PHP's own server", "TERM", 4, webDialect, testkit.PhpCommand},
		{"node without a signal handler", "TERM", 16, webDialect, testkit.NodeCommand("dies")},
		{"node with server.close", "TERM", 16, webDialect, testkit.NodeCommand("closes")},
		{"Go without Shutdown", "TERM", 16, webDialect, testkit.GoServerCommand("dies")},
		{"Go with Shutdown", "TERM", 16, webDialect, testkit.GoServerCommand("shutdown")},
		{"java without a hook", "TERM", 16, webDialect, testkit.JavaCommand("dies")},
		{"java with a hook", "TERM", 16, webDialect, testkit.JavaCommand("hook")},
		{"redis", "TERM", 16, redisDialect, testkit.RedisCommand},
		{"memcached", "TERM", 16, memcachedDialect, testkit.MemcachedCommand},
	}
}
