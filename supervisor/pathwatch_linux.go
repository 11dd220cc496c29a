package supervisor

import (
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// pathWatch tells when something is removed from the directories of unix
// sockets, while a generation drains that might remove a path when it leaves.
type pathWatch struct{ file *os.File }

// watchPaths begins to watch, if there is anything to watch, or ends it. Without
// it the paths are looked at when a worker is gone.
func (s *sockets) watchPaths(on bool) {
	if !on {
		s.paths.close()
		s.paths = nil
		return
	}
	renamed := *s.renamed.Load()
	if s.paths != nil || len(renamed) == 0 {
		return
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return
	}
	watch := &pathWatch{file: os.NewFile(uintptr(fd), "inotify")}
	s.paths = watch
	go func() {
		for _, a := range renamed {
			// The directory may be far away.
			_, _ = unix.InotifyAddWatch(fd, filepath.Dir(a.info().Bound), unix.IN_DELETE|unix.IN_MOVED_FROM|unix.IN_MOVED_TO)
		}
		watch.read(s.mend)
	}()
}

func (p *pathWatch) read(changed func()) {
	buf := make([]byte, 64<<10)
	for {
		if _, err := p.file.Read(buf); err != nil {
			return
		}
		changed()
	}
}

func (p *pathWatch) close() {
	if p != nil {
		p.file.Close()
	}
}
