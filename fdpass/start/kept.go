package start

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Kept is an executable that is held open, so that it can be started again
// although a deploy has removed or replaced its file.
type Kept struct {
	file    *os.File // opened for its place only (O_PATH)
	path    string
	size    int64
	changed time.Time
	named   bool // it is the file that the command names
}

// interpreters run what another file says, which is not kept.
var interpreters = regexp.MustCompile(`^(ba|da|z|k|a)?sh$|^(python|pypy|ruby|perl|php|node|nodejs|deno|bun|java|lua|tclsh|guile)[0-9.-]*$`)

// Keep takes hold of the program that a process runs, while the process
// certainly is that one: before it has been reaped. file is what its command
// names, Started.Path; after a rollback that is what was kept, whatever it names
// by now. The caller closes what is returned; nil where a program cannot be
// held. It asks the file system, as Usable does.
func Keep(pid int, file string, rolledBack *Kept) *Kept {
	exe := "/proc/" + strconv.Itoa(pid) + "/exe"
	opened, err := openPath(exe)
	if err != nil {
		return nil
	}
	k := &Kept{file: opened}
	path, unread := os.Readlink(exe)
	info, unseen := opened.Stat()
	if unread != nil || unseen != nil {
		k.Close()
		return nil
	}
	k.path = strings.TrimSuffix(path, " (deleted)")
	k.size, k.changed = info.Size(), info.ModTime()
	named, err := os.Stat(file)
	k.named = rolledBack != nil || err == nil && os.SameFile(info, named)
	return k
}

// Close lets go of the file. What runs goes on; nil holds nothing.
func (k *Kept) Close() {
	if k != nil {
		k.file.Close()
	}
}

// candidates is none for nil.
func (k *Kept) candidates() []candidate {
	if k == nil {
		return nil
	}
	return []candidate{{path: k.path, file: descriptorPath(int(k.file.Fd()))}}
}

// Usable tells why the program cannot be started again, or nil.
func (k *Kept) Usable() error {
	if k == nil {
		return errors.New("no program has served before this one")
	}
	if !k.named || interpreters.MatchString(filepath.Base(k.path)) {
		return fmt.Errorf("the command is a script, or starts another program: only its interpreter (%s) is kept, not what it ran; put the old files back and upgrade", k.path)
	}
	info, err := k.file.Stat()
	if err != nil {
		return err
	}
	if info.Size() != k.size || !info.ModTime().Equal(k.changed) {
		return fmt.Errorf("%s was rewritten in place since it was started, so that the old program is gone; deploy by rename", k.path)
	}
	return nil
}
