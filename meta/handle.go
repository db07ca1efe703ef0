package meta

import (
	"context"
	"sync/atomic"
)

// OpenFlags says how a file is opened, as in open(2).
type OpenFlags struct {
	Read, Write bool
	Append      bool // O_APPEND; see AtEnd
	Trunc       bool
	Excl        bool
	Sync, DSync bool // every write is durable when it returns
	KillPriv    bool // with Trunc: clear setuid and setgid
}

// AtEnd as a write's offset places it at the file's end as it is at that
// moment (P8). A handle may have lost O_APPEND by fcntl(2), and pages that
// were mapped come through any handle, so the caller of Write says for each
// write whether it appends; the handle's flag decides nothing.
const AtEnd int64 = -1

// Handle is one open file: a descriptor and its duplicates. All handles of a
// file share what is staged. Methods may be called concurrently.
type Handle struct {
	fs     *FS
	n      *node
	id     uint64
	flags  OpenFlags
	opener Caller

	next     atomic.Int64 // where a sequential read goes on
	ahead    atomic.Int64 // up to where the disk was asked for it
	wrote    atomic.Bool
	released atomic.Bool
	losses   atomic.Int64 // of the FS when it was opened, or the last fsync said so
}

// newHandle opens a handle on a file that was just made: it owns version 1, so
// that a file which is created, written and closed has one version.
func (fs *FS) newHandle(ino Ino, f OpenFlags, c Caller) *Handle {
	h := fs.handle(ino, f, c)
	if f.Write {
		h.n.mu.Lock()
		h.n.owner, h.n.ownerN = h.id, 1
		h.n.mu.Unlock()
	}
	return h
}

func (fs *FS) handle(ino Ino, f OpenFlags, c Caller) *Handle {
	c.Calling = false // the handle outlives the call
	h := &Handle{fs: fs, n: fs.openNode(ino), id: fs.nodes.ids.Add(1), flags: f, opener: c}
	h.losses.Store(fs.losses.count.Load())
	h.n.mu.Lock()
	h.n.handles++
	h.n.mu.Unlock()
	return h
}

// OpenFile opens a regular file, also one that has lost its last name.
// KindNotExist, KindIsDir, KindNoDevice for what has no content, KindReadOnly,
// KindStale when another daemon took its last name: the kernel then walks the
// path again.
func (fs *FS) OpenFile(ctx context.Context, c Caller, ino Ino, f OpenFlags) (*Handle, error) {
	if err := fs.fresh(ctx); err != nil {
		return nil, err
	}
	a, err := fs.attr(ctx, ino)
	if err != nil {
		return nil, err
	}
	switch {
	case a.Nlink == 0 && fs.Shared() && fs.nodes.get(ino) == nil:
		return nil, E("open", ino, "", KindStale, nil)
	case a.IsDir():
		return nil, E("open", ino, "", KindIsDir, nil)
	case a.IsSymlink():
		return nil, E("open", ino, "", KindLoop, nil)
	case !a.IsRegular():
		return nil, E("open", ino, "", KindNoDevice, nil)
	}
	if f.Write || f.Trunc {
		if err := fs.writable("open"); err != nil {
			return nil, err
		}
	}
	h := fs.handle(ino, f, c)
	if f.Trunc {
		s := SetAttr{Valid: SetSize, Handle: h}
		if f.KillPriv {
			s.Valid |= KillPriv
		}
		if _, err := fs.SetAttr(ctx, c, ino, s); err != nil {
			h.Release(ctx)
			return nil, err
		}
	}
	return h, nil
}

// Ino returns the file's inode number.
func (h *Handle) Ino() Ino { return h.n.ino }

// Write stages data at off, or at the file's end for AtEnd; the data is
// copied. It is visible to every reader and to stat at once, committed by
// Flush and Fsync, or after seconds by itself. killPriv says that the caller
// may not keep setuid and setgid bits. KindBadHandle, KindTooBig, KindNoSpace
// (nothing of data was taken then), KindReadOnly.
func (h *Handle) Write(ctx context.Context, c Caller, off int64, data []byte, killPriv bool) (int, error) {
	fs := h.fs
	if err := h.mayWrite("write"); err != nil {
		return 0, err
	}
	if off != AtEnd && (off < 0 || off > SizeMax-int64(len(data))) {
		return 0, E("write", h.n.ino, "", KindTooBig, nil)
	}
	if len(data) == 0 {
		return 0, nil
	}
	a, err := fs.attr(ctx, h.n.ino)
	if err != nil {
		return 0, err
	}
	if privileged(a, killPriv) {
		if err := fs.killPriv(ctx, c, h.n.ino, killPriv); err != nil {
			return 0, err
		}
	}
	if err := fs.relieve(ctx, h.n); err != nil {
		return 0, err
	}
	if err := h.stage(c, a, off, data); err != nil {
		return 0, err
	}
	fs.counters.bytesWritten.Add(int64(len(data)))
	if h.flags.Sync || h.flags.DSync {
		return len(data), h.Fsync(ctx, c, true)
	}
	return len(data), nil
}

// mayWrite refuses changes through this handle where there must be none.
func (h *Handle) mayWrite(op string) error {
	if h == nil || h.released.Load() || !h.flags.Write {
		return E(op, 0, "", KindBadHandle, nil)
	}
	return h.fs.writable(op)
}

// stage puts data into the node's staged content.
func (h *Handle) stage(c Caller, known *Attr, off int64, data []byte) error {
	fs, n := h.fs, h.n
	now := fs.now().UnixNano()
	if c.PID == 0 {
		c = h.opener // pages that were mapped come from the kernel itself (P1)
	}
	n.mu.Lock()
	if off == AtEnd {
		committed := n.sizeWithout(fs, known)
		if off = max(committed, n.staged.end()); off > SizeMax-int64(len(data)) {
			n.mu.Unlock()
			return E("write", n.ino, "", KindTooBig, nil)
		}
		n.staged.appended(off, committed)
	} else {
		n.staged.placed(off + int64(len(data)))
	}
	var filled [1]*sealed
	seals := filled[:0]
	for len(data) > 0 {
		part := data[:min(int64(len(data)), chunkEnd(off)-off)]
		i := n.staged.write(off, part)
		if n.staged.full(i) {
			s := n.staged.sealRun(i, n)
			n.held += s.buf.size()
			seals = append(seals, s)
		}
		off, data = off+int64(len(part)), data[len(part):]
	}
	s := &n.staged
	if c.same(s.caller) {
		c.Known = s.caller.Known
	}
	s.mtime, s.writer, s.caller = now, h.id, c
	if s.since == 0 {
		s.since = now
	}
	s.wrote(writerID{c.UID, c.PID})
	fs.nodes.account(n)
	unused := len(n.unused) > 0
	n.mu.Unlock()
	if !h.wrote.Load() {
		h.wrote.Store(true)
	}
	if c.Known == nil && c.Calling {
		n.attest(c)
	}
	for _, s := range seals {
		fs.submit(s)
	}
	if unused {
		fs.sweep(context.Background(), n)
	}
	return nil
}

// attest finds out who writes while the writer waits in write(2), where looking
// costs least: a close(2) may be execve(2)'s. The commit's record names that
// program even if the thread runs another one by then.
func (n *node) attest(c Caller) {
	who := c.Actor()
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.staged.caller.same(c) {
		n.staged.caller.Known = &who
	}
}

// relieve makes room before more is staged: it reports what could not be
// stored, and when too much memory is held it helps storing, waits for what is
// being stored, or commits what this file has.
func (fs *FS) relieve(ctx context.Context, n *node) error {
	n.mu.Lock()
	stuck := n.putErr != nil || len(n.staged.runs) >= runsMax
	n.mu.Unlock()
	if stuck {
		return fs.flush(ctx, Caller{}, n, flushStream)
	}
	for fs.nodes.staged.Load() > fs.o.StageLimit {
		if s := fs.nodes.put.take(); s != nil {
			if err := fs.storeSealed(ctx, s); err != nil && s.n == n {
				return err
			}
			continue
		}
		if w := n.storing(); w != nil {
			<-w.done
			if w.err != nil {
				return w.err
			}
			continue
		}
		return fs.flush(ctx, Caller{}, n, flushStream)
	}
	return nil
}

// storing returns a chunk of the file that is being stored now.
func (n *node) storing() *putting {
	n.mu.Lock()
	defer n.mu.Unlock()
	for i := range n.staged.runs {
		if p := n.staged.runs[i].seal; p != nil && p.work != nil {
			return p.work
		}
	}
	return nil
}

// privileged reports whether a write has to take privileges away.
func privileged(a *Attr, killPriv bool) bool {
	if a.Flags&FlagCapability != 0 {
		return true
	}
	return killPriv && (a.Mode&ModeSetuid != 0 || a.Mode&(ModeSetgid|0o010) == ModeSetgid|0o010)
}

// dropForWriter does what Write does about setuid, setgid and capabilities for
// requests in which the kernel does not say what the caller may keep: only root
// keeps the bits.
func (fs *FS) dropForWriter(ctx context.Context, c Caller, ino Ino) error {
	a, err := fs.attr(ctx, ino)
	if err != nil || !privileged(a, c.UID != 0) {
		return err
	}
	return fs.killPriv(ctx, c, ino, c.UID != 0)
}

// killPriv takes setuid, setgid and capabilities from a file that is about to
// be written, at once, so that nobody runs new content with old rights.
func (fs *FS) killPriv(ctx context.Context, c Caller, ino Ino, bits bool) error {
	_, err := fs.commit(ctx, c, OriginKernel, func(v *view) (*Change, error) {
		before, err := v.inode(ino)
		if err != nil || !privileged(before, bits) {
			return nil, err
		}
		after := *before
		ch := &Change{Record: Record{Kind: OpSetattr, Ino: ino}}
		dropPrivileges(&after, ch)
		if !bits {
			after.Mode = before.Mode
		}
		after.Ctime = v.now
		b, a := diff(before, &after)
		ch.Record.Before, ch.Record.After = b.String(), a.String()
		ch.Inodes = []InodeChange{{Before: before, After: after}}
		return ch, nil
	})
	return err
}

// Flush is close(2) of one descriptor: what is staged of the file is committed.
// An error leaves it staged; a later Flush or Fsync tries again. The content
// of a file without names is not committed: nobody can open it again.
func (h *Handle) Flush(ctx context.Context, c Caller) error {
	if !h.n.needsFlush() || h.fs.nameless(ctx, h.n.ino) {
		return nil
	}
	return h.fs.flush(ctx, c, h.n, flushWrite)
}

// needsFlush reports whether there is anything to commit.
func (n *node) needsFlush() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.hasStaged() || n.streamed != 0
}

// nameless reports whether a file has lost its last name, or never had one.
func (fs *FS) nameless(ctx context.Context, ino Ino) bool {
	a, err := fs.attr(ctx, ino)
	return err == nil && a.Nlink == 0
}

// Fsync commits what is staged of the file and returns when that, and
// everything that was committed before, is durable (P23). KindLost, once, when
// the store lost operations since the handle was opened. dataOnly, as of
// fdatasync(2), changes nothing.
func (h *Handle) Fsync(ctx context.Context, c Caller, dataOnly bool) error {
	if err := h.fs.flush(ctx, c, h.n, flushWrite); err != nil {
		return err
	}
	return h.unlost(ctx)
}

// Release is the end of a handle: what came after the last Flush is committed
// by who opened it (pages that were mapped arrive then), and its version is
// sealed. What cannot be committed when nobody has the file open any more is
// lost, and logged.
func (h *Handle) Release(ctx context.Context) {
	if h.released.Swap(true) {
		return
	}
	fs, n := h.fs, h.n
	defer fs.closeNode(n)
	n.mu.Lock()
	n.handles--
	mine := n.handles == 0 || h.wrote.Load()
	n.mu.Unlock()
	var err error
	if mine && n.needsFlush() && !fs.nameless(ctx, n.ino) {
		err = fs.flush(ctx, h.opener, n, flushWrite)
	}
	n.mu.Lock()
	if n.owner == h.id {
		n.owner = 0
	}
	lost := int64(0)
	for i := range n.staged.runs {
		lost += n.staged.runs[i].n
	}
	last := n.handles == 0
	n.mu.Unlock()
	if err != nil && last {
		fs.log.Error("written content was lost: it could not be committed when the file was closed",
			"ino", n.ino, "bytes", lost, "err", err)
	}
}

// truncation fills in what a change of size makes of a file: the ranges that
// end and the version. h is the handle of ftruncate(2) or of an open with
// O_TRUNC; without one the truncation is a version of its own (P1).
func (fs *FS) truncation(v *view, before, after *Attr, size int64, h *Handle) (*ContentChange, *VersionChange) {
	if size == before.Size {
		return nil, nil
	}
	var content *ContentChange
	if size < before.Size {
		content = &ContentChange{Ino: before.Ino, Ranges: []RangeChange{{Off: size, Len: SizeMax - size}}}
	}
	after.Size, after.ContentRev = size, RevPending
	version := fs.versionFor(before, h)
	version.Size, after.Version = size, version.N
	return content, &version
}

// versionFor is nextVersion for an operation that is not a flush.
func (fs *FS) versionFor(before *Attr, h *Handle) VersionChange {
	n, id := fs.nodes.get(before.Ino), uint64(0)
	if h != nil && h.n.ino == before.Ino && h.flags.Write {
		n, id = h.n, h.id
	}
	if n == nil {
		return nextVersion(before, 0, 0, 0)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	v := nextVersion(before, id, n.owner, n.ownerN)
	n.owner, n.ownerN = id, v.N
	return v
}
