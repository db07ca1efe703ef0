package postgres

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"nexusfs/internal/pgtest"
	"nexusfs/meta"
)

// world is a store with a session, for benchmarks and tests of several stores.
type world struct {
	*Store
	tb      testing.TB
	session int64
	epoch   int64
	next    meta.Ino
	last    meta.Ino
	dir     meta.Ino
	seq     int64
}

func newWorld(tb testing.TB, o Options, lease time.Duration) *world {
	tb.Helper()
	w := &world{Store: openOrCreate(tb, o), tb: tb, dir: meta.RootIno}
	var err error
	w.session, w.epoch, _, err = w.Begin(ctx, meta.SessionInfo{Node: "n", BootID: "b", Lease: int64(lease)})
	if err != nil {
		tb.Fatal(err)
	}
	return w
}

func (w *world) ino() meta.Ino {
	if w.next == w.last {
		first, err := w.Inos(ctx, 1<<10)
		if err != nil {
			w.tb.Fatal(err)
		}
		w.next, w.last = first, first+1<<10
	}
	w.next++
	return w.next - 1
}

// make builds the change that makes a directory or an empty file.
func (w *world) make(parent meta.Ino, name string, dir bool) *meta.Change {
	w.seq++
	now := time.Now().UnixNano()
	a := meta.Attr{Ino: w.ino(), Mode: meta.ModeRegular | 0o644, Nlink: 1, Atime: now, Mtime: now, Ctime: now, Btime: now}
	c := &meta.Change{Record: meta.Record{Kind: meta.OpCreate, Ino: a.Ino, Parent: parent, Name: name, Time: now,
		Seq: w.seq, Before: fmt.Sprintf(`{"pmtime":%d,"pctime":%d}`, now, now), After: `{"mode":33188,"uid":0,"gid":0}`,
		Actor: meta.Actor{PID: 77, StartTime: 12345, Exe: "/usr/bin/touch", Node: "node"}}}
	d := meta.DirDelta{Ino: parent, Entries: 1, Time: now}
	if dir {
		a.Mode, a.Nlink, a.Parent, d.Nlink = meta.ModeDir|0o755, 2, parent, 1
		c.Record.Kind = meta.OpMkdir
	} else {
		a.Version, a.ContentRev = 1, meta.RevPending
		c.Record.Version = 1
		c.Version = &meta.VersionChange{Ino: a.Ino, N: 1, New: true}
	}
	c.Inodes = []meta.InodeChange{{After: a}}
	c.Dirs = []meta.DirDelta{d}
	c.Names = []meta.NameChange{{Parent: parent, Name: name, After: a.Ino, AfterType: a.Mode & meta.ModeType}}
	return c
}

// mkdir is make with a name of its own.
func (w *world) mkdir() *meta.Change {
	return w.make(w.dir, fmt.Sprintf("dir-%d-number-%d", w.session, w.seq+1), true)
}

// send commits changes as one batch.
func (w *world) send(c ...*meta.Change) ([]meta.Outcome, error) {
	return w.Commit(ctx, &meta.Batch{Session: w.session, Epoch: w.epoch, Changes: c})
}

// commit sends changes of which none may be refused.
func (w *world) commit(c ...*meta.Change) []meta.Outcome {
	w.tb.Helper()
	out, err := w.send(c...)
	if err != nil {
		w.tb.Fatal(err)
	}
	for _, o := range out {
		if o.Err != nil {
			w.tb.Fatal(o.Err)
		}
	}
	return out
}

// clean fails when fsck finds something.
func (w *world) clean() {
	w.tb.Helper()
	if err := w.Verify(ctx, func(f meta.Finding) { w.tb.Errorf("fsck: %s: inode %d revision %d: %s", f.Check, f.Ino, f.Rev, f.Text) }); err != nil {
		w.tb.Error(err)
	}
}

// timer collects durations of one kind.
type timer []time.Duration

func (t *timer) run(fn func()) {
	start := time.Now()
	fn()
	*t = append(*t, time.Since(start))
}

func (t timer) p50() time.Duration {
	s := slices.Sorted(slices.Values(t))
	return s[len(s)/2]
}

// floor is a database with the rows of a commit and one statement that writes
// them all, values in arrays: what any one-statement transaction pays.
type floor struct {
	c  *pgx.Conn
	tb testing.TB
	n  int64
}

const floorSchema = `CREATE SCHEMA floor; SET search_path = floor;
	CREATE TABLE inodes (LIKE nexusfs.inodes INCLUDING ALL); CREATE TABLE dentries (LIKE nexusfs.dentries INCLUDING ALL);
	CREATE TABLE operation_records (LIKE nexusfs.operation_records INCLUDING ALL); CREATE TABLE counters (LIKE nexusfs.counters INCLUDING ALL);
	INSERT INTO inodes SELECT * FROM nexusfs.inodes WHERE ino = 1; INSERT INTO counters SELECT * FROM nexusfs.counters`

const floorSQL = `WITH i AS (INSERT INTO inodes SELECT ino,16877,0,0,2,0,0,0,0,0,t,t,t,t,1,cookie,0,rev,rev,0,NULL
		FROM unnest($1::bigint[],$2::bigint[],$3::bigint[],$4::bytea[],$5::bigint[],$6::bytea[]) x(ino,cookie,rev,name,t,digest)),
	d AS (INSERT INTO dentries SELECT 1,cookie,name,ino,4,rev FROM unnest($1::bigint[],$2::bigint[],$3::bigint[],$4::bytea[]) x(ino,cookie,rev,name)),
	p AS (UPDATE inodes SET entries=entries+cardinality($1),nlink=nlink+cardinality($1),mtime=$7,ctime=$7,rev=$8 WHERE ino=1),
	r AS (INSERT INTO operation_records SELECT rev,3,ino,1,name,0,NULL,t,1,0,0,1,rev,'{"pmtime":1700000000000000000,"pctime":1700000000000000000}',
		'{"mode":33188,"uid":0,"gid":0}',digest,NULL,NULL
		FROM unnest($1::bigint[],$3::bigint[],$4::bytea[],$5::bigint[],$6::bytea[]) x(ino,rev,name,t,digest)),
	c AS (UPDATE counters SET inodes=inodes+cardinality($1) WHERE kind=1)
	UPDATE counters SET rev=$8,inodes=inodes+cardinality($1),head=$9 WHERE kind=0`

func newFloor(b testing.TB, s *pgtest.Server, name string, strict bool) *floor {
	s.MustSQL(b, name, floorSchema)
	c, err := pgx.Connect(ctx, s.SocketURL(name))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { c.Close(ctx) })
	level := "off"
	if strict {
		level = "on"
	}
	if _, err := c.Exec(ctx, "SET synchronous_commit="+level+"; SET search_path=floor; SET plan_cache_mode=force_generic_plan"); err != nil {
		b.Fatal(err)
	}
	return &floor{c: c, tb: b, n: 1}
}

func (f *floor) write(n int) {
	ids, times, names, digests := make([]int64, n), make([]int64, n), make([][]byte, n), make([][]byte, n)
	for i := range n {
		f.n++
		ids[i], times[i], names[i], digests[i] = f.n, time.Now().UnixNano(), fmt.Appendf(nil, "dir-number-%d", f.n), make([]byte, 32)
	}
	if _, err := f.c.Exec(ctx, floorSQL, ids, ids, ids, names, times, digests, times[0], f.n, digests[0]); err != nil {
		f.tb.Fatal(err)
	}
}

// BenchmarkCommit commits batches of mkdir and, in turns with each, writes the
// same rows by one plain statement (S). Run it with a server that syncs.
func BenchmarkCommit(b *testing.B) {
	s := pgtest.Start(b, pgtest.Options{Fsync: true})
	for _, strict := range []bool{true, false} {
		for _, n := range []int{1, 8, 64} {
			b.Run(fmt.Sprintf("strict=%v/batch=%d", strict, n), func(b *testing.B) {
				name := s.Database(b)
				w := newWorld(b, Options{URL: s.SocketURL(name), Strict: strict}, 0)
				f := newFloor(b, s, name, strict)
				var ours, plain timer
				batch := make([]*meta.Change, n)
				before := w.RoundTrips()
				for b.Loop() {
					for i := range batch {
						batch[i] = w.mkdir()
					}
					ours.run(func() { w.commit(batch...) })
					plain.run(func() { f.write(n) })
				}
				b.ReportMetric(float64(ours.p50().Nanoseconds())/1e3, "p50-us")
				b.ReportMetric(float64(plain.p50().Nanoseconds())/1e3, "S-us")
				b.ReportMetric(float64(ours.p50())/float64(plain.p50()), "ratio")
				b.ReportMetric(float64(w.RoundTrips()-before)/float64(len(ours)), "trips/commit")
				b.ReportMetric(0, "ns/op")
			})
		}
	}
}

// BenchmarkLookup looks names up and, in turns, selects one row by its key (Q).
func BenchmarkLookup(b *testing.B) {
	s := server(b)
	name := s.Database(b)
	w := newWorld(b, Options{URL: s.SocketURL(name)}, 0)
	var names []string
	for range 100 {
		batch := make([]*meta.Change, 100)
		for i := range batch {
			batch[i] = w.mkdir()
			names = append(names, batch[i].Record.Name)
		}
		w.commit(batch...)
	}
	c, err := pgx.Connect(ctx, s.SocketURL(name))
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close(ctx)
	if _, err := c.Exec(ctx, "SET search_path=nexusfs; SET plan_cache_mode=force_generic_plan"); err != nil {
		b.Fatal(err)
	}
	var ours, plain timer
	i := 0
	for b.Loop() {
		i++
		ours.run(func() {
			if _, err := w.Lookup(ctx, w.dir, names[i*7919%len(names)]); err != nil {
				b.Fatal(err)
			}
		})
		plain.run(func() {
			var r attrRow
			if err := c.QueryRow(ctx, `SELECT `+attrCols+` FROM inodes i WHERE i.ino=$1`, 2+i*7919%len(names)).Scan(r.dest()...); err != nil {
				b.Fatal(err)
			}
		})
	}
	b.ReportMetric(float64(ours.p50().Nanoseconds())/1e3, "p50-us")
	b.ReportMetric(float64(plain.p50().Nanoseconds())/1e3, "Q-us")
	b.ReportMetric(float64(ours.p50())/float64(plain.p50()), "ratio")
	b.ReportMetric(0, "ns/op")
}
