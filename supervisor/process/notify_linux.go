package process

import (
	"crypto/rand"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moult/moult/supervisor/observe"
)

// Voice hears what one worker says by sd_notify(3). Each worker has a socket of
// its own, so that the socket names the worker even when the process that spoke
// is gone before /proc can be asked. It is abstract: a worker of any uid and in
// any root directory reaches it.
type Voice struct {
	conn *net.UnixConn
	name string
}

// Word is what one datagram said. Fields that it did not have are zero.
type Word struct {
	PID, UID int // of the sender
	Ready    bool
	Status   string
	Extend   time.Duration // EXTEND_TIMEOUT_USEC
}

// Listen opens the socket; Hear reads from it. The caller closes it.
func Listen() (*Voice, error) {
	name := "@moult/" + rand.Text()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: name})
	if err != nil {
		return nil, fmt.Errorf("cannot open a socket for sd_notify: %w", err)
	}
	if err := passCredentials(conn); err != nil {
		conn.Close()
		return nil, fmt.Errorf("cannot ask for the senders of sd_notify: %w", err)
	}
	return &Voice{conn: conn, name: name}, nil
}

// Environ is how the worker finds the socket.
func (v *Voice) Environ() []string {
	if v == nil {
		return nil
	}
	return []string{"NOTIFY_SOCKET=" + v.name}
}

// Close ends Hear.
func (v *Voice) Close() {
	if v != nil {
		v.conn.Close()
	}
}

// Says tells whether a word comes from the process's own tree, of which an
// orphan is part by its mark. A sender that has left already, as systemd-notify
// does at once, is known by its uid; uid is whom the worker was started as, or
// negative.
func (p *Process) Says(w Word, uid int) bool {
	switch observe.DescendsFrom(w.PID, p.PID) {
	case observe.Yes:
		return true
	case observe.No:
		return MarkOf(w.PID) == p.Mark
	}
	return w.UID == 0 || w.UID == os.Geteuid() || uid >= 0 && w.UID == uid
}

func passCredentials(conn *net.UnixConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	err = raw.Control(func(fd uintptr) {
		inner = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1)
	})
	if err != nil {
		return err
	}
	return inner
}

// Hear calls hear for each word, until the socket is closed.
func (v *Voice) Hear(hear func(Word)) {
	const longest, descriptors = 4096, 8
	data := make([]byte, longest)
	oob := make([]byte, unix.CmsgSpace(unix.SizeofUcred)+unix.CmsgSpace(4*descriptors))
	for {
		size, oobSize, _, _, err := v.conn.ReadMsgUnix(data, oob)
		if err != nil {
			return
		}
		if word, ok := parseWord(data[:size], oob[:oobSize]); ok {
			hear(word)
		}
	}
}

// parseWord reads the sender and the lines. Descriptors that came along are
// closed at once: for BARRIER=1 that is the answer which the sender waits for,
// and for all else nobody here wants them.
func parseWord(data, oob []byte) (Word, bool) {
	var w Word
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return w, false
	}
	for _, m := range messages {
		if cred, err := unix.ParseUnixCredentials(&m); err == nil {
			w.PID, w.UID = int(cred.Pid), int(cred.Uid)
		}
		if fds, err := unix.ParseUnixRights(&m); err == nil {
			for _, fd := range fds {
				unix.Close(fd)
			}
		}
	}
	for line := range strings.SplitSeq(string(data), "\n") {
		switch key, value, _ := strings.Cut(line, "="); key {
		case "READY":
			w.Ready = value == "1"
		case "STATUS":
			w.Status = value
		case "EXTEND_TIMEOUT_USEC":
			if n, err := strconv.ParseInt(value, 10, 64); err == nil && n > 0 && n < maxExtend.Microseconds() {
				w.Extend = time.Duration(n) * time.Microsecond
			}
		}
	}
	return w, w.PID > 0
}

// maxExtend keeps a sum of times in range.
const maxExtend = 24 * 365 * time.Hour
