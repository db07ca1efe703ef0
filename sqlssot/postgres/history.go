package postgres

import (
	"context"
	"errors"
	"math"
	"strings"

	"github.com/jackc/pgx/v5"
	"nexusfs/meta"
)

const actorCols = `a.uid,a.gid,a.pid,a.start,a.exe,a.cgroup,a.node,a.agent,a.task`

const recordCols = `r.rev,r.kind,r.ino,r.parent,r.name,r.new_parent,r.new_name,r.time,r.version,r.size,r.seq,r.before,r.after,r.digest,
	r.session,r.batch,r.head,` + actorCols

const recordFrom = ` FROM operation_records r LEFT JOIN actors a ON a.actor=r.actor `

// actorRow is where an actor's columns are scanned to; a row that is missing
// leaves an empty actor.
type actorRow struct {
	uid, gid, pid                  *uint32
	start                          *int64
	exe, cgroup, node, agent, task []byte
}

func (r *actorRow) dest() []any {
	return []any{&r.uid, &r.gid, &r.pid, &r.start, &r.exe, &r.cgroup, &r.node, &r.agent, &r.task}
}

func (r *actorRow) actor() meta.Actor {
	if r.uid == nil {
		return meta.Actor{}
	}
	return meta.Actor{UID: *r.uid, GID: *r.gid, PID: *r.pid, StartTime: uint64(*r.start), Exe: string(r.exe), Cgroup: string(r.cgroup),
		Node: string(r.node), Agent: string(r.agent), Task: string(r.task)}
}

// recordRow is where a record's columns are scanned to, with what the chain
// keeps beside it.
type recordRow struct {
	rec                         meta.Record
	rev, ino, parent, newParent int64
	name, newName, digest       []byte
	before, after               *string
	session                     int64
	batch                       *int64 // nil: not the last of its batch
	head                        []byte
	actorRow
}

func (r *recordRow) dest() []any {
	rec := &r.rec
	return append([]any{&r.rev, &rec.Kind, &r.ino, &r.parent, &r.name, &r.newParent, &r.newName, &rec.Time, &rec.Version, &rec.Size, &rec.Seq,
		&r.before, &r.after, &r.digest, &r.session, &r.batch, &r.head}, r.actorRow.dest()...)
}

func (r *recordRow) record() meta.Record {
	rec := r.rec
	rec.Rev, rec.Ino, rec.Parent, rec.NewParent = meta.Rev(unk(r.rev)), meta.Ino(unk(r.ino)), meta.Ino(unk(r.parent)), meta.Ino(unk(r.newParent))
	rec.Name, rec.NewName, rec.Actor, rec.Digest = string(r.name), string(r.newName), r.actor(), blobID(r.digest)
	if rec.Before = ""; r.before != nil {
		rec.Before = *r.before
	}
	if rec.After = ""; r.after != nil {
		rec.After = *r.after
	}
	return rec
}

// Records implements meta.History. fn must not take long: a transaction that
// keeps old rows from being cleaned up is open meanwhile.
func (s *Store) Records(ctx context.Context, f meta.RecordFilter, fn func(*meta.Record) bool) error {
	until, limit, order := int64(keyMask), int64(math.MaxInt64), "ASC"
	if f.Until > 0 {
		until = int64(f.Until)
	}
	if f.Limit > 0 {
		limit = int64(f.Limit)
	}
	if f.Reverse {
		order = "DESC"
	}
	sql := `SELECT ` + recordCols + recordFrom + `WHERE r.rev>$1 AND r.rev<=$2 ORDER BY r.rev ` + order + ` LIMIT $3`
	args := []any{s.base | int64(f.Since), s.base | until, limit}
	if f.Ino != 0 {
		sql = `SELECT ` + recordCols + recordFrom + `WHERE r.rev IN (
				SELECT rev FROM record_index WHERE ino=$4 AND rev>$1 AND rev<=$2
				UNION SELECT rev FROM operation_records
				WHERE rev>greatest($1,(SELECT indexed FROM zones WHERE zone=$5)) AND rev<=$2 AND (ino=$4 OR parent=$4 OR new_parent=$4))
			ORDER BY r.rev ` + order + ` LIMIT $3`
		args = append(args, s.k(int64(f.Ino)), s.zone)
	}
	return s.scan(ctx, "records", f.Ino, func(tx pgx.Tx) error {
		var r recordRow
		dest := r.dest()
		return each(ctx, tx, sql, func(rows pgx.Rows) error {
			if err := rows.Scan(dest...); err != nil {
				return err
			}
			rec := r.record()
			if !fn(&rec) {
				return errStop
			}
			return nil
		}, args...)
	})
}

// Versions implements meta.History.
func (s *Store) Versions(ctx context.Context, ino meta.Ino) (out []meta.Version, err error) {
	err = s.scan(ctx, "versions", ino, func(tx pgx.Tx) error {
		var v meta.Version
		var first, rev int64
		var a actorRow
		dest := append([]any{&v.N, &first, &rev, &v.Size, &v.Time}, a.dest()...)
		visit := func(rows pgx.Rows) error {
			err := rows.Scan(dest...)
			v.First, v.Rev, v.Actor = meta.Rev(unk(first)), meta.Rev(unk(rev)), a.actor()
			out = append(out, v)
			return err
		}
		if err := each(ctx, tx, `SELECT v.n,v.first_rev,v.rev,v.size,v.time,`+actorCols+` FROM version_rows v
			LEFT JOIN actors a ON a.actor=v.actor WHERE v.ino=$1 ORDER BY v.n`, visit, s.k(int64(ino))); err != nil || len(out) > 0 {
			return err
		}
		return each(ctx, tx, `SELECT 1::bigint,i.content_rev,i.content_rev,i.size,coalesce(r.time,i.btime),`+actorCols+` FROM inodes i
			LEFT JOIN operation_records r ON r.rev=i.content_rev LEFT JOIN actors a ON a.actor=r.actor
			WHERE i.ino=$1 AND i.version=1`, visit, s.k(int64(ino)))
	})
	return out, err
}

// ExtentsAt implements meta.History.
func (s *Store) ExtentsAt(ctx context.Context, ino meta.Ino, at meta.Rev, off, end int64, limit int, inline bool) (out []meta.Extent, err error) {
	err = s.scan(ctx, "extents", ino, func(tx pgx.Tx) error {
		var r extentRow
		return each(ctx, tx, `SELECT `+extentCols+`,CASE WHEN $6 THEN b.data END FROM (
				SELECT off,len,blob,blob_off,begin FROM extents WHERE ino=$1 AND off<$4 AND off+len>$3 AND begin<=$2
				UNION ALL
				SELECT off,len,blob,blob_off,begin FROM extent_history WHERE ino=$1 AND off<$4 AND off+len>$3 AND begin<=$2 AND "end">$2
			) e JOIN blobs b ON b.blob=e.blob ORDER BY e.off LIMIT $5`,
			func(rows pgx.Rows) error {
				err := rows.Scan(r.dest()...)
				out = append(out, r.extent())
				return err
			}, s.k(int64(ino)), s.base|int64(at), off, end, limit, inline)
	})
	return out, err
}

// InodeAt implements meta.History. KindNotExist when the inode did not exist
// yet or its history of that time is gone. A directory's counters and times are
// those of its next recorded change, for names move them without a record row
// of the directory itself.
func (s *Store) InodeAt(ctx context.Context, ino meta.Ino, at meta.Rev) (meta.Attr, error) {
	var r attrRow
	err := s.one(ctx, "inode", ino, "", `SELECT `+attrCols+` FROM (
			(SELECT ino,0 AS part,`+inodeCols+` FROM inode_history WHERE ino=$1 AND "end">$2 ORDER BY "end" LIMIT 1)
			UNION ALL SELECT ino,1,`+inodeCols+` FROM inodes WHERE ino=$1
		) i ORDER BY part LIMIT 1`, r.dest(), s.k(int64(ino)), s.base|int64(at))
	if err != nil {
		return meta.Attr{}, err
	}
	a := r.attr()
	began := a.Rev
	if a.IsDir() {
		began = a.ContentRev
	}
	if began > at {
		return a, meta.E("inode", ino, "", meta.KindNotExist, nil)
	}
	return a, nil
}

// Deleted implements meta.History.
func (s *Store) Deleted(ctx context.Context, dir meta.Ino, limit int) (out []meta.DeletedName, err error) {
	err = s.scan(ctx, "deleted", dir, func(tx pgx.Tx) error {
		return each(ctx, tx, `SELECT h.name,h.ino,h.type,h."end",coalesce(r.time,i.ctime),i.size,i.version
			FROM (SELECT name,ino,max(type) AS type,max("end") AS "end" FROM dentry_history WHERE parent=$1 GROUP BY cookie,name,ino) h
			JOIN inodes i ON i.ino=h.ino AND i.nlink=0 LEFT JOIN operation_records r ON r.rev=h."end"
			ORDER BY h."end" DESC LIMIT $2`,
			func(rows pgx.Rows) error {
				var d meta.DeletedName
				var name []byte
				var ino, kind, end int64
				err := rows.Scan(&name, &ino, &kind, &end, &d.Time, &d.Size, &d.Version)
				d.Name, d.Ino, d.Type, d.End = string(name), meta.Ino(unk(ino)), uint32(kind)<<12, meta.Rev(unk(end))
				out = append(out, d)
				return err
			}, s.k(int64(dir)), limit)
	})
	return out, err
}

// LateAnswer implements meta.History.
func (s *Store) LateAnswer(ctx context.Context, rev meta.Rev, reason string) error {
	if err := interrupted(ctx, "late answer"); err != nil {
		return err
	}
	if err := s.writable("late answer"); err != nil {
		return err
	}
	reason = strings.ReplaceAll(strings.ToValidUTF8(reason, "?"), "\x00", "?")
	return s.read(ctx, "late answer", 0, "", func(ctx context.Context, c *pgx.Conn) error {
		_, err := c.Exec(ctx, `INSERT INTO late_answers(rev,reason,time) VALUES($1,$2,$3) ON CONFLICT DO NOTHING`,
			s.k(int64(rev)), reason, s.o.Now().UnixNano())
		return err
	})
}

// maxDepth bounds the climb to the root; more is a loop in a damaged store.
const maxDepth = 1 << 16

// PathOf implements meta.History. A file with several names has the path of
// one of them. The row's hint usually says where; when it is stale the name is
// searched for, which reads all names of the zone for a file and those of one
// directory for a directory.
func (s *Store) PathOf(ctx context.Context, ino meta.Ino) (path string, err error) {
	err = s.scan(ctx, "path", ino, func(tx pgx.Tx) error {
		for depth := 0; ino != meta.RootIno; depth++ {
			parent, name, err := s.nameOf(ctx, tx, ino)
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
func (s *Store) nameOf(ctx context.Context, tx pgx.Tx, ino meta.Ino) (meta.Ino, string, error) {
	var parent, links int64
	var name []byte
	var dir bool
	err := tx.QueryRow(ctx, `SELECT coalesce(d.parent,0),d.name,i.mode & 61440 = 16384,i.nlink FROM inodes i
		LEFT JOIN dentries d ON d.parent=i.parent AND d.cookie=i.cookie AND d.ino=i.ino WHERE i.ino=$1 LIMIT 1`, s.k(int64(ino))).Scan(&parent, &name, &dir, &links)
	if err == nil && name == nil && links > 0 {
		sql := `SELECT parent,name FROM dentries WHERE ino=$1 AND parent BETWEEN $2 AND $3 LIMIT 1`
		if dir {
			sql = `SELECT d.parent,d.name FROM inodes i JOIN dentries d ON d.parent=i.parent WHERE i.ino=$1 AND d.ino=$1 AND d.parent BETWEEN $2 AND $3 LIMIT 1`
		}
		err = tx.QueryRow(ctx, sql, s.k(int64(ino)), s.base, s.base|keyMask).Scan(&parent, &name)
	}
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, "", nil
	}
	return meta.Ino(unk(parent)), string(name), err
}
