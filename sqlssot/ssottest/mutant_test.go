package ssottest_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"

	"nexusfs/internal/pgtest"
	"nexusfs/meta"
	"nexusfs/sqlssot/postgres"
	"nexusfs/sqlssot/sqlite"
	"nexusfs/sqlssot/ssottest"
	zsqlite "zombiezen.com/go/sqlite"
	"zombiezen.com/go/sqlite/sqlitex"
)

// engines are what the mutants are made of: each dialect unbroken passes the
// whole suite in its own package (TestConformance).
var engines = map[string]func(t *testing.T) ssottest.Factory{"sqlite": onSQLite, "postgres": onPostgres}

// TestSuiteCatchesMutants: the suite fails on stores that are broken on purpose.
func TestSuiteCatchesMutants(t *testing.T) {
	for name, value := range map[string]string{"rapid.shrinktime": "0s", "rapid.nofailfile": "true", "rapid.checks": "15"} {
		if err := flag.Set(name, value); err != nil {
			t.Fatal(err)
		}
	}
	for engine, start := range engines {
		t.Run(engine, func(t *testing.T) {
			factory := start(t)
			for name, wrap := range sample(engine) {
				t.Run(name, func(t *testing.T) {
					for _, c := range ssottest.Cases() {
						if r := runCase(t, c, factory, wrap); r.failed {
							t.Logf("caught by %s: %.200s", c.Name, r.first)
							return
						}
					}
					t.Error("no case of the suite noticed")
				})
			}
		})
	}
}

// sample returns the mutants to try on an engine: all on SQLite, which is quick;
// on PostgreSQL every eighth, or all with NEXUSFS_LONG. A mutant lies over the
// store, so what catches it is the suite, hardly the engine.
func sample(engine string) map[string]func(ssottest.Store) ssottest.Store {
	if engine == "sqlite" || os.Getenv("NEXUSFS_LONG") != "" {
		return mutants
	}
	some := map[string]func(ssottest.Store) ssottest.Store{}
	for i, name := range slices.Sorted(maps.Keys(mutants)) {
		if i%8 == 0 {
			some[name] = mutants[name]
		}
	}
	return some
}

// recorder is a testing.TB that notes failures instead of reporting them.
type recorder struct {
	testing.TB
	failed   bool
	first    string
	cleanups []func()
}

func (r *recorder) Helper()             {}
func (r *recorder) Failed() bool        { return r.failed }
func (r *recorder) Cleanup(fn func())   { r.cleanups = append(r.cleanups, fn) }
func (r *recorder) Log(...any)          {}
func (r *recorder) Logf(string, ...any) {}
func (r *recorder) Name() string        { return "mutant" }

func (r *recorder) fail(text string) {
	if !r.failed {
		r.first = text
	}
	r.failed = true
}

func (r *recorder) Error(a ...any)            { r.fail(fmt.Sprint(a...)) }
func (r *recorder) Errorf(f string, a ...any) { r.fail(fmt.Sprintf(f, a...)) }
func (r *recorder) Fail()                     { r.fail("fail") }
func (r *recorder) FailNow()                  { r.fail("fail"); runtime.Goexit() }
func (r *recorder) Fatal(a ...any)            { r.fail(fmt.Sprint(a...)); runtime.Goexit() }
func (r *recorder) Fatalf(f string, a ...any) { r.fail(fmt.Sprintf(f, a...)); runtime.Goexit() }

func runCase(t *testing.T, c ssottest.Case, f ssottest.Factory, wrap func(ssottest.Store) ssottest.Store) *recorder {
	r := &recorder{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() {
			if p := recover(); p != nil {
				r.fail(fmt.Sprint(p))
			}
		}()
		c.Run(r, func(testing.TB) ssottest.Database { return wrapped{f(r), wrap} })
	}()
	<-done
	for i := len(r.cleanups) - 1; i >= 0; i-- {
		r.cleanups[i]()
	}
	return r
}

// wrapped is a database whose stores are broken.
type wrapped struct {
	ssottest.Database
	wrap func(ssottest.Store) ssottest.Store
}

func (d wrapped) Zone(tb testing.TB, name string) ssottest.Store {
	return d.wrap(d.Database.Zone(tb, name))
}

type sqliteDB struct{ path string }

func onSQLite(t *testing.T) ssottest.Factory {
	dir, n := t.TempDir(), 0
	return func(testing.TB) ssottest.Database {
		n++
		return &sqliteDB{filepath.Join(dir, fmt.Sprint(n, ".db"))}
	}
}

func (d *sqliteDB) Zone(tb testing.TB, name string) ssottest.Store {
	o := sqlite.Options{Path: d.path, Zone: name, Mode: 0o755}
	s, err := sqlite.Open(context.Background(), o)
	if err != nil {
		s, err = sqlite.Create(context.Background(), o)
	}
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { s.Close() })
	return s
}

func (d *sqliteDB) Exec(tb testing.TB, sql string) {
	// The stores' VFS lets other connections of this process in.
	c, err := zsqlite.OpenConn("file:"+d.path+"?vfs=nexusfs", zsqlite.OpenReadWrite|zsqlite.OpenURI)
	if err == nil {
		err = errors.Join(sqlitex.ExecuteScript(c, sql, nil), c.Close())
	}
	if err != nil {
		tb.Fatal(err)
	}
}

type postgresDB struct {
	s    *pgtest.Server
	name string
}

func onPostgres(t *testing.T) ssottest.Factory {
	s := pgtest.Start(t, pgtest.Options{})
	return func(tb testing.TB) ssottest.Database { return &postgresDB{s, s.Database(tb)} }
}

func (d *postgresDB) Zone(tb testing.TB, name string) ssottest.Store {
	o := postgres.Options{URL: d.s.SocketURL(d.name), Zone: name, Mode: 0o755}
	s, err := postgres.Open(context.Background(), o)
	if err != nil {
		s, err = postgres.Create(context.Background(), o)
	}
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { s.Close() })
	return s
}

func (d *postgresDB) Exec(tb testing.TB, sql string) {
	d.s.MustSQL(tb, d.name, "SET search_path=nexusfs; "+ssottest.PostgresSQL(sql))
}

// change wraps a store whose Commit first alters what it is given.
type change struct {
	ssottest.Store
	alter func(b *meta.Batch)
}

func (m change) Commit(ctx context.Context, b *meta.Batch) ([]meta.Outcome, error) {
	copied := *b
	copied.Changes = make([]*meta.Change, len(b.Changes))
	for i, c := range b.Changes {
		x := *c
		x.Inodes = append([]meta.InodeChange(nil), c.Inodes...)
		x.Names = append([]meta.NameChange(nil), c.Names...)
		x.Dirs = append([]meta.DirDelta(nil), c.Dirs...)
		copied.Changes[i] = &x
	}
	m.alter(&copied)
	return m.Store.Commit(ctx, &copied)
}

func alter(fn func(c *meta.Change)) func(ssottest.Store) ssottest.Store {
	return func(s ssottest.Store) ssottest.Store {
		return change{s, func(b *meta.Batch) {
			for _, c := range b.Changes {
				fn(c)
			}
		}}
	}
}

var mutants = map[string]func(ssottest.Store) ssottest.Store{
	"version not written": alter(func(c *meta.Change) {
		if c.Version != nil && c.Version.N > 1 {
			c.Version = nil
		}
	}),
	"directory's counter forgotten": alter(func(c *meta.Change) {
		if c.Record.Kind == meta.OpUnlink {
			c.Dirs = nil
		}
	}),
	"moves below oneself accepted": alter(func(c *meta.Change) { c.Topology = false }),
	"stale inode accepted": func(s ssottest.Store) ssottest.Store {
		return change{s, func(b *meta.Batch) {
			for _, c := range b.Changes {
				for i := range c.Inodes {
					if x := &c.Inodes[i]; x.Before != nil && !x.After.IsDir() {
						if now, err := s.Inode(context.Background(), x.After.Ino); err == nil {
							before := *x.Before
							before.Rev = now.Rev
							x.Before = &before
						}
					}
				}
			}
		}}
	},
	"name ended whatever it refers to": func(s ssottest.Store) ssottest.Store {
		return change{s, func(b *meta.Batch) {
			for _, c := range b.Changes {
				for i := range c.Names {
					if n := &c.Names[i]; n.Before != 0 {
						if a, err := s.Lookup(context.Background(), n.Parent, n.Name); err == nil {
							n.Before = a.Ino
						}
					}
				}
			}
		}}
	},
	"names as text":                            alter(func(c *meta.Change) { lower(c) }),
	"one failure fails all":                    func(s ssottest.Store) ssottest.Store { return oneFailsAll{s} },
	"fenced session accepted":                  func(s ssottest.Store) ssottest.Store { return &anySession{Store: s} },
	"past reads the present":                   func(s ssottest.Store) ssottest.Store { return pastIsPresent{s} },
	"inode numbers repeat":                     func(s ssottest.Store) ssottest.Store { return &repeatsInos{Store: s} },
	"rewind keeps one":                         func(s ssottest.Store) ssottest.Store { return rewindKeepsOne{s} },
	"prune takes too much":                     func(s ssottest.Store) ssottest.Store { return prunesTooMuch{s} },
	"prune takes nothing":                      func(s ssottest.Store) ssottest.Store { return prunesNothing{s} },
	"recent pruning takes nothing":             func(s ssottest.Store) ssottest.Store { return forgetsRecent{s} },
	"listing loses collisions at a page's end": func(s ssottest.Store) ssottest.Store { return shortLists{s} },
	"verify is blind":                          func(s ssottest.Store) ssottest.Store { return blind{s} },
	"condemned stays usable":                   func(s ssottest.Store) ssottest.Store { return neverCondemns{s} },
}

// lower folds ASCII letters of names, as a collation would.
func lower(c *meta.Change) {
	for i := range c.Names {
		b := []byte(c.Names[i].Name)
		for j := range b {
			if b[j] >= 'A' && b[j] <= 'Z' {
				b[j] += 'a' - 'A'
			}
		}
		c.Names[i].Name = string(b)
	}
}

type oneFailsAll struct{ ssottest.Store }

func (m oneFailsAll) Commit(ctx context.Context, b *meta.Batch) ([]meta.Outcome, error) {
	out, err := m.Store.Commit(ctx, b)
	for _, o := range out {
		if o.Err != nil {
			return nil, o.Err
		}
	}
	return out, err
}

type anySession struct {
	ssottest.Store
	session, epoch int64
}

func (m *anySession) Begin(ctx context.Context, i meta.SessionInfo) (int64, int64, *meta.PrevSession, error) {
	session, epoch, prev, err := m.Store.Begin(ctx, i)
	m.session, m.epoch = session, epoch
	return session, epoch, prev, err
}

func (m *anySession) Commit(ctx context.Context, b *meta.Batch) ([]meta.Outcome, error) {
	x := *b
	x.Session, x.Epoch = m.session, m.epoch
	return m.Store.Commit(ctx, &x)
}

type pastIsPresent struct{ ssottest.Store }

func (m pastIsPresent) ExtentsAt(ctx context.Context, ino meta.Ino, _ meta.Rev, off, end int64, limit int, inline bool) ([]meta.Extent, error) {
	return m.Extents(ctx, ino, off, end, limit, inline)
}

type repeatsInos struct {
	ssottest.Store
	last meta.Ino
}

func (m *repeatsInos) Inos(ctx context.Context, n int) (meta.Ino, error) {
	first, err := m.Store.Inos(ctx, n)
	if m.last != 0 && n > 1 {
		first = m.last // the last number of the range before
	}
	m.last = first + meta.Ino(n) - 1
	return first, err
}

type rewindKeepsOne struct{ ssottest.Store }

func (m rewindKeepsOne) Rewind(ctx context.Context, first meta.Rev, now int64) (meta.Rev, error) {
	if head, err := m.Head(ctx); err == nil && first < head.Rev {
		first++
	}
	return m.Store.Rewind(ctx, first, now)
}

type prunesTooMuch struct{ ssottest.Store }

func (m prunesTooMuch) Prune(ctx context.Context, p meta.Retention, limit int) (int, bool, error) {
	p.Versions, p.Barrier = 1, 1<<40
	return m.Store.Prune(ctx, p, limit)
}

func (m prunesTooMuch) PruneRecent(ctx context.Context, p meta.Retention, limit int) (int, bool, error) {
	p.Versions, p.Barrier = 1, 1<<40
	return m.Store.PruneRecent(ctx, p, limit)
}

type prunesNothing struct{ ssottest.Store }

func (m prunesNothing) Prune(context.Context, meta.Retention, int) (int, bool, error) {
	return 0, true, nil
}

type forgetsRecent struct{ ssottest.Store }

func (m forgetsRecent) PruneRecent(context.Context, meta.Retention, int) (int, bool, error) {
	return 0, true, nil
}

type shortLists struct{ ssottest.Store }

func (m shortLists) List(ctx context.Context, dir meta.Ino, after uint64, limit int, attrs bool, buf []meta.Entry) ([]meta.Entry, error) {
	out, err := m.Store.List(ctx, dir, after, limit, attrs, buf)
	if err == nil && len(out) > limit {
		out = out[:limit]
	}
	return out, err
}

type blind struct{ ssottest.Store }

func (m blind) Verify(context.Context, func(meta.Finding)) error { return nil }

type neverCondemns struct{ ssottest.Store }

func (m neverCondemns) Condemn(context.Context, int64, int) (int, error) { return 0, nil }
