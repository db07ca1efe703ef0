package meta

import (
	"context"
	"io"
)

// Store is one zone's truth in SQL. Reads see the last committed state and may
// run concurrently, with each other and with Commit. Errors are *Error; a
// context that ends gives KindInterrupted before anything was sent. Slices and
// strings that are returned belong to the caller, arguments are not retained.
type Store interface {
	// Inode reads an inode, also one without names. KindNotExist.
	Inode(ctx context.Context, ino Ino) (Attr, error)
	// Lookup reads the inode that a name refers to. KindNotExist.
	Lookup(ctx context.Context, parent Ino, name string) (Attr, error)
	// Target reads a symbolic link's target.
	Target(ctx context.Context, ino Ino) (string, error)
	// List appends to buf the entries with a cookie above after, at most limit,
	// ordered by cookie, complete for the last cookie (so it may return a few
	// more than limit when names collide). attrs asks for whole attributes.
	List(ctx context.Context, dir Ino, after uint64, limit int, attrs bool, buf []Entry) ([]Entry, error)
	// Xattr reads one attribute (KindNoData), Xattrs all names.
	Xattr(ctx context.Context, ino Ino, name string) ([]byte, error)
	Xattrs(ctx context.Context, ino Ino) ([]string, error)
	// Extents reads the current extents that overlap [off, end), ascending, at
	// most limit, with Blob filled and, where inline asks for it, Data.
	Extents(ctx context.Context, ino Ino, off, end int64, limit int, inline bool) ([]Extent, error)
	// Blob finds a stored, uncondemned blob. KindNotExist.
	Blob(ctx context.Context, id BlobID) (Blob, error)
	// Commit applies a batch in one transaction and takes consecutive revisions
	// for the changes that hold. One call at a time. An error means that
	// nothing was written and the batch may be sent again. KindLost: the store has
	// lost operations; every batch is refused until a new session has begun.
	Commit(ctx context.Context, b *Batch) ([]Outcome, error)
	// Sync makes everything committed before the call durable. A failure is
	// final: the store must not be trusted any more.
	Sync(ctx context.Context) error
	// Head returns the newest revision, its chain head and the last stored barrier.
	Head(ctx context.Context) (Head, error)
	// Usage returns the zone's counters.
	Usage(ctx context.Context) (Usage, error)
}

// Head is the state of a zone's revision counter and chain.
type Head struct {
	Rev      Rev
	Hash     [32]byte
	Barrier  Rev
	Reserved Rev // no revision up to here may be issued again after an unclean stop
	Epoch    int64
}

// Usage counts what a zone holds.
type Usage struct {
	Inodes       int64 // with at least one name
	Bytes        int64 // held by current extents
	HistoryBytes int64 // held only by history: reclaimable (P26)
}

// Sessions is what a daemon needs of the store to start and stop.
type Sessions interface {
	// Begin records a session, taking over from s.Boot whatever an unclean
	// predecessor left, and returns its number and epoch, durably. A store that may
	// have lost operations records a recovery first, and skips their numbers (P15).
	Begin(ctx context.Context, s SessionInfo) (session, epoch int64, prev *PrevSession, err error)
	// Recovered records, durably, that a session which began after a loss of
	// power has taken back what was torn; where several daemons open the store,
	// that what sessions before it left behind was tidied up. Until then the next
	// Begin returns a PrevSession with the BootID from before the loss, or of such
	// a session.
	Recovered(ctx context.Context, session int64, bootID string) error
	// End records the orderly end.
	End(ctx context.Context, session int64) error
	// Inos hands out n inode numbers, durably before it returns.
	Inos(ctx context.Context, n int) (first Ino, err error)
	// Reserve makes sure, durably, that revisions up to rev are never issued again.
	Reserve(ctx context.Context, rev Rev) error
}

// SessionInfo describes a starting daemon.
type SessionInfo struct {
	Node       string
	PID        int
	BootID     string // of the machine: another one means a power loss may lie between
	Mountpoint string
	Started    int64
	Lease      int64 // ns; informative on an embedded store
	Known      Rev   // newest revision that the caller has seen: a store behind it has lost operations (P15)
	Replaces   int64 // a session that the caller knows to be dead, because he holds its lock; 0: none
}

// PrevSession is the newest session before this one.
type PrevSession struct {
	Session int64
	SessionInfo
	Ended bool // in order
}

// History reads the past. Revisions are inclusive: state 'at R' has R applied.
type History interface {
	// Records calls fn for records with since < Rev, ascending (or descending
	// from the newest when f.Reverse), until fn returns false.
	Records(ctx context.Context, f RecordFilter, fn func(*Record) bool) error
	// Versions lists the versions of a file, oldest first.
	Versions(ctx context.Context, ino Ino) ([]Version, error)
	// ExtentsAt is Store.Extents as of a revision.
	ExtentsAt(ctx context.Context, ino Ino, at Rev, off, end int64, limit int, inline bool) ([]Extent, error)
	// InodeAt is Store.Inode as of a revision.
	InodeAt(ctx context.Context, ino Ino, at Rev) (Attr, error)
	// Deleted lists names in dir that ended and whose inode has no name now, newest first.
	Deleted(ctx context.Context, dir Ino, limit int) ([]DeletedName, error)
	// LateAnswer records that rev was committed and not acknowledged (P6).
	LateAnswer(ctx context.Context, rev Rev, reason string) error
	// Query runs one read-only statement over the documented views; rows are
	// handed to fn in turn. It is interrupted when ctx ends.
	Query(ctx context.Context, sql string, args []any, columns func([]string) error, row func([]any) error) error
	// PathOf returns a path of a live inode from the root ("/a/b"); KindNotExist when it has no name.
	PathOf(ctx context.Context, ino Ino) (string, error)
}

// RecordFilter selects records. Zero fields do not select.
type RecordFilter struct {
	Since   Rev // exclusive
	Until   Rev // inclusive
	Ino     Ino // records about this inode, or names in it
	Limit   int
	Reverse bool
}

// Version is one version of a file's content.
type Version struct {
	N     int64
	First Rev // revision that began it
	Rev   Rev // newest revision of it
	Size  int64
	Time  int64
	Actor Actor
}

// DeletedName is a name that ended.
type DeletedName struct {
	Name    string
	Ino     Ino
	Type    uint32 // ModeType bits
	End     Rev
	Time    int64
	Size    int64
	Version int64
}

// Upkeep is what background work needs of the store: retention, collection,
// recovery and checks. Each call is bounded in rows and leaves the store
// usable by commits in between.
type Upkeep interface {
	// Rewind takes back every operation from first on, writes one recovery
	// record with the given time and returns its revision (P22).
	Rewind(ctx context.Context, first Rev, now int64) (Rev, error)
	// BlobsSince lists blobs first referred to after rev, with that revision.
	BlobsSince(ctx context.Context, rev Rev, fn func(b Blob, first Rev) error) error
	// Prune removes history rows that p does not protect, about limit of them in
	// several transactions. It goes on where the call before ended; done says
	// that it came to the end of everything.
	Prune(ctx context.Context, p Retention, limit int) (n int, done bool, err error)
	// PruneRecent is Prune for what was done, or has become too old, since the
	// call before: its cost follows what goes on, not what there is. done says
	// that none is left.
	PruneRecent(ctx context.Context, p Retention, limit int) (n int, done bool, err error)
	// Condemn marks up to limit blobs that nothing refers to (P28) at time now.
	Condemn(ctx context.Context, now int64, limit int) (n int, err error)
	// Condemned lists blobs condemned before the given time.
	Condemned(ctx context.Context, before int64, limit int) ([]Blob, error)
	// Forget deletes condemned blobs' rows after their content was removed;
	// a row that was taken back into use meanwhile stays and is returned.
	// Callers remove content only for rows that Claim returned.
	Forget(ctx context.Context, ids []BlobID) error
	// Claim atomically turns condemned rows into rows being removed and returns those it got.
	Claim(ctx context.Context, ids []BlobID) ([]Blob, error)
	// Placed reports whether a blob's row names this place, also a condemned
	// one: until the row is gone somebody may come back to it, through a commit
	// or through a recovery.
	Placed(ctx context.Context, b Blob) (bool, error)
	// Move gives a blob a new place (compaction of segments); KindConflict when it changed meanwhile.
	Move(ctx context.Context, from, to Blob) error
	// Orphans lists inodes without names whose history may be dropped by p; DropInode removes one wholly.
	Orphans(ctx context.Context, p Retention, limit int) ([]Ino, error)
	DropInode(ctx context.Context, ino Ino) error
	// Fragmented lists files with more than pieces extents per MiB of size.
	Fragmented(ctx context.Context, pieces, limit int) ([]Ino, error)
	// Verify checks names, inodes, extents, blobs, versions, usage, records and
	// the chain against each other and reports each finding.
	Verify(ctx context.Context, report func(Finding)) error
	// VerifyChain recomputes digests and heads (P33) from first on.
	VerifyChain(ctx context.Context, first Rev, report func(Finding)) (checked int64, err error)
	// Checkpoint moves the log into the database away from the commit path, if
	// it is long enough to be worth it or idle says that nothing else goes on.
	// It costs nothing otherwise.
	Checkpoint(ctx context.Context, idle bool) error
	// Backup writes a consistent copy of the database to w's path.
	Stats(ctx context.Context) (StoreStats, error)
	io.Closer
}

// Retention says which history stays (P26).
type Retention struct {
	Off      bool  // keep none
	Before   int64 // versions older than this time may go; 0: no age limit
	Versions int   // newest versions of a file that may stay; 0: no count limit
	Barrier  Rev   // nothing that a recovery may need goes: rows that ended after it stay
	Open     []Ino // inodes with open handles: they and their current content stay
}

// Finding is one thing that fsck found.
type Finding struct {
	Check string // stable name of the check: "dentry-without-inode"
	Ino   Ino
	Rev   Rev
	Text  string
}

// StoreStats describes the store for status and metrics.
type StoreStats struct {
	Path      string
	Schema    int // version of the schema
	FileBytes int64
	LogBytes  int64
	Inodes    int64
	Records   int64
}
