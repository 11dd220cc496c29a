package supervisor

import (
	"crypto/rand"
	"fmt"
	"net"
	"strings"

	"golang.org/x/sys/unix"
)

// notifySocket hears what one worker says by sd_notify(3). Each worker has a
// socket of its own, so that the socket names the worker even when the process
// that spoke is gone before /proc can be asked. It is abstract: a worker of any
// uid and in any root directory reaches it.
type notifySocket struct {
	conn *net.UnixConn
	name string
}

// notification is one datagram: lines of KEY=VALUE, and who sent it.
type notification struct {
	pid    int
	uid    int
	fields map[string]string
}

func listenNotify(w *worker) (*notifySocket, error) {
	name := "@moult/" + rand.Text()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: name})
	if err != nil {
		return nil, fmt.Errorf("cannot open a socket for sd_notify: %w", err)
	}
	if err := passCredentials(conn); err != nil {
		conn.Close()
		return nil, fmt.Errorf("cannot ask for the senders of sd_notify: %w", err)
	}
	n := &notifySocket{conn: conn, name: name}
	go n.read(func(word notification) {
		w.master.send(func() { w.notified(word) })
	})
	return n, nil
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

func (n *notifySocket) environ() []string {
	if n == nil {
		return nil
	}
	return []string{"NOTIFY_SOCKET=" + n.name}
}

func (n *notifySocket) close() {
	if n != nil {
		n.conn.Close()
	}
}

// read ends when the socket is closed.
func (n *notifySocket) read(hear func(notification)) {
	const longest, descriptors = 4096, 8
	data := make([]byte, longest)
	oob := make([]byte, unix.CmsgSpace(unix.SizeofUcred)+unix.CmsgSpace(4*descriptors))
	for {
		size, oobSize, _, _, err := n.conn.ReadMsgUnix(data, oob)
		if err != nil {
			return
		}
		word, ok := parseNotification(data[:size], oob[:oobSize])
		if ok {
			hear(word)
		}
	}
}

// parseNotification reads the sender and the lines. Descriptors that came
// along are closed at once: for BARRIER=1 that is the answer which the sender
// waits for, and for all else nobody here wants them.
func parseNotification(data, oob []byte) (notification, bool) {
	n := notification{fields: map[string]string{}}
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return n, false
	}
	for _, m := range messages {
		if cred, err := unix.ParseUnixCredentials(&m); err == nil {
			n.pid, n.uid = int(cred.Pid), int(cred.Uid)
		}
		if fds, err := unix.ParseUnixRights(&m); err == nil {
			for _, fd := range fds {
				unix.Close(fd)
			}
		}
	}
	for line := range strings.SplitSeq(string(data), "\n") {
		if key, value, ok := strings.Cut(line, "="); ok {
			n.fields[key] = value
		}
	}
	return n, n.pid > 0
}
