package inprocess

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"nexusfs/meta"

	"pgregory.net/rapid"
)

// object is an inode of the model.
type object struct {
	dir      bool
	children map[string]*object
	nlink    int
	ino      meta.Ino
}

// model is a tree kept in memory by the rules of POSIX, written apart from
// meta's: what both agree on is probably right.
type model struct {
	fs   *meta.FS
	root *object
	live []*object // directories that ever were, to address dead ones too
}

var caller = meta.Caller{UID: 1000, GID: 1000, PID: 1}

// TestNamespaceModel plays random operations on names against the model and
// compares each answer and, at the end, the whole tree.
func TestNamespaceModel(t *testing.T) {
	fs := open(t)
	rapid.Check(t, func(rt *rapid.T) {
		ctx := context.Background()
		top := fmt.Sprintf("case-%d", caseNumber.Add(1))
		a, err := fs.Mkdir(ctx, caller, meta.RootIno, top, 0o755, 0)
		if err != nil {
			rt.Fatal(err)
		}
		root := &object{dir: true, children: map[string]*object{}, nlink: 2, ino: a.Ino}
		m := &model{fs: fs, root: root, live: []*object{root}}
		rt.Repeat(map[string]func(*rapid.T){
			"mkdir":  m.mkdir,
			"create": m.create,
			"unlink": m.unlink,
			"rmdir":  m.rmdir,
			"rename": m.rename,
			"link":   m.link,
			"":       m.check,
		})
	})
}

var names = []string{"a", "b", "c", "\xff\n", strings.Repeat("x", 255)}

func (m *model) pickDir(t *rapid.T) *object { return rapid.SampledFrom(m.live).Draw(t, "dir") }
func pickName(t *rapid.T) string            { return rapid.SampledFrom(names).Draw(t, "name") }

// same compares what the filesystem answered with what the model expects.
func same(t *rapid.T, err error, want meta.Kind, fine bool) bool {
	if fine {
		if err != nil {
			t.Fatalf("got %v, want success", err)
		}
		return true
	}
	if err == nil || meta.KindOf(err) != want {
		t.Fatalf("got %v, want %v", err, want)
	}
	return false
}

func (m *model) make(t *rapid.T, isDir bool, do func(meta.Ino, string) (meta.Attr, error)) {
	d, name := m.pickDir(t), pickName(t)
	a, err := do(d.ino, name)
	switch {
	case d.nlink == 0:
		same(t, err, meta.KindNotExist, false)
	case d.children[name] != nil:
		same(t, err, meta.KindExist, false)
	case same(t, err, 0, true):
		o := &object{dir: isDir, nlink: 1, ino: a.Ino}
		if isDir {
			o.nlink, o.children = 2, map[string]*object{}
			m.live = append(m.live, o)
			d.nlink++
		}
		d.children[name] = o
	}
}

func (m *model) mkdir(t *rapid.T) {
	m.make(t, true, func(p meta.Ino, n string) (meta.Attr, error) {
		return m.fs.Mkdir(context.Background(), caller, p, n, 0o755, 0o22)
	})
}

func (m *model) create(t *rapid.T) {
	m.make(t, false, func(p meta.Ino, n string) (meta.Attr, error) {
		return m.fs.Mknod(context.Background(), caller, p, n, meta.ModeRegular|0o644, 0o22, 0)
	})
}

func (m *model) unlink(t *rapid.T) {
	d, name := m.pickDir(t), pickName(t)
	err := m.fs.Unlink(context.Background(), caller, d.ino, name)
	o := d.children[name]
	switch {
	case o == nil:
		same(t, err, meta.KindNotExist, false)
	case o.dir:
		same(t, err, meta.KindIsDir, false)
	case same(t, err, 0, true):
		o.nlink--
		delete(d.children, name)
	}
}

func (m *model) rmdir(t *rapid.T) {
	d, name := m.pickDir(t), pickName(t)
	err := m.fs.Rmdir(context.Background(), caller, d.ino, name)
	o := d.children[name]
	switch {
	case o == nil:
		same(t, err, meta.KindNotExist, false)
	case !o.dir:
		same(t, err, meta.KindNotDir, false)
	case len(o.children) > 0:
		same(t, err, meta.KindNotEmpty, false)
	case same(t, err, 0, true):
		o.nlink = 0
		d.nlink--
		delete(d.children, name)
	}
}

func (m *model) link(t *rapid.T) {
	from, to, fromName, toName := m.pickDir(t), m.pickDir(t), pickName(t), pickName(t)
	o := from.children[fromName]
	if o == nil {
		return
	}
	_, err := m.fs.Link(context.Background(), caller, o.ino, to.ino, toName)
	switch {
	case to.nlink == 0:
		same(t, err, meta.KindNotExist, false)
	case o.dir:
		same(t, err, meta.KindPerm, false)
	case to.children[toName] != nil:
		same(t, err, meta.KindExist, false)
	case same(t, err, 0, true):
		o.nlink++
		to.children[toName] = o
	}
}

// holds reports whether o is d or lies below it.
func (d *object) holds(o *object) bool {
	if d == o {
		return true
	}
	for _, c := range d.children {
		if c.dir && c.holds(o) {
			return true
		}
	}
	return false
}

func (m *model) rename(t *rapid.T) {
	from, to, fromName, toName := m.pickDir(t), m.pickDir(t), pickName(t), pickName(t)
	flags := rapid.SampledFrom([]meta.RenameFlags{0, 0, meta.RenameNoReplace, meta.RenameExchange}).Draw(t, "flags")
	err := m.fs.Rename(context.Background(), caller, from.ino, fromName, to.ino, toName, flags)
	src, dst := from.children[fromName], to.children[toName]
	exchange := flags == meta.RenameExchange
	switch {
	case src == nil, to.nlink == 0, exchange && dst == nil:
		same(t, err, meta.KindNotExist, false)
	case !exchange && dst != nil && flags == meta.RenameNoReplace:
		same(t, err, meta.KindExist, false)
	case src == dst:
		same(t, err, 0, true)
	case !exchange && dst != nil && src.dir && !dst.dir:
		same(t, err, meta.KindNotDir, false)
	case !exchange && dst != nil && !src.dir && dst.dir:
		same(t, err, meta.KindIsDir, false)
	case !exchange && dst != nil && dst.dir && len(dst.children) > 0:
		same(t, err, meta.KindNotEmpty, false)
	case src.dir && src.holds(to), exchange && dst.dir && dst.holds(from):
		same(t, err, meta.KindInvalid, false)
	case same(t, err, 0, true):
		m.moved(from, to, fromName, toName, exchange)
	}
}

// moved does in the model what a rename that succeeded does.
func (m *model) moved(from, to *object, fromName, toName string, exchange bool) {
	src, dst := from.children[fromName], to.children[toName]
	if src.dir {
		from.nlink--
		to.nlink++
	}
	delete(from.children, fromName)
	if dst != nil {
		if dst.dir {
			to.nlink--
		}
		if exchange {
			from.children[fromName] = dst
			if dst.dir {
				from.nlink++
			}
		} else if dst.dir {
			dst.nlink = 0
		} else {
			dst.nlink--
		}
	}
	to.children[toName] = src
}

// check compares the whole tree.
func (m *model) check(t *rapid.T) { m.compare(t, m.root, "/") }

func (m *model) compare(t *rapid.T, d *object, path string) {
	ctx := context.Background()
	entries, err := m.fs.ReadDir(ctx, d.ino, 0, 1000, true, nil)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name)
		c := d.children[e.Name]
		if c == nil || c.ino != e.Attr.Ino || c.nlink != int(e.Attr.Nlink) || c.dir != e.Attr.IsDir() {
			t.Fatalf("%s%q: got %+v, want %+v", path, e.Name, e.Attr, c)
		}
	}
	slices.Sort(got)
	if want := slices.Sorted(maps.Keys(d.children)); !slices.Equal(got, want) {
		t.Fatalf("%s: got names %q, want %q", path, got, want)
	}
	a, err := m.fs.GetAttr(ctx, d.ino)
	if err != nil || int(a.Nlink) != d.nlink || int(a.Entries) != len(d.children) {
		t.Fatalf("%s: got %+v, %v, want nlink %d, %d entries", path, a, err, d.nlink, len(d.children))
	}
	for name, c := range d.children {
		if c.dir {
			m.compare(t, c, path+name+"/")
		}
	}
}
