// Package local keeps one zone's blobs in a folder of a local disk: middle-sized
// ones as records in append-only pack segments, large ones as files of their
// own (design: content/DESIGN.md).
//
// It promises: every byte that Read returns was verified against the blob's
// name when it came from the disk (I6); a Put that has returned survives the
// death of the process at once and the loss of power after the next Sync
// (P22, P23); each Put lies at a place of its own, so that freeing one place
// never touches another one with the same bytes (P28); opening does not
// depend on how much is stored. Any number of processes may have a folder open,
// on machines that share it too: each appends to files of its own and reads
// everybody's. It does not deduplicate and does not know what is referred to;
// where several processes write, its caller syncs what it has put before it
// commits a reference (P22, P23). The caller is cmd/nexusfs, which hands the
// Store to meta.
package local
