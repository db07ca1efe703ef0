package meta

import "context"

// Named limits of removing a tree.
const (
	removePage   = 1024 // entries listed at once
	removeRounds = 8    // times that a directory is emptied anew because others fill it
)

// RemoveTree removes a name and, of a directory, everything below it, each name
// by an operation of its own with its record, many in one transaction. It does
// what rm -r does, without a request of the kernel per name. progress, which may
// be nil, is told how many names are gone; they stay gone when an error or the
// end of ctx stops it. KindNotExist; KindNotEmpty when others keep filling a
// directory.
func (fs *FS) RemoveTree(ctx context.Context, c Caller, parent Ino, name string, progress func(removed int64)) (removed int64, err error) {
	if err := fs.nameOp("remove", parent, name); err != nil {
		return 0, err
	}
	if err := fs.fresh(ctx); err != nil {
		return 0, err
	}
	n, err := fs.nameOf(ctx, parent, name)
	if err != nil {
		return 0, err
	}
	if n.ino == 0 {
		return 0, E("remove", parent, name, KindNotExist, nil)
	}
	t := treeRemover{fs: fs, caller: c, progress: progress}
	err = t.remove(ctx, parent, []Entry{{Name: name, Attr: Attr{Ino: n.ino, Mode: n.mode}}})
	return t.removed, err
}

type treeRemover struct {
	fs       *FS
	caller   Caller
	progress func(int64)
	removed  int64
}

// remove removes some entries of a directory: what is in the directories among
// them first, then all of them at once.
func (t *treeRemover) remove(ctx context.Context, parent Ino, list []Entry) error {
	plans := make([]plan, 0, len(list))
	for i := range list {
		if list[i].Attr.IsDir() {
			if err := t.empty(ctx, list[i].Attr.Ino); err != nil {
				return err
			}
			plans = append(plans, rmdirRule(parent, list[i].Name))
		} else {
			plans = append(plans, unlinkRule(parent, list[i].Name))
		}
	}
	for round := 1; len(plans) > 0; round++ {
		if err := ctx.Err(); err != nil {
			return E("remove", parent, "", KindInterrupted, err)
		}
		again, err := t.commit(ctx, plans)
		if err != nil && (KindOf(err) != KindNotEmpty || round == removeRounds) {
			return err
		}
		if plans = again; len(plans) == 0 {
			return nil
		}
		for i := range list { // somebody has made a name in one of these meanwhile
			if list[i].Attr.IsDir() {
				if err := t.empty(ctx, list[i].Attr.Ino); err != nil && KindOf(err) != KindNotExist {
					return err
				}
			}
		}
	}
	return nil
}

// commit runs plans and returns those that found a directory which is not
// empty. A name that is gone already is no error.
func (t *treeRemover) commit(ctx context.Context, plans []plan) (again []plan, err error) {
	var errs []error
	for i, e := range t.fs.commitAll(ctx, t.caller, OriginCommand, plans) {
		switch {
		case e == nil:
			t.removed++
		case KindOf(e) == KindNotExist:
		case KindOf(e) == KindNotEmpty:
			again = append(again, plans[i])
			err = e
		default:
			errs = append(errs, e)
		}
	}
	if t.progress != nil {
		t.progress(t.removed)
	}
	if len(errs) > 0 {
		return nil, errs[0]
	}
	return again, err
}

// empty removes everything in a directory.
func (t *treeRemover) empty(ctx context.Context, dir Ino) error {
	var buf []Entry
	for after := uint64(0); ; {
		list, err := t.fs.listKnown(ctx, dir, after, removePage, buf[:0])
		if err != nil {
			return err
		}
		if len(list) == 0 {
			return nil
		}
		after = list[len(list)-1].Cookie
		if err := t.remove(ctx, dir, list); err != nil {
			return err
		}
		if buf = list; len(list) < removePage {
			return nil
		}
	}
}

// listKnown lists a directory with attributes and keeps what it has read, so
// that rules which follow need not ask for it one by one.
func (fs *FS) listKnown(ctx context.Context, dir Ino, after uint64, limit int, buf []Entry) ([]Entry, error) {
	var attrs, names [cacheShards]uint64
	for i := range attrs {
		attrs[i], names[i] = fs.cache.attrs[i].begin(), fs.cache.names[i].begin()
	}
	list, err := fs.o.Store.List(ctx, dir, after, limit, true, buf)
	if err != nil {
		return nil, err
	}
	for i := range list {
		e := &list[i]
		a := e.Attr
		fs.cache.attr(a.Ino).fill(a.Ino, &a, attrs[a.Ino%cacheShards])
		shard := nameShard(dir, e.Name)
		fs.cache.names[shard].fill(nameKey{dir, e.Name}, nameVal{a.Ino, a.Mode & ModeType}, names[shard])
	}
	return list, nil
}
