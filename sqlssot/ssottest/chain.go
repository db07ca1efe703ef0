package ssottest

import (
	"fmt"
	"strings"
	"testing"

	"nexusfs/meta"
)

var chainCases = []Case{
	{"ChainFindsDamage", chainFindsDamage},
	{"ChainFromTheMiddle", chainFromTheMiddle},
	{"VerifyFindsDamage", verifyFindsDamage},
}

// chainWorld has batches of revisions 2-4, 5, 6-8, 9.
func chainWorld(tb testing.TB, db Database) *world {
	w := openWorld(tb, db.Zone(tb, "default"))
	for i := range 2 {
		n := fmt.Sprint(i)
		w.must(w.create(1, "a"+n), w.create(1, "b"+n), w.create(1, "c"+n))
		w.must(w.create(1, "d"+n))
	}
	w.verify()
	return w
}

// chain collects findings of VerifyChain alone.
func (w *world) chain(first meta.Rev) (out []string, checked int64) {
	w.tb.Helper()
	checked, err := w.s.VerifyChain(ctx, first, func(f meta.Finding) { out = append(out, fmt.Sprintf("%s %d", f.Check, f.Rev)) })
	w.ok(err)
	return out, checked
}

// chainFindsDamage: the first wrong revision is exact to the row where a
// record is wrong, to the batch where rows are missing (P33).
func chainFindsDamage(tb testing.TB, f Factory) {
	for _, c := range []struct{ sql, want string }{
		{"UPDATE operation_records SET name='x' WHERE rev=7", "record-digest 7"},
		{"UPDATE operation_records SET time=time+1 WHERE rev=2", "record-digest 2"},
		{"UPDATE operation_records SET session=99 WHERE rev=9", "record-digest 9"},
		{"UPDATE operation_records SET after='{}' WHERE rev=5", "record-digest 5"},
		{"UPDATE actors SET uid=1 WHERE actor=(SELECT actor FROM operation_records WHERE rev=2)", "record-digest 2"},
		{"DELETE FROM operation_records WHERE rev=7", "record-missing 7"},
		{"DELETE FROM operation_records WHERE rev=8", "record-missing 8"},
		{"DELETE FROM operation_records WHERE rev=9", "chain-end 9"},
		{"DELETE FROM operation_records WHERE rev BETWEEN 2 AND 5", "record-missing 2"},
		{"UPDATE operation_records SET head=zeroblob(32) WHERE rev=5", "chain-head 5"},
		{"UPDATE operation_records SET digest=zeroblob(32) WHERE rev=3", "record-digest 3"},
		{"UPDATE operation_records SET rev=100 WHERE rev=9", "record-missing 9"},
		{"UPDATE counters SET head=zeroblob(32) WHERE kind=0", "chain-end 10"},
	} {
		db := f(tb)
		w := chainWorld(tb, db)
		db.Exec(tb, c.sql)
		got, _ := w.chain(1)
		if len(got) == 0 || got[0] != c.want {
			tb.Errorf("%s: found %q, want first %q", c.sql, got, c.want)
		}
	}
}

func chainFromTheMiddle(tb testing.TB, f Factory) {
	w := chainWorld(tb, f(tb))
	for _, c := range []struct {
		first   meta.Rev
		checked int64
	}{{1, 9}, {2, 8}, {4, 8}, {5, 5}, {9, 1}, {100, 0}} {
		if got, n := w.chain(c.first); len(got) != 0 || n != c.checked {
			tb.Errorf("from %d: checked %d, found %q", c.first, n, got)
		}
	}
}

// verifyFindsDamage: each check of fsck notices what it is for.
func verifyFindsDamage(tb testing.TB, f Factory) {
	for _, c := range []struct{ sql, want string }{
		{"DELETE FROM inodes WHERE ino=%d", "dentry-without-inode"},
		{"UPDATE inodes SET nlink=0 WHERE ino=%d", "dentry-to-unlinked"},
		{"UPDATE inodes SET nlink=2 WHERE ino=%d", "links"},
		{"UPDATE inodes SET mode=8192 WHERE ino=%d", "dentry-type"},
		{"UPDATE inodes SET entries=7 WHERE ino=1", "directory-entries"},
		{"DELETE FROM dentries WHERE ino=%d", "links"},
		{"UPDATE dentries SET cookie=5 WHERE ino=%d", "dentry-cookie"},
		{"UPDATE dentries SET name='zz' WHERE ino=%d", "dentry-cookie"},
		{"UPDATE dentries SET parent=77 WHERE ino=%d", "dentry-in-nothing"},
		{"UPDATE inodes SET parent=77 WHERE mode=16877 AND ino<>1", "directory-parent"},
		{"UPDATE zones SET next_ino=2", "inode-number"},
		{"UPDATE inodes SET rev=5000 WHERE ino=%d", "inode-revision"},
		{"UPDATE extents SET ino=99 WHERE ino=%d", "extent-without-inode"},
		{"UPDATE extents SET len=4 WHERE ino=%d AND off=0", "extent-overlap"},
		{"DELETE FROM blobs WHERE blob=(SELECT blob FROM extents WHERE ino=%d AND off=0)", "extent-without-blob"},
		{"UPDATE extents SET blob_off=2 WHERE ino=%d AND off=0", "extent-outside-blob"},
		{"UPDATE inodes SET bytes=0 WHERE ino=%d", "bytes"},
		{"DELETE FROM extents WHERE ino=%d AND off=0", "blob-references"},
		{"UPDATE blobs SET condemned=1", "blob-condemned"},
		{"UPDATE blobs SET data=x'00' WHERE blob=(SELECT blob FROM extents WHERE ino=%d AND off=0)", "blob-data"},
		{"UPDATE inodes SET version=9 WHERE ino=%d", "version"},
		{"UPDATE xattrs SET ino=99 WHERE ino=%d", "xattr-without-inode"},
		{"UPDATE inodes SET flags=0 WHERE ino=%d", "xattr-flag"},
		{"UPDATE counters SET inodes=9 WHERE kind=1", "usage-user"},
		{"UPDATE counters SET bytes=9 WHERE kind=0", "usage-zone"},
		{"UPDATE dentries SET parent=ino WHERE type=4", "unreachable"},
		{"DELETE FROM operation_records WHERE rev=(SELECT rev FROM inodes WHERE ino=%d)", "record-of-inode"},
	} {
		db := f(tb)
		w := openWorld(tb, db.Zone(tb, "default"))
		w.must(w.create(1, "f"), w.mkdir(1, "d"))
		ino := w.now.nodes[1].names["f"]
		w.must(w.write(ino, true, piece{data: []byte("abc")}, piece{off: 3, data: []byte("def")}))
		w.must(w.setxattr(ino, "user.a", []byte("x")))
		w.verify()
		sql := c.sql
		if strings.Contains(sql, "%d") {
			sql = fmt.Sprintf(sql, ino)
		}
		db.Exec(tb, sql)
		found := false
		for _, f := range w.findings() {
			found = found || f.Check == c.want
		}
		if !found {
			tb.Errorf("%s: %q was not found", sql, c.want)
		}
	}
}
