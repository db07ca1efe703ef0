package sqlite

import (
	"context"
	"math"
	"slices"

	"nexusfs/meta"
	"zombiezen.com/go/sqlite"
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

// limits are a retention policy turned into revisions, as keys.
type limits struct {
	meta.Retention
	cut     int64 // history that ended up to here is too old; base: nothing is
	barrier int64 // history that ended up to here no recovery needs
}

// old is up to where history may go that no version keeps.
func (l *limits) old() int64 { return min(l.cut, l.barrier) }

// Prune implements meta.Upkeep. Rows go when no recovery needs them and
//   - a version: policy lets it go (never the newest one of a file);
//   - bytes: no version that stays refers to them, whatever their age, so that
//     what fsync replaced within one version does not pile up (P26);
//   - images, names and attributes: they ended before p.Before and no version
//     that stays needs them; with p.Off their age does not matter;
//   - records: they are older than p.Before (p.Off: any), in whole batches; the
//     chain head after them stays, sealed (P33).
//
// A call goes on where the last one ended, and ends when limit rows are removed
// (one file's may be more), when it has visited pruneReach times as many, or
// with done at the end of a sweep over everything.
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
	for visited := 0; n < limit && visited < limit*pruneReach; {
		if s.sweep.phase == sweepDone {
			s.sweep = sweep{}
			return n, true, nil
		}
		seen, removed, err := s.pruneStep(ctx, &l, min(limit-n, pruneChunk))
		if err != nil {
			return n, false, err
		}
		n += removed
		visited += max(seen, 1)
	}
	return n, false, nil
}

// pruneReach is how many rows or files a call may visit for each that it may
// remove.
const pruneReach = 64

// pruneChunk bounds what one transaction visits, so that commits wait little.
const pruneChunk = 64

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
	err = s.scan(ctx, "prune", 0, func(c *conn) error {
		l.cut, err = s.revBefore(c, p.Before)
		return err
	})
	return l, err
}

// revBefore finds the last revision (as key) whose time lies before t, by
// bisection: times grow with revisions but for steps of the clock.
func (s *Store) revBefore(c *conn, t int64) (int64, error) {
	lo, err := c.number(`SELECT coalesce(max(min(rev)-1,?1),?1) FROM operation_records WHERE rev BETWEEN ?1 AND ?2`, s.base, s.base|keyMask)
	if err != nil {
		return 0, err
	}
	hi, err := c.number(`SELECT coalesce(max(rev),?1) FROM operation_records WHERE rev BETWEEN ?1 AND ?2`, s.base, s.base|keyMask)
	for err == nil && lo < hi {
		mid := lo + (hi-lo+1)/2
		rev, before := int64(0), false
		err = c.each(`SELECT rev,time<? FROM operation_records WHERE rev>=? AND rev<=? ORDER BY rev LIMIT 1`, func(st *sqlite.Stmt) error {
			rev, before = st.ColumnInt64(0), st.ColumnInt64(1) != 0
			return nil
		}, t, mid, hi)
		switch {
		case rev == 0:
			hi = mid - 1
		case before:
			lo = rev
		default:
			hi = mid - 1
		}
	}
	return lo, err
}

// pruneStep does one chunk in one transaction.
func (s *Store) pruneStep(ctx context.Context, l *limits, chunk int) (seen, removed int, err error) {
	next := s.sweep
	err = s.update(ctx, "prune", func(w *conn) error {
		switch next.phase {
		case sweepFiles:
			seen, removed, err = s.pruneFiles(w, l, &next, chunk)
		case sweepNames:
			seen, removed, err = s.pruneNames(w, l, &next, chunk)
		case sweepXattrs:
			seen, removed, err = s.pruneXattrs(w, l, &next, chunk)
		case sweepRecords:
			seen, removed, err = s.pruneRecords(w, l, &next, chunk)
		}
		return err
	})
	if err == nil {
		s.sweep = next
	}
	return seen, removed, err
}

// advance begins the next phase.
func (w *sweep) advance() { *w = sweep{phase: w.phase + 1} }

// pruneFiles visits up to chunk files that have history.
func (s *Store) pruneFiles(w *conn, l *limits, sw *sweep, chunk int) (seen, removed int, err error) {
	if sw.ino == 0 {
		sw.ino = s.base
	}
	for seen < chunk {
		ino, err := w.number(`SELECT min(x) FROM (
			SELECT min(ino) AS x FROM version_rows WHERE ino>?1 AND ino<=?2 UNION ALL
			SELECT min(ino) FROM extent_history WHERE ino>?1 AND ino<=?2 UNION ALL
			SELECT min(ino) FROM inode_history WHERE ino>?1 AND ino<=?2)`, sw.ino, s.base|keyMask)
		if err != nil {
			return seen, removed, err
		}
		if ino == 0 {
			sw.advance()
			return seen, removed, nil
		}
		n, err := s.pruneFile(w, l, ino)
		if err != nil {
			return seen, removed, err
		}
		sw.ino = ino
		seen++
		removed += n
		seen += n / 8 // a file with much to remove counts for more
	}
	return seen, removed, nil
}

// PruneInode prunes the history of one inode as Prune does; limit is ignored,
// for one file is one transaction.
func (s *Store) PruneInode(ctx context.Context, ino meta.Ino, p meta.Retention, limit int) (n int, done bool, err error) {
	l, err := s.limits(ctx, p)
	if err != nil {
		return 0, false, err
	}
	err = s.update(ctx, "prune", func(w *conn) error {
		n, err = s.pruneFile(w, &l, s.k(int64(ino)))
		return err
	})
	return n, true, err
}

// pruneFile removes what one file need not keep.
func (s *Store) pruneFile(w *conn, l *limits, ino int64) (removed int, err error) {
	keep := int64(math.MaxInt32)
	switch {
	case l.Off:
		keep = 1
	case l.Versions > 0:
		keep = int64(l.Versions)
	}
	steps := []struct {
		sql  string
		args []any
	}{
		{`DELETE FROM version_rows WHERE ino=?1 AND rev<=?2
			AND n<(SELECT max(n) FROM version_rows WHERE ino=?1)
			AND (rev<=?3 OR n<=(SELECT n FROM version_rows WHERE ino=?1 ORDER BY n DESC LIMIT 1 OFFSET ?4))`,
			[]any{ino, l.barrier, l.cut, keep}},
		{`DELETE FROM inode_history WHERE ino=?1 AND "end"<=?2
			AND NOT EXISTS (SELECT 1 FROM version_rows v WHERE v.ino=?1 AND v.rev>=inode_history.rev AND v.rev<inode_history."end")
			AND NOT EXISTS (SELECT 1 FROM inodes i WHERE i.ino=?1 AND i.version=1 AND i.content_rev>=inode_history.rev AND i.content_rev<inode_history."end")`,
			[]any{ino, l.old()}},
	}
	for _, st := range steps {
		if err := w.script(st.sql, st.args...); err != nil {
			return removed, err
		}
		removed += w.Changes()
	}
	refs, bytes := refDeltas{}, int64(0)
	err = w.each(`DELETE FROM extent_history WHERE ino=?1 AND "end"<=?2
		AND NOT EXISTS (SELECT 1 FROM version_rows v WHERE v.ino=?1 AND v.rev>=extent_history.begin AND v.rev<extent_history."end")
		RETURNING blob,len`, func(st *sqlite.Stmt) error {
		refs[st.ColumnInt64(0)]--
		bytes += st.ColumnInt64(1)
		removed++
		return nil
	}, ino, l.barrier)
	if err == nil {
		err = refs.apply(w)
	}
	if err == nil && bytes > 0 {
		err = w.script("UPDATE counters SET history=history-? WHERE zone=? AND kind=0 AND id=0", bytes, s.zone)
	}
	return removed, err
}

// pruneNames visits up to chunk ended names.
func (s *Store) pruneNames(w *conn, l *limits, sw *sweep, chunk int) (seen, removed int, err error) {
	if sw.name == nil {
		sw.ino, sw.name = s.base, []byte{}
	}
	from := *sw
	err = w.each(`SELECT parent,cookie,name,"end" FROM dentry_history WHERE (parent,cookie,name,"end")>(?,?,?,?) AND parent<=?
		ORDER BY parent,cookie,name,"end" LIMIT ?`, func(st *sqlite.Stmt) error {
		sw.ino, sw.cookie, sw.name, sw.end = st.ColumnInt64(0), st.ColumnInt64(1), colBytes(st, 2), st.ColumnInt64(3)
		seen++
		return nil
	}, from.ino, from.cookie, from.name, from.end, s.base|keyMask, chunk)
	if err != nil {
		return 0, 0, err
	}
	if seen == 0 {
		sw.advance()
		return 0, 0, nil
	}
	err = w.script(`DELETE FROM dentry_history WHERE (parent,cookie,name,"end")>(?,?,?,?) AND (parent,cookie,name,"end")<=(?,?,?,?) AND "end"<=?`,
		from.ino, from.cookie, from.name, from.end, sw.ino, sw.cookie, sw.name, sw.end, l.old())
	return seen, w.Changes(), err
}

// pruneXattrs visits up to chunk ended attributes.
func (s *Store) pruneXattrs(w *conn, l *limits, sw *sweep, chunk int) (seen, removed int, err error) {
	if sw.name == nil {
		sw.ino, sw.name = s.base, []byte{}
	}
	from := *sw
	err = w.each(`SELECT ino,name,"end" FROM xattr_history WHERE (ino,name,"end")>(?,?,?) AND ino<=?
		ORDER BY ino,name,"end" LIMIT ?`, func(st *sqlite.Stmt) error {
		sw.ino, sw.name, sw.end = st.ColumnInt64(0), colBytes(st, 1), st.ColumnInt64(2)
		seen++
		return nil
	}, from.ino, from.name, from.end, s.base|keyMask, chunk)
	if err != nil {
		return 0, 0, err
	}
	if seen == 0 {
		sw.advance()
		return 0, 0, nil
	}
	err = w.script(`DELETE FROM xattr_history WHERE (ino,name,"end")>(?,?,?) AND (ino,name,"end")<=(?,?,?) AND "end"<=?`,
		from.ino, from.name, from.end, sw.ino, sw.name, sw.end, l.old())
	return seen, w.Changes(), err
}

// pruneRecords removes up to chunk of the oldest records, in whole batches,
// and keeps the chain head after them.
func (s *Store) pruneRecords(w *conn, l *limits, sw *sweep, chunk int) (seen, removed int, err error) {
	var upto int64
	var head []byte
	err = w.each(`SELECT rev,head FROM operation_records WHERE rev>?1 AND rev<=?2 AND rev<=coalesce(
			(SELECT rev FROM operation_records WHERE rev>?1 ORDER BY rev LIMIT 1 OFFSET ?3),?2) AND head IS NOT NULL
		ORDER BY rev DESC LIMIT 1`, func(st *sqlite.Stmt) error {
		upto, head = st.ColumnInt64(0), colBytes(st, 1)
		return nil
	}, s.base, min(l.old(), s.base|s.head.rev-1), max(chunk, maxBatchRows))
	if err != nil || upto == 0 {
		sw.advance()
		return 0, 0, err
	}
	if err := s.unindex(w, s.base, upto); err != nil {
		return 0, 0, err
	}
	if err := w.script("DELETE FROM late_answers WHERE rev>? AND rev<=?", s.base, upto); err != nil {
		return 0, 0, err
	}
	if err := w.script("DELETE FROM operation_records WHERE rev>? AND rev<=?", s.base, upto); err != nil {
		return 0, 0, err
	}
	removed = w.Changes()
	if err := w.script("DELETE FROM chain_seals WHERE rev BETWEEN ? AND ?", s.base, s.base|keyMask); err != nil {
		return 0, 0, err
	}
	err = w.script("INSERT INTO chain_seals(rev,head,time) VALUES(?,?,?)", upto, head, s.now().UnixNano())
	return removed, removed, err
}

// maxBatchRows is more than the records of any one batch, so that a chunk
// always holds a whole one.
const maxBatchRows = 1024

// unindex removes the index entries of records in (from, to].
func (s *Store) unindex(w *conn, from, to int64) error {
	return w.script(`DELETE FROM record_index WHERE (ino,rev) IN (
		SELECT ino,rev FROM operation_records WHERE rev>?1 AND rev<=?2 UNION ALL
		SELECT parent,rev FROM operation_records WHERE rev>?1 AND rev<=?2 AND parent<>0 UNION ALL
		SELECT new_parent,rev FROM operation_records WHERE rev>?1 AND rev<=?2 AND new_parent<>0)`, from, to)
}

// Orphans implements meta.Upkeep: what lost its last name before p.Before (with
// p.Off: at any time), and what never had a name, unless it is open.
func (s *Store) Orphans(ctx context.Context, p meta.Retention, limit int) (out []meta.Ino, err error) {
	l, err := s.limits(ctx, p)
	if err != nil {
		return nil, err
	}
	err = s.scan(ctx, "orphans", 0, func(c *conn) error {
		visit := func(st *sqlite.Stmt) error {
			if ino := meta.Ino(unk(st.ColumnInt64(0))); !slices.Contains(p.Open, ino) && !slices.Contains(out, ino) {
				out = append(out, ino)
			}
			if len(out) >= limit {
				return errStop
			}
			return nil
		}
		if err := c.each(`SELECT ino FROM inodes WHERE nlink=0 AND cookie=0 AND rev>? AND rev<=? ORDER BY rev`,
			visit, s.base, l.barrier); err != nil {
			return err
		}
		return c.each(`SELECT ino FROM inodes WHERE nlink=0 AND rev>? AND rev<=? ORDER BY rev`, visit, s.base, l.old())
	})
	return out, err
}

// dropChunk bounds the rows that one transaction of DropInode removes.
const dropChunk = 2000

// DropInode implements meta.Upkeep. It removes an inode without names with
// everything that belongs to it, in several transactions when that is much;
// the inode's row goes last. KindConflict when it has a name.
func (s *Store) DropInode(ctx context.Context, ino meta.Ino) error {
	for done := false; !done; {
		err := s.update(ctx, "drop", func(w *conn) (err error) {
			done, err = s.dropSome(w, s.k(int64(ino)))
			return err
		})
		if err != nil {
			return classify("drop", ino, "", err)
		}
	}
	return nil
}

func (s *Store) dropSome(w *conn, ino int64) (done bool, err error) {
	links, err := w.number("SELECT coalesce((SELECT nlink FROM inodes WHERE ino=?),-1)", ino)
	if err != nil || links < 0 {
		return true, err
	}
	if links > 0 {
		return false, conflict(meta.Ino(unk(ino)), "", "the inode has a name")
	}
	refs, rows, current, ended := refDeltas{}, 0, int64(0), int64(0)
	for _, t := range []struct {
		sql   string
		bytes *int64
	}{
		{`DELETE FROM extents WHERE (ino,off) IN (SELECT ino,off FROM extents WHERE ino=? LIMIT ?) RETURNING blob,len`, &current},
		{`DELETE FROM extent_history WHERE (ino,off,"end") IN (SELECT ino,off,"end" FROM extent_history WHERE ino=? LIMIT ?) RETURNING blob,len`, &ended},
	} {
		if err := w.each(t.sql, func(st *sqlite.Stmt) error {
			refs[st.ColumnInt64(0)]--
			*t.bytes += st.ColumnInt64(1)
			rows++
			return nil
		}, ino, dropChunk); err != nil {
			return false, err
		}
	}
	if err := refs.apply(w); err != nil {
		return false, err
	}
	if err := w.script("UPDATE counters SET history=history-? WHERE zone=? AND kind=0 AND id=0", current+ended, s.zone); err != nil {
		return false, err
	}
	if err := w.script("UPDATE inodes SET bytes=bytes-? WHERE ino=?", current, ino); err != nil || rows >= dropChunk {
		return false, err
	}
	for _, table := range []string{"inode_history", "xattrs", "xattr_history", "version_rows", "inodes"} {
		if err := w.script("DELETE FROM "+table+" WHERE ino=?", ino); err != nil {
			return false, err
		}
	}
	return true, nil
}
