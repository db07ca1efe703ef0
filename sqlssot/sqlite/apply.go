package sqlite

import (
	"nexusfs/meta"
	"zombiezen.com/go/sqlite"
)

// inodeChanges writes the rows of every inode that the change touches. delta
// is by how many bytes the change's content grew.
func (t *tx) inodeChanges(i int, c *meta.Change, rev, delta int64) error {
	counted := c.Content == nil
	for j := range c.Inodes {
		ic := &c.Inodes[j]
		grow := int64(0)
		mine := c.Content != nil && c.Content.Ino == ic.After.Ino
		if mine {
			grow, counted = delta, true
		}
		var bytes int64
		var err error
		switch {
		case ic.Before == nil:
			bytes = grow
			err = t.insertInode(c, ic, rev, grow)
		case ic.After.IsDir():
			err = t.updateDir(c, ic, rev)
		default:
			bytes, err = t.updateInode(c, ic, rev, grow, mine)
		}
		if err != nil {
			return err
		}
		if mine {
			t.out[i].Bytes = bytes
		}
	}
	if !counted {
		return meta.E("commit", c.Content.Ino, "", meta.KindInvalid, nil) // content without its inode's change
	}
	return nil
}

// nameFor finds the name that the change gives to an inode.
func nameFor(c *meta.Change, ino meta.Ino) *meta.NameChange {
	for i := range c.Names {
		if c.Names[i].After == ino {
			return &c.Names[i]
		}
	}
	return nil
}

// hint is where an inode's newest name lies, kept in its row so that names can
// be found from inodes without an index.
func (t *tx) hint(c *meta.Change, a *meta.Attr) (parent, cookie int64, ok bool) {
	n := nameFor(c, a.Ino)
	if n == nil {
		return t.s.k(int64(a.Parent)), 0, false
	}
	return t.s.k(int64(n.Parent)), int64(meta.NameCookie(n.Name)), true
}

func (t *tx) insertInode(c *meta.Change, ic *meta.InodeChange, rev, bytes int64) error {
	st, err := t.c.stmt(stInodeInsert)
	if err != nil {
		return err
	}
	a := &ic.After
	parent, cookie, _ := t.hint(c, a)
	content := t.s.k(int64(a.ContentRev))
	if a.ContentRev == meta.RevPending || a.IsDir() {
		content = rev
	}
	for p, v := range [...]int64{t.s.k(int64(a.Ino)), int64(a.Mode), int64(a.UID), int64(a.GID), int64(a.Nlink), int64(a.Rdev),
		int64(a.Flags), a.Size, a.Entries, a.Atime, a.Mtime, a.Ctime, a.Btime, parent, cookie, a.Creator, rev, content, a.Version} {
		st.BindInt64(p+1, v)
	}
	if ic.Target == "" {
		st.BindNull(20)
	} else {
		st.BindBytes(20, []byte(ic.Target))
	}
	if _, err = t.c.run(st); err != nil {
		return guard(err, a.Ino, "", "the inode exists")
	}
	if bytes != 0 {
		if _, err := t.c.exec(stInodeGrow, t.s.k(int64(a.Ino)), bytes); err != nil {
			return err
		}
	}
	t.book(nil, a, 0, bytes)
	return nil
}

// guard turns a violated constraint into a conflict with a reason.
func guard(err error, ino meta.Ino, name, what string) error {
	if err != nil && kindOf(err) == meta.KindConflict {
		return conflict(ino, name, what)
	}
	return err
}

// updateInode writes the new image of an inode that is no directory. The old
// one goes to history, if its revision is the one that the change believes in.
func (t *tx) updateInode(c *meta.Change, ic *meta.InodeChange, rev, grow int64, content bool) (bytes int64, err error) {
	a, b, ino := &ic.After, ic.Before, t.s.k(int64(ic.After.Ino))
	n, err := t.c.exec(stInodeArchive, ino, t.s.k(int64(b.Rev)), rev)
	if err != nil {
		return 0, guard(err, a.Ino, "", "the inode changed twice")
	}
	if n == 0 {
		return 0, conflict(a.Ino, "", "the inode changed meanwhile")
	}
	// Only then somebody's counters change, and the row's bytes must be known.
	counts := grow != 0 || content || a.UID != b.UID || (a.Nlink > 0) != (b.Nlink > 0)
	if counts {
		if err := t.c.query(stInodeBytes, func(st *sqlite.Stmt) bool { bytes = st.ColumnInt64(0); return false }, ino); err != nil {
			return 0, err
		}
		bytes += grow
	}
	st, err := t.c.stmt(stInodeUpdate)
	if err != nil {
		return 0, err
	}
	contentRev := t.s.k(int64(a.ContentRev))
	if a.ContentRev == meta.RevPending {
		contentRev = rev
	}
	for p, v := range [...]int64{ino, int64(a.Mode), int64(a.UID), int64(a.GID), int64(a.Nlink), int64(a.Rdev), int64(a.Flags),
		a.Size, a.Atime, a.Mtime, a.Ctime, rev, contentRev, a.Version, grow} {
		st.BindInt64(p+1, v)
	}
	bindHint(st, 16, c, t, a)
	if _, err := t.c.run(st); err != nil {
		return 0, err
	}
	if counts {
		t.book(b, a, bytes-grow, bytes)
	}
	return bytes, nil
}

// bindHint binds parent and cookie of the inode's new name, NULL without one.
func bindHint(st *sqlite.Stmt, param int, c *meta.Change, t *tx, a *meta.Attr) {
	if parent, cookie, ok := t.hint(c, a); ok {
		st.BindInt64(param, parent)
		st.BindInt64(param+1, cookie)
		return
	}
	st.BindNull(param)
	st.BindNull(param + 1)
}

// updateDir writes a directory's new image. Its row may be newer than what the
// change saw, for names move it on without asking: so its revision is no guard
// but its other attributes are, and what names move (counters, times) is set by
// difference or only where the change itself changed it.
func (t *tx) updateDir(c *meta.Change, ic *meta.InodeChange, rev int64) error {
	a, b, ino := &ic.After, ic.Before, t.s.k(int64(ic.After.Ino))
	keep, nameless := int64(1), int64(0)
	if a.Nlink == 0 {
		keep = 0
	}
	if b.Nlink == 0 { // removed and still open, or being restored
		nameless = 1
	}
	n, err := t.c.exec(stInodeArchiveDir, ino, rev, keep,
		int64(b.Mode), int64(b.UID), int64(b.GID), int64(b.Flags), t.s.k(int64(b.Parent)), nameless)
	if err != nil {
		return guard(err, a.Ino, "", "the directory changed twice")
	}
	if n == 0 {
		return conflict(a.Ino, "", "the directory is gone, not empty, or changed meanwhile")
	}
	st, err := t.c.stmt(stInodeUpdateDir)
	if err != nil {
		return err
	}
	for p, v := range [...]int64{ino, int64(a.Mode), int64(a.UID), int64(a.GID), int64(a.Flags), keep,
		int64(a.Nlink) - int64(b.Nlink), a.Entries - b.Entries} {
		st.BindInt64(p+1, v)
	}
	bindChanged(st, 9, b.Atime, a.Atime)
	bindChanged(st, 10, b.Mtime, a.Mtime)
	bindChanged(st, 11, b.Ctime, a.Ctime)
	st.BindInt64(12, rev)
	st.BindInt64(13, t.s.k(int64(a.Parent)))
	if _, cookie, ok := t.hint(c, a); ok {
		st.BindInt64(14, cookie)
	} else {
		st.BindNull(14)
	}
	if _, err := t.c.run(st); err != nil {
		return err
	}
	t.book(b, a, 0, 0)
	return nil
}

func bindChanged(st *sqlite.Stmt, param int, before, after int64) {
	if before == after {
		st.BindNull(param)
		return
	}
	st.BindInt64(param, after)
}

// book keeps the usage counters: an inode counts for its owner while it has a
// name, its bytes too; without a name its bytes are history's.
func (t *tx) book(b, a *meta.Attr, oldBytes, newBytes int64) {
	if b != nil {
		if b.Nlink > 0 {
			t.addUsage(int64(b.UID), -1, -oldBytes)
		} else {
			t.history -= oldBytes
		}
	}
	if a.Nlink > 0 {
		t.addUsage(int64(a.UID), 1, newBytes)
	} else {
		t.history += newBytes
	}
}

// name sets or ends one name.
func (t *tx) name(c *meta.Change, n *meta.NameChange, rev int64) error {
	parent, cookie := t.s.k(int64(n.Parent)), int64(meta.NameCookie(n.Name))
	if n.Before != 0 {
		st, err := t.c.stmt(stNameArchive)
		if err != nil {
			return err
		}
		st.BindInt64(1, parent)
		st.BindInt64(2, cookie)
		bindName(st, 3, n.Name)
		st.BindInt64(4, t.s.k(int64(n.Before)))
		st.BindInt64(5, rev)
		changed, err := t.c.run(st)
		if err != nil {
			return guard(err, n.Parent, n.Name, "the name changed twice")
		}
		if changed == 0 {
			return conflict(n.Parent, n.Name, "the name refers to something else")
		}
	}
	id := stNameInsert
	switch {
	case n.Before != 0 && n.After == 0:
		id = stNameDelete
	case n.Before != 0:
		id = stNameReplace
	}
	st, err := t.c.stmt(id)
	if err != nil {
		return err
	}
	st.BindInt64(1, parent)
	st.BindInt64(2, cookie)
	bindName(st, 3, n.Name)
	if id != stNameDelete {
		st.BindInt64(4, t.s.k(int64(n.After)))
		st.BindInt64(5, int64(n.AfterType>>12))
		st.BindInt64(6, rev)
	}
	if _, err := t.c.run(st); err != nil {
		return guard(err, n.Parent, n.Name, "the name exists")
	}
	return t.lateHint(c, n, parent, cookie)
}

// lateHint keeps the hint of an inode whose row the change does not write.
func (t *tx) lateHint(c *meta.Change, n *meta.NameChange, parent, cookie int64) error {
	if n.After == 0 {
		return nil
	}
	for i := range c.Inodes {
		if c.Inodes[i].After.Ino == n.After {
			return nil
		}
	}
	_, err := t.c.exec(stHint, t.s.k(int64(n.After)), parent, cookie)
	return err
}

// xattr sets or removes one attribute.
func (t *tx) xattr(x *meta.XattrChange, rev int64) error {
	ino := t.s.k(int64(x.Ino))
	bind := func(id stmtID) (*sqlite.Stmt, error) {
		st, err := t.c.stmt(id)
		if err == nil {
			st.BindInt64(1, ino)
			bindName(st, 2, x.Name)
		}
		return st, err
	}
	st, err := bind(stXattrArchive)
	if err != nil {
		return err
	}
	st.BindInt64(3, rev)
	if _, err := t.c.run(st); err != nil {
		return guard(err, x.Ino, x.Name, "the attribute changed twice")
	}
	if x.Value == nil {
		if st, err = bind(stXattrDelete); err != nil {
			return err
		}
	} else {
		if st, err = bind(stXattrSet); err != nil {
			return err
		}
		st.BindInt64(3, rev)
		st.BindBytes(4, x.Value)
	}
	_, err = t.c.run(st)
	return err
}

// version makes a version of a file or moves it to this revision.
func (t *tx) version(c *meta.Change, rev, actor int64) error {
	v := c.Version
	ino := t.s.k(int64(v.Ino))
	if v.New && v.N == 1 && v.Size == 0 {
		for i := range c.Inodes {
			if c.Inodes[i].Before == nil && c.Inodes[i].After.Ino == v.Ino {
				return nil // implied by the inode's row until the file changes
			}
		}
	}
	if v.New && v.N == 2 {
		if _, err := t.c.exec(stVersionFirst, ino); err != nil {
			return err
		}
	}
	if v.New {
		_, err := t.c.exec(stVersionInsert, ino, v.N, rev, v.Size, actor, c.Record.Time)
		return guard(err, v.Ino, "", "the version exists")
	}
	n, err := t.c.exec(stVersionMove, ino, v.N, rev, v.Size, actor, c.Record.Time)
	if err != nil || n == 1 {
		return err
	}
	if v.N == 1 {
		n, err = t.c.exec(stVersionMoveFirst, ino, rev, v.Size, actor, c.Record.Time)
		if err != nil || n == 1 {
			return guard(err, v.Ino, "", "the version exists")
		}
	}
	return conflict(v.Ino, "", "there is no such version")
}

// reachRoot refuses a move that puts a directory below itself, which two moves
// that did not see each other would do (P3).
func (t *tx) reachRoot(c *meta.Change) error {
	for i := range c.Inodes {
		a := &c.Inodes[i].After
		if !a.IsDir() || a.Nlink == 0 {
			continue
		}
		at, steps := t.s.k(int64(a.Parent)), 0
		for ; unk(at) != int64(meta.RootIno); steps++ {
			if at == t.s.k(int64(a.Ino)) || steps > maxDepth {
				return conflict(a.Ino, "", "the directory would lie below itself")
			}
			above := int64(0)
			if err := t.c.query(stParent, func(st *sqlite.Stmt) bool { above = st.ColumnInt64(0); return false }, at); err != nil {
				return err
			}
			if above == 0 {
				return conflict(a.Ino, "", "the directory that it moves to is gone")
			}
			at = above
		}
	}
	return nil
}
