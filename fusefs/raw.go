package fusefs

import (
	"context"
	"log/slog"

	"github.com/hanwen/go-fuse/v2/fuse"

	"nexusfs/meta"
)

// rawFS answers the kernel's requests. go-fuse calls its methods concurrently
// and reuses the memory of a request once the method has returned. The cancel
// channels are ignored on purpose: interrupts come from Go's own scheduler,
// Ctrl-C and timers alike, and an operation that was queued is answered with
// its outcome (P7).
type rawFS struct {
	fuse.RawFileSystem // ENOSYS for what is not below: access, bmap, locks

	fs       filesystem
	ctx      context.Context // lives as long as the mount
	log      *slog.Logger
	notes    *Notifier
	attest   *attester
	resolve  func(meta.Caller) meta.Actor // attest.resolve, bound once
	cache    ttl                          // of names and of attributes of files
	cacheDir ttl                          // of directories' attributes
	absent   ttl                          // of names that are not there
	noDirs   bool                         // directories are opened without a request
	several  bool                         // other daemons may open the zone
	noEpoch  bool                         // the kernel cannot drop all names at once
	store    string                       // shown as user.nexusfs.store
	control  string                       // shown as user.nexusfs.control

	virtual virtual
	pass    passthrough
	files   handles
	dirty   dirtySet
	quiet   quiet
}

// rootNode is the node number of the mount's root, by the protocol.
const rootNode = uint64(meta.RootIno)

func (r *rawFS) String() string { return Subtype }

// caller says who sent a request.
func (r *rawFS) caller(h *fuse.InHeader) meta.Caller {
	return meta.Caller{UID: h.Uid, GID: h.Gid, PID: h.Pid, Resolve: r.resolve}
}

// calling is caller for a request that execve(2) never sends: the operations on
// names and attributes, which a thread asks for in a system call of their own.
func (r *rawFS) calling(h *fuse.InHeader) meta.Caller {
	c := r.caller(h)
	c.Calling = true
	return c
}

// Forget passes on that the kernel holds an inode no more. The kernel's counts
// are not kept (see the package comment), so a lookup that crosses a forget is
// harmless: the number stays good for as long as the inode is there.
func (r *rawFS) Forget(node, lookups uint64) {
	if isVirtual(node) {
		r.virtual.forget(node, lookups)
		return
	}
	r.fs.Forget(meta.Ino(node))
}
