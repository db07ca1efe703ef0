package raftnode

import (
	"context"

	"nexusfs/meta"
)

// Truth is what a data node needs of SQL, for any zone of its group. Calls may
// run concurrently; errors are *meta.Error. A witness has none.
type Truth interface {
	// Head returns a zone's newest revision, its epoch and chain head; Barrier is
	// what survives a loss of power of the database.
	Head(ctx context.Context, zone string) (meta.Head, error)
	// Committed reads the operations with first <= Rev <= last in order. Where
	// records are gone (pruned, or lost and taken back) it returns fewer.
	Committed(ctx context.Context, zone string, first, last meta.Rev) ([]meta.Committed, error)
	// Recover is called when the zone is behind what was announced (P15): it
	// raises the counter above announced, begins a new epoch and records what was
	// lost, in one transaction, and returns the new head. If the zone is not
	// behind any more it changes nothing.
	Recover(ctx context.Context, zone string, announced meta.Rev) (meta.Head, error)
	// Fence makes SQL refuse a session from now on and returns the zone's newest
	// revision as of then (P20). It may be repeated.
	Fence(ctx context.Context, zone string, session, epoch int64) (meta.Rev, error)
}

// Consumer is told of what was applied to a zone, in order, by one goroutine.
// It may block: what comes meanwhile is kept, and when that is too much it is
// told to drop everything.
type Consumer interface {
	// Applied hands over announced operations of other nodes; the prefix is
	// last now. The operations must not be modified.
	Applied(ctx context.Context, ops []meta.Committed, last meta.Rev) error
	// DropAll says that what changed up to rev is not known any more.
	DropAll(ctx context.Context, rev meta.Rev) error
	// Lease says whether the node may trust what it and its kernel have cached
	// (P14); it begins without.
	Lease(ctx context.Context, held bool) error
	// SessionEnded says that the group ended a session of this node in the zone.
	SessionEnded(ctx context.Context, session int64) error
}
