package fdpass

import (
	"fmt"
	"os/user"
	"strconv"
)

// Credential is who a worker runs as.
type Credential struct {
	UID    int    `json:"uid"`
	GID    int    `json:"gid"`
	Groups []int  `json:"groups"`
	User   string `json:"user,omitempty"` // empty where only the group changes
	Home   string `json:"home,omitempty"`
}

// LookupCredential finds users and groups by name or number; with no group it
// is the user's own, with all the supplementary ones. Both empty: nil.
func LookupCredential(name, group string) (*Credential, error) {
	if name == "" && group == "" {
		return nil, nil
	}
	c := &Credential{UID: -1, GID: -1}
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
	if c.UID >= 0 && c.GID < 0 {
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
