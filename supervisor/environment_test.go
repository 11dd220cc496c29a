package supervisor

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func envFile(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "env")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestEnvFile(t *testing.T) {
	for _, c := range []struct {
		content string
		want    []string
	}{
		{"", nil},
		{"A=1\nB=2\n", []string{"A=1", "B=2"}},
		{"A=1", []string{"A=1"}},
		{"\n  \n# A=1\n  # B=2\nC=3\n", []string{"C=3"}},
		{"A=1\r\nB=2\r\n", []string{"A=1", "B=2"}},
		{"A=", []string{"A="}},
		{"A=b=c", []string{"A=b=c"}},
		{"A=a b", []string{"A=a b"}},
		{"A=x#y", []string{"A=x#y"}},
		{`A="a b"`, []string{"A=a b"}},
		{`A='a b'`, []string{"A=a b"}},
		{`A="`, []string{`A="`}},
		{`A="a'`, []string{`A="a'`}},
		{`A=""`, []string{"A="}},
		{"A=$HOME", []string{"A=$HOME"}},
		{"A=1\nA=2", []string{"A=1", "A=2"}}, // the last one wins when it is used
		{"Ä=ö", []string{"Ä=ö"}},
	} {
		got, err := readEnvFile(envFile(t, c.content))
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%q: %q, %v; want %q", c.content, got, err, c.want)
		}
	}
}

func TestEnvFileErrors(t *testing.T) {
	for _, c := range []struct{ content, want string }{
		{"A=1\nsecretword\n", "line 2"},
		{"=1", "line 1"},
		{"export A=1", "line 1"},
		{"# x\n\nA B=secretword", "line 3"},
		{"A=" + strings.Repeat("x", 1<<20), "too long"},
	} {
		got, err := readEnvFile(envFile(t, c.content))
		if err == nil || !strings.Contains(err.Error(), c.want) || got != nil {
			t.Errorf("%.20q: %.20q, %v; want an error with %q and nothing else", c.content, got, err, c.want)
		}
		if err != nil && strings.Contains(err.Error(), "secretword") {
			t.Errorf("the error shows what stands in the file: %v", err)
		}
	}
}

func TestEnvFileThatIsNotThere(t *testing.T) {
	path := filepath.Join(t.TempDir(), "none")
	if _, err := readEnvFile(path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("the error is %v, want one that names %s", err, path)
	}
}

func TestLogicalDirectoryIsTheNameOfTheStarter(t *testing.T) {
	dir := t.TempDir()
	release, current := filepath.Join(dir, "v1"), filepath.Join(dir, "current")
	if err := os.Mkdir(release, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(release, current); err != nil {
		t.Fatal(err)
	}
	t.Chdir(current)
	t.Setenv("PWD", current)
	if got := logicalDirectory(); got != current {
		t.Errorf("%q, want %q", got, current)
	}
	for _, stale := range []string{"", "current", dir, filepath.Join(dir, "none")} {
		t.Setenv("PWD", stale)
		if got := logicalDirectory(); got != "" {
			t.Errorf("PWD=%q is taken for the working directory", stale)
		}
	}
}
