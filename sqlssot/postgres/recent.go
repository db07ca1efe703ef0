package postgres

import (
	"context"

	"github.com/jackc/pgx/v5"
	"nexusfs/meta"
)

// PruneRecent implements meta.Upkeep: Prune, for what operations since the last
// call have made superfluous and for what has become too old since then. Both
// are found by the records: of what was done lately, and of the oldest that
// are left.
func (s *Store) PruneRecent(ctx context.Context, p meta.Retention, limit int) (n int, done bool, err error) {
	if limit <= 0 {
		return 0, false, meta.E("prune", 0, "", meta.KindInvalid, nil)
	}
	s.sweepMu.Lock()
	defer s.sweepMu.Unlock()
	l, err := s.limits(ctx, p)
	if err != nil {
		return 0, false, err
	}
	if n, done, err = s.pruneChanged(ctx, &l, limit); err != nil || !done || n >= limit {
		return n, false, err
	}
	seen, removed, err := s.pruneRecords(ctx, &l)
	return n + removed, seen == 0, err
}

// pruneChanged prunes the files whose content operations have changed since
// the last call, up to the barrier.
func (s *Store) pruneChanged(ctx context.Context, l *limits, limit int) (n int, done bool, err error) {
	kinds := []int64{int64(meta.OpWriteStream), int64(meta.OpFallocate), int64(meta.OpCopyRange), int64(meta.OpTruncate)}
	for n < limit {
		var inos []int64
		last, read := s.recent, 0
		err := s.scan(ctx, "prune", 0, func(tx pgx.Tx) error {
			known := map[int64]bool{}
			return each(ctx, tx, `SELECT rev,ino,version>0 OR kind=ANY($3) FROM operation_records WHERE rev>$1 AND rev<=$2 ORDER BY rev LIMIT $4`,
				func(rows pgx.Rows) error {
					var ino int64
					var content bool
					if err := rows.Scan(&last, &ino, &content); err != nil {
						return err
					}
					if content && !known[ino] {
						known[ino] = true
						inos = append(inos, ino)
					}
					read++
					return nil
				}, s.recent, l.barrier, kinds, recentChunk)
		})
		if err != nil {
			return n, false, err
		}
		removed, err := s.pruneInos(ctx, l, inos)
		if n += removed; err != nil {
			return n, false, err
		}
		s.recent = last
		if read < recentChunk {
			return n, true, nil
		}
	}
	return n, false, nil
}

// oldRecords is a chunk of the oldest records, in whole batches, and the
// history that their operations began.
type oldRecords struct {
	upto    int64  // the last one's revision
	head    []byte // the chain head there
	inos    []int64
	parents []int64 // of names that ended
	cookies []int64
	names   [][]byte
}

// findOldRecords finds the chunk that may go next; upto is 0 when there is none.
// The newest record always stays.
func (s *Store) findOldRecords(ctx context.Context, l *limits) (o oldRecords, err error) {
	err = s.scan(ctx, "prune", 0, func(tx pgx.Tx) error {
		read := 0
		err := each(ctx, tx, `SELECT rev,head FROM operation_records
			WHERE rev>$1 AND rev<=$2 AND rev<(SELECT rev FROM counters WHERE zone=$3 AND kind=0 AND id=0) ORDER BY rev LIMIT $4`, func(rows pgx.Rows) error {
			var rev int64
			var head []byte
			if err := rows.Scan(&rev, &head); err != nil {
				return err
			}
			if read++; head != nil && (read <= pruneChunk || o.upto == 0) {
				o.upto, o.head = rev, head
			}
			return nil
		}, s.base, l.old(), s.zone, maxBatchRows)
		if err != nil || o.upto == 0 {
			return err
		}
		if o.inos, err = numbers(ctx, tx, `SELECT ino FROM operation_records WHERE rev>$1 AND rev<=$2 UNION
			SELECT substring(before FROM '"replaced":([0-9]+)')::bigint|$1 FROM operation_records
			WHERE rev>$1 AND rev<=$2 AND kind=ANY($3) AND before LIKE '%"replaced":%'`,
			s.base, o.upto, []int64{int64(meta.OpRename), int64(meta.OpExchange)}); err != nil {
			return err
		}
		return each(ctx, tx, `SELECT parent,name FROM operation_records WHERE rev>$1 AND rev<=$2 AND kind=ANY($3) UNION
			SELECT new_parent,new_name FROM operation_records WHERE rev>$1 AND rev<=$2 AND kind=ANY($4)`, func(rows pgx.Rows) error {
			var parent int64
			var name []byte
			err := rows.Scan(&parent, &name)
			o.parents, o.names = append(o.parents, parent), append(o.names, name)
			o.cookies = append(o.cookies, int64(meta.NameCookie(string(name))))
			return err
		}, s.base, o.upto, []int64{int64(meta.OpRename), int64(meta.OpExchange), int64(meta.OpUnlink), int64(meta.OpRmdir)},
			[]int64{int64(meta.OpRename), int64(meta.OpExchange)})
	})
	return o, err
}

// pruneRecords removes a chunk of the oldest records with the history that
// their operations began, and keeps the chain head after them. It returns
// nothing seen when none may go.
func (s *Store) pruneRecords(ctx context.Context, l *limits) (seen, removed int, err error) {
	o, err := s.findOldRecords(ctx, l)
	if err != nil || o.upto == 0 {
		return 0, 0, err
	}
	if removed, err = s.pruneInos(ctx, l, o.inos); err != nil {
		return 0, removed, err
	}
	names := 0
	err = s.update(ctx, "prune", func(tx pgx.Tx) error {
		if names, err = exec(ctx, tx, `DELETE FROM dentry_history h USING unnest($1::bigint[],$2::bigint[],$3::bytea[]) x(parent,cookie,name)
			WHERE h.parent=x.parent AND h.cookie=x.cookie AND h.name=x.name AND h."end"<=$4`, o.parents, o.cookies, o.names, o.upto); err != nil {
			return err
		}
		seen, err = s.removeRecords(ctx, tx, &o)
		return err
	})
	return seen, removed + names + seen, err
}

// removeRecords removes the records and what belongs to them alone.
func (s *Store) removeRecords(ctx context.Context, tx pgx.Tx, o *oldRecords) (removed int, err error) {
	if _, err := exec(ctx, tx, `DELETE FROM xattr_history WHERE "end"<=$2 AND
		ino IN (SELECT ino FROM operation_records WHERE rev>$1 AND rev<=$2)`, s.base, o.upto); err != nil {
		return 0, err
	}
	if err := s.unindex(ctx, tx, s.base, o.upto); err != nil {
		return 0, err
	}
	if _, err := exec(ctx, tx, `DELETE FROM late_answers WHERE rev>$1 AND rev<=$2`, s.base, o.upto); err != nil {
		return 0, err
	}
	if removed, err = exec(ctx, tx, `DELETE FROM operation_records WHERE rev>$1 AND rev<=$2`, s.base, o.upto); err != nil {
		return 0, err
	}
	if _, err := exec(ctx, tx, `DELETE FROM chain_seals WHERE rev BETWEEN $1 AND $2`, s.base, s.base|keyMask); err != nil {
		return removed, err
	}
	_, err = exec(ctx, tx, `INSERT INTO chain_seals(rev,head,time) VALUES($1,$2,$3)`, o.upto, o.head, s.o.Now().UnixNano())
	return removed, err
}

// unindex removes the index entries of records in (from, to].
func (s *Store) unindex(ctx context.Context, tx pgx.Tx, from, to int64) error {
	_, err := exec(ctx, tx, `DELETE FROM record_index WHERE (ino,rev) IN (
		SELECT ino,rev FROM operation_records WHERE rev>$1 AND rev<=$2 UNION ALL
		SELECT parent,rev FROM operation_records WHERE rev>$1 AND rev<=$2 AND parent<>0 UNION ALL
		SELECT new_parent,rev FROM operation_records WHERE rev>$1 AND rev<=$2 AND new_parent<>0)`, from, to)
	return err
}
