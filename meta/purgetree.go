package meta

import "context"

// purgePage is how many names of one directory are read at once.
const purgePage = 1024

// treePurger lets the history of a tree go.
type treePurger struct {
	*collector
	p    Retention
	seen map[Ino]bool // deleted inodes that were looked at: moved directories may hold each other's old names
}

// tree prunes the history of everything in a directory, and drops what was
// deleted in it. It goes down by a list through directories that are there, and
// by recursion through deleted ones, which go after what was in them.
func (t *treePurger) tree(ctx context.Context, top Ino) error {
	for dirs := []Ino{top}; len(dirs) > 0; {
		dir := dirs[len(dirs)-1]
		dirs = dirs[:len(dirs)-1]
		if err := t.purgeInode(ctx, t.p, dir); err != nil {
			return err
		}
		err := t.each(ctx, dir, func(ino Ino, isDir bool) error {
			if isDir {
				dirs = append(dirs, ino)
				return nil
			}
			return t.purgeInode(ctx, t.p, ino)
		})
		if err != nil {
			return err
		}
		if err := t.deletedIn(ctx, dir); err != nil {
			return err
		}
	}
	return nil
}

// each calls fn for what a directory holds.
func (t *treePurger) each(ctx context.Context, dir Ino, fn func(ino Ino, isDir bool) error) error {
	var page []Entry
	for after := uint64(0); ; after = page[len(page)-1].Cookie {
		var err error
		if page, err = t.fs.o.Store.List(ctx, dir, after, purgePage, false, page[:0]); err != nil {
			return err
		}
		for i := range page {
			if err := fn(page[i].Attr.Ino, page[i].Attr.IsDir()); err != nil {
				return err
			}
		}
		if len(page) < purgePage {
			return ctx.Err()
		}
	}
}

// deletedIn drops what was deleted in a directory. What stays is listed again,
// so the list is made longer until it ends.
func (t *treePurger) deletedIn(ctx context.Context, dir Ino) error {
	for limit := purgePage; ; {
		list, err := t.fs.o.History.Deleted(ctx, dir, limit)
		if err != nil {
			return err
		}
		fresh := false
		for _, d := range list {
			if t.seen[d.Ino] {
				continue
			}
			gone, err := t.endedHere(ctx, d)
			if err != nil {
				return err
			}
			if !gone {
				continue
			}
			t.seen[d.Ino], fresh = true, true
			if d.Type == ModeDir {
				if err := t.tree(ctx, d.Ino); err != nil {
					return err
				}
			}
			if err := t.dropDeleted(ctx, d.Ino); err != nil {
				return err
			}
		}
		switch {
		case len(list) < limit:
			return ctx.Err()
		case !fresh:
			limit *= 2
		}
	}
}

// endedHere says that an inode was deleted under this name: what was moved away
// and deleted elsewhere is not this directory's to purge.
func (t *treePurger) endedHere(ctx context.Context, d DeletedName) (bool, error) {
	a, err := t.fs.o.Store.Inode(ctx, d.Ino)
	if err != nil && KindOf(err) == KindNotExist {
		return false, nil
	}
	return err == nil && a.Nlink == 0 && a.Rev == d.End, err
}

// dropDeleted drops an inode without names; one that somebody may still have
// open it prunes.
func (t *treePurger) dropDeleted(ctx context.Context, ino Ino) error {
	a, err := t.fs.o.Store.Inode(ctx, ino)
	if err != nil {
		return err
	}
	if a.Rev <= t.p.Barrier && t.fs.unreachable(ctx, ino) {
		return t.drop(ctx, ino)
	}
	return t.purgeInode(ctx, t.p, ino)
}
