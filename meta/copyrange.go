package meta

import (
	"context"
	"errors"
)

// copyStep is how many extents one operation of a CopyRange shares.
const copyStep = 1024

// errMoved says that a file changed between the look at it and the commit.
var errMoved = errors.New("content changed meanwhile")

// CopyRange makes [offOut, offOut+n) of one file share the content of
// [offIn, offIn+n) of another, or of another part of the same one: no bytes
// are copied (copy_file_range(2)). It stops at the source's end and returns
// how much it did. KindInvalid when ranges of one file overlap, KindTooBig,
// KindBadHandle.
func (fs *FS) CopyRange(ctx context.Context, c Caller, in *Handle, offIn int64, out *Handle, offOut, n int64) (int64, error) {
	if err := out.mayWrite("copy_file_range"); err != nil {
		return 0, err
	}
	if in == nil || in.released.Load() || !in.flags.Read {
		return 0, E("copy_file_range", 0, "", KindBadHandle, nil)
	}
	if offIn < 0 || offOut < 0 || n < 0 {
		return 0, E("copy_file_range", in.n.ino, "", KindInvalid, nil)
	}
	for _, h := range []*Handle{in, out} {
		if err := fs.settleStaged(ctx, c, h.n.ino); err != nil {
			return 0, err
		}
	}
	a, err := fs.attr(ctx, in.n.ino)
	if err != nil {
		return 0, err
	}
	n = min(n, a.Size-offIn)
	if n <= 0 {
		return 0, nil
	}
	if in.n == out.n && offIn < offOut+n && offOut < offIn+n {
		return 0, E("copy_file_range", in.n.ino, "", KindInvalid, nil)
	}
	if offOut > SizeMax-n {
		return 0, E("copy_file_range", out.n.ino, "", KindTooBig, nil)
	}
	if err := fs.dropForWriter(ctx, c, out.n.ino); err != nil {
		return 0, err
	}
	done, tries := int64(0), 0
	for done < n {
		step, err := fs.copyStep(ctx, c, in, offIn+done, out, offOut+done, n-done)
		if tries++; errors.Is(err, errMoved) && tries < maxRetries {
			continue
		}
		if err != nil || step == 0 {
			if done > 0 || err == nil {
				return done, nil
			}
			if errors.Is(err, errMoved) {
				err = E("copy_file_range", in.n.ino, "", KindBusy, nil)
			}
			return 0, err
		}
		done, tries = done+step, 0
	}
	return done, nil
}

// copyStep commits one bounded part of a copy and returns its length. The
// blobs that it shares are in use by the source when the rule runs, so none of
// them can be under collection.
func (fs *FS) copyStep(ctx context.Context, c Caller, in *Handle, offIn int64, out *Handle, offOut, n int64) (int64, error) {
	src, err := fs.attr(ctx, in.n.ino)
	if err != nil {
		return 0, err
	}
	rev := src.Rev // a compaction changes it too, and takes blobs out of use
	if n = min(n, src.Size-offIn); n <= 0 {
		return 0, nil
	}
	list, err := fs.o.Store.Extents(ctx, in.n.ino, offIn, offIn+n, copyStep, false)
	if err != nil {
		return 0, err
	}
	if len(list) == copyStep {
		n = min(n, list[len(list)-1].Off+list[len(list)-1].Len-offIn)
	}
	shared := shiftExtents(list, offIn, n, offOut-offIn)
	same := in.n == out.n
	_, err = fs.commit(ctx, c, OriginKernel, func(v *view) (*Change, error) {
		now, err := v.inode(in.n.ino)
		if err != nil {
			return nil, err
		}
		if now.Rev != rev {
			return nil, errMoved
		}
		before := now
		if !same {
			if before, err = v.inode(out.n.ino); err != nil {
				return nil, err
			}
		}
		after := *before
		after.Size = max(before.Size, offOut+n)
		after.Mtime, after.Ctime, after.ContentRev = v.now, v.now, RevPending
		version := fs.versionFor(before, out)
		version.Size, after.Version = after.Size, version.N
		b, a := diff(before, &after)
		a.num("source", int64(in.n.ino)).num("source_off", offIn).num("off", offOut).num("len", n)
		return &Change{
			Record: Record{Kind: OpCopyRange, Ino: before.Ino, Version: after.Version, Size: after.Size, Before: b.String(), After: a.String()},
			Inodes: []InodeChange{{Before: before, After: after}},
			Content: &ContentChange{Ino: before.Ino, Fresh: before.Size == 0,
				Ranges: []RangeChange{{Off: offOut, Len: n, Extents: shared}}},
			Version: &version,
		}, nil
	})
	return n, err
}

// shiftExtents cuts extents to [off, off+n) and moves them by delta.
func shiftExtents(list []Extent, off, n, delta int64) []Extent {
	out := make([]Extent, 0, len(list))
	for _, e := range list {
		from, to := max(e.Off, off), min(e.Off+e.Len, off+n)
		if from >= to {
			continue
		}
		out = append(out, Extent{Off: from + delta, Len: to - from, Blob: e.Blob, BlobOff: e.BlobOff + from - e.Off})
	}
	return out
}
