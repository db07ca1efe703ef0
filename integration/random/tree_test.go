package random

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestTreeModel plays random operations on names against a tree in memory and
// compares every answer, and the whole tree time and again.
func TestTreeModel(t *testing.T) {
	everywhere(t, tester[treeStep]{steps: treeSteps, play: playTree})
}

// treeStep is one operation on one path, or on two.
type treeStep struct {
	Kind string
	A, B string
	N    uint32 // mode, size or content
}

func (s treeStep) String() string { return fmt.Sprintf("%-10s %q %q %o", s.Kind, s.A, s.B, s.N) }

var treeKinds = []string{
	"create", "create", "create", "excl", "mkdir", "mkdir", "mkdir", "rename", "rename", "rename", "rename",
	"noreplace", "exchange", "exchange", "link", "link", "unlink", "unlink", "rmdir", "rmdir", "symlink", "chmod",
	"write", "write", "truncate", "setxattr", "delxattr", "list", "check", "fifo", "remount", "crash",
}

func treeSteps(rnd *rand.Rand, p *place) []treeStep {
	out := make([]treeStep, 60+rnd.IntN(200))
	rare := 0
	for i := range out {
		kind := treeKinds[rnd.IntN(len(treeKinds))]
		if kind == "remount" || kind == "crash" {
			if rare++; p.remount == nil || rare > 2 {
				kind = "check"
			}
		}
		out[i] = treeStep{Kind: kind, A: randomPath(rnd), B: randomPath(rnd), N: uint32(rnd.IntN(0o1000))}
	}
	return out
}

// randomPath names one of few places, so that operations meet.
func randomPath(rnd *rand.Rand) string {
	parts := make([]string, 1+rnd.IntN(3))
	for i := range parts {
		parts[i] = string(rune('a' + rnd.IntN(4)))
	}
	return strings.Join(parts, "/")
}

// node is an object of the model.
type node struct {
	kind   byte // f, d, l or p
	mode   uint32
	data   string // content or target
	nlink  int    // of files
	xattrs map[string]string
	names  map[string]*node // of a directory
}

func newNode(kind byte, mode uint32) *node {
	n := &node{kind: kind, mode: mode, nlink: 1, xattrs: map[string]string{}}
	if kind == 'd' {
		n.names = map[string]*node{}
	}
	return n
}

type treeCase struct {
	place *place
	dir   string
	root  *node
}

func playTree(p *place, dir string, steps []treeStep) error {
	c := &treeCase{place: p, dir: dir, root: newNode('d', 0o755)}
	defer unix.Umask(unix.Umask(0))
	for i, s := range steps {
		want := c.model(s)
		got := c.real(s)
		if !sameErrno(got, want) {
			return fmt.Errorf("step %d (%s): got %v, want %v", i, s, got, want)
		}
		if s.Kind == "check" || s.Kind == "remount" || s.Kind == "crash" || i == len(steps)-1 {
			if err := c.compare(); err != nil {
				return fmt.Errorf("after step %d (%s): %w", i, s, err)
			}
		}
	}
	return nil
}

func sameErrno(got error, want unix.Errno) bool {
	if want == 0 {
		return got == nil
	}
	return errors.Is(got, want)
}

// parent resolves the directory of a path.
func (c *treeCase) parent(path string) (*node, string, unix.Errno) {
	parts := strings.Split(path, "/")
	at := c.root
	for _, name := range parts[:len(parts)-1] {
		next := at.names[name]
		switch {
		case next == nil, next.kind == 'l': // links lead nowhere
			return nil, "", unix.ENOENT
		case next.kind != 'd':
			return nil, "", unix.ENOTDIR
		}
		at = next
	}
	return at, parts[len(parts)-1], 0
}

func (c *treeCase) find(path string) (*node, unix.Errno) {
	dir, name, e := c.parent(path)
	if e != 0 {
		return nil, e
	}
	if dir.names[name] == nil {
		return nil, unix.ENOENT
	}
	return dir.names[name], 0
}

// model does a step in memory and says how the filesystem must answer.
func (c *treeCase) model(s treeStep) unix.Errno {
	switch s.Kind {
	case "rename", "noreplace", "exchange":
		return c.rename(s)
	case "link":
		return c.link(s)
	case "create", "excl", "mkdir", "symlink", "fifo":
		return c.make(s)
	case "unlink", "rmdir":
		return c.remove(s)
	case "chmod", "write", "truncate", "setxattr", "delxattr":
		return c.change(s)
	}
	return 0
}

func (c *treeCase) make(s treeStep) unix.Errno {
	dir, name, e := c.parent(s.A)
	if e != 0 {
		return e
	}
	if old := dir.names[name]; old != nil {
		switch {
		case s.Kind != "create":
			return unix.EEXIST
		case old.kind == 'd':
			return unix.EISDIR
		case old.kind == 'p':
			return 0 // opened for reading and writing, without waiting
		case old.kind == 'l': // creates what the dangling link names: excluded by its target's directory
			return unix.ENOENT
		}
		return 0
	}
	kind := map[string]byte{"create": 'f', "excl": 'f', "mkdir": 'd', "symlink": 'l', "fifo": 'p'}[s.Kind]
	n := newNode(kind, s.N&0o777)
	if kind == 'l' {
		n.mode, n.data = 0o777, linkTarget(s)
	}
	dir.names[name] = n
	return 0
}

func linkTarget(s treeStep) string { return "missing/" + s.B }

func (c *treeCase) remove(s treeStep) unix.Errno {
	dir, name, e := c.parent(s.A)
	if e != 0 {
		return e
	}
	n := dir.names[name]
	switch {
	case n == nil:
		return unix.ENOENT
	case s.Kind == "unlink" && n.kind == 'd':
		return unix.EISDIR
	case s.Kind == "rmdir" && n.kind != 'd':
		return unix.ENOTDIR
	case s.Kind == "rmdir" && len(n.names) > 0:
		return unix.ENOTEMPTY
	}
	n.nlink--
	delete(dir.names, name)
	return 0
}

func (c *treeCase) link(s treeStep) unix.Errno {
	n, e := c.find(s.A)
	if e != 0 {
		return e
	}
	dir, name, e := c.parent(s.B)
	switch {
	case e != 0:
		return e
	case dir.names[name] != nil:
		return unix.EEXIST
	case n.kind == 'd':
		return unix.EPERM
	}
	n.nlink++
	dir.names[name] = n
	return 0
}

func (c *treeCase) rename(s treeStep) unix.Errno {
	from, fromName, e := c.parent(s.A)
	if e != 0 {
		return e
	}
	to, toName, e := c.parent(s.B)
	if e != 0 {
		return e
	}
	n, old := from.names[fromName], to.names[toName]
	switch {
	case n == nil:
		return unix.ENOENT
	case s.Kind == "noreplace" && old != nil:
		return unix.EEXIST
	case s.Kind == "exchange" && old == nil:
		return unix.ENOENT
	case n.kind == 'd' && holds(n, to):
		return unix.EINVAL
	case old != nil && old.kind == 'd' && holds(old, from):
		if s.Kind == "exchange" {
			return unix.EINVAL
		}
		return unix.ENOTEMPTY
	case n == old:
		return 0
	}
	if s.Kind == "exchange" {
		from.names[fromName], to.names[toName] = old, n
		return 0
	}
	if old != nil {
		switch {
		case n.kind == 'd' && old.kind != 'd':
			return unix.ENOTDIR
		case n.kind != 'd' && old.kind == 'd':
			return unix.EISDIR
		case len(old.names) > 0:
			return unix.ENOTEMPTY
		}
		old.nlink--
	}
	delete(from.names, fromName)
	to.names[toName] = n
	return 0
}

// holds reports whether d is n or below it.
func holds(n, d *node) bool {
	if n == d {
		return true
	}
	for _, child := range n.names {
		if child.kind == 'd' && holds(child, d) {
			return true
		}
	}
	return false
}

func (c *treeCase) change(s treeStep) unix.Errno {
	n, e := c.find(s.A)
	switch {
	case e != 0:
		return e
	case n.kind == 'l': // followed, to nowhere
		return unix.ENOENT
	case s.Kind == "chmod":
		n.mode = s.N
	case (s.Kind == "write" || s.Kind == "truncate") && n.kind == 'd':
		return unix.EISDIR
	case (s.Kind == "setxattr" || s.Kind == "delxattr") && n.kind == 'p':
		return unix.EPERM
	case s.Kind == "write" && n.kind == 'f':
		n.data = content(s)
	case s.Kind == "truncate" && n.kind == 'p':
		return unix.EINVAL
	case s.Kind == "truncate":
		n.data = (n.data + strings.Repeat("\x00", int(s.N)))[:s.N]
	case s.Kind == "setxattr":
		n.xattrs[xattrName(s)] = xattrValue(s)
	case s.Kind == "delxattr":
		if _, ok := n.xattrs[xattrName(s)]; !ok {
			return unix.ENODATA
		}
		delete(n.xattrs, xattrName(s))
	}
	return 0
}

func content(s treeStep) string   { return strings.Repeat(s.B+";", int(s.N)) }
func xattrName(s treeStep) string { return "user.x" + s.B[:1] }

// xattrValue is short: ext4 keeps few bytes of attributes.
func xattrValue(s treeStep) string { return strings.Repeat(s.B, int(s.N%100)) }

// real does a step on the filesystem.
func (c *treeCase) real(s treeStep) error {
	a, b := filepath.Join(c.dir, s.A), filepath.Join(c.dir, s.B)
	switch s.Kind {
	case "create", "excl":
		flags := unix.O_RDWR | unix.O_CREAT | unix.O_NONBLOCK
		if s.Kind == "excl" {
			flags |= unix.O_EXCL
		}
		fd, err := unix.Open(a, flags, s.N&0o777)
		if err != nil {
			return err
		}
		return unix.Close(fd)
	case "mkdir":
		return unix.Mkdir(a, s.N&0o777)
	case "fifo":
		return unix.Mkfifo(a, s.N&0o777)
	case "symlink":
		return unix.Symlink(linkTarget(s), a)
	case "unlink":
		return unix.Unlink(a)
	case "rmdir":
		return unix.Rmdir(a)
	case "link":
		return unix.Link(a, b)
	case "rename":
		return unix.Rename(a, b)
	case "noreplace":
		return unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_NOREPLACE)
	case "exchange":
		return unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE)
	case "chmod":
		return unix.Chmod(a, s.N)
	case "truncate":
		return unix.Truncate(a, int64(s.N))
	case "setxattr":
		return unix.Setxattr(a, xattrName(s), []byte(xattrValue(s)), 0)
	case "delxattr":
		return unix.Removexattr(a, xattrName(s))
	case "write":
		return realWrite(a, s)
	case "list":
		_, err := os.ReadDir(c.dir)
		return err
	case "remount":
		c.place.remount()
	case "crash":
		c.place.crash()
	}
	return nil
}

func realWrite(path string, s treeStep) error {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_TRUNC|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err == nil && st.Mode&unix.S_IFMT == unix.S_IFREG {
		if _, err := unix.Write(fd, []byte(content(s))); err != nil {
			return errors.Join(err, unix.Close(fd))
		}
	}
	return unix.Close(fd)
}

// compare walks model and filesystem together. One object has one inode
// number, two objects have two.
func (c *treeCase) compare() error {
	byNode, byIno := map[*node]uint64{}, map[uint64]*node{}
	return c.compareAt(c.root, c.dir, byNode, byIno)
}

func (c *treeCase) compareAt(n *node, path string, byNode map[*node]uint64, byIno map[uint64]*node) error {
	if err := compareNode(n, path); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return err
	}
	if ino, ok := byNode[n]; ok && ino != st.Ino {
		return fmt.Errorf("%s: one object, inodes %d and %d", path, ino, st.Ino)
	}
	if other, ok := byIno[st.Ino]; ok && other != n {
		return fmt.Errorf("%s: inode %d is another object too", path, st.Ino)
	}
	byNode[n], byIno[st.Ino] = st.Ino, n
	if n.kind != 'd' {
		return nil
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return err
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	want := slices.Sorted(maps.Keys(n.names))
	if !slices.Equal(got, want) {
		return fmt.Errorf("%s lists %q, want %q", path, got, want)
	}
	for _, name := range want {
		if err := c.compareAt(n.names[name], filepath.Join(path, name), byNode, byIno); err != nil {
			return err
		}
	}
	return nil
}

func compareNode(n *node, path string) error {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return err
	}
	typ := map[byte]uint32{'f': unix.S_IFREG, 'd': unix.S_IFDIR, 'l': unix.S_IFLNK, 'p': unix.S_IFIFO}[n.kind]
	nlink := n.nlink
	if n.kind == 'd' {
		nlink = 2
		for _, child := range n.names {
			if child.kind == 'd' {
				nlink++
			}
		}
	}
	wantMode := typ | n.mode
	if n.kind == 'd' && strings.Contains(filepath.Base(path), "case-") {
		wantMode = st.Mode // the case's own folder
	}
	if st.Mode != wantMode || int(st.Nlink) != nlink || n.kind != 'd' && st.Size != int64(len(n.data)) {
		return fmt.Errorf("mode %o nlink %d size %d, want %o %d %d", st.Mode, st.Nlink, st.Size, wantMode, nlink, len(n.data))
	}
	switch n.kind {
	case 'f':
		data, err := os.ReadFile(path)
		if err != nil || string(data) != n.data {
			return fmt.Errorf("content of %d bytes, %v, want %d", len(data), err, len(n.data))
		}
	case 'l':
		if target, err := os.Readlink(path); err != nil || target != n.data {
			return fmt.Errorf("target %q, %v, want %q", target, err, n.data)
		}
		return nil
	case 'p':
		return nil
	}
	return compareXattrs(n, path)
}

func compareXattrs(n *node, path string) error {
	buf := make([]byte, 1000)
	size, err := unix.Llistxattr(path, buf)
	if err != nil {
		return err
	}
	names := strings.FieldsFunc(string(buf[:size]), func(r rune) bool { return r == 0 })
	if len(names) != len(n.xattrs) {
		return fmt.Errorf("attributes %q, want %d", names, len(n.xattrs))
	}
	value := make([]byte, 64<<10)
	for name, want := range n.xattrs {
		size, err := unix.Lgetxattr(path, name, value)
		if err != nil || string(value[:size]) != want {
			return fmt.Errorf("attribute %s: %d bytes, %v, want %d", name, size, err, len(want))
		}
	}
	return nil
}
