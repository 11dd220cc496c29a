//go:build linux

package capture

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// clientPorts is the range from which the kernel gives ports to clients.
func clientPorts() (first, last int) {
	text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err == nil {
		_, err = fmt.Sscan(string(text), &first, &last)
	}
	if err != nil {
		return 1 << 16, 1 << 16
	}
	return first, last
}

// unprivilegedPorts is the first port that everybody may bind.
func unprivilegedPorts() int {
	const usual = 1024
	text, err := os.ReadFile("/proc/sys/net/ipv4/ip_unprivileged_port_start")
	if err != nil {
		return usual
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return usual
	}
	return n
}

// private tells that a unix path is one process's own, as far as can be seen: it
// has the process's number in it, or lies in a directory that was made after the
// process was (python's multiprocessing, forkservers). The next generation has
// others.
func private(path string, pid int) bool {
	if strings.HasPrefix(path, "@") {
		return hasNumber(path, pid)
	}
	dir, base := filepath.Split(path)
	if hasNumber(base, pid) || hasNumber(filepath.Base(dir), pid) {
		return true
	}
	made, err := os.Stat(dir)
	began, unseen := os.Stat("/proc/" + strconv.Itoa(pid))
	if err != nil || unseen != nil {
		return false
	}
	stat, ok := made.Sys().(*syscall.Stat_t)
	// A directory in which nothing but the process has made anything since its
	// start cannot be told from one that is older by its times alone; one with
	// a random name that only its owner may enter can.
	const private = 0o077
	return ok && stat.Mode&private == 0 && made.ModTime().After(began.ModTime()) && strings.Contains(filepath.Base(strings.TrimSuffix(dir, "/")), "-")
}

// hasNumber tells whether a name has a number in it, and not as a part of
// another: pid 80 has nothing to do with app-8080.sock.
func hasNumber(name string, n int) bool {
	isNoDigit := func(r rune) bool { return r < '0' || r > '9' }
	return slices.Contains(strings.FieldsFunc(name, isNoDigit), strconv.Itoa(n))
}
