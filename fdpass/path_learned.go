package fdpass

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// A learned path is one that a worker has bound itself. The first worker's
// bind(2) goes through untouched. That of a later generation is done by BindPath
// under a name beside the path, since the path leads to the old generation
// still. At listen(2) AdoptPath makes the socket a member, and Steer renames the
// new name over the path, as with paths that the master has opened itself.
//
// Whatever is made, renamed or removed there is so as the worker, who must not
// get more done by the master than it might do alone.

// pendingName is where BindPath has bound a socket.
type pendingName struct {
	path string
	file fs.FileInfo
	id   Identity
}

// LearnPath returns the Socket for a path that a worker has bound; path is what
// ResolvePath gave, or "@name" for an abstract name, which all generations share. It has no members before the first AdoptPath.
func LearnPath(path string, opt Options) *Socket {
	s := &Socket{
		addr: Address{Name: path, Spec: path, Network: "unix", Path: path, UID: -1, GID: -1},
		how:  Renamed, network: "unix", bound: path, backlog: DefaultBacklog, share: opt.Share, learned: true,
		pending: map[uint64]pendingName{},
	}
	switch {
	case s.share:
		s.how = Shared
	case strings.HasPrefix(path, "@"):
		s.how, s.why = Shared, "abstract names cannot be renamed"
	}
	return s
}

// HasName tells whether one of the names of a unix path's sockets ends in base.
func (s *Socket) HasName(base string) bool {
	if !s.IsUnix() {
		return false
	}
	is := func(name string) bool { return filepath.Base(name) == base }
	for _, p := range s.pending {
		if is(p.path) {
			return true
		}
	}
	return is(s.addr.Path) || slices.ContainsFunc(s.members, func(m *Member) bool { return is(m.path) })
}

// Shows tells whether a directory entry, of which info is the Lstat, leads to
// one of the sockets of a unix path: a member's, or one that BindPath has bound.
func (s *Socket) Shows(info os.FileInfo) bool {
	if s.memberBehind(info) != nil {
		return true
	}
	for _, p := range s.pending {
		if os.SameFile(p.file, info) {
			return true
		}
	}
	return false
}

func (s *Socket) memberBehind(info fs.FileInfo) *Member {
	for _, m := range s.members {
		if info != nil && m.file != nil && os.SameFile(m.file, info) {
			return m
		}
	}
	return nil
}

// Reachable tells whether clients can get to a member. It is false for a
// learned path that the worker has renamed or removed, as haproxy does: the next
// generation is not going to bind it.
func (s *Socket) Reachable() bool {
	if !s.learned || !s.IsUnix() {
		return true
	}
	return s.memberShown() != nil
}

// memberShown is what the path leads to; nil for nothing, or nothing of ours.
func (s *Socket) memberShown() *Member {
	info, err := os.Lstat(s.addr.Path)
	if err != nil {
		return nil
	}
	return s.memberBehind(info)
}

// movedAway tells that a worker has bound the path and taken it away itself.
func (s *Socket) movedAway(m *Member) bool {
	return s.learned && m.path == "" && s.memberShown() == nil
}

// mayMend tells whether a path that does not lead to m was lost against the
// wish of m's worker: another generation's has had it too, and nobody has put
// anything else there.
func (s *Socket) mayMend(m *Member) bool {
	if len(s.members) < 2 || m.path == "" {
		return false
	}
	info, err := os.Lstat(s.addr.Path)
	return errors.Is(err, fs.ErrNotExist) || err == nil && s.memberBehind(info) != nil
}

// leaveLearned is what a leaving member means for the path. The last one takes
// it along: a path that leads nowhere helps nobody.
func (s *Socket) leaveLearned(m *Member) {
	if len(s.members) == 1 && s.showsPath(m) {
		m.removeName(s.addr.Path)
	}
}

// listen sets the length of the queue. The kernel tells clients of a unix
// socket who called listen(2) (SO_PEERCRED): for a worker's own socket that is
// the worker's user, though the process is the master.
func (m *Member) listen(backlog int) error {
	if m.maker == nil {
		return listenAgain(m.fd, backlog)
	}
	return m.maker.do(func() error { return listenAgain(m.fd, backlog) })
}
