package meta

import "context"

// checkName refuses what cannot be a name.
func checkName(op string, parent Ino, name string) error {
	switch {
	case len(name) > NameMax:
		return E(op, parent, "", KindNameTooLong, nil)
	case name == "" || name == "." || name == "..":
		return E(op, parent, name, KindInvalid, nil)
	}
	for i := range len(name) {
		if name[i] == '/' || name[i] == 0 {
			return E(op, parent, name, KindInvalid, nil)
		}
	}
	return nil
}

// newInode is what the operations that make an object have in common.
type newInode struct {
	op     OpKind
	parent Ino
	name   string // "": without a name (O_TMPFILE)
	mode   uint32 // type and permission bits
	umask  uint32
	rdev   uint32
	target string
	whole  *Object // made with these attributes and this content; nil: as the kernel asks for it
}

// make commits one new object and returns its attributes.
func (fs *FS) make(ctx context.Context, c Caller, n newInode) (Attr, error) {
	if err := fs.writable(n.op.String()); err != nil {
		return Attr{}, err
	}
	if n.name != "" || n.op != OpCreate {
		if err := checkName(n.op.String(), n.parent, n.name); err != nil {
			return Attr{}, err
		}
	}
	room := int64(nameCost)
	if n.whole != nil {
		room += int64(len(n.whole.Content))
	}
	if err := fs.takeRoom(ctx, n.op.String(), n.parent, room); err != nil {
		return Attr{}, err
	}
	ino, err := fs.inos.take(ctx, fs.o.Sessions)
	if err != nil {
		return Attr{}, err
	}
	var made Attr
	res, err := fs.commit(ctx, c, OriginKernel, func(v *view) (*Change, error) {
		ch, err := n.change(v, c, ino)
		if err == nil {
			made = ch.Inodes[0].After
		}
		return ch, err
	})
	if err != nil {
		return Attr{}, err
	}
	made.Rev = res.Rev
	if made.ContentRev == RevPending {
		made.ContentRev = res.Rev
	}
	return made, nil
}

// change builds the operation's rows.
func (n *newInode) change(v *view, c Caller, ino Ino) (*Change, error) {
	op := n.op.String()
	dir, err := v.dir(op, n.parent)
	if err != nil {
		return nil, err
	}
	if n.name != "" {
		if old, err := v.lookup(n.parent, n.name); err != nil {
			return nil, err
		} else if old.ino != 0 {
			return nil, E(op, n.parent, n.name, KindExist, nil)
		}
	}
	a := Attr{
		Ino: ino, Mode: n.mode, Nlink: 1, UID: c.UID, GID: c.GID, Rdev: n.rdev,
		Size: int64(len(n.target)), Creator: int64(c.UID),
		Atime: v.now, Mtime: v.now, Ctime: v.now, Btime: v.now,
	}
	isDir := a.IsDir()
	if dir.Mode&ModeSetgid != 0 {
		a.GID = dir.GID
		if isDir {
			a.Mode |= ModeSetgid
		}
	}
	ch := &Change{Inodes: make([]InodeChange, 1, 2)}
	if n.whole != nil {
		n.whole.fill(v.fs, &a, ch)
	} else if err := n.inherit(v, dir, &a, ch); err != nil {
		return nil, err
	}
	if isDir {
		a.Nlink, a.Parent = 2, n.parent
	}
	if a.IsRegular() {
		a.Version, a.ContentRev = 1, RevPending
		ch.Version = &VersionChange{Ino: ino, N: 1, New: true, Size: a.Size}
		ch.Record.Version = 1
	}
	ch.Record.Kind, ch.Record.Ino = n.op, ino
	var before, after object
	after.num("mode", int64(a.Mode)).num("uid", int64(a.UID)).num("gid", int64(a.GID))
	if n.target != "" {
		after.hex("target", []byte(n.target))
	}
	if n.rdev != 0 {
		after.num("rdev", int64(n.rdev))
	}
	ch.Record.After = after.String()
	if n.name == "" {
		a.Nlink = 0
		ch.Inodes[0] = InodeChange{After: a}
		return ch, nil
	}
	ch.Inodes[0] = InodeChange{After: a, Target: n.target}
	ch.Record.Parent, ch.Record.Name = n.parent, n.name
	ch.Record.Before = before.dirTimes("p", dir).String()
	ch.Names = []NameChange{{Parent: n.parent, Name: n.name, After: ino, AfterType: a.Mode & ModeType}}
	d := DirDelta{Ino: n.parent, Entries: 1, Time: v.now}
	if isDir {
		d.Nlink = 1
	}
	ch.Dirs = []DirDelta{d}
	return ch, nil
}

// CreateArgs are the arguments of Create and Tmpfile.
type CreateArgs struct {
	Mode  uint32 // permission bits, umask not applied
	Umask uint32
	Flags OpenFlags
}

// Create makes a regular file and opens it. Where the name exists, KindExist
// with Flags.Excl set; otherwise that file is opened (KindIsDir for a directory).
func (fs *FS) Create(ctx context.Context, c Caller, parent Ino, name string, a CreateArgs) (Attr, *Handle, error) {
	for {
		attr, err := fs.make(ctx, c, newInode{op: OpCreate, parent: parent, name: name,
			mode: ModeRegular | a.Mode&ModePerm, umask: a.Umask})
		if err == nil {
			return attr, fs.newHandle(attr.Ino, a.Flags, c), nil
		}
		if a.Flags.Excl || KindOf(err) != KindExist {
			return Attr{}, nil, err
		}
		old, err := fs.Lookup(ctx, parent, name)
		if KindOf(err) == KindNotExist && err != nil {
			continue // it went away meanwhile
		}
		if err != nil {
			return Attr{}, nil, err
		}
		if old.IsDir() {
			return Attr{}, nil, E("create", parent, name, KindIsDir, nil)
		}
		h, err := fs.OpenFile(ctx, c, old.Ino, a.Flags)
		if err != nil {
			return Attr{}, nil, err
		}
		old, err = fs.GetAttr(ctx, old.Ino)
		return old, h, err
	}
}

// Tmpfile makes a regular file without a name (O_TMPFILE) and opens it; Link
// may give it one while it is open.
func (fs *FS) Tmpfile(ctx context.Context, c Caller, parent Ino, a CreateArgs) (Attr, *Handle, error) {
	attr, err := fs.make(ctx, c, newInode{op: OpCreate, parent: parent, mode: ModeRegular | a.Mode&ModePerm, umask: a.Umask})
	if err != nil {
		return Attr{}, nil, err
	}
	return attr, fs.newHandle(attr.Ino, a.Flags, c), nil
}

// Mkdir makes a directory.
func (fs *FS) Mkdir(ctx context.Context, c Caller, parent Ino, name string, mode, umask uint32) (Attr, error) {
	return fs.make(ctx, c, newInode{op: OpMkdir, parent: parent, name: name, mode: ModeDir | mode&ModePerm, umask: umask})
}

// Mknod makes a file of any type but directory and symbolic link; a regular
// one is a create.
func (fs *FS) Mknod(ctx context.Context, c Caller, parent Ino, name string, mode, umask, rdev uint32) (Attr, error) {
	n := newInode{op: OpMknod, parent: parent, name: name, mode: mode & (ModeType | ModePerm), umask: umask}
	switch mode & ModeType {
	case ModeRegular, 0:
		n.op, n.mode = OpCreate, ModeRegular|mode&ModePerm
	case ModeBlock, ModeChar:
		n.rdev = rdev
	case ModeFifo, ModeSocket:
	default:
		return Attr{}, E("mknod", parent, name, KindInvalid, nil)
	}
	return fs.make(ctx, c, n)
}

// Symlink makes a symbolic link.
func (fs *FS) Symlink(ctx context.Context, c Caller, parent Ino, name, target string) (Attr, error) {
	if target == "" {
		return Attr{}, E("symlink", parent, name, KindNotExist, nil)
	}
	if len(target) > SymlinkMax {
		return Attr{}, E("symlink", parent, name, KindNameTooLong, nil)
	}
	return fs.make(ctx, c, newInode{op: OpSymlink, parent: parent, name: name, mode: ModeSymlink | 0o777, target: target})
}

// Readlink returns a symbolic link's target.
func (fs *FS) Readlink(ctx context.Context, ino Ino) (string, error) {
	// A link's target never changes; another link of the same name is another inode.
	return fs.o.Store.Target(ctx, ino)
}
