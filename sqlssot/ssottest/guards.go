package ssottest

import (
	"fmt"
	"testing"

	"nexusfs/meta"
)

var guardCases = []Case{
	{"GuardInodeExists", func(tb testing.TB, f Factory) {
		w := newWorld(tb, f)
		w.must(w.create(1, "a"))
		c := w.create(1, "b")
		c.Inodes[0].After.Ino, c.Names[0].After, c.Version.Ino = w.now.nodes[1].names["a"], w.now.nodes[1].names["a"], w.now.nodes[1].names["a"]
		w.refused(c)
	}},
	{"GuardInodeChanged", func(tb testing.TB, f Factory) {
		w := newWorld(tb, f)
		w.must(w.create(1, "a"))
		ino := w.now.nodes[1].names["a"]
		c := w.setattr(ino, func(a *meta.Attr) { a.Mode = meta.ModeRegular | 0o600 })
		w.must(w.setattr(ino, func(a *meta.Attr) { a.UID = 5 }))
		w.refused(c)
	}},
	{"GuardInodeMissing", func(tb testing.TB, f Factory) {
		w := newWorld(tb, f)
		w.must(w.create(1, "a"))
		c := w.setattr(w.now.nodes[1].names["a"], func(a *meta.Attr) {})
		c.Inodes[0].After.Ino += 1000
		w.refused(c)
	}},
	{"GuardNameExists", func(tb testing.TB, f Factory) {
		w := newWorld(tb, f)
		c := w.create(1, "a")
		w.must(w.create(1, "a"))
		w.refused(c)
	}},
	{"GuardNameGone", func(tb testing.TB, f Factory) {
		w := newWorld(tb, f)
		w.must(w.create(1, "a"), w.create(1, "b"))
		c := w.remove(1, "a")
		c.Names[0].Name = "c"
		w.refused(c)
	}},
	{"GuardNameOfAnother", func(tb testing.TB, f Factory) {
		w := newWorld(tb, f)
		w.must(w.create(1, "a"), w.create(1, "b"))
		c := w.remove(1, "a")
		c.Names[0].Name = "b"
		w.refused(c)
		c = w.rename(1, "a", 1, "b")
		c.Names[1].Before = w.now.nodes[1].names["a"]
		w.refused(c)
	}},
	{"GuardReplaceOfAbsent", func(tb testing.TB, f Factory) {
		w := newWorld(tb, f)
		w.must(w.create(1, "a"), w.create(1, "b"))
		c := w.rename(1, "a", 1, "b")
		w.must(w.remove(1, "b"))
		w.refused(c)
	}},
	{"GuardDirectoryGone", func(tb testing.TB, f Factory) {
		w := newWorld(tb, f)
		w.must(w.mkdir(1, "d"))
		c := w.create(w.now.nodes[1].names["d"], "a")
		w.must(w.remove(1, "d"))
		w.refused(c)
	}},
	{"GuardDirectoryNotEmpty", func(tb testing.TB, f Factory) {
		w := newWorld(tb, f)
		w.must(w.mkdir(1, "d"))
		d := w.now.nodes[1].names["d"]
		c := w.remove(1, "d")
		w.must(w.create(d, "a"))
		w.refused(c)
	}},
	{"GuardDirectoryRemovedTwice", func(tb testing.TB, f Factory) {
		w := newWorld(tb, f)
		w.must(w.mkdir(1, "d"))
		c := w.remove(1, "d")
		w.must(w.remove(1, "d"))
		w.refused(c)
	}},
	{"GuardMovedBelowItself", func(tb testing.TB, f Factory) { // by two moves that did not see each other (P3)
		w := newWorld(tb, f)
		w.must(w.mkdir(1, "a"), w.mkdir(1, "b"))
		a, b := w.now.nodes[1].names["a"], w.now.nodes[1].names["b"]
		crossing := w.rename(1, "b", a, "b")
		w.must(w.mkdir(b, "deep"))
		w.must(w.rename(1, "a", w.now.nodes[b].names["deep"], "a"))
		w.refused(crossing)
	}},
	{"GuardDirectoryMayMoveOn", directoryMayMoveOn},
	{"GuardBlob", guardBlob},
	{"RefusedLeavesNothing", refusedLeavesNothing},
}

// directoryMayMoveOn: names move a directory's revision; a change of the
// directory itself that did not see them holds, and does not undo them.
func directoryMayMoveOn(tb testing.TB, f Factory) {
	w := newWorld(tb, f)
	w.must(w.mkdir(1, "d"))
	d := w.now.nodes[1].names["d"]
	c := w.setattr(d, func(a *meta.Attr) { a.Mode = meta.ModeDir | 0o700 })
	w.must(w.create(d, "a"), w.mkdir(d, "b"))
	w.must(c)
	w.compare()
	w.verify()
}

// guardBlob: an extent refers to a blob that is stored, or the change fails.
func guardBlob(tb testing.TB, f Factory) {
	w := newWorld(tb, f)
	w.place = meta.PlacePack
	w.must(w.create(1, "a"), w.create(1, "b"))
	a, b := w.now.nodes[1].names["a"], w.now.nodes[1].names["b"]
	c := w.write(a, true, piece{data: []byte("content")})
	blobs := c.Content.Blobs
	c.Content.Blobs = nil
	w.refused(c)
	w.must(w.write(a, true, piece{data: []byte("content")}))
	shared := w.write(b, true, piece{data: []byte("content")})
	shared.Content.Blobs = nil
	w.must(shared) // stored by the other file's write
	w.compare()

	for _, n := range []string{"a", "b"} {
		w.must(w.remove(1, n))
	}
	w.drop(a, b)
	if n, err := w.s.Condemn(ctx, w.tick(), 100); err != nil || n != 1 {
		tb.Fatalf("condemned %d blobs, %v", n, err)
	}
	w.must(w.create(1, "c"))
	ino := w.now.nodes[1].names["c"]
	c = w.write(ino, true, piece{data: []byte("content")})
	c.Content.Blobs = nil
	w.refused(c)
	moved := blobs[0]
	moved.Segment, moved.Offset = 9, 9
	c.Content.Blobs = []meta.NewBlob{moved}
	w.must(c) // stored again elsewhere
	got, err := w.s.Blob(ctx, moved.ID)
	w.ok(err)
	if got != moved.Blob {
		tb.Fatalf("the blob lies at %+v, want %+v", got, moved.Blob)
	}
	w.compare()
	w.verify()
}

// drop lets inodes go, in the store and in the model.
func (w *world) drop(inos ...meta.Ino) {
	w.tb.Helper()
	for _, ino := range inos {
		w.ok(w.s.DropInode(ctx, ino))
		delete(w.now.nodes, ino)
	}
}

// refusedLeavesNothing: whichever part of a change fails, no other part stays.
func refusedLeavesNothing(tb testing.TB, f Factory) {
	w := newWorld(tb, f)
	w.must(w.mkdir(1, "gone"), w.create(1, "a"), w.create(1, "b"))
	gone, a := w.now.nodes[1].names["gone"], w.now.nodes[1].names["a"]
	w.must(w.remove(1, "gone"))
	w.must(w.write(a, true, piece{data: []byte("0123456789")}))

	c := w.write(a, true, piece{off: 3, data: []byte("xyz")})
	c.Xattrs = []meta.XattrChange{{Ino: a, Name: "user.x", Value: []byte("v")}}
	c.Names = []meta.NameChange{{Parent: 1, Name: "new", After: a, AfterType: meta.ModeRegular}}
	c.Record.Actor.Exe = "/bin/never-seen"
	c.Dirs = []meta.DirDelta{{Ino: gone, Entries: 1, Time: 1}} // the last guard
	w.refused(c)
	w.must(w.write(a, true, piece{off: 3, data: []byte("xyz")}))
	c = w.create(1, "n")
	c.Record.Actor.Exe = "/bin/never-seen"
	w.must(c)
	w.compare()
	w.verify()
	seen := ""
	w.ok(w.s.Records(ctx, meta.RecordFilter{Reverse: true, Limit: 1}, func(r *meta.Record) bool {
		seen = r.Actor.Exe
		return true
	}))
	if seen != "/bin/never-seen" {
		tb.Fatalf("the record's actor is %q", seen)
	}
}

var batchCases = []Case{
	{"BatchEverySecondFails", everySecondFails},
	{"BatchBuildsOnItself", batchBuildsOnItself},
	{"BatchAllFail", allFail},
	{"BatchWhole", wholeBatch},
}

// everySecondFails: the bad operations of a batch cost nobody else (P2).
func everySecondFails(tb testing.TB, f Factory) {
	w := newWorld(tb, f)
	for round := range 8 {
		var batch []*meta.Change
		for i := range 16 {
			name := fmt.Sprintf("%d-%d", round, i)
			if i%2 == 1 {
				name = fmt.Sprintf("%d-%d", round, i-1)
			}
			c := w.make(1, name, meta.ModeRegular|0o644, uint32(i%3))
			c.Record.Actor.PID = uint32(1000 + round*16 + i)
			batch = append(batch, c)
		}
		out := w.commit(batch...)
		for i, o := range out {
			if (o.Err != nil) != (i%2 == 1) {
				tb.Fatalf("change %d: %v", i, o.Err)
			}
		}
	}
	w.compare()
	w.verify()
	n := 0
	w.ok(w.s.Records(ctx, meta.RecordFilter{Since: 1}, func(r *meta.Record) bool {
		if int(r.Rev) != n+2 || r.Actor.PID != uint32(1000+2*n) {
			tb.Errorf("record %d is of pid %d", r.Rev, r.Actor.PID)
		}
		n++
		return true
	}))
	if n != 64 {
		tb.Errorf("%d records, want 64", n)
	}
}

// batchBuildsOnItself: later changes of a batch see the earlier ones.
func batchBuildsOnItself(tb testing.TB, f Factory) {
	w := newWorld(tb, f)
	d := w.mkdir(1, "d")
	dir := d.Inodes[0].After
	file := w.make(1, "f", meta.ModeRegular|0o644, 0)
	file.Names[0].Parent, file.Dirs[0].Ino, file.Record.Parent = dir.Ino, dir.Ino, dir.Ino
	w.must(d, file)
	w.compare()

	// One in the middle fails: what relied on it fails, the rest holds.
	bad := w.create(1, "d")
	ino := bad.Inodes[0].After.Ino
	before := bad.Inodes[0].After
	before.Rev = w.now.rev + 1
	after := before
	after.UID = 9
	chown := &meta.Change{Record: w.record(meta.OpSetattr, ino), Inodes: []meta.InodeChange{{Before: &before, After: after}}}
	out := w.commit(w.create(1, "x"), bad, chown, w.create(1, "y"))
	if out[0].Err != nil || out[1].Err == nil || out[2].Err == nil || out[3].Err != nil {
		tb.Fatalf("outcomes %+v", out)
	}
	w.compare()
	w.verify()
}

func allFail(tb testing.TB, f Factory) {
	w := newWorld(tb, f)
	w.must(w.create(1, "a"))
	head, err := w.s.Head(ctx)
	w.ok(err)
	w.commit(w.create(1, "a"), w.create(1, "a"))
	after, err := w.s.Head(ctx)
	w.ok(err)
	if head != after {
		tb.Fatalf("the head moved from %+v to %+v", head, after)
	}
	w.must(w.create(1, "b"))
	w.compare()
	w.verify()
}

// wholeBatch: as many changes as a committer ever sends.
func wholeBatch(tb testing.TB, f Factory) {
	w := newWorld(tb, f)
	var batch []*meta.Change
	for i := range 256 {
		batch = append(batch, w.create(1, fmt.Sprint(i)))
	}
	w.must(batch...)
	w.compare()
	w.verify()
	if out, err := w.s.Commit(ctx, &meta.Batch{Session: w.session, Epoch: w.epoch}); err != nil || len(out) != 0 {
		tb.Fatalf("an empty batch gives %v, %v", out, err)
	}
}
