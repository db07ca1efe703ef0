package meta

import "math"

// Ino is an inode number. Numbers are handed out in ranges and never reused
// (I3), so an Ino names one object for the life of a zone.
type Ino uint64

// RootIno is the inode number of every zone's root directory.
const RootIno Ino = 1

// Rev is a zone's revision: the position of one committed operation in the
// zone's history (I3). The first operation has revision 1.
type Rev int64

// RevPending stands in a Change where the revision of that very operation
// belongs; the store replaces it when it takes the revision at the
// transaction's end.
const RevPending Rev = -1

// BlobID names an immutable run of bytes: BLAKE3 of the bytes for a blob of at
// most one leaf, otherwise BLAKE3 over its leaf hashes (content.DESIGN).
type BlobID [32]byte

// Limits that are part of the product's behaviour.
const (
	NameMax    = 255           // bytes in one name
	SymlinkMax = 4095          // bytes in a symbolic link's target
	LinkMax    = 65000         // names of one file, as on ext4
	SizeMax    = math.MaxInt64 // largest file offset
	XattrMax   = 65536         // bytes in one attribute's value
	XattrName  = 255           // bytes in one attribute's name
	InlineMax  = 16 << 10      // blobs up to this size ride in the SQL transaction
	BlobMax    = 4 << 20       // largest blob, bytes (P27)
)

// File type and permission bits, with Linux's values (inode(7)).
const (
	ModeType    uint32 = 0o170000
	ModeSocket  uint32 = 0o140000
	ModeSymlink uint32 = 0o120000
	ModeRegular uint32 = 0o100000
	ModeBlock   uint32 = 0o060000
	ModeDir     uint32 = 0o040000
	ModeChar    uint32 = 0o020000
	ModeFifo    uint32 = 0o010000
	ModeSetuid  uint32 = 0o4000
	ModeSetgid  uint32 = 0o2000
	ModeSticky  uint32 = 0o1000
	ModePerm    uint32 = 0o7777 // permission bits with setuid, setgid, sticky
)

// Attr flags: they spare a read for what is not there.
const (
	FlagXattrs     uint32 = 1 << iota // the inode has extended attributes (ACLs included)
	FlagACL                           // it has a POSIX access ACL
	FlagDefaultACL                    // a directory with a POSIX default ACL
	FlagCapability                    // it has a security.capability attribute
)

// Attr is what is known of one inode. Times are nanoseconds since 1970 UTC.
type Attr struct {
	Ino        Ino
	Mode       uint32 // type and permission bits
	Nlink      uint32 // 0: no name is left, an open handle or history keeps it
	UID        uint32
	GID        uint32
	Rdev       uint32 // device number of a device node, in the kernel's encoding
	Flags      uint32 // Flag*
	Size       int64  // bytes; a symlink's target length; 0 for a directory
	Bytes      int64  // bytes held by extents (stat's blocks)
	Entries    int64  // names in a directory, without . and ..
	Atime      int64
	Mtime      int64
	Ctime      int64
	Btime      int64
	Parent     Ino   // of a directory: the directory that holds it (the root's is itself); else 0
	Creator    int64 // uid of the creator, -1 when unknown (P32)
	Rev        Rev   // of the last change to this inode
	ContentRev Rev   // of the last change to its content
	Version    int64 // number of its newest version, 0 for what has no content
}

// IsDir reports whether the inode is a directory.
func (a *Attr) IsDir() bool { return a.Mode&ModeType == ModeDir }

// IsRegular reports whether the inode is a regular file.
func (a *Attr) IsRegular() bool { return a.Mode&ModeType == ModeRegular }

// IsSymlink reports whether the inode is a symbolic link.
func (a *Attr) IsSymlink() bool { return a.Mode&ModeType == ModeSymlink }

// Entry is one name in a directory. Cookie orders a listing and says where to
// go on: it is a function of the name alone (NameCookie), so it stays valid
// while the directory changes and across restarts.
type Entry struct {
	Name   string
	Cookie uint64
	Attr   Attr // only Ino and the type bits of Mode when attributes were not asked for
}

// FirstCookie is the lowest cookie of a name: those below it are free for "."
// and "..".
const FirstCookie = 3

// NameCookie maps a name to its place in listings: FNV-1a of the bytes,
// folded to 63 bits and moved above FirstCookie. Names that collide share a
// cookie and stay distinct rows (source: draft-eastlake-fnv, section 2).
func NameCookie(name string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(name) {
		h ^= uint64(name[i])
		h *= 1099511628211
	}
	h = h>>1 ^ h&1<<62
	return max(h&math.MaxInt64, FirstCookie) // 63 bits: it must fit a loff_t and a SQL bigint
}

// Actor is who did an operation: what the kernel attests and what the caller
// declares, never mixed up.
type Actor struct {
	UID, GID  uint32
	PID       uint32 // of the process, not the thread; 0 when unknown
	StartTime uint64 // of the process, clock ticks since boot; 0 when unknown
	Exe       string // its executable's path
	Cgroup    string
	Node      string // node that took the request
	Agent     string // declared: agent name
	Task      string // declared: task name
}

// Caller is what a request brings along. Resolve is called at most once per
// operation, when its record is built or a write is staged; it must not block on the filesystem
// that is being served.
type Caller struct {
	UID, GID uint32
	PID      uint32   // as in the request: a thread id
	Groups   []uint32 // supplementary groups when known; nil otherwise
	// Calling says that the thread is in a system call of its own, other than
	// execve(2) and close(2), that waits for this request: whoever looks at the
	// thread does not wait for it. It holds until the request is answered.
	Calling bool
	Origin  Origin             // whether the local kernel knows of it: what a command does it must be told
	Resolve func(Caller) Actor // nil: uid, gid and PID are taken as they are
	Known   *Actor             // who it is, where that was found out already
}

// Actor resolves the caller.
func (c Caller) Actor() Actor {
	if c.Known != nil {
		return *c.Known
	}
	if c.Resolve != nil {
		return c.Resolve(c)
	}
	return Actor{UID: c.UID, GID: c.GID, PID: c.PID}
}

// same reports whether two requests came from one thread of one user.
func (c Caller) same(o Caller) bool { return c.PID == o.PID && c.UID == o.UID && c.GID == o.GID }

// Extent is one run of a file's content: Len bytes at file offset Off are the
// bytes [BlobOff, BlobOff+Len) of Blob. What no extent covers reads as zeros.
type Extent struct {
	Off, Len int64
	Blob     Blob
	BlobOff  int64
	Begin    Rev    // revision at which it became current; 0 in a Change
	Data     []byte // the whole blob's bytes when Blob.Place is PlaceInline and they were read along
}

// Place says where a blob's bytes are.
type Place uint8

// The places of design section 5.
const (
	PlaceInline Place = iota // in SQL, at most InlineMax bytes
	PlacePack                // in a pack segment
	PlaceFile                // a file of its own
)

// Blob is one immutable run of bytes and where it lies. Segment and Offset
// belong to the content store and mean nothing to others.
type Blob struct {
	ID      BlobID
	Size    int64
	Place   Place
	Segment int64
	Offset  int64
}
