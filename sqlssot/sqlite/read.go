package sqlite

import (
	"context"

	"nexusfs/meta"
	"zombiezen.com/go/sqlite"
)

// scanAttr reads an inode's columns from col on, in the order of attrCols.
func scanAttr(s *sqlite.Stmt, col int, a *meta.Attr) {
	a.Ino = meta.Ino(unk(s.ColumnInt64(col)))
	a.Mode = uint32(s.ColumnInt64(col + 1))
	a.UID = uint32(s.ColumnInt64(col + 2))
	a.GID = uint32(s.ColumnInt64(col + 3))
	a.Nlink = uint32(s.ColumnInt64(col + 4))
	a.Rdev = uint32(s.ColumnInt64(col + 5))
	a.Flags = uint32(s.ColumnInt64(col + 6))
	a.Size = s.ColumnInt64(col + 7)
	a.Bytes = s.ColumnInt64(col + 8)
	a.Entries = s.ColumnInt64(col + 9)
	a.Atime = s.ColumnInt64(col + 10)
	a.Mtime = s.ColumnInt64(col + 11)
	a.Ctime = s.ColumnInt64(col + 12)
	a.Btime = s.ColumnInt64(col + 13)
	a.Parent = 0
	if a.IsDir() {
		a.Parent = meta.Ino(unk(s.ColumnInt64(col + 14)))
	}
	a.Creator = s.ColumnInt64(col + 15)
	a.Rev = meta.Rev(unk(s.ColumnInt64(col + 16)))
	a.ContentRev = meta.Rev(unk(s.ColumnInt64(col + 17)))
	a.Version = s.ColumnInt64(col + 18)
}

// read borrows a reader for fn and classifies what fails.
func (s *Store) read(ctx context.Context, op string, ino meta.Ino, name string, fn func(c *conn) error) error {
	if err := interrupted(ctx, op); err != nil {
		return err
	}
	c, err := s.readers.get(ctx)
	if err != nil {
		return err
	}
	err = fn(c)
	s.readers.put(c)
	return classify(op, ino, name, err)
}

// Inode implements meta.Store.
func (s *Store) Inode(ctx context.Context, ino meta.Ino) (a meta.Attr, err error) {
	found := false
	err = s.read(ctx, "inode", ino, "", func(c *conn) error {
		st, err := c.stmt(stInode)
		if err != nil {
			return err
		}
		st.BindInt64(1, s.k(int64(ino)))
		return oneAttr(st, &a, &found)
	})
	if err == nil && !found {
		err = meta.E("inode", ino, "", meta.KindNotExist, nil)
	}
	return a, err
}

// oneAttr steps a bound statement that yields one inode or none.
func oneAttr(st *sqlite.Stmt, a *meta.Attr, found *bool) error {
	ok, err := st.Step()
	if err != nil {
		return err
	}
	if ok {
		scanAttr(st, 0, a)
		*found = true
	}
	return st.Reset()
}

// Lookup implements meta.Store.
func (s *Store) Lookup(ctx context.Context, parent meta.Ino, name string) (a meta.Attr, err error) {
	found := false
	err = s.read(ctx, "lookup", parent, name, func(c *conn) error {
		st, err := c.stmt(stLookup)
		if err != nil {
			return err
		}
		st.BindInt64(1, s.k(int64(parent)))
		st.BindInt64(2, int64(meta.NameCookie(name)))
		bindName(st, 3, name)
		return oneAttr(st, &a, &found)
	})
	if err == nil && !found {
		err = meta.E("lookup", parent, name, meta.KindNotExist, nil)
	}
	return a, err
}

// Target implements meta.Store. KindInvalid when the inode is no symbolic link.
func (s *Store) Target(ctx context.Context, ino meta.Ino) (target string, err error) {
	found := false
	err = s.read(ctx, "readlink", ino, "", func(c *conn) error {
		return c.query(stTarget, func(st *sqlite.Stmt) bool {
			target, found = string(colBytes(st, 0)), true
			return true
		}, s.k(int64(ino)))
	})
	if err == nil && !found {
		if _, err := s.Inode(ctx, ino); err != nil {
			return "", err
		}
		err = meta.E("readlink", ino, "", meta.KindInvalid, nil)
	}
	return target, err
}

// List implements meta.Store.
func (s *Store) List(ctx context.Context, dir meta.Ino, after uint64, limit int, attrs bool, buf []meta.Entry) ([]meta.Entry, error) {
	if limit <= 0 {
		return buf, interrupted(ctx, "list")
	}
	page, rest := stList, stListCookie
	if attrs {
		page, rest = stListAttrs, stListAttrsCookie
	}
	start := len(buf)
	err := s.read(ctx, "list", dir, "", func(c *conn) error {
		if err := c.do(stBeginRead); err != nil { // both statements see one state
			return err
		}
		parent := s.k(int64(dir))
		err := c.query(page, func(st *sqlite.Stmt) bool {
			buf = append(buf, scanEntry(st, attrs))
			return len(buf)-start < limit
		}, parent, int64(after))
		if err == nil && len(buf)-start >= limit {
			var st *sqlite.Stmt
			if st, err = c.stmt(rest); err == nil {
				last := &buf[len(buf)-1]
				st.BindInt64(1, parent)
				st.BindInt64(2, int64(last.Cookie))
				bindName(st, 3, last.Name)
				err = rows(st, func(st *sqlite.Stmt) bool {
					buf = append(buf, scanEntry(st, attrs))
					return true
				})
			}
		}
		if cerr := c.do(stCommit); err == nil {
			err = cerr
		}
		return err
	})
	return buf, err
}

func scanEntry(st *sqlite.Stmt, attrs bool) meta.Entry {
	e := meta.Entry{Cookie: uint64(st.ColumnInt64(0)), Name: colString(st, 1)}
	if attrs {
		scanAttr(st, 2, &e.Attr)
		return e
	}
	e.Attr.Ino = meta.Ino(unk(st.ColumnInt64(2)))
	e.Attr.Mode = uint32(st.ColumnInt64(3)) << 12
	return e
}

// colString reads a name with one allocation.
func colString(st *sqlite.Stmt, col int) string {
	var buf [meta.NameMax + 1]byte
	n := st.ColumnLen(col)
	if n > len(buf) {
		return string(colBytes(st, col))
	}
	return string(buf[:st.ColumnBytes(col, buf[:])])
}

// Xattr implements meta.Store.
func (s *Store) Xattr(ctx context.Context, ino meta.Ino, name string) (value []byte, err error) {
	err = s.read(ctx, "getxattr", ino, name, func(c *conn) error {
		st, err := c.stmt(stXattr)
		if err != nil {
			return err
		}
		st.BindInt64(1, s.k(int64(ino)))
		bindName(st, 2, name)
		return rows(st, func(st *sqlite.Stmt) bool { value = colBytes(st, 0); return true })
	})
	if err == nil && value == nil {
		err = meta.E("getxattr", ino, name, meta.KindNoData, nil)
	}
	return value, err
}

// Xattrs implements meta.Store.
func (s *Store) Xattrs(ctx context.Context, ino meta.Ino) (names []string, err error) {
	err = s.read(ctx, "listxattr", ino, "", func(c *conn) error {
		return c.query(stXattrNames, func(st *sqlite.Stmt) bool {
			names = append(names, colString(st, 0))
			return true
		}, s.k(int64(ino)))
	})
	return names, err
}

// Extents implements meta.Store.
func (s *Store) Extents(ctx context.Context, ino meta.Ino, off, end int64, limit int, inline bool) (out []meta.Extent, err error) {
	if limit <= 0 {
		return nil, interrupted(ctx, "extents")
	}
	data := int64(0)
	if inline {
		data = 1
	}
	err = s.read(ctx, "extents", ino, "", func(c *conn) error {
		return c.query(stExtents, func(st *sqlite.Stmt) bool {
			out = append(out, scanExtent(st))
			return len(out) < limit
		}, s.k(int64(ino)), off, end, data)
	})
	return out, err
}

func scanExtent(st *sqlite.Stmt) meta.Extent {
	return meta.Extent{
		Off: st.ColumnInt64(0), Len: st.ColumnInt64(1), BlobOff: st.ColumnInt64(2), Begin: meta.Rev(unk(st.ColumnInt64(3))),
		Blob: meta.Blob{ID: colHash(st, 4), Size: st.ColumnInt64(5), Place: meta.Place(st.ColumnInt64(6)),
			Segment: st.ColumnInt64(7), Offset: st.ColumnInt64(8)},
		Data: colBytes(st, 9),
	}
}

// Blob implements meta.Store.
func (s *Store) Blob(ctx context.Context, id meta.BlobID) (b meta.Blob, err error) {
	found := false
	err = s.read(ctx, "blob", 0, "", func(c *conn) error {
		st, err := c.stmt(stBlob)
		if err != nil {
			return err
		}
		st.BindInt64(1, s.zone)
		st.BindBytes(2, id[:])
		return rows(st, func(st *sqlite.Stmt) bool {
			b = meta.Blob{ID: id, Size: st.ColumnInt64(0), Place: meta.Place(st.ColumnInt64(1)),
				Segment: st.ColumnInt64(2), Offset: st.ColumnInt64(3)}
			found = true
			return true
		})
	})
	if err == nil && !found {
		err = meta.E("blob", 0, "", meta.KindNotExist, nil)
	}
	return b, err
}

// Head implements meta.Store.
func (s *Store) Head(ctx context.Context) (h meta.Head, err error) {
	err = s.read(ctx, "head", 0, "", func(c *conn) error {
		return c.query(stHead, func(st *sqlite.Stmt) bool {
			h = meta.Head{Rev: meta.Rev(unk(st.ColumnInt64(0))), Hash: colHash(st, 1), Barrier: meta.Rev(unk(st.ColumnInt64(2))),
				Reserved: meta.Rev(unk(st.ColumnInt64(3))), Epoch: st.ColumnInt64(4)}
			return true
		}, s.zone)
	})
	return h, err
}

// Usage implements meta.Store. Bytes counts what names reach, shared bytes once
// per use; HistoryBytes what only history or an open handle still holds.
func (s *Store) Usage(ctx context.Context) (u meta.Usage, err error) {
	err = s.read(ctx, "usage", 0, "", func(c *conn) error {
		return c.query(stUsage, func(st *sqlite.Stmt) bool {
			u = meta.Usage{Inodes: st.ColumnInt64(0), Bytes: st.ColumnInt64(1), HistoryBytes: st.ColumnInt64(2)}
			return true
		}, s.zone)
	})
	return u, err
}
