package meta

import "context"

// Committed is one operation as announcers and hooks see it: applied, with its
// revision. The Change must not be modified.
type Committed struct {
	Rev    Rev
	Change *Change
	Attrs  []Attr // after-images of Change.Inodes, in order, with revisions filled in
	Origin Origin
}

// Origin says where an operation came from: the kernel has updated its own
// caches for what it asked for itself.
type Origin uint8

// The origins.
const (
	OriginKernel  Origin = iota // a request of the local kernel
	OriginCommand               // a command: restore, purge
	OriginRemote                // another node
)

// Announcer makes a committed batch known to every mount (P9). Announce is
// called in revision order, after COMMIT and before the callers are answered;
// an error does not undo anything: the operations are committed, not
// acknowledged (P6).
type Announcer interface {
	Announce(ctx context.Context, ops []Committed) error
}

// Hook consumes committed operations in the order of design section 8. Apply
// is called in revision order, after the announcement, before the callers are
// answered; it must not block on the kernel or the filesystem served.
type Hook interface {
	Name() string
	Apply(ctx context.Context, ops []Committed) error
}

// Forgetter is a Hook that keeps something which can be dropped whole: it is
// told when nobody knows any more what others changed.
type Forgetter interface {
	// Forget drops everything; wait says to return only when that is done, and
	// is never set by the commit path.
	Forget(ctx context.Context, wait bool) error
}
