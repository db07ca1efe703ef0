package postgres

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"
	"nexusfs/meta"
)

// attrCols are an inode's columns in the order of attrRow.
const attrCols = `i.ino,i.mode,i.uid,i.gid,i.nlink,i.rdev,i.flags,i.size,i.bytes,i.entries,i.atime,i.mtime,i.ctime,i.btime,i.parent,i.creator,i.rev,i.content_rev,i.version`

// inodeCols are all columns behind the key, for history and back.
const inodeCols = `mode,uid,gid,nlink,rdev,flags,size,bytes,entries,atime,mtime,ctime,btime,parent,cookie,creator,rev,content_rev,version,target`

const extentCols = `e.off,e.len,e.blob_off,e.begin,b.id,b.size,b.place,b.segment,b."offset"`

// attrRow is where an inode's columns are scanned to.
type attrRow struct {
	a                         meta.Attr
	ino, parent, rev, content int64
}

func (r *attrRow) dest() []any {
	a := &r.a
	return []any{&r.ino, &a.Mode, &a.UID, &a.GID, &a.Nlink, &a.Rdev, &a.Flags, &a.Size, &a.Bytes, &a.Entries,
		&a.Atime, &a.Mtime, &a.Ctime, &a.Btime, &r.parent, &a.Creator, &r.rev, &r.content, &a.Version}
}

func (r *attrRow) attr() meta.Attr {
	a := r.a
	a.Ino, a.Rev, a.ContentRev, a.Parent = meta.Ino(unk(r.ino)), meta.Rev(unk(r.rev)), meta.Rev(unk(r.content)), 0
	if a.IsDir() {
		a.Parent = meta.Ino(unk(r.parent))
	}
	return a
}

// one reads one row with one statement; no row is KindNotExist.
func (s *Store) one(ctx context.Context, op string, ino meta.Ino, name, sql string, dest []any, args ...any) error {
	return s.read(ctx, op, ino, name, func(ctx context.Context, c *pgx.Conn) error {
		err := c.QueryRow(ctx, sql, args...).Scan(dest...)
		if errors.Is(err, pgx.ErrNoRows) {
			return meta.E(op, ino, name, meta.KindNotExist, nil)
		}
		return err
	})
}

// all reads rows with one statement. dest is filled and row called for each; the
// statement may be sent twice, then begin is called again.
func (s *Store) all(ctx context.Context, op string, ino meta.Ino, sql string, begin func(), dest []any, row func() error, args ...any) error {
	return s.read(ctx, op, ino, "", func(ctx context.Context, c *pgx.Conn) error {
		begin()
		rows, err := c.Query(ctx, sql, args...)
		if err != nil {
			return err
		}
		_, err = pgx.ForEachRow(rows, dest, row)
		return err
	})
}

// Inode implements meta.Store.
func (s *Store) Inode(ctx context.Context, ino meta.Ino) (meta.Attr, error) {
	var r attrRow
	if err := s.one(ctx, "inode", ino, "", `SELECT `+attrCols+` FROM inodes i WHERE i.ino=$1`, r.dest(), s.k(int64(ino))); err != nil {
		return meta.Attr{}, err
	}
	return r.attr(), nil
}

// Lookup implements meta.Store.
func (s *Store) Lookup(ctx context.Context, parent meta.Ino, name string) (meta.Attr, error) {
	var r attrRow
	err := s.one(ctx, "lookup", parent, name, `SELECT `+attrCols+` FROM dentries d JOIN inodes i ON i.ino=d.ino WHERE d.parent=$1 AND d.cookie=$2 AND d.name=$3`,
		r.dest(), s.k(int64(parent)), int64(meta.NameCookie(name)), []byte(name))
	if err != nil {
		return meta.Attr{}, err
	}
	return r.attr(), nil
}

// Target implements meta.Store. KindInvalid when the inode is no symbolic link.
func (s *Store) Target(ctx context.Context, ino meta.Ino) (string, error) {
	var target []byte
	var link bool
	err := s.one(ctx, "readlink", ino, "", `SELECT target, mode & 61440 = 40960 FROM inodes WHERE ino=$1`, []any{&target, &link}, s.k(int64(ino)))
	if err == nil && !link {
		err = meta.E("readlink", ino, "", meta.KindInvalid, nil)
	}
	return string(target), err
}

// List implements meta.Store: one statement per page.
func (s *Store) List(ctx context.Context, dir meta.Ino, after uint64, limit int, attrs bool, buf []meta.Entry) ([]meta.Entry, error) {
	if limit <= 0 {
		return buf, interrupted(ctx, "list")
	}
	const page = ` WHERE d.parent=$1 AND d.cookie>$2 ORDER BY d.cookie FETCH FIRST $3 ROWS WITH TIES`
	start := len(buf)
	var cookie, ino, kind int64
	var name []byte
	var r attrRow
	sql, dest := `SELECT d.cookie,d.name,d.ino,d.type FROM dentries d`+page, []any{&cookie, &name, &ino, &kind}
	if attrs {
		sql, dest = `SELECT d.cookie,d.name,`+attrCols+` FROM dentries d JOIN inodes i ON i.ino=d.ino`+page, append([]any{&cookie, &name}, r.dest()...)
	}
	err := s.all(ctx, "list", dir, sql, func() { buf = buf[:start] }, dest, func() error {
		e := meta.Entry{Cookie: uint64(cookie), Name: string(name)}
		if attrs {
			e.Attr = r.attr()
		} else {
			e.Attr.Ino, e.Attr.Mode = meta.Ino(unk(ino)), uint32(kind)<<12
		}
		buf = append(buf, e)
		return nil
	}, s.k(int64(dir)), int64(after), limit)
	return buf, err
}

// Xattr implements meta.Store.
func (s *Store) Xattr(ctx context.Context, ino meta.Ino, name string) (value []byte, err error) {
	err = s.read(ctx, "getxattr", ino, name, func(ctx context.Context, c *pgx.Conn) error {
		err := c.QueryRow(ctx, `SELECT value FROM xattrs WHERE ino=$1 AND name=$2`, s.k(int64(ino)), []byte(name)).Scan(&value)
		if errors.Is(err, pgx.ErrNoRows) {
			return meta.E("getxattr", ino, name, meta.KindNoData, nil)
		}
		return err
	})
	return value, err
}

// Xattrs implements meta.Store.
func (s *Store) Xattrs(ctx context.Context, ino meta.Ino) (names []string, err error) {
	var name []byte
	err = s.all(ctx, "listxattr", ino, `SELECT name FROM xattrs WHERE ino=$1 ORDER BY name`, func() { names = nil }, []any{&name}, func() error {
		names = append(names, string(name))
		return nil
	}, s.k(int64(ino)))
	return names, err
}

// extentRow is where an extent's columns are scanned to.
type extentRow struct {
	e     meta.Extent
	begin int64
	id    []byte
	data  []byte
}

func (r *extentRow) dest() []any {
	e := &r.e
	return []any{&e.Off, &e.Len, &e.BlobOff, &r.begin, &r.id, &e.Blob.Size, &e.Blob.Place, &e.Blob.Segment, &e.Blob.Offset, &r.data}
}

func (r *extentRow) extent() meta.Extent {
	e := r.e
	e.Begin, e.Blob.ID, e.Data = meta.Rev(unk(r.begin)), blobID(r.id), r.data
	return e
}

// blobID turns a stored name into a BlobID.
func blobID(b []byte) (id meta.BlobID) {
	copy(id[:], b)
	return id
}

// Extents implements meta.Store.
func (s *Store) Extents(ctx context.Context, ino meta.Ino, off, end int64, limit int, inline bool) (out []meta.Extent, err error) {
	if limit <= 0 {
		return nil, interrupted(ctx, "extents")
	}
	var r extentRow
	err = s.all(ctx, "extents", ino, `SELECT `+extentCols+`, CASE WHEN $4 THEN b.data END FROM extents e JOIN blobs b ON b.blob=e.blob
		WHERE e.ino=$1 AND e.off<$3 AND e.off+e.len>$2
		AND e.off>=coalesce((SELECT max(off) FROM extents WHERE ino=$1 AND off<=$2), $2)
		ORDER BY e.off LIMIT $5`, func() { out = nil }, r.dest(), func() error {
		out = append(out, r.extent())
		return nil
	}, s.k(int64(ino)), off, end, inline, limit)
	return out, err
}

// Blob implements meta.Store.
func (s *Store) Blob(ctx context.Context, id meta.BlobID) (meta.Blob, error) {
	b := meta.Blob{ID: id}
	err := s.one(ctx, "blob", 0, "", `SELECT size,place,segment,"offset" FROM blobs WHERE zone=$1 AND id=$2 AND condemned IS NULL`,
		[]any{&b.Size, &b.Place, &b.Segment, &b.Offset}, s.zone, id[:])
	if err != nil {
		return meta.Blob{}, err
	}
	return b, nil
}

const headSQL = `SELECT c.rev,c.head,c.barrier,c.reserved,z.epoch FROM counters c JOIN zones z ON z.zone=c.zone WHERE c.zone=$1 AND c.kind=0 AND c.id=0`

// Head implements meta.Store.
func (s *Store) Head(ctx context.Context) (h meta.Head, err error) {
	var rev, barrier, reserved int64
	var hash []byte
	err = s.one(ctx, "head", 0, "", headSQL, []any{&rev, &hash, &barrier, &reserved, &h.Epoch}, s.zone)
	copy(h.Hash[:], hash)
	h.Rev, h.Barrier, h.Reserved = meta.Rev(unk(rev)), meta.Rev(unk(barrier)), meta.Rev(unk(reserved))
	return h, err
}

// Usage implements meta.Store. Bytes counts what names reach, shared bytes once
// per use; HistoryBytes what only history or an open handle still holds.
func (s *Store) Usage(ctx context.Context) (u meta.Usage, err error) {
	err = s.one(ctx, "usage", 0, "", `SELECT inodes,bytes,history FROM counters WHERE zone=$1 AND kind=0 AND id=0`,
		[]any{&u.Inodes, &u.Bytes, &u.HistoryBytes}, s.zone)
	return u, err
}
