package meta

import "context"

// view is the state that a rule looks at: the cache over SQL, overlaid with
// what earlier operations of the same batch are about to make of it. Only the
// leader of a batch has one, and only while it plans.
type view struct {
	fs      *FS
	ctx     context.Context
	now     int64 // time of every operation of the batch, ns
	next    Rev   // revision that the operation being planned gets if none before it is refused
	overlay bool  // more than one operation: keep what they will make
	attrs   map[Ino]*Attr
	names   map[nameKey]nameVal
	xattrs  map[xattrKey][]byte // nil: removed
}

// inode returns an inode's attributes, which must not be modified.
func (v *view) inode(ino Ino) (*Attr, error) {
	if a, ok := v.attrs[ino]; ok {
		return a, nil
	}
	return v.fs.attr(v.ctx, ino)
}

// alive returns an inode that has a name or an open handle.
func (v *view) dir(op string, ino Ino) (*Attr, error) {
	a, err := v.inode(ino)
	if err != nil {
		return nil, err
	}
	if !a.IsDir() {
		return nil, E(op, ino, "", KindNotDir, nil)
	}
	if a.Nlink == 0 {
		return nil, E(op, ino, "", KindNotExist, nil)
	}
	return a, nil
}

// lookup says what a name refers to; ino 0: it is absent.
func (v *view) lookup(parent Ino, name string) (nameVal, error) {
	if n, ok := v.names[nameKey{parent, name}]; ok {
		return n, nil
	}
	return v.fs.nameOf(v.ctx, parent, name)
}

// child returns the inode that a name refers to, KindNotExist without one.
func (v *view) child(op string, parent Ino, name string) (*Attr, error) {
	n, err := v.lookup(parent, name)
	if err != nil {
		return nil, err
	}
	if n.ino == 0 {
		return nil, E(op, parent, name, KindNotExist, nil)
	}
	return v.inode(n.ino)
}

// add overlays what a planned change will make of the state.
func (v *view) add(ch *Change) {
	if v.attrs == nil {
		v.attrs, v.names = make(map[Ino]*Attr), make(map[nameKey]nameVal)
	}
	for i := range ch.Inodes {
		a := ch.Inodes[i].After
		a.Rev = v.next
		if a.ContentRev == RevPending {
			a.ContentRev = v.next
		}
		v.attrs[a.Ino] = &a
	}
	for _, d := range ch.Dirs {
		if old, err := v.inode(d.Ino); err == nil {
			v.attrs[d.Ino] = d.applied(old, v.next)
		}
	}
	for _, n := range ch.Names {
		v.names[nameKey{n.Parent, n.Name}] = nameVal{n.After, n.AfterType}
	}
	for _, x := range ch.Xattrs {
		if v.xattrs == nil {
			v.xattrs = make(map[xattrKey][]byte)
		}
		v.xattrs[xattrKey{x.Ino, x.Name}] = x.Value
	}
}

// attr reads attributes through the cache. The result must not be modified.
func (fs *FS) attr(ctx context.Context, ino Ino) (*Attr, error) {
	s := fs.cache.attr(ino)
	if a, ok := s.get(ino); ok {
		fs.counters.attrHits.Add(1)
		return a, nil
	}
	fs.counters.attrMisses.Add(1)
	stamp := s.begin()
	a, err := fs.o.Store.Inode(ctx, ino)
	if err != nil {
		return nil, err
	}
	s.fill(ino, &a, stamp)
	return &a, nil
}

// nameOf reads a name through the cache, absence included.
func (fs *FS) nameOf(ctx context.Context, parent Ino, name string) (nameVal, error) {
	s, key := fs.cache.name(parent, name), nameKey{parent, name}
	if n, ok := s.get(key); ok {
		fs.counters.nameHits.Add(1)
		return n, nil
	}
	if fs.known.absent(parent, name) {
		fs.counters.nameHits.Add(1)
		return nameVal{}, nil
	}
	fs.counters.nameMisses.Add(1)
	stamp := s.begin()
	a, err := fs.o.Store.Lookup(ctx, parent, name)
	if KindOf(err) == KindNotExist && err != nil {
		s.fill(key, nameVal{}, stamp)
		return nameVal{}, nil
	}
	if err != nil {
		return nameVal{}, err
	}
	n := nameVal{a.Ino, a.Mode & ModeType}
	s.fill(key, n, stamp)
	return n, nil
}
