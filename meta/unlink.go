package meta

import "context"

// Unlink ends a name of anything but a directory. The inode stays as long as
// it has other names or open handles, or history keeps it. KindNotExist,
// KindIsDir.
func (fs *FS) Unlink(ctx context.Context, c Caller, parent Ino, name string) error {
	if err := fs.nameOp("unlink", parent, name); err != nil {
		return err
	}
	_, err := fs.commit(ctx, c, OriginKernel, unlinkRule(parent, name))
	return err
}

func unlinkRule(parent Ino, name string) plan {
	return func(v *view) (*Change, error) {
		dir, a, err := v.entry("unlink", parent, name)
		if err != nil {
			return nil, err
		}
		if a.IsDir() {
			return nil, E("unlink", parent, name, KindIsDir, nil)
		}
		after := *a
		after.Nlink--
		after.Ctime = v.now
		var before object
		before.dirTimes("p", dir).num("ctime", a.Ctime).num("nlink", int64(a.Nlink))
		return &Change{
			Record: Record{Kind: OpUnlink, Ino: a.Ino, Parent: parent, Name: name, Version: a.Version, Before: before.String()},
			Inodes: []InodeChange{{Before: a, After: after}},
			Dirs:   []DirDelta{{Ino: parent, Entries: -1, Time: v.now}},
			Names:  []NameChange{{Parent: parent, Name: name, Before: a.Ino, BeforeType: a.Mode & ModeType}},
		}, nil
	}
}

// Rmdir removes an empty directory. KindNotExist, KindNotDir, KindNotEmpty.
func (fs *FS) Rmdir(ctx context.Context, c Caller, parent Ino, name string) error {
	if err := fs.nameOp("rmdir", parent, name); err != nil {
		return err
	}
	_, err := fs.commit(ctx, c, OriginKernel, rmdirRule(parent, name))
	return err
}

func rmdirRule(parent Ino, name string) plan {
	return func(v *view) (*Change, error) {
		dir, a, err := v.entry("rmdir", parent, name)
		if err != nil {
			return nil, err
		}
		if !a.IsDir() {
			return nil, E("rmdir", parent, name, KindNotDir, nil)
		}
		if a.Entries != 0 {
			return nil, E("rmdir", parent, name, KindNotEmpty, nil)
		}
		var before object
		before.dirTimes("p", dir).num("ctime", a.Ctime).num("nlink", int64(a.Nlink))
		return &Change{
			Record: Record{Kind: OpRmdir, Ino: a.Ino, Parent: parent, Name: name, Before: before.String()},
			Inodes: []InodeChange{{Before: a, After: a.removed(v.now)}},
			Dirs:   []DirDelta{{Ino: parent, Entries: -1, Nlink: -1, Time: v.now}},
			Names:  []NameChange{{Parent: parent, Name: name, Before: a.Ino, BeforeType: ModeDir}},
		}, nil
	}
}

// removed is the image of an inode that loses one name; of a directory, its only one.
func (a *Attr) removed(now int64) Attr {
	after := *a
	after.Ctime = now
	if a.IsDir() {
		after.Nlink = 0
	} else {
		after.Nlink--
	}
	return after
}

// nameOp is what every operation on a name checks before it is queued.
func (fs *FS) nameOp(op string, parent Ino, name string) error {
	if err := fs.writable(op); err != nil {
		return err
	}
	return checkName(op, parent, name)
}

// entry returns a living directory and the inode that a name in it refers to.
func (v *view) entry(op string, parent Ino, name string) (dir, a *Attr, err error) {
	if dir, err = v.dir(op, parent); err != nil {
		return nil, nil, err
	}
	a, err = v.child(op, parent, name)
	return dir, a, err
}

// Link gives an inode another name. KindPerm for a directory, KindTooManyLinks,
// KindExist, KindNotExist when the inode has lost its last name.
func (fs *FS) Link(ctx context.Context, c Caller, ino, parent Ino, name string) (Attr, error) {
	if err := fs.nameOp("link", parent, name); err != nil {
		return Attr{}, err
	}
	var after Attr
	res, err := fs.commit(ctx, c, OriginKernel, func(v *view) (*Change, error) {
		dir, err := v.dir("link", parent)
		if err != nil {
			return nil, err
		}
		a, err := v.inode(ino)
		if err != nil {
			return nil, err
		}
		old, err := v.lookup(parent, name)
		switch {
		case err != nil:
			return nil, err
		case a.IsDir():
			return nil, E("link", ino, name, KindPerm, nil)
		case old.ino != 0:
			return nil, E("link", parent, name, KindExist, nil)
		case a.Nlink >= LinkMax:
			return nil, E("link", ino, name, KindTooManyLinks, nil)
		case a.Nlink == 0 && !fs.linkable(ino):
			return nil, E("link", ino, name, KindNotExist, nil)
		}
		after = *a
		after.Nlink++
		after.Ctime = v.now
		var before object
		before.dirTimes("p", dir).num("ctime", a.Ctime).num("nlink", int64(a.Nlink))
		return &Change{
			Record: Record{Kind: OpLink, Ino: ino, Parent: parent, Name: name, Before: before.String()},
			Inodes: []InodeChange{{Before: a, After: after}},
			Dirs:   []DirDelta{{Ino: parent, Entries: 1, Time: v.now}},
			Names:  []NameChange{{Parent: parent, Name: name, After: ino, AfterType: a.Mode & ModeType}},
		}, nil
	})
	if err != nil {
		return Attr{}, err
	}
	after.Rev = res.Rev
	fs.nodes.overlay(&after)
	return after, nil
}

// linkable reports whether an inode without names may get one: it is open, so
// it was made by Tmpfile. (The kernel refuses to link what was unlinked.)
func (fs *FS) linkable(ino Ino) bool { return fs.hasHandles(ino) }
