package group

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
// probe carries) and IPv6 (RFC 8200), and in TCP and UDP behind them, which
// both begin with the client's port.
const (
	v4Source   = 12
	v4TCP      = 20
	v6Source   = 8
	v6TCP      = 40
	maxProgram = 2500 // instructions: what net.core.optmem_max allows
)

// probeRule sends the connection from one chosen source to one member.
type probeRule struct {
	from  netip.AddrPort
	index int
}

// steeringProgram is what SO_ATTACH_REUSEPORT_CBPF runs for each new
// connection: it returns the index of the member that gets it. Several members
// get a random share each.
func steeringProgram(indices []int, probes []probeRule) []bpf.Instruction {
	var program []bpf.Instruction
	for _, p := range probes {
		program = append(program, matchSource(p.from, uint32(p.index))...)
	}
	return append(program, spread(indices, bpf.LoadExtension{Num: bpf.ExtRand})...)
}

// datagramProgram gives all that comes from one port of a client to the same
// member: the packets of a flow belong together.
func datagramProgram(indices []int) []bpf.Instruction {
	const v6 = 6
	port := func(header uint32) bpf.Instruction { return bpf.LoadAbsolute{Off: skfNetOff + header, Size: 2} }
	return spread(indices,
		bpf.LoadAbsolute{Off: skfNetOff, Size: 1},
		bpf.ALUOpConstant{Op: bpf.ALUOpShiftRight, Val: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: v6, SkipFalse: 2},
		port(v6TCP),
		bpf.Jump{Skip: 1},
		port(v4TCP))
}

// spread shares out by the number that choose leaves in the accumulator.
func spread(indices []int, choose ...bpf.Instruction) []bpf.Instruction {
	last := len(indices) - 1
	if last == 0 {
		return []bpf.Instruction{bpf.RetConstant{Val: uint32(indices[0])}}
	}
	program := append(choose, bpf.ALUOpConstant{Op: bpf.ALUOpMod, Val: uint32(len(indices))})
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
	if len(program) > maxProgram {
		return nil, fmt.Errorf("a group cannot have that many serving members: their program has %d instructions, and the kernel takes %d", len(program), maxProgram)
	}
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
