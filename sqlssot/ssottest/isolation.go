package ssottest

import (
	"fmt"
	"slices"
	"testing"

	"nexusfs/meta"
)

var isolationCases = []Case{
	{"EveryByteIsAName", everyByteIsAName},
	{"ViewsOrderBytes", viewsOrderBytes},
	{"BigDirectory", bigDirectory},
	{"ScansSeeOneState", scansSeeOneState},
	{"LostUpdate", lostUpdate},
}

// everyByteIsAName: each byte but / and NUL is a name, and each pair of letters
// in both cases is four.
func everyByteIsAName(tb testing.TB, f Factory) {
	w := newWorld(tb, f)
	var batch []*meta.Change
	for b := 1; b < 256; b++ {
		if b != '/' {
			batch = append(batch, w.create(meta.RootIno, string([]byte{byte(b)})))
		}
	}
	w.must(batch...)
	w.must(w.create(1, "ij"), w.create(1, "iJ"), w.create(1, "Ij"), w.create(1, "IJ"), w.create(1, "\u0132"), w.create(1, "\u0133"))
	w.compare()
	for b := 128; b < 256; b += 2 {
		w.must(w.rename(1, string([]byte{byte(b)}), 1, string([]byte{byte(b), byte(b)})))
	}
	w.compare()
	w.verify()
}

// viewsOrderBytes: text in views compares as bytes, whatever order people of
// some country expect.
func viewsOrderBytes(tb testing.TB, f Factory) {
	w := newWorld(tb, f)
	names := []string{"b", "B", "a", "A", "ä", "Z", "z", "_", "-", "a b", "a-b", "1", "10", "2"}
	for _, n := range names {
		w.must(w.create(1, n))
	}
	slices.Sort(names)
	if got := w.rows("select name from history order by name"); !slices.Equal(got, names) {
		tb.Errorf("names come in the order %q, want %q", got, names)
	}
	if got := w.rows("select path from files where path > '/a' and path < '/b' order by path"); !slices.Equal(got, []string{"/a b", "/a-b"}) {
		tb.Errorf("between /a and /b are %q", got)
	}
	if got := w.rows("select count(*) from files where path = '/A'"); got[0] != "1" {
		tb.Errorf("%s files are called A", got[0])
	}
}

// bigDirectory: thousands of names are listed whole, each once, in pages.
func bigDirectory(tb testing.TB, f Factory) {
	w := newWorld(tb, f)
	const names, batch = 5000, 250
	for from := 0; from < names; from += batch {
		changes := make([]*meta.Change, batch)
		for i := range changes {
			changes[i] = w.create(1, fmt.Sprintf("name-%d", from+i))
		}
		for i, o := range w.send(changes...) {
			if o.Err != nil {
				tb.Fatalf("change %d: %v", i, o.Err)
			}
		}
	}
	seen := make(map[string]bool)
	pages := 0
	var last uint64
	for {
		page, err := w.s.List(ctx, meta.RootIno, last, 1000, true, nil)
		w.ok(err)
		if len(page) == 0 {
			break
		}
		pages++
		for _, e := range page {
			if seen[e.Name] || e.Cookie < last {
				tb.Fatalf("%q is listed again or out of order", e.Name)
			}
			seen[e.Name] = true
			last = e.Cookie
		}
	}
	root, err := w.s.Inode(ctx, meta.RootIno)
	w.ok(err)
	if len(seen) != names || root.Entries != names || pages > names/1000+1 {
		tb.Errorf("%d names in %d pages, the directory counts %d", len(seen), pages, root.Entries)
	}
	w.verify()
}

// scansSeeOneState: what is committed while a scan is under way is not part of
// what it sees.
func scansSeeOneState(tb testing.TB, f Factory) {
	w := newWorld(tb, f)
	for i := range 20 {
		w.must(w.create(1, fmt.Sprint("old", i)))
	}
	n := 0
	w.ok(w.s.Query(ctx, "select path from files where path <> '/'", nil, func([]string) error { return nil }, func([]any) error {
		if n++; n <= 5 {
			w.must(w.create(1, fmt.Sprint("new", n)), w.remove(1, fmt.Sprint("old", n)))
		}
		return nil
	}))
	if n != 20 {
		tb.Errorf("a query of 20 files returned %d rows", n)
	}
	n = 0
	newest := w.now.rev
	w.ok(w.s.Records(ctx, meta.RecordFilter{}, func(r *meta.Record) bool {
		if n++; n == 1 {
			w.must(w.create(1, "later"))
		}
		return true
	}))
	if n != int(newest) {
		tb.Errorf("a listing of %d records returned %d", newest, n)
	}
	w.compare()
	w.verify()
}

// lostUpdate: of two changes that were built from one image the second one is
// refused, also in one batch; no update disappears under another.
func lostUpdate(tb testing.TB, f Factory) {
	w := newWorld(tb, f)
	w.must(w.create(1, "f"))
	ino := w.now.nodes[1].names["f"]
	for _, together := range []bool{false, true} {
		chmod := w.setattr(ino, func(a *meta.Attr) { a.Mode ^= 0o111 })
		chown := w.setattr(ino, func(a *meta.Attr) { a.UID++ })
		content := w.write(ino, true, piece{data: []byte("x")})
		if together {
			w.commit(chmod, chown, content)
		} else {
			w.must(chmod)
			w.refused(chown)
			w.refused(content)
		}
		w.compare()
	}
	w.verify()
}
