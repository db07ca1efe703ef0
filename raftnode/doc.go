// Package raftnode is a node of the group that shares zones: it announces
// committed operations to every other node in revision order, confirms by read
// index that a node has seen what others acknowledged, keeps sessions and locks,
// and knows the members. SQL stays the truth: what raftnode holds can be lost,
// and is made again from SQL (DESIGN.md).
//
// It promises: Zone.Announce returns when a quorum has the announcement and
// every lower revision of the zone was announced and applied here (P9);
// Zone.Fresh, that everything acknowledged anywhere before the call is applied
// here and taken by the consumer; a lock has one holder, and a dead node's locks
// are given on only after SQL refuses its session (P20). It does not promise
// progress without a quorum: then calls end within Options.Late, with an error
// that says whether it may have happened. A node that is the only member pays
// for no disk flush and no hand-over between goroutines.
//
// Subpackages: kv (the store), state (the pure state machine), certs,
// transport. Its caller is cmd/nexusfs, which gives it SQL (Truth) and the
// caches of meta (Consumer).
package raftnode
