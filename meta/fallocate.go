package meta

import "context"

// FallocMode is the mode of fallocate(2), with Linux's values.
type FallocMode uint32

// Modes of Fallocate. PunchHole needs KeepSize beside it.
const (
	FallocKeepSize  FallocMode = 0x01
	FallocPunchHole FallocMode = 0x02
	FallocZeroRange FallocMode = 0x10
)

// Fallocate reserves (mode 0 or KeepSize), punches out or zeroes [off, off+n)
// as fallocate(2) does on ext4. Space is not set aside, since content is kept
// by what it is; but a reservation larger than the free space fails now
// rather than the writes later. KindInvalid, KindTooBig, KindNoSpace,
// KindNotSupported for other modes, KindBadHandle.
func (h *Handle) Fallocate(ctx context.Context, c Caller, off, n int64, mode FallocMode) error {
	fs := h.fs
	if err := h.mayWrite("fallocate"); err != nil {
		return err
	}
	ino := h.n.ino
	switch mode {
	case 0, FallocKeepSize, FallocPunchHole | FallocKeepSize, FallocZeroRange, FallocZeroRange | FallocKeepSize:
	default:
		return E("fallocate", ino, "", KindNotSupported, nil)
	}
	if off < 0 || n <= 0 {
		return E("fallocate", ino, "", KindInvalid, nil)
	}
	if off > SizeMax-n {
		return E("fallocate", ino, "", KindTooBig, nil)
	}
	if mode&^FallocKeepSize == 0 {
		if err := fs.roomFor(ctx, ino, off, n); err != nil {
			return err
		}
	}
	if err := fs.settleStaged(ctx, c, ino); err != nil {
		return err
	}
	if err := fs.dropForWriter(ctx, c, ino); err != nil {
		return err
	}
	_, err := fs.commit(ctx, c, OriginKernel, func(v *view) (*Change, error) {
		return h.fallocate(v, off, n, mode)
	})
	return err
}

// roomFor refuses to reserve what the disk does not have.
func (fs *FS) roomFor(ctx context.Context, ino Ino, off, n int64) error {
	a, err := fs.attr(ctx, ino)
	if err != nil {
		return err
	}
	if off+n <= a.Size && a.Bytes >= a.Size {
		return nil // all of it is there
	}
	space, err := fs.o.Content.Space(ctx)
	if err != nil {
		return err
	}
	if n > space.Free-reserveOf(space) {
		return E("fallocate", ino, "", KindNoSpace, nil)
	}
	return nil
}

// fallocate is the rule of Fallocate.
func (h *Handle) fallocate(v *view, off, n int64, mode FallocMode) (*Change, error) {
	before, err := v.inode(h.n.ino)
	if err != nil {
		return nil, err
	}
	after := *before
	after.Ctime = v.now
	ch := &Change{Record: Record{Kind: OpFallocate, Ino: before.Ino}}
	if mode&FallocKeepSize == 0 {
		after.Size = max(before.Size, off+n)
	}
	end := min(off+n, before.Size)
	if zeroed := mode&(FallocPunchHole|FallocZeroRange) != 0; zeroed {
		after.Mtime = v.now
		if off < end {
			ch.Content = &ContentChange{Ino: before.Ino, Ranges: []RangeChange{{Off: off, Len: end - off}}}
		}
	}
	if ch.Content != nil || after.Size != before.Size {
		after.Mtime, after.ContentRev = v.now, RevPending
		version := h.fs.versionFor(before, h)
		version.Size, after.Version = after.Size, version.N
		ch.Version = &version
	}
	b, a := diff(before, &after)
	if ch.Content != nil {
		a.num("off", off).num("len", end-off)
	}
	ch.Record.Version, ch.Record.Size = after.Version, after.Size
	ch.Record.Before, ch.Record.After = b.String(), a.String()
	ch.Inodes = []InodeChange{{Before: before, After: after}}
	return ch, nil
}
