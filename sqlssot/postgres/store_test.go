package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"nexusfs/internal/pgtest"
	"nexusfs/meta"
)

// TestManyStartAtOnce: daemons that find an empty database migrate it once, and
// one of them makes the zone.
func TestManyStartAtOnce(t *testing.T) {
	s := server(t)
	name := s.Database(t)
	var wg sync.WaitGroup
	var mu sync.Mutex
	made := 0
	for range 6 {
		wg.Go(func() {
			st, err := Create(ctx, Options{URL: s.SocketURL(name), Mode: 0o755})
			if err != nil {
				if meta.KindOf(err) != meta.KindExist {
					t.Error(err)
				}
				return
			}
			mu.Lock()
			made++
			mu.Unlock()
			st.Close()
		})
	}
	wg.Wait()
	if made != 1 {
		t.Errorf("%d daemons made the zone", made)
	}
	if got := s.MustSQL(t, name, "SELECT count(*) FROM nexusfs.schema_version"); got != fmt.Sprint(lastVersion()) {
		t.Errorf("%s migrations are recorded, want %d", got, lastVersion())
	}
}

// TestMigrationPlan: a dry run says what would be run and changes nothing.
func TestMigrationPlan(t *testing.T) {
	s := server(t)
	name := s.Database(t)
	o := Options{URL: s.SocketURL(name)}
	plan, err := MigrationPlan(ctx, o)
	if err != nil || len(plan) == 0 || !strings.Contains(strings.Join(plan, "\n"), "CREATE TABLE inodes") {
		t.Fatalf("the plan has %d statements, %v", len(plan), err)
	}
	if got := s.MustSQL(t, name, "SELECT count(*) FROM pg_namespace WHERE nspname='nexusfs'"); got != "0" {
		t.Error("the dry run changed the database")
	}
	if err := Migrate(ctx, o); err != nil {
		t.Fatal(err)
	}
	if plan, err := MigrationPlan(ctx, o); err != nil || len(plan) != 0 {
		t.Fatalf("afterwards the plan has %d statements, %v", len(plan), err)
	}
	if err := Migrate(ctx, o); err != nil {
		t.Fatal(err)
	}
}

// TestOpenRefuses: what is not a store, or not one for this version, is refused
// with a sentence and stays as it is.
func TestOpenRefuses(t *testing.T) {
	s := server(t)
	for name, c := range map[string]struct {
		sql  string
		kind meta.Kind
		text string
	}{
		"empty database": {"SELECT 1", meta.KindNotExist, "no such zone"},
		"something else": {"CREATE SCHEMA nexusfs; CREATE TABLE nexusfs.inodes(a int)", meta.KindInvalid, "not made by nexusfs"},
		"newer schema": {"CREATE SCHEMA nexusfs; CREATE TABLE nexusfs.schema_version(version bigint, name text); INSERT INTO nexusfs.schema_version VALUES (99, 'x')",
			meta.KindInvalid, "use the newer nexusfs"},
	} {
		t.Run(name, func(t *testing.T) {
			db := s.Database(t)
			s.MustSQL(t, db, c.sql)
			_, err := Open(ctx, Options{URL: s.SocketURL(db)})
			wantKind(t, err, c.kind)
			if !strings.Contains(err.Error(), c.text) {
				t.Errorf("the message is %q", err)
			}
			if c.kind == meta.KindInvalid {
				before := s.MustSQL(t, db, "SELECT count(*) FROM pg_class")
				_, err = Create(ctx, Options{URL: s.SocketURL(db)})
				wantKind(t, err, c.kind)
				if after := s.MustSQL(t, db, "SELECT count(*) FROM pg_class"); after != before {
					t.Errorf("there were %s relations, now %s", before, after)
				}
			}
		})
	}
	for name, c := range map[string]struct {
		url  string
		kind meta.Kind
		text string
	}{
		"no database":  {s.SocketURL("nothere"), meta.KindNotExist, "createdb"},
		"no server":    {"postgres://u@127.0.0.1:1/x?sslmode=disable", meta.KindIO, "cannot be reached"},
		"not an URL":   {"postgres://u:se%cret@host/db", meta.KindInvalid, "postgres://"},
		"not a number": {"postgres://u:secret@host:port/db", meta.KindInvalid, "postgres://"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Open(ctx, Options{URL: c.url, Connect: time.Second})
			wantKind(t, err, c.kind)
			if !strings.Contains(err.Error(), c.text) || strings.Contains(err.Error(), "secret") || strings.Contains(err.Error(), "se%cret") {
				t.Errorf("the message is %q", err)
			}
		})
	}
}

// oldServer answers schemaVersion's question as PostgreSQL 14 would, or a
// database of another encoding.
type oldServer struct {
	version  int
	encoding string
}

func (s oldServer) QueryRow(context.Context, string, ...any) pgx.Row { return s }

func (s oldServer) Scan(dest ...any) error {
	*dest[0].(*int), *dest[1].(*string), *dest[2].(*bool), *dest[3].(*int) = s.version, s.encoding, false, 0
	return nil
}

func TestServerTooOld(t *testing.T) {
	for _, c := range []struct {
		s    oldServer
		text string
	}{
		{oldServer{140012, "UTF8"}, "version 15 or newer"},
		{oldServer{150002, "LATIN1"}, "encoding"},
	} {
		_, err := schemaVersion(ctx, c.s)
		wantKind(t, err, meta.KindInvalid)
		if !strings.Contains(err.Error(), c.text) {
			t.Errorf("the message is %q", err)
		}
	}
}

// TestPasswordIsNeverShown: not in errors, not in logs, not by printing.
func TestPasswordIsNeverShown(t *testing.T) {
	s := pgtest.Start(t, pgtest.Options{Auth: "scram-sha-256"})
	name := s.Database(t)
	const secret = "s3cr3t-w0rd"
	s.MustSQL(t, name, "CREATE USER fs PASSWORD '"+secret+"' SUPERUSER")
	wrong := Options{URL: s.URL("fs", secret+"x", name), Connect: time.Second}
	_, err := Open(ctx, wrong)
	wantKind(t, err, meta.KindAccess)
	s.MustSQL(t, name, "ALTER USER fs VALID UNTIL '2001-01-01'")
	right := Options{URL: s.URL("fs", secret, name), Connect: time.Second}
	_, expired := Open(ctx, right)
	wantKind(t, expired, meta.KindAccess)
	s.MustSQL(t, name, "ALTER USER fs VALID UNTIL 'infinity'")
	st := openOrCreate(t, right)
	stats, serr := st.Stats(ctx)
	if serr != nil {
		t.Fatal(serr)
	}
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("open", "options", right, "err", err)
	for _, text := range []string{err.Error(), expired.Error(), log.String(), right.String(), stats.Path,
		fmt.Sprintf("%v %+v %#v %s", right, right, right, wrong)} {
		if strings.Contains(text, secret) {
			t.Errorf("the password is in %q", text)
		}
		if text == "" {
			t.Error("nothing is shown")
		}
	}
}

// TestRoles: the daemon's role does what a daemon does and cannot change
// tables; the reader's role sees the views and nothing else.
func TestRoles(t *testing.T) {
	s := pgtest.Start(t, pgtest.Options{})
	for _, first := range []string{"roles", "schema"} {
		t.Run(first+" first", func(t *testing.T) {
			name := s.Database(t)
			if first == "roles" {
				s.MustSQL(t, name, RolesScript+`CREATE USER boss IN ROLE nexusfs_owner; CREATE USER fs IN ROLE nexusfs_daemon; CREATE USER eve IN ROLE nexusfs_reader;`)
				_, err := Create(ctx, Options{URL: s.URL("fs", "", name)})
				wantKind(t, err, meta.KindAccess) // it may not migrate
				if err := Migrate(ctx, Options{URL: s.URL("boss", "", name)}); err != nil {
					t.Fatal(err)
				}
			} else {
				if err := Migrate(ctx, Options{URL: s.SocketURL(name)}); err != nil {
					t.Fatal(err)
				}
				s.MustSQL(t, name, RolesScript)
			}
			s.MustSQL(t, name, RolesScript) // again is harmless
			w := newWorld(t, Options{URL: s.URL("fs", "", name), Mode: 0o755}, 0)
			made := w.mkdir()
			w.commit(made)
			if err := w.Sync(ctx); err != nil {
				t.Error(err)
			}
			if _, err := w.Rewind(ctx, 2, 1); err != nil {
				t.Error(err)
			}
			w.clean()
			denied(t, s.URL("fs", "", name), "ALTER TABLE nexusfs.inodes ADD x int", "DROP TABLE nexusfs.inodes", "CREATE TABLE nexusfs.t(a int)",
				"DROP FUNCTION nexusfs.as_text", "UPDATE nexusfs.schema_version SET version=99", "TRUNCATE nexusfs.inodes")
			for _, view := range []string{"files", "operations", "versions", "history", "deleted", "content", "batches", "usage", "sessions"} {
				allowed(t, s.URL("eve", "", name), "SELECT count(*) FROM nexusfs."+view)
			}
			denied(t, s.URL("eve", "", name), "SELECT * FROM nexusfs.inodes", "SELECT data FROM nexusfs.blobs", "DELETE FROM nexusfs.files",
				"INSERT INTO nexusfs.late_answers VALUES (1,'x',1)", "CREATE TABLE nexusfs.t(a int)", "SELECT nextval('nexusfs.actor_blocks')")
		})
	}
}

func try(t *testing.T, url, sql string) error {
	t.Helper()
	c, err := pgx.Connect(ctx, url)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(ctx)
	_, err = c.Exec(ctx, sql)
	return err
}

func allowed(t *testing.T, url, sql string) {
	t.Helper()
	if err := try(t, url, sql); err != nil {
		t.Errorf("%s: %v", sql, err)
	}
}

func denied(t *testing.T, url string, statements ...string) {
	t.Helper()
	for _, sql := range statements {
		if code := codeOf(try(t, url, sql)); code != codePrivilege && code != "55000" { // a view that cannot be written
			t.Errorf("%s: SQLSTATE %q, want %s", sql, code, codePrivilege)
		}
	}
}

// TestPoolExhausted: a pool that stays empty is reported after the stated time.
func TestPoolExhausted(t *testing.T) {
	s := server(t)
	w := newWorld(t, Options{URL: s.SocketURL(s.Database(t)), Conns: 1, Statement: 300 * time.Millisecond}, 0)
	c, err := w.acquire(ctx, w.pools.read)
	if err != nil {
		t.Fatal(err)
	}
	_, err = w.Inode(ctx, meta.RootIno)
	c.Release()
	wantKind(t, err, meta.KindBusy)
	if !errors.Is(err, errPoolBusy) {
		t.Errorf("the message is %q", err)
	}
	w.inode(meta.RootIno)
	w.commit(w.mkdir())
}

// TestStatementTimeout: a commit that waits for too long ends with KindIO,
// nothing was written, and the next one works.
func TestStatementTimeout(t *testing.T) {
	s := server(t)
	name := s.Database(t)
	w := newWorld(t, Options{URL: s.SocketURL(name), Statement: 300 * time.Millisecond}, 0)
	w.commit(w.mkdir())
	c, err := pgx.Connect(ctx, s.SocketURL(name))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(ctx)
	if _, err := c.Exec(ctx, "BEGIN; SELECT FROM nexusfs.counters WHERE kind=0 FOR UPDATE"); err != nil {
		t.Fatal(err)
	}
	_, err = w.send(w.mkdir())
	wantKind(t, err, meta.KindIO)
	if !strings.Contains(err.Error(), "in time") {
		t.Errorf("the message is %q", err)
	}
	if _, err := c.Exec(ctx, "ROLLBACK"); err != nil {
		t.Fatal(err)
	}
	w.once(w.commit(w.mkdir())...)
}

// TestReadOnly: a store that is opened to read writes nothing.
func TestReadOnly(t *testing.T) {
	s := server(t)
	name := s.Database(t)
	_, err := Open(ctx, Options{URL: s.SocketURL(name), ReadOnly: true})
	wantKind(t, err, meta.KindNotExist)
	w := newWorld(t, Options{URL: s.SocketURL(name)}, 0)
	w.commit(w.mkdir())
	r, err := Open(ctx, Options{URL: s.SocketURL(name), ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := r.Inode(ctx, meta.RootIno); err != nil {
		t.Error(err)
	}
	_, err = r.Commit(ctx, &meta.Batch{Session: w.session, Epoch: w.epoch, Changes: []*meta.Change{w.mkdir()}})
	wantKind(t, err, meta.KindReadOnly)
	_, err = r.Inos(ctx, 1)
	wantKind(t, err, meta.KindReadOnly)
	_, err = r.Condemn(ctx, 1, 1)
	wantKind(t, err, meta.KindReadOnly)
}

// TestRoundTrips: each call of the hot path is one.
func TestRoundTrips(t *testing.T) {
	w := newWorld(t, Options{URL: server(t).SocketURL(server(t).Database(t))}, 0)
	made := w.mkdir()
	warm := func() {
		w.commit(w.mkdir())
		w.inode(w.dir)
		if _, err := w.Lookup(ctx, w.dir, made.Record.Name); err != nil {
			t.Fatal(err)
		}
		if _, err := w.List(ctx, w.dir, 0, 100, true, nil); err != nil {
			t.Fatal(err)
		}
	}
	w.commit(made)
	warm() // statements are prepared once per connection
	before := w.RoundTrips()
	warm()
	if n := w.RoundTrips() - before; n != 4 {
		t.Errorf("four calls made %d round trips", n)
	}
}

func TestPlaceholders(t *testing.T) {
	for _, c := range []struct{ sql, want string }{
		{"select ?", "select $1::bigint"},
		{"select '?', ? -- ?\n, ?", "select '?', $1::bigint -- ?\n, $2::text"},
		{`select "?" /* ? */, ?`, `select "?" /* ? */, $1::bigint`},
		{"select 'it''s ?', ?", "select 'it''s ?', $1::bigint"},
		{"select '", "select '"},
	} {
		if got := placeholders(c.sql, []string{"bigint", "text"}); got != c.want {
			t.Errorf("%q becomes %q, want %q", c.sql, got, c.want)
		}
	}
	if got := placeholders("select a ? b", nil); got != "select a ? b" {
		t.Errorf("without arguments: %q", got)
	}
}

// TestQueryShowsItsZone: views show the zone that was opened, and to other
// clients all of them, or the one that they set.
func TestQueryShowsItsZone(t *testing.T) {
	s := server(t)
	name := s.Database(t)
	a := newWorld(t, Options{URL: s.SocketURL(name), Zone: "one"}, lease)
	newWorld(t, Options{URL: s.SocketURL(name), Zone: "two"}, lease)
	for _, view := range []string{"files", "operations", "history", "usage", "sessions", "batches"} {
		err := a.Query(ctx, "SELECT DISTINCT zone FROM "+view, nil, func([]string) error { return nil }, func(row []any) error {
			if row[0] != "one" {
				t.Errorf("%s shows zone %v", view, row[0])
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if got := s.MustSQL(t, name, "SELECT count(DISTINCT zone) FROM nexusfs.files"); got != "2" {
		t.Errorf("another client sees %s zones, want 2", got)
	}
	if got := s.MustSQL(t, name, "SET nexusfs.zone = 'two'; SELECT DISTINCT zone FROM nexusfs.files"); got != "two" {
		t.Errorf("another client that chose a zone sees %q", got)
	}
}
