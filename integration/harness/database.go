package harness

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"nexusfs/internal/pgtest"
)

// OnDatabase reports that stores are zones of a private PostgreSQL, with content
// in a directory, instead of directories: NEXUSFS_TEST_DATABASE=1.
func OnDatabase() bool { return os.Getenv("NEXUSFS_TEST_DATABASE") != "" }

// EmbeddedOnly leaves a test out on a database; reason says what it is about
// that a database does not have.
func EmbeddedOnly(t testing.TB, reason string) {
	t.Helper()
	if OnDatabase() {
		t.Skip("not on a database: " + reason)
	}
}

// server is the PostgreSQL of this test process, started when it is first used.
var server, endServer = pgtest.Shared(pgtest.Options{Fsync: true, Settings: []string{"max_connections=300"}})

// Server returns the private PostgreSQL behind the stores of OnDatabase.
func Server(t testing.TB) *pgtest.Server { return server(t) }

// zone makes an empty database and says how to mount a zone in it.
func (m *Mount) zone(t testing.TB, base string) {
	s := server(t)
	m.Store = s.URL(pgtest.Superuser, "", s.Database(t)) + "&zone=default"
	m.Content = filepath.Join(base, "content")
	if !slices.ContainsFunc(m.opts.Args, func(a string) bool { return strings.HasPrefix(a, "content=") }) {
		m.args = append(m.args, "-o", "content="+m.Content)
	}
}

// Beside mounts the zone of m, which lies in a database, a second time by a
// daemon of its own.
func (m *Mount) Beside(t testing.TB) *Mount {
	t.Helper()
	o := m.opts
	o.Store, o.Dir = m.Store, ""
	b := Prepare(t, o)
	b.Content, b.args = m.Content, nil // the zone knows where its content lies
	b.env = append(slices.Clone(m.env), b.env...)
	if err := b.Start(); err != nil {
		t.Fatal(err)
	}
	return b
}
