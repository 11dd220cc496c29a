package fdpass

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// listenFDsStart is the first descriptor that systemd passes
// (SD_LISTEN_FDS_START in sd_listen_fds(3)).
const listenFDsStart = 3

// activated finds the descriptor that systemd, or another master, passed to
// this process under a name. A socket unit without FileDescriptorName= is
// called after the unit: "web.socket".
func activated(name string) (int, error) {
	names, err := activatedNames()
	if err != nil {
		return -1, err
	}
	for i, n := range names {
		if n == name || n == name+".socket" {
			return listenFDsStart + i, nil
		}
	}
	return -1, fmt.Errorf("no socket of that name was passed (LISTEN_FDNAMES has: %s)", strings.Join(names, ", "))
}

func activatedNames() ([]string, error) {
	if os.Getenv("LISTEN_PID") != strconv.Itoa(os.Getpid()) {
		return nil, fmt.Errorf("no sockets were passed to this process (LISTEN_PID is %q, this is %d); systemd passes them with a .socket unit",
			os.Getenv("LISTEN_PID"), os.Getpid())
	}
	n, err := strconv.ParseUint(os.Getenv("LISTEN_FDS"), 10, 16)
	if err != nil || n < 1 {
		return nil, fmt.Errorf("cannot read LISTEN_FDS=%q", os.Getenv("LISTEN_FDS"))
	}
	names := strings.Split(os.Getenv("LISTEN_FDNAMES"), ":")
	for len(names) < int(n) {
		names = append(names, "unknown")
	}
	return names[:n], nil
}
