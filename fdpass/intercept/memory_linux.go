package intercept

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// What the kernel takes at most: struct sockaddr_storage, PATH_MAX, and more
// than any option has that is ever stopped.
const (
	maxAddress = 128
	maxPath    = 4096
	maxValue   = 64
)

// errPasses is a call that the kernel answers better than we: with EFAULT,
// EINVAL or ENAMETOOLONG.
var errPasses = errors.New("left to the kernel")

// call has what can be said without a look at the program.
func (l *Listener) call(n notification) *Call {
	return &Call{id: n.id, listener: l, TID: int(n.tid), FD: int(int32(n.args[0]))}
}

// read fills in the rest, from the program's memory. The error is errPasses, or
// why it could not.
func (c *Call) read(n notification) error {
	if c.TID == 0 {
		return errPasses // it has left for a pid namespace that we cannot see into
	}
	switch int64(n.nr) {
	case unix.SYS_BIND:
		c.Kind = Bind
		return c.within(n, 1, 2, maxAddress, &c.Address)
	case unix.SYS_LISTEN:
		c.Kind, c.Backlog = ListenCall, int(int32(n.args[1]))
		return c.readLeader()
	case unix.SYS_SETSOCKOPT:
		c.Kind, c.Level, c.Option = SetOption, int(int32(n.args[1])), int(int32(n.args[2]))
		return c.within(n, 3, 4, maxValue, &c.Value)
	case unix.SYS_UNLINKAT:
		c.Kind = Unlink
		return c.path(n.args[1])
	case oldUnlink:
		c.Kind, c.FD = Unlink, unix.AT_FDCWD
		return c.path(n.args[0])
	}
	return errPasses
}

func (c *Call) readLeader() error {
	text, err := c.status("Tgid")
	if err != nil {
		return err
	}
	c.PID, err = strconv.Atoi(text)
	return err
}

// within reads what argument address points to, as long as argument length
// says.
func (c *Call) within(n notification, address, length, most int, to *[]byte) error {
	size := int(int32(n.args[length]))
	if size < 0 || size > most {
		return errPasses
	}
	if err := c.readLeader(); err != nil {
		return err
	}
	data := make([]byte, size)
	got, err := c.memory(n.args[address], data)
	if err != nil {
		return err
	}
	if got < size {
		return errPasses
	}
	*to = data
	return nil
}

// path reads up to the NUL. What lies behind it may not be readable, so it
// reads page by page.
func (c *Call) path(address uint64) error {
	if err := c.readLeader(); err != nil {
		return err
	}
	page := uint64(os.Getpagesize())
	var text []byte
	for len(text) < maxPath {
		part := make([]byte, min(page-address%page, uint64(maxPath-len(text))))
		got, err := c.memory(address, part)
		if err != nil {
			return err
		}
		if end := bytes.IndexByte(part[:got], 0); end >= 0 {
			c.Path = string(append(text, part[:end]...))
			return nil
		}
		if got < len(part) {
			break
		}
		text, address = append(text, part...), address+uint64(got)
	}
	return errPasses
}

// memory reads less than asked where the program's memory ends.
func (c *Call) memory(address uint64, to []byte) (int, error) {
	fd, err := unix.Open(c.proc("mem"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("cannot read the memory of process %d: %w", c.TID, err)
	}
	defer unix.Close(fd)
	got := 0
	for got < len(to) {
		n, err := unix.Pread(fd, to[got:], int64(address)+int64(got))
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EIO || err == unix.EINVAL || err == nil && n == 0:
			return got, nil // no memory there
		case err != nil:
			return got, fmt.Errorf("cannot read the memory of process %d: %w", c.TID, err)
		}
		got += n
	}
	return got, nil
}

// status is one field of /proc/TID/status (proc_pid_status(5)).
func (c *Call) status(field string) (string, error) {
	text, err := os.ReadFile(c.proc("status"))
	if err != nil {
		return "", c.orGone(err)
	}
	for line := range strings.Lines(string(text)) {
		if name, value, _ := strings.Cut(line, ":"); name == field {
			return strings.TrimSpace(value), nil
		}
	}
	return "", fmt.Errorf("cannot find %s in %s: %w", field, c.proc("status"), io.ErrUnexpectedEOF)
}

func (c *Call) proc(name string) string {
	return "/proc/" + strconv.Itoa(c.TID) + "/" + name
}

// orGone is ErrGone in place of what comes of looking for somebody who is
// gone, and err without its path otherwise wrapped as it is.
func (c *Call) orGone(err error) error {
	if err != nil && !c.Alive() {
		return ErrGone
	}
	var errno syscall.Errno
	if errors.As(err, &errno) && errno == unix.ESRCH {
		return ErrGone
	}
	return err
}
