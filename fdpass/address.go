package fdpass

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// DefaultBacklog is the length of the accept queue of a socket that asks for
// none. The kernel cuts it down to net.core.somaxconn, whose default on Linux
// is the same number.
const DefaultBacklog = 4096

// MaxUnixPath is what fits into a sockaddr_un with the closing NUL byte: 107
// bytes on Linux, 103 on the BSDs.
const MaxUnixPath = len(syscall.RawSockaddrUnix{}.Path) - 1

// Address is one socket that the master is asked to open:
// "web=tcp://:8080?backlog=512". It is a plain value: equal addresses compare
// equal, and copying one copies all of it.
type Address struct {
	// Name is what templates, LISTEN_FDNAMES and the status call the socket:
	// letters, digits, '.', '_' and '-'. Where none is given it is derived
	// from the address: the port, the base name of a unix path, "fd3", or the
	// name that systemd knows the socket by.
	Name string

	// Network is "tcp", "tcp4", "tcp6", "udp", "udp4", "udp6", "unix",
	// "unixgram", "fd" or "systemd".
	Network string

	// Host and Port belong to the inet networks. Host is a literal address
	// without brackets, or a name that is resolved when the socket is opened;
	// "" is every address. Port 0 lets the kernel choose.
	Host string
	Port int

	// Path belongs to unix and unixgram: absolute, or "@name" for a socket in
	// Linux's abstract namespace.
	Path string

	// FD belongs to the network "fd": a descriptor that the master inherited.
	FD int

	// Unit belongs to the network "systemd": the socket's name in
	// LISTEN_FDNAMES.
	Unit string

	// Spec is the address without name, scheme and options, as
	// SERVER_STARTER_PORT quotes it: "8080" for ":8080", "127.0.0.1:80",
	// "[::1]:80", "/path". It is empty for fd and systemd, whose addresses
	// show only once the socket is there.
	Spec string

	// Backlog is the length of the accept queue; 0 stands for DefaultBacklog,
	// and for "leave it alone" where the socket came from outside.
	Backlog int

	// Mode holds the permission bits for the socket file of a unix path. It
	// counts only if HasMode is set: mode=0 is a mode, too.
	Mode    fs.FileMode
	HasMode bool

	// UID and GID own the socket file of a unix path; -1 leaves the owner or
	// the group as it is.
	UID, GID int

	// ReusePort asks for SO_REUSEPORT, so that programs other than the
	// master's may listen on the same port; V6Only for IPV6_V6ONLY.
	ReusePort, V6Only bool
}

// ParseAddress reads [NAME=]ADDR[?OPTION=VALUE&...]. ADDR is a port ("8080",
// ":8080", ":http"), a host and port, a path ("/run/web.sock", "./web.sock"),
// an abstract name ("@web"), or any of these behind a scheme, "tcp://" and so
// on; "fd://3" and "systemd://web" name sockets that exist already. Nothing in
// it is percent-decoded, and the first '?' begins the options.
//
// Relative paths are made absolute and owners are looked up here; names of
// hosts are not. With an error the Address is the zero value.
func ParseAddress(s string) (Address, error) {
	a, _, err := parseAddress(s)
	return a, err
}

// ParseAddresses reads a list of addresses and makes their names unique: a
// name that was derived gets "-2", "-3" and so on where it is taken, a name
// that was given twice is an error, and so is the same address twice.
func ParseAddresses(list []string) ([]Address, error) {
	addrs := make([]Address, len(list))
	explicit := make([]bool, len(list))
	taken := make(map[string]string)
	for i, s := range list {
		a, named, err := parseAddress(s)
		if err != nil {
			return nil, err
		}
		if j := slices.IndexFunc(addrs[:i], a.sameSocket); j >= 0 {
			return nil, addressError(s, "it is the same socket as %q: leave one of them out", list[j])
		}
		if other, ok := taken[a.Name]; named && ok {
			return nil, addressError(s, "the name %q belongs to %q already: choose another one", a.Name, other)
		}
		if named {
			taken[a.Name] = s
		}
		addrs[i], explicit[i] = a, named
	}
	numberDerivedNames(addrs, explicit, taken)
	return addrs, nil
}

// numberDerivedNames comes after all given names are known, so that a derived
// one never takes a name which somebody asked for further down the list.
func numberDerivedNames(addrs []Address, explicit []bool, taken map[string]string) {
	for i := range addrs {
		if explicit[i] {
			continue
		}
		base := addrs[i].Name
		for n := 2; ; n++ {
			if _, ok := taken[addrs[i].Name]; !ok {
				break
			}
			addrs[i].Name = base + "-" + strconv.Itoa(n)
		}
		taken[addrs[i].Name] = addrs[i].Spec
	}
}

// sameSocket tells whether opening both would fail in every case, whatever
// the options. Port 0 is a different port each time.
func (a Address) sameSocket(b Address) bool {
	return a.Network == b.Network && a.target() == b.target() && (a.Port != 0 || !a.isInet())
}

// String returns the canonical form, with a scheme, the options that differ
// from their default in a fixed order, and the name where it is not the one
// that would be derived. ParseAddress makes the same Address of it.
func (a Address) String() string {
	var b strings.Builder
	if a.Name != a.derivedName() {
		b.WriteString(a.Name + "=")
	}
	b.WriteString(a.Network + "://" + a.target())
	if options := a.options(); len(options) > 0 {
		b.WriteString("?" + strings.Join(options, "&"))
	}
	return b.String()
}

// target is what stands between the scheme and the options.
func (a Address) target() string {
	switch {
	case a.isInet():
		return net.JoinHostPort(a.Host, strconv.Itoa(a.Port))
	case a.Network == "fd":
		return strconv.Itoa(a.FD)
	case a.Network == "systemd":
		return a.Unit
	}
	return a.Path
}

func (a Address) isInet() bool {
	return strings.HasPrefix(a.Network, "tcp") || strings.HasPrefix(a.Network, "udp")
}

func (a Address) isUnixFamily() bool { return strings.HasPrefix(a.Network, "unix") }

func (a Address) isAbstract() bool { return strings.HasPrefix(a.Path, "@") }

// derivedName is the name of a socket that was not given one.
func (a Address) derivedName() string {
	switch {
	case a.isInet():
		return strconv.Itoa(a.Port)
	case a.Network == "fd":
		return "fd" + strconv.Itoa(a.FD)
	case a.Network == "systemd":
		return nameFrom(a.Unit)
	}
	return nameFrom(path.Base(strings.TrimPrefix(a.Path, "@")))
}

// nameFrom replaces what may not stand in a socket's name: LISTEN_FDNAMES has
// no way to escape its colons.
func nameFrom(s string) string {
	return strings.Map(func(r rune) rune {
		if isNameRune(r) {
			return r
		}
		return '_'
	}, s)
}

func isNameRune(r rune) bool {
	return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune("._-", r)
}

func isSocketName(s string) bool { return s != "" && nameFrom(s) == s }

// addressError names the address as it was asked for; the format tells the
// place and the way out.
func addressError(s, format string, args ...any) error {
	return fmt.Errorf("cannot use the address %q: %w", s, fmt.Errorf(format, args...))
}

func parseAddress(s string) (a Address, named bool, err error) {
	a = Address{UID: -1, GID: -1}
	if err := a.parse(s, &named); err != nil {
		return Address{}, false, addressError(s, "%w", err)
	}
	return a, named, nil
}

func (a *Address) parse(s string, named *bool) error {
	if strings.ContainsFunc(s, isControl) {
		return errors.New("it contains a control character")
	}
	rest, query, hasQuery := strings.Cut(s, "?")
	name, rest, hasName := cutName(rest)
	if err := a.parseTarget(rest); err != nil {
		return err
	}
	if hasQuery {
		if err := a.parseOptions(query); err != nil {
			return err
		}
	}
	if *named = hasName; !hasName {
		name = a.derivedName()
	}
	if !isSocketName(name) {
		return fmt.Errorf("bad name %q: a name is made of letters, digits, '.', '_' and '-'", name)
	}
	a.Name = name
	return nil
}

func isControl(r rune) bool { return r < ' ' || r == 0x7f }

// cutName splits "web=:80". A slash before the '=' means that the '=' is part
// of a path, since no name contains one.
func cutName(s string) (name, rest string, ok bool) {
	name, rest, ok = strings.Cut(s, "=")
	if !ok || strings.Contains(name, "/") {
		return "", s, false
	}
	return name, rest, true
}

// addressSchemes are the networks as they may be asked for, in the order in
// which errors list them.
var addressSchemes = []string{"tcp", "tcp4", "tcp6", "udp", "udp4", "udp6", "unix", "unixgram", "fd", "systemd"}

func (a *Address) parseTarget(s string) error {
	network, target, err := splitScheme(s)
	if err != nil {
		return err
	}
	a.Network = network
	switch {
	case a.isInet():
		return a.parseInet(target)
	case network == "fd":
		return a.parseFD(target)
	case network == "systemd":
		return a.parseUnit(target)
	}
	return a.parsePath(target)
}

// splitScheme finds the network, also where it is not spelled out.
func splitScheme(s string) (network, target string, err error) {
	if looksLikePath(s) {
		return "unix", s, nil
	}
	if scheme, target, ok := strings.Cut(s, "://"); ok {
		if !slices.Contains(addressSchemes, scheme) {
			return "", "", fmt.Errorf("unknown scheme %q (there are: %s)", scheme, strings.Join(addressSchemes, ", "))
		}
		return scheme, target, nil
	}
	scheme, target, ok := strings.Cut(s, ":")
	if !ok || !slices.Contains(addressSchemes, scheme) {
		return "tcp", s, nil
	}
	if strings.HasPrefix(scheme, "unix") && looksLikePath(target) {
		return scheme, target, nil
	}
	return "", "", fmt.Errorf("%q needs two slashes behind the scheme: write %s://%s", s, scheme, target)
}

func looksLikePath(s string) bool {
	for _, prefix := range []string{"/", "./", "../", "@"} {
		if strings.HasPrefix(s, prefix) {
			return true
		}
	}
	return false
}

func (a *Address) parseInet(s string) error {
	if s == "" {
		return errors.New(`it has no port: write ":8080" or "HOST:8080"`)
	}
	host, port, err := splitHostPort(s)
	if err != nil {
		return err
	}
	if host == "*" {
		host = ""
	}
	if err := checkHost(host, a.Network); err != nil {
		return err
	}
	if a.Port, err = parsePort(port, a.Network); err != nil {
		return err
	}
	a.Host = host
	a.Spec = net.JoinHostPort(a.Host, strconv.Itoa(a.Port))
	if a.Host == "" {
		a.Spec = strconv.Itoa(a.Port)
	}
	return nil
}

// splitHostPort takes a bare number for a port, which is what people type.
func splitHostPort(s string) (host, port string, err error) {
	if isDigits(s) {
		return "", s, nil
	}
	host, port, err = net.SplitHostPort(s)
	switch {
	case err == nil:
		return host, port, nil
	case !strings.Contains(s, ":"):
		return "", "", fmt.Errorf(`%q has no port: write "%s:8080", or "./%s" if it is a unix socket`, s, s, s)
	case strings.Count(s, ":") > 1 && !strings.Contains(s, "["):
		return "", "", fmt.Errorf("%q has too many colons: an IPv6 address stands in brackets, as in [::1]:8080", s)
	}
	return "", "", fmt.Errorf("%q is not HOST:PORT: write 127.0.0.1:8080 or [::1]:8080", s)
}

func isDigits(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}

// checkHost finds what can only be a mistake before anything is opened.
// Whether a name resolves is found out when the socket is opened.
func checkHost(host, network string) error {
	if host == "" {
		return nil
	}
	ip, err := netip.ParseAddr(host)
	switch {
	case err != nil:
		return checkHostName(host)
	case strings.HasSuffix(network, "4") && !ip.Is4():
		return fmt.Errorf("%s is not an IPv4 address: write %s6://", host, strings.TrimSuffix(network, "4"))
	case strings.HasSuffix(network, "6") && ip.Is4():
		return fmt.Errorf("%s is not an IPv6 address: write %s4://", host, strings.TrimSuffix(network, "6"))
	}
	return nil
}

func checkHostName(host string) error {
	if strings.Trim(host, "0123456789.") == "" {
		return fmt.Errorf("bad host %q: an IPv4 address has four numbers from 0 to 255", host)
	}
	if !isSocketName(host) {
		return fmt.Errorf("bad host %q: it is neither an IP address nor the name of a host", host)
	}
	return nil
}

func parsePort(s, network string) (int, error) {
	if isDigits(s) {
		port, err := strconv.ParseUint(s, 10, 16)
		if err != nil {
			return 0, fmt.Errorf("bad port %q: ports go from 0 to 65535", s)
		}
		return int(port), nil
	}
	// LookupPort takes "" for 0, and signs for part of a number.
	if s == "" || !isSocketName(s) || s[0] == '-' {
		return 0, fmt.Errorf("bad port %q: write a number from 0 to 65535 or the name of a service", s)
	}
	port, err := net.LookupPort(network, s)
	if err != nil {
		return 0, fmt.Errorf("bad port %q: no service has this name (see /etc/services); write the number", s)
	}
	return port, nil
}

func (a *Address) parseFD(s string) error {
	fd, err := strconv.ParseUint(s, 10, 31)
	if err != nil {
		return fmt.Errorf("bad descriptor %q: write the number of an open one, as in fd://3", s)
	}
	a.FD = int(fd)
	return nil
}

func (a *Address) parseUnit(s string) error {
	if s == "" || strings.Contains(s, ":") {
		return fmt.Errorf("bad name %q: write the FileDescriptorName= of the systemd socket, as in systemd://web", s)
	}
	a.Unit = s
	return nil
}

func (a *Address) parsePath(s string) error {
	if strings.HasPrefix(s, "@") {
		if s == "@" {
			return errors.New(`the abstract name is empty: write "unix://@NAME"`)
		}
		return a.setPath(s)
	}
	if base := path.Base(s); s == "" || strings.HasSuffix(s, "/") || base == "." || base == ".." {
		return fmt.Errorf(`%q is not the path of a socket: write "%s:///run/NAME.sock"`, s, a.Network)
	}
	abs, err := filepath.Abs(s)
	if err != nil {
		return fmt.Errorf("cannot make %q absolute: %w", s, err)
	}
	return a.setPath(abs)
}

func (a *Address) setPath(s string) error {
	if len(s) > MaxUnixPath {
		return fmt.Errorf("the path %q has %d bytes: the limit for unix sockets is %d", s, len(s), MaxUnixPath)
	}
	a.Path, a.Spec = s, s
	return nil
}
