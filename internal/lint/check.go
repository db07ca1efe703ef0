package lint

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// Finding is one place that breaks a rule. Report alone says that it is worth
// a look and no failure.
type Finding struct {
	Pos    string // file:line
	Text   string
	Report bool
}

func (f Finding) String() string { return f.Pos + ": " + f.Text }

// skipped folders hold no code of the module.
func skipped(name string) bool {
	return strings.HasPrefix(name, ".") || slices.Contains([]string{"build", "mnt", "testdata"}, name)
}

// Check reads all Go files below root and returns what breaks the rules.
func Check(root string, rules Rules) ([]Finding, error) {
	c := checker{rules: rules, fset: token.NewFileSet(), documented: map[string]bool{}}
	err := filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			return enter(root, file, d)
		}
		if filepath.Ext(file) != ".go" {
			return nil
		}
		rel, err := filepath.Rel(root, file)
		if err != nil {
			return err
		}
		return c.file(file, filepath.ToSlash(rel))
	})
	c.packages()
	return c.findings, err
}

func enter(root, dir string, d fs.DirEntry) error {
	if dir == root {
		return nil
	}
	if skipped(d.Name()) {
		return fs.SkipDir
	}
	if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
		return fs.SkipDir // a module of its own
	}
	return nil
}

type checker struct {
	rules      Rules
	fset       *token.FileSet
	findings   []Finding
	documented map[string]bool // package folder: has a comment
}

func (c *checker) add(pos token.Pos, rel, format string, args ...any) {
	line := c.fset.Position(pos).Line
	c.findings = append(c.findings, Finding{Pos: fmt.Sprintf("%s:%d", rel, line), Text: fmt.Sprintf(format, args...)})
}

func (c *checker) file(name, rel string) error {
	f, err := parser.ParseFile(c.fset, name, nil, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return err
	}
	test := strings.HasSuffix(rel, "_test.go")
	dir := path.Dir(rel)
	for _, spec := range f.Imports {
		c.edge(spec, rel, dir, strings.Trim(spec.Path.Value, `"`), test)
	}
	c.habits(f, rel, test)
	if !test {
		c.documented[dir] = c.documented[dir] || f.Doc != nil
		c.sizes(f, rel)
	}
	return nil
}

// edge judges one import.
func (c *checker) edge(spec *ast.ImportSpec, rel, dir, imported string, test bool) {
	if inside, ok := strings.CutPrefix(imported, c.rules.Module+"/"); ok {
		c.inner(spec, rel, dir, inside, test)
		return
	}
	first, _, _ := strings.Cut(imported, "/")
	if !strings.Contains(first, ".") {
		return // the standard library
	}
	if !test && within(dir, c.rules.StdOnly) {
		c.add(spec.Pos(), rel, "%s imports %s: it imports the standard library only", dir, imported)
		return
	}
	for _, d := range c.rules.Doors {
		if !below(imported, d.Library) {
			continue
		}
		if !within(dir, d.Dirs) && !(test && within(dir, d.Test)) {
			c.add(spec.Pos(), rel, "%s imports %s, whose door is %v: %s", dir, imported, d.Dirs, d.Reason)
		}
		return
	}
	c.add(spec.Pos(), rel, "%s imports %s, which has no door: add it to rules.go and docs/DEPENDENCIES.md with its reason", dir, imported)
}

func (c *checker) inner(spec *ast.ImportSpec, rel, dir, imported string, test bool) {
	room := c.room(dir)
	if room == nil {
		c.add(spec.Pos(), rel, "%s belongs to no room: add it to rules.go with its reason", dir)
		return
	}
	if within(imported, room.Imports) || test && (below(imported, room.Dir) || within(imported, room.Test) || within(imported, []string{"meta", "internal"})) {
		if !test && strings.HasSuffix(imported, "test") && !strings.HasSuffix(dir, "test") && !c.room(dir).Tests {
			c.add(spec.Pos(), rel, "%s imports %s: shipped code does not import test support", dir, imported)
		}
		return
	}
	c.add(spec.Pos(), rel, "%s imports %s: %s", dir, imported, room.Reason)
}

// room finds the longest that holds dir.
func (c *checker) room(dir string) *Room {
	var best *Room
	for i, r := range c.rules.Rooms {
		if below(dir, r.Dir) && (best == nil || len(r.Dir) > len(best.Dir)) {
			best = &c.rules.Rooms[i]
		}
	}
	return best
}

// below reports whether p is dir or inside of it; everything is below "".
func below(p, dir string) bool { return dir == "" || p == dir || strings.HasPrefix(p, dir+"/") }

func within(p string, dirs []string) bool {
	return slices.ContainsFunc(dirs, func(d string) bool { return below(p, d) })
}

// habits looks for init functions and for syscall.Errno.
func (c *checker) habits(f *ast.File, rel string, test bool) {
	black := below(rel, "integration") || below(rel, "bench")
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncDecl:
			if n.Recv == nil && n.Name.Name == "init" {
				c.add(n.Pos(), rel, "init does work that nobody called for: build it where it is used")
			}
		case *ast.SelectorExpr:
			x, ok := n.X.(*ast.Ident)
			if ok && x.Name == "syscall" && n.Sel.Name == "Errno" && !test && !black && rel != c.rules.ErrnoFile {
				c.add(n.Pos(), rel, "syscall.Errno belongs to %s alone: use a meta.Kind", c.rules.ErrnoFile)
			}
		}
		return true
	})
}

func (c *checker) sizes(f *ast.File, rel string) {
	l := c.rules.Limits
	c.size(f.Pos(), rel, "file", c.fset.File(f.Pos()).LineCount(), l.LongFile, l.MaxFile)
	for _, d := range f.Decls {
		if fn, ok := d.(*ast.FuncDecl); ok {
			lines := c.fset.Position(fn.End()).Line - c.fset.Position(fn.Pos()).Line + 1
			c.size(fn.Pos(), rel, "function "+fn.Name.Name, lines, l.LongFunc, l.MaxFunc)
		}
	}
}

func (c *checker) size(pos token.Pos, rel, what string, lines, long, most int) {
	if lines <= long {
		return
	}
	c.add(pos, rel, "%s has %d lines: at most %d are wanted, %d allowed", what, lines, long, most)
	c.findings[len(c.findings)-1].Report = lines <= most
}

// packages finds those without a comment that says what they are for.
func (c *checker) packages() {
	for dir, ok := range c.documented {
		if !ok {
			c.findings = append(c.findings, Finding{Pos: dir, Text: "the package has no comment: say its purpose, what it promises and who calls it"})
		}
	}
	slices.SortStableFunc(c.findings, func(a, b Finding) int { return strings.Compare(a.Pos, b.Pos) })
}
