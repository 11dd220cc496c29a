package fdpass

import (
	"slices"
	"testing"
)

// threeSockets are of the kinds that a Handoff treats differently.
func threeSockets() []Passed {
	return []Passed{
		{Name: "web", Spec: "8080", Network: "tcp", Addr: "[::]:8080", FD: 3},
		{Name: "admin", Spec: "127.0.0.1:9000", Network: "tcp", Addr: "127.0.0.1:9000", FD: 4},
		{Name: "app.sock", Spec: "/run/app.sock", Network: "unix", Addr: "/run/app.sock", FD: 5},
	}
}

func TestHandoffEnviron(t *testing.T) {
	listenFDs := []string{"LISTEN_FDS=3", "LISTEN_FDNAMES=web:admin:app.sock"}
	serverStarter := []string{
		"SERVER_STARTER_PORT=8080=3;127.0.0.1:9000=4;/run/app.sock=5",
		"SERVER_STARTER_GENERATION=7",
	}
	einhorn := []string{
		"EINHORN_FD_COUNT=3", "EINHORN_FD_0=3", "EINHORN_FD_1=4", "EINHORN_FD_2=5", "EINHORN_FDS=3 4 5",
	}
	for _, tc := range []struct {
		name      string
		protocols []Protocol
		want      []string
		pid       bool
	}{
		{"unset is auto", nil, slices.Concat(listenFDs, serverStarter, einhorn), true},
		{"auto", []Protocol{ProtocolAuto}, slices.Concat(listenFDs, serverStarter, einhorn), true},
		{"listen-fds alone", []Protocol{ProtocolListenFDs}, listenFDs, true},
		{"server-starter alone", []Protocol{ProtocolServerStarter}, serverStarter, false},
		{"both", []Protocol{ProtocolServerStarter, ProtocolListenFDs}, slices.Concat(listenFDs, serverStarter), true},
		{"none", []Protocol{ProtocolNone}, nil, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := Handoff{Sockets: threeSockets(), Protocols: tc.protocols, Generation: 7}
			if got := h.Environ(); !slices.Equal(got, tc.want) {
				t.Errorf("Environ() = %q\nwant %q", got, tc.want)
			}
			if got := h.NeedsListenPID(); got != tc.pid {
				t.Errorf("NeedsListenPID() = %v", got)
			}
		})
	}
}

func TestHandoffWithoutSocketsSetsNothing(t *testing.T) {
	h := Handoff{Generation: 1}
	if env := h.Environ(); len(env) != 0 || h.NeedsListenPID() {
		t.Errorf("Environ() = %q, NeedsListenPID() = %v", env, h.NeedsListenPID())
	}
}

func TestListenFDsNeedsDescriptorsFromThreeOn(t *testing.T) {
	for _, fds := range [][2]int{{0, 3}, {4, 5}, {4, 3}, {3, 5}} {
		h := Handoff{Protocols: []Protocol{ProtocolListenFDs}}
		for _, fd := range fds {
			h.Sockets = append(h.Sockets, Passed{Name: "x", Network: "tcp", Addr: "127.0.0.1:80", FD: fd})
		}
		if env := h.Environ(); len(env) != 0 || h.NeedsListenPID() {
			t.Errorf("descriptors %v: Environ() = %q, NeedsListenPID() = %v", fds, env, h.NeedsListenPID())
		}
	}
}

func TestServerStarterSpec(t *testing.T) {
	for _, tc := range []struct {
		socket Passed
		want   string // "": the socket is left out
	}{
		{Passed{Spec: "80", Network: "tcp", Addr: "[::]:80"}, "80"},
		{Passed{Spec: "[::1]:80", Network: "tcp", Addr: "[::1]:80"}, "[::1]:80"},
		{Passed{Spec: "localhost:80", Network: "tcp", Addr: "127.0.0.1:80"}, "localhost:80"},
		{Passed{Spec: "0", Network: "tcp", Addr: "[::]:4321"}, "4321"},
		{Passed{Spec: "127.0.0.1:0", Network: "tcp", Addr: "127.0.0.1:4321"}, "127.0.0.1:4321"},
		{Passed{Network: "tcp", Addr: "0.0.0.0:80"}, "80"},
		{Passed{Network: "tcp", Addr: "[::1]:80"}, "[::1]:80"},
		{Passed{Network: "unix", Addr: "/run/x"}, "/run/x"},
		{Passed{Network: "unix", Addr: "/run/[::]:1"}, "/run/[::]:1"},
		{Passed{Spec: "/run/x:0", Network: "unix", Addr: "/run/x:0"}, "/run/x:0"},
		{Passed{Spec: "53", Network: "udp", Addr: "[::]:53"}, "u53"},
		{Passed{Spec: "/run/log", Network: "unixgram", Addr: "/run/log"}, ""},
		{Passed{Spec: "/run/a=b", Network: "unix", Addr: "/run/a=b"}, ""},
		{Passed{Spec: "/run/a;b", Network: "unix", Addr: "/run/a;b"}, ""},
	} {
		got, ok := tc.socket.serverStarterSpec()
		if ok != (tc.want != "") || ok && got != tc.want {
			t.Errorf("%+v: %q, %v; want %q", tc.socket, got, ok, tc.want)
		}
	}
}

func TestServerStarterKeepsNeighboursOfWhatItCannotCarry(t *testing.T) {
	h := Handoff{Protocols: []Protocol{ProtocolServerStarter}, Sockets: []Passed{
		{Spec: "/run/a;b", Network: "unix", Addr: "/run/a;b", FD: 3},
		{Spec: "80", Network: "tcp", Addr: "[::]:80", FD: 4},
	}}
	if got := h.Environ(); got[0] != "SERVER_STARTER_PORT=80=4" {
		t.Errorf("Environ() = %q", got)
	}
	h.Sockets = h.Sockets[:1]
	if got := h.Environ(); len(got) != 0 {
		t.Errorf("with nothing to carry Environ() = %q", got)
	}
}

func TestParseProtocols(t *testing.T) {
	for _, tc := range []struct {
		in   []string
		want []Protocol
	}{
		{nil, []Protocol{ProtocolAuto}},
		{[]string{"auto"}, []Protocol{ProtocolAuto}},
		{[]string{"none"}, []Protocol{ProtocolNone}},
		{[]string{"none", "none"}, []Protocol{ProtocolNone}},
		{[]string{"server-starter", "listen-fds", "server-starter"}, []Protocol{ProtocolServerStarter, ProtocolListenFDs}},
	} {
		if got, err := ParseProtocols(tc.in); err != nil || !slices.Equal(got, tc.want) {
			t.Errorf("ParseProtocols(%q) = %q, %v; want %q", tc.in, got, err, tc.want)
		}
	}
}

func TestParseProtocolsErrors(t *testing.T) {
	for _, tc := range []struct{ in, want []string }{
		{[]string{"listen_fds"}, []string{`"listen_fds"`, "auto, listen-fds, server-starter, none"}},
		{[]string{"einhorn"}, []string{`"einhorn"`}},
		{[]string{""}, []string{`""`}},
		{[]string{"none", "auto"}, []string{`"none"`, "leave"}},
	} {
		got, err := ParseProtocols(tc.in)
		if got != nil {
			t.Errorf("ParseProtocols(%q) = %q beside an error", tc.in, got)
		}
		assertMentions(t, err, tc.want...)
	}
}
