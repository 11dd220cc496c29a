//go:build linux

package capture

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/moult/moult/fdpass"
	"github.com/moult/moult/fdpass/group"
	"github.com/moult/moult/fdpass/intercept"
	"github.com/moult/moult/supervisor/e2e/testkit/leak"
)

func TestMain(m *testing.M) {
	_ = group.SelfTest() // has the runtime open what it keeps
	leak.Main(m)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// stage is a worker's socket and whom its calls meet: a kernel that does with the
// socket what the real one would do, and a desk that answers as it is told.
type stage struct {
	t      testing.TB
	worker *Worker
	fd     int // the worker's socket

	denied             error // of Duplicate
	foreign, lowly     bool  // in other namespaces; without the right to low ports
	interrupted        bool  // the caller hears no answer
	running            bool  // not starting any more
	verdict            func(*Asked)
	known, inUse       string
	asked, alone       []string
	ends, duplicates   int
	answer             syscall.Errno
	proceeded, showing bool
}

func newStage(t testing.TB, domain, kind int) *stage {
	t.Helper()
	check := leak.Check(t)
	fd, err := unix.Socket(domain, kind|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	s := &stage{t: t, fd: fd, verdict: (*Asked).Proceed}
	s.worker = New(Desk{
		Known:    func(network, key string) bool { return s.known == network+" "+key },
		Starting: func() bool { return !s.running },
		Ask: func(a *Asked) {
			s.asked = append(s.asked, describe(a))
			s.verdict(a)
		},
		Alone: func(reason string) { s.alone = append(s.alone, reason) },
		Named: func(base string) bool { return base == "sock" },
		Shows: func(os.FileInfo) bool { return s.showing },
		InUse: func(fdpass.Binding, int) string { return s.inUse },
	})
	t.Cleanup(func() {
		s.worker.Ready()
		unix.Close(s.fd)
		check()
	})
	return s
}

// describe writes a question down.
func describe(a *Asked) string {
	text := "bind"
	if a.Listen {
		text = fmt.Sprint("listen ", a.Backlog)
	}
	text += fmt.Sprintf(" %s %q", a.Network, a.Key)
	if a.ReusePort {
		text += " reuseport"
	}
	if a.Private {
		text += " private"
	}
	return text + a.Refusal + a.Alone
}

func (s *stage) Duplicate() (int, error) {
	s.duplicates++
	if s.denied != nil {
		return -1, s.denied
	}
	return unix.FcntlInt(uintptr(s.fd), unix.F_DUPFD_CLOEXEC, 3)
}

func (s *stage) Inode() (uint64, error) {
	var st unix.Stat_t
	err := unix.Fstat(s.fd, &st)
	return st.Ino, err
}

func (s *stage) Flags() (nonblock, cloexec bool, err error) {
	flags, err := unix.FcntlInt(uintptr(s.fd), unix.F_GETFL, 0)
	return flags&unix.O_NONBLOCK != 0, true, err
}

func (s *stage) Protocol() (string, error) {
	name := make([]byte, 64)
	n, err := unix.Getxattr(fmt.Sprintf("/proc/self/fd/%d", s.fd), "system.sockprotoname", name)
	return strings.TrimRight(string(name[:max(n, 0)]), "\x00"), err
}

func (s *stage) Replace(fd int, _ bool) error { return unix.Dup3(fd, s.fd, unix.O_CLOEXEC) }

func (s *stage) Answer(errno syscall.Errno) error {
	s.ends++
	s.answer, s.proceeded = errno, false
	if s.interrupted {
		return intercept.ErrGone
	}
	return nil
}

func (s *stage) Proceed() error {
	s.ends++
	s.proceeded = true
	return nil
}

func (s *stage) SharesNetwork() bool   { return !s.foreign }
func (s *stage) SharesFiles() bool     { return !s.foreign }
func (s *stage) MayBindLowPorts() bool { return !s.lowly }

// take is one call, which has to be ended once.
func (s *stage) take(c intercept.Call) {
	s.t.Helper()
	c.PID, c.TID, c.FD, s.ends = os.Getpid(), unix.Gettid(), s.fd, 0
	if s.worker.Take(&c, s); s.ends != 1 {
		s.t.Fatalf("%+v was ended %d times", c, s.ends)
	}
}

// bind does what the worker does: the call, and what the kernel makes of it.
func (s *stage) bind(sockaddr []byte, sa unix.Sockaddr) error {
	s.t.Helper()
	s.take(intercept.Call{Kind: intercept.Bind, Address: sockaddr})
	return s.native(func() error {
		if sa == nil {
			return nil
		}
		return unix.Bind(s.fd, sa)
	})
}

// native is what the call returns in the worker.
func (s *stage) native(call func() error) error {
	switch {
	case s.proceeded:
		return call()
	case s.answer != 0:
		return s.answer
	}
	return nil
}

func (s *stage) bindTo(b fdpass.Binding) error {
	s.t.Helper()
	return s.bind(sockaddr(b.String()), &unix.SockaddrInet4{Port: int(b.Addr.Port()), Addr: b.Addr.Addr().As4()})
}

func (s *stage) listen() error {
	s.t.Helper()
	s.take(intercept.Call{Kind: intercept.ListenCall, Backlog: 5})
	return s.native(func() error { return unix.Listen(s.fd, 5) })
}

func (s *stage) set(level, name, value int) {
	s.t.Helper()
	must(s.t, unix.SetsockoptInt(s.fd, level, name, value))
	if s.denied != nil {
		raw := binary.NativeEndian.AppendUint32(nil, uint32(value))
		s.take(intercept.Call{Kind: intercept.SetOption, Level: level, Option: name, Value: raw})
	}
}

func (s *stage) option(level, name int) int {
	s.t.Helper()
	n, err := unix.GetsockoptInt(s.fd, level, name)
	must(s.t, err)
	return n
}

func (s *stage) shares() string {
	return fmt.Sprint(s.option(unix.SOL_SOCKET, unix.SO_REUSEADDR), s.option(unix.SOL_SOCKET, unix.SO_REUSEPORT))
}

// sockaddr is an address as bind(2) takes it: of inet, or a unix path or "@name".
func sockaddr(at string) []byte {
	ap, err := netip.ParseAddrPort(at)
	if err != nil {
		return append(binary.NativeEndian.AppendUint16(nil, unix.AF_UNIX), strings.Replace(at, "@", "\x00", 1)...)
	}
	port := binary.BigEndian.AppendUint16(nil, ap.Port())
	if ap.Addr().Is4() {
		raw := append(binary.NativeEndian.AppendUint16(nil, unix.AF_INET), port...)
		return append(append(raw, ap.Addr().AsSlice()...), make([]byte, 8)...)
	}
	raw := append(binary.NativeEndian.AppendUint16(nil, unix.AF_INET6), port...)
	return append(append(append(raw, 0, 0, 0, 0), ap.Addr().AsSlice()...), 0, 0, 0, 0)
}

// Each row is one bind(2), what it is asked about, and how often the socket had
// to be looked at for that.
func TestBind(t *testing.T) {
	const in4, in6, stream, packets = unix.AF_INET, unix.AF_INET6, unix.SOCK_STREAM, unix.SOCK_DGRAM
	dir := t.TempDir()
	first, _ := clientPorts()
	reuse := func(names ...int) func(*stage) {
		return func(s *stage) {
			for _, name := range names {
				s.set(unix.SOL_SOCKET, name, 1)
			}
		}
	}
	running := func(known string) func(*stage) { return func(s *stage) { s.running, s.known = true, known } }
	for _, c := range []struct {
		name         string
		domain, kind int
		at           string
		before       func(*stage)
		want         string
		looks        int
	}{
		{"port 0", in4, stream, "127.0.0.1:0", nil, "", 0},
		{"port 0 of IPv6", in6, stream, "[::1]:0", nil, "", 0},
		{"an explicit port", in4, stream, "127.0.0.1:8080", nil, `bind tcp "127.0.0.1:8080"`, 1},
		{"all addresses", in4, stream, "0.0.0.0:8080", nil, `bind tcp "0.0.0.0:8080"`, 1},
		{"SO_REUSEPORT", in4, stream, "127.0.0.1:8080", reuse(unix.SO_REUSEPORT), `bind tcp "127.0.0.1:8080" reuseport`, 1},
		{"in use", in4, stream, "127.0.0.1:8080", func(s *stage) { s.inUse = ": it is in use" }, `bind tcp "127.0.0.1:8080": it is in use`, 1},
		{"IPv6", in6, stream, "[::1]:8080", nil, `bind tcp "[::1]:8080"`, 1},
		{"both families", in6, stream, "[::]:8080", func(s *stage) { s.set(unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0) }, `bind tcp "[::]:8080"`, 1},
		{"IPv6 alone", in6, stream, "[::]:8080", func(s *stage) { s.set(unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1) }, `bind tcp "[::]:8080 for IPv6 alone"`, 1},
		{"an address of another family", in4, stream, "[::1]:8080", nil, "", 1},
		{"a client", in4, stream, "127.0.0.1:8080", func(s *stage) { s.set(unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1) }, "", 1},
		{"another network namespace", in4, stream, "127.0.0.1:8080", func(s *stage) { s.foreign = true }, "", 1},
		{"a second bind", in4, stream, "127.0.0.1:8080", func(s *stage) { must(s.t, unix.Bind(s.fd, &unix.SockaddrInet4{})) }, "", 1},
		{"while it serves", in4, stream, "127.0.0.1:8080", running(""), "", 0},
		{"while it serves, a known port", in4, stream, "127.0.0.1:8080", running("tcp port 8080"), "", 1},
		{"a descriptor that is none", in4, stream, "127.0.0.1:8080", func(s *stage) { s.denied = unix.EBADF }, "", 1},
		{"UDP", in4, packets, "127.0.0.1:5300", nil, `bind udp "127.0.0.1:5300"`, 1},
		{"UDP, shared by wish", in4, packets, "127.0.0.1:5300", reuse(unix.SO_REUSEADDR), "", 1},
		{"UDP, multicast", in4, packets, "224.0.0.251:5300", nil, "", 1},
		{"UDP, broadcast", in4, packets, "255.255.255.255:5300", nil, "", 1},
		{"UDP, a client's port", in4, packets, fmt.Sprint("127.0.0.1:", first), nil, "", 1},
		{"UDP, a low port", in4, packets, "127.0.0.1:53", nil, `bind udp "127.0.0.1:53"`, 1},
		{"UDP, a low port without the right", in4, packets, "127.0.0.1:1", func(s *stage) { s.lowly = true }, "", 1},
		{"a path", unix.AF_UNIX, stream, dir + "/sock", nil, `bind unix "` + dir + `/sock"`, 1},
		{"a path with its pid", unix.AF_UNIX, stream, fmt.Sprintf("%s/s-%d", dir, os.Getpid()), nil, fmt.Sprintf(`bind unix "%s/s-%d" private`, dir, os.Getpid()), 1},
		{"a path with a longer number", unix.AF_UNIX, stream, fmt.Sprintf("%s/s-1%d", dir, os.Getpid()), nil, fmt.Sprintf(`bind unix "%s/s-1%d"`, dir, os.Getpid()), 1},
		{"an abstract name", unix.AF_UNIX, stream, "@moult-test", nil, `bind unix "@moult-test"`, 1},
		{"a path in another root", unix.AF_UNIX, stream, dir + "/sock", func(s *stage) { s.foreign = true }, "", 1},
		{"a path that is unknown while it serves", unix.AF_UNIX, stream, dir + "/sock", running(""), "", 1},
		{"a unix socket for datagrams", unix.AF_UNIX, packets, dir + "/sock", nil, "", 1},
		{"netlink", unix.AF_NETLINK, packets, "@\x00\x00", nil, "", 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newStage(t, c.domain, c.kind)
			if c.before != nil {
				c.before(s)
			}
			must(t, s.bind(sockaddr(c.at), nil))
			if got := strings.Join(s.asked, "; "); got != c.want || s.duplicates != c.looks || !s.proceeded {
				t.Errorf("%s was asked, want %s; %d looks, want %d", got, c.want, s.duplicates, c.looks)
			}
		})
	}
}

// freeBinding is an address on loopback that nobody has.
func freeBinding(t testing.TB) fdpass.Binding {
	t.Helper()
	fd, err := fdpass.Binding{Network: "tcp", Addr: netip.MustParseAddrPort("127.0.0.1:0")}.Bind(nil)
	must(t, err)
	defer unix.Close(fd)
	b, err := fdpass.BindingOf(fd)
	must(t, err)
	return b
}

// Each row is a socket of the second generation on an address of the first, with
// duplicates and without.
func TestTwoGenerations(t *testing.T) {
	for _, denied := range []error{nil, unix.EPERM} {
		b := freeBinding(t)
		g := group.LearnInet(b, group.Options{})
		if g.Describe().How != group.Steered {
			t.Skip(g.Describe().Why)
		}
		for gen := 1; gen < 4; gen++ {
			s := newStage(t, unix.AF_INET, unix.SOCK_STREAM)
			s.denied = denied
			s.set(unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
			s.set(unix.SOL_SOCKET, unix.SO_RCVBUF, 20000)
			must(t, unix.SetNonblock(s.fd, true))
			if gen > 1 {
				s.verdict = func(a *Asked) { a.Permit(g) }
			}
			must(t, s.bindTo(b))
			if want := map[bool]string{true: "1 0", false: "1 1"}[gen == 1]; s.shares() != want {
				t.Errorf("generation %d, %v: shares %s, want %s", gen, denied, s.shares(), want)
			}
			s.verdict = func(a *Asked) {
				m, err := a.Adopt(g, gen)
				if a.End(err); err == nil && m.Inode() != a.sock.Inode && denied == nil {
					t.Error("another socket was adopted")
				}
			}
			must(t, s.listen())
			if want := fmt.Sprintf("bind tcp %q; listen 5 tcp %q", b.Form(), b.Form()); !strings.HasPrefix(strings.Join(s.asked, "; "), want) {
				t.Errorf("generation %d, %v: asked %q, want %s", gen, denied, s.asked, want)
			}
			nonblock, _, _ := s.Flags()
			if len(g.Members()) != gen || denied == nil && len(s.worker.bound) > 0 || s.option(unix.SOL_SOCKET, unix.SO_ACCEPTCONN) != 1 || s.option(unix.SOL_SOCKET, unix.SO_RCVBUF) != 40000 || !nonblock {
				t.Errorf("generation %d, %v: %d members; does not listen, or has lost what was set", gen, denied, len(g.Members()))
			}
			inode, _ := s.Inode()
			s.verdict = func(a *Asked) {
				if a.Inode != inode {
					t.Error("listening again is not about the member")
				}
				a.End(a.Resume(g, g.Members()[gen-1]))
			}
			must(t, s.listen())
		}
		s := newStage(t, unix.AF_INET, unix.SOCK_STREAM)
		s.denied = denied
		m := g.Members()[0]
		s.verdict = func(a *Asked) { a.End(a.Claim(m)) }
		must(t, s.bindTo(b))
		if inode, _ := s.Inode(); inode != m.Inode() {
			t.Errorf("%v: the member did not take the socket's place", denied)
		}
		g.Close()
	}
}

func TestVerdictsThatEndACall(t *testing.T) {
	b := freeBinding(t)
	shared := group.LearnInet(b, group.Options{Share: true})
	defer shared.Close()
	for _, c := range []struct {
		name    string
		verdict func(*Asked)
		want    error // nil: it goes on
		shares  string
	}{
		{"proceed", (*Asked).Proceed, nil, "0 0"},
		{"beside", (*Asked).Beside, nil, "1 1"},
		{"deny", func(a *Asked) { a.Deny(unix.ENOBUFS) }, unix.ENOBUFS, "0 0"},
		{"an errno", func(a *Asked) { a.End(os.NewSyscallError("bind", unix.EACCES)) }, unix.EACCES, "0 0"},
		{"an error without one", func(a *Asked) { a.End(errors.New("odd")) }, unix.EINVAL, "0 0"},
		{"the member is gone", func(a *Asked) { a.End(ErrGone) }, nil, "0 0"},
		{"it listens", func(a *Asked) { a.End(fmt.Errorf("no: %w", group.ErrListens)) }, nil, "0 0"},
		{"one socket for all, and nobody has it", func(a *Asked) { a.Permit(shared) }, nil, "0 0"},
	} {
		s := newStage(t, unix.AF_INET, unix.SOCK_STREAM)
		s.verdict = c.verdict
		if err := s.bind(sockaddr(b.String()), nil); err != c.want || s.proceeded != (c.want == nil) || s.shares() != c.shares {
			t.Errorf("%s: %v, want %v; shares %s", c.name, err, c.want, s.shares())
		}
	}
}

// A socket of which no bind was seen, or whose port the kernel chose, is of its
// process alone.
func TestListen(t *testing.T) {
	for _, c := range []struct {
		name   string
		domain int
		before func(*stage)
		want   string
	}{
		{"no bind was seen", unix.AF_INET, func(s *stage) { must(t, unix.Bind(s.fd, &unix.SockaddrInet4{})) }, `listen 5 tcp ""`},
		{"port 0", unix.AF_INET, func(s *stage) { must(t, s.bind(sockaddr("0.0.0.0:0"), &unix.SockaddrInet4{})) }, `listen 5 tcp ""`},
		{"no bind at all", unix.AF_INET, func(*stage) {}, `listen 5 tcp ""`},
		{"an abstract name", unix.AF_UNIX, func(s *stage) { must(t, unix.Bind(s.fd, &unix.SockaddrUnix{Name: "@moult-test-l"})) }, `listen 5 unix "@moult-test-l"`},
		{"a path that is gone", unix.AF_UNIX, func(s *stage) {
			path := t.TempDir() + "/s"
			must(t, s.bind(sockaddr(path), &unix.SockaddrUnix{Name: path}))
			must(t, os.Remove(path))
			s.asked = nil
		}, `cannot be found`},
	} {
		s := newStage(t, c.domain, unix.SOCK_STREAM)
		c.before(s)
		s.take(intercept.Call{Kind: intercept.ListenCall, Backlog: 5})
		if got := strings.Join(s.asked, "; "); !strings.Contains(got, c.want) || !s.proceeded {
			t.Errorf("%s: asked %s, want %s", c.name, got, c.want)
		}
	}
}

// A bind that the master has done, and whose caller a signal took away before it
// heard, is answered when it comes again.
func TestInterruptedBind(t *testing.T) {
	b := fdpass.Binding{Network: "udp", Addr: netip.MustParseAddrPort("127.0.0.1:5300")} // no client gets this port
	g := group.LearnInet(b, group.Options{})
	defer g.Close()
	s := newStage(t, unix.AF_INET, unix.SOCK_DGRAM)
	s.interrupted = true
	s.verdict = func(a *Asked) {
		_, err := a.Adopt(g, 1)
		a.End(err)
	}
	must(t, s.bindTo(b))
	s.interrupted = false
	must(t, s.bindTo(b))
	if len(s.asked) != 1 || s.proceeded || s.answer != 0 || len(g.Members()) != 1 {
		t.Errorf("asked %q, proceeded %v, answer %v", s.asked, s.proceeded, s.answer)
	}
	if err := s.bindTo(b); !s.proceeded || err != unix.EINVAL {
		t.Errorf("a second bind: proceeded %v, %v", s.proceeded, err)
	}
}

// Where it could not at listen(2), a socket of ours takes the place of the
// worker's at bind(2), which is the master's then.
func TestSubstituteAtBind(t *testing.T) {
	for shares, verdict := range map[string]func(*Asked){"1 0": (*Asked).Proceed, "1 1": (*Asked).Beside} {
		b := freeBinding(t)
		s := newStage(t, unix.AF_INET, unix.SOCK_STREAM)
		s.denied, s.verdict = unix.EPERM, verdict
		must(t, s.bindTo(b))
		if at, err := fdpass.BindingOf(s.fd); s.proceeded || err != nil || at != b || s.shares() != shares {
			t.Errorf("proceeded %v, bound to %s, %v; shares %s", s.proceeded, at, err, s.shares())
		}
		if must(t, s.bind(sockaddr(b.String()), nil)); len(s.asked) != 1 || !s.proceeded {
			t.Errorf("a second bind: asked %q, proceeded %v", s.asked, s.proceeded)
		}
	}
}

// A path is bound by the master where a substitute has to take its place, and
// what took it is closed once, whatever becomes of listen(2).
func TestSubstituteOfAPath(t *testing.T) {
	for _, fails := range []bool{false, true} {
		path := filepath.Join(t.TempDir(), "sock")
		g := group.LearnPath(path, group.Options{})
		s := newStage(t, unix.AF_UNIX, unix.SOCK_STREAM)
		s.denied = unix.EPERM
		must(t, s.bind(sockaddr(path), nil))
		if info, err := os.Lstat(path); err != nil || info.Mode()&os.ModeSocket == 0 || s.proceeded {
			t.Fatalf("%v, proceeded %v", err, s.proceeded)
		}
		if must(t, s.bind(sockaddr(path), nil)); len(s.asked) != 1 || !s.proceeded {
			t.Errorf("a second bind: asked %q, proceeded %v", s.asked, s.proceeded)
		}
		if fails {
			must(t, unix.Listen(s.fd, 1))
		}
		s.verdict = func(a *Asked) {
			_, err := a.Adopt(g, 1)
			a.End(err)
		}
		must(t, s.listen())
		if s.proceeded != fails || len(g.Members()) == 0 != fails {
			t.Errorf("proceeded %v, %d members", s.proceeded, len(g.Members()))
		}
		r, w, err := os.Pipe() // has the number that is free now
		must(t, err)
		s.worker.Ready()
		w.Close()
		if err := r.Close(); err != nil {
			t.Error("a descriptor of somebody else's was closed: ", err)
		}
		g.Close()
	}
}

func TestUnlinkAndOthers(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(dir+"/sock", nil, 0o600))
	must(t, os.WriteFile(dir+"/file", nil, 0o600))
	for _, c := range []struct {
		name           string
		call           intercept.Call
		shows, foreign bool
		proceeds       bool
	}{
		{"of a path of ours", intercept.Call{Kind: intercept.Unlink, Path: dir + "/sock"}, true, false, false},
		{"of another file with its name", intercept.Call{Kind: intercept.Unlink, Path: dir + "/sock"}, false, false, true},
		{"of another name", intercept.Call{Kind: intercept.Unlink, Path: dir + "/file"}, true, false, true},
		{"in another root", intercept.Call{Kind: intercept.Unlink, Path: dir + "/sock"}, true, true, true},
		{"of what is not there", intercept.Call{Kind: intercept.Unlink, Path: dir + "/no/sock"}, true, false, true},
		{"a call that is not known", intercept.Call{Kind: 99}, true, false, true},
		{"what cannot be looked at", intercept.Call{Kind: intercept.Bind, Err: unix.EACCES}, true, false, true},
	} {
		s := newStage(t, unix.AF_UNIX, unix.SOCK_STREAM)
		s.showing, s.foreign = c.shows, c.foreign
		s.take(c.call)
		if s.proceeded != c.proceeds || s.answer != 0 || len(s.asked) != 0 || (c.call.Err != nil) != (len(s.alone) == 1) {
			t.Errorf("%s: proceeded %v, alone %q", c.name, s.proceeded, s.alone)
		}
	}
}

func FuzzTake(f *testing.F) {
	for _, at := range []string{"127.0.0.1:80", "[::1]:80", "@name", "/a/path", "@"} {
		for how := range uint8(6) {
			f.Add(sockaddr(at), how)
		}
	}
	f.Fuzz(func(t *testing.T, address []byte, how uint8) {
		domains := []int{unix.AF_INET, unix.AF_INET6, unix.AF_UNIX}
		s := newStage(t, domains[int(how)%3], 1+int(how/3)%2) // SOCK_STREAM, SOCK_DGRAM
		s.running = how&64 != 0
		s.take(intercept.Call{Kind: intercept.Bind, Address: address[:min(len(address), 128)]})
		s.take(intercept.Call{Kind: intercept.ListenCall})
	})
}
