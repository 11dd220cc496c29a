package machine

import (
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/moult/moult/"

// rule says what a package, and all that it imports of ours, must not import.
// A package that does not exist is nobody's business.
type rule struct {
	packages string // a pattern of go list
	never    []string
	once     string   // it holds as soon as this package is there; empty: now
	but      []string // all that it may import of ours; nil: anything
}

// pure is what has no place where nothing but decisions are made.
var pure = []string{
	"os", "os/exec", "os/signal", "net", "syscall", "log", "log/slog", "context", "sync", "golang.org/x/sys/unix", "github.com/rs/zerolog",
}

// above is what nothing below the shell imports.
var above = []string{module + "supervisor", module + "supervisor/machine"}

var rules = []rule{
	// What the master knows and decides has no clock, no descriptor, no file and
	// no log.
	{packages: "supervisor/machine", never: pure, but: []string{"supervisor/control/api", "supervisor/ready"}},
	{packages: "supervisor/ready", never: pure, but: []string{}},
	// drain judges the plain values that observe has read.
	{packages: "supervisor/drain", never: above, but: []string{"supervisor/observe"}},
	{packages: "supervisor/control/api", never: pure, but: []string{}},
	// Imports run one way.
	{packages: "supervisor/process", never: above},
	{packages: "supervisor/capture", never: above},
	{packages: "supervisor/observe", never: above},
	{packages: "supervisor/control/...", never: above},
	{packages: "fdpass/...", never: above},
	// What a Go server imports pulls in nothing that filters or steers.
	{packages: "worker", never: []string{"golang.org/x/net/bpf", module + "fdpass/intercept", module + "fdpass/group", "github.com/rs/zerolog"}, once: "fdpass/group"},
}

func TestImports(t *testing.T) {
	for _, r := range rules {
		if r.once != "" && len(list(t, "{{.ImportPath}}", module+r.once)) == 0 {
			continue
		}
		for _, path := range list(t, "{{.ImportPath}}", module+r.packages) {
			for _, dep := range list(t, `{{join .Deps "\n"}}`, path) {
				for _, never := range r.never {
					if dep == never && isOurs(t, path, dep) {
						t.Errorf("%s imports %s, if only by others", path, dep)
					}
				}
				ours, is := strings.CutPrefix(dep, module)
				if is && r.but != nil && !slices.Contains(r.but, ours) {
					t.Errorf("%s imports %s", path, dep)
				}
			}
		}
	}
}

// isOurs tells whether it is a package of ours that imports dep: what the
// standard library needs for itself does not count.
func isOurs(t *testing.T, path, dep string) bool {
	if strings.Contains(dep, ".") {
		return true
	}
	imports := list(t, `{{join .Imports "\n"}}`, path)
	for _, p := range list(t, `{{join .Deps "\n"}}`, path) {
		if strings.HasPrefix(p, module) {
			imports = append(imports, list(t, `{{join .Imports "\n"}}`, p)...)
		}
	}
	return slices.Contains(imports, dep)
}

// list is what go list says, nothing where there is no such package.
func list(t *testing.T, format, pattern string) []string {
	t.Helper()
	out, err := exec.Command("go", "list", "-e", "-f", "{{if .GoFiles}}"+format+"{{end}}", pattern).Output()
	if err != nil {
		t.Fatalf("go list %s: %v", pattern, err)
	}
	return strings.Fields(string(out))
}

// The machine is told the time; it never asks for it.
func TestTheMachineHasNoClock(t *testing.T) {
	here, _ := filepath.Glob("*.go")
	beside, _ := filepath.Glob("../ready/*.go")
	for _, name := range append(here, beside...) {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if s, is := n.(*ast.SelectorExpr); is && isClock(s) {
				t.Errorf("%s: time.%s", name, s.Sel.Name)
			}
			return true
		})
	}
}

func isClock(s *ast.SelectorExpr) bool {
	from, is := s.X.(*ast.Ident)
	return is && from.Name == "time" && slices.Contains([]string{"Now", "Since", "Until", "After", "AfterFunc", "Sleep", "Tick", "NewTimer", "NewTicker"}, s.Sel.Name)
}

// Rooms with one job: no type has more than 30 methods or 20 fields, and the
// package not more than 15 files.
func TestSizes(t *testing.T) {
	methods, n := map[string]int{}, 0
	names, _ := filepath.Glob("*.go")
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		n++
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(x ast.Node) bool {
			switch x := x.(type) {
			case *ast.FuncDecl:
				if x.Recv != nil {
					methods[strings.TrimPrefix(types.ExprString(x.Recv.List[0].Type), "*")]++
				}
			case *ast.TypeSpec:
				if s, is := x.Type.(*ast.StructType); is && s.Fields.NumFields() > 20 {
					t.Errorf("%s has %d fields", x.Name, s.Fields.NumFields())
				}
			}
			return true
		})
	}
	for name, count := range methods {
		if count > 30 {
			t.Errorf("%s has %d methods", name, count)
		}
	}
	if n > 15 {
		t.Errorf("%d files", n)
	}
}
