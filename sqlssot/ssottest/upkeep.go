package ssottest

import (
	"fmt"
	"slices"
	"testing"

	"nexusfs/meta"
	"pgregory.net/rapid"
)

var upkeepCases = []Case{
	{"PruneKeepsVersions", pruneKeepsVersions},
	{"PruneByAge", pruneByAge},
	{"PruneKeepsForRecovery", pruneKeepsForRecovery},
	{"PruneModel", pruneModel},
	{"PruneOff", pruneOff},
	{"PruneRecent", pruneRecent},
	{"Orphans", orphans},
	{"Collection", collection},
	{"Move", move},
	{"Fragmented", fragmented},
	{"Stats", stats},
}

// prunes runs whole sweeps until one finds nothing more.
func prunes(w *world, p meta.Retention) (removed int) {
	w.tb.Helper()
	for quiet := 0; quiet < 2; {
		n, done, err := w.s.Prune(ctx, p, 3)
		w.ok(err)
		removed += n
		if done {
			quiet++
		}
		if n > 0 {
			quiet = 0
		}
	}
	return removed
}

// versionFile makes a file with n versions of which each has its own bytes.
func versionFile(w *world, name string, n int) meta.Ino {
	w.must(w.create(1, name))
	ino := w.now.nodes[1].names[name]
	for i := range n - 1 {
		w.must(w.write(ino, true, piece{off: int64(i), data: []byte(fmt.Sprint(name, "-", i))}))
	}
	return ino
}

// kept lists the versions that are there and reads each one.
func (w *world) kept(ino meta.Ino) (out []int64) {
	w.tb.Helper()
	list, err := w.s.Versions(ctx, ino)
	w.ok(err)
	for _, v := range list {
		out = append(out, v.N)
		past := w.past[v.Rev]
		ext, err := w.s.ExtentsAt(ctx, ino, v.Rev, 0, 1<<40, 1<<20, true)
		w.ok(err)
		w.compareContent(ino, past.nodes[ino], ext)
		a, err := w.s.InodeAt(ctx, ino, v.Rev)
		w.ok(err)
		if a.Size != past.nodes[ino].attr.Size {
			w.tb.Fatalf("version %d has size %d, want %d", v.N, a.Size, past.nodes[ino].attr.Size)
		}
	}
	return out
}

func pruneKeepsVersions(tb testing.TB, f Factory) {
	w := newWorld(tb, f)
	x, y := versionFile(w, "x", 7), versionFile(w, "y", 2)
	prunes(w, meta.Retention{Versions: 3, Barrier: w.now.rev})
	if got := w.kept(x); !slices.Equal(got, []int64{5, 6, 7}) {
		tb.Errorf("kept versions %v of x", got)
	}
	if got := w.kept(y); !slices.Equal(got, []int64{1, 2}) {
		tb.Errorf("kept versions %v of y", got)
	}
	for _, ino := range []meta.Ino{x, y} {
		ext, err := w.s.Extents(ctx, ino, 0, 1<<40, 100, true)
		w.ok(err)
		w.compareContent(ino, w.now.nodes[ino], ext)
	}
	w.verify()
}

func pruneByAge(tb testing.TB, f Factory) {
	w := newWorld(tb, f)
	x := versionFile(w, "x", 6)
	w.must(w.create(1, "gone"))
	w.must(w.remove(1, "gone"))
	cut := w.past[5].nodes[x].attr.Mtime + 1 // versions up to revision 5 are older
	prunes(w, meta.Retention{Before: cut, Barrier: w.now.rev})
	if got := w.kept(x); !slices.Equal(got, []int64{5, 6}) {
		tb.Errorf("kept versions %v", got)
	}
	if got, err := w.s.Deleted(ctx, 1, 10); err != nil || len(got) != 1 {
		tb.Errorf("deleted names: %v, %v", got, err)
	}
	if rec := w.records(meta.RecordFilter{}); rec[0].Rev != 6 {
		tb.Errorf("the oldest record is %d", rec[0].Rev)
	}
	w.verify()
	prunes(w, meta.Retention{Before: w.clock + 1, Barrier: w.now.rev})
	if got := w.kept(x); !slices.Equal(got, []int64{6}) {
		tb.Errorf("kept versions %v", got)
	}
	if got, err := w.s.Deleted(ctx, 1, 10); err != nil || len(got) != 0 {
		tb.Errorf("deleted names: %v, %v", got, err)
	}
	w.verify()
	w.must(w.create(1, "on"))
	w.verify()
}

// pruneKeepsForRecovery: what ended behind the barrier stays, so that a
// recovery to any point behind it finds everything.
func pruneKeepsForRecovery(tb testing.TB, f Factory) {
	w := newWorld(tb, f)
	x := versionFile(w, "x", 5)
	barrier := w.now.rev
	for i := range 4 {
		w.must(w.write(x, false, piece{off: int64(i), data: []byte("moved on")}))
	}
	w.must(w.create(1, "y"), w.mkdir(1, "d"))
	w.must(w.setxattr(x, "user.a", []byte("1")))
	w.must(w.setxattr(x, "user.a", nil))
	w.must(w.remove(1, "x"))
	prunes(w, meta.Retention{Off: true, Barrier: barrier})
	list, err := w.s.Orphans(ctx, meta.Retention{Off: true, Barrier: barrier}, 10)
	w.ok(err)
	if len(list) != 0 {
		tb.Fatalf("orphans behind the barrier: %v", list)
	}
	w.rewind(barrier + 1)
	n := w.now.nodes[x]
	got, err := w.s.Inode(ctx, x)
	w.ok(err)
	if got != n.attr {
		tb.Fatalf("inode is %+v, want %+v", got, n.attr)
	}
	ext, err := w.s.Extents(ctx, x, 0, 1<<40, 100, true)
	w.ok(err)
	w.compareContent(x, n, ext)
	w.verify()
}

// pruneModel: whatever is done before, every version that stays can be read,
// and the present is untouched.
func pruneModel(tb testing.TB, f Factory) {
	db, n := f(tb), 0
	rapid.Check(tb, func(t *rapid.T) {
		n++
		w := openWorld(t, db.Zone(tb, fmt.Sprintf("zone%d", n)))
		defer w.s.Close()
		for range rapid.IntRange(5, 40).Draw(t, "steps") {
			drawStep(t, w)
		}
		p := meta.Retention{Off: rapid.Bool().Draw(t, "off"), Versions: rapid.IntRange(0, 3).Draw(t, "versions"),
			Barrier: meta.Rev(rapid.Int64Range(0, int64(w.now.rev)).Draw(t, "barrier"))}
		if rapid.Bool().Draw(t, "age") {
			p.Before = w.clock - rapid.Int64Range(-1, 40).Draw(t, "ago")*1_000_000
		}
		prunes(w, p)
		for _, ino := range w.now.inos() {
			node := w.now.nodes[ino]
			if !node.attr.IsRegular() {
				continue
			}
			ext, err := w.s.Extents(ctx, ino, 0, 1<<40, 1<<20, true)
			w.ok(err)
			w.compareContent(ino, node, ext)
			if got := w.kept(ino); len(got) == 0 || got[len(got)-1] != node.attr.Version {
				t.Fatalf("kept versions %v, the newest is %d", got, node.attr.Version)
			}
		}
		w.verify()
		if p.Barrier > 0 && int64(p.Barrier) < int64(w.now.rev) {
			w.rewind(p.Barrier + 1)
			w.verify()
		}
	})
}

// pruneRecent: called again and again under one policy, it leaves a sweep over
// everything nothing to do, and keeps what a sweep keeps.
func pruneRecent(tb testing.TB, f Factory) {
	db, n := f(tb), 0
	rapid.Check(tb, func(t *rapid.T) {
		n++
		w := openWorld(t, db.Zone(tb, fmt.Sprintf("zone%d", n)))
		defer w.s.Close()
		p := meta.Retention{Off: rapid.Bool().Draw(t, "off"), Versions: rapid.IntRange(0, 3).Draw(t, "versions")}
		ago := int64(-1)
		if rapid.Bool().Draw(t, "age") {
			ago = rapid.Int64Range(0, 20).Draw(t, "ago") * 1_000_000
		}
		for last := rapid.IntRange(0, 3).Draw(t, "rounds"); last >= 0; last-- {
			for range rapid.IntRange(1, 15).Draw(t, "steps") {
				drawStep(t, w)
			}
			w.must(w.create(1, fmt.Sprint("round", w.now.rev))) // the newest record always stays, with what it ended
			if p.Barrier = w.now.rev; ago >= 0 {
				p.Before = w.clock - ago
			}
			if ago >= 0 && last == 0 {
				p.Before = w.clock + 1 // not in the middle of a batch, whose records go together
			}
			for done := false; !done; {
				var err error
				_, done, err = w.s.PruneRecent(ctx, p, 3)
				w.ok(err)
			}
		}
		if left := prunes(w, p); left != 0 {
			t.Fatalf("a sweep finds %d rows more", left)
		}
		for _, ino := range w.now.inos() {
			if node := w.now.nodes[ino]; node.attr.IsRegular() {
				if got := w.kept(ino); len(got) == 0 || got[len(got)-1] != node.attr.Version {
					t.Fatalf("kept versions %v, the newest is %d", got, node.attr.Version)
				}
			}
		}
		w.verify()
	})
}

// pruneOff: without history only what is current stays, and the counters say so.
func pruneOff(tb testing.TB, f Factory) {
	w := newWorld(tb, f)
	x := versionFile(w, "x", 9)
	w.must(w.create(1, "y"))
	w.must(w.write(w.now.nodes[1].names["y"], true, piece{data: []byte("yyy")}))
	w.must(w.remove(1, "y"))
	u, err := w.s.Usage(ctx)
	w.ok(err)
	if u.HistoryBytes == 0 {
		tb.Fatal("no bytes of history are counted")
	}
	p := meta.Retention{Off: true, Barrier: w.now.rev}
	prunes(w, p)
	list, err := w.s.Orphans(ctx, p, 10)
	w.ok(err)
	w.drop(list...)
	if u, err = w.s.Usage(ctx); err != nil || u.HistoryBytes != 0 {
		tb.Fatalf("after all history went: %+v, %v", u, err)
	}
	if got := w.kept(x); !slices.Equal(got, []int64{9}) {
		tb.Fatalf("kept versions %v", got)
	}
	w.verify()
}

func orphans(tb testing.TB, f Factory) {
	w := newWorld(tb, f)
	for _, n := range []string{"old", "open", "new", "stays"} {
		w.must(w.create(1, n))
	}
	w.must(w.mkdir(1, "dir"))
	names := w.now.nodes[1].names
	w.must(w.write(names["old"], true, piece{data: []byte("content")}), w.setxattr(names["stays"], "user.a", []byte("x")))
	tmp := w.create(1, "tmp") // O_TMPFILE: never a name
	tmp.Names, tmp.Dirs, tmp.Inodes[0].After.Nlink = nil, nil, 0
	w.must(tmp)
	names = w.now.nodes[1].names
	w.must(w.remove(1, "old"))
	w.must(w.remove(1, "open"))
	w.must(w.remove(1, "dir"))
	cut := w.clock + 1
	w.must(w.remove(1, "new"))
	w.verify()
	p := meta.Retention{Before: cut, Barrier: w.now.rev, Open: []meta.Ino{names["open"]}}
	list, err := w.s.Orphans(ctx, p, 10)
	w.ok(err)
	slices.Sort(list)
	if want := []meta.Ino{names["old"], names["dir"], tmp.Record.Ino}; !slices.Equal(list, want) {
		tb.Fatalf("orphans are %v, want %v", list, want)
	}
	if list, err := w.s.Orphans(ctx, p, 2); err != nil || len(list) != 2 {
		tb.Fatalf("limit 2 gives %v, %v", list, err)
	}
	w.drop(list...)
	for _, ino := range list {
		_, err := w.s.Inode(ctx, ino)
		w.wantKind(err, meta.KindNotExist)
	}
	w.wantKind(w.s.DropInode(ctx, names["stays"]), meta.KindConflict)
	w.compare()
	w.verify()
}

// collection: condemned, taken back, claimed, forgotten (P28).
func collection(tb testing.TB, f Factory) {
	w := newWorld(tb, f)
	w.place = meta.PlaceFile
	w.must(w.create(1, "a"), w.create(1, "b"), w.create(1, "c"))
	names := w.now.nodes[1].names
	var blobs []meta.Blob
	for _, n := range []string{"a", "b"} {
		c := w.write(names[n], true, piece{data: []byte("bytes of " + n)})
		blobs = append(blobs, c.Content.Blobs[0].Blob)
		w.must(c)
	}
	if n, err := w.s.Condemn(ctx, 100, 10); err != nil || n != 0 {
		tb.Fatalf("condemned %d blobs in use, %v", n, err)
	}
	for _, n := range []string{"a", "b"} {
		w.must(w.remove(1, n))
		w.drop(names[n])
	}
	for range 2 {
		if n, err := w.s.Condemn(ctx, 100, 1); err != nil || n != 1 {
			tb.Fatalf("condemned %d, %v", n, err)
		}
	}
	if list, err := w.s.Condemned(ctx, 100, 10); err != nil || len(list) != 0 {
		tb.Fatalf("condemned before their time: %v, %v", list, err)
	}
	list, err := w.s.Condemned(ctx, 101, 10)
	w.ok(err)
	if len(list) != 2 {
		tb.Fatalf("condemned are %v", list)
	}
	w.must(w.write(names["c"], true, piece{data: []byte("bytes of a")})) // taken back into use
	ids := []meta.BlobID{blobs[0].ID, blobs[1].ID, {9}}
	got, err := w.s.Claim(ctx, ids)
	w.ok(err)
	if len(got) != 1 || got[0] != blobs[1] {
		tb.Fatalf("claimed %v, want %v", got, blobs[1])
	}
	if again, err := w.s.Claim(ctx, ids); err != nil || len(again) != 1 {
		tb.Fatalf("after a crash the claim gives %v, %v", again, err)
	}
	w.wantKind(w.s.Move(ctx, blobs[1], meta.Blob{ID: blobs[1].ID, Place: meta.PlacePack, Segment: 1}), meta.KindConflict)
	w.ok(w.s.Forget(ctx, ids))
	w.compare()
	w.verify()
	if _, err := w.s.Blob(ctx, blobs[0].ID); err != nil {
		tb.Error(err)
	}
	_, err = w.s.Blob(ctx, blobs[1].ID)
	w.wantKind(err, meta.KindNotExist)

	// A blob whose bytes are being removed is stored again, and stays.
	w.must(w.remove(1, "c"))
	w.drop(names["c"])
	if _, err := w.s.Condemn(ctx, 200, 10); err != nil {
		tb.Fatal(err)
	}
	if got, err = w.s.Claim(ctx, ids); err != nil || len(got) != 1 {
		tb.Fatalf("claimed %v, %v", got, err)
	}
	w.must(w.create(1, "d"))
	w.must(w.write(w.now.nodes[1].names["d"], true, piece{data: []byte("bytes of a")}))
	w.ok(w.s.Forget(ctx, ids))
	if _, err := w.s.Blob(ctx, blobs[0].ID); err != nil {
		tb.Error(err)
	}
	w.compare()
	w.verify()
}

func move(tb testing.TB, f Factory) {
	w := newWorld(tb, f)
	w.place = meta.PlacePack
	w.must(w.create(1, "a"))
	c := w.write(w.now.nodes[1].names["a"], true, piece{data: []byte("bytes")})
	w.must(c)
	from := c.Content.Blobs[0].Blob
	to := from
	to.Place, to.Segment, to.Offset = meta.PlaceFile, 77, 0
	w.ok(w.s.Move(ctx, from, to))
	got, err := w.s.Blob(ctx, from.ID)
	w.ok(err)
	if got != to {
		tb.Fatalf("the blob lies at %+v, want %+v", got, to)
	}
	w.wantKind(w.s.Move(ctx, from, to), meta.KindConflict)
	w.compare()
	w.verify()
}

func fragmented(tb testing.TB, f Factory) {
	w := newWorld(tb, f)
	want := []meta.Ino{}
	for i, n := range []int{3, 40, 1, 50, 2} {
		name := fmt.Sprint(i)
		w.must(w.create(1, name))
		ino := w.now.nodes[1].names[name]
		var pieces []piece
		for j := range n {
			pieces = append(pieces, piece{off: int64(j * 10), data: []byte(fmt.Sprint(j))})
		}
		w.must(w.write(ino, true, pieces...))
		if n > 30 {
			want = append(want, ino)
		}
	}
	var got []meta.Ino
	for range 3 { // goes on where it ended
		list, err := w.s.Fragmented(ctx, 30, 1)
		w.ok(err)
		got = append(got, list...)
	}
	if !slices.Equal(got, want) {
		tb.Fatalf("fragmented are %v, want %v", got, want)
	}
	if list, err := w.s.Fragmented(ctx, 64, 10); err != nil || len(list) != 0 {
		tb.Fatalf("fragmented are %v, %v", list, err)
	}
}

func stats(tb testing.TB, f Factory) {
	w := newWorld(tb, f)
	w.must(w.create(1, "a"), w.create(1, "b"))
	w.ok(w.s.Checkpoint(ctx, true))
	st, err := w.s.Stats(ctx)
	w.ok(err)
	if st.Inodes != 3 || st.Records != 3 || st.FileBytes == 0 || st.Path == "" {
		tb.Fatalf("stats are %+v", st)
	}
}
