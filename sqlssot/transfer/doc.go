// Package transfer moves a zone, whole, from one SQL engine to another:
// metadata, history, records, the chain, and content along with it.
//
// It declares once which tables a zone consists of, in which order they are
// copied, and which columns hold numbers that belong to the zone's place in a
// database (table.go). An engine implements Source and Target over that
// description and knows nothing of the other engine; Run reads the one and
// fills the other.
//
// Promises: the target is the source, row by row, or it cannot be mounted. A
// run that was killed, at any point, is gone on with by the next one, and a
// source that has changed meanwhile is refused. Every row is counted and
// digested on both sides, every blob is verified by its hash while it is
// copied, the chain is verified in the target.
//
// Not promised: that a source which somebody changes during a run is copied. The
// caller keeps daemons away; a session that began all the same is noticed in the
// end, and the target stays unfinished.
//
// Called by cmd/nexusfs (`nexusfs migrate`) and implemented by the engines.
package transfer
