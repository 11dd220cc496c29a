package fdpass

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os/user"
	"slices"
	"strconv"
	"strings"
)

// An addressOption is one that may stand behind the '?' of an address.
type addressOption struct {
	name string
	// fits tells whether the option means anything to such an address, and
	// what tells people to which ones it does.
	fits func(Address) bool
	what string
	set  func(a *Address, value string) error
	// get is the value to print, "" for the default.
	get func(Address) string
}

// addressOptions stand in the order in which String writes them.
var addressOptions = []addressOption{
	{"backlog", takesBacklog, "sockets that accept connections", setBacklogOption, getBacklogOption},
	{"mode", hasSocketFile, "unix sockets with a path", setModeOption, getModeOption},
	{"owner", hasSocketFile, "unix sockets with a path", setOwnerOption, getOwnerOption},
	{"reuseport", Address.isInet, "tcp and udp", setReusePortOption, getReusePortOption},
	{"v6only", takesV6Only, "tcp, tcp6, udp and udp6 with an IPv6 address or none", setV6OnlyOption, getV6OnlyOption},
}

func (a *Address) parseOptions(query string) error {
	seen := make(map[string]bool)
	for part := range strings.SplitSeq(query, "&") {
		name, value, _ := strings.Cut(part, "=")
		if seen[name] {
			return fmt.Errorf("the option %s= stands there twice", name)
		}
		seen[name] = true
		if err := a.setOption(name, value); err != nil {
			return err
		}
	}
	return nil
}

func (a *Address) setOption(name, value string) error {
	i := slices.IndexFunc(addressOptions, func(o addressOption) bool { return o.name == name })
	if i < 0 {
		return fmt.Errorf("unknown option %q (there are: %s)", name, optionNames())
	}
	o := addressOptions[i]
	if !o.fits(*a) {
		return fmt.Errorf("the option %s= does not apply to %s://%s: it is for %s", name, a.Network, a.target(), o.what)
	}
	if err := o.set(a, value); err != nil {
		return fmt.Errorf("bad option %s=%s: %w", name, value, err)
	}
	return nil
}

func optionNames() string {
	names := make([]string, len(addressOptions))
	for i, o := range addressOptions {
		names[i] = o.name
	}
	return strings.Join(names, ", ")
}

// options are those that differ from their default, ready to print.
func (a Address) options() []string {
	var list []string
	for _, o := range addressOptions {
		if value := o.get(a); value != "" {
			list = append(list, o.name+"="+value)
		}
	}
	return list
}

// takesBacklog leaves out datagram sockets only: what came from outside may
// well accept connections.
func takesBacklog(a Address) bool {
	return !strings.HasPrefix(a.Network, "udp") && a.Network != "unixgram"
}

func hasSocketFile(a Address) bool { return a.isUnixFamily() && !a.isAbstract() }

func takesV6Only(a Address) bool {
	if !a.isInet() || strings.HasSuffix(a.Network, "4") {
		return false
	}
	return a.Host == "" || strings.Contains(a.Host, ":")
}

func setBacklogOption(a *Address, value string) error {
	n, err := strconv.ParseInt(value, 10, 32)
	if err != nil || n < 1 {
		return errors.New("write a number from 1 upwards")
	}
	a.Backlog = int(n)
	return nil
}

func getBacklogOption(a Address) string {
	if a.Backlog == 0 {
		return ""
	}
	return strconv.Itoa(a.Backlog)
}

func setModeOption(a *Address, value string) error {
	mode, err := strconv.ParseUint(value, 8, 32)
	if err != nil || mode > uint64(fs.ModePerm) {
		return errors.New("write the permissions in octal, from 0 to 0777, as in 0660")
	}
	a.Mode, a.HasMode = fs.FileMode(mode), true
	return nil
}

func getModeOption(a Address) string {
	if !a.HasMode {
		return ""
	}
	return fmt.Sprintf("%04o", uint32(a.Mode))
}

func setOwnerOption(a *Address, value string) error {
	owner, group, hasGroup := strings.Cut(value, ":")
	if owner == "" && group == "" || hasGroup && group == "" {
		return errors.New("write USER:GROUP, USER or :GROUP")
	}
	uid, err := ownerID(owner, lookupUID)
	if err != nil {
		return err
	}
	gid, err := ownerID(group, lookupGID)
	if err != nil {
		return err
	}
	a.UID, a.GID = uid, gid
	return nil
}

func getOwnerOption(a Address) string {
	var s string
	if a.UID >= 0 {
		s = strconv.Itoa(a.UID)
	}
	if a.GID >= 0 {
		s += ":" + strconv.Itoa(a.GID)
	}
	if !hasSocketFile(a) {
		return ""
	}
	return s
}

// ownerID takes a number for what it is, without asking whether anybody has
// it, so that images without /etc/passwd work; "" is -1, which leaves the
// owner alone.
func ownerID(s string, lookup func(string) (string, error)) (int, error) {
	if s == "" {
		return -1, nil
	}
	if !isDigits(s) {
		found, err := lookup(s)
		if err != nil {
			return 0, err
		}
		s = found
	}
	// All ones is chown's "leave it alone", and a number that does not fit
	// must not turn into a small one.
	id, err := strconv.ParseUint(s, 10, 32)
	if err != nil || id == math.MaxUint32 || id > math.MaxInt {
		return 0, fmt.Errorf("the id %s is out of range", s)
	}
	return int(id), nil
}

func lookupUID(name string) (string, error) {
	u, err := user.Lookup(name)
	if err != nil {
		return "", fmt.Errorf("there is no user %q: add it, or write its number", name)
	}
	return u.Uid, nil
}

func lookupGID(name string) (string, error) {
	g, err := user.LookupGroup(name)
	if err != nil {
		return "", fmt.Errorf("there is no group %q: add it, or write its number", name)
	}
	return g.Gid, nil
}

func setReusePortOption(a *Address, value string) (err error) {
	a.ReusePort, err = parseSwitch(value)
	return err
}

func getReusePortOption(a Address) string { return printSwitch(a.ReusePort) }

func setV6OnlyOption(a *Address, value string) (err error) {
	a.V6Only, err = parseSwitch(value)
	return err
}

func getV6OnlyOption(a Address) string { return printSwitch(a.V6Only) }

func parseSwitch(value string) (bool, error) {
	if value != "0" && value != "1" {
		return false, errors.New("write 1 for yes or 0 for no")
	}
	return value == "1", nil
}

func printSwitch(on bool) string {
	if !on {
		return ""
	}
	return "1"
}
