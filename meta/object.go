package meta

import "context"

// Object is what Make makes: an object of any type with all that elsewhere
// takes several operations.
type Object struct {
	Mode         uint32 // type and permission bits; no umask and no default ACL changes them
	UID, GID     uint32
	Rdev         uint32 // of a device node
	Target       string // of a symbolic link
	Atime, Mtime int64  // ns
	Content      []byte // of a regular file, at most InlineMax bytes; not retained
}

// Make makes one object whole, in one operation: for loading a tree. The owner
// is the object's, the record names the caller. KindExist when the name is
// taken, KindInvalid when the object cannot be.
func (fs *FS) Make(ctx context.Context, c Caller, parent Ino, name string, o Object) (Attr, error) {
	n := newInode{parent: parent, name: name, mode: o.Mode & (ModeType | ModePerm), whole: &o}
	switch o.Mode & ModeType {
	case ModeRegular:
		n.op = OpCreate
	case ModeDir:
		n.op = OpMkdir
	case ModeSymlink:
		n.op, n.target = OpSymlink, o.Target
	case ModeBlock, ModeChar:
		n.op, n.rdev = OpMknod, o.Rdev
	case ModeFifo, ModeSocket:
		n.op = OpMknod
	}
	link := o.Mode&ModeType == ModeSymlink
	switch {
	case n.op == 0, link != (o.Target != ""), len(o.Content) > 0 && n.op != OpCreate:
		return Attr{}, E("make", parent, name, KindInvalid, nil)
	case len(o.Target) > SymlinkMax:
		return Attr{}, E("make", parent, name, KindNameTooLong, nil)
	case len(o.Content) > InlineMax:
		return Attr{}, E("make", parent, name, KindTooBig, nil)
	}
	return fs.make(ctx, c, n)
}

// fill puts the object's attributes and content into the change that makes it.
func (o *Object) fill(fs *FS, a *Attr, ch *Change) {
	a.UID, a.GID, a.Creator = o.UID, o.GID, int64(o.UID)
	a.Mode = a.Mode&ModeType | o.Mode&ModePerm
	a.Atime, a.Mtime = o.Atime, o.Mtime
	if len(o.Content) == 0 {
		return
	}
	b := Blob{ID: fs.o.Content.ID(o.Content), Size: int64(len(o.Content)), Place: PlaceInline}
	ch.Content = &ContentChange{
		Ino:    a.Ino,
		Ranges: []RangeChange{{Len: b.Size, Extents: []Extent{{Len: b.Size, Blob: b}}}},
		Blobs:  []NewBlob{{Blob: b, Data: o.Content}},
		Fresh:  true,
	}
	a.Size = b.Size
	ch.Record.Size = b.Size
}

// MakeFile is Make of a regular file, without content, and opens it: what is
// written through the handle is the file's first version, as after Create.
func (fs *FS) MakeFile(ctx context.Context, c Caller, parent Ino, name string, o Object) (Attr, *Handle, error) {
	if o.Mode&ModeType != ModeRegular || len(o.Content) > 0 {
		return Attr{}, nil, E("make", parent, name, KindInvalid, nil)
	}
	a, err := fs.Make(ctx, c, parent, name, o)
	if err != nil {
		return a, nil, err
	}
	return a, fs.newHandle(a.Ino, OpenFlags{Write: true}, c), nil
}
