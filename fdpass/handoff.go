package fdpass

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// firstPassedFD is the number of the first descriptor behind stdin, stdout and
// stderr: the one that exec.Cmd.ExtraFiles begins with and that
// sd_listen_fds(3) calls SD_LISTEN_FDS_START.
const firstPassedFD = 3

// Passed is one socket as a worker finds it.
type Passed struct {
	Name    string // Address.Name
	Spec    string // Address.Spec; "" makes server-starter quote Addr
	Network string // "tcp", "udp", "unix" or "unixgram"
	Addr    string // as bound: "127.0.0.1:8080", "[::]:8080", "/run/x.sock", "@x"
	FD      int    // in the worker
}

// Protocol is a way in which a worker learns of its sockets, as --protocol
// names it.
type Protocol string

// The protocols that a worker may be started with.
const (
	// ProtocolAuto speaks every protocol whose variables collide with none of
	// the others'.
	ProtocolAuto Protocol = "auto"
	// ProtocolListenFDs is systemd's: LISTEN_FDS, LISTEN_FDNAMES, LISTEN_PID.
	ProtocolListenFDs Protocol = "listen-fds"
	// ProtocolServerStarter is that of Perl's Server::Starter.
	ProtocolServerStarter Protocol = "server-starter"
	// ProtocolNone sets no variable, for servers that are given a descriptor
	// as an argument: "--fd {fd}".
	ProtocolNone Protocol = "none"
)

// A protocolEntry is one wire: the variables by which it speaks.
type protocolEntry struct {
	protocol Protocol
	// auto has the protocol spoken under "auto", and selectable alone as well.
	auto, selectable bool
	environ          func(Handoff) []string
	// variables are what a parent may have set for this protocol, and what
	// must not leak into a worker; "EINHORN_*" stands for all that begin so.
	variables []string
}

// protocolTable is where the next protocol goes. The order is that of the
// variables in Handoff.Environ and of the names in errors.
var protocolTable = []protocolEntry{
	{ProtocolListenFDs, true, true, Handoff.listenFDsEnviron, listenFDsVariables},
	{ProtocolServerStarter, true, true, Handoff.serverStarterEnviron, serverStarterVariables},
	// Not selectable: with einhorn alone a worker would acknowledge on
	// EINHORN_SOCK_PATH, and nothing listens there.
	{"einhorn", true, false, Handoff.einhornEnviron, einhornVariables},
}

// ParseProtocols reads what --protocol was given: "auto" if nothing. Naming a
// protocol twice is naming it once; "none" stands alone. An error comes with
// a nil list.
func ParseProtocols(list []string) ([]Protocol, error) {
	if len(list) == 0 {
		return []Protocol{ProtocolAuto}, nil
	}
	known := selectableProtocols()
	var protocols []Protocol
	for _, s := range list {
		p := Protocol(s)
		if !slices.Contains(known, s) {
			return nil, fmt.Errorf("cannot use the protocol %q: it is unknown (there are: %s)", s, strings.Join(known, ", "))
		}
		if !slices.Contains(protocols, p) {
			protocols = append(protocols, p)
		}
	}
	if len(protocols) > 1 && slices.Contains(protocols, ProtocolNone) {
		return nil, errors.New(`cannot use the protocol "none" together with others: leave one of the two out`)
	}
	return protocols, nil
}

func selectableProtocols() []string {
	names := []string{string(ProtocolAuto)}
	for _, e := range protocolTable {
		if e.selectable {
			names = append(names, string(e.protocol))
		}
	}
	return append(names, string(ProtocolNone))
}

// Handoff is everything that one worker is given. It holds numbers only: it
// owns no descriptor.
type Handoff struct {
	// Sockets stand in the order of their descriptors: 3, 4, 5 and so on.
	Sockets []Passed
	// Protocols come from ParseProtocols; an empty list means "auto".
	Protocols []Protocol
	// Generation counts the worker's generation from 1.
	Generation int
}

// Environ returns the variables to add to the worker's environment, each as
// "KEY=VALUE" and in the same order each time. LISTEN_PID is missing, since
// only the process that becomes the worker knows it (see NeedsListenPID), and
// so is what has nothing to do with sockets. A worker without sockets gets
// none of them.
func (h Handoff) Environ() []string {
	if len(h.Sockets) == 0 {
		return nil
	}
	var env []string
	for _, e := range protocolTable {
		if h.speaks(e) {
			env = append(env, e.environ(h)...)
		}
	}
	return env
}

func (h Handoff) speaks(e protocolEntry) bool {
	if len(h.Protocols) == 0 || slices.Contains(h.Protocols, ProtocolAuto) {
		return e.auto
	}
	return slices.Contains(h.Protocols, e.protocol)
}
