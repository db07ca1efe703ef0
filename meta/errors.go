package meta

import (
	"errors"
	"strconv"
)

// Kind classifies an error. The list is closed and append-only; fusefs maps
// each Kind to one errno.
type Kind uint8

// The kinds, with the errno that each becomes.
const (
	KindIO           Kind = iota // EIO: the store or the content store failed
	KindNotExist                 // ENOENT
	KindExist                    // EEXIST
	KindNotDir                   // ENOTDIR
	KindIsDir                    // EISDIR
	KindNotEmpty                 // ENOTEMPTY
	KindInvalid                  // EINVAL
	KindNameTooLong              // ENAMETOOLONG
	KindNoSpace                  // ENOSPC
	KindQuota                    // EDQUOT
	KindReadOnly                 // EROFS
	KindPerm                     // EPERM
	KindAccess                   // EACCES
	KindTooManyLinks             // EMLINK
	KindTooBig                   // EFBIG
	KindOverflow                 // EOVERFLOW
	KindNoData                   // ENODATA: no such attribute
	KindRange                    // ERANGE: value or buffer size out of range
	KindArgTooBig                // E2BIG: attribute value too large
	KindNotSupported             // EOPNOTSUPP
	KindBusy                     // EBUSY
	KindStale                    // ESTALE
	KindInterrupted              // EINTR
	KindBadHandle                // EBADF
	KindNoDevice                 // ENXIO: no data or hole past the offset
	KindLoop                     // ELOOP
	KindCrossDevice              // EXDEV
	KindDamaged                  // EIO: content whose hash does not match
	KindConflict                 // EAGAIN inside: the op's belief was wrong, reread and retry; never reaches a caller
	KindFenced                   // EIO: this session was ended by another
	KindShutdown                 // EIO: the filesystem is closing
	KindLost                     // EIO: the store has lost what it had acknowledged (P15)
	kindCount
)

// Kinds returns every Kind, for tables that must be complete.
func Kinds() []Kind {
	out := make([]Kind, kindCount)
	for i := range out {
		out[i] = Kind(i)
	}
	return out
}

var kindText = [kindCount]string{
	"input/output error", "no such file or directory", "file exists", "not a directory",
	"is a directory", "directory not empty", "invalid argument", "file name too long",
	"no space left", "quota exceeded", "read-only filesystem", "operation not permitted",
	"permission denied", "too many links", "file too large", "value too large",
	"no such attribute", "out of range", "value too long", "operation not supported",
	"busy", "stale handle", "interrupted", "bad file handle", "no data past the offset",
	"too many symbolic links", "crosses filesystems", "content is damaged", "conflict",
	"session was fenced", "filesystem is closing", "the store has lost operations",
}

func (k Kind) String() string {
	if int(k) < len(kindText) {
		return kindText[k]
	}
	return "error kind " + strconv.Itoa(int(k))
}

// Error is the one error type of the filesystem's core and its drivers.
type Error struct {
	Op   string // what was being done: "rename", "commit"; may be empty
	Ino  Ino    // to which inode; 0 when none
	Name string // and which name; may be empty
	Kind Kind
	Err  error // the cause; may be nil
}

func (e *Error) Error() string {
	s := e.Op
	if e.Name != "" {
		s += " " + strconv.Quote(e.Name)
	}
	if e.Ino != 0 {
		s += " inode " + strconv.FormatUint(uint64(e.Ino), 10)
	}
	if s != "" {
		s += ": "
	}
	s += e.Kind.String()
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

func (e *Error) Unwrap() error { return e.Err }

// Is makes errors.Is(err, KindNotExist.Err()) work on the Kind alone.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Op == "" && t.Err == nil && t.Kind == e.Kind
}

// Err returns an error of this kind without further detail.
func (k Kind) Err() error { return &Error{Kind: k} }

// KindOf returns the Kind of err; what is not an *Error is KindIO.
func KindOf(err error) Kind {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return KindIO
}

// E builds an *Error.
func E(op string, ino Ino, name string, kind Kind, err error) error {
	return &Error{Op: op, Ino: ino, Name: name, Kind: kind, Err: err}
}
