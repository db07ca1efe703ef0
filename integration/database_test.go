package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"nexusfs/integration/harness"
	"nexusfs/internal/pgtest"
)

// ownServer starts a PostgreSQL that a test may stop and kill, and prepares a
// mount of a zone in it.
func ownServer(t *testing.T, o pgtest.Options, user, password string, args ...string) (*pgtest.Server, *harness.Mount) {
	t.Helper()
	o.Fsync = true
	s := pgtest.Start(t, o)
	content := filepath.Join(harness.Scratch(t), "content")
	m := harness.Prepare(t, harness.Options{
		Store: s.URL(user, password, s.Database(t)),
		Args:  append([]string{"-o", "content=" + content}, args...),
	})
	return s, m
}

// TestServerEndsUnderLoad: the server is stopped in order, or killed, while
// files are made, and comes back. What was acknowledged is there, what was not is
// there whole or not at all, and the mount goes on by itself.
func TestServerEndsUnderLoad(t *testing.T) {
	for name, end := range map[string]func(*pgtest.Server) error{"stopped": (*pgtest.Server).Stop, "killed": (*pgtest.Server).Kill} {
		t.Run(name, func(t *testing.T) {
			s, m := ownServer(t, pgtest.Options{}, pgtest.Superuser, "")
			must(t, m.Start())
			var mu sync.Mutex
			acknowledged := map[string]string{}
			var stop atomic.Bool
			var failed atomic.Int64
			var wg sync.WaitGroup
			for w := range 4 {
				wg.Go(func() {
					for i := 0; !stop.Load(); i++ {
						name, text := fmt.Sprintf("w%d-%d", w, i), strings.Repeat(fmt.Sprint(i), 1+i%7)
						if err := os.WriteFile(filepath.Join(m.Dir, name), []byte(text), 0o644); err != nil {
							failed.Add(1)
							time.Sleep(10 * time.Millisecond) // a program that is told EIO does not storm
							continue
						}
						mu.Lock()
						acknowledged[name] = text
						mu.Unlock()
					}
				})
			}
			made := func() int { mu.Lock(); defer mu.Unlock(); return len(acknowledged) }
			for range 3 {
				n := made()
				harness.Eventually(t, 60*time.Second, "files are made", func() bool { return made() > n+50 })
				must(t, end(s))
				must(t, s.Start())
			}
			n := made()
			harness.Eventually(t, 60*time.Second, "files are made after the server came back", func() bool { return made() > n+50 })
			stop.Store(true)
			wg.Wait()
			t.Logf("%d files acknowledged, %d writes failed", len(acknowledged), failed.Load())
			for name, text := range acknowledged {
				wantContent(t, filepath.Join(m.Dir, name), []byte(text))
			}
			must(t, m.Stop())
			must(t, m.Start())
			for name, text := range acknowledged {
				wantContent(t, filepath.Join(m.Dir, name), []byte(text))
			}
		})
	}
}

// TestDatabaseRefusals: each wrong address or login is a sentence that says
// what to do, within a bound, and never shows the password.
func TestDatabaseRefusals(t *testing.T) {
	s, m := ownServer(t, pgtest.Options{Auth: "scram-sha-256"}, "fs", "s3cret-right")
	s.MustSQL(t, pgtest.Superuser, "CREATE USER fs PASSWORD 's3cret-right'")
	db := m.Store[strings.LastIndex(m.Store, "/")+1:]
	db = db[:strings.Index(db, "?")]
	for name, tc := range map[string]struct{ store, says string }{
		"wrong password":   {s.URL("fs", "s3cret-wrong", db), "login"},
		"no such database": {s.URL("fs", "s3cret-right", "nowhere"), "nowhere"},
		"no such server":   {"postgres://fs:s3cret-right@127.0.0.1:1/x?sslmode=disable", "127.0.0.1"},
		"no rights":        {s.URL("fs", "s3cret-right", db), "right"},
		"bad zone":         {s.URL("fs", "s3cret-right", db) + "&zone=a/b", "zone"},
	} {
		t.Run(name, func(t *testing.T) {
			began := time.Now()
			r := m.TryCLI("mount", "--background", "-o", "content=/nonexistent", tc.store, m.Dir)
			if r.Code == 0 || !strings.Contains(r.Stderr, tc.says) || strings.Contains(r.Stderr+r.Stdout, "s3cret") {
				t.Errorf("code %d, %q; want a sentence with %q", r.Code, r.Stderr, tc.says)
			}
			if d := time.Since(began); d > 30*time.Second {
				t.Errorf("it took %v", d)
			}
		})
	}
	s.MustSQL(t, db, "GRANT CREATE ON DATABASE "+db+" TO fs")
	must(t, m.Start())
	write(t, filepath.Join(m.Dir, "f"), []byte("x"))
	for what, text := range map[string]string{
		"the mount table": fmt.Sprint(harness.MountAt(m.Dir)),
		"ps":              harness.Run(t, "/", "ps", "-ef", "-ww"),
		"the log":         m.Log(),
		"status":          m.CLI("status", m.Dir),
		"status --json":   m.CLI("status", "--json", m.Dir),
	} {
		if strings.Contains(text, "s3cret") {
			t.Errorf("%s shows the password", what)
		}
	}
	s.MustSQL(t, pgtest.Superuser, "ALTER USER fs PASSWORD 's3cret-new'")
	s.MustSQL(t, pgtest.Superuser, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'fs'")
	if err := os.WriteFile(filepath.Join(m.Dir, "g"), []byte("x"), 0o644); err == nil {
		t.Error("a password that is not valid any more is")
	}
	s.MustSQL(t, pgtest.Superuser, "ALTER USER fs PASSWORD 's3cret-right'")
	harness.Eventually(t, 30*time.Second, "the mount works again", func() bool {
		return os.WriteFile(filepath.Join(m.Dir, "h"), []byte("x"), 0o644) == nil
	})
}

// TestNewerDatabaseSchema: a schema of a newer nexusfs is refused and left alone.
func TestNewerDatabaseSchema(t *testing.T) {
	s, m := ownServer(t, pgtest.Options{}, pgtest.Superuser, "")
	must(t, m.Start())
	must(t, m.Stop())
	db := m.Store[strings.LastIndex(m.Store, "/")+1:]
	db = db[:strings.Index(db, "?")]
	s.MustSQL(t, db, "INSERT INTO nexusfs.schema_version(version, name) VALUES (9999, 'the future')")
	r := m.TryCLI("mount", "--background", m.Store, m.Dir)
	if r.Code != 3 || !strings.Contains(r.Stderr, "newer") {
		t.Errorf("code %d, %q", r.Code, r.Stderr)
	}
	s.MustSQL(t, db, "DELETE FROM nexusfs.schema_version WHERE version = 9999")
	must(t, m.Start())
}
