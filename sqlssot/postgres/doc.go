// Package postgres is the SQL store on PostgreSQL: one zone of one database,
// which several daemons may have open at the same time.
//
// It implements meta.Store, meta.Sessions, meta.History and meta.Upkeep, and
// what several daemons need of each other (Peers, LiveSessions). It
// promises: a batch is one statement and one transaction (I1, P2); revisions
// are consecutive and in commit order whoever commits (I3); an error from
// Commit means that nothing was written, also when the connection broke while
// COMMIT was under way (I8, P5), but for the stated bound; every accepted
// change has its record, chained (I9); a fenced session commits nothing (P20).
// With Options.Strict Commit returns when the server's log is on its disk;
// strict promises no more than the server's own replication does. It does not
// decide POSIX rules, it keeps no rows in memory, and it starts no goroutine
// but the pool's.
//
// The schema is that of package sqlite; the tables and views lie in a schema
// named nexusfs, so the database may hold other things too. DESIGN.md says how a
// commit works, docs/adr/0005-postgres-commit.md why so, docs/SQL.md has the
// views that users may query.
//
// cmd/nexusfs opens it and hands it to meta; nexusfs migrate fills a zone (Target)
// or moves its content (Mover), nexusfs doctor looks at a database (Examine).
package postgres
