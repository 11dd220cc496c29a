//go:build linux

package testkit

import (
	"testing"
)

func LookupCommand(t testing.TB, s *Site) []string {
	return []string{RequireProgram(t, "python3"), Testdata(t, "servers/lookup/server.py"), s.Host, s.Port}
}

// nginx and Apache write a pid file in any case; two generations must not share
// one. The shell becomes the server, so its pid is the server's.
func withPID(program, script string, args ...string) []string {
	return append([]string{"/bin/sh", "-c", script, program}, args...)
}

func NginxCommand(variant string) func(testing.TB, *Site) []string {
	return func(t testing.TB, s *Site) []string {
		s.Variant = variant
		return withPID(RequireProgram(t, "nginx"),
			`exec "$0" -p "$1" -c "$2" -e stderr -g "daemon off; pid $$.pid;"`,
			s.Dir, s.configure(t, "nginx/nginx.conf"))
	}
}

func ApacheCommand(t testing.TB, s *Site) []string {
	return withPID(RequireProgram(t, "apache2"),
		`exec "$0" -f "$1" -c "PidFile $$.pid" -D FOREGROUND`,
		s.configure(t, "apache/httpd.conf"))
}

// haproxy answers nothing by itself: what it passes on is the test's.
func HaproxyCommand(t testing.TB, s *Site) []string {
	s.Backend = s.fixtures.backend(t)
	return []string{RequireProgram(t, "haproxy"), "-db", "-f", s.configure(t, "haproxy/haproxy.cfg")}
}

func CaddyCommand(t testing.TB, s *Site) []string {
	return []string{RequireProgram(t, "caddy"), "run", "--adapter", "caddyfile",
		"--config", s.configure(t, "caddy/Caddyfile")}
}

func LighttpdCommand(t testing.TB, s *Site) []string {
	return []string{RequireProgram(t, "lighttpd"), "-D", "-f", s.configure(t, "lighttpd/lighttpd.conf")}
}

func GunicornCommand(t testing.TB, s *Site) []string {
	return []string{RequireProgram(t, "gunicorn"), "--bind", s.Address, "--workers", "2",
		"--log-level", "critical", "--chdir", Testdata(t, "servers/python"), "application:wsgi"}
}

func UvicornCommand(t testing.TB, s *Site) []string {
	return []string{RequireProgram(t, "uvicorn"), "--host", s.Host, "--port", s.Port, "--lifespan", "off",
		"--log-level", "critical", "--app-dir", Testdata(t, "servers/python"), "application:asgi"}
}

func PumaCommand(t testing.TB, s *Site) []string {
	return []string{RequireProgram(t, "puma"), "--config", "-", "--quiet", "--environment", "production",
		"--bind", "tcp://" + s.Address, Testdata(t, "servers/puma/config.ru")}
}

func PythonModuleCommand(t testing.TB, s *Site) []string {
	return []string{RequireProgram(t, "python3"), "-m", "http.server",
		"--bind", s.Host, "--directory", s.Root, s.Port}
}

func PythonBlockingCommand(t testing.TB, s *Site) []string {
	return []string{RequireProgram(t, "python3"), Testdata(t, "servers/python/blocking.py"), s.Host, s.Port}
}

func PhpCommand(t testing.TB, s *Site) []string {
	return []string{RequireProgram(t, "php"), "-q", "-q", "-S", s.Address, "-t", s.Root}
}

func NodeCommand(manner string) func(testing.TB, *Site) []string {
	return func(t testing.TB, s *Site) []string {
		return []string{RequireProgram(t, "node"), Testdata(t, "servers/node/server.js"), s.Host, s.Port, manner}
	}
}

func GoServerCommand(manner string) func(testing.TB, *Site) []string {
	return func(t testing.TB, s *Site) []string { return []string{s.fixtures.goServer(t), s.Address, manner} }
}

// Java starts fast rather than getting fast: it never runs for long.
func JavaCommand(manner string) func(testing.TB, *Site) []string {
	return func(t testing.TB, s *Site) []string {
		return []string{RequireProgram(t, "java"), "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xshare:auto",
			"-cp", s.fixtures.javaClasses(t), "Server", s.Host, s.Port, manner}
	}
}

func RedisCommand(t testing.TB, s *Site) []string {
	return []string{RequireProgram(t, "redis-server"), "--bind", s.Host, "--port", s.Port,
		"--save", "", "--daemonize", "no", "--dir", s.Dir, "--loglevel", "warning"}
}

func MemcachedCommand(t testing.TB, s *Site) []string {
	command := []string{RequireProgram(t, "memcached"), "-l", s.Host, "-p", s.Port, "-U", "0", "-m", "16"}
	if s.User != "" {
		command = append(command, "-u", s.User)
	}
	return command
}
