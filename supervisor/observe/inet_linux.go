package observe

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"
	"time"
	"unsafe"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// The structures and numbers of linux/inet_diag.h. Integers are in the machine's
// order, ports and addresses in the network's.
type inetSockID struct {
	SPort, DPort [2]byte
	Src, Dst     [16]byte
	If           uint32
	Cookie       [2]uint32
}

type inetRequest struct {
	Family, Protocol, Ext, _ uint8
	States                   uint32
	ID                       inetSockID
}

type inetMessage struct {
	Family, State, Timer, Retrans          uint8
	ID                                     inetSockID
	Expires, RQueue, WQueue, UID, InodeLow uint32
}

const (
	inetRequestBytecode = 1  // INET_DIAG_REQ_BYTECODE
	inetInfo            = 2  // INET_DIAG_INFO: struct tcp_info
	inetV6Only          = 11 // INET_DIAG_SKV6ONLY: one byte

	bytecodeJump       = 1  // INET_DIAG_BC_JMP
	bytecodeSourcePort = 11 // INET_DIAG_BC_S_EQ
)

// maxPorts keeps the bytecode of one request far below the 64 KB that a jump can
// reach; more ports take several requests.
const maxPorts = 1024

const inetMessageSize = int(unsafe.Sizeof(inetMessage{}))

// dumpTCP calls each with every TCP socket in one of states (a set of 1<<state)
// on one of these local ports.
func dumpTCP(ports []uint16, states uint32, ext uint8, each func(m inetMessage, attributes []byte)) error {
	ports = slices.Compact(slices.Sorted(slices.Values(ports)))
	for some := range slices.Chunk(ports, maxPorts) {
		for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
			if err := dumpFamily(family, some, states, ext, each); err != nil {
				return err
			}
		}
	}
	return nil
}

func dumpFamily(family uint8, ports []uint16, states uint32, ext uint8, each func(inetMessage, []byte)) error {
	request, err := encodeRequest(family, ports, states, ext)
	if err != nil {
		return err
	}
	err = dump(request, func(answer []byte) {
		if len(answer) >= inetMessageSize {
			m := *(*inetMessage)(unsafe.Pointer(unsafe.SliceData(answer)))
			each(m, answer[inetMessageSize:])
		}
	})
	if family == unix.AF_INET6 && errors.Is(err, unix.ENOENT) {
		return nil // a kernel without IPv6
	}
	return err
}

func encodeRequest(family uint8, ports []uint16, states uint32, ext uint8) ([]byte, error) {
	request, err := binary.Append(nil, binary.NativeEndian, &inetRequest{
		Family: family, Protocol: unix.IPPROTO_TCP, Ext: ext, States: states,
	})
	if err != nil || len(ports) == 0 {
		return request, err
	}
	filter, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: inetRequestBytecode, Data: portFilter(ports)},
	})
	return append(request, filter...), err
}

// portFilter is the kernel's bytecode for "the local port is one of these".
// Every operation (struct inet_diag_bc_op) holds its code and how far to go on
// for yes and for no; the end means a match, four bytes past it means none. A
// comparison is followed by one that holds the port in its last field, then,
// except the last, by a jump to the end that is skipped on a mismatch.
func portFilter(ports []uint16) []byte {
	var code []byte
	op := func(code []byte, operation, yes uint8, no int) []byte {
		return binary.NativeEndian.AppendUint16(append(code, operation, yes), uint16(no))
	}
	end := len(ports)*12 - 4
	for i, port := range ports {
		code = op(code, bytecodeSourcePort, 8, 12)
		code = op(code, 0, 0, int(port))
		if i < len(ports)-1 {
			code = op(code, bytecodeJump, 4, end-len(code))
		}
	}
	return code
}

func connections(ports []uint16, info bool) ([]Conn, error) {
	var list []Conn
	var ext uint8
	if info {
		ext = 1 << (inetInfo - 1)
	}
	const states = 1<<unix.BPF_TCP_ESTABLISHED | 1<<unix.BPF_TCP_CLOSE_WAIT
	err := dumpTCP(ports, states, ext, func(m inetMessage, attributes []byte) {
		list = append(list, m.conn(attributes))
	})
	return list, err
}

func handshakes(ports []uint16) ([]Peer, error) {
	var list []Peer
	err := dumpTCP(ports, 1<<unix.BPF_TCP_SYN_RECV, 0, func(m inetMessage, _ []byte) {
		list = append(list, Peer{Local: m.local(), Remote: m.remote()})
	})
	return list, err
}

func listeners(port uint16) ([]Listener, error) {
	var list []Listener
	err := dumpTCP([]uint16{port}, 1<<unix.BPF_TCP_LISTEN, 0, func(m inetMessage, attributes []byte) {
		list = append(list, m.listener(attributes))
	})
	return list, err
}

func listenersAmong(inodes map[uint64]struct{}) ([]Listener, error) {
	var list []Listener
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		err := dumpFamily(family, nil, 1<<unix.BPF_TCP_LISTEN, 0, func(m inetMessage, attributes []byte) {
			if _, among := inodes[uint64(m.InodeLow)]; among {
				list = append(list, m.listener(attributes))
			}
		})
		if err != nil {
			return nil, err
		}
	}
	return list, nil
}

func (m *inetMessage) listener(attributes []byte) Listener {
	v6only := attribute(attributes, inetV6Only)
	return Listener{
		Local:  m.local(),
		V6Only: len(v6only) > 0 && v6only[0] != 0,
		Device: int(m.ID.If),
		UID:    m.UID,
		Inode:  uint64(m.InodeLow),
		Queue:  m.RQueue, Backlog: m.WQueue,
	}
}

func (m *inetMessage) conn(attributes []byte) Conn {
	c := Conn{
		Local: m.local(), Remote: m.remote(),
		State:  m.State,
		Inode:  uint64(m.InodeLow),
		Cookie: uint64(m.ID.Cookie[1])<<32 | uint64(m.ID.Cookie[0]),
		RecvQ:  m.RQueue, SendQ: m.WQueue,
	}
	if info := attribute(attributes, inetInfo); info != nil {
		c.LastSent = milliseconds(info, unsafe.Offsetof(unix.TCPInfo{}.Last_data_sent))
		c.LastRecv = milliseconds(info, unsafe.Offsetof(unix.TCPInfo{}.Last_data_recv))
		c.LastAck = milliseconds(info, unsafe.Offsetof(unix.TCPInfo{}.Last_ack_recv))
		c.DataSegsIn = word(info, unsafe.Offsetof(unix.TCPInfo{}.Data_segs_in))
		c.DataSegsOut = word(info, unsafe.Offsetof(unix.TCPInfo{}.Data_segs_out))
	}
	return c
}

func (m *inetMessage) local() netip.AddrPort  { return m.address(m.ID.Src, m.ID.SPort) }
func (m *inetMessage) remote() netip.AddrPort { return m.address(m.ID.Dst, m.ID.DPort) }

func (m *inetMessage) address(ip [16]byte, port [2]byte) netip.AddrPort {
	addr := netip.AddrFrom16(ip).Unmap()
	if m.Family == unix.AF_INET {
		addr = netip.AddrFrom4([4]byte(ip[:4]))
	}
	return netip.AddrPortFrom(addr, binary.BigEndian.Uint16(port[:]))
}

func milliseconds(info []byte, offset uintptr) time.Duration {
	return time.Duration(word(info, offset)) * time.Millisecond
}

// word reads one field of a struct tcp_info, which older kernels make shorter.
func word(info []byte, offset uintptr) uint32 {
	if uintptr(len(info)) < offset+4 {
		return 0
	}
	return binary.NativeEndian.Uint32(info[offset:])
}

// attribute returns the payload of the first netlink attribute of that type, nil
// where there is none. It allocates nothing, unlike netlink's own decoder: it
// runs once per connection.
func attribute(attributes []byte, kind uint16) []byte {
	for len(attributes) >= unix.SizeofNlAttr {
		length := int(binary.NativeEndian.Uint16(attributes))
		if length < unix.SizeofNlAttr || length > len(attributes) {
			return nil
		}
		if binary.NativeEndian.Uint16(attributes[2:]) == kind {
			return attributes[unix.SizeofNlAttr:length]
		}
		aligned := (length + unix.NLA_ALIGNTO - 1) &^ (unix.NLA_ALIGNTO - 1)
		attributes = attributes[min(aligned, len(attributes)):]
	}
	return nil
}
