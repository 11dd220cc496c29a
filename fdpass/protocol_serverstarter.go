package fdpass

import (
	"net"
	"net/netip"
	"strconv"
	"strings"
)

var serverStarterVariables = []string{"SERVER_STARTER_*"}

// serverStarterEnviron speaks the protocol of Perl's Server::Starter:
// SERVER_STARTER_PORT=spec=fd;spec=fd, where spec is the address as it was
// asked for, and the generation.
func (h Handoff) serverStarterEnviron() []string {
	var ports []string
	for _, s := range h.Sockets {
		if spec, ok := s.serverStarterSpec(); ok {
			ports = append(ports, spec+"="+strconv.Itoa(s.FD))
		}
	}
	if len(ports) == 0 {
		return nil
	}
	return []string{
		"SERVER_STARTER_PORT=" + strings.Join(ports, ";"),
		"SERVER_STARTER_GENERATION=" + strconv.Itoa(h.Generation),
	}
}

// serverStarterSpec is false for what the protocol cannot carry: it knows no
// unix datagrams, and a reader splits the list at ';' and '=' wherever they
// stand, so that such a path would garble its neighbours too.
func (s Passed) serverStarterSpec() (spec string, ok bool) {
	spec = s.Spec
	if spec == "" || spec == "0" || strings.HasSuffix(spec, ":0") && s.Network != "unix" {
		spec = s.boundSpec()
	}
	if s.Network == "udp" {
		// "u53" is how Server::Starter writes a UDP port.
		spec = "u" + spec
	}
	return spec, s.Network != "unixgram" && !strings.ContainsAny(spec, ";=")
}

// boundSpec stands in where nothing useful was asked for: a socket that came
// from outside, or a port that the kernel chose.
func (s Passed) boundSpec() string {
	host, port, err := net.SplitHostPort(s.Addr)
	if err != nil || s.isUnix() {
		return s.Addr
	}
	if ip, err := netip.ParseAddr(host); err == nil && ip.IsUnspecified() {
		return port
	}
	return s.Addr
}

func (s Passed) isUnix() bool { return strings.HasPrefix(s.Network, "unix") }
