package ssottest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"nexusfs/meta"
)

var historyCases = []Case{
	{"HistoryRecords", historyRecords},
	{"HistoryAsOf", historyAsOf},
	{"HistoryDeleted", historyDeleted},
	{"HistoryPaths", historyPaths},
	{"HistoryQuery", historyQuery},
	{"HistoryQueryReadsOnly", queryReadsOnly},
	{"HistoryVersions", historyVersions},
}

// historyRecords: what was committed comes back whole, and the filters select.
func historyRecords(tb testing.TB, f Factory) {
	w := newWorld(tb, f)
	w.must(w.mkdir(1, "d\n\xff"))
	d := w.now.nodes[1].names["d\n\xff"]
	c := w.create(d, "f")
	c.Record.After = `{"mode":420}`
	c.Record.Actor = meta.Actor{UID: 1, GID: 2, PID: 3, StartTime: 4, Exe: "/bin/ä\xff", Cgroup: "/c", Node: "n", Agent: "a", Task: "t"}
	w.must(c)
	ino := w.now.nodes[d].names["f"]
	w.must(w.rename(d, "f", 1, "g"))
	w.must(w.write(ino, true, piece{data: []byte("data")}))
	want := []meta.Record{c.Record}
	want[0].Rev, want[0].Digest = 3, meta.RecordDigest(&c.Record, w.session)
	got := w.records(meta.RecordFilter{Since: 2, Until: 3})
	if diff := cmp.Diff(want, got); diff != "" {
		tb.Errorf("record (-want +got):\n%s", diff)
	}
	for _, t := range []struct {
		f    meta.RecordFilter
		revs []meta.Rev
	}{
		{meta.RecordFilter{}, []meta.Rev{1, 2, 3, 4, 5}},
		{meta.RecordFilter{Reverse: true, Limit: 2}, []meta.Rev{5, 4}},
		{meta.RecordFilter{Since: 3}, []meta.Rev{4, 5}},
		{meta.RecordFilter{Ino: ino}, []meta.Rev{3, 4, 5}},
		{meta.RecordFilter{Ino: ino, Reverse: true, Limit: 1}, []meta.Rev{5}},
		{meta.RecordFilter{Ino: d}, []meta.Rev{2, 3, 4}},
		{meta.RecordFilter{Ino: 1, Until: 3}, []meta.Rev{1, 2}},
		{meta.RecordFilter{Ino: 1, Since: 2}, []meta.Rev{4}},
		{meta.RecordFilter{Ino: 999}, nil},
	} {
		var revs []meta.Rev
		for _, r := range w.records(t.f) {
			revs = append(revs, r.Rev)
		}
		if !slices.Equal(revs, t.revs) {
			tb.Errorf("%+v selects %v, want %v", t.f, revs, t.revs)
		}
	}
	n := 0
	w.ok(w.s.Records(ctx, meta.RecordFilter{}, func(*meta.Record) bool { n++; return n < 2 }))
	if n != 2 {
		tb.Errorf("the listing went on to %d records", n)
	}
}

func (w *world) records(f meta.RecordFilter) (out []meta.Record) {
	w.tb.Helper()
	w.ok(w.s.Records(ctx, f, func(r *meta.Record) bool { out = append(out, *r); return true }))
	return out
}

// historyAsOf: any past moment can be read.
func historyAsOf(tb testing.TB, f Factory) {
	w := newWorld(tb, f)
	w.must(w.create(1, "f"), w.mkdir(1, "d"))
	ino := w.now.nodes[1].names["f"]
	w.must(w.write(ino, true, piece{data: []byte("one")}))
	w.must(w.setattr(ino, func(a *meta.Attr) { a.Mode = meta.ModeRegular | 0o600; a.UID = 9 }))
	w.must(w.write(ino, false, piece{off: 1, data: []byte("X")}))
	w.must(w.setxattr(ino, "user.a", []byte("1")))
	w.must(w.link(ino, w.now.nodes[1].names["d"], "h"))
	w.must(w.truncate(ino, 1))
	w.must(w.remove(1, "f"))
	w.must(w.remove(w.now.nodes[1].names["d"], "h"))
	for rev := range w.past {
		w.compareAt(rev)
	}
	w.compare()
	w.verify()
}

func historyDeleted(tb testing.TB, f Factory) {
	w := newWorld(tb, f)
	for _, n := range []string{"a", "b", "c", "linked", "moved"} {
		w.must(w.create(1, n))
	}
	a := w.now.nodes[1].names["a"]
	w.must(w.write(a, true, piece{data: []byte("12345")}))
	w.must(w.mkdir(1, "d"))
	d := w.now.nodes[1].names["d"]
	w.must(w.link(w.now.nodes[1].names["linked"], d, "other"))
	for _, n := range []string{"b", "linked", "a"} {
		w.must(w.remove(1, n))
	}
	w.must(w.rename(1, "moved", d, "moved"))
	w.must(w.create(1, "a"))
	got, err := w.s.Deleted(ctx, 1, 10)
	w.ok(err)
	var names []string
	for _, g := range got {
		names = append(names, g.Name)
	}
	if !slices.Equal(names, []string{"a", "b"}) {
		tb.Fatalf("deleted are %q", names)
	}
	if g := got[0]; g.Ino != a || g.Size != 5 || g.Version != 2 || g.Type != meta.ModeRegular || g.End != 12 || g.Time == 0 {
		tb.Fatalf("deleted is %+v", g)
	}
	if got, err = w.s.Deleted(ctx, 1, 1); err != nil || len(got) != 1 {
		tb.Fatalf("limit 1 gives %v, %v", got, err)
	}
}

func historyPaths(tb testing.TB, f Factory) {
	w := newWorld(tb, f)
	w.must(w.mkdir(1, "a"))
	a := w.now.nodes[1].names["a"]
	w.must(w.mkdir(a, "b"))
	b := w.now.nodes[a].names["b"]
	w.must(w.create(b, "f"))
	ino := w.now.nodes[b].names["f"]
	path := func(ino meta.Ino, want string) {
		tb.Helper()
		got, err := w.s.PathOf(ctx, ino)
		w.ok(err)
		if got != want {
			tb.Errorf("inode %d is at %q, want %q", ino, got, want)
		}
	}
	path(1, "/")
	path(ino, "/a/b/f")
	w.must(w.rename(1, "a", 1, "z"))
	w.must(w.rename(a, "b", 1, "bb"))
	path(ino, "/bb/f")
	path(b, "/bb")
	w.must(w.link(ino, a, "second"))
	w.must(w.remove(a, "second")) // the newest name is gone, the older one stays
	path(ino, "/bb/f")
	w.must(w.remove(b, "f"))
	_, err := w.s.PathOf(ctx, ino)
	w.wantKind(err, meta.KindNotExist)
	_, err = w.s.PathOf(ctx, 999)
	w.wantKind(err, meta.KindNotExist)
}

func historyVersions(tb testing.TB, f Factory) {
	w := newWorld(tb, f)
	w.must(w.create(1, "f"))
	ino := w.now.nodes[1].names["f"]
	w.compare()
	w.must(w.write(ino, false, piece{data: []byte("one")})) // the first version moves
	w.compare()
	for i := range 4 {
		w.must(w.write(ino, i%2 == 0, piece{off: int64(i), data: []byte("more")}))
		w.compare()
	}
	got, err := w.s.Versions(ctx, ino)
	w.ok(err)
	last := got[len(got)-1]
	if last.Actor.Exe != "/bin/x" || last.Actor.Agent != "agent" || last.Time != w.clock {
		tb.Errorf("the newest version is %+v", last)
	}
	for _, v := range got { // each version's content is what it was at its revision
		w.compareAt(v.Rev)
	}
	c := w.write(ino, true, piece{data: []byte("x")})
	c.Version.N--
	w.refused(c)
	w.verify()
}

// rows runs a query and returns its rows as text.
func (w *world) rows(sql string, args ...any) (out []string) {
	w.tb.Helper()
	w.ok(w.s.Query(ctx, sql, args, func([]string) error { return nil }, func(v []any) error {
		out = append(out, strings.TrimSpace(fmt.Sprintln(v...)))
		return nil
	}))
	return out
}

// historyQuery: the documented views show what was done.
func historyQuery(tb testing.TB, f Factory) {
	w := newWorld(tb, f)
	w.must(w.mkdir(1, "d"))
	d := w.now.nodes[1].names["d"]
	w.must(w.create(d, "f"))
	ino := w.now.nodes[d].names["f"]
	w.must(w.write(ino, true, piece{data: []byte("12345")}))
	w.must(w.make(d, "l", meta.ModeSymlink|0o777, 0))
	w.ok(w.s.LateAnswer(ctx, 3, "announce: quorum lost"))
	w.must(w.remove(d, "l"))
	for sql, want := range map[string][]string{
		"select path, type, mode, size, version from files order by path": {"/ dir 0755 0 <nil>", "/d dir 0755 0 <nil>", "/d/f file 0644 5 2"},
		"select revision, kind, ino, name, exe from operations where revision > 1 order by revision": {fmt.Sprintf("2 mkdir %d d /bin/x", d),
			fmt.Sprintf("3 create %d f /bin/x", ino), fmt.Sprintf("4 write %d <nil> /bin/x", ino), "5 symlink 4 l /bin/x", "6 unlink 4 l /bin/x"},
		"select version, first_revision, revision, size from versions order by 1":                                {"1 3 3 0", "2 4 4 5"},
		"select name, first_revision, end_revision from history where parent = " + fmt.Sprint(d) + " order by 1": {"f 3 <nil>", "l 5 6"},
		"select name, revision from deleted":                                                                     {"l 6"},
		"select revision, not_acknowledged from operations where not_acknowledged is not null":                   {"3 announce: quorum lost"},
		"select count(*), sum(count), max(revision) from batches":                                                {"6 6 6"},
		`select "offset", length, end_revision from content`:                                                     {"0 5 <nil>"},
		"select scope, id, inodes, bytes from usage order by 1":                                                  {"user 0 3 5", "zone <nil> 3 5"},
		"select substr(time, 1, 19) from operations where revision = 2":                                          {"2023-11-14T22:13:20"},
		"select count(*) from sessions where ended is null":                                                      {"1"},
		"select zone from operations group by 1":                                                                 {"default"},
	} {
		if diff := cmp.Diff(want, w.rows(sql)); diff != "" {
			tb.Errorf("%s (-want +got):\n%s", sql, diff)
		}
	}
	if got := w.rows("select ?, ?, ?, ?; -- trailing", int64(1), "x", []byte("y"), nil); got[0] != "1 x [121] <nil>" {
		tb.Errorf("parameters come back as %q", got)
	}
}

// queryReadsOnly: nothing but reading goes through Query, and it ends when the
// context does.
func queryReadsOnly(tb testing.TB, f Factory) {
	w := newWorld(tb, f)
	w.must(w.create(1, "f"))
	none := func([]string) error { return nil }
	row := func([]any) error { return nil }
	for _, sql := range []string{
		"delete from inodes", "update inodes set size = 1", "insert into zones select * from zones", "drop view files", "create table t (a)",
		"select 1; select 2", "select 1; delete from inodes", "pragma query_only=0", "pragma writable_schema=1", "attach 'x' as y", "begin", "commit",
		"vacuum", "", "  -- nothing", "select nonsense from nowhere", "select ?",
	} {
		w.wantKind(w.s.Query(ctx, sql, nil, none, row), meta.KindInvalid)
	}
	short, cancel := context.WithCancel(ctx)
	n := 0
	err := w.s.Query(short, "with recursive n(i) as (select 1 union all select i+1 from n) select i from n", nil, none, func([]any) error {
		if n++; n == 10 {
			cancel()
		}
		return nil
	})
	w.wantKind(err, meta.KindInterrupted)
	if got := w.rows("select 1"); len(got) != 1 {
		tb.Errorf("after an interrupted query: %v", got)
	}
	w.compare()
	w.must(w.create(1, "g"))
}
