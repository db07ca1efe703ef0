package ssottest

import (
	"fmt"
	"strings"
	"testing"

	"nexusfs/meta"
)

var nameCases = []Case{
	{"NamesAreBytes", namesAreBytes},
	{"LookupOfNothing", lookupOfNothing},
	{"NamesThatCollide", namesThatCollide},
	{"ListingWhileNamesChange", listingWhileNamesChange},
	{"Targets", targets},
	{"Xattrs", xattrs},
}

// namesAreBytes: names that a collation, a character set or a C string would
// take for each other are different names.
func namesAreBytes(tb testing.TB, f Factory) {
	w := newWorld(tb, f)
	names := []string{"a", "A", "a ", " a", "ä", "a\u0308", "Ä", "\xff", "\xff\xfe", "\xc3\x28", "a\nb", "\x1b[31m", "%", "_", "'", `"`, "\\", "ß", "ss", "İ", "i",
		"\u2028", "a\u200d", strings.Repeat("x", 255), strings.Repeat("\xf0", 255), "0", "00", "-", "NULL", "\x01"}
	var batch []*meta.Change
	for _, n := range names {
		batch = append(batch, w.create(meta.RootIno, n))
	}
	w.must(batch...)
	w.compare()
	for _, n := range names[:len(names)/2] {
		w.must(w.remove(meta.RootIno, n))
	}
	w.compare()
	w.verify()
}

func lookupOfNothing(tb testing.TB, f Factory) {
	w := newWorld(tb, f)
	w.must(w.create(meta.RootIno, "file"))
	for _, n := range []string{"fil", "file2", "File", "file\xff"} {
		_, err := w.s.Lookup(ctx, meta.RootIno, n)
		w.wantKind(err, meta.KindNotExist)
	}
	_, err := w.s.Lookup(ctx, 999, "file")
	w.wantKind(err, meta.KindNotExist)
	_, err = w.s.Inode(ctx, 999)
	w.wantKind(err, meta.KindNotExist)
	_, err = w.s.Xattr(ctx, meta.RootIno, "user.none")
	w.wantKind(err, meta.KindNoData)
	_, err = w.s.Blob(ctx, meta.BlobID{1})
	w.wantKind(err, meta.KindNotExist)
	list, err := w.s.List(ctx, 999, 0, 10, false, nil)
	w.ok(err)
	if len(list) != 0 {
		tb.Fatalf("a directory that does not exist lists %v", list)
	}
}

// namesThatCollide: two names with one cookie are two names, and a page never
// ends between them.
func namesThatCollide(tb testing.TB, f Factory) {
	w := newWorld(tb, f)
	const x, y = "pU0QaT8CzHE", "RvrLDxt7ArG"
	if meta.NameCookie(x) != meta.NameCookie(y) {
		tb.Fatal("the names do not collide")
	}
	for i := range 20 {
		w.must(w.create(meta.RootIno, fmt.Sprint(i)))
	}
	w.must(w.create(meta.RootIno, x), w.create(meta.RootIno, y))
	w.compare()
	for _, attrs := range []bool{false, true} {
		for limit := 1; limit <= 22; limit++ {
			n := 0
			for after := uint64(0); ; {
				page, err := w.s.List(ctx, meta.RootIno, after, limit, attrs, nil)
				w.ok(err)
				if len(page) == 0 {
					break
				}
				n += len(page)
				after = page[len(page)-1].Cookie
			}
			if n != 22 {
				tb.Fatalf("pages of %d list %d names, want 22", limit, n)
			}
		}
	}
	w.must(w.rename(meta.RootIno, x, meta.RootIno, "z"))
	w.compare()
	w.must(w.remove(meta.RootIno, y))
	w.compare()
	w.verify()
}

// listingWhileNamesChange: what is there from beginning to end is listed
// exactly once, whatever comes and goes meanwhile.
func listingWhileNamesChange(tb testing.TB, f Factory) {
	w := newWorld(tb, f)
	for i := range 60 {
		w.must(w.create(meta.RootIno, fmt.Sprintf("stays%d", i)), w.create(meta.RootIno, fmt.Sprintf("goes%d", i)))
	}
	seen := make(map[string]int)
	gone := 0
	for after := uint64(0); ; {
		page, err := w.s.List(ctx, meta.RootIno, after, 7, false, nil)
		w.ok(err)
		if len(page) == 0 {
			break
		}
		for _, e := range page {
			seen[e.Name]++
			if e.Attr.Mode != meta.ModeRegular || e.Attr.Ino == 0 {
				tb.Fatalf("entry %q is inode %d of type %o", e.Name, e.Attr.Ino, e.Attr.Mode)
			}
		}
		after = page[len(page)-1].Cookie
		w.must(w.remove(meta.RootIno, fmt.Sprintf("goes%d", gone)), w.create(meta.RootIno, fmt.Sprintf("new%d", gone)))
		gone++
	}
	for name, n := range seen {
		if n > 1 {
			tb.Errorf("%q was listed %d times", name, n)
		}
	}
	for i := range 60 {
		if n := seen[fmt.Sprintf("stays%d", i)]; n != 1 {
			tb.Errorf("stays%d was listed %d times", i, n)
		}
	}
}

func targets(tb testing.TB, f Factory) {
	w := newWorld(tb, f)
	w.must(w.make(meta.RootIno, "link", meta.ModeSymlink|0o777, 0), w.create(meta.RootIno, "file"))
	w.compare()
	_, err := w.s.Target(ctx, w.now.nodes[1].names["file"])
	w.wantKind(err, meta.KindInvalid)
	_, err = w.s.Target(ctx, 999)
	w.wantKind(err, meta.KindNotExist)
}

func xattrs(tb testing.TB, f Factory) {
	w := newWorld(tb, f)
	w.must(w.create(meta.RootIno, "file"))
	ino := w.now.nodes[1].names["file"]
	for name, value := range map[string]string{"user.a": "1", "user.A": "", "user.b": "\x00\xff", "security.capability": strings.Repeat("v", 65536)} {
		w.must(w.setxattr(ino, name, []byte(value)))
	}
	w.must(w.setxattr(ino, "user.a", []byte("2")))
	w.compare()
	w.must(w.setxattr(ino, "user.a", nil))
	w.compare()
	w.verify()
}
