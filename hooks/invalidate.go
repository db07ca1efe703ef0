package hooks

import (
	"context"

	"nexusfs/meta"
)

// KernelCache is what the kernel keeps of the mounted tree. Its methods queue
// and return at once; calls for the same inode or the same directory take
// effect in order.
type KernelCache interface {
	// InvalidateInode drops an inode's attributes and, with pages, its content
	// or listing.
	InvalidateInode(ino meta.Ino, pages bool)
	// InvalidateName drops a name; gone is the inode that it referred to when
	// it was removed, else 0.
	InvalidateName(parent meta.Ino, name string, gone meta.Ino)
	// DropAll drops everything; with wait it returns once that is done.
	DropAll(ctx context.Context, wait bool) error
}

// Invalidate is the hook that keeps the kernel's caches true: it drops what an
// operation changed behind the kernel's back.
type Invalidate struct {
	kernel KernelCache
}

// NewInvalidate makes the hook.
func NewInvalidate(k KernelCache) *Invalidate { return &Invalidate{kernel: k} }

// Name implements meta.Hook.
func (h *Invalidate) Name() string { return "cache invalidation" }

// Apply implements meta.Hook. It never fails.
func (h *Invalidate) Apply(_ context.Context, ops []meta.Committed) error {
	for i := range ops {
		if ops[i].Origin == meta.OriginKernel {
			h.unasked(ops[i].Change)
		} else {
			h.all(ops[i].Change)
		}
	}
	return nil
}

// Forget implements meta.Forgetter.
func (h *Invalidate) Forget(ctx context.Context, wait bool) error { return h.kernel.DropAll(ctx, wait) }

// all drops everything that an operation changed.
func (h *Invalidate) all(c *meta.Change) {
	content := meta.Ino(0)
	if c.Content != nil {
		content = c.Content.Ino
	}
	for i := range c.Inodes {
		ino := c.Inodes[i].After.Ino
		h.kernel.InvalidateInode(ino, ino == content)
	}
	for _, n := range c.Names {
		gone := meta.Ino(0)
		if n.After == 0 {
			gone = n.Before
		}
		h.kernel.InvalidateName(n.Parent, n.Name, gone)
	}
	// After the names: whoever lists the directory then sees them as they are.
	for _, d := range c.Dirs {
		h.kernel.InvalidateInode(d.Ino, true)
	}
}

// unasked drops what an operation of the kernel's own changed besides what the
// kernel knows. It has marked or updated the times, counts, names and pages
// that a request is bound to change, but not the mode: writing to a
// set-user-id file changes that too, and so does truncating it by open(2).
func (h *Invalidate) unasked(c *meta.Change) {
	if c.Moved {
		h.all(c)
		return
	}
	switch c.Record.Kind {
	case meta.OpSetattr, meta.OpSetACL:
		return
	}
	for i := range c.Inodes {
		if b := c.Inodes[i].Before; b != nil && b.Mode != c.Inodes[i].After.Mode {
			h.kernel.InvalidateInode(b.Ino, false)
		}
	}
}
