package fusefs

import (
	"errors"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"nexusfs/meta"
)

// errnoOf is the one table from the kinds of errors to what a system call
// returns. A kind that is missing here would be EIO; a test keeps it whole.
var errnoOf = map[meta.Kind]syscall.Errno{
	meta.KindIO:           syscall.EIO,
	meta.KindNotExist:     syscall.ENOENT,
	meta.KindExist:        syscall.EEXIST,
	meta.KindNotDir:       syscall.ENOTDIR,
	meta.KindIsDir:        syscall.EISDIR,
	meta.KindNotEmpty:     syscall.ENOTEMPTY,
	meta.KindInvalid:      syscall.EINVAL,
	meta.KindNameTooLong:  syscall.ENAMETOOLONG,
	meta.KindNoSpace:      syscall.ENOSPC,
	meta.KindQuota:        syscall.EDQUOT,
	meta.KindReadOnly:     syscall.EROFS,
	meta.KindPerm:         syscall.EPERM,
	meta.KindAccess:       syscall.EACCES,
	meta.KindTooManyLinks: syscall.EMLINK,
	meta.KindTooBig:       syscall.EFBIG,
	meta.KindOverflow:     syscall.EOVERFLOW,
	meta.KindNoData:       syscall.ENODATA,
	meta.KindRange:        syscall.ERANGE,
	meta.KindArgTooBig:    syscall.E2BIG,
	meta.KindNotSupported: syscall.EOPNOTSUPP,
	meta.KindBusy:         syscall.EBUSY,
	meta.KindStale:        syscall.ESTALE,
	meta.KindInterrupted:  syscall.EINTR,
	meta.KindBadHandle:    syscall.EBADF,
	meta.KindNoDevice:     syscall.ENXIO,
	meta.KindLoop:         syscall.ELOOP,
	meta.KindCrossDevice:  syscall.EXDEV,
	meta.KindDamaged:      syscall.EIO,
	meta.KindConflict:     syscall.EIO, // must not get here: retried inside
	meta.KindFenced:       syscall.EIO,
	meta.KindShutdown:     syscall.EIO,
	meta.KindLost:         syscall.EIO,
}

// statusOf is errnoOf as an array, for the hot path.
var statusOf = func() (t [256]fuse.Status) {
	for i := range t {
		t[i] = fuse.EIO
	}
	for k, e := range errnoOf {
		t[k] = fuse.Status(e)
	}
	return t
}()

// Statuses that the edge answers by itself.
const (
	ok               = fuse.OK
	stNotExist       = fuse.ENOENT
	stNotDir         = fuse.ENOTDIR
	stIsDir          = fuse.EISDIR
	stPerm           = fuse.EPERM
	stReadOnly       = fuse.EROFS
	stInvalid        = fuse.EINVAL
	stRange          = fuse.ERANGE
	stNoData         = fuse.ENODATA
	stBadHandle      = fuse.EBADF
	stNotImplemented = fuse.ENOSYS
	stNotTTY         = fuse.Status(syscall.ENOTTY)
	stNameTooLong    = fuse.Status(syscall.ENAMETOOLONG)
	stTooBig         = fuse.Status(syscall.EFBIG)
	stNotSupported   = fuse.Status(syscall.EOPNOTSUPP)
	stNoDevice       = fuse.Status(syscall.ENXIO)
	stTooManyFiles   = fuse.Status(syscall.ENFILE)
	stNotConnected   = fuse.Status(syscall.ENOTCONN)
)

// kindOf is meta.KindOf with a short cut for errors that nobody wrapped.
func kindOf(err error) meta.Kind {
	if e, isMeta := err.(*meta.Error); isMeta {
		return e.Kind
	}
	return meta.KindOf(err)
}

// status maps an error to what the kernel is told. Errors that are not the
// caller's are logged: a user who sees EIO finds the cause in the log.
func (r *rawFS) status(op string, ino uint64, err error) fuse.Status {
	if err == nil {
		return fuse.OK
	}
	st := statusOf[kindOf(err)]
	if st == fuse.EIO {
		r.quiet.error(r, op, ino, err)
	}
	return st
}

// quiet bounds the log: a disk that fails gives one error per request.
type quiet struct {
	second  atomic.Int64 // unix time of the current window
	written atomic.Int64 // lines in it
	dropped atomic.Int64 // lines not written since the last one
}

// quietLines is how many failed requests a second are logged.
const quietLines = 20

func (q *quiet) error(r *rawFS, op string, ino uint64, err error) {
	now := time.Now().Unix()
	if q.second.Swap(now) != now {
		q.written.Store(0)
	}
	if q.written.Add(1) > quietLines {
		q.dropped.Add(1)
		return
	}
	r.log.Error("a request failed", "op", op, "ino", ino, "err", err, "unlogged", q.dropped.Swap(0))
}

// errBusy is what unmountOnce wraps when it heard of a busy mount in words.
var errBusy error = syscall.EBUSY

// The helpers below classify errors of system calls about mounts, so that no
// other file handles errno values.

func isBusy(err error) bool     { return errors.Is(err, syscall.EBUSY) }
func isDead(err error) bool     { return errors.Is(err, syscall.ENOTCONN) }
func isNotExist(err error) bool { return errors.Is(err, syscall.ENOENT) }
func isNoDevice(err error) bool {
	return errors.Is(err, syscall.ENODEV) || errors.Is(err, syscall.ENXIO)
}
func isDenied(err error) bool      { return errors.Is(err, syscall.EACCES) || errors.Is(err, syscall.EPERM) }
func isNotMounted(err error) bool  { return errors.Is(err, syscall.EINVAL) }
func isInterrupted(err error) bool { return errors.Is(err, syscall.EINTR) }
func isUnreadable(err error) bool  { return errors.Is(err, syscall.EACCES) }

// statusError is a Status as an error.
func statusError(s fuse.Status) error {
	if s == fuse.OK {
		return nil
	}
	return syscall.Errno(s)
}
