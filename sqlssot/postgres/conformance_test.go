package postgres

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"testing"

	"nexusfs/internal/pgtest"
	"nexusfs/meta"
	"nexusfs/sqlssot/ssottest"
)

var ctx = context.Background()

// server is the one of this test binary, a database of it per test.
var server, endServer = pgtest.Shared(pgtest.Options{Settings: []string{"max_connections=300"}})

func TestMain(m *testing.M) {
	// Defaults for rapid; the command line goes before them.
	checks := "15"
	if raceDetector {
		checks = "5"
	}
	for name, value := range map[string]string{"rapid.checks": checks, "rapid.nofailfile": "true"} {
		if err := flag.Set(name, value); err != nil {
			panic(err)
		}
	}
	code := m.Run()
	if err := endServer(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// database is an empty database for the conformance suite.
type database struct {
	s    *pgtest.Server
	name string
}

func newDatabase(tb testing.TB) ssottest.Database {
	s := server(tb)
	return &database{s, s.Database(tb)}
}

func (d *database) options() Options {
	return Options{URL: d.s.SocketURL(d.name), Mode: 0o755, Strict: true, Conns: 4}
}

func (d *database) Zone(tb testing.TB, name string) ssottest.Store {
	tb.Helper()
	o := d.options()
	o.Zone = name
	return openOrCreate(tb, o)
}

func openOrCreate(tb testing.TB, o Options) *Store {
	tb.Helper()
	s, err := Open(ctx, o)
	if err != nil && meta.KindOf(err) == meta.KindNotExist {
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
	return s
}

// Exec changes the database behind the stores' back.
func (d *database) Exec(tb testing.TB, sql string) {
	tb.Helper()
	d.s.MustSQL(tb, d.name, "SET search_path=nexusfs; "+ssottest.PostgresSQL(sql))
}

func TestConformance(t *testing.T) { ssottest.Run(t, newDatabase) }

func wantKind(tb testing.TB, err error, k meta.Kind) {
	tb.Helper()
	var e *meta.Error
	if !errors.As(err, &e) || e.Kind != k {
		tb.Fatalf("got error %v, want kind %q", err, k)
	}
}
