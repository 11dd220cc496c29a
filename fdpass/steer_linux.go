package fdpass

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// skfNetOff is SKF_NET_OFF (linux/filter.h): loads from here on count from the
// network header, wherever the program's data begins.
const skfNetOff = 0xfff00000

// Offsets in the network headers of IPv4 (RFC 791, without options, which no
// probe carries) and IPv6 (RFC 8200), and in TCP behind them.
const (
	v4Source   = 12
	v4TCP      = 20
	v6Source   = 8
	v6TCP      = 40
	maxMembers = 1000 // at two instructions each, what net.core.optmem_max allows
)

// probeRule sends the connection from one chosen source to one member.
type probeRule struct {
	from  netip.AddrPort
	index int
}

// steeringProgram is what SO_ATTACH_REUSEPORT_CBPF runs for each new
// connection: it returns the index of the member that gets it. Several members
// get a random share each.
func steeringProgram(indices []int, probes []probeRule) ([]unix.SockFilter, error) {
	if len(indices) == 0 || len(indices) > maxMembers {
		return nil, fmt.Errorf("a group has between 1 and %d serving members", maxMembers)
	}
	var program []bpf.Instruction
	for _, p := range probes {
		program = append(program, matchSource(p.from, uint32(p.index))...)
	}
	return assemble(append(program, spread(indices)...))
}

func spread(indices []int) []bpf.Instruction {
	last := len(indices) - 1
	if last == 0 {
		return []bpf.Instruction{bpf.RetConstant{Val: uint32(indices[0])}}
	}
	program := []bpf.Instruction{
		bpf.LoadExtension{Num: bpf.ExtRand},
		bpf.ALUOpConstant{Op: bpf.ALUOpMod, Val: uint32(len(indices))},
	}
	for i, index := range indices[:last] {
		program = append(program,
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(i), SkipFalse: 1},
			bpf.RetConstant{Val: uint32(index)})
	}
	return append(program, bpf.RetConstant{Val: uint32(indices[last])})
}

// matchSource compares address and port of the client; a packet of the other
// IP version falls through.
func matchSource(from netip.AddrPort, index uint32) []bpf.Instruction {
	version, source, tcp := uint32(4), uint32(v4Source), uint32(v4TCP)
	raw := from.Addr().AsSlice()
	if from.Addr().Is6() {
		version, source, tcp = 6, v6Source, v6TCP
	}
	type compare struct {
		load []bpf.Instruction
		want uint32
	}
	compares := []compare{{[]bpf.Instruction{
		bpf.LoadAbsolute{Off: skfNetOff, Size: 1},
		bpf.ALUOpConstant{Op: bpf.ALUOpShiftRight, Val: 4}}, version}}
	for i := 0; i < len(raw); i += 4 {
		compares = append(compares, compare{[]bpf.Instruction{
			bpf.LoadAbsolute{Off: skfNetOff + source + uint32(i), Size: 4}},
			binary.BigEndian.Uint32(raw[i:])})
	}
	compares = append(compares, compare{[]bpf.Instruction{
		bpf.LoadAbsolute{Off: skfNetOff + tcp, Size: 2}}, uint32(from.Port())})

	var program []bpf.Instruction
	program = append(program, bpf.RetConstant{Val: index})
	for i := len(compares) - 1; i >= 0; i-- {
		miss := bpf.JumpIf{Cond: bpf.JumpEqual, Val: compares[i].want, SkipFalse: uint8(len(program))}
		step := append(append([]bpf.Instruction{}, compares[i].load...), miss)
		program = append(step, program...)
	}
	return program
}

func assemble(program []bpf.Instruction) ([]unix.SockFilter, error) {
	raw, err := bpf.Assemble(program)
	if err != nil {
		return nil, err
	}
	out := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		out[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	return out, nil
}
