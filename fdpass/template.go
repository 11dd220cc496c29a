package fdpass

import (
	"errors"
	"fmt"
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// templatePattern matches the forms that are replaced and nothing else; a
// second brace in front, and one only, makes the form stand for itself. A name
// with other letters in it cannot be a socket's, so that JSON and programs for
// awk pass.
var templatePattern = regexp.MustCompile(`\{?\{(?:(fd|addr|host|port)(:[A-Za-z0-9._-]*)?|generation)\}`)

// errNoTemplateSocket is the cause where there is no socket to speak of.
var errNoTemplateSocket = errors.New("the worker is given no sockets")

// Expand replaces the templates in one argument or one value of a variable:
// {fd:NAME}, {addr:NAME}, {host:NAME} and {port:NAME}, without the name for
// the only or first socket, and {generation}. {addr} is the address as it is
// bound, with brackets around IPv6 ("[::]:8080") or a unix socket's path;
// {host} is without brackets. {{fd:NAME} writes {fd:NAME}, and every other
// brace passes untouched.
//
// A name that no socket has is an error, and so is asking for the host or the
// port of a unix socket; with an error the string is empty.
func (h Handoff) Expand(s string) (string, error) {
	return replaceTemplates(s, h.templateValue)
}

// CheckTemplates finds in args what Expand would not know, before there is
// anything to expand: names are those of the sockets that the worker will get.
func CheckTemplates(args []string, names []string) error {
	h := Handoff{Sockets: make([]Passed, len(names))}
	for i, name := range names {
		h.Sockets[i].Name = name
	}
	for _, arg := range args {
		if _, err := replaceTemplates(arg, h.checkTemplate); err != nil {
			return err
		}
	}
	return nil
}

// replaceTemplates asks value for each template in s. What value has written
// is not looked at again.
func replaceTemplates(s string, value func(kind, name string, named bool) (string, error)) (string, error) {
	var b strings.Builder
	end := 0
	for _, m := range templatePattern.FindAllStringSubmatchIndex(s, -1) {
		b.WriteString(s[end:m[0]])
		end = m[1]
		form := s[m[0]:m[1]]
		if literal, ok := strings.CutPrefix(form, "{{"); ok {
			b.WriteString("{" + literal)
			continue
		}
		kind, name, named := strings.Cut(strings.Trim(form, "{}"), ":")
		v, err := value(kind, name, named)
		if err != nil {
			return "", fmt.Errorf("cannot expand %s: %w; for the literal text write {%s", form, err, form)
		}
		b.WriteString(v)
	}
	b.WriteString(s[end:])
	return b.String(), nil
}

func (h Handoff) templateValue(kind, name string, named bool) (string, error) {
	if kind == "generation" {
		return strconv.Itoa(h.Generation), nil
	}
	socket, err := h.templateSocket(name, named)
	if err != nil {
		return "", err
	}
	switch kind {
	case "fd":
		return strconv.Itoa(socket.FD), nil
	case "addr":
		return socket.Addr, nil
	}
	return socket.hostOrPort(kind)
}

// checkTemplate is templateValue without the value, which needs a socket that
// is bound.
func (h Handoff) checkTemplate(kind, name string, named bool) (string, error) {
	if kind == "generation" {
		return "", nil
	}
	_, err := h.templateSocket(name, named)
	return "", err
}

func (h Handoff) templateSocket(name string, named bool) (Passed, error) {
	if len(h.Sockets) == 0 {
		return Passed{}, errNoTemplateSocket
	}
	if !named {
		return h.Sockets[0], nil
	}
	i := slices.IndexFunc(h.Sockets, func(s Passed) bool { return s.Name == name })
	if i < 0 {
		return Passed{}, fmt.Errorf("no socket is named %q (there are: %s)", name, h.socketNames())
	}
	return h.Sockets[i], nil
}

func (h Handoff) socketNames() string {
	names := make([]string, len(h.Sockets))
	for i, s := range h.Sockets {
		names[i] = s.Name
	}
	return strings.Join(names, ", ")
}

func (s Passed) hostOrPort(kind string) (string, error) {
	if s.isUnix() {
		return "", fmt.Errorf("the unix socket %q has no %s: its path is {addr:%s}", s.Name, kind, s.Name)
	}
	host, port, err := net.SplitHostPort(s.Addr)
	if err != nil {
		return "", fmt.Errorf("the socket %q is bound to %q, which is not a host and a port", s.Name, s.Addr)
	}
	if kind == "host" {
		return host, nil
	}
	return port, nil
}
