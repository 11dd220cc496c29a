package intercept

import (
	"runtime"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Offsets into struct seccomp_data (linux/seccomp.h), which is what the
// program looks at in place of a packet. An argument has 64 bits; the kernel
// takes the low half of the ones that are an int, and so does the program. All
// architectures below store it first.
const (
	offNumber = 0
	offArch   = 4
	offArgs   = 16
	argSize   = 8
)

// x32Bit marks the system calls of the x32 ABI (__X32_SYSCALL_BIT of
// asm/unistd.h), which have amd64's AUDIT_ARCH.
const x32Bit = 0x40000000

// auditArch are the architectures that work: little-endian ones whose
// libraries enter bind and listen directly, never through socketcall(2).
var auditArch = map[string]uint32{
	"amd64":   unix.AUDIT_ARCH_X86_64,
	"arm64":   unix.AUDIT_ARCH_AARCH64,
	"loong64": unix.AUDIT_ARCH_LOONGARCH64,
	"riscv64": unix.AUDIT_ARCH_RISCV64,
}

// Lengths of addresses that are none of ours. A C library binds a netlink
// socket whenever it looks a name up.
const (
	netlinkLength = 12 // struct sockaddr_nl
	leastLength   = 3  // a family and one byte: a unix socket with less is named by the kernel
)

// The options that are stopped with Traps.Options. None is one that servers set
// for each connection, and none needs a capability: whoever repeats it may have
// more rights than the program.
var recorded = []struct {
	level   int
	options []int
}{
	{unix.SOL_SOCKET, []int{unix.SO_REUSEADDR, unix.SO_REUSEPORT, unix.SO_RCVBUF, unix.SO_SNDBUF, unix.SO_BINDTODEVICE, unix.SO_BINDTOIFINDEX}},
	{unix.IPPROTO_TCP, []int{unix.TCP_DEFER_ACCEPT, unix.TCP_FASTOPEN}},
	{unix.IPPROTO_IP, []int{unix.IP_FREEBIND, unix.IP_BIND_ADDRESS_NO_PORT, unix.IP_PKTINFO}},
	{unix.IPPROTO_IPV6, []int{unix.IPV6_V6ONLY, unix.IPV6_FREEBIND, unix.IPV6_RECVPKTINFO}},
}

var (
	allow = bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW}
	stop  = bpf.RetConstant{Val: unix.SECCOMP_RET_USER_NOTIF}
)

// program is the filter for this architecture. What it does not know it
// allows: such calls, of another architecture for one, escape interception
// and no more.
func (t Traps) program() ([]bpf.RawInstruction, error) {
	arch, ok := auditArch[runtime.GOARCH]
	if !ok {
		return nil, &Unsupported{Reason: "interception knows no " + runtime.GOARCH}
	}
	return bpf.Assemble(t.instructions(arch))
}

func (t Traps) instructions(arch uint32) []bpf.Instruction {
	p := numberOf(arch)
	p = append(p, on(unix.SYS_BIND, t.stopBind())...)
	p = append(p, on(unix.SYS_LISTEN, []bpf.Instruction{stop})...)
	p = append(p, on(unix.SYS_SOCKET, refuseMPTCP())...)
	if t.Unlink {
		p = append(p, on(unix.SYS_UNLINKAT, stopUnlinkat())...)
		if oldUnlink >= 0 {
			p = append(p, on(uint32(oldUnlink), []bpf.Instruction{stop})...)
		}
	}
	p = append(p, on(unix.SYS_SETSOCKOPT, t.stopOptions())...)
	return append(p, allow)
}

// numberOf leaves the number of the call loaded, for on.
func numberOf(arch uint32) []bpf.Instruction {
	p := []bpf.Instruction{
		load(offArch),
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: arch, SkipTrue: 1},
		allow,
		load(offNumber),
	}
	if arch == unix.AUDIT_ARCH_X86_64 {
		p = append(p, bpf.JumpIf{Cond: bpf.JumpLessThan, Val: x32Bit, SkipTrue: 1}, allow)
	}
	return p
}

// on runs body, which returns on every path, for one system call.
func on(nr uint32, body []bpf.Instruction) []bpf.Instruction {
	skip := bpf.JumpIf{Cond: bpf.JumpEqual, Val: nr, SkipFalse: uint8(len(body))}
	return append([]bpf.Instruction{skip}, body...)
}

func (t Traps) stopBind() []bpf.Instruction {
	passes := uint32(netlinkLength)
	if t.ShortNames {
		passes = 0
	}
	return []bpf.Instruction{
		argument(2),
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: passes, SkipTrue: 2},
		bpf.JumpIf{Cond: bpf.JumpLessThan, Val: leastLength, SkipTrue: 1},
		stop,
		allow,
	}
}

// refuseMPTCP makes programs fall back to TCP, as they have to where the
// kernel has no MPTCP: it takes no steering program.
func refuseMPTCP() []bpf.Instruction {
	return []bpf.Instruction{
		argument(2),
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.IPPROTO_MPTCP, SkipFalse: 1},
		bpf.RetConstant{Val: unix.SECCOMP_RET_ERRNO | uint32(unix.EPROTONOSUPPORT)},
		allow,
	}
}

func stopUnlinkat() []bpf.Instruction {
	return []bpf.Instruction{
		argument(2),
		bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: unix.AT_REMOVEDIR, SkipTrue: 1},
		stop,
		allow,
	}
}

// stopOptions also keeps the program that steers connections in force: whoever
// attaches one of its own to a group believes that it has.
func (t Traps) stopOptions() []bpf.Instruction {
	p := []bpf.Instruction{argument(2)}
	for _, o := range []uint32{unix.SO_ATTACH_REUSEPORT_CBPF, unix.SO_ATTACH_REUSEPORT_EBPF, unix.SO_DETACH_REUSEPORT_BPF} {
		p = append(p, on(o, []bpf.Instruction{
			argument(1),
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.SOL_SOCKET, SkipFalse: 1},
			bpf.RetConstant{Val: unix.SECCOMP_RET_ERRNO}, // of 0, which is success
			allow,
		})...)
	}
	if !t.Options {
		return append(p, allow)
	}
	for _, r := range recorded {
		p = append(p, argument(1))
		p = append(p, on(uint32(r.level), stopOneOf(r.options))...)
	}
	return append(p, allow)
}

func stopOneOf(options []int) []bpf.Instruction {
	p := []bpf.Instruction{argument(2)}
	for _, o := range options {
		p = append(p, on(uint32(o), []bpf.Instruction{stop})...)
	}
	return append(p, allow)
}

func load(offset uint32) bpf.Instruction { return bpf.LoadAbsolute{Off: offset, Size: 4} }

func argument(n uint32) bpf.Instruction { return load(offArgs + n*argSize) }
