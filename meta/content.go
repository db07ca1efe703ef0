package meta

import "context"

// Content keeps blobs outside of SQL: immutable, verified when read (I6). All
// methods may run concurrently and block on the disk; errors are *Error:
// KindNoSpace, KindDamaged (the hash does not match, or bytes are missing),
// KindIO.
type Content interface {
	// ID computes the name of a blob of at most BlobMax bytes. Pure.
	ID(data []byte) BlobID
	// Put stores data, of InlineMax+1 to BlobMax bytes, at a new place. It is
	// durable after the next Sync that starts later. data is not retained.
	Put(ctx context.Context, data []byte) (Blob, error)
	// Read fills p with the bytes of b from off on, verified against b.ID.
	// [off, off+len(p)) must lie inside the blob.
	Read(ctx context.Context, b Blob, off int64, p []byte) error
	// Prefetch asks the disk for b's bytes without waiting. It may do nothing.
	Prefetch(b Blob)
	// Sync makes every Put that has returned durable. Concurrent calls share
	// the work. A failure is final: the store must not be trusted any more.
	Sync(ctx context.Context) error
	// Free gives back the space of blobs that nothing refers to any more.
	Free(ctx context.Context, blobs []Blob) error
	// Space reports the disk under the store.
	Space(ctx context.Context) (Space, error)
	// Compact frees segments that are mostly dead: it copies each living blob
	// (live says so) and calls moved before the old place goes.
	Compact(ctx context.Context, live func(Blob) (bool, error), moved func(from, to Blob) error) error
	// Walk lists every blob that is stored, for fsck and recovery.
	Walk(ctx context.Context, fn func(Blob) error) error
	// Backing opens the file that holds exactly b's bytes, verified whole once
	// since the daemon started; KindNotSupported for other places (P27).
	Backing(ctx context.Context, b Blob) (Backing, error)
	// Stats describes the store for status and metrics.
	Stats() ContentStats
}

// Backing is an open file with the bytes of one blob.
type Backing interface {
	Fd() uintptr
	Close() error
}

// Space is a disk's size and what is left of it, in bytes and inodes.
type Space struct {
	Total, Free      int64 // bytes
	Files, FreeFiles int64
}

// ContentStats counts since start, and what is stored now.
type ContentStats struct {
	Segments         int64
	SegmentBytes     int64 // on disk
	Files            int64
	FileBytes        int64
	Puts, PutBytes   int64
	Reads, ReadBytes int64
	Damaged          int64 // reads that failed verification
	UnsyncedBytes    int64
}
