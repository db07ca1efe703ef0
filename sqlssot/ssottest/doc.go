// Package ssottest is the conformance suite of the SQL stores: what every
// dialect behind meta.Store, meta.Sessions, meta.History and meta.Upkeep must
// do, checked against a model in memory. Its own tests run it on stores that
// are broken on purpose, which it must notice.
//
// Only tests import it.
package ssottest

import (
	"strings"
	"testing"

	"nexusfs/meta"
)

// Store is what a dialect offers.
type Store interface {
	meta.Store
	meta.Sessions
	meta.History
	meta.Upkeep
}

// Database is one empty database. Zone opens a zone of it, which it makes when
// it is not there yet; the stores are closed when the test ends,
// if they are not closed before.
type Database interface {
	Zone(tb testing.TB, name string) Store
	// Exec changes the database behind the stores' back, to damage it. The
	// statement is written for SQLite; PostgresSQL turns it into PostgreSQL's.
	Exec(tb testing.TB, sql string)
}

// Factory makes an empty database for one case.
type Factory func(tb testing.TB) Database

// Case is one property.
type Case struct {
	Name string
	Run  func(tb testing.TB, f Factory)
}

// Cases returns the whole suite.
func Cases() []Case {
	var out []Case
	for _, group := range [][]Case{nameCases, guardCases, batchCases, contentCases, historyCases, rewindCases,
		sessionCases, upkeepCases, chainCases, zoneCases, isolationCases, modelCases} {
		out = append(out, group...)
	}
	return out
}

// Run runs the suite.
func Run(t *testing.T, f Factory) {
	for _, c := range Cases() {
		t.Run(c.Name, func(t *testing.T) { c.Run(t, f) })
	}
}

// PostgresSQL writes the bytes in a statement for Database.Exec as PostgreSQL does.
func PostgresSQL(sql string) string {
	sql = strings.ReplaceAll(sql, "zeroblob(32)", "decode(repeat('00',32),'hex')")
	return strings.ReplaceAll(sql, "x'00'", `'\x00'`)
}
