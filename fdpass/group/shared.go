package group

import (
	"errors"
	"os"
	"strings"
	"syscall"

	"github.com/moult/moult/fdpass"
)

// A sharedGroup is an address with one socket for all workers of all
// generations: who accepts gets the connection.
type sharedGroup struct{ address }

// openShared opens a; why is told where one would expect better.
func openShared(a fdpass.Address, why string) (*sharedGroup, error) {
	at, err := openSocket(a, nil)
	if err != nil {
		return nil, err
	}
	at.why = why
	m := at.members[0]
	m.common, m.foreign = true, a.Network == "fd" || a.Network == "systemd"
	if strings.HasPrefix(a.Path, "/") {
		m.path = a.Path
		m.file, _ = os.Lstat(a.Path) // without it the path is never known as ours
	}
	return &sharedGroup{*at}, nil
}

// Join implements Group.
func (g *sharedGroup) Join(gen int) (*Member, error) {
	if len(g.members) == 0 {
		return nil, g.cannotJoin(gen, errNobody)
	}
	g.members[0].users++
	return g.members[0], nil
}

// Steer implements Group: all members get new connections, whoever is named.
func (g *sharedGroup) Steer([]*Member) error { return nil }

// Verify implements Group.
func (g *sharedGroup) Verify() error { return nil }

// Leave implements Group. What a worker has made goes with the last one that
// has it; what the master has opened stays.
func (g *sharedGroup) Leave(m *Member) {
	if m.users--; m.users > 0 || !g.learned {
		return
	}
	g.hidePath()
	m.close()
	g.remove(m)
}

// Refuse implements Group.
func (g *sharedGroup) Refuse() error {
	if g.refused {
		return nil
	}
	g.refused = true
	g.hidePath()
	if g.network != "tcp" || len(g.members) == 0 || g.members[0].foreign || g.addr.ReusePort {
		return nil // with reuseport=1 others are in the group, whose connections they are
	}
	return g.refuseTCP()
}

// Close implements Group.
func (g *sharedGroup) Close() {
	g.hidePath()
	g.closeMembers()
}

// hidePath takes the path away from new clients, if it is still ours.
func (g *sharedGroup) hidePath() {
	for _, m := range g.members {
		if m.path != "" {
			m.removeFile(m.path)
		}
	}
}

// Permit implements Inet. The first socket is not touched: with SO_REUSEPORT
// any program of the same user could take a share of its connections.
func (g *sharedGroup) Permit(int) error {
	if len(g.members) == 0 {
		return nil
	}
	return errTaken
}

var errTaken = errors.Join(syscall.EADDRINUSE, errors.New("the address has one socket for all"))

// Adopt implements Inet.
func (g *sharedGroup) Adopt(fd, gen, backlog int) (*Member, error) {
	return g.adopt(fd, gen, backlog, nil)
}

func (g *sharedGroup) adopt(fd, gen, backlog int, maker *Identity) (*Member, error) {
	m, err := newMember(fd)
	if err != nil {
		return nil, err
	}
	m.own, m.common, m.gen, m.users, m.maker = true, true, gen, 1, maker
	switch {
	case len(g.members) > 0:
		err = errTaken
	case g.isStream() && isListening(fd):
		err = ErrListens
	case g.isStream():
		g.backlog = max(g.backlog, backlog)
		err = m.listen(g.backlog)
	}
	if err != nil {
		m.close()
		return nil, err
	}
	g.members = []*Member{m}
	return m, nil
}

// Resume implements Inet.
func (g *sharedGroup) Resume(m *Member, backlog int) error {
	g.backlog = max(g.backlog, backlog)
	return g.Relisten(m)
}

// Listening implements Inet: no array is followed.
func (g *sharedGroup) Listening(*Member) bool { return true }

func isListening(fd int) bool {
	n, err := syscall.GetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_ACCEPTCONN)
	return err == nil && n != 0
}
