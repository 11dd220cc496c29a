package control

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

const (
	systemDirectory = "/run/moult"
	suffix          = ".sock"
	private         = 0o700
	// maxPath is what fits into a socket address of any system here, with
	// the zero at its end.
	maxPath = 103
)

// Directory is where the control sockets of this user's masters are by
// default: $XDG_RUNTIME_DIR/moult, or /run/moult.
func Directory() string {
	if dir := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "moult")
	}
	return systemDirectory
}

// directories are all where a master of this user may be found: one that was
// started from a login and one that was started at boot differ in
// XDG_RUNTIME_DIR.
func directories() []string {
	var all []string
	for _, dir := range []string{Directory(), systemDirectory, filepath.Join("/run/user", strconv.Itoa(os.Geteuid()), "moult")} {
		if !slices.Contains(all, dir) {
			all = append(all, dir)
		}
	}
	return all
}

// nameOf is the name of the master that a control socket belongs to.
func nameOf(path string) string { return strings.TrimSuffix(filepath.Base(path), suffix) }

// ownDirectory makes a default directory, or checks that the one there is
// nobody else's: whoever owns it could put another socket in place of ours.
func ownDirectory(dir string) error {
	err := os.Mkdir(dir, private)
	if err == nil {
		return nil
	}
	info, statErr := os.Lstat(dir)
	if statErr != nil {
		return err
	}
	if !info.IsDir() {
		return fmt.Errorf("%s is not a directory", dir)
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("directory %s belongs to uid %d; choose another with --control", dir, st.Uid)
	}
	if info.Mode().Perm() == private {
		return nil
	}
	return os.Chmod(dir, private)
}

// makeParent makes the directory of a path that the user chose; one that is
// there stays as it is.
func makeParent(path string) error { return os.MkdirAll(filepath.Dir(path), private) }

// Found is a master that was found by its control socket.
type Found struct {
	Name string
	Path string
	PID  int // 0 where it cannot be seen
}

// Find returns the masters in the default directories, by name. None is no
// error; a directory that cannot be read is one only where nothing is found.
func Find() ([]Found, error) {
	var all []Found
	var trouble error
	for _, dir := range directories() {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) && trouble == nil {
			trouble = fmt.Errorf("cannot look for masters in %s: %w", dir, cause(err))
		}
		for _, entry := range entries {
			if path := filepath.Join(dir, entry.Name()); strings.HasSuffix(path, suffix) {
				if live, pid, err := probe(path); live && err == nil {
					all = append(all, Found{Name: nameOf(path), Path: path, PID: pid})
				}
			}
		}
	}
	if len(all) > 0 {
		trouble = nil
	}
	return all, trouble
}

// pathsOf are those that a master of this name may have.
func pathsOf(name string) []string {
	var paths []string
	for _, dir := range directories() {
		paths = append(paths, filepath.Join(dir, name+suffix))
	}
	return paths
}
