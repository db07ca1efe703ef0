package meta

import "context"

// RenameFlags are the flags of renameat2(2), with Linux's values.
type RenameFlags uint32

// The flags that are served; any other is KindInvalid.
const (
	RenameNoReplace RenameFlags = 1
	RenameExchange  RenameFlags = 2
)

// move is a rename under way: what both names refer to.
type move struct {
	parent, newParent Ino
	name, newName     string
	src, dst          *Attr // dst nil: the new name is free
	from, to          *Attr // the directories
}

// Rename moves a name, replacing what the new one refers to unless flags
// forbid it, or exchanges two names. The checks are those of rename(2):
// KindNotExist, KindExist (NoReplace), KindIsDir, KindNotDir, KindNotEmpty,
// KindInvalid (a directory into itself).
func (fs *FS) Rename(ctx context.Context, c Caller, parent Ino, name string, newParent Ino, newName string, flags RenameFlags) error {
	if err := fs.nameOp("rename", parent, name); err != nil {
		return err
	}
	if err := checkName("rename", newParent, newName); err != nil {
		return err
	}
	if flags&^(RenameNoReplace|RenameExchange) != 0 || flags == RenameNoReplace|RenameExchange {
		return E("rename", parent, name, KindInvalid, nil)
	}
	_, err := fs.commit(ctx, c, OriginKernel, func(v *view) (*Change, error) {
		m := &move{parent: parent, newParent: newParent, name: name, newName: newName}
		if err := m.look(v); err != nil {
			return nil, err
		}
		switch {
		case flags&RenameExchange != 0:
			return m.exchange(v)
		case m.dst != nil && flags&RenameNoReplace != 0:
			return nil, E("rename", newParent, newName, KindExist, nil)
		case m.dst != nil && m.dst.Ino == m.src.Ino:
			return nil, nil // two names of one file, or one name: nothing to do (POSIX)
		}
		return m.rename(v)
	})
	return err
}

// look reads both ends.
func (m *move) look(v *view) (err error) {
	if m.from, m.src, err = v.entry("rename", m.parent, m.name); err != nil {
		return err
	}
	if m.to, err = v.dir("rename", m.newParent); err != nil {
		return err
	}
	n, err := v.lookup(m.newParent, m.newName)
	if err == nil && n.ino != 0 {
		m.dst, err = v.inode(n.ino)
	}
	return err
}

// outside refuses to move directory a below itself. It climbs from the new
// parent; Topology in the change has the store look again (P3).
func (v *view) outside(a *Attr, newParent Ino) error {
	for at, depth := newParent, 0; at != RootIno; depth++ {
		if at == a.Ino {
			return E("rename", a.Ino, "", KindInvalid, nil)
		}
		d, err := v.inode(at)
		if err != nil {
			return err
		}
		if depth > rootMaxDepth {
			return E("rename", a.Ino, "", KindIO, nil)
		}
		at = d.Parent
	}
	return nil
}

// replaceable checks what the new name refers to.
func (m *move) replaceable() error {
	switch {
	case m.dst == nil:
		return nil
	case m.src.IsDir() && !m.dst.IsDir():
		return E("rename", m.newParent, m.newName, KindNotDir, nil)
	case !m.src.IsDir() && m.dst.IsDir():
		return E("rename", m.newParent, m.newName, KindIsDir, nil)
	case m.dst.IsDir() && m.dst.Entries != 0:
		return E("rename", m.newParent, m.newName, KindNotEmpty, nil)
	}
	return nil
}

func (m *move) rename(v *view) (*Change, error) {
	crosses := m.parent != m.newParent
	if err := m.replaceable(); err != nil {
		return nil, err
	}
	isDir := m.src.IsDir()
	if isDir && crosses {
		if err := v.outside(m.src, m.newParent); err != nil {
			return nil, err
		}
	}
	after := *m.src
	after.Ctime = v.now
	if isDir {
		after.Parent = m.newParent
	}
	ch := &Change{
		Record:   m.record(OpRename),
		Inodes:   []InodeChange{{Before: m.src, After: after}},
		Topology: isDir && crosses,
		Names: []NameChange{
			{Parent: m.parent, Name: m.name, Before: m.src.Ino, BeforeType: m.src.Mode & ModeType},
			{Parent: m.newParent, Name: m.newName, After: m.src.Ino, AfterType: m.src.Mode & ModeType},
		},
	}
	from, to := DirDelta{Ino: m.parent, Entries: -1, Time: v.now}, DirDelta{Ino: m.newParent, Entries: 1, Time: v.now}
	if isDir {
		from.Nlink, to.Nlink = -1, 1
	}
	if m.dst != nil {
		ch.Inodes = append(ch.Inodes, InodeChange{Before: m.dst, After: m.dst.removed(v.now)})
		ch.Names[1].Before, ch.Names[1].BeforeType = m.dst.Ino, m.dst.Mode&ModeType
		to.Entries--
		if m.dst.IsDir() {
			to.Nlink--
		}
	}
	ch.Dirs = mergeDirs(from, to)
	return ch, nil
}

func (m *move) exchange(v *view) (*Change, error) {
	if m.dst == nil {
		return nil, E("rename", m.newParent, m.newName, KindNotExist, nil)
	}
	if m.src.Ino == m.dst.Ino {
		return nil, nil
	}
	crosses := m.parent != m.newParent
	a, b := *m.src, *m.dst
	a.Ctime, b.Ctime = v.now, v.now
	from, to := DirDelta{Ino: m.parent, Time: v.now}, DirDelta{Ino: m.newParent, Time: v.now}
	if crosses && a.IsDir() {
		if err := v.outside(m.src, m.newParent); err != nil {
			return nil, err
		}
		a.Parent = m.newParent
		from.Nlink--
		to.Nlink++
	}
	if crosses && b.IsDir() {
		if err := v.outside(m.dst, m.parent); err != nil {
			return nil, err
		}
		b.Parent = m.parent
		from.Nlink++
		to.Nlink--
	}
	srcType, dstType := a.Mode&ModeType, b.Mode&ModeType
	return &Change{
		Record:   m.record(OpExchange),
		Inodes:   []InodeChange{{Before: m.src, After: a}, {Before: m.dst, After: b}},
		Dirs:     mergeDirs(from, to),
		Topology: crosses && (a.IsDir() || b.IsDir()),
		Names: []NameChange{
			{Parent: m.parent, Name: m.name, Before: a.Ino, BeforeType: srcType, After: b.Ino, AfterType: dstType},
			{Parent: m.newParent, Name: m.newName, Before: b.Ino, BeforeType: dstType, After: a.Ino, AfterType: srcType},
		},
	}, nil
}

// record describes the move, with what is needed to take it back.
func (m *move) record(kind OpKind) Record {
	var before object
	before.dirTimes("p", m.from)
	if m.parent != m.newParent {
		before.dirTimes("np", m.to)
	}
	before.num("ctime", m.src.Ctime)
	if m.dst != nil {
		before.num("replaced", int64(m.dst.Ino)).num("replaced_ctime", m.dst.Ctime)
	}
	return Record{Kind: kind, Ino: m.src.Ino, Parent: m.parent, Name: m.name,
		NewParent: m.newParent, NewName: m.newName, Before: before.String()}
}

// mergeDirs folds two deltas of one directory into one.
func mergeDirs(a, b DirDelta) []DirDelta {
	if a.Ino != b.Ino {
		return []DirDelta{a, b}
	}
	a.Entries += b.Entries
	a.Nlink += b.Nlink
	return []DirDelta{a}
}
