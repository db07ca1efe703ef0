package postgres

import (
	"context"

	"github.com/jackc/pgx/v5"
	"nexusfs/meta"
)

const blobCols = `b.id,b.size,b.place,b.segment,b."offset"`

// blobRow is where a blob's columns are scanned to.
type blobRow struct {
	b  meta.Blob
	id []byte
}

func (r *blobRow) dest() []any {
	return []any{&r.id, &r.b.Size, &r.b.Place, &r.b.Segment, &r.b.Offset}
}

func (r *blobRow) blob() meta.Blob {
	b := r.b
	b.ID = blobID(r.id)
	return b
}

// BlobsSince implements meta.Upkeep: blobs outside of SQL that operations after
// rev refer to, ordered by the first revision that does.
func (s *Store) BlobsSince(ctx context.Context, rev meta.Rev, fn func(b meta.Blob, first meta.Rev) error) error {
	return s.scan(ctx, "blobs", 0, func(tx pgx.Tx) error {
		var r blobRow
		var first int64
		dest := append(r.dest(), &first)
		return each(ctx, tx, `WITH touched AS (SELECT DISTINCT ino FROM operation_records WHERE rev>$1 AND rev<=$2)
			SELECT `+blobCols+`,x.first FROM (SELECT blob,min(begin) AS first FROM (
				SELECT blob,begin FROM touched JOIN extents e ON e.ino=touched.ino WHERE e.begin>$1
				UNION ALL
				SELECT blob,begin FROM touched JOIN extent_history e ON e.ino=touched.ino WHERE e.begin>$1
			) y GROUP BY blob) x JOIN blobs b ON b.blob=x.blob WHERE b.place<>0 ORDER BY x.first`,
			func(rows pgx.Rows) error {
				if err := rows.Scan(dest...); err != nil {
					return err
				}
				return fn(r.blob(), meta.Rev(unk(first)))
			}, s.base|int64(rev), s.base|keyMask)
	})
}

// Condemn implements meta.Upkeep. Blobs in SQL need no second phase: their
// rows, which are their bytes, go at once.
func (s *Store) Condemn(ctx context.Context, now int64, limit int) (n int, err error) {
	err = s.update(ctx, "condemn", func(tx pgx.Tx) error {
		n, err = exec(ctx, tx, `DELETE FROM blobs WHERE blob IN
			(SELECT blob FROM blobs WHERE zone=$1 AND refs=0 AND condemned IS NULL AND place=0 LIMIT $2)`, s.zone, limit)
		if err != nil || n >= limit {
			return err
		}
		more, err := exec(ctx, tx, `UPDATE blobs SET condemned=$3 WHERE blob IN
			(SELECT blob FROM blobs WHERE zone=$1 AND refs=0 AND condemned IS NULL LIMIT $2)`, s.zone, limit-n, now)
		n += more
		return err
	})
	return n, err
}

// Condemned implements meta.Upkeep. Blobs whose removal was begun and not
// finished are listed too, so that a crash leaves nothing behind.
func (s *Store) Condemned(ctx context.Context, before int64, limit int) (out []meta.Blob, err error) {
	err = s.scan(ctx, "condemned", 0, func(tx pgx.Tx) error {
		out, err = blobList(ctx, tx, `SELECT `+blobCols+` FROM blobs b WHERE b.zone=$1 AND b.refs=0 AND b.condemned<$2 ORDER BY b.condemned LIMIT $3`,
			s.zone, before, limit)
		return err
	})
	return out, err
}

func blobList(ctx context.Context, tx pgx.Tx, sql string, args ...any) (out []meta.Blob, err error) {
	var r blobRow
	err = each(ctx, tx, sql, func(rows pgx.Rows) error {
		err := rows.Scan(r.dest()...)
		out = append(out, r.blob())
		return err
	}, args...)
	return out, err
}

// byteIDs are names of blobs as the driver takes them.
func byteIDs(ids []meta.BlobID) [][]byte {
	out := make([][]byte, len(ids))
	for i := range ids {
		out[i] = ids[i][:]
	}
	return out
}

// Claim implements meta.Upkeep.
func (s *Store) Claim(ctx context.Context, ids []meta.BlobID) (out []meta.Blob, err error) {
	err = s.update(ctx, "claim", func(tx pgx.Tx) error {
		out, err = blobList(ctx, tx, `UPDATE blobs AS b SET removing=1 WHERE zone=$1 AND id=ANY($2) AND refs=0 AND condemned IS NOT NULL
			RETURNING `+blobCols, s.zone, byteIDs(ids))
		return err
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// Forget implements meta.Upkeep.
func (s *Store) Forget(ctx context.Context, ids []meta.BlobID) error {
	return s.update(ctx, "forget", func(tx pgx.Tx) error {
		_, err := exec(ctx, tx, `DELETE FROM blobs WHERE zone=$1 AND id=ANY($2) AND refs=0 AND removing=1`, s.zone, byteIDs(ids))
		return err
	})
}

// Move implements meta.Upkeep.
func (s *Store) Move(ctx context.Context, from, to meta.Blob) error {
	if to.Place == meta.PlaceInline || from.ID != to.ID {
		return meta.E("move", 0, "", meta.KindInvalid, nil)
	}
	return s.update(ctx, "move", func(tx pgx.Tx) error {
		n, err := exec(ctx, tx, `UPDATE blobs SET place=$1,segment=$2,"offset"=$3,data=NULL
			WHERE zone=$4 AND id=$5 AND place=$6 AND segment=$7 AND "offset"=$8 AND removing=0`,
			to.Place, to.Segment, to.Offset, s.zone, from.ID[:], from.Place, from.Segment, from.Offset)
		if err == nil && n == 0 {
			err = meta.E("move", 0, "", meta.KindConflict, nil)
		}
		return err
	})
}

// Placed implements meta.Upkeep.
func (s *Store) Placed(ctx context.Context, b meta.Blob) (found bool, err error) {
	err = s.one(ctx, "placed", 0, "", `SELECT EXISTS (SELECT FROM blobs WHERE zone=$1 AND id=$2 AND place=$3 AND segment=$4 AND "offset"=$5)`,
		[]any{&found}, s.zone, b.ID[:], b.Place, b.Segment, b.Offset)
	return found, err
}

// fragmentScan bounds how many extents one call of Fragmented reads.
const fragmentScan = 200_000

// Fragmented implements meta.Upkeep. Each call goes on where the last one
// ended and begins again after the last file.
func (s *Store) Fragmented(ctx context.Context, pieces, limit int) (out []meta.Ino, err error) {
	s.sweepMu.Lock()
	defer s.sweepMu.Unlock()
	last := int64(0)
	err = s.scan(ctx, "fragmented", 0, func(tx pgx.Tx) error {
		return each(ctx, tx, `SELECT x.ino,x.n,i.size FROM (
				SELECT ino,count(*) AS n FROM (SELECT ino FROM extents WHERE ino>$1 AND ino<=$2 ORDER BY ino LIMIT $3) y GROUP BY ino
			) x JOIN inodes i ON i.ino=x.ino ORDER BY x.ino`, func(rows pgx.Rows) error {
			var n, size int64
			if err := rows.Scan(&last, &n, &size); err != nil {
				return err
			}
			last = unk(last)
			if n > int64(pieces)*max(1, size>>20) {
				out = append(out, meta.Ino(last))
				if len(out) >= limit {
					return errStop
				}
			}
			return nil
		}, s.base|int64(s.fragmented), s.base|keyMask, fragmentScan)
	})
	s.fragmented = meta.Ino(last)
	return out, err
}
