//go:build linux

package main

import "testing"

// anyServers are the servers with what each needs to stay in the foreground
// and to let a second one of its kind live beside it.
func anyServers() []anyServer {
	return []anyServer{
		{"nginx, TERM", "TERM", 16, webDialect, nginxCommand("")},
		{"nginx, QUIT", "QUIT", 16, webDialect, nginxCommand("")},
		{"nginx with reuseport, TERM", "TERM", 16, webDialect, nginxCommand("reuseport")},
		{"nginx with reuseport, QUIT", "QUIT", 16, webDialect, nginxCommand("reuseport")},
		{"Apache, TERM", "TERM", 16, webDialect, apacheCommand},
		{"Apache, WINCH", "WINCH", 16, webDialect, apacheCommand},
		{"haproxy, TERM", "TERM", 16, webDialect, haproxyCommand},
		{"haproxy, USR1", "USR1", 16, webDialect, haproxyCommand},
		{"Caddy", "TERM", 16, webDialect, caddyCommand},
		{"lighttpd, TERM", "TERM", 16, webDialect, lighttpdCommand},
		{"lighttpd, INT", "INT", 16, webDialect, lighttpdCommand},
		{"gunicorn", "TERM", 4, webDialect, gunicornCommand},
		{"uvicorn", "TERM", 16, webDialect, uvicornCommand},
		{"puma", "TERM", 16, webDialect, pumaCommand},
		{"python's http.server", "TERM", 8, webDialect, pythonModuleCommand},
		{"python, one connection at a time", "TERM", 4, webDialect, pythonBlockingCommand},
		{"PHP's own server", "TERM", 4, webDialect, phpCommand},
		{"node without a signal handler", "TERM", 16, webDialect, nodeCommand("dies")},
		{"node with server.close", "TERM", 16, webDialect, nodeCommand("closes")},
		{"Go without Shutdown", "TERM", 16, webDialect, goServerCommand("dies")},
		{"Go with Shutdown", "TERM", 16, webDialect, goServerCommand("shutdown")},
		{"java without a hook", "TERM", 16, webDialect, javaCommand("dies")},
		{"java with a hook", "TERM", 16, webDialect, javaCommand("hook")},
		{"redis", "TERM", 16, redisDialect, redisCommand},
		{"memcached", "TERM", 16, memcachedDialect, memcachedCommand},
	}
}

// nginx and Apache write a pid file in any case; two generations must not share
// one. The shell becomes the server, so its pid is the server's.
func withPID(program, script string, args ...string) []string {
	return append([]string{"/bin/sh", "-c", script, program}, args...)
}

func nginxCommand(variant string) func(testing.TB, *site) []string {
	return func(t testing.TB, s *site) []string {
		s.Variant = variant
		return withPID(requireProgram(t, "nginx"),
			`exec "$0" -p "$1" -c "$2" -e stderr -g "daemon off; pid $$.pid;"`,
			s.Dir, s.configure(t, "nginx/nginx.conf"))
	}
}

func apacheCommand(t testing.TB, s *site) []string {
	return withPID(requireProgram(t, "apache2"),
		`exec "$0" -f "$1" -c "PidFile $$.pid" -D FOREGROUND`,
		s.configure(t, "apache/httpd.conf"))
}

// haproxy answers nothing by itself: what it passes on is the test's.
func haproxyCommand(t testing.TB, s *site) []string {
	s.Backend = s.fixtures.backend(t)
	return []string{requireProgram(t, "haproxy"), "-db", "-f", s.configure(t, "haproxy/haproxy.cfg")}
}

func caddyCommand(t testing.TB, s *site) []string {
	return []string{requireProgram(t, "caddy"), "run", "--adapter", "caddyfile",
		"--config", s.configure(t, "caddy/Caddyfile")}
}

func lighttpdCommand(t testing.TB, s *site) []string {
	return []string{requireProgram(t, "lighttpd"), "-D", "-f", s.configure(t, "lighttpd/lighttpd.conf")}
}

func gunicornCommand(t testing.TB, s *site) []string {
	return []string{requireProgram(t, "gunicorn"), "--bind", s.Address, "--workers", "2",
		"--log-level", "critical", "--chdir", testdata(t, "servers/python"), "application:wsgi"}
}

func uvicornCommand(t testing.TB, s *site) []string {
	return []string{requireProgram(t, "uvicorn"), "--host", s.Host, "--port", s.Port, "--lifespan", "off",
		"--log-level", "critical", "--app-dir", testdata(t, "servers/python"), "application:asgi"}
}

func pumaCommand(t testing.TB, s *site) []string {
	return []string{requireProgram(t, "puma"), "--config", "-", "--quiet", "--environment", "production",
		"--bind", "tcp://" + s.Address, testdata(t, "servers/puma/config.ru")}
}

func pythonModuleCommand(t testing.TB, s *site) []string {
	return []string{requireProgram(t, "python3"), "-m", "http.server",
		"--bind", s.Host, "--directory", s.Root, s.Port}
}

func pythonBlockingCommand(t testing.TB, s *site) []string {
	return []string{requireProgram(t, "python3"), testdata(t, "servers/python/blocking.py"), s.Host, s.Port}
}

func phpCommand(t testing.TB, s *site) []string {
	return []string{requireProgram(t, "php"), "-q", "-q", "-S", s.Address, "-t", s.Root}
}

func nodeCommand(manner string) func(testing.TB, *site) []string {
	return func(t testing.TB, s *site) []string {
		return []string{requireProgram(t, "node"), testdata(t, "servers/node/server.js"), s.Host, s.Port, manner}
	}
}

func goServerCommand(manner string) func(testing.TB, *site) []string {
	return func(t testing.TB, s *site) []string { return []string{s.fixtures.goServer(t), s.Address, manner} }
}

// Java starts fast rather than getting fast: it never runs for long.
func javaCommand(manner string) func(testing.TB, *site) []string {
	return func(t testing.TB, s *site) []string {
		return []string{requireProgram(t, "java"), "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xshare:auto",
			"-cp", s.fixtures.javaClasses(t), "Server", s.Host, s.Port, manner}
	}
}

func redisCommand(t testing.TB, s *site) []string {
	return []string{requireProgram(t, "redis-server"), "--bind", s.Host, "--port", s.Port,
		"--save", "", "--daemonize", "no", "--dir", s.Dir, "--loglevel", "warning"}
}

func memcachedCommand(t testing.TB, s *site) []string {
	command := []string{requireProgram(t, "memcached"), "-l", s.Host, "-p", s.Port, "-U", "0", "-m", "16"}
	if s.User != "" {
		command = append(command, "-u", s.User)
	}
	return command
}
