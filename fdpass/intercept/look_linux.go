package intercept

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Inode is the number of the socket at FD. It is EBADF if nothing is open
// there, ENOTSOCK if it is something else.
func (c *Call) Inode() (uint64, error) {
	link, err := os.Readlink(c.procFD("fd"))
	if err := c.looked(err); err != nil {
		return 0, err
	}
	text, ok := strings.CutPrefix(link, "socket:[")
	if !ok {
		return 0, unix.ENOTSOCK
	}
	return strconv.ParseUint(strings.TrimSuffix(text, "]"), 10, 64)
}

// Flags are O_NONBLOCK and O_CLOEXEC of FD. It is EBADF if nothing is open
// there.
func (c *Call) Flags() (nonblock, cloexec bool, err error) {
	text, err := os.ReadFile(c.procFD("fdinfo"))
	if err := c.looked(err); err != nil {
		return false, false, err
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "flags:"); ok {
			flags, err := strconv.ParseUint(strings.TrimSpace(value), 8, 32)
			return flags&unix.O_NONBLOCK != 0, flags&unix.O_CLOEXEC != 0, err
		}
	}
	return false, false, fmt.Errorf("cannot find the flags in %s", c.procFD("fdinfo"))
}

// Protocol is the kernel's name of the protocol of the socket at FD: "TCP",
// "TCPv6", "UDP", "UDPv6", "UNIX-STREAM", "UNIX", "MPTCP", … It is EBADF if
// nothing is open there, ENOTSOCK if it is something else.
func (c *Call) Protocol() (string, error) {
	name := make([]byte, 64) // the kernel's own are 32 at most
	n, err := unix.Getxattr(c.procFD("fd"), "system.sockprotoname", name)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENODATA) {
		err = unix.ENOTSOCK
	}
	if err := c.looked(err); err != nil {
		return "", err
	}
	return string(bytes.TrimRight(name[:n], "\x00")), nil
}

func (c *Call) procFD(dir string) string { return c.proc(dir + "/" + strconv.Itoa(c.FD)) }

// looked is what a look at FD in /proc has come to. A thread that is alive and
// has no such entry has nothing open there.
func (c *Call) looked(err error) error {
	switch {
	case !c.Alive():
		return ErrGone
	case errors.Is(err, unix.ENOENT):
		return unix.EBADF
	}
	return err
}

// SharesNetwork tells whether the thread is in our network namespace. It is
// false if that cannot be seen.
func (c *Call) SharesNetwork() bool { return c.sharesNamespace("net") }

// SharesFiles tells whether a path means the same to the thread as to us: its
// mount namespace and its root directory are ours. It is false if that cannot
// be seen.
func (c *Call) SharesFiles() bool {
	ours, err := os.Stat("/proc/self/root")
	if err != nil {
		return false
	}
	theirs, err := os.Stat(c.proc("root"))
	return err == nil && os.SameFile(ours, theirs) && c.sharesNamespace("mnt")
}

// MayBindLowPorts tells whether the thread has CAP_NET_BIND_SERVICE in our user
// namespace. It is false if that cannot be seen.
func (c *Call) MayBindLowPorts() bool {
	text, err := c.status("CapEff")
	if err != nil {
		return false
	}
	effective, err := strconv.ParseUint(text, 16, 64)
	return err == nil && effective&(1<<unix.CAP_NET_BIND_SERVICE) != 0 && c.sharesNamespace("user")
}

func (c *Call) sharesNamespace(kind string) bool {
	ours, err := os.Readlink("/proc/self/ns/" + kind)
	if err != nil {
		return false
	}
	theirs, err := os.Readlink(c.proc("ns/" + kind))
	return err == nil && ours == theirs && c.Alive()
}
