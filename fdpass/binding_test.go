package fdpass

import (
	"errors"
	"net/netip"
	"path/filepath"
	"syscall"
	"testing"
)

func binding(at string) Binding {
	return Binding{Network: "tcp", Addr: netip.MustParseAddrPort(at)}.Exact()
}

func TestOverlaps(t *testing.T) {
	only := binding("[::]:80")
	only.V6Only = true
	device := binding("0.0.0.0:80")
	device.Device = 7
	other := device
	other.Device = 8
	udp := binding("0.0.0.0:80")
	udp.Network = "udp"
	for _, test := range []struct {
		a, b Binding
		want bool
	}{
		{binding("127.0.0.1:80"), binding("127.0.0.1:80"), false}, // equal
		{binding("127.0.0.1:80"), binding("127.0.0.2:80"), false},
		{binding("127.0.0.1:80"), binding("0.0.0.0:81"), false},
		{binding("127.0.0.1:80"), binding("0.0.0.0:80"), true},
		{binding("127.0.0.1:80"), udp, false},
		{binding("127.0.0.1:80"), binding("[::]:80"), true},
		{binding("127.0.0.1:80"), only, false},
		{binding("127.0.0.1:80"), binding("[::ffff:127.0.0.1]:80"), true},
		{binding("0.0.0.0:80"), binding("[::]:80"), true},
		{binding("0.0.0.0:80"), only, false},
		{binding("[::1]:80"), only, true},
		{device, binding("127.0.0.1:80"), true},
		{device, other, false},
	} {
		if test.a.Overlaps(test.b) != test.want || test.b.Overlaps(test.a) != test.want {
			t.Errorf("%s and %s overlap: want %v", test.a.Form(), test.b.Form(), test.want)
		}
	}
}

// TestBindingOf: what was resolved and bound is what the kernel tells.
func TestBindingOf(t *testing.T) {
	for _, text := range []string{"127.0.0.1:0", "udp://127.0.0.1:0", "tcp4://:0", "tcp6://:0", "[::1]:0", ":0?v6only=1", "udp://:0"} {
		b, err := Resolve(parse(t, text))
		must(t, err)
		if b.Addr.Addr().Is6() && !haveIPv6() {
			continue
		}
		fd, err := b.Bind(nil)
		must(t, err)
		have, err := BindingOf(fd)
		must(t, err)
		if have.Addr.Port() == 0 || have.WithPort(0) != b {
			t.Errorf("%s is %+v and is bound to %+v", text, b, have)
		}
		if l, err := LocalOf(fd); err != nil || l.Network != b.Network || l.String() != have.String() {
			t.Errorf("%s is at %+v, %v", text, l, err)
		}
		closeDescriptor(fd)
	}
	own := openOwn(t, filepath.Join(t.TempDir(), "s"))
	if b, err := BindingOf(own.FD); err == nil {
		t.Errorf("a unix socket is bound to %v", b)
	}
	if _, err := LocalOf(1 << 20); !errors.Is(err, syscall.EBADF) {
		t.Errorf("%v, want EBADF", err)
	}
}
