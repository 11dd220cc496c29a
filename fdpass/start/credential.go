package start

import (
	"fmt"
	"os"
	"os/user"
	"strconv"
	"syscall"
)

// Credential is who a worker runs as.
type Credential struct {
	UID    int    `json:"uid"`
	GID    int    `json:"gid"`
	Groups []int  `json:"groups"`
	User   string `json:"user,omitempty"` // empty where no entry is known, or only the group changes
	Home   string `json:"home,omitempty"`
}

// LookupCredential finds users and groups by name or number; with no group it
// is the user's own, with all the supplementary ones. Both empty: nil. It may ask
// a directory server, and is not called from an event loop.
func LookupCredential(name, group string) (*Credential, error) {
	if name == "" && group == "" {
		return nil, nil
	}
	c := &Credential{UID: os.Geteuid(), GID: -1}
	if name != "" {
		if err := c.become(name); err != nil {
			return nil, fmt.Errorf("cannot find user %q: %w", name, err)
		}
	}
	if group != "" {
		gid, err := lookupGroup(group)
		if err != nil {
			return nil, fmt.Errorf("cannot find group %q: %w", group, err)
		}
		c.GID = gid
		if len(c.Groups) == 0 {
			c.Groups = []int{gid}
		}
	}
	if c.GID < 0 {
		return nil, fmt.Errorf("user %s has no entry in /etc/passwd, so that its group is not known: add --group", name)
	}
	return c, nil
}

func (c *Credential) become(name string) error {
	u, err := user.Lookup(name)
	if err != nil {
		uid, bad := strconv.Atoi(name)
		if bad != nil || uid < 0 {
			return err
		}
		if u, err = user.LookupId(name); err != nil {
			// A minimal container has no /etc/passwd, and needs none.
			c.UID = uid
			return nil
		}
	}
	c.User, c.Home = u.Username, u.HomeDir
	if c.UID, err = strconv.Atoi(u.Uid); err != nil {
		return err
	}
	if c.GID, err = strconv.Atoi(u.Gid); err != nil {
		return err
	}
	ids, err := u.GroupIds()
	if err != nil {
		return err
	}
	for _, id := range ids {
		n, err := strconv.Atoi(id)
		if err != nil {
			return err
		}
		c.Groups = append(c.Groups, n)
	}
	return nil
}

func lookupGroup(name string) (int, error) {
	g, err := user.LookupGroup(name)
	if err != nil {
		if _, bad := strconv.Atoi(name); bad != nil {
			return -1, err
		}
		return strconv.Atoi(name)
	}
	return strconv.Atoi(g.Gid)
}

// toAssume is nil where there is nothing to change: an ordinary user may name
// itself.
func (c *Credential) toAssume() *Credential {
	if c != nil && os.Geteuid() != 0 && c.UID == os.Geteuid() && c.GID == os.Getegid() {
		return nil
	}
	return c
}

// kernel is what the child assumes between fork and execve.
func (c *Credential) kernel() *syscall.Credential {
	if c == nil {
		return nil
	}
	k := &syscall.Credential{Uid: uint32(c.UID), Gid: uint32(c.GID)}
	for _, id := range c.Groups {
		k.Groups = append(k.Groups, uint32(id))
	}
	return k
}

// change sets the ids in the one order that works: the groups while there is
// the right to, the user last.
func (c *Credential) change(groups func([]int) error, gid, uid func(int) error) error {
	if c == nil {
		return nil
	}
	name := c.User
	if name == "" {
		name = fmt.Sprintf("%d:%d", c.UID, c.GID)
	}
	step, what, err := "set the groups of", name, groups(c.Groups)
	if err == nil {
		step, what, err = "become group", strconv.Itoa(c.GID), gid(c.GID)
	}
	if err == nil {
		step, what, err = "become user", name, uid(c.UID)
	}
	if err == nil {
		return nil
	}
	e := &StartError{Step: step, What: what, Err: errnoOf(err)}
	if e.Err == syscall.EPERM {
		e.Note = "only root may"
	}
	return e
}
