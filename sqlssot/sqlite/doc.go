// Package sqlite is the SQL store on SQLite: one zone of one database file.
//
// It implements meta.Store, meta.Sessions, meta.History and meta.Upkeep. It
// promises: a batch is one transaction (I1); revisions are consecutive and in
// commit order (I3); an error from Commit means that nothing was written (I8);
// every accepted change has its record, chained (I9); a process that dies
// loses nothing that Commit returned; what Sync has covered survives a power
// loss too. It does not decide POSIX rules, it does not cache, and it starts
// no goroutine but the one that carries on an fdatasync others wait for.
//
// One connection writes, under a mutex; a few others read, each read sees the
// last committed state. The process that has a store open for writing locks it
// against every other process. docs/adr/0002-sqlite-driver.md has the reasons
// and the figures, docs/SQL.md the views that users may query.
//
// cmd/nexusfs opens it and hands it to meta.
package sqlite
