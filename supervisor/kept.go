package supervisor

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/moult/moult/fdpass"
)

// keptProgram is the executable of a generation, held open so that it can be
// started again although a deploy has removed or replaced its file.
type keptProgram struct {
	file    *os.File // opened for its place only (O_PATH)
	path    string
	size    int64
	changed time.Time
	named   bool // it is the file that the command names
}

// interpreters run what another file says, which is not kept.
var interpreters = regexp.MustCompile(`^(ba|da|z|k|a)?sh$|^(python|pypy|ruby|perl|php|node|nodejs|deno|bun|java|lua|tclsh|guile)[0-9.-]*$`)

// keep takes hold of the program that a process runs, while the process
// certainly is that one: before it has been reaped. After a rollback that is
// what was kept, whatever the command names by now.
func keep(pid int, command string, rolledBack *keptProgram) *keptProgram {
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
	named, err := os.Stat(command)
	k.named = rolledBack != nil || err == nil && os.SameFile(info, named)
	return k
}

// commandFile is the file that a command names, looked up as the shim does.
func commandFile(p fdpass.Program) string {
	command := p.Command[0]
	if strings.Contains(command, "/") {
		return inDirectory(p.Dir, command)
	}
	path := ""
	for _, kv := range p.Env {
		if value, ok := strings.CutPrefix(kv, "PATH="); ok {
			path = value
		}
	}
	for _, dir := range filepath.SplitList(path) {
		file := inDirectory(p.Dir, filepath.Join(dir, command))
		if info, err := os.Stat(file); err == nil && !info.IsDir() && info.Mode()&0o111 != 0 {
			return file
		}
	}
	return ""
}

func inDirectory(dir, path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(dir, path)
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
