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
	own, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return
	}
	smaps, err := os.Open("/proc/self/smaps")
	if err != nil {
		return
	}
	defer smaps.Close()
	for _, m := range fileMappings(bufio.NewScanner(smaps), own) {
		// Clean pages of a file: the kernel reads them again on demand.
		_, _, _ = syscall.Syscall(unix.SYS_MADVISE, m.from, m.size, unix.MADV_DONTNEED)
	}
}

type mapping struct{ from, size uintptr }

// fileMappings reads /proc/PID/smaps and returns the mappings of path that hold
// nothing but the file's own content. One that has an anonymous page must be
// left alone, although it may look read-only: the loader of a
// position-independent program writes relocations into it and protects it
// afterwards.
func fileMappings(smaps *bufio.Scanner, path string) []mapping {
	var all []mapping
	var now mapping
	for smaps.Scan() {
		line := smaps.Text()
		if m, ok := mappingOf(line, path); ok {
			now = m
			continue
		}
		if value, ok := strings.CutPrefix(line, "Anonymous:"); ok {
			if now.size > 0 && strings.TrimSpace(value) == "0 kB" {
				all = append(all, now)
			}
			now = mapping{}
		}
	}
	return all
}

// mappingOf reads the head of an entry ("00400000-00800000 r-xp … path").
func mappingOf(line, path string) (mapping, bool) {
	if !strings.HasSuffix(line, " "+path) {
		return mapping{}, false
	}
	span, rest, _ := strings.Cut(line, " ")
	low, high, _ := strings.Cut(span, "-")
	start, errLow := strconv.ParseUint(low, 16, 64)
	end, errHigh := strconv.ParseUint(high, 16, 64)
	if errLow != nil || errHigh != nil || strings.HasPrefix(rest, "rw") || end <= start {
		return mapping{}, false
	}
	return mapping{uintptr(start), uintptr(end - start)}, true
}
