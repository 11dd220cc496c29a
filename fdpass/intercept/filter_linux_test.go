package intercept

import (
	"encoding/binary"
	"runtime"
	"testing"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

const (
	allowed   = unix.SECCOMP_RET_ALLOW
	notified  = unix.SECCOMP_RET_USER_NOTIF
	refused   = unix.SECCOMP_RET_ERRNO | int(unix.EPROTONOSUPPORT)
	pretended = unix.SECCOMP_RET_ERRNO
)

// seccompData is what the filter sees. The machine that runs it in the test
// loads words in the order of the network, the kernel in its own.
func seccompData(arch, nr uint32, args ...uint32) []byte {
	data := make([]byte, offArgs+6*argSize)
	binary.BigEndian.PutUint32(data[offNumber:], nr)
	binary.BigEndian.PutUint32(data[offArch:], arch)
	for i, a := range args {
		binary.BigEndian.PutUint32(data[offArgs+i*argSize:], a)
		binary.BigEndian.PutUint32(data[offArgs+i*argSize+4:], 0xdeadbeef) // what an int leaves in a register
	}
	return data
}

func TestFilter(t *testing.T) {
	all, none := Traps{Unlink: true, Options: true}, Traps{}
	native := auditArch[runtime.GOARCH]
	foreign := uint32(unix.AUDIT_ARCH_I386)
	tests := []struct {
		name  string
		traps Traps
		arch  uint32
		nr    int64
		args  []uint32
		want  int
	}{
		{"bind of IPv4", none, native, unix.SYS_BIND, []uint32{3, 0x1000, 16}, notified},
		{"bind of IPv6", none, native, unix.SYS_BIND, []uint32{3, 0x1000, 28}, notified},
		{"bind of a unix path", none, native, unix.SYS_BIND, []uint32{3, 0x1000, 110}, notified},
		{"bind of the shortest unix path", none, native, unix.SYS_BIND, []uint32{3, 0x1000, 3}, notified},
		{"bind of no path", none, native, unix.SYS_BIND, []uint32{3, 0x1000, 2}, allowed},
		{"bind of nothing", none, native, unix.SYS_BIND, []uint32{3, 0x1000, 0}, allowed},
		{"bind of netlink", none, native, unix.SYS_BIND, []uint32{3, 0x1000, 12}, allowed},
		{"bind of a negative length", none, native, unix.SYS_BIND, []uint32{3, 0x1000, 0xffffffff}, notified},
		{"listen", none, native, unix.SYS_LISTEN, []uint32{3, 5}, notified},
		{"bind elsewhere", all, foreign, unix.SYS_BIND, []uint32{3, 0x1000, 16}, allowed},
		{"listen elsewhere", all, foreign, unix.SYS_LISTEN, []uint32{3, 5}, allowed},
		{"socket", none, native, unix.SYS_SOCKET, []uint32{unix.AF_INET, unix.SOCK_STREAM, 0}, allowed},
		{"socket of TCP", none, native, unix.SYS_SOCKET, []uint32{unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_TCP}, allowed},
		{"socket of MPTCP", none, native, unix.SYS_SOCKET, []uint32{unix.AF_INET6, unix.SOCK_STREAM, unix.IPPROTO_MPTCP}, refused},
		{"accept", all, native, unix.SYS_ACCEPT4, []uint32{3}, allowed},
		{"read", all, native, unix.SYS_READ, []uint32{3}, allowed},
		{"shutdown", all, native, unix.SYS_SHUTDOWN, []uint32{3, 2}, allowed},
		{"connect", all, native, unix.SYS_CONNECT, []uint32{3, 0x1000, 16}, allowed},
		{"no call at all", all, native, 0xffffffff, nil, allowed},

		{"unlinkat", all, native, unix.SYS_UNLINKAT, []uint32{0xffffff9c, 0x1000, 0}, notified},
		{"unlinkat of a directory", all, native, unix.SYS_UNLINKAT, []uint32{0xffffff9c, 0x1000, unix.AT_REMOVEDIR}, allowed},
		{"unlinkat untrapped", Traps{Options: true}, native, unix.SYS_UNLINKAT, []uint32{0xffffff9c, 0x1000, 0}, allowed},

		{"reuseport", all, native, unix.SYS_SETSOCKOPT, []uint32{3, unix.SOL_SOCKET, unix.SO_REUSEPORT}, notified},
		{"receive buffer", all, native, unix.SYS_SETSOCKOPT, []uint32{3, unix.SOL_SOCKET, unix.SO_RCVBUF}, notified},
		{"send buffer", all, native, unix.SYS_SETSOCKOPT, []uint32{3, unix.SOL_SOCKET, unix.SO_SNDBUF}, notified},
		{"deferred accept", all, native, unix.SYS_SETSOCKOPT, []uint32{3, unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT}, notified},
		{"fast open", all, native, unix.SYS_SETSOCKOPT, []uint32{3, unix.IPPROTO_TCP, unix.TCP_FASTOPEN}, notified},
		{"free bind", all, native, unix.SYS_SETSOCKOPT, []uint32{3, unix.IPPROTO_IP, unix.IP_FREEBIND}, notified},
		{"device", all, native, unix.SYS_SETSOCKOPT, []uint32{3, unix.SOL_SOCKET, unix.SO_BINDTODEVICE}, notified},
		{"destination", all, native, unix.SYS_SETSOCKOPT, []uint32{3, unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO}, notified},
		{"transparent, which needs a capability", all, native, unix.SYS_SETSOCKOPT, []uint32{3, unix.IPPROTO_IP, unix.IP_TRANSPARENT}, allowed},
		{"v6only", all, native, unix.SYS_SETSOCKOPT, []uint32{3, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY}, notified},
		{"no delay", all, native, unix.SYS_SETSOCKOPT, []uint32{3, unix.IPPROTO_TCP, unix.TCP_NODELAY}, allowed},
		{"quick ack", all, native, unix.SYS_SETSOCKOPT, []uint32{3, unix.IPPROTO_TCP, unix.TCP_QUICKACK}, allowed},
		{"keep-alive", all, native, unix.SYS_SETSOCKOPT, []uint32{3, unix.SOL_SOCKET, unix.SO_KEEPALIVE}, allowed},
		{"number of another level", all, native, unix.SYS_SETSOCKOPT, []uint32{3, unix.SOL_SOCKET, unix.IPV6_V6ONLY}, allowed},
		{"unknown level", all, native, unix.SYS_SETSOCKOPT, []uint32{3, 999, unix.SO_REUSEPORT}, allowed},
		{"steering", none, native, unix.SYS_SETSOCKOPT, []uint32{3, unix.SOL_SOCKET, unix.SO_ATTACH_REUSEPORT_CBPF}, pretended},
		{"steering by eBPF", all, native, unix.SYS_SETSOCKOPT, []uint32{3, unix.SOL_SOCKET, unix.SO_ATTACH_REUSEPORT_EBPF}, pretended},
		{"its number of another level", all, native, unix.SYS_SETSOCKOPT, []uint32{3, unix.IPPROTO_TCP, unix.SO_ATTACH_REUSEPORT_CBPF}, allowed},
		{"reuseport untrapped", Traps{Unlink: true}, native, unix.SYS_SETSOCKOPT, []uint32{3, unix.SOL_SOCKET, unix.SO_REUSEPORT}, allowed},
	}
	for _, test := range tests {
		if got := verdict(t, test.traps, native, seccompData(test.arch, uint32(test.nr), test.args...)); got != test.want {
			t.Errorf("%s: %#x, want %#x", test.name, got, test.want)
		}
	}
}

func TestFilterOfOldUnlink(t *testing.T) {
	if oldUnlink < 0 {
		t.Skip("this architecture has unlinkat only")
	}
	native := auditArch[runtime.GOARCH]
	data := seccompData(native, uint32(oldUnlink), 0x1000)
	if got := verdict(t, Traps{Unlink: true}, native, data); got != notified {
		t.Errorf("trapped: %#x", got)
	}
	if got := verdict(t, Traps{}, native, data); got != allowed {
		t.Errorf("untrapped: %#x", got)
	}
}

// The x32 ABI shares amd64's architecture and, behind its bit, most numbers.
func TestFilterLeavesX32Alone(t *testing.T) {
	amd64 := uint32(unix.AUDIT_ARCH_X86_64)
	for _, nr := range []uint32{unix.SYS_BIND, unix.SYS_LISTEN} {
		if got := verdict(t, Traps{}, amd64, seccompData(amd64, nr|x32Bit, 3, 0x1000, 16)); got != allowed {
			t.Errorf("call %d of x32: %#x", nr, got)
		}
	}
}

func verdict(t *testing.T, traps Traps, arch uint32, data []byte) int {
	t.Helper()
	vm, err := bpf.NewVM(traps.instructions(arch))
	must(t, err)
	got, err := vm.Run(data)
	must(t, err)
	return got
}
