package fdpass

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// tcpAddress is what most rows of the table share.
func tcpAddress(name, host string, port int, spec string) Address {
	return Address{Name: name, Network: "tcp", Host: host, Port: port, Spec: spec, UID: -1, GID: -1}
}

func unixAddress(name, path string) Address {
	return Address{Name: name, Network: "unix", Path: path, Spec: path, UID: -1, GID: -1}
}

func TestParseAddress(t *testing.T) {
	// A checkout may lie too deep for the path of a unix socket.
	t.Chdir(os.TempDir())
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	with := func(a Address, change func(*Address)) Address {
		change(&a)
		return a
	}
	web := tcpAddress("web", "", 8080, "8080")
	for _, tc := range []struct {
		in, canonical string
		want          Address
	}{
		{":8080", "tcp://:8080", tcpAddress("8080", "", 8080, "8080")},
		{"8080", "tcp://:8080", tcpAddress("8080", "", 8080, "8080")},
		{"*:8080", "tcp://:8080", tcpAddress("8080", "", 8080, "8080")},
		{"tcp://8080", "tcp://:8080", tcpAddress("8080", "", 8080, "8080")},
		{":0", "tcp://:0", tcpAddress("0", "", 0, "0")},
		{":http", "tcp://:80", tcpAddress("80", "", 80, "80")},
		{"127.0.0.1:8080", "tcp://127.0.0.1:8080", tcpAddress("8080", "127.0.0.1", 8080, "127.0.0.1:8080")},
		{"[::1]:8080", "tcp://[::1]:8080", tcpAddress("8080", "::1", 8080, "[::1]:8080")},
		{"[fe80::1%eth0]:80", "tcp://[fe80::1%eth0]:80", tcpAddress("80", "fe80::1%eth0", 80, "[fe80::1%eth0]:80")},
		{"localhost:8080", "tcp://localhost:8080", tcpAddress("8080", "localhost", 8080, "localhost:8080")},
		{"web=:8080", "web=tcp://:8080", web},
		{"8080=:8080", "tcp://:8080", tcpAddress("8080", "", 8080, "8080")},
		{"web=tcp://:8080?backlog=512", "web=tcp://:8080?backlog=512",
			with(web, func(a *Address) { a.Backlog = 512 })},
		{"web=tcp4://:8080", "web=tcp4://:8080", with(web, func(a *Address) { a.Network = "tcp4" })},
		{"web=tcp6://:8080?v6only=1", "web=tcp6://:8080?v6only=1",
			with(web, func(a *Address) { a.Network, a.V6Only = "tcp6", true })},
		{"web=:8080?v6only=1&reuseport=1&backlog=7", "web=tcp://:8080?backlog=7&reuseport=1&v6only=1",
			with(web, func(a *Address) { a.Backlog, a.ReusePort, a.V6Only = 7, true, true })},
		{"web=:8080?reuseport=0&v6only=0", "web=tcp://:8080", web},
		{"web=udp://:8080", "web=udp://:8080", with(web, func(a *Address) { a.Network = "udp" })},
		{"udp6://[::1]:53", "udp6://[::1]:53",
			with(tcpAddress("53", "::1", 53, "[::1]:53"), func(a *Address) { a.Network = "udp6" })},

		{"/run/web.sock", "unix:///run/web.sock", unixAddress("web.sock", "/run/web.sock")},
		{"unix:/run/web.sock", "unix:///run/web.sock", unixAddress("web.sock", "/run/web.sock")},
		{"unix:///run/web.sock", "unix:///run/web.sock", unixAddress("web.sock", "/run/web.sock")},
		{"./w.s", "unix://" + filepath.Join(dir, "w.s"), unixAddress("w.s", filepath.Join(dir, "w.s"))},
		{"../w.s", "unix://" + filepath.Join(dir, "../w.s"), unixAddress("w.s", filepath.Join(dir, "../w.s"))},
		{"unix://w.s", "unix://" + filepath.Join(dir, "w.s"), unixAddress("w.s", filepath.Join(dir, "w.s"))},
		{"/run/a=b.sock", "unix:///run/a=b.sock", unixAddress("a_b.sock", "/run/a=b.sock")},
		{"web=/run/a=b.sock", "web=unix:///run/a=b.sock", unixAddress("web", "/run/a=b.sock")},
		{"/run/my app:1", "unix:///run/my app:1", unixAddress("my_app_1", "/run/my app:1")},
		{"/run/100%25.sock", "unix:///run/100%25.sock", unixAddress("100_25.sock", "/run/100%25.sock")},
		{"unix://@web", "unix://@web", unixAddress("web", "@web")},
		{"@org/web", "unix://@org/web", unixAddress("web", "@org/web")},
		{"unix:///run/web.sock?mode=0660&owner=10:20", "unix:///run/web.sock?mode=0660&owner=10:20",
			with(unixAddress("web.sock", "/run/web.sock"), func(a *Address) {
				a.Mode, a.HasMode, a.UID, a.GID = 0o660, true, 10, 20
			})},
		{"/run/w?mode=0", "unix:///run/w?mode=0000",
			with(unixAddress("w", "/run/w"), func(a *Address) { a.HasMode = true })},
		{"/run/w?owner=10", "unix:///run/w?owner=10", with(unixAddress("w", "/run/w"), func(a *Address) { a.UID = 10 })},
		{"/run/w?owner=:20", "unix:///run/w?owner=:20", with(unixAddress("w", "/run/w"), func(a *Address) { a.GID = 20 })},
		{"/run/w?owner=root", "unix:///run/w?owner=0", with(unixAddress("w", "/run/w"), func(a *Address) { a.UID = 0 })},
		{"unixgram:///run/log", "unixgram:///run/log",
			with(unixAddress("log", "/run/log"), func(a *Address) { a.Network = "unixgram" })},

		{"fd://3", "fd://3", Address{Name: "fd3", Network: "fd", FD: 3, UID: -1, GID: -1}},
		{"web=fd://0?backlog=9", "web=fd://0?backlog=9",
			Address{Name: "web", Network: "fd", Backlog: 9, UID: -1, GID: -1}},
		{"systemd://web@1.socket", "systemd://web@1.socket",
			Address{Name: "web_1.socket", Network: "systemd", Unit: "web@1.socket", UID: -1, GID: -1}},
	} {
		got, err := ParseAddress(tc.in)
		if err != nil || got != tc.want {
			t.Errorf("ParseAddress(%q) = %+v, %v\nwant %+v", tc.in, got, err, tc.want)
			continue
		}
		if s := got.String(); s != tc.canonical {
			t.Errorf("ParseAddress(%q).String() = %q, want %q", tc.in, s, tc.canonical)
		}
	}
}

func TestParseAddressErrors(t *testing.T) {
	long := "/" + strings.Repeat("x", MaxUnixPath)
	for _, tc := range []struct {
		in   string
		want []string // what the message has to name beside the address
	}{
		{"", []string{"no port", ":8080"}},
		{"web=", []string{"no port"}},
		{":", []string{`bad port ""`}},
		{"tcp://", []string{"no port"}},
		{":65536", []string{`bad port "65536"`, "0 to 65535"}},
		{":-1", []string{`bad port "-1"`}},
		{":+80", []string{`bad port "+80"`}},
		{"tcp://:80/", []string{`bad port "80/"`}},
		{":no-such-service", []string{`bad port "no-such-service"`, "/etc/services"}},
		{"localhost", []string{"no port", "localhost:8080", "./localhost"}},
		{"::1:8080", []string{"brackets", "[::1]:8080"}},
		{"[::1]", []string{"HOST:PORT"}},
		{"256.0.0.1:80", []string{`bad host "256.0.0.1"`}},
		{"a b:80", []string{`bad host "a b"`}},
		{"tcp4://[::1]:80", []string{"::1 is not an IPv4", "tcp6://"}},
		{"udp6://127.0.0.1:80", []string{"127.0.0.1 is not an IPv6", "udp4://"}},
		{"http://:80", []string{`unknown scheme "http"`, "tcp", "systemd"}},
		{"tcp:8080", []string{"tcp://8080"}},
		{"unix:8080", []string{"unix://8080"}},
		{"fd:3", []string{"fd://3"}},
		{"fd://x", []string{`bad descriptor "x"`}},
		{"fd://-1", []string{`bad descriptor "-1"`}},
		{"systemd://", []string{`bad name ""`, "FileDescriptorName="}},
		{"systemd://a:b", []string{`bad name "a:b"`}},
		{"unix://", []string{"not the path"}},
		{"/run/dir/", []string{"not the path"}},
		{"/run/..", []string{"not the path"}},
		{"unix://@", []string{"abstract name is empty"}},
		{"/run/\x00x", []string{"control character"}},
		{long, []string{"the limit"}},
		{"unix://@" + long, []string{"the limit"}},
		{"=:80", []string{`bad name ""`}},
		{"a:b=:80", []string{`bad name "a:b"`, "letters"}},
		{"a b=:80", []string{`bad name "a b"`}},
		{"é=:80", []string{`bad name "é"`}},
		{":80?", []string{`unknown option ""`, "backlog, mode, owner, reuseport, v6only"}},
		{":80?color=red", []string{`unknown option "color"`, "backlog"}},
		{":80?backlog=1&backlog=2", []string{"backlog=", "twice"}},
		{":80?backlog=0", []string{"backlog=0"}},
		{":80?backlog=many", []string{"backlog=many"}},
		{":80?reuseport=yes", []string{"reuseport=yes", "1"}},
		{":80?mode=0600", []string{"mode=", "tcp://:80", "unix sockets"}},
		{"udp://:80?backlog=1", []string{"backlog=", "udp://:80"}},
		{"unix://@x?mode=0600", []string{"mode=", "unix://@x"}},
		{"unix://@x?owner=1", []string{"owner=", "unix://@x"}},
		{"/run/x?reuseport=1", []string{"reuseport=", "tcp and udp"}},
		{"fd://3?reuseport=1", []string{"reuseport="}},
		{"tcp4://:80?v6only=1", []string{"v6only=", "tcp4://:80"}},
		{"127.0.0.1:80?v6only=1", []string{"v6only=", "127.0.0.1"}},
		{"/run/x?mode=0888", []string{"mode=0888", "octal"}},
		{"/run/x?mode=1777", []string{"mode=1777", "0777"}},
		{"/run/x?owner=", []string{"owner=", "USER:GROUP"}},
		{"/run/x?owner=1:", []string{"owner=1:", "USER:GROUP"}},
		{"/run/x?owner=no-such-user", []string{`no user "no-such-user"`}},
		{"/run/x?owner=:no-such-group", []string{`no group "no-such-group"`}},
		{"/run/x?owner=4294967295", []string{"4294967295", "out of range"}},
		{"/run/x?owner=99999999999999999999", []string{"out of range"}},
	} {
		got, err := ParseAddress(tc.in)
		if err == nil {
			t.Errorf("ParseAddress(%q) = %+v, want an error", tc.in, got)
			continue
		}
		if got != (Address{}) {
			t.Errorf("ParseAddress(%q): partial result %+v beside the error", tc.in, got)
		}
		assertMentions(t, err, append(tc.want, "cannot use the address", tc.in)...)
	}
}

// assertMentions looks for each word in the message, quoted or not.
func assertMentions(t *testing.T, err error, words ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("no error, want one that mentions %q", words)
		return
	}
	for _, word := range words {
		quoted := strings.ReplaceAll(word, "\x00", `\x00`)
		if !strings.Contains(err.Error(), quoted) {
			t.Errorf("error %q does not mention %q", err, word)
		}
	}
}

func TestLongestUnixPathIsAccepted(t *testing.T) {
	path := "/" + strings.Repeat("x", MaxUnixPath-1)
	if _, err := ParseAddress(path); err != nil {
		t.Error(err)
	}
}

func TestParseAddressesNames(t *testing.T) {
	for _, tc := range []struct{ in, want []string }{
		{nil, []string{}},
		{[]string{"127.0.0.1:80", "[::1]:80", "udp://:80"}, []string{"80", "80-2", "80-3"}},
		{[]string{"/a/s", "80-2=:1", "127.0.0.1:80", "[::1]:80", "/b/s"}, []string{"s", "80-2", "80", "80-3", "s-2"}},
		{[]string{":80", "80=:81"}, []string{"80-2", "80"}},
		{[]string{":0", ":0"}, []string{"0", "0-2"}},
	} {
		addrs, err := ParseAddresses(tc.in)
		if err != nil {
			t.Errorf("ParseAddresses(%q): %v", tc.in, err)
			continue
		}
		names := make([]string, 0, len(addrs))
		again := make([]string, 0, len(addrs))
		for _, a := range addrs {
			names, again = append(names, a.Name), append(again, a.String())
		}
		if !reflect.DeepEqual(names, tc.want) {
			t.Errorf("ParseAddresses(%q) gives the names %q, want %q", tc.in, names, tc.want)
		}
		if reparsed, err := ParseAddresses(again); err != nil || !reflect.DeepEqual(reparsed, addrs) {
			t.Errorf("ParseAddresses(%q) = %+v, %v; want %+v", again, reparsed, err, addrs)
		}
	}
}

func TestParseAddressesErrors(t *testing.T) {
	for _, tc := range []struct{ in, want []string }{
		{[]string{"web=:80", "web=:81"}, []string{`"web=:81"`, `"web=:80"`, "name"}},
		{[]string{":80", "tcp://80?backlog=5"}, []string{`"tcp://80?backlog=5"`, `":80"`, "same socket"}},
		{[]string{"/run/x", "y=/run/x"}, []string{`"y=/run/x"`, `"/run/x"`, "same socket"}},
		{[]string{":80", ":99999"}, []string{`":99999"`}},
	} {
		got, err := ParseAddresses(tc.in)
		if got != nil {
			t.Errorf("ParseAddresses(%q): partial result %+v", tc.in, got)
		}
		assertMentions(t, err, tc.want...)
	}
}

func FuzzParseAddress(f *testing.F) {
	for _, s := range []string{
		":8080", "web=tcp://[::1]:80?backlog=5&v6only=1&reuseport=1", "unix://@a/b", "a=b=c", "=", "?", "/a?b=/c",
		"x=/run/y?mode=0&owner=1:2", "./%2f?", "fd://03", "systemd://a=b", "[::1%=]:0", "unix:@=", "tcp6://*:http", "//..",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := ParseAddress(s)
		if err != nil {
			if a != (Address{}) {
				t.Fatalf("ParseAddress(%q): %v, and yet %+v", s, err, a)
			}
			return
		}
		if !isSocketName(a.Name) {
			t.Errorf("ParseAddress(%q) gives the name %q", s, a.Name)
		}
		again, err := ParseAddress(a.String())
		if err != nil || again != a {
			t.Errorf("ParseAddress(%q) = %+v\nString gives %q, which is %+v, %v", s, a, a.String(), again, err)
		}
	})
}
