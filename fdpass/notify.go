package fdpass

import (
	"fmt"
	"net"
	"os"
	"strings"
)

// Notify sends state to whoever supervises this process, by the protocol of
// sd_notify(3): lines of KEY=VALUE, "READY=1" for one, as a single datagram to
// the socket that NOTIFY_SOCKET names. sent is false where the variable is not
// set, so that nobody listens; that is no error. The variable stays, for the
// process that comes after this one may need it.
func Notify(state string) (sent bool, err error) {
	name := os.Getenv("NOTIFY_SOCKET")
	if name == "" {
		return false, nil
	}
	if !strings.HasPrefix(name, "/") && !strings.HasPrefix(name, "@") {
		return false, fmt.Errorf("cannot notify %q: NOTIFY_SOCKET is neither a path nor an abstract name", name)
	}
	// Package net writes the leading @ of an abstract name as the NUL byte
	// that the kernel wants.
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		return false, fmt.Errorf("cannot notify: %w", err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte(state)); err != nil {
		return false, fmt.Errorf("cannot notify: %w", err)
	}
	return true, nil
}
