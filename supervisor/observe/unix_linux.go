package observe

import (
	"encoding/binary"
	"errors"
	"strings"

	"golang.org/x/sys/unix"
)

// The structures and numbers of linux/unix_diag.h, in the machine's order.
type unixRequest struct {
	Family, Protocol    uint8
	_                   uint16
	States, Inode, Show uint32
	Cookie              [2]uint32
}

const (
	unixMessageSize = 16 // struct unix_diag_msg
	unixTypeAt      = 1  // its udiag_type

	showName        = 0x01 // UDIAG_SHOW_NAME
	showQueueLength = 0x10 // UDIAG_SHOW_RQLEN

	unixName        = 0 // UNIX_DIAG_NAME
	unixQueueLength = 4 // UNIX_DIAG_RQLEN: struct unix_diag_rqlen

	anyCookie = ^uint32(0) // INET_DIAG_NOCOOKIE
)

func (r unixRequest) encode() ([]byte, error) {
	r.Family = unix.AF_UNIX
	return binary.Append(nil, binary.NativeEndian, &r)
}

func unixConnections(path string) (int, error) {
	request, err := unixRequest{States: 1 << unix.BPF_TCP_ESTABLISHED, Show: showName}.encode()
	if err != nil {
		return 0, err
	}
	n := 0
	err = dump(request, func(answer []byte) {
		if len(answer) >= unixMessageSize && answer[unixTypeAt] == unix.SOCK_STREAM &&
			path != "" && nameOf(answer) == path {
			n++
		}
	})
	return n, err
}

// nameOf returns the bound name of a socket in the form that Go's net package
// uses: abstract names begin with @, paths lose the zero byte at their end.
func nameOf(answer []byte) string {
	name := string(attribute(answer[unixMessageSize:], unixName))
	if abstract, ok := strings.CutPrefix(name, "\x00"); ok {
		return "@" + abstract
	}
	return strings.TrimSuffix(name, "\x00")
}

// unixQueue asks for one socket by inode. For a listening one the length of the
// receive queue is the number of connections in it.
func unixQueue(inode uint64) (int, error) {
	request, err := unixRequest{
		States: 1 << unix.BPF_TCP_LISTEN, Inode: uint32(inode), Show: showQueueLength,
		Cookie: [2]uint32{anyCookie, anyCookie},
	}.encode()
	if err != nil {
		return 0, err
	}
	var lengths []byte
	err = ask(request, 0, func(answer []byte) {
		if len(answer) >= unixMessageSize {
			lengths = attribute(answer[unixMessageSize:], unixQueueLength)
		}
	})
	if err != nil {
		return 0, err
	}
	if len(lengths) < 4 {
		return 0, errors.New("the kernel does not tell")
	}
	return int(binary.NativeEndian.Uint32(lengths)), nil
}
