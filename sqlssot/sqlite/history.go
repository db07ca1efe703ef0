package sqlite

import (
	"context"
	"errors"
	"math"

	"nexusfs/meta"
	"nexusfs/sqlssot/chain"
	"zombiezen.com/go/sqlite"
)

const recordCols = `r.rev,r.kind,r.ino,r.parent,r.name,r.new_parent,r.new_name,r.time,r.version,r.size,r.seq,r.before,r.after,r.digest,
	r.session,r.batch,r.head,a.uid,a.gid,a.pid,a.start,a.exe,a.cgroup,a.node,a.agent,a.task`

const recordFrom = ` FROM operation_records r LEFT JOIN actors a ON a.actor=r.actor `

func scanRecord(st *sqlite.Stmt, r *chain.Sealed) {
	r.Record = meta.Record{
		Rev: meta.Rev(unk(st.ColumnInt64(0))), Kind: meta.OpKind(st.ColumnInt64(1)), Ino: meta.Ino(unk(st.ColumnInt64(2))),
		Parent: meta.Ino(unk(st.ColumnInt64(3))), Name: colString(st, 4),
		NewParent: meta.Ino(unk(st.ColumnInt64(5))), NewName: colString(st, 6), Time: st.ColumnInt64(7),
		Version: st.ColumnInt64(8), Size: st.ColumnInt64(9), Seq: st.ColumnInt64(10),
		Before: st.ColumnText(11), After: st.ColumnText(12), Digest: colHash(st, 13),
		Actor: scanActor(st, 17),
	}
	r.Session, r.Batch, r.Head = st.ColumnInt64(14), st.ColumnInt64(15), colHash(st, 16)
}

func scanActor(st *sqlite.Stmt, col int) meta.Actor {
	return meta.Actor{UID: uint32(st.ColumnInt64(col)), GID: uint32(st.ColumnInt64(col + 1)), PID: uint32(st.ColumnInt64(col + 2)),
		StartTime: uint64(st.ColumnInt64(col + 3)), Exe: st.ColumnText(col + 4), Cgroup: st.ColumnText(col + 5),
		Node: st.ColumnText(col + 6), Agent: st.ColumnText(col + 7), Task: st.ColumnText(col + 8)}
}

// errStop ends an iteration that the caller wanted to end.
var errStop = errors.New("stop")

// scan is read on a connection for long reads, interrupted when ctx ends.
func (s *Store) scan(ctx context.Context, op string, ino meta.Ino, fn func(c *conn) error) error {
	if err := interrupted(ctx, op); err != nil {
		return err
	}
	c, err := s.scanners.get(ctx)
	if err != nil {
		return err
	}
	c.SetInterrupt(ctx.Done())
	err = c.do(stBeginRead)
	if err == nil {
		err = fn(c)
		c.SetInterrupt(nil)
		if !c.AutocommitEnabled() {
			if rerr := c.do(stRollback); err == nil {
				err = rerr
			}
		}
	}
	c.SetInterrupt(nil)
	s.scanners.put(c)
	if errors.Is(err, errStop) {
		err = nil
	}
	return classify(op, ino, "", err)
}

// Records implements meta.History. fn must not call the store's commit path
// for long: a read transaction is open meanwhile.
func (s *Store) Records(ctx context.Context, f meta.RecordFilter, fn func(*meta.Record) bool) error {
	until := int64(keyMask)
	if f.Until > 0 {
		until = int64(f.Until)
	}
	limit := int64(math.MaxInt64)
	if f.Limit > 0 {
		limit = int64(f.Limit)
	}
	order := "ASC"
	if f.Reverse {
		order = "DESC"
	}
	return s.scan(ctx, "records", f.Ino, func(c *conn) error {
		var r chain.Sealed
		visit := func(st *sqlite.Stmt) error {
			scanRecord(st, &r)
			rec := r.Record
			if !fn(&rec) {
				return errStop
			}
			return nil
		}
		since := s.base | int64(f.Since)
		if f.Ino == 0 {
			return c.each(`SELECT `+recordCols+recordFrom+`WHERE r.rev>? AND r.rev<=? ORDER BY r.rev `+order+` LIMIT ?`,
				visit, since, s.base|until, limit)
		}
		return c.each(`SELECT `+recordCols+recordFrom+`WHERE r.rev IN (
				SELECT rev FROM record_index WHERE ino=?4 AND rev>?1 AND rev<=?2
				UNION SELECT rev FROM operation_records
				WHERE rev>max(?1,(SELECT indexed FROM zones WHERE zone=?5)) AND rev<=?2 AND (ino=?4 OR parent=?4 OR new_parent=?4))
			ORDER BY r.rev `+order+` LIMIT ?3`, visit, since, s.base|until, limit, s.k(int64(f.Ino)), s.zone)
	})
}

// Versions implements meta.History.
func (s *Store) Versions(ctx context.Context, ino meta.Ino) (out []meta.Version, err error) {
	err = s.scan(ctx, "versions", ino, func(c *conn) error {
		visit := func(st *sqlite.Stmt) error {
			out = append(out, meta.Version{N: st.ColumnInt64(0), First: meta.Rev(unk(st.ColumnInt64(1))),
				Rev: meta.Rev(unk(st.ColumnInt64(2))), Size: st.ColumnInt64(3), Time: st.ColumnInt64(4), Actor: scanActor(st, 5)})
			return nil
		}
		const actor = `a.uid,a.gid,a.pid,a.start,a.exe,a.cgroup,a.node,a.agent,a.task`
		if err := c.each(`SELECT v.n,v.first_rev,v.rev,v.size,v.time,`+actor+` FROM version_rows v
			LEFT JOIN actors a ON a.actor=v.actor WHERE v.ino=? ORDER BY v.n`, visit, s.k(int64(ino))); err != nil || len(out) > 0 {
			return err
		}
		return c.each(`SELECT 1,i.content_rev,i.content_rev,i.size,coalesce(r.time,i.btime),`+actor+` FROM inodes i
			LEFT JOIN operation_records r ON r.rev=i.content_rev LEFT JOIN actors a ON a.actor=r.actor
			WHERE i.ino=? AND i.version=1`, visit, s.k(int64(ino)))
	})
	return out, err
}

// ExtentsAt implements meta.History.
func (s *Store) ExtentsAt(ctx context.Context, ino meta.Ino, at meta.Rev, off, end int64, limit int, inline bool) (out []meta.Extent, err error) {
	data := int64(0)
	if inline {
		data = 1
	}
	err = s.scan(ctx, "extents", ino, func(c *conn) error {
		return c.each(`SELECT `+extentCols+`,CASE WHEN ?6 THEN b.data END FROM (
				SELECT off,len,blob,blob_off,begin FROM extents WHERE ino=?1 AND off<?4 AND off+len>?3 AND begin<=?2
				UNION ALL
				SELECT off,len,blob,blob_off,begin FROM extent_history WHERE ino=?1 AND off<?4 AND off+len>?3 AND begin<=?2 AND "end">?2
			) e JOIN blobs b ON b.blob=e.blob ORDER BY e.off LIMIT ?5`,
			func(st *sqlite.Stmt) error {
				out = append(out, scanExtent(st))
				return nil
			}, s.k(int64(ino)), s.base|int64(at), off, end, limit, data)
	})
	return out, err
}

// InodeAt implements meta.History. KindNotExist when the inode did not exist
// yet or its history of that time is gone. A directory's counters and times are
// those of its next recorded change, for names move them without a record row
// of the directory itself.
func (s *Store) InodeAt(ctx context.Context, ino meta.Ino, at meta.Rev) (a meta.Attr, err error) {
	found := false
	err = s.scan(ctx, "inode", ino, func(c *conn) error {
		const cols = attrCols
		visit := func(st *sqlite.Stmt) error {
			scanAttr(st, 0, &a)
			found = true
			return nil
		}
		key, rev := s.k(int64(ino)), s.base|int64(at)
		if err := c.each(`SELECT `+cols+` FROM inode_history WHERE ino=? AND "end">? ORDER BY "end" LIMIT 1`, visit, key, rev); err != nil || found {
			return err
		}
		return c.each(`SELECT `+cols+` FROM inodes WHERE ino=?`, visit, key)
	})
	began := a.Rev
	if a.IsDir() {
		began = a.ContentRev
	}
	if err == nil && (!found || began > at) {
		err = meta.E("inode", ino, "", meta.KindNotExist, nil)
	}
	return a, err
}

// Deleted implements meta.History.
func (s *Store) Deleted(ctx context.Context, dir meta.Ino, limit int) (out []meta.DeletedName, err error) {
	err = s.scan(ctx, "deleted", dir, func(c *conn) error {
		return c.each(`SELECT h.name,h.ino,h.type,max(h."end"),coalesce(r.time,i.ctime),i.size,i.version
			FROM dentry_history h JOIN inodes i ON i.ino=h.ino AND i.nlink=0 LEFT JOIN operation_records r ON r.rev=h."end"
			WHERE h.parent=? GROUP BY h.cookie,h.name,h.ino ORDER BY 4 DESC LIMIT ?`,
			func(st *sqlite.Stmt) error {
				out = append(out, meta.DeletedName{Name: colString(st, 0), Ino: meta.Ino(unk(st.ColumnInt64(1))),
					Type: uint32(st.ColumnInt64(2)) << 12, End: meta.Rev(unk(st.ColumnInt64(3))), Time: st.ColumnInt64(4),
					Size: st.ColumnInt64(5), Version: st.ColumnInt64(6)})
				return nil
			}, s.k(int64(dir)), limit)
	})
	return out, err
}

// LateAnswer implements meta.History.
func (s *Store) LateAnswer(ctx context.Context, rev meta.Rev, reason string) error {
	return s.update(ctx, "late answer", func(w *conn) error {
		return w.script("INSERT INTO late_answers(rev,reason,time) VALUES(?,?,?) ON CONFLICT DO NOTHING",
			s.k(int64(rev)), reason, s.now().UnixNano())
	})
}

// maxDepth bounds the climb to the root; more is a loop in a damaged store.
const maxDepth = 1 << 16

// PathOf implements meta.History. A file with several names has the path of
// one of them. The row's hint usually says where; when it is stale the name is
// searched for, which reads all names of the zone for a file and those of one
// directory for a directory.
func (s *Store) PathOf(ctx context.Context, ino meta.Ino) (path string, err error) {
	err = s.scan(ctx, "path", ino, func(c *conn) error {
		for depth := 0; ino != meta.RootIno; depth++ {
			parent, name, err := s.nameOf(c, ino)
			if err != nil {
				return err
			}
			if name == "" || depth > maxDepth {
				return meta.E("path", ino, "", meta.KindNotExist, nil)
			}
			path = "/" + name + path
			ino = parent
		}
		return nil
	})
	if err == nil && path == "" {
		path = "/"
	}
	return path, err
}

// nameOf finds one name of an inode; "" when there is none.
func (s *Store) nameOf(c *conn, ino meta.Ino) (parent meta.Ino, name string, err error) {
	take := func(st *sqlite.Stmt) error {
		parent, name = meta.Ino(unk(st.ColumnInt64(0))), colString(st, 1)
		return nil
	}
	key := s.k(int64(ino))
	if err := c.each(`SELECT d.parent,d.name FROM inodes i JOIN dentries d ON d.parent=i.parent AND d.cookie=i.cookie AND d.ino=i.ino
		WHERE i.ino=? LIMIT 1`, take, key); err != nil || name != "" {
		return parent, name, err
	}
	dir, links := false, int64(0)
	if err := c.each(`SELECT mode & 61440 = 16384, nlink FROM inodes WHERE ino=?`, func(st *sqlite.Stmt) error {
		dir, links = st.ColumnInt64(0) != 0, st.ColumnInt64(1)
		return nil
	}, key); err != nil || links == 0 {
		return 0, "", err
	}
	if dir {
		err = c.each(`SELECT d.parent,d.name FROM inodes i JOIN dentries d ON d.parent=i.parent WHERE i.ino=?1 AND d.ino=?1 LIMIT 1`, take, key)
	} else {
		err = c.each(`SELECT parent,name FROM dentries WHERE ino=?1 AND parent BETWEEN ?2 AND ?3 LIMIT 1`, take, key, s.base, s.base|keyMask)
	}
	return parent, name, err
}
