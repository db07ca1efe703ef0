package meta

import (
	"context"
	"errors"
)

// Named limits of defragmentation (P27).
const (
	piecesPerMiB  = 64 // more make a file worth rewriting
	defragFiles   = 8  // files of one pass
	defragBytes   = 64 << 20
	defragKeepMin = 4 // pieces of a chunk that are not worth a rewrite
)

// defragmentSome rewrites fragmented files as few large blobs, a bounded
// amount at a time.
func (fs *FS) defragmentSome(ctx context.Context) error {
	list, err := fs.o.Upkeep.Fragmented(ctx, piecesPerMiB, defragFiles)
	if err != nil {
		return err
	}
	budget := int64(defragBytes)
	for _, ino := range list {
		n, err := fs.defragment(ctx, ino, budget)
		if errors.Is(err, errMoved) || err != nil && KindOf(err) == KindNotExist {
			continue // somebody writes to it, or it is gone: not now
		}
		if err != nil {
			return err
		}
		if budget -= n; budget <= 0 {
			return nil
		}
	}
	return nil
}

// defragment rewrites up to budget bytes of a file's fragmented chunks and
// returns how many it rewrote.
func (fs *FS) defragment(ctx context.Context, ino Ino, budget int64) (int64, error) {
	a, err := fs.attr(ctx, ino)
	if err != nil {
		return 0, err
	}
	done := int64(0)
	for off := int64(0); off < a.Size && done < budget; off += BlobMax {
		// Where the next extent is, so that holes cost nothing.
		next, err := fs.o.Store.Extents(ctx, ino, off, SizeMax, 1, false)
		if err != nil {
			return done, err
		}
		if len(next) == 0 {
			break
		}
		off = max(off, next[0].Off-next[0].Off%BlobMax)
		n, err := fs.defragmentChunk(ctx, ino, off)
		if err != nil {
			return done, err
		}
		done += n
	}
	return done, nil
}

// defragmentChunk rewrites one chunk as one blob per run of data without
// holes. It is no version and changes nothing that a user sees; should the
// file change meanwhile, nothing happens (errMoved).
func (fs *FS) defragmentChunk(ctx context.Context, ino Ino, off int64) (int64, error) {
	a, err := fs.attr(ctx, ino)
	if err != nil {
		return 0, err
	}
	rev, end := a.Rev, min(chunkEnd(off), a.Size)
	list, err := collectExtents(ctx, fs.sourceOf(ino), off, end, inlineWindow, true)
	if err != nil || len(list) <= defragKeepMin {
		return 0, err
	}
	f := flight{n: &node{ino: ino}}
	buf := newBuffer(end - off)
	defer buf.free()
	bytes, err := f.rewrite(ctx, fs, list, off, end, buf)
	if err == nil && len(f.extents) < len(list) {
		err = fs.commitRewrite(ctx, &f, rev, len(list))
	} else if err == nil {
		err = errMoved // nothing to gain
	}
	var free []Blob
	for _, h := range f.held {
		if fs.superfluous(ctx, h, err == nil) {
			free = append(free, h.blob)
		}
	}
	fs.freeBlobs(ctx, free)
	return bytes, err
}

// rewrite stores the data of a chunk's extents as new blobs.
func (f *flight) rewrite(ctx context.Context, fs *FS, list []Extent, off, end int64, buf *buffer) (int64, error) {
	var data []hole
	for i := range list {
		data = append(data, hole{max(list[i].Off, off), min(list[i].Off+list[i].Len, end)})
	}
	bytes := int64(0)
	for _, d := range joinRanges(data) {
		p := buf.b[d.off-off : d.end-off]
		if err := fs.fillFrom(ctx, overlapping(list, d.off, d.end), d.off, p); err != nil {
			return bytes, err
		}
		bytes += int64(len(p))
		if len(p) <= InlineMax {
			f.inline(fs, d.off, p)
			continue
		}
		b, err := f.put(ctx, fs, p)
		if err != nil {
			return bytes, err
		}
		f.extents = append(f.extents, Extent{Off: d.off, Len: int64(len(p)), Blob: b})
	}
	return bytes, nil
}

// commitRewrite replaces the extents, unless the file changed since rev.
func (fs *FS) commitRewrite(ctx context.Context, f *flight, rev Rev, pieces int) error {
	ino := f.n.ino
	if err := fs.syncFirst(ctx, f.blobs); err != nil {
		return err
	}
	_, err := fs.commit(ctx, Caller{}, OriginKernel, func(v *view) (*Change, error) {
		before, err := v.inode(ino)
		if err != nil {
			return nil, err
		}
		if before.Rev != rev {
			return nil, errMoved
		}
		var o object
		o.num("compacted", int64(pieces)).num("pieces", int64(len(f.extents)))
		return &Change{
			Record:  Record{Kind: OpWriteStream, Ino: ino, Version: before.Version, Size: before.Size, After: o.String()},
			Inodes:  []InodeChange{{Before: before, After: *before}},
			Content: &ContentChange{Ino: ino, Ranges: rangesOf(f.extents), Blobs: f.blobs},
		}, nil
	})
	if err != nil {
		return err
	}
	fs.unmapOpen(ino)
	return nil
}
