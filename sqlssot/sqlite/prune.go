package sqlite

import (
	"context"
	"fmt"
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
// What may go is looked for on a connection of its own; commits wait only
// while rows are removed, a few at a time. A call goes on where the last one
// ended, and ends when limit rows are removed, when it has visited pruneReach
// files or rows, or with done at the end of a sweep over everything.
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

// Limits of one step of pruning.
const (
	pruneReach   = 4096 // files or rows that one call looks at
	pruneChunk   = 256  // of them at a time
	pruneRows    = 256  // rows of one kind that one transaction removes
	recentChunk  = 4096 // records read at a time
	maxBatchRows = 1024 // more than the records of any one batch, so that a chunk always holds a whole one
)

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

// advance begins the next phase.
func (w *sweep) advance() { *w = sweep{phase: w.phase + 1} }

// pruneFiles visits up to pruneChunk files that have history.
func (s *Store) pruneFiles(ctx context.Context, l *limits, sw *sweep) (seen, removed int, err error) {
	if sw.ino == 0 {
		sw.ino = s.base
	}
	var inos []int64
	err = s.scan(ctx, "prune", 0, func(c *conn) error {
		for at := sw.ino; len(inos) < pruneChunk; inos = append(inos, at) {
			at, err = c.number(`SELECT min(x) FROM (
				SELECT min(ino) AS x FROM version_rows WHERE ino>?1 AND ino<=?2 UNION ALL
				SELECT min(ino) FROM extent_history WHERE ino>?1 AND ino<=?2 UNION ALL
				SELECT min(ino) FROM inode_history WHERE ino>?1 AND ino<=?2)`, at, s.base|keyMask)
			if err != nil || at == 0 {
				return err
			}
		}
		return nil
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

// PruneInode prunes the history of one inode as Prune does.
func (s *Store) PruneInode(ctx context.Context, ino meta.Ino, p meta.Retention, limit int) (n int, done bool, err error) {
	l, err := s.limits(ctx, p)
	if err != nil {
		return 0, false, err
	}
	n, err = s.pruneInos(ctx, &l, []int64{s.k(int64(ino))})
	return n, true, err
}

// What may go of one file: ?1 its number, ?2 what no recovery needs, ?3 what is
// too old. An OFFSET that is a parameter would have the statement prepared anew
// for every file.
const (
	goneImages = ` FROM inode_history WHERE ino=?1 AND "end"<=?2 AND "end"<=?3
		AND NOT EXISTS (SELECT 1 FROM version_rows v WHERE v.ino=?1 AND v.rev>=inode_history.rev AND v.rev<inode_history."end")
		AND NOT EXISTS (SELECT 1 FROM inodes i WHERE i.ino=?1 AND i.version=1 AND i.content_rev>=inode_history.rev AND i.content_rev<inode_history."end")`
	goneBytes = ` FROM extent_history WHERE ino=?1 AND "end"<=?2
		AND NOT EXISTS (SELECT 1 FROM version_rows v WHERE v.ino=?1 AND v.rev>=extent_history.begin AND v.rev<extent_history."end")`
)

// goneVersions finds the versions of file ?1 that may go.
func (l *limits) goneVersions() string {
	keep := math.MaxInt32
	switch {
	case l.Off:
		keep = 1
	case l.Versions > 0:
		keep = l.Versions
	}
	return fmt.Sprintf(` FROM version_rows WHERE ino=?1 AND rev<=?2
		AND n<(SELECT max(n) FROM version_rows WHERE ino=?1)
		AND (rev<=?3 OR n<=(SELECT n FROM version_rows WHERE ino=?1 ORDER BY n DESC LIMIT 1 OFFSET %d))`, keep)
}

// pruneInos removes what these files need not keep. It looks first, so that
// commits wait only for files that have something to remove.
func (s *Store) pruneInos(ctx context.Context, l *limits, inos []int64) (removed int, err error) {
	look := `SELECT EXISTS (SELECT 1` + l.goneVersions() + `) OR EXISTS (SELECT 1` + goneImages + `) OR EXISTS (SELECT 1` + goneBytes + `)`
	for len(inos) > 0 {
		var todo []int64
		some := inos[:min(len(inos), pruneChunk)]
		inos = inos[len(some):]
		err = s.scan(ctx, "prune", 0, func(c *conn) error {
			for _, ino := range some {
				n, err := c.number(look, ino, l.barrier, l.cut)
				if err != nil {
					return err
				}
				if n != 0 {
					todo = append(todo, ino)
				}
			}
			return nil
		})
		if err != nil {
			return removed, err
		}
		for _, ino := range todo {
			for more := true; more; {
				n := 0
				if err = s.update(ctx, "prune", func(w *conn) error {
					n, more, err = s.pruneFile(w, l, ino)
					return err
				}); err != nil {
					return removed, err
				}
				removed += n
			}
		}
	}
	return removed, nil
}

// pruneFile removes up to pruneRows rows of each kind that one file need not keep.
func (s *Store) pruneFile(w *conn, l *limits, ino int64) (removed int, more bool, err error) {
	limit := fmt.Sprintf(" LIMIT %d)", pruneRows)
	for _, t := range []struct{ table, key, gone string }{{"version_rows", "ino,n", l.goneVersions()}, {"inode_history", `ino,"end"`, goneImages}} {
		if err := w.script("DELETE FROM "+t.table+" WHERE ("+t.key+") IN (SELECT "+t.key+t.gone+limit,
			ino, l.barrier, l.cut); err != nil {
			return removed, false, err
		}
		removed += w.Changes()
		more = more || w.Changes() == pruneRows
	}
	refs, bytes, n := refDeltas{}, int64(0), 0
	err = w.each(`DELETE FROM extent_history WHERE (ino,off,"end") IN (SELECT ino,off,"end"`+goneBytes+limit+` RETURNING blob,len`,
		func(st *sqlite.Stmt) error {
			refs[st.ColumnInt64(0)]--
			bytes += st.ColumnInt64(1)
			n++
			return nil
		}, ino, l.barrier)
	if err == nil {
		err = refs.apply(w)
	}
	if err == nil && bytes > 0 {
		err = w.script("UPDATE counters SET history=history-? WHERE zone=? AND kind=0 AND id=0", bytes, s.zone)
	}
	return removed + n, more || n == pruneRows, err
}

// pruneNames visits up to pruneChunk ended names.
func (s *Store) pruneNames(ctx context.Context, l *limits, sw *sweep) (seen, removed int, err error) {
	if sw.name == nil {
		sw.ino, sw.name = s.base, []byte{}
	}
	from, gone := *sw, 0
	err = s.scan(ctx, "prune", 0, func(c *conn) error {
		return c.each(`SELECT parent,cookie,name,"end" FROM dentry_history WHERE (parent,cookie,name,"end")>(?,?,?,?) AND parent<=?
			ORDER BY parent,cookie,name,"end"`, func(st *sqlite.Stmt) error {
			sw.ino, sw.cookie, sw.name, sw.end = st.ColumnInt64(0), st.ColumnInt64(1), colBytes(st, 2), st.ColumnInt64(3)
			if sw.end <= l.old() {
				gone++
			}
			if seen++; seen == pruneChunk {
				return errStop
			}
			return nil
		}, from.ino, from.cookie, from.name, from.end, s.base|keyMask)
	})
	if err != nil || seen == 0 {
		sw.advance()
		return 0, 0, err
	}
	if gone == 0 {
		return seen, 0, nil
	}
	err = s.update(ctx, "prune", func(w *conn) error {
		err := w.script(`DELETE FROM dentry_history WHERE (parent,cookie,name,"end")>(?,?,?,?) AND (parent,cookie,name,"end")<=(?,?,?,?) AND "end"<=?`,
			from.ino, from.cookie, from.name, from.end, sw.ino, sw.cookie, sw.name, sw.end, l.old())
		removed = w.Changes()
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
	err = s.scan(ctx, "prune", 0, func(c *conn) error {
		return c.each(`SELECT ino,name,"end" FROM xattr_history WHERE (ino,name,"end")>(?,?,?) AND ino<=?
			ORDER BY ino,name,"end"`, func(st *sqlite.Stmt) error {
			sw.ino, sw.name, sw.end = st.ColumnInt64(0), colBytes(st, 1), st.ColumnInt64(2)
			if sw.end <= l.old() {
				gone++
			}
			if seen++; seen == pruneChunk {
				return errStop
			}
			return nil
		}, from.ino, from.name, from.end, s.base|keyMask)
	})
	if err != nil || seen == 0 {
		sw.advance()
		return 0, 0, err
	}
	if gone == 0 {
		return seen, 0, nil
	}
	err = s.update(ctx, "prune", func(w *conn) error {
		err := w.script(`DELETE FROM xattr_history WHERE (ino,name,"end")>(?,?,?) AND (ino,name,"end")<=(?,?,?) AND "end"<=?`,
			from.ino, from.name, from.end, sw.ino, sw.name, sw.end, l.old())
		removed = w.Changes()
		return err
	})
	return seen, removed, err
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
const dropChunk = 512

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
