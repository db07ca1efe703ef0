package meta

// OpKind names an operation in its record. The values are stored: append only.
type OpKind uint8

// The operations.
const (
	OpInit OpKind = 1 + iota // the zone was made: its root directory
	OpCreate
	OpMkdir
	OpSymlink
	OpMknod
	OpLink
	OpUnlink
	OpRmdir
	OpRename
	OpExchange
	OpWrite       // content committed at close or fsync, with a version
	OpWriteStream // content of a handle that stays open for long, without a version
	OpTruncate
	OpFallocate // punch hole and zero range; size growth
	OpCopyRange
	OpSetattr
	OpSetxattr
	OpRemovexattr
	OpSetACL
	OpRestore
	OpPurge    // history was let go on request
	OpRecovery // operations were taken back after a power loss (P15, P22)
	OpGrant
	OpRevoke
	OpRelease // an unlinked inode's last handle is gone
	opKindCount
)

var opNames = [opKindCount]string{
	"", "init", "create", "mkdir", "symlink", "mknod", "link", "unlink", "rmdir", "rename",
	"exchange", "write", "write_stream", "truncate", "fallocate", "copy_range", "setattr",
	"setxattr", "removexattr", "set_acl", "restore", "purge", "recovery", "grant", "revoke", "release",
}

func (k OpKind) String() string {
	if int(k) < len(opNames) && k > 0 {
		return opNames[k]
	}
	return "unknown"
}

// OpKinds returns every operation kind in order.
func OpKinds() []OpKind {
	var out []OpKind
	for k := OpInit; k < opKindCount; k++ {
		out = append(out, k)
	}
	return out
}

// Record is the operation record: the row that is written with every change in
// the same transaction (I1, I9). Before and After are small JSON objects that
// hold only what changed ({"mode":33188,"uid":0}); Before is enough to take
// the operation back (P22). An operation about a second inode (rename over it,
// exchange) has its number there as "replaced".
type Record struct {
	Rev       Rev // set by the store
	Kind      OpKind
	Ino       Ino
	Parent    Ino    // the name's directory; 0 when no name is concerned
	Name      string // any bytes but / and NUL
	NewParent Ino
	NewName   string
	Time      int64 // nanoseconds since 1970
	Actor     Actor
	Version   int64 // version that this op made or moved; 0: none
	Size      int64 // size after, of content operations
	Seq       int64 // the op's key within its session (P5)
	Before    string
	After     string
	Digest    [32]byte // of everything above but Rev (P4); set by the committer
}

// Change is one operation as rows: what it believes and what it writes. meta
// builds it by POSIX rules; a Store applies it without knowing them.
type Change struct {
	Record   Record
	Inodes   []InodeChange
	Dirs     []DirDelta
	Names    []NameChange
	Xattrs   []XattrChange
	Content  *ContentChange
	Version  *VersionChange
	Moved    bool // content landed elsewhere than the kernel wrote it: an append whose end others had moved (P8)
	Topology bool // a directory moves to another parent: guard: it does not come to lie below itself (P3)
}

// InodeChange writes one inode's row. Guard: with Before == nil the inode must
// not exist; otherwise its row's revision must be Before.Rev, or, for a
// directory (whose Rev moves with its names), it must be alive and, when After
// has no links, empty. The previous image goes to history. After.Rev becomes
// the op's revision, as does After.ContentRev where it is RevPending.
type InodeChange struct {
	Before *Attr
	After  Attr
	Target string // of a new symbolic link
}

// DirDelta updates a directory whose names changed: the counters by difference
// and the times. Guard: the directory is alive (Nlink > 0). No history row.
type DirDelta struct {
	Ino     Ino
	Entries int64
	Nlink   int64
	Time    int64 // new mtime and ctime
}

// NameChange sets or ends one name. Guard: the name refers to Before (0: it is
// absent). After 0 ends it. What ended goes to history.
type NameChange struct {
	Parent     Ino
	Name       string
	Before     Ino
	BeforeType uint32 // ModeType bits
	After      Ino
	AfterType  uint32
}

// XattrChange sets (Value non-nil, may be empty) or removes one attribute.
type XattrChange struct {
	Ino   Ino
	Name  string
	Value []byte
}

// ContentChange replaces ranges of one file's content. The store splits the
// extents that a range cuts, moves what ended to history, and keeps the
// inode's Bytes and the usage counters right.
type ContentChange struct {
	Ino    Ino
	Ranges []RangeChange // ascending, not overlapping
	Blobs  []NewBlob     // blobs that this op brings
	Fresh  bool          // the file has no extents yet: nothing has to be looked for
}

// RangeChange replaces [Off, Off+Len) by Extents, in ascending order, all
// inside the range; what they leave out becomes a hole. Len may reach past
// every extent (SizeMax-Off for 'everything behind').
type RangeChange struct {
	Off, Len int64
	Extents  []Extent
}

// NewBlob is a blob row to insert. When the zone has the blob already the row
// stays as it is, unless it is condemned: then it takes this place (P28).
// Blobs that extents use and that are not listed must exist uncondemned, else
// the op fails with KindConflict.
type NewBlob struct {
	Blob
	Data []byte // of an inline blob
}

// VersionChange makes version N of a file (New) or moves it to this revision.
type VersionChange struct {
	Ino  Ino
	N    int64
	New  bool
	Size int64
}

// Batch is what one transaction commits, in order.
type Batch struct {
	Session int64
	Epoch   int64 // the session's; a fenced session is refused (P20)
	Barrier Rev   // everything up to here is durable, content included (P22); stored with the head
	Known   Rev   // newest revision that the caller has seen: a store that is behind it refuses (P15); 0: not said
	Changes []*Change
}

// Outcome says what became of one Change.
type Outcome struct {
	Rev   Rev
	Bytes int64 // of Content's inode after the op
	Err   error // not nil: this change has written nothing; KindConflict: a guard failed
}
