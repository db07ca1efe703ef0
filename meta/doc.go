// Package meta is the filesystem itself: its types, the POSIX rules, the one
// commit path and the caches over the truth in SQL.
//
// It promises: every mutation is one operation that goes through FS.commit and
// exists if and only if its SQL transaction committed (I1); what a method
// returned without error is visible to every later call; errors are *Error
// with a Kind from a closed list. It does not know FUSE, SQL, files on disk or
// the network: the rooms around it (fusefs, sqlssot, content, raftnode, hooks,
// reconcile) import meta, implement the interfaces that meta declares beside
// their use (Store, Content, Announcer, Hook), and are wired together by
// cmd/nexusfs alone. meta imports the standard library only.
//
// The callers are fusefs (one method per kernel request) and cmd/nexusfs
// (history, status and maintenance commands through the control socket).
package meta
