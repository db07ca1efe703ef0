package postgres

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"
	"nexusfs/meta"
)

// Orphans implements meta.Upkeep: what lost its last name before p.Before (with
// p.Off: at any time), and what never had a name, unless it is open.
func (s *Store) Orphans(ctx context.Context, p meta.Retention, limit int) (out []meta.Ino, err error) {
	l, err := s.limits(ctx, p)
	if err != nil {
		return nil, err
	}
	open := make([]int64, len(p.Open))
	for i, ino := range p.Open {
		open[i] = s.k(int64(ino))
	}
	err = s.scan(ctx, "orphans", 0, func(tx pgx.Tx) error {
		list, err := numbers(ctx, tx, `SELECT ino FROM nameless WHERE rev>$1 AND rev<=CASE WHEN born THEN $2::bigint ELSE $3::bigint END AND ino<>ALL($4)
			AND rev<=greatest($2,$3) ORDER BY born,rev LIMIT $5`, s.base, l.old(), l.barrier, open, limit)
		for _, ino := range list {
			out = append(out, meta.Ino(unk(ino)))
		}
		return err
	})
	return out, err
}

// dropChunk bounds the rows that one transaction of DropInode removes.
const dropChunk = 2048

// DropInode implements meta.Upkeep. It removes an inode without names with
// everything that belongs to it, in several transactions when that is much;
// the inode's row goes last. KindConflict when it has a name.
func (s *Store) DropInode(ctx context.Context, ino meta.Ino) error {
	for done := false; !done; {
		err := s.update(ctx, "drop", func(tx pgx.Tx) (err error) {
			done, err = s.dropSome(ctx, tx, s.k(int64(ino)))
			return err
		})
		if err != nil {
			return classify("drop", ino, "", err)
		}
	}
	return nil
}

func (s *Store) dropSome(ctx context.Context, tx pgx.Tx, ino int64) (done bool, err error) {
	var links int64
	err = tx.QueryRow(ctx, `SELECT nlink FROM inodes WHERE ino=$1`, ino).Scan(&links)
	if errors.Is(err, pgx.ErrNoRows) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	if links > 0 {
		return false, conflict(meta.Ino(unk(ino)), "", "the inode has a name")
	}
	var rows, current, ended int64
	err = tx.QueryRow(ctx, `WITH now AS (
			DELETE FROM extents WHERE (ino,off) IN (SELECT ino,off FROM extents WHERE ino=$1 LIMIT $2) RETURNING blob,len
		), past AS (
			DELETE FROM extent_history WHERE (ino,off,"end") IN (SELECT ino,off,"end" FROM extent_history WHERE ino=$1 LIMIT $2) RETURNING blob,len
		), counted AS (
			UPDATE blobs b SET refs=b.refs-u.n FROM (SELECT blob,count(*) AS n FROM (SELECT blob FROM now UNION ALL SELECT blob FROM past) x GROUP BY blob) u
			WHERE b.blob=u.blob
		) SELECT (SELECT count(*) FROM now)+(SELECT count(*) FROM past),
			(SELECT coalesce(sum(len),0)::bigint FROM now),(SELECT coalesce(sum(len),0)::bigint FROM past)`, ino, dropChunk).Scan(&rows, &current, &ended)
	if err != nil {
		return false, err
	}
	if err := s.lessHistory(ctx, tx, current+ended); err != nil {
		return false, err
	}
	if _, err := exec(ctx, tx, `UPDATE inodes SET bytes=bytes-$2 WHERE ino=$1`, ino, current); err != nil || rows >= dropChunk {
		return false, err
	}
	_, err = exec(ctx, tx, `WITH a AS (DELETE FROM inode_history WHERE ino=$1), b AS (DELETE FROM xattrs WHERE ino=$1),
		c AS (DELETE FROM xattr_history WHERE ino=$1), d AS (DELETE FROM version_rows WHERE ino=$1), e AS (DELETE FROM nameless WHERE ino=$1)
		DELETE FROM inodes WHERE ino=$1`, ino)
	return err == nil, err
}
