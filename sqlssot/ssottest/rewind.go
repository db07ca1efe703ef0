package ssottest

import (
	"encoding/json"
	"fmt"
	"testing"

	"nexusfs/meta"
	"pgregory.net/rapid"
)

var rewindCases = []Case{
	{"RewindModel", rewindModel},
	{"RewindNothing", rewindNothing},
	{"RewindInsideBatch", rewindInsideBatch},
	{"RewindForgetsBlobs", rewindForgetsBlobs},
	{"RewindRefused", rewindRefused},
}

// rewind takes operations back in the store and in the model.
func (w *world) rewind(first meta.Rev) meta.Rev {
	w.tb.Helper()
	head, err := w.s.Head(ctx)
	w.ok(err)
	rev, err := w.s.Rewind(ctx, first, w.tick())
	w.ok(err)
	if rev <= head.Rev || rev <= head.Reserved {
		w.tb.Fatalf("the recovery got revision %d; %d were issued and %d reserved", rev, head.Rev, head.Reserved)
	}
	after, err := w.s.Head(ctx)
	w.ok(err)
	if after.Rev != rev || after.Reserved != head.Reserved || after.Barrier != head.Barrier {
		w.tb.Fatalf("after the recovery the head is %+v", after)
	}
	last := w.now
	w.now = w.past[min(first-1, last.rev)].clone()
	w.now.rev = rev
	for ino := range last.nodes {
		if w.now.nodes[ino] == nil {
			if _, err := w.s.Inode(ctx, ino); err == nil {
				w.tb.Fatalf("inode %d is still there", ino)
			}
		}
	}
	for r := range w.past {
		if r >= first {
			delete(w.past, r)
		}
	}
	w.past[rev] = w.now
	return rev
}

// rewindModel: random operations, cut anywhere, give back the state before.
func rewindModel(tb testing.TB, f Factory) {
	db, n := f(tb), 0
	rapid.Check(tb, func(t *rapid.T) {
		n++
		w := openWorld(t, db.Zone(tb, fmt.Sprintf("zone%d", n)))
		defer w.s.Close()
		for range rapid.IntRange(1, 2).Draw(t, "rounds") {
			for range rapid.IntRange(1, 25).Draw(t, "steps") {
				drawStep(t, w)
			}
			first := meta.Rev(rapid.Int64Range(2, int64(w.now.rev)+1).Draw(t, "first"))
			for w.past[first-1] == nil { // skipped by an earlier recovery
				first++
			}
			w.rewind(first)
			w.compare()
			w.verify()
		}
		for range rapid.IntRange(0, 5).Draw(t, "after") {
			drawStep(t, w)
		}
		w.compare()
		w.verify()
	})
}

// rewindNothing: after an unclean stop revisions may have been issued that
// nobody remembers; a recovery skips them.
func rewindNothing(tb testing.TB, f Factory) {
	w := newWorld(tb, f)
	w.must(w.create(1, "a"))
	w.ok(w.s.Reserve(ctx, 1000))
	if rev := w.rewind(3); rev != 1001 {
		tb.Fatalf("the recovery got revision %d", rev)
	}
	w.compare()
	w.must(w.create(1, "b"))
	w.compare()
	w.verify()
}

// rewindInsideBatch: the cut need not be where a batch ends; the record names
// what was lost and the chain goes on.
func rewindInsideBatch(tb testing.TB, f Factory) {
	w := newWorld(tb, f)
	w.must(w.create(1, "a"), w.create(1, "b"), w.create(1, "c"), w.create(1, "d"))
	w.must(w.remove(1, "a"))
	before, err := w.s.Head(ctx)
	w.ok(err)
	rev := w.rewind(4)
	w.compare()
	w.verify()
	rec := w.records(meta.RecordFilter{Since: 3})
	if len(rec) != 1 || rec[0].Rev != rev || rec[0].Kind != meta.OpRecovery {
		tb.Fatalf("records after the cut: %+v", rec)
	}
	var l struct {
		First, Last int64
		Head        string
	}
	if err := json.Unmarshal([]byte(rec[0].After), &l); err != nil || l.First != 4 || l.Last != 6 || l.Head != fmt.Sprintf("%x", before.Hash) {
		tb.Fatalf("the recovery's record says %s (%v)", rec[0].After, err)
	}
	w.must(w.create(1, "c"))
	w.compare()
	w.verify()
}

// rewindForgetsBlobs: bytes that only lost operations used may be missing on
// disk; nobody may take them for stored.
func rewindForgetsBlobs(tb testing.TB, f Factory) {
	w := newWorld(tb, f)
	w.place = meta.PlacePack
	w.must(w.create(1, "a"), w.create(1, "b"))
	a, b := w.now.nodes[1].names["a"], w.now.nodes[1].names["b"]
	w.must(w.write(a, true, piece{data: []byte("kept")}))
	first := w.now.rev + 1
	c := w.write(b, true, piece{data: []byte("lost")})
	w.must(c)
	w.must(w.write(b, true, piece{off: 10, data: []byte("kept")}))
	w.rewind(first)
	w.compare()
	_, err := w.s.Blob(ctx, c.Content.Blobs[0].ID)
	w.wantKind(err, meta.KindNotExist)
	again := w.write(b, true, piece{data: []byte("lost")})
	again.Content.Blobs = nil
	w.refused(again)
	w.must(w.write(b, true, piece{data: []byte("kept")}))
	w.compare()
	w.verify()
}

func rewindRefused(tb testing.TB, f Factory) {
	w := newWorld(tb, f)
	w.must(w.create(1, "a"))
	for _, first := range []meta.Rev{-1, 0, 1, 4} {
		_, err := w.s.Rewind(ctx, first, 1)
		w.wantKind(err, meta.KindInvalid)
	}
	w.compare()
	w.verify()
}
