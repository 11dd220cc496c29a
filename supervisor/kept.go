package supervisor

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"time"
)

// keptProgram is the executable of a generation, held open so that it can be
// started again although a deploy has removed or replaced its file.
type keptProgram struct {
	file    *os.File // opened for its place only (O_PATH)
	path    string
	size    int64
	changed time.Time
}

// interpreters run what another file says, which is not kept.
var interpreters = regexp.MustCompile(`^(ba|da|z|k|a)?sh$|^(python|pypy|ruby|perl|php|node|nodejs|deno|bun|java|lua|tclsh|guile)[0-9.-]*$`)

// keep takes hold of the program that a process runs, while the process
// certainly is that one: before it has been reaped.
func keep(pid int) *keptProgram {
	file, err := openPath("/proc/" + strconv.Itoa(pid) + "/exe")
	if err != nil {
		return nil
	}
	k := &keptProgram{file: file, path: executableOf(pid)}
	info, err := file.Stat()
	if err != nil {
		k.close()
		return nil
	}
	k.size, k.changed = info.Size(), info.ModTime()
	return k
}

func (k *keptProgram) close() {
	if k != nil {
		k.file.Close()
	}
}

// usable tells why the program cannot be started again.
func (k *keptProgram) usable() error {
	if k == nil {
		return errors.New("no program has served before this one")
	}
	if interpreters.MatchString(filepath.Base(k.path)) {
		return fmt.Errorf("the command is a script: only its interpreter (%s) is kept, not what it ran; put the old files back and upgrade", k.path)
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
