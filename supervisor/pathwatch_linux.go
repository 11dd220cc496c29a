package supervisor

import (
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/moult/moult/fdpass"
)

// pathWatch tells when something is removed from the directories of unix
// sockets, while a generation drains that might remove a path when it leaves.
type pathWatch struct{ file *os.File }

// watchPaths begins to watch, if there is anything to watch. Without it the
// paths are looked at when a worker is.
func (s *Supervisor) watchPaths() {
	if s.pathWatch != nil {
		return
	}
	var dirs []string
	for _, sock := range s.sockets {
		if how, _ := sock.How(); how == fdpass.Renamed {
			dirs = append(dirs, filepath.Dir(sock.Bound()))
		}
	}
	if len(dirs) == 0 {
		return
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return
	}
	s.pathWatch = &pathWatch{file: os.NewFile(uintptr(fd), "inotify")}
	for _, dir := range dirs {
		_, _ = unix.InotifyAddWatch(fd, dir, unix.IN_DELETE|unix.IN_MOVED_FROM|unix.IN_MOVED_TO)
	}
	go s.pathWatch.read(func() { s.send(s.mendPaths) })
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
