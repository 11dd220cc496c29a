package group

import (
	"bytes"
	"encoding/binary"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/moult/moult/fdpass"
)

// InspectSocket looks at a duplicate of a worker's socket, which stays the
// caller's.
func InspectSocket(fd int) (WorkerSocket, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return WorkerSocket{}, os.NewSyscallError("fstat", err)
	}
	w := WorkerSocket{Inode: st.Ino, UID: int(st.Uid)}
	option := func(level, name int) int {
		n, _ := unix.GetsockoptInt(fd, level, name)
		return n
	}
	kind, protocol := option(unix.SOL_SOCKET, unix.SO_TYPE), option(unix.SOL_SOCKET, unix.SO_PROTOCOL)
	domain := option(unix.SOL_SOCKET, unix.SO_DOMAIN)
	inet := domain == unix.AF_INET || domain == unix.AF_INET6
	switch {
	case inet && kind == unix.SOCK_STREAM && protocol == unix.IPPROTO_TCP:
		w.Network = "tcp"
	case inet && kind == unix.SOCK_DGRAM && protocol == unix.IPPROTO_UDP:
		w.Network = "udp"
	case domain == unix.AF_UNIX && kind == unix.SOCK_STREAM:
		w.Network = "unix"
		w.Name = rawName(fd)
		return w, nil
	default:
		return w, nil
	}
	w.Elsewhere = namespaceOf(fd) != ownNamespace()
	w.IPv6 = domain == unix.AF_INET6
	w.V6Only = w.IPv6 && option(unix.IPPROTO_IPV6, unix.IPV6_V6ONLY) == 1
	w.ReuseAddr = option(unix.SOL_SOCKET, unix.SO_REUSEADDR) == 1
	w.ReusePort = option(unix.SOL_SOCKET, unix.SO_REUSEPORT) == 1
	w.Device = option(unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX)
	w.Client = option(unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT) == 1
	l, err := fdpass.LocalOf(fd)
	w.Local = l.Addr
	return w, err
}

// rawName is getsockname(2) byte for byte, as the worker gave it to bind(2):
// relative to wherever, abstract, with or without the final NUL.
func rawName(fd int) []byte {
	var sa unix.RawSockaddrAny
	size := uint32(unix.SizeofSockaddrAny)
	_, _, errno := unix.Syscall(unix.SYS_GETSOCKNAME, uintptr(fd), uintptr(unsafe.Pointer(&sa)), uintptr(unsafe.Pointer(&size)))
	if errno != 0 || size > unix.SizeofSockaddrAny {
		return nil
	}
	return slices.Clone(unsafe.Slice((*byte)(unsafe.Pointer(&sa)), size))
}

// namespaceOf names the network namespace of a socket, which is that of the thread
// that made it, whoever has it by now; 0 before Linux 5.14, which does not tell.
func namespaceOf(fd int) uint64 {
	cookie, _ := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	return cookie
}

var ownNamespace = sync.OnceValue(func() uint64 {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0
	}
	defer closeDescriptor(fd)
	return namespaceOf(fd)
})

// V6OnlyByDefault tells whether new IPv6 sockets take no IPv4.
func V6OnlyByDefault() bool {
	text, err := os.ReadFile("/proc/sys/net/ipv6/bindv6only")
	return err == nil && strings.TrimSpace(string(text)) == "1"
}

// Recall notes what the worker has set on a socket that cannot be looked at.
func (w *WorkerSocket) Recall(o SockOption) {
	if o.Level == unix.SOL_SOCKET && o.Name == unix.SO_BINDTODEVICE {
		w.Device = deviceNamed(o.Value)
		return
	}
	if len(o.Value) < 4 {
		return
	}
	number := binary.NativeEndian.Uint32(o.Value)
	on := number != 0
	switch {
	case o.Level == unix.SOL_SOCKET && o.Name == unix.SO_BINDTOIFINDEX:
		w.Device = int(number)
	case o.Level == unix.IPPROTO_IP && o.Name == unix.IP_BIND_ADDRESS_NO_PORT:
		w.Client = on
	case o.Level == unix.IPPROTO_IPV6 && o.Name == unix.IPV6_V6ONLY:
		w.V6Only = w.IPv6 && on
	case o.Level == unix.SOL_SOCKET && o.Name == unix.SO_REUSEADDR:
		w.ReuseAddr = on
	case o.Level == unix.SOL_SOCKET && o.Name == unix.SO_REUSEPORT:
		w.ReusePort = on
	}
}

// StandIn makes a socket that can take the place of a worker's own, where the
// master may not have a duplicate of that: unbound, with the same options. Who
// binds it (fdpass.Binding.Sockaddr, and Permit before) does so with the master's
// rights. The caller closes it.
func (w WorkerSocket) StandIn(options []SockOption) (int, error) {
	family, kind, protocol := unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_TCP
	switch {
	case w.Network == "unix":
		family, protocol = unix.AF_UNIX, 0
	case w.IPv6:
		family = unix.AF_INET6
	}
	if w.Network == "udp" {
		kind, protocol = unix.SOCK_DGRAM, unix.IPPROTO_UDP
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	for _, o := range options {
		// What cannot be repeated is a matter of comfort: buffer sizes.
		err := unix.SetsockoptString(fd, o.Level, o.Name, string(o.Value))
		if err != nil && o.confines() {
			closeDescriptor(fd)
			return -1, os.NewSyscallError("setsockopt SO_BINDTODEVICE", err)
		}
	}
	return fd, nil
}

// confines tells that a socket without the option would be open to more clients.
func (o SockOption) confines() bool {
	return o.Level == unix.SOL_SOCKET && (o.Name == unix.SO_BINDTODEVICE || o.Name == unix.SO_BINDTOIFINDEX)
}

// deviceNamed is the index of an interface, 0 for no name.
func deviceNamed(name []byte) int {
	name, _, _ = bytes.Cut(name, []byte{0})
	device, err := net.InterfaceByName(string(name))
	if err != nil {
		return 0
	}
	return device.Index
}
