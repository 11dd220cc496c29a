package group

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/moult/moult/fdpass"
)

// A pathGroup is the path of a unix stream socket that moves by rename: each
// generation's socket is bound to a name of its own beside the path and renamed
// over it when it begins to serve. The own name stays until the generation is
// gone, so that the path can be put back if the old worker removes it when it
// leaves.
//
// A learned path is one that a worker has bound itself. The first worker's
// bind(2) goes through untouched. That of a later generation is done by Bind
// under a name beside the path, since the path leads to the old generation
// still; at listen(2) Adopt makes the socket a member. Whatever is made, renamed
// or removed there is so as the worker, who must not get more done by the master
// than it might do alone.
type pathGroup struct {
	address
	pending map[uint64]pendingName // sockets that do not listen yet, by inode
	last    *Member                // declared: it has left, and the path may lead to it still
}

// pendingName is where Bind has bound a socket.
type pendingName struct {
	path string
	file fs.FileInfo
	id   Identity
}

// renames tells that this system has path groups.
const renames = true

func openPath(a fdpass.Address) (Group, error) {
	g := &pathGroup{address: address{addr: a, network: a.Network, bound: a.Path, backlog: a.QueueLength(), how: Renamed}, pending: map[uint64]pendingName{}}
	err := fdpass.ClaimPath(a, func() error {
		m, err := g.bind()
		if err != nil {
			return err
		}
		m.spare = true
		g.members = append(g.members, m)
		// Not by rename, which would take the path from whoever has it by now.
		err = os.Link(m.path, a.Path)
		if errors.Is(err, fs.ErrExist) {
			return os.NewSyscallError("bind", unix.EADDRINUSE)
		}
		return err
	})
	if err != nil {
		g.Close()
		return nil, fmt.Errorf("cannot listen on %s (%s): %w", a.Name, a.String(), err)
	}
	return g, nil
}

// LearnPath is the group for a path that workers bind themselves: what
// ResolvePath gave, or "@name" for an abstract name, which all generations share.
// It has no members before the first Adopt.
func LearnPath(path string, opt Options) Path {
	at := learnedAddress("unix", path)
	at.addr.Path = path
	abstract := strings.HasPrefix(path, "@")
	if abstract && !opt.Share {
		at.why = "abstract names cannot be renamed"
	}
	if abstract || opt.Share {
		return &sharedPath{sharedGroup{at}}
	}
	at.how = Renamed
	return &pathGroup{address: at, pending: map[uint64]pendingName{}}
}

// bind makes a socket of our own under a name beside the path.
func (g *pathGroup) bind() (*Member, error) {
	var m *Member
	err := fdpass.FreeName(g.addr.Path, func(name string) error {
		fd, err := fdpass.BindUnix(g.addr, name)
		if err != nil {
			return err
		}
		if m, err = newMember(fd); err != nil {
			return err
		}
		m.path = name
		m.file, _ = os.Lstat(name) // without it the name is never known as ours
		if err = m.listen(g.backlog); err != nil {
			m.removeFile(name)
			closeDescriptor(fd)
		}
		return err
	})
	return m, err
}

// Join implements Group. The workers of a generation share one socket; where
// they bind the path themselves, a generation has one when its first has bound it.
func (g *pathGroup) Join(gen int) (*Member, error) {
	for _, m := range g.members {
		if m.spare || m.gen == gen {
			m.spare, m.gen = false, gen
			m.users++
			return m, nil
		}
	}
	if g.learned {
		return nil, g.cannotJoin(gen, errNobody)
	}
	m, err := g.bind()
	if err != nil {
		return nil, g.cannotJoin(gen, err)
	}
	m.gen, m.users = gen, 1
	g.members = append(g.members, m)
	return m, nil
}

// Bind implements Path.
func (g *pathGroup) Bind(fd int, id Identity) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	closed, reused := g.pending[st.Ino]
	err := beside(&id, g.addr.Path, func(dir int) error {
		apart := unix.Unshare(unix.CLONE_FS) == nil
		if apart {
			unix.Umask(id.umask)
		}
		return fdpass.FreeName(g.addr.Path, func(name string) error {
			if err := bindIn(dir, fd, name); err != nil {
				return err
			}
			if !apart {
				id.applyUmask(dir, fd, name)
			}
			file, err := lookIn(dir, name)
			if err == nil {
				g.pending[st.Ino] = pendingName{path: name, file: file, id: id}
			}
			return err
		})
	})
	if err == nil && reused { // a socket is bound once: that was another one
		removeFile(&closed.id, closed.path, closed.file)
	}
	return err
}

// Adopt implements Path.
func (g *pathGroup) Adopt(fd, gen, backlog int, id Identity) (*Member, error) {
	m, err := newMember(fd)
	if err != nil {
		return nil, err
	}
	m.own, m.gen, m.users, m.maker = true, gen, 1, &id
	p, moved := g.pending[m.inode]
	if moved {
		m.path, m.file, m.maker = p.path, p.file, &p.id
	}
	if isListening(fd) {
		err = ErrListens
	} else {
		err = m.listen(max(g.backlog, backlog))
	}
	if err != nil {
		closeDescriptor(fd)
		return nil, err
	}
	g.backlog = max(g.backlog, backlog)
	delete(g.pending, m.inode)
	if !moved {
		m.file = g.boundAfter()
	}
	g.members = append(g.members, m)
	return m, nil
}

// boundAfter is the socket file of a worker that has bound the path itself. Where
// two have, the second after it has unlinked the name of the first, the path is
// the second's, whoever listens first.
func (g *pathGroup) boundAfter() fs.FileInfo {
	info, err := os.Lstat(g.addr.Path)
	if err != nil || info.Mode()&fs.ModeSocket == 0 {
		return nil
	}
	before := g.memberBehind(info)
	switch {
	case before == nil:
		return info
	case before.path == "":
		before.file = nil
		return info
	}
	return nil
}

// Forget implements Path.
func (g *pathGroup) Forget(inode uint64) {
	if p, ok := g.pending[inode]; ok {
		delete(g.pending, inode)
		removeFile(&p.id, p.path, p.file)
	}
}

// HasName implements Path.
func (g *pathGroup) HasName(base string) bool {
	is := func(name string) bool { return filepath.Base(name) == base }
	for _, p := range g.pending {
		if is(p.path) {
			return true
		}
	}
	return is(g.addr.Path) || slices.ContainsFunc(g.members, func(m *Member) bool { return is(m.path) })
}

// Shows implements Path.
func (g *pathGroup) Shows(info os.FileInfo) bool {
	if g.memberBehind(info) != nil {
		return true
	}
	for _, p := range g.pending {
		if os.SameFile(p.file, info) {
			return true
		}
	}
	return false
}

func (g *address) memberBehind(info fs.FileInfo) *Member {
	for _, m := range g.members {
		if m.is(info) {
			return m
		}
	}
	return nil
}

// is tells whether a directory entry leads to the member.
func (m *Member) is(info fs.FileInfo) bool {
	return m != nil && m.file != nil && info != nil && os.SameFile(m.file, info)
}

// memberShown is what the path leads to: nil with an error that is ErrNotExist
// for nothing, and without one for what is not ours.
func (g *address) memberShown() (*Member, error) {
	info, err := os.Lstat(g.addr.Path)
	if err != nil {
		return nil, err
	}
	return g.memberBehind(info), nil
}

func (g *pathGroup) shows(m *Member) bool {
	shown, _ := g.memberShown()
	return shown == m && m != nil
}

// Steer implements Group.
func (g *pathGroup) Steer(serving []*Member) error {
	if g.refused {
		return nil
	}
	if len(serving) > 0 && !slices.ContainsFunc(serving, g.shows) && !g.movedAway(serving[0]) {
		if err := g.show(serving[0]); err != nil {
			return g.cannotSteer(err)
		}
	}
	g.serving = slices.Clone(serving)
	return nil
}

// movedAway tells that a worker has bound the path and taken it away itself.
func (g *pathGroup) movedAway(m *Member) bool {
	shown, _ := g.memberShown()
	return g.learned && m.path == "" && shown == nil
}

// show makes the path lead to m, in one step: there is no moment without. The
// member that has to go keeps a name, by which it can be put back.
//
// What stands at a declared path and is not ours is another program's, which has
// made it since. At a learned path a worker may have made it, and would remove
// it for the one to come. There mode and owner go with the path: a server that
// calls chmod(2) or chown(2) after bind(2) has reached the file of the
// generation before.
func (g *pathGroup) show(m *Member) error {
	if m.path == "" {
		return errors.New("the socket has no name beside the path")
	}
	info, err := os.Lstat(g.addr.Path)
	before := g.memberBehind(info)
	if before == nil && g.last.is(info) {
		before = g.last
	}
	if err == nil && before == nil && !g.learned {
		return fmt.Errorf("another program's file stands there now (%s), remove it: %w", info.Mode(), unix.EEXIST)
	}
	if before != nil && g.learned {
		g.keepName(before)
	}
	return beside(m.maker, g.addr.Path, func(dir int) error {
		if !isIn(dir, m.path, m.file) {
			return unix.ENOENT
		}
		if before == nil && !g.learned {
			return linkIn(dir, m.path, g.addr.Path)
		}
		if before != nil && g.learned {
			copyPermissions(dir, m.path, info)
		}
		return renameCopy(dir, m.path, g.addr.Path)
	})
}

// keepName gives a member that has only the path a name beside it.
func (g *pathGroup) keepName(m *Member) {
	if m.path != "" {
		return
	}
	_ = beside(m.maker, g.addr.Path, func(dir int) error {
		return fdpass.FreeName(g.addr.Path, func(name string) error {
			err := linkIn(dir, g.addr.Path, name)
			if err == nil {
				m.path = name
			}
			return err
		})
	})
}

// Mend implements Mender.
func (g *pathGroup) Mend() (bool, error) {
	if g.refused || len(g.serving) == 0 || g.shows(g.serving[0]) || g.learned && !g.mayMend(g.serving[0]) {
		return false, nil
	}
	if err := g.show(g.serving[0]); err != nil {
		return false, fmt.Errorf("cannot put %s back: %w", g.addr.Path, err)
	}
	return true, nil
}

// mayMend tells whether a learned path that does not lead to m was lost against
// the wish of m's worker: another generation's has had it too, and nobody has
// put anything else there.
func (g *pathGroup) mayMend(m *Member) bool {
	if len(g.members) < 2 || m.path == "" {
		return false
	}
	shown, err := g.memberShown()
	return shown != nil || errors.Is(err, fs.ErrNotExist)
}

// Reachable implements Mender.
func (g *pathGroup) Reachable() bool {
	shown, err := g.memberShown()
	return shown != nil || !g.learned && errors.Is(err, fs.ErrNotExist)
}

// Verify implements Group: a path is followed by Mend.
func (g *pathGroup) Verify() error { return nil }

// Leave implements Group. The last one takes the path along: one that leads
// nowhere helps nobody. Otherwise it is the next Steer that moves the path.
func (g *pathGroup) Leave(m *Member) {
	if m.users--; m.users > 0 {
		return
	}
	if len(g.members) == 1 {
		m.removeFile(g.addr.Path)
	} else if !g.learned && g.shows(m) {
		g.last = m
	}
	m.removeFile(m.path)
	m.close()
	g.stopServing(m)
	g.remove(m)
}

// Refuse implements Group: it takes the path away from new clients, if it is
// still ours.
func (g *pathGroup) Refuse() error {
	g.refused = true
	g.hide()
	return nil
}

func (g *pathGroup) hide() {
	for _, m := range g.members {
		m.removeFile(g.addr.Path)
	}
	if g.last != nil {
		g.last.removeFile(g.addr.Path)
	}
}

// Close implements Group.
func (g *pathGroup) Close() {
	g.hide()
	for _, m := range g.members {
		m.removeFile(m.path)
	}
	for inode := range g.pending {
		g.Forget(inode)
	}
	g.closeMembers()
}

// A sharedPath is a path or an abstract name that has one socket for all.
type sharedPath struct{ sharedGroup }

func withPath(g *sharedGroup) Group {
	if g.isUnix() {
		return &sharedPath{*g}
	}
	return g
}

// Bind implements Path.
func (g *sharedPath) Bind(int, Identity) error { return errTaken }

// Adopt implements Path.
func (g *sharedPath) Adopt(fd, gen, backlog int, id Identity) (*Member, error) {
	m, err := g.adopt(fd, gen, backlog, &id)
	if err == nil && !g.abstract() {
		m.path = g.addr.Path
		m.file, _ = os.Lstat(m.path) // without it the path is never known as ours
	}
	return m, err
}

func (g *sharedPath) abstract() bool { return strings.HasPrefix(g.addr.Path, "@") }

// Forget implements Path.
func (g *sharedPath) Forget(uint64) {}

// HasName implements Path.
func (g *sharedPath) HasName(base string) bool {
	return !g.abstract() && filepath.Base(g.addr.Path) == base
}

// Shows implements Path.
func (g *sharedPath) Shows(info os.FileInfo) bool { return g.memberBehind(info) != nil }

// Mend implements Mender: there is no other name by which a path could be put
// back.
func (g *sharedPath) Mend() (bool, error) { return false, nil }

// Reachable implements Mender.
func (g *sharedPath) Reachable() bool {
	shown, _ := g.memberShown()
	return g.abstract() || shown != nil
}
