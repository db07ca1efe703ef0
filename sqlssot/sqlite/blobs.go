package sqlite

import (
	"context"

	"nexusfs/meta"
	"zombiezen.com/go/sqlite"
)

const blobCols = `b.id,b.size,b.place,b.segment,b.offset`

func scanBlob(st *sqlite.Stmt, col int) meta.Blob {
	return meta.Blob{ID: colHash(st, col), Size: st.ColumnInt64(col + 1), Place: meta.Place(st.ColumnInt64(col + 2)),
		Segment: st.ColumnInt64(col + 3), Offset: st.ColumnInt64(col + 4)}
}

// BlobsSince implements meta.Upkeep: blobs outside of SQL that operations after
// rev refer to, ordered by the first revision that does.
func (s *Store) BlobsSince(ctx context.Context, rev meta.Rev, fn func(b meta.Blob, first meta.Rev) error) error {
	return s.scan(ctx, "blobs", 0, func(c *conn) error {
		return c.each(`WITH touched AS (SELECT DISTINCT ino FROM operation_records WHERE rev>?1 AND rev<=?2)
			SELECT `+blobCols+`,min(x.begin) FROM (
				SELECT blob,begin FROM touched CROSS JOIN extents e ON e.ino=touched.ino WHERE e.begin>?1
				UNION ALL
				SELECT blob,begin FROM touched CROSS JOIN extent_history e ON e.ino=touched.ino WHERE e.begin>?1
			) x JOIN blobs b ON b.blob=x.blob WHERE b.place<>0 GROUP BY b.blob ORDER BY min(x.begin)`,
			func(st *sqlite.Stmt) error { return fn(scanBlob(st, 0), meta.Rev(unk(st.ColumnInt64(5)))) },
			s.base|int64(rev), s.base|keyMask)
	})
}

// Condemn implements meta.Upkeep. Blobs in SQL need no second phase: their
// rows, which are their bytes, go at once.
func (s *Store) Condemn(ctx context.Context, now int64, limit int) (n int, err error) {
	err = s.update(ctx, "condemn", func(w *conn) error {
		if err := w.script(`DELETE FROM blobs WHERE blob IN
			(SELECT blob FROM blobs WHERE zone=? AND refs=0 AND condemned IS NULL AND place=0 LIMIT ?)`, s.zone, limit); err != nil {
			return err
		}
		n = w.Changes()
		if n >= limit {
			return nil
		}
		if err := w.script(`UPDATE blobs SET condemned=? WHERE blob IN
			(SELECT blob FROM blobs WHERE zone=? AND refs=0 AND condemned IS NULL LIMIT ?)`, now, s.zone, limit-n); err != nil {
			return err
		}
		n += w.Changes()
		return nil
	})
	return n, err
}

// Condemned implements meta.Upkeep. Blobs whose removal was begun and not
// finished are listed too, so that a crash leaves nothing behind.
func (s *Store) Condemned(ctx context.Context, before int64, limit int) (out []meta.Blob, err error) {
	err = s.scan(ctx, "condemned", 0, func(c *conn) error {
		return c.each(`SELECT `+blobCols+` FROM blobs b WHERE b.zone=? AND b.refs=0 AND b.condemned<? ORDER BY b.condemned LIMIT ?`,
			func(st *sqlite.Stmt) error {
				out = append(out, scanBlob(st, 0))
				return nil
			}, s.zone, before, limit)
	})
	return out, err
}

// Claim implements meta.Upkeep.
func (s *Store) Claim(ctx context.Context, ids []meta.BlobID) (out []meta.Blob, err error) {
	err = s.update(ctx, "claim", func(w *conn) error {
		for i := range ids {
			if err := w.each(`UPDATE blobs AS b SET removing=1 WHERE zone=? AND id=? AND refs=0 AND condemned IS NOT NULL
				RETURNING id,size,place,segment,offset`, func(st *sqlite.Stmt) error {
				out = append(out, scanBlob(st, 0))
				return nil
			}, s.zone, ids[i][:]); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// Forget implements meta.Upkeep.
func (s *Store) Forget(ctx context.Context, ids []meta.BlobID) error {
	return s.update(ctx, "forget", func(w *conn) error {
		for i := range ids {
			if err := w.script(`DELETE FROM blobs WHERE zone=? AND id=? AND refs=0 AND removing=1`, s.zone, ids[i][:]); err != nil {
				return err
			}
		}
		return nil
	})
}

// Move implements meta.Upkeep.
func (s *Store) Move(ctx context.Context, from, to meta.Blob) error {
	if to.Place == meta.PlaceInline || from.ID != to.ID {
		return meta.E("move", 0, "", meta.KindInvalid, nil)
	}
	return s.update(ctx, "move", func(w *conn) error {
		err := w.script(`UPDATE blobs SET place=?,segment=?,offset=?,data=NULL
			WHERE zone=? AND id=? AND place=? AND segment=? AND offset=? AND removing=0`,
			int64(to.Place), to.Segment, to.Offset, s.zone, from.ID[:], int64(from.Place), from.Segment, from.Offset)
		if err == nil && w.Changes() == 0 {
			err = meta.E("move", 0, "", meta.KindConflict, nil)
		}
		return err
	})
}

// Placed implements meta.Upkeep.
func (s *Store) Placed(ctx context.Context, b meta.Blob) (found bool, err error) {
	err = s.read(ctx, "placed", 0, "", func(c *conn) error {
		return c.each("SELECT 1 FROM blobs WHERE zone=? AND id=? AND place=? AND segment=? AND offset=?",
			func(*sqlite.Stmt) error { found = true; return nil },
			s.zone, b.ID[:], int64(b.Place), b.Segment, b.Offset)
	})
	return found, err
}

// refDeltas collects changes of blobs.refs.
type refDeltas map[int64]int64

// count adds sign for every row that a query over extents yields (blob, count).
func (d refDeltas) count(c *conn, sign int64, sql string, args ...any) error {
	return c.each(sql, func(st *sqlite.Stmt) error {
		d[st.ColumnInt64(0)] += sign * st.ColumnInt64(1)
		return nil
	}, args...)
}

func (d refDeltas) apply(c *conn) error {
	for blob, n := range d {
		if n == 0 {
			continue
		}
		if _, err := c.exec(stBlobRefs, blob, n); err != nil {
			return err
		}
	}
	return nil
}

// fragmentScan bounds how many extents one call of Fragmented reads.
const fragmentScan = 200_000

// Fragmented implements meta.Upkeep. Each call goes on where the last one
// ended and begins again after the last file.
func (s *Store) Fragmented(ctx context.Context, pieces, limit int) (out []meta.Ino, err error) {
	s.sweepMu.Lock()
	defer s.sweepMu.Unlock()
	from := s.base | int64(s.fragmented)
	last := int64(0)
	err = s.scan(ctx, "fragmented", 0, func(c *conn) error {
		return c.each(`SELECT x.ino,x.n,i.size FROM (
				SELECT ino,count(*) AS n FROM (SELECT ino FROM extents WHERE ino>?1 AND ino<=?2 ORDER BY ino LIMIT ?3) GROUP BY ino
			) x JOIN inodes i ON i.ino=x.ino`, func(st *sqlite.Stmt) error {
			last = unk(st.ColumnInt64(0))
			if st.ColumnInt64(1) > int64(pieces)*max(1, st.ColumnInt64(2)>>20) {
				out = append(out, meta.Ino(last))
				if len(out) >= limit {
					return errStop
				}
			}
			return nil
		}, from, s.base|keyMask, fragmentScan)
	})
	s.fragmented = meta.Ino(last)
	return out, err
}
