package ssottest

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"

	"nexusfs/meta"
	"pgregory.net/rapid"
)

var modelCases = []Case{
	{"Model", model},
	{"ReadersDuringCommits", readersDuringCommits},
	{"WritersTakeTurns", writersTakeTurns},
}

// model commits random batches of every kind of operation, right and wrong
// ones, and holds everything that can be read against the model.
func model(tb testing.TB, f Factory) {
	db, n := f(tb), 0
	rapid.Check(tb, func(t *rapid.T) {
		n++
		w := openWorld(t, db.Zone(tb, fmt.Sprintf("zone%d", n)))
		defer w.s.Close()
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			drawStep(t, w)
		}
		w.compare()
		for rev := range w.past {
			w.compareAt(rev)
		}
		w.verify()
	})
}

// drawStep commits one random batch; its changes are built from the state
// before it, so some of a larger one usually fail.
func drawStep(t *rapid.T, w *world) {
	var batch []*meta.Change
	for range rapid.SampledFrom([]int{1, 1, 1, 2, 4}).Draw(t, "batch") {
		c := drawChange(t, w)
		if c == nil || len(c.Xattrs) > 0 && slices.ContainsFunc(batch, func(o *meta.Change) bool { return o.Record.Ino == c.Record.Ino }) {
			continue // whether an inode has attributes left is a rule's to know, which sees the batch so far
		}
		batch = append(batch, c)
	}
	if len(batch) > 0 {
		w.commit(batch...)
	}
}

// alive lists inodes with names that satisfy want.
func (w *world) alive(want func(*node) bool) (out []meta.Ino) {
	for _, ino := range w.now.inos() {
		if n := w.now.nodes[ino]; n.attr.Nlink > 0 && want(n) {
			out = append(out, ino)
		}
	}
	return out
}

// drawChange builds a random operation, nil when the one drawn has no object.
func drawChange(t *rapid.T, w *world) *meta.Change {
	isDir := func(n *node) bool { return n.attr.IsDir() }
	isFile := func(n *node) bool { return n.attr.IsRegular() }
	dir := rapid.SampledFrom(w.alive(isDir)).Draw(t, "dir")
	name := rapid.SampledFrom([]string{"a", "b", "c", "\xff"}).Draw(t, "name")
	_, there := w.now.nodes[dir].names[name]
	files := w.alive(isFile)
	kind := rapid.IntRange(0, 12).Draw(t, "kind")
	switch {
	case kind <= 1 && !there:
		return w.make(dir, name, rapid.SampledFrom([]uint32{meta.ModeRegular, meta.ModeDir, meta.ModeSymlink, meta.ModeFifo}).Draw(t, "type")|0o644,
			rapid.Uint32Range(0, 2).Draw(t, "uid"))
	case kind == 2 && !there:
		return w.mkdir(dir, name)
	case kind <= 4 && there:
		return w.remove(dir, name)
	case kind <= 6 && there:
		return drawRename(t, w, dir, name, rapid.SampledFrom(w.alive(isDir)).Draw(t, "to"), rapid.SampledFrom([]string{"a", "b", "c", "\xff"}).Draw(t, "new"))
	case kind == 7 && len(files) > 0 && !there:
		return w.link(rapid.SampledFrom(files).Draw(t, "file"), dir, name)
	case kind <= 9 && len(files) > 0:
		return drawWrite(t, w, rapid.SampledFrom(files).Draw(t, "file"))
	case kind == 10:
		ino := rapid.SampledFrom(w.now.inos()).Draw(t, "ino")
		uid := rapid.Uint32Range(0, 2).Draw(t, "uid")
		return w.setattr(ino, func(a *meta.Attr) { a.UID = uid })
	case kind >= 11:
		ino := rapid.SampledFrom(w.alive(func(*node) bool { return true })).Draw(t, "ino")
		var value []byte
		if rapid.Bool().Draw(t, "set") {
			value = []byte{byte(w.seq)}
		}
		return w.setxattr(ino, "user."+name, value)
	}
	return nil
}

// drawRename builds a rename that POSIX would allow, else nil.
func drawRename(t *rapid.T, w *world, from meta.Ino, name string, to meta.Ino, newName string) *meta.Change {
	ino, old := w.now.nodes[from].names[name], w.now.nodes[to].names[newName]
	if ino == old {
		return nil
	}
	a := w.attr(ino)
	if old != 0 {
		if b := w.attr(old); b.IsDir() != a.IsDir() || b.Entries > 0 {
			return nil
		}
	}
	for up := to; a.IsDir(); up = w.attr(up).Parent {
		if up == ino || up == old {
			return nil // a directory into itself
		}
		if up == meta.RootIno {
			break
		}
	}
	return w.rename(from, name, to, newName)
}

// readersDuringCommits: a file that moves between two directories is always
// in exactly one of them, and nobody is told that anything is locked.
func readersDuringCommits(tb testing.TB, f Factory) {
	w := newWorld(tb, f)
	w.must(w.mkdir(1, "x"), w.mkdir(1, "y"))
	x, y := w.now.nodes[1].names["x"], w.now.nodes[1].names["y"]
	w.must(w.create(x, "f"))
	ino := w.now.nodes[x].names["f"]
	done := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				list := w.oneState(ino, x, y)
				if list != "" {
					tb.Error(list)
					return
				}
			}
		})
	}
	for i := range 300 {
		from, to := x, y
		if i%2 == 1 {
			from, to = y, x
		}
		w.must(w.rename(from, "f", to, "f"))
		if i%50 == 0 {
			w.ok(w.s.Checkpoint(ctx, true))
			w.ok(w.s.Sync(ctx))
		}
	}
	close(done)
	wg.Wait()
	w.compare()
	w.verify()
}

// oneState reads through every kind of reader and says what is wrong.
func (w *world) oneState(ino, x, y meta.Ino) string {
	n := 0
	err := w.s.Query(ctx, "select count(*) from files where path in ('/x/f','/y/f')", nil, func([]string) error { return nil },
		func(v []any) error { n = int(v[0].(int64)); return nil })
	if err != nil || n != 1 {
		return fmt.Sprintf("the file has %d names: %v", n, err)
	}
	if _, err := w.s.Inode(ctx, ino); err != nil {
		return err.Error()
	}
	if p, err := w.s.PathOf(ctx, ino); err != nil || p != "/x/f" && p != "/y/f" {
		return fmt.Sprintf("the path is %q: %v", p, err)
	}
	list, err := w.s.List(ctx, meta.RootIno, 0, 10, true, nil)
	if err != nil || len(list) != 2 || list[0].Attr.Entries+list[1].Attr.Entries != 1 {
		return fmt.Sprintf("the directories hold %+v: %v", list, err)
	}
	return ""
}

// writersTakeTurns: commits, upkeep, sessions and syncs at the same time.
func writersTakeTurns(tb testing.TB, f Factory) {
	w := newWorld(tb, f)
	w.must(w.create(1, "f"))
	ino := w.now.nodes[1].names["f"]
	done := make(chan struct{})
	var wg sync.WaitGroup
	for i, fn := range []func() error{
		func() error { return w.s.Checkpoint(ctx, true) },
		func() error { return w.s.Sync(ctx) },
		func() error {
			_, _, err := w.s.Prune(ctx, meta.Retention{Versions: 3, Barrier: 1 << 40}, 50)
			return err
		},
		func() error { _, err := w.s.Condemn(ctx, 1, 10); return err },
		func() error { _, err := w.s.Inos(ctx, 3); return err },
		func() error { return w.s.LateAnswer(ctx, 1, "reason") },
	} {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				if err := fn(); err != nil {
					tb.Errorf("worker %d: %v", i, err)
					return
				}
			}
		})
	}
	for i := range 200 {
		w.must(w.write(ino, true, piece{off: int64(i % 7), data: []byte(fmt.Sprint("bytes", i))}))
	}
	close(done)
	wg.Wait()
	for name := range maps.Keys(w.now.nodes[1].names) {
		if !slices.Contains([]string{"f"}, name) {
			tb.Errorf("unexpected name %q", name)
		}
	}
	w.verify()
	ext, err := w.s.Extents(ctx, ino, 0, 1<<20, 1000, true)
	w.ok(err)
	w.compareContent(ino, w.now.nodes[ino], ext)
}
