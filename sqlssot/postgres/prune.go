package postgres

import (
	"context"
	"fmt"
	"math"
	"slices"

	"github.com/jackc/pgx/v5"
	"nexusfs/meta"
)

// sweep is where Prune goes on. A sweep visits every file that has history,
// then the history of names, of attributes, and the records.
type sweep struct {
	phase  int
	ino    int64  // files: the last one visited, as key
	cookie int64  // names: rest of the last key
	name   []byte // names and attributes: rest of the last key
	end    int64
}

const (
	sweepFiles = iota
	sweepNames
	sweepXattrs
	sweepRecords
	sweepDone
)

// advance begins the next phase.
func (w *sweep) advance() { *w = sweep{phase: w.phase + 1} }

// limits are a retention policy turned into revisions, as keys.
type limits struct {
	meta.Retention
	cut     int64 // history that ended up to here is too old; base: nothing is
	barrier int64 // history that ended up to here no recovery needs
}

// old is up to where history may go that no version keeps.
func (l *limits) old() int64 { return min(l.cut, l.barrier) }

// keep is how many of a file's newest versions stay whatever their age says.
func (l *limits) keep() int64 {
	switch {
	case l.Off:
		return 1
	case l.Versions > 0:
		return int64(l.Versions)
	}
	return math.MaxInt32
}

// Limits of one step of pruning.
const (
	pruneReach   = 4096 // files or rows that one call looks at
	pruneChunk   = 256  // of them at a time
	pruneRows    = 1024 // rows of one kind that one transaction removes
	recentChunk  = 4096 // records read at a time
	maxBatchRows = 1024 // more than the records of any one batch, so that a chunk always holds a whole one
)

// Prune implements meta.Upkeep. Rows go when no recovery needs them and
//   - a version: policy lets it go (never the newest one of a file);
//   - bytes: no version that stays refers to them, whatever their age, so that
//     what fsync replaced within one version does not pile up (P26);
//   - images, names and attributes: they ended before p.Before and no version
//     that stays needs them; with p.Off their age does not matter;
//   - records: they are older than p.Before (p.Off: any), in whole batches; the
//     chain head after them stays, sealed (P33).
//
// What may go is looked for without a lock; commits wait only while rows are
// removed, some hundreds at a time. A call goes on where the last one ended, and
// ends when limit rows are removed, when it has visited pruneReach files or
// rows, or with done at the end of a sweep over everything.
func (s *Store) Prune(ctx context.Context, p meta.Retention, limit int) (n int, done bool, err error) {
	if limit <= 0 {
		return 0, false, meta.E("prune", 0, "", meta.KindInvalid, nil)
	}
	s.sweepMu.Lock()
	defer s.sweepMu.Unlock()
	l, err := s.limits(ctx, p)
	if err != nil {
		return 0, false, err
	}
	for visited := 0; n < limit && visited < pruneReach; {
		if s.sweep.phase == sweepDone {
			s.sweep = sweep{}
			return n, true, nil
		}
		next := s.sweep
		seen, removed, err := s.pruneStep(ctx, &l, &next)
		if err != nil {
			return n, false, err
		}
		s.sweep = next
		n += removed
		visited += max(seen, 1)
	}
	return n, false, nil
}

// limits finds the revisions that a policy means.
func (s *Store) limits(ctx context.Context, p meta.Retention) (l limits, err error) {
	l = limits{Retention: p, cut: s.base, barrier: s.base | int64(p.Barrier)}
	if p.Off {
		l.cut = s.base | keyMask
		return l, nil
	}
	if p.Before == 0 {
		return l, nil
	}
	err = s.scan(ctx, "prune", 0, func(tx pgx.Tx) error {
		l.cut, err = s.revBefore(ctx, tx, p.Before)
		return err
	})
	return l, err
}

// revBefore finds the last revision (as key) whose time lies before t, by
// bisection: times grow with revisions but for steps of the clock.
func (s *Store) revBefore(ctx context.Context, tx pgx.Tx, t int64) (int64, error) {
	var lo, hi int64
	err := tx.QueryRow(ctx, `SELECT coalesce(min(rev)-1,$1::bigint),coalesce(max(rev),$1) FROM operation_records WHERE rev BETWEEN $1 AND $2`,
		s.base, s.base|keyMask).Scan(&lo, &hi)
	for err == nil && lo < hi {
		mid := lo + (hi-lo+1)/2
		rev, before := int64(0), false
		err = each(ctx, tx, `SELECT rev,time<$1 FROM operation_records WHERE rev>=$2 AND rev<=$3 ORDER BY rev LIMIT 1`,
			func(rows pgx.Rows) error { return rows.Scan(&rev, &before) }, t, mid, hi)
		if rev != 0 && before {
			lo = rev
		} else {
			hi = mid - 1
		}
	}
	return lo, err
}

// pruneStep does one chunk of a sweep.
func (s *Store) pruneStep(ctx context.Context, l *limits, next *sweep) (seen, removed int, err error) {
	switch next.phase {
	case sweepFiles:
		return s.pruneFiles(ctx, l, next)
	case sweepNames:
		return s.pruneNames(ctx, l, next)
	case sweepXattrs:
		return s.pruneXattrs(ctx, l, next)
	}
	if seen, removed, err = s.pruneRecords(ctx, l); seen == 0 {
		next.advance()
	}
	return seen, removed, err
}

// pruneFiles visits up to pruneChunk files that have history.
func (s *Store) pruneFiles(ctx context.Context, l *limits, sw *sweep) (seen, removed int, err error) {
	if sw.ino == 0 {
		sw.ino = s.base
	}
	var inos []int64
	err = s.scan(ctx, "prune", 0, func(tx pgx.Tx) error {
		inos, err = numbers(ctx, tx, `SELECT ino FROM (
				(SELECT DISTINCT ino FROM version_rows WHERE ino>$1 AND ino<=$2 ORDER BY ino LIMIT $3) UNION
				(SELECT DISTINCT ino FROM extent_history WHERE ino>$1 AND ino<=$2 ORDER BY ino LIMIT $3) UNION
				(SELECT DISTINCT ino FROM inode_history WHERE ino>$1 AND ino<=$2 ORDER BY ino LIMIT $3)
			) x ORDER BY ino LIMIT $3`, sw.ino, s.base|keyMask, pruneChunk)
		return err
	})
	if err != nil {
		return 0, 0, err
	}
	if len(inos) == 0 {
		sw.advance()
		return 0, 0, nil
	}
	sw.ino = inos[len(inos)-1]
	removed, err = s.pruneInos(ctx, l, inos)
	return len(inos), removed, err
}

// numbers returns the integers of a query's only column.
func numbers(ctx context.Context, tx pgx.Tx, sql string, args ...any) (out []int64, err error) {
	err = each(ctx, tx, sql, func(rows pgx.Rows) error {
		var n int64
		err := rows.Scan(&n)
		out = append(out, n)
		return err
	}, args...)
	return out, err
}

// PruneInode prunes the history of one inode as Prune does.
func (s *Store) PruneInode(ctx context.Context, ino meta.Ino, p meta.Retention, limit int) (n int, done bool, err error) {
	l, err := s.limits(ctx, p)
	if err != nil {
		return 0, false, err
	}
	n, err = s.pruneInos(ctx, &l, []int64{s.k(int64(ino))})
	return n, true, err
}

// What may go of some files: $1 their numbers, $2 what no recovery needs, $3
// what is too old, $4 how many versions stay.
const (
	goneVersions = ` FROM version_rows x WHERE x.ino=ANY($1) AND x.rev<=$2 AND x.n<(SELECT max(n) FROM version_rows v WHERE v.ino=x.ino)
		AND (x.rev<=$3 OR x.n<=(SELECT n FROM version_rows v WHERE v.ino=x.ino ORDER BY n DESC LIMIT 1 OFFSET $4))`
	goneImages = ` FROM inode_history x WHERE x.ino=ANY($1) AND x."end"<=$2 AND x."end"<=$3 AND $4::bigint>0
		AND NOT EXISTS (SELECT FROM version_rows v WHERE v.ino=x.ino AND v.rev>=x.rev AND v.rev<x."end")
		AND NOT EXISTS (SELECT FROM inodes i WHERE i.ino=x.ino AND i.version=1 AND i.content_rev>=x.rev AND i.content_rev<x."end")`
	goneBytes = ` FROM extent_history x WHERE x.ino=ANY($1) AND x."end"<=$2 AND $3::bigint>=0 AND $4::bigint>0
		AND NOT EXISTS (SELECT FROM version_rows v WHERE v.ino=x.ino AND v.rev>=x.begin AND v.rev<x."end")`
)

// pruneInos removes what these files need not keep. It looks first, so that
// commits wait only for files that have something to remove.
func (s *Store) pruneInos(ctx context.Context, l *limits, inos []int64) (removed int, err error) {
	for some := range slices.Chunk(inos, pruneChunk) {
		var todo []int64
		err = s.scan(ctx, "prune", 0, func(tx pgx.Tx) error {
			todo, err = numbers(ctx, tx, `SELECT x.ino`+goneVersions+` UNION SELECT x.ino`+goneImages+` UNION SELECT x.ino`+goneBytes,
				some, l.barrier, l.cut, l.keep())
			return err
		})
		if err != nil {
			return removed, err
		}
		for more := len(todo) > 0; more; {
			n := 0
			if err = s.update(ctx, "prune", func(tx pgx.Tx) error {
				n, more, err = s.pruneSome(ctx, tx, l, todo)
				return err
			}); err != nil {
				return removed, err
			}
			removed += n
		}
	}
	return removed, nil
}

// pruneSome removes up to pruneRows rows of each kind that some files need not keep.
func (s *Store) pruneSome(ctx context.Context, tx pgx.Tx, l *limits, inos []int64) (removed int, more bool, err error) {
	limit := fmt.Sprintf(" LIMIT %d)", pruneRows)
	args := []any{inos, l.barrier, l.cut, l.keep()}
	for _, t := range []struct{ table, key, gone string }{{"version_rows", "ino,n", goneVersions}, {"inode_history", `ino,"end"`, goneImages}} {
		n, err := exec(ctx, tx, "DELETE FROM "+t.table+" WHERE ("+t.key+") IN (SELECT "+t.key+t.gone+limit, args...)
		if err != nil {
			return removed, false, err
		}
		removed += n
		more = more || n == pruneRows
	}
	var n, bytes int64
	err = tx.QueryRow(ctx, `WITH gone AS (
			DELETE FROM extent_history WHERE (ino,off,"end") IN (SELECT ino,off,"end"`+goneBytes+limit+` RETURNING blob,len
		), counted AS (
			UPDATE blobs b SET refs=b.refs-u.n FROM (SELECT blob,count(*) AS n FROM gone GROUP BY blob) u WHERE b.blob=u.blob
		) SELECT count(*),coalesce(sum(len),0)::bigint FROM gone`, args...).Scan(&n, &bytes)
	if err == nil && bytes > 0 {
		err = s.lessHistory(ctx, tx, bytes)
	}
	return removed + int(n), more || n == pruneRows, err
}

// lessHistory takes bytes off the zone's history.
func (s *Store) lessHistory(ctx context.Context, tx pgx.Tx, bytes int64) error {
	_, err := exec(ctx, tx, `UPDATE counters SET history=history-$2 WHERE zone=$1 AND kind=0 AND id=0`, s.zone, bytes)
	return err
}

// pruneNames visits up to pruneChunk ended names.
func (s *Store) pruneNames(ctx context.Context, l *limits, sw *sweep) (seen, removed int, err error) {
	if sw.name == nil {
		sw.ino, sw.name = s.base, []byte{}
	}
	from, gone := *sw, 0
	err = s.scan(ctx, "prune", 0, func(tx pgx.Tx) error {
		return each(ctx, tx, `SELECT parent,cookie,name,"end" FROM dentry_history WHERE (parent,cookie,name,"end")>($1,$2,$3,$4) AND parent<=$5
			ORDER BY parent,cookie,name,"end" LIMIT $6`, func(rows pgx.Rows) error {
			err := rows.Scan(&sw.ino, &sw.cookie, &sw.name, &sw.end)
			if sw.end <= l.old() {
				gone++
			}
			seen++
			return err
		}, from.ino, from.cookie, from.name, from.end, s.base|keyMask, pruneChunk)
	})
	if err != nil || seen == 0 {
		sw.advance()
		return 0, 0, err
	}
	if gone == 0 {
		return seen, 0, nil
	}
	err = s.update(ctx, "prune", func(tx pgx.Tx) error {
		removed, err = exec(ctx, tx, `DELETE FROM dentry_history WHERE (parent,cookie,name,"end")>($1,$2,$3,$4) AND (parent,cookie,name,"end")<=($5,$6,$7,$8) AND "end"<=$9`,
			from.ino, from.cookie, from.name, from.end, sw.ino, sw.cookie, sw.name, sw.end, l.old())
		return err
	})
	return seen, removed, err
}

// pruneXattrs visits up to pruneChunk ended attributes.
func (s *Store) pruneXattrs(ctx context.Context, l *limits, sw *sweep) (seen, removed int, err error) {
	if sw.name == nil {
		sw.ino, sw.name = s.base, []byte{}
	}
	from, gone := *sw, 0
	err = s.scan(ctx, "prune", 0, func(tx pgx.Tx) error {
		return each(ctx, tx, `SELECT ino,name,"end" FROM xattr_history WHERE (ino,name,"end")>($1,$2,$3) AND ino<=$4
			ORDER BY ino,name,"end" LIMIT $5`, func(rows pgx.Rows) error {
			err := rows.Scan(&sw.ino, &sw.name, &sw.end)
			if sw.end <= l.old() {
				gone++
			}
			seen++
			return err
		}, from.ino, from.name, from.end, s.base|keyMask, pruneChunk)
	})
	if err != nil || seen == 0 {
		sw.advance()
		return 0, 0, err
	}
	if gone == 0 {
		return seen, 0, nil
	}
	err = s.update(ctx, "prune", func(tx pgx.Tx) error {
		removed, err = exec(ctx, tx, `DELETE FROM xattr_history WHERE (ino,name,"end")>($1,$2,$3) AND (ino,name,"end")<=($4,$5,$6) AND "end"<=$7`,
			from.ino, from.name, from.end, sw.ino, sw.name, sw.end, l.old())
		return err
	})
	return seen, removed, err
}
