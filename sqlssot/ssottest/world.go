package ssottest

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"nexusfs/meta"
)

var ctx = context.Background()

// world is a store with a session and the model beside it.
type world struct {
	tb      tester
	s       Store
	session int64
	epoch   int64
	now     *state
	past    map[meta.Rev]*state
	blobs   map[meta.BlobID][]byte
	next    meta.Ino
	last    meta.Ino
	clock   int64
	seq     int64
	place   meta.Place // of new blobs
}

// tester is what a world needs of a test: *testing.T or *rapid.T.
type tester interface {
	Helper()
	Fatal(args ...any)
	Fatalf(format string, args ...any)
	Errorf(format string, args ...any)
}

func newWorld(tb testing.TB, f Factory) *world { return openWorld(tb, f(tb).Zone(tb, "default")) }

func openWorld(tb tester, s Store) *world {
	tb.Helper()
	w := &world{tb: tb, s: s, past: map[meta.Rev]*state{}, blobs: map[meta.BlobID][]byte{}, clock: 1_700_000_000_000_000_000}
	w.begin()
	root, err := w.s.Inode(ctx, meta.RootIno)
	w.ok(err)
	w.now = newState()
	w.now.rev = 1
	w.now.nodes[meta.RootIno] = &node{attr: root, names: map[string]meta.Ino{}, xattrs: map[string]string{}}
	w.past[1] = w.now
	return w
}

func (w *world) begin() {
	w.tb.Helper()
	var err error
	w.session, w.epoch, _, err = w.s.Begin(ctx, meta.SessionInfo{Node: "node", PID: 1, BootID: "boot", Started: w.clock})
	w.ok(err)
}

func (w *world) ok(err error) {
	w.tb.Helper()
	if err != nil {
		w.tb.Fatal(err)
	}
}

// wantKind fails unless err is of the kind.
func (w *world) wantKind(err error, k meta.Kind) {
	w.tb.Helper()
	var e *meta.Error
	if !errors.As(err, &e) || e.Kind != k {
		w.tb.Fatalf("got error %v, want kind %q", err, k)
	}
}

func (w *world) tick() int64 { w.clock += 1_000_000; return w.clock }

func (w *world) ino() meta.Ino {
	if w.next == w.last {
		first, err := w.s.Inos(ctx, 64)
		w.ok(err)
		w.next, w.last = first, first+64
	}
	w.next++
	return w.next - 1
}

func (w *world) attr(ino meta.Ino) meta.Attr {
	w.tb.Helper()
	n := w.now.nodes[ino]
	if n == nil {
		w.tb.Fatalf("the model has no inode %d", ino)
	}
	return n.attr
}

// record begins a change.
func (w *world) record(k meta.OpKind, ino meta.Ino) meta.Record {
	w.seq++
	return meta.Record{Kind: k, Ino: ino, Time: w.tick(), Seq: w.seq,
		Actor: meta.Actor{UID: 7, PID: 99, StartTime: 5, Exe: "/bin/x", Node: "node", Agent: "agent"}}
}

func times(prefix string, a meta.Attr) string {
	return fmt.Sprintf(`"%smtime":%d,"%sctime":%d`, prefix, a.Mtime, prefix, a.Ctime)
}

// make builds the change that makes an inode with a name.
func (w *world) make(parent meta.Ino, name string, mode, uid uint32) *meta.Change {
	w.tb.Helper()
	ino := w.ino()
	c := &meta.Change{Record: w.record(meta.OpCreate, ino)}
	t := c.Record.Time
	a := meta.Attr{Ino: ino, Mode: mode, Nlink: 1, UID: uid, Creator: int64(uid), Atime: t, Mtime: t, Ctime: t, Btime: t}
	d := meta.DirDelta{Ino: parent, Entries: 1, Time: t}
	target := ""
	switch mode & meta.ModeType {
	case meta.ModeDir:
		a.Nlink, a.Parent, d.Nlink = 2, parent, 1
		c.Record.Kind = meta.OpMkdir
	case meta.ModeRegular:
		a.Version, a.ContentRev = 1, meta.RevPending
		c.Version = &meta.VersionChange{Ino: ino, N: 1, New: true}
		c.Record.Version = 1
	case meta.ModeSymlink:
		target = "to/\xff" + name
		c.Record.Kind = meta.OpSymlink
		a.Size = int64(len(target))
	}
	c.Record.Parent, c.Record.Name = parent, name
	c.Inodes = []meta.InodeChange{{After: a, Target: target}}
	c.Dirs = []meta.DirDelta{d}
	c.Names = []meta.NameChange{{Parent: parent, Name: name, After: ino, AfterType: mode & meta.ModeType}}
	return c
}

func (w *world) mkdir(parent meta.Ino, name string) *meta.Change {
	return w.make(parent, name, meta.ModeDir|0o755, 0)
}

func (w *world) create(parent meta.Ino, name string) *meta.Change {
	return w.make(parent, name, meta.ModeRegular|0o644, 0)
}

// remove builds unlink or rmdir.
func (w *world) remove(parent meta.Ino, name string) *meta.Change {
	w.tb.Helper()
	ino := w.now.nodes[parent].names[name]
	a := w.attr(ino)
	c := &meta.Change{Record: w.record(meta.OpUnlink, ino)}
	after, d := a, meta.DirDelta{Ino: parent, Entries: -1, Time: c.Record.Time}
	after.Ctime = c.Record.Time
	if a.IsDir() {
		c.Record.Kind = meta.OpRmdir
		after.Nlink, d.Nlink = 0, -1
	} else {
		after.Nlink--
	}
	c.Record.Parent, c.Record.Name = parent, name
	c.Inodes = []meta.InodeChange{{Before: &a, After: after}}
	c.Dirs = []meta.DirDelta{d}
	c.Names = []meta.NameChange{{Parent: parent, Name: name, Before: ino, BeforeType: a.Mode & meta.ModeType}}
	return c
}

// link builds another name for a file.
func (w *world) link(ino, parent meta.Ino, name string) *meta.Change {
	w.tb.Helper()
	a := w.attr(ino)
	c := &meta.Change{Record: w.record(meta.OpLink, ino)}
	after := a
	after.Nlink++
	after.Ctime = c.Record.Time
	c.Record.Parent, c.Record.Name = parent, name
	c.Inodes = []meta.InodeChange{{Before: &a, After: after}}
	c.Dirs = []meta.DirDelta{{Ino: parent, Entries: 1, Time: c.Record.Time}}
	c.Names = []meta.NameChange{{Parent: parent, Name: name, After: ino, AfterType: a.Mode & meta.ModeType}}
	return c
}

// rename builds a rename, over an existing name when there is one.
func (w *world) rename(from meta.Ino, name string, to meta.Ino, newName string) *meta.Change {
	w.tb.Helper()
	ino := w.now.nodes[from].names[name]
	a := w.attr(ino)
	c := &meta.Change{Record: w.record(meta.OpRename, ino)}
	t := c.Record.Time
	c.Record.Parent, c.Record.Name, c.Record.NewParent, c.Record.NewName = from, name, to, newName
	after := a
	after.Ctime = t
	src, dst := meta.DirDelta{Ino: from, Entries: -1, Time: t}, meta.DirDelta{Ino: to, Entries: 1, Time: t}
	if a.IsDir() {
		after.Parent = to
		src.Nlink, dst.Nlink = -1, 1
		c.Topology = from != to
	}
	kind := a.Mode & meta.ModeType
	c.Inodes = []meta.InodeChange{{Before: &a, After: after}}
	c.Names = []meta.NameChange{{Parent: from, Name: name, Before: ino, BeforeType: kind}, {Parent: to, Name: newName, After: ino, AfterType: kind}}
	if old := w.now.nodes[to].names[newName]; old != 0 {
		b := w.attr(old)
		gone := b
		gone.Ctime = t
		if b.IsDir() {
			gone.Nlink = 0
			dst.Nlink--
		} else {
			gone.Nlink--
		}
		dst.Entries--
		c.Inodes = append(c.Inodes, meta.InodeChange{Before: &b, After: gone})
		c.Names[1].Before, c.Names[1].BeforeType = old, b.Mode&meta.ModeType
	}
	if from == to {
		src.Entries += dst.Entries
		src.Nlink += dst.Nlink
		c.Dirs = []meta.DirDelta{src}
	} else {
		c.Dirs = []meta.DirDelta{src, dst}
	}
	return c
}

// setattr builds a change of one inode by fn.
func (w *world) setattr(ino meta.Ino, fn func(a *meta.Attr)) *meta.Change {
	w.tb.Helper()
	a := w.attr(ino)
	c := &meta.Change{Record: w.record(meta.OpSetattr, ino)}
	after := a
	after.Ctime = c.Record.Time
	fn(&after)
	c.Inodes = []meta.InodeChange{{Before: &a, After: after}}
	return c
}

// setxattr builds a change of one attribute; nil removes it.
func (w *world) setxattr(ino meta.Ino, name string, value []byte) *meta.Change {
	n := w.now.nodes[ino]
	left := len(n.xattrs)
	if _, ok := n.xattrs[name]; ok {
		left--
	}
	if value != nil {
		left++
	}
	c := w.setattr(ino, func(a *meta.Attr) {
		a.Flags &^= meta.FlagXattrs
		if left > 0 {
			a.Flags |= meta.FlagXattrs
		}
	})
	c.Record.Kind = meta.OpSetxattr
	c.Xattrs = []meta.XattrChange{{Ino: ino, Name: name, Value: value}}
	return c
}

// blob names data, whose bytes the world keeps.
func (w *world) blob(data []byte) meta.NewBlob {
	id := meta.BlobID(sha256.Sum256(data))
	w.blobs[id] = slices.Clone(data)
	b := meta.NewBlob{Blob: meta.Blob{ID: id, Size: int64(len(data)), Place: w.place}}
	if w.place == meta.PlaceInline {
		b.Data = data
	} else {
		b.Segment, b.Offset = 3, int64(len(w.blobs))
	}
	return b
}

// piece is what write puts at an offset; nil data with n > 0 makes a hole.
type piece struct {
	off  int64
	data []byte
	n    int64
}

// write builds a change of a file's content: a new version, or the newest one
// moved on.
func (w *world) write(ino meta.Ino, newVersion bool, pieces ...piece) *meta.Change {
	w.tb.Helper()
	a := w.attr(ino)
	c := &meta.Change{Record: w.record(meta.OpWrite, ino), Content: &meta.ContentChange{Ino: ino, Fresh: w.now.nodes[ino].held() == 0}}
	after := a
	after.Mtime, after.Ctime, after.ContentRev = c.Record.Time, c.Record.Time, meta.RevPending
	for _, p := range pieces {
		r := meta.RangeChange{Off: p.off, Len: max(p.n, int64(len(p.data)))}
		if len(p.data) > 0 {
			b := w.blob(p.data)
			c.Content.Blobs = append(c.Content.Blobs, b)
			r.Extents = []meta.Extent{{Off: p.off, Len: int64(len(p.data)), Blob: b.Blob}}
		}
		after.Size = max(after.Size, p.off+int64(len(p.data)))
		c.Content.Ranges = append(c.Content.Ranges, r)
	}
	if newVersion {
		after.Version++
	}
	c.Record.Version, c.Record.Size = after.Version, after.Size
	c.Version = &meta.VersionChange{Ino: ino, N: after.Version, New: newVersion, Size: after.Size}
	c.Inodes = []meta.InodeChange{{Before: &a, After: after}}
	return c
}

// truncate builds a truncation, a version of its own.
func (w *world) truncate(ino meta.Ino, size int64) *meta.Change {
	c := w.write(ino, true, piece{off: size, n: math.MaxInt64 - size})
	c.Content.Fresh = false
	c.Inodes[0].After.Size, c.Version.Size, c.Record.Size = size, size, size
	c.Record.Kind = meta.OpTruncate
	return c
}

// send commits changes as one batch and returns what the store says.
func (w *world) send(changes ...*meta.Change) []meta.Outcome {
	w.tb.Helper()
	out, err := w.s.Commit(ctx, &meta.Batch{Session: w.session, Epoch: w.epoch, Changes: changes})
	w.ok(err)
	if len(out) != len(changes) {
		w.tb.Fatalf("%d outcomes for %d changes", len(out), len(changes))
	}
	return out
}

// commit sends a batch, lets the model do the same, and compares the outcomes.
func (w *world) commit(changes ...*meta.Change) []meta.Outcome {
	w.tb.Helper()
	w.dirTimes(changes)
	out := w.send(changes...)
	for i, c := range changes {
		next := w.now.apply(c, w.blobs)
		if next == nil {
			w.wantKind(out[i].Err, meta.KindConflict)
			continue
		}
		if out[i].Err != nil {
			w.tb.Fatalf("%s: %v", c.Record.Kind, out[i].Err)
		}
		if out[i].Rev != next.rev {
			w.tb.Fatalf("%s got revision %d, want %d", c.Record.Kind, out[i].Rev, next.rev)
		}
		if c.Content != nil && out[i].Bytes != next.nodes[c.Content.Ino].attr.Bytes {
			w.tb.Fatalf("%s left %d bytes, want %d", c.Record.Kind, out[i].Bytes, next.nodes[c.Content.Ino].attr.Bytes)
		}
		w.now = next
		w.past[next.rev] = next
	}
	return out
}

// dirTimes puts into each record the times that its directories have before
// it, what earlier changes of the batch do to them included, and what it
// replaces.
func (w *world) dirTimes(changes []*meta.Change) {
	st := w.now
	for _, c := range changes {
		r := &c.Record
		if from := st.nodes[r.Parent]; from != nil {
			r.Before = "{" + times("p", from.attr) + "}"
			if to := st.nodes[r.NewParent]; to != nil && r.NewParent != r.Parent {
				r.Before = "{" + times("p", from.attr) + "," + times("np", to.attr) + "}"
			}
			if len(c.Inodes) == 2 { // something was replaced
				r.Before = fmt.Sprintf(`%s,"replaced":%d}`, strings.TrimSuffix(r.Before, "}"), c.Inodes[1].After.Ino)
			}
		}
		if next := st.apply(c, w.blobs); next != nil {
			st = next
		}
	}
}

// must commits changes of which none may be refused.
func (w *world) must(changes ...*meta.Change) {
	w.tb.Helper()
	for i, o := range w.commit(changes...) {
		if o.Err != nil {
			w.tb.Fatalf("change %d: %v", i, o.Err)
		}
	}
}

// refused commits a change that must be refused without a trace.
func (w *world) refused(c *meta.Change) {
	w.tb.Helper()
	head, err := w.s.Head(ctx)
	w.ok(err)
	out := w.send(c)
	w.wantKind(out[0].Err, meta.KindConflict)
	after, err := w.s.Head(ctx)
	w.ok(err)
	if diff := cmp.Diff(head, after); diff != "" {
		w.tb.Fatalf("the head moved (-before +after):\n%s", diff)
	}
	w.compare()
}

// verify fails when the store finds fault with itself.
func (w *world) verify() {
	w.tb.Helper()
	w.ok(w.s.Verify(ctx, func(f meta.Finding) { w.tb.Errorf("fsck: %s: inode %d revision %d: %s", f.Check, f.Ino, f.Rev, f.Text) }))
}

// findings collects what the store finds.
func (w *world) findings() (out []meta.Finding) {
	w.tb.Helper()
	w.ok(w.s.Verify(ctx, func(f meta.Finding) { out = append(out, f) }))
	return out
}
