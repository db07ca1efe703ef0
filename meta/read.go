package meta

import "context"

// hole is a part of a read that staged content does not serve.
type hole struct{ off, end int64 }

// blobPart is a part of a read that lies in a stored chunk which is not
// committed yet.
type blobPart struct {
	off, n  int64
	blob    Blob
	blobOff int64
}

// Read fills p with the file's bytes from off on, staged ones included, and
// returns how many there were before the file's end. KindDamaged when content
// does not match its hash, KindIO.
func (h *Handle) Read(ctx context.Context, off int64, p []byte) (int, error) {
	if h.released.Load() {
		return 0, E("read", h.n.ino, "", KindBadHandle, nil)
	}
	if off < 0 {
		return 0, E("read", h.n.ino, "", KindInvalid, nil)
	}
	fs, n := h.fs, h.n
	if err := fs.recent(ctx); err != nil {
		return 0, err
	}
	sequential := h.next.Load() == off && off > 0
	got, err := fs.readNode(ctx, n, off, p)
	if err == nil {
		if sequential {
			h.prefetch(off + int64(got))
		} else {
			h.ahead.Store(0)
		}
		h.next.Store(off + int64(got))
		fs.counters.bytesRead.Add(int64(got))
	}
	return got, err
}

// readNode reads a file. What is staged is looked at first and what is
// committed after: a commit in between moves content from the one to the
// other, never out of sight.
func (fs *FS) readNode(ctx context.Context, n *node, off int64, p []byte) (int, error) {
	for tries := 0; ; tries++ {
		holes, parts, staged := n.readStaged(off, p)
		a, err := fs.attr(ctx, n.ino)
		if err != nil {
			return 0, err
		}
		size := max(a.Size, staged)
		if off >= size {
			return 0, nil
		}
		p := p[:min(int64(len(p)), size-off)]
		if holes == nil && parts == nil && staged == 0 {
			return len(p), fs.readCommitted(ctx, n, a, off, p)
		}
		err = fs.readParts(ctx, parts, off, p)
		for _, g := range holes {
			if g.end = min(g.end, off+int64(len(p))); err == nil && g.off < g.end {
				err = fs.readCommitted(ctx, n, a, g.off, p[g.off-off:g.end-off])
			}
		}
		if err == nil || len(parts) == 0 || tries > 2 {
			return len(p), err
		}
		// A stored chunk was written over and freed between the look and the read.
	}
}

// readStaged copies what is staged of [off, off+len(p)) to p. It returns the
// parts that it did not have, those that lie in the content store already, and
// the end of what is staged, 0 when nothing is.
func (n *node) readStaged(off int64, p []byte) (holes []hole, parts []blobPart, end int64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.hasStaged() {
		return nil, nil, 0
	}
	end = n.staged.end()
	holes = append(holes, hole{off, off + int64(len(p))})
	holes, parts = n.staged.read(off, p, holes, parts)
	if n.flight != nil {
		end = max(end, n.flight.stage.end())
		holes, parts = n.flight.stage.read(off, p, holes, parts)
	}
	return holes, parts, end
}

// read fills the holes that s has bytes for and returns what is left of them.
func (s *stage) read(off int64, p []byte, holes []hole, parts []blobPart) ([]hole, []blobPart) {
	if len(s.runs) == 0 {
		return holes, parts
	}
	var left []hole
	for _, g := range holes {
		for i := s.search(g.off + 1); i < len(s.runs) && s.runs[i].off < g.end; i++ {
			r := &s.runs[i]
			from, to := max(r.off, g.off), min(r.end(), g.end)
			if g.off < from {
				left = append(left, hole{g.off, from})
			}
			if b := r.bytes(); b != nil {
				copy(p[from-off:to-off], b[from-r.off:])
			} else {
				parts = append(parts, blobPart{off: from, n: to - from, blob: r.seal.blob, blobOff: r.lo + from - r.off})
			}
			g.off = to
		}
		if g.off < g.end {
			left = append(left, g)
		}
	}
	return left, parts
}

func (fs *FS) readParts(ctx context.Context, parts []blobPart, off int64, p []byte) error {
	for _, b := range parts {
		if err := fs.o.Content.Read(ctx, b.blob, b.blobOff, p[b.off-off:b.off-off+b.n]); err != nil {
			return err
		}
	}
	return nil
}

// readCommitted fills p, which lies inside the file, with committed content. A
// blob that was moved or replaced since its extent was read is looked up once
// more before it counts as damaged.
func (fs *FS) readCommitted(ctx context.Context, n *node, a *Attr, off int64, p []byte) error {
	end := off + int64(len(p))
	list, err := fs.extentsFor(ctx, n, a, off, end)
	if err != nil {
		return err
	}
	err = fs.fillFrom(ctx, list, off, p)
	if err == nil {
		return nil
	}
	n.mu.Lock()
	fs.unmap(n)
	n.mu.Unlock()
	if list, err = collectExtents(ctx, fs.sourceOf(n.ino), off, end, inlineWindow, true); err != nil {
		return err
	}
	return fs.unreadable(n.ino, fs.fillFrom(ctx, list, off, p))
}

// unreadable gives an error of the content store its inode and logs it.
func (fs *FS) unreadable(ino Ino, err error) error {
	if err == nil {
		return nil
	}
	kind := KindOf(err)
	if kind == KindStale || kind == KindNotExist {
		kind = KindDamaged
	}
	if kind == KindDamaged {
		fs.log.Error("content is damaged or missing; the file is readable except there", "ino", ino, "err", err)
	}
	return E("read", ino, "", kind, err)
}

// fillFrom fills p with what the extents hold of [off, off+len(p)) and with
// zeros where they hold nothing.
func (fs *FS) fillFrom(ctx context.Context, list []Extent, off int64, p []byte) error {
	at, end := off, off+int64(len(p))
	for i := range list {
		e := &list[i]
		from, to := max(e.Off, at), min(e.Off+e.Len, end)
		if from >= to {
			continue
		}
		clear(p[at-off : from-off])
		if err := fs.readExtent(ctx, e, from-e.Off, p[from-off:to-off]); err != nil {
			return err
		}
		at = to
	}
	clear(p[at-off:])
	return nil
}

// readExtent fills p with an extent's bytes from skip on.
func (fs *FS) readExtent(ctx context.Context, e *Extent, skip int64, p []byte) error {
	if e.Blob.Place != PlaceInline {
		return fs.o.Content.Read(ctx, e.Blob, e.BlobOff+skip, p)
	}
	if int64(len(e.Data)) != e.Blob.Size || fs.o.Content.ID(e.Data) != e.Blob.ID {
		return E("read", 0, "", KindDamaged, nil)
	}
	copy(p, e.Data[e.BlobOff+skip:])
	return nil
}

// Sequential reads ask the disk for what comes next in steps of prefetchStep,
// as soon as less than half a step is under way.
const prefetchStep = 2 * BlobMax

// prefetch asks the disk for the blobs behind end.
func (h *Handle) prefetch(end int64) {
	from := max(h.ahead.Load(), end)
	if from > end+prefetchStep/2 {
		return
	}
	h.n.mu.Lock()
	m := h.n.mapping
	h.n.mu.Unlock()
	if m == nil {
		return
	}
	h.ahead.Store(end + prefetchStep)
	for _, e := range overlapping(m.extents, from, end+prefetchStep) {
		if e.Off >= from && e.Blob.Place != PlaceInline {
			h.fs.o.Content.Prefetch(e.Blob)
		}
	}
}

// Backing opens the file of the content store that holds exactly this file's
// bytes, for reads that never come back here. Only where nothing can change
// (P27): KindNotSupported on a writable mount, and for files of more or less
// than one whole blob.
func (h *Handle) Backing(ctx context.Context) (Backing, error) {
	if !h.fs.o.ReadOnly {
		return nil, E("open", h.n.ino, "", KindNotSupported, nil)
	}
	a, err := h.fs.attr(ctx, h.n.ino)
	if err != nil {
		return nil, err
	}
	return h.fs.backing(ctx, h.fs.sourceOf(h.n.ino), a)
}

func (fs *FS) backing(ctx context.Context, src extentSource, a *Attr) (Backing, error) {
	list, err := src(ctx, 0, SizeMax, 2, false)
	if err != nil {
		return nil, err
	}
	if len(list) != 1 || list[0].Off != 0 || list[0].BlobOff != 0 || list[0].Len != a.Size || list[0].Blob.Size != a.Size {
		return nil, E("open", a.Ino, "", KindNotSupported, nil)
	}
	return fs.o.Content.Backing(ctx, list[0].Blob)
}
