package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Listener is a control socket. It hands out connections of the master's own
// user and of root alone.
type Listener struct {
	*net.UnixListener
	path string
	made os.FileInfo // tells our socket from one that took its place
	uid  int
}

// Path is where the socket is.
func (l *Listener) Path() string { return l.path }

// InUse says that another master listens on a path.
type InUse struct {
	Path string
	PID  int // 0 where the system does not tell
}

func (e *InUse) Error() string {
	who := "another master"
	if e.PID != 0 {
		who = fmt.Sprintf("the master with pid %d", e.PID)
	}
	return fmt.Sprintf("cannot listen on control socket %s: %s does; choose another --name or --control", e.Path, who)
}

// ListenDefault opens the control socket for a master's name in the default
// directory. Where another master has it, a name that was not chosen by the
// user makes room: NAME-PID is taken instead. Errors that are no *InUse say
// that the place cannot be used at all.
func ListenDefault(name string, chosen bool) (*Listener, error) {
	dir := Directory()
	if err := ownDirectory(dir); err != nil {
		return nil, fmt.Errorf("cannot make a control socket: %w", err)
	}
	l, err := listen(filepath.Join(dir, name+suffix))
	var used *InUse
	if !chosen && errors.As(err, &used) {
		return listen(filepath.Join(dir, name+"-"+strconv.Itoa(os.Getpid())+suffix))
	}
	return l, err
}

// Listen opens a control socket at a path that the user chose. Its directory
// is made, for this user alone, where it is missing.
func Listen(path string) (*Listener, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("cannot make control socket %s: %w", path, err)
	}
	if err := makeParent(path); err != nil {
		return nil, fmt.Errorf("cannot make a directory for the control socket: %w", err)
	}
	return listen(path)
}

func listen(path string) (*Listener, error) {
	if len(path) > maxPath {
		return nil, fmt.Errorf("cannot listen on control socket %s: a socket's path has at most %d bytes; choose a shorter --control", path, maxPath)
	}
	unlock := lockDirectory(filepath.Dir(path))
	defer unlock()
	if err := removeStale(path); err != nil {
		return nil, err
	}
	config := net.ListenConfig{Control: ownMode}
	ln, err := config.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, fmt.Errorf("cannot listen on control socket %s: %w", path, cause(err))
	}
	l := &Listener{UnixListener: ln.(*net.UnixListener), path: path, uid: os.Geteuid()}
	l.SetUnlinkOnClose(false)
	if l.made, err = os.Lstat(path); err == nil {
		err = os.Chmod(path, socketMode)
	}
	if err != nil {
		l.Close()
		return nil, fmt.Errorf("cannot make control socket %s: %w", path, cause(err))
	}
	return l, nil
}

const socketMode = 0o600

// ownMode sets the mode of the socket before it has a name: Linux takes the
// name's from there, so that it never stands open for a moment.
func ownMode(_, _ string, raw syscall.RawConn) error {
	return raw.Control(func(fd uintptr) { _ = unix.Fchmod(int(fd), socketMode) })
}

// lockDirectory keeps two masters from replacing the same stale socket. It is
// for directories that nobody else can open: any other could be locked for
// ever by anybody.
func lockDirectory(dir string) (unlock func()) {
	info, err := os.Stat(dir)
	if err != nil || info.Mode().Perm()&^private != 0 {
		return func() {}
	}
	f, err := os.Open(dir)
	if err != nil {
		return func() {}
	}
	_ = unix.Flock(int(f.Fd()), unix.LOCK_EX)
	return func() { f.Close() }
}

// removeStale takes away a socket that nobody listens on any more. What is no
// socket is left alone: the user may have mistyped.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err == nil && info.Mode().Type() != os.ModeSocket {
		return fmt.Errorf("cannot listen on control socket %s: there is a file that is no socket; remove it or choose another --control", path)
	}
	live, pid, err := probe(path)
	switch {
	case live:
		return &InUse{Path: path, PID: pid}
	case err != nil:
		return fmt.Errorf("cannot listen on control socket %s: %w", path, cause(err))
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("cannot replace control socket %s: %w", path, cause(err))
	}
	return nil
}

// probeTime bounds a connect to a socket whose queue is full.
const probeTime = 2 * time.Second

// probe tells whether somebody listens on a path, and who. Nobody is no error.
func probe(path string) (live bool, pid int, err error) {
	conn, err := net.DialTimeout("unix", path, probeTime)
	switch {
	case err == nil:
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, os.ErrNotExist):
		return false, 0, nil
	case errors.Is(err, syscall.EAGAIN), errors.Is(err, os.ErrDeadlineExceeded):
		return true, 0, nil // its queue is full
	default:
		return false, 0, err
	}
	defer conn.Close()
	_, pid, err = peer(conn.(*net.UnixConn))
	return true, pid, err
}

// forbidden is all that a stranger hears.
const forbidden = "HTTP/1.1 403 Forbidden\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"

// Accept returns the next connection of somebody who may ask; others are shut
// out before a byte of theirs is read.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		uid, _, err := peer(conn)
		if err == nil && (uid == l.uid || uid == 0) {
			return conn, nil
		}
		dismiss(conn, forbidden)
	}
}

// dismiss says a last word to a client, if it fits into the socket as it is.
func dismiss(conn net.Conn, word string) {
	_ = conn.SetWriteDeadline(time.Now().Add(time.Millisecond))
	_, _ = io.WriteString(conn, word)
	conn.Close()
}

// Close removes the socket's name, unless another's stands there by now, and
// ends Accept.
func (l *Listener) Close() error {
	if now, err := os.Lstat(l.path); err == nil && l.made != nil && os.SameFile(now, l.made) {
		_ = os.Remove(l.path)
	}
	return l.UnixListener.Close()
}

// cause is an error without the address and the call that a message names
// already.
func cause(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		err = op.Err
	}
	var call *os.SyscallError
	if errors.As(err, &call) {
		return call.Err
	}
	var path *os.PathError
	if errors.As(err, &path) {
		return path.Err
	}
	return err
}
