package control

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

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
