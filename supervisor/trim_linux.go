package supervisor

import (
	"bufio"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// trim gives memory back when there is nothing to do for a while: what the
// heap does not need, and the pages of the program's own file that the last
// start or upgrade brought in. A master sleeps for weeks between two upgrades,
// and the next one finds the pages in the page cache.
func trim() {
	debug.FreeOSMemory()
	maps, err := os.Open("/proc/self/maps")
	if err != nil {
		return
	}
	defer maps.Close()
	own, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return
	}
	scan := bufio.NewScanner(maps)
	for scan.Scan() {
		if from, size, ok := ownPages(scan.Text(), own); ok {
			// Clean pages of a file: the kernel reads them again on demand.
			_, _, _ = syscall.Syscall(unix.SYS_MADVISE, from, size, unix.MADV_DONTNEED)
		}
	}
}

// ownPages reads a line of /proc/PID/maps ("00400000-00800000 r-xp … path") and
// returns the range if it is read-only and of this file.
func ownPages(line, path string) (from, size uintptr, ok bool) {
	if !strings.HasSuffix(line, " "+path) {
		return 0, 0, false
	}
	span, rest, _ := strings.Cut(line, " ")
	low, high, _ := strings.Cut(span, "-")
	start, errLow := strconv.ParseUint(low, 16, 64)
	end, errHigh := strconv.ParseUint(high, 16, 64)
	if errLow != nil || errHigh != nil || strings.HasPrefix(rest, "rw") || end <= start {
		return 0, 0, false
	}
	return uintptr(start), uintptr(end - start), true
}
