package meta

import (
	"context"
	"errors"
	"sync"
)

// restoreMax is how many extents a version may have to be restored: all of
// them are one operation.
const restoreMax = 1 << 17

// Versions lists the versions of a file, oldest first.
func (fs *FS) Versions(ctx context.Context, ino Ino) ([]Version, error) {
	return fs.o.History.Versions(ctx, ino)
}

// VersionHandle reads one version of a file: what it held then, whatever
// happens to it now. Methods may be called concurrently.
type VersionHandle struct {
	fs   *FS
	attr Attr
	n    int64
	rev  Rev

	mu  sync.Mutex
	m   *mapping // guarded by mu
	end bool     // guarded by mu: closed
}

// OpenVersion opens version n of a file. KindNotExist when it never was, or
// retention let it go.
func (fs *FS) OpenVersion(ctx context.Context, ino Ino, n int64) (*VersionHandle, error) {
	v, err := fs.version(ctx, ino, n)
	if err != nil {
		return nil, err
	}
	a, err := fs.o.History.InodeAt(ctx, ino, v.Rev)
	if err != nil {
		return nil, err
	}
	a.Size, a.Version = v.Size, v.N
	return &VersionHandle{fs: fs, attr: a, n: n, rev: v.Rev}, nil
}

func (fs *FS) version(ctx context.Context, ino Ino, n int64) (Version, error) {
	list, err := fs.o.History.Versions(ctx, ino)
	if err != nil {
		return Version{}, err
	}
	for _, v := range list {
		if v.N == n {
			return v, nil
		}
	}
	return Version{}, E("version", ino, "", KindNotExist, nil)
}

// sourceAt reads a file's extents as of a revision.
func (fs *FS) sourceAt(ino Ino, at Rev) extentSource {
	return func(ctx context.Context, off, end int64, limit int, inline bool) ([]Extent, error) {
		return fs.o.History.ExtentsAt(ctx, ino, at, off, end, limit, inline)
	}
}

// Attr returns the file's attributes as they were.
func (h *VersionHandle) Attr() Attr { return h.attr }

// Size returns the version's length in bytes.
func (h *VersionHandle) Size() int64 { return h.attr.Size }

// Close ends the handle.
func (h *VersionHandle) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.m, h.end = nil, true
	return nil
}

// Read fills p with the version's bytes from off on and returns how many there
// were. KindStale when retention let the version go meanwhile, KindDamaged.
func (h *VersionHandle) Read(ctx context.Context, off int64, p []byte) (int, error) {
	if off < 0 {
		return 0, E("read", h.attr.Ino, "", KindInvalid, nil)
	}
	if off >= h.attr.Size {
		return 0, nil
	}
	p = p[:min(int64(len(p)), h.attr.Size-off)]
	src, end := h.fs.sourceAt(h.attr.Ino, h.rev), off+int64(len(p))
	list, err := h.extents(ctx, src, off, end)
	if err != nil {
		return 0, err
	}
	if err = h.fs.fillFrom(ctx, list, off, p); err == nil {
		return len(p), nil
	}
	// The blobs may have been moved, or be gone with the version.
	if _, verr := h.fs.version(ctx, h.attr.Ino, h.n); KindOf(verr) == KindNotExist && verr != nil {
		return 0, E("read", h.attr.Ino, "", KindStale, err)
	}
	if list, err = collectExtents(ctx, src, off, end, inlineWindow, true); err != nil {
		return 0, err
	}
	if err = h.fs.unreadable(h.attr.Ino, h.fs.fillFrom(ctx, list, off, p)); err != nil {
		return 0, err
	}
	return len(p), nil
}

// extents returns the version's extents in [off, end), with inline bytes.
func (h *VersionHandle) extents(ctx context.Context, src extentSource, off, end int64) ([]Extent, error) {
	h.mu.Lock()
	m, closed := h.m, h.end
	h.mu.Unlock()
	if closed {
		return nil, E("read", h.attr.Ino, "", KindBadHandle, nil)
	}
	if m.covers(h.attr.ContentRev, off, end) {
		if list := overlapping(m.extents, off, end); !hasInline(list) {
			return list, nil
		}
		return collectExtents(ctx, src, off, end, inlineWindow, true)
	}
	m, err := window(ctx, src, &h.attr, off, firstWindow, true)
	if err != nil {
		return nil, err
	}
	if !m.covers(h.attr.ContentRev, off, end) {
		return collectExtents(ctx, src, off, end, inlineWindow, true)
	}
	h.mu.Lock()
	h.m = m.lean()
	h.mu.Unlock()
	return overlapping(m.extents, off, end), nil
}

// Backing opens the file of the content store that holds exactly this
// version's bytes; KindNotSupported when there is none (P27).
func (h *VersionHandle) Backing(ctx context.Context) (Backing, error) {
	return h.fs.backing(ctx, h.fs.sourceAt(h.attr.Ino, h.rev), &h.attr)
}

// Restore makes the content of version n a file's new version; what it has now
// stays in its history. KindNotExist when there is no such version.
func (fs *FS) Restore(ctx context.Context, c Caller, ino Ino, n int64) error {
	if err := fs.writable("restore"); err != nil {
		return err
	}
	if err := fs.settleStaged(ctx, c, ino); err != nil {
		return err
	}
	var err error
	for range 3 { // retention may take blobs away between the look and the commit
		if err = fs.restore(ctx, c, ino, n); err == nil || KindOf(err) != KindBusy {
			return err
		}
	}
	return err
}

func (fs *FS) restore(ctx context.Context, c Caller, ino Ino, n int64) error {
	old, err := fs.version(ctx, ino, n)
	if err != nil {
		return err
	}
	var list []Extent
	src := fs.sourceAt(ino, old.Rev)
	for off := int64(0); off < old.Size; {
		part, err := src(ctx, off, old.Size, copyStep, false)
		if err != nil {
			return err
		}
		list = append(list, shiftExtents(part, 0, old.Size, 0)...)
		if len(part) < copyStep {
			break
		}
		off = part[len(part)-1].Off + part[len(part)-1].Len
		if len(list) > restoreMax {
			return E("restore", ino, "", KindTooBig, errors.New("the version has too many pieces; copy it by reading it"))
		}
	}
	_, err = fs.commit(ctx, c, OriginCommand, func(v *view) (*Change, error) {
		before, err := v.inode(ino)
		if err != nil {
			return nil, err
		}
		after := *before
		after.Size, after.Mtime, after.Ctime, after.ContentRev = old.Size, v.now, v.now, RevPending
		version := fs.versionFor(before, nil)
		version.Size, after.Version = old.Size, version.N
		b, a := diff(before, &after)
		a.num("restored", n)
		return &Change{
			Record:  Record{Kind: OpRestore, Ino: ino, Version: after.Version, Size: after.Size, Before: b.String(), After: a.String()},
			Inodes:  []InodeChange{{Before: before, After: after}},
			Content: &ContentChange{Ino: ino, Ranges: []RangeChange{{Off: 0, Len: SizeMax, Extents: list}}},
			Version: &version,
		}, nil
	})
	return err
}

// Undelete gives a deleted inode a name in dir again: asName, or its old one.
// A directory comes back empty; its contents are deleted names of their own.
// KindExist when the name is taken or the inode has a name already,
// KindNotExist when retention let it go.
func (fs *FS) Undelete(ctx context.Context, c Caller, dir Ino, d DeletedName, asName string) (Attr, error) {
	if asName == "" {
		asName = d.Name
	}
	if err := fs.nameOp("restore", dir, asName); err != nil {
		return Attr{}, err
	}
	var after Attr
	res, err := fs.commit(ctx, c, OriginCommand, func(v *view) (*Change, error) {
		parent, err := v.dir("restore", dir)
		if err != nil {
			return nil, err
		}
		before, err := v.inode(d.Ino)
		if err != nil {
			return nil, err
		}
		old, err := v.lookup(dir, asName)
		switch {
		case err != nil:
			return nil, err
		case old.ino != 0:
			return nil, E("restore", dir, asName, KindExist, nil)
		case before.Nlink != 0:
			return nil, E("restore", d.Ino, asName, KindExist, errors.New("it has a name already"))
		}
		after = *before
		after.Nlink, after.Ctime = 1, v.now
		delta := DirDelta{Ino: dir, Entries: 1, Time: v.now}
		if before.IsDir() {
			after.Nlink, after.Parent, delta.Nlink = 2, dir, 1
		}
		var b object
		b.dirTimes("p", parent).num("ctime", before.Ctime).num("nlink", 0)
		return &Change{
			Record: Record{Kind: OpRestore, Ino: d.Ino, Parent: dir, Name: asName, Version: before.Version, Size: before.Size, Before: b.String()},
			Inodes: []InodeChange{{Before: before, After: after}},
			Dirs:   []DirDelta{delta},
			Names:  []NameChange{{Parent: dir, Name: asName, After: d.Ino, AfterType: before.Mode & ModeType}},
		}, nil
	})
	if err != nil {
		return Attr{}, err
	}
	after.Rev = res.Rev
	return after, nil
}
