package meta

import (
	"context"
	"strings"
)

// Lookup returns the inode that a name refers to, staged writes included.
// KindNotExist, KindNotDir, KindNameTooLong.
func (fs *FS) Lookup(ctx context.Context, parent Ino, name string) (Attr, error) {
	if len(name) > NameMax {
		return Attr{}, E("lookup", parent, "", KindNameTooLong, nil)
	}
	if err := fs.recent(ctx); err != nil {
		return Attr{}, err
	}
	a, err := fs.lookup(ctx, parent, name)
	if err != nil && KindOf(err) == KindNotExist && fs.Shared() {
		if err := fs.look(ctx); err != nil { // another daemon may have made it just now (P13)
			return Attr{}, err
		}
		return fs.lookup(ctx, parent, name)
	}
	return a, err
}

func (fs *FS) lookup(ctx context.Context, parent Ino, name string) (Attr, error) {
	names, key := fs.cache.name(parent, name), nameKey{parent, name}
	if n, ok := names.get(key); ok {
		fs.counters.nameHits.Add(1)
		if n.ino == 0 {
			return Attr{}, E("lookup", parent, name, KindNotExist, nil)
		}
		return fs.getAttr(ctx, n.ino)
	}
	if fs.known.absent(parent, name) {
		fs.counters.nameHits.Add(1)
		return Attr{}, E("lookup", parent, name, KindNotExist, nil)
	}
	fs.counters.nameMisses.Add(1)
	stamp := names.begin()
	a, err := fs.o.Store.Lookup(ctx, parent, name)
	if err != nil {
		if KindOf(err) == KindNotExist {
			names.fill(key, nameVal{}, stamp)
		}
		return Attr{}, err
	}
	names.fill(key, nameVal{a.Ino, a.Mode & ModeType}, stamp)
	fs.nodes.overlay(&a)
	return a, nil
}

// GetAttr returns an inode's attributes, staged writes included. An inode
// without names is found as long as it is open or history keeps it.
func (fs *FS) GetAttr(ctx context.Context, ino Ino) (Attr, error) {
	if err := fs.recent(ctx); err != nil {
		return Attr{}, err
	}
	return fs.getAttr(ctx, ino)
}

func (fs *FS) getAttr(ctx context.Context, ino Ino) (Attr, error) {
	a, err := fs.attr(ctx, ino)
	if err != nil {
		return Attr{}, err
	}
	out := *a
	fs.nodes.overlay(&out)
	return out, nil
}

// ReadDir appends to buf the entries of a directory with a cookie above after,
// about limit of them, ordered by cookie. Attributes include staged writes.
func (fs *FS) ReadDir(ctx context.Context, dir Ino, after uint64, limit int, attrs bool, buf []Entry) ([]Entry, error) {
	start, list := len(buf), fs.o.Store.List
	if fs.o.Far {
		list = fs.listAhead
	}
	buf, err := list(ctx, dir, after, limit, attrs, buf)
	if err != nil {
		return buf, err
	}
	if attrs {
		for i := start; i < len(buf); i++ {
			fs.nodes.overlay(&buf[i].Attr)
		}
	}
	return buf, nil
}

// Resolve walks a path from the root without following symbolic links. An
// empty path or "/" is the root; repeated slashes and "." count as nothing,
// ".." goes up.
func (fs *FS) Resolve(ctx context.Context, path string) (Attr, error) {
	a, err := fs.GetAttr(ctx, RootIno)
	for name := range strings.SplitSeq(path, "/") {
		if err != nil {
			return Attr{}, err
		}
		switch {
		case name == "" || name == ".":
		case !a.IsDir():
			return Attr{}, E("resolve", a.Ino, name, KindNotDir, nil)
		case name == "..":
			a, err = fs.GetAttr(ctx, a.Parent)
		default:
			a, err = fs.Lookup(ctx, a.Ino, name)
		}
	}
	return a, err
}

// StatFS is the answer of statfs(2).
type StatFS struct {
	BlockSize           uint32
	Blocks, Free, Avail uint64 // in BlockSize units
	Files, FilesFree    uint64
	NameMax             uint32
}

// StatFS reports real figures: what the disk under the store has, with history
// that may be reclaimed counted as free (P26).
func (fs *FS) StatFS(ctx context.Context) (StatFS, error) {
	space, err := fs.o.Content.Space(ctx)
	if err != nil {
		return StatFS{}, err
	}
	use, err := fs.o.Store.Usage(ctx)
	if err != nil {
		return StatFS{}, err
	}
	const block = 4096
	free := max(min(space.Free+use.HistoryBytes-reserveOf(space), space.Total), 0)
	// An inode here costs under 1 KiB of the database, not one of the disk's own.
	filesFree := uint64(free) / 1024
	return StatFS{
		BlockSize: block, Blocks: uint64(space.Total) / block,
		Free: uint64(free) / block, Avail: uint64(free) / block,
		Files: uint64(use.Inodes) + filesFree, FilesFree: filesFree, NameMax: NameMax,
	}, nil
}
