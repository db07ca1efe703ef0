package sqlite

import (
	"context"
	"path/filepath"
	"testing"

	"nexusfs/meta"
	"nexusfs/sqlssot/ssottest"
	"zombiezen.com/go/sqlite/sqlitex"
)

// database is an empty database for the conformance suite.
type database struct {
	path  string
	first *Store
}

func newDatabase(tb testing.TB) ssottest.Database {
	return &database{path: filepath.Join(tb.TempDir(), "meta.db")}
}

func (d *database) Zone(tb testing.TB, name string) ssottest.Store {
	tb.Helper()
	ctx := context.Background()
	o := Options{Path: d.path, Zone: name, Mode: 0o755}
	s, err := Open(ctx, o)
	if meta.KindOf(err) == meta.KindNotExist && err != nil {
		s, err = Create(ctx, o)
	}
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := s.Close(); err != nil {
			tb.Error(err)
		}
	})
	d.first = s
	return s
}

func (d *database) Exec(tb testing.TB, sql string) {
	tb.Helper()
	d.first.writeMu.Lock()
	defer d.first.writeMu.Unlock()
	if err := sqlitex.ExecuteScript(d.first.w.Conn, sql, nil); err != nil {
		tb.Fatal(err)
	}
}

func TestConformance(t *testing.T) { ssottest.Run(t, newDatabase) }
