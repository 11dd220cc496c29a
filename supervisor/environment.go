package supervisor

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// logicalDirectory is the working directory by the name that the starter knows
// it by. In a deploy by symbolic link, that name leads to the new release when
// the link has moved, while the kernel's stays with the old one.
func logicalDirectory() string {
	logical := os.Getenv("PWD")
	if !filepath.IsAbs(logical) {
		return ""
	}
	here, err := os.Stat(".")
	if err != nil {
		return ""
	}
	named, err := os.Stat(logical)
	if err != nil || !os.SameFile(here, named) {
		return ""
	}
	return logical
}

// readEnvFile reads lines of KEY=VALUE, as systemd's EnvironmentFile= and
// docker's --env-file do: empty lines and lines that begin with # are skipped,
// a value in matching quotes loses them.
func readEnvFile(path string) ([]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("cannot read --env-file: %w", err)
	}
	defer f.Close()
	var env []string
	scan := bufio.NewScanner(f)
	for n := 1; scan.Scan(); n++ { // lines are not quoted in errors: they hold secrets
		line := strings.TrimSpace(scan.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		if !ok || key == "" || strings.ContainsAny(key, " \t") {
			return nil, fmt.Errorf("cannot read %s, line %d: want KEY=VALUE", path, n)
		}
		env = append(env, key+"="+unquote(value))
	}
	if err := scan.Err(); err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", path, err)
	}
	return env, nil
}

func unquote(s string) string {
	if n := len(s); n >= 2 && (s[0] == '"' || s[0] == '\'') && s[n-1] == s[0] {
		return s[1 : n-1]
	}
	return s
}
