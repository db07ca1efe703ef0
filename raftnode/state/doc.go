// Package state is what a group of nodes agrees on: how far each zone's
// revisions are announced, sessions, locks, members. It is pure: State.Apply
// makes the next state from a state and an entry, and nothing else decides; no
// clock, no I/O, no order of a map. Time travels in the entries, and what ends
// by time (a lease, a time to live) is ended by an entry of the leader, which
// says what it saw, so that a renewal on its way wins.
//
// It promises: the same entries give the same state and the same effects on
// every node, also when some of them began from a snapshot; an entry that was
// proposed twice takes effect once. It does not know Raft, disks or sockets.
// Its caller is raftnode, one goroutine at a time.
package state
