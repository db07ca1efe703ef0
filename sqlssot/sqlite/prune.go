package sqlite

import (
	"context"
	"errors"
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

// Limits of one step of pruning.
const (
	pruneReach   = 4096 // files or rows that one call looks at
	pruneChunk   = 256  // of them at a time
	pruneRows    = 256  // rows of one kind that one transaction removes
	recentChunk  = 4096 // records read at a time
	maxBatchRows = 1024 // more than the records of any one batch, so that a chunk always holds a whole one
)

// pruneChanged prunes the files whose content operations have changed since
// the last call, up to the barrier.
func (s *Store) pruneChanged(ctx context.Context, l *limits, limit int) (n int, done bool, err error) {
	for n < limit {
		var inos []int64
		last, read := s.recent, 0
		err := s.scan(ctx, "prune", 0, func(c *conn) error {
			known := map[int64]bool{}
			return c.each(`SELECT rev,ino,version>0 OR kind IN (?3,?4,?5,?6) FROM operation_records WHERE rev>?1 AND rev<=?2 ORDER BY rev`,
				func(st *sqlite.Stmt) error {
					if ino := st.ColumnInt64(1); st.ColumnInt64(2) != 0 && !known[ino] {
						known[ino] = true
						inos = append(inos, ino)
					}
					last = st.ColumnInt64(0)
					if read++; read == recentChunk {
						return errStop
					}
					return nil
				}, s.recent, l.barrier, int64(meta.OpWriteStream), int64(meta.OpFallocate), int64(meta.OpCopyRange), int64(meta.OpTruncate))
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

// oldRecords is a chunk of the oldest records, in whole batches, and the
// history that their operations began.
type oldRecords struct {
	upto   int64  // the last one's revision
	head   []byte // the chain head there
	inos   []int64
	names  []oldName
	xattrs bool // some of the files have attributes that ended
}

type oldName struct {
	parent int64
	name   string
}

// findOldRecords finds the chunk that may go next; upto is 0 when there is none.
func (s *Store) findOldRecords(ctx context.Context, l *limits) (o oldRecords, err error) {
	s.writeMu.Lock()
	newest := min(l.old(), s.base|s.head.rev-1)
	s.writeMu.Unlock()
	err = s.scan(ctx, "prune", 0, func(c *conn) error {
		read := 0
		err := c.each(`SELECT rev,head FROM operation_records WHERE rev>? AND rev<=? ORDER BY rev`, func(st *sqlite.Stmt) error {
			if h := colBytes(st, 1); h != nil {
				o.upto, o.head = st.ColumnInt64(0), h
			}
			if read++; read >= pruneChunk && o.upto != 0 || read == maxBatchRows {
				return errStop
			}
			return nil
		}, s.base, newest)
		if err != nil && !errors.Is(err, errStop) || o.upto == 0 {
			return err
		}
		if err := c.each(`SELECT ino FROM operation_records WHERE rev>?1 AND rev<=?2 UNION
			SELECT before->>'$.replaced'|?1 FROM operation_records WHERE rev>?1 AND rev<=?2 AND kind IN (?3,?4) AND before->>'$.replaced'>0`,
			func(st *sqlite.Stmt) error {
				o.inos = append(o.inos, st.ColumnInt64(0))
				return nil
			}, s.base, o.upto, int64(meta.OpRename), int64(meta.OpExchange)); err != nil {
			return err
		}
		if err := c.each(`SELECT parent,name FROM operation_records WHERE rev>?1 AND rev<=?2 AND kind IN (?3,?4,?5,?6) UNION
			SELECT new_parent,new_name FROM operation_records WHERE rev>?1 AND rev<=?2 AND kind IN (?3,?4)`, func(st *sqlite.Stmt) error {
			o.names = append(o.names, oldName{st.ColumnInt64(0), colString(st, 1)})
			return nil
		}, s.base, o.upto, int64(meta.OpRename), int64(meta.OpExchange), int64(meta.OpUnlink), int64(meta.OpRmdir)); err != nil {
			return err
		}
		n, err := c.number(`SELECT EXISTS (SELECT 1 FROM xattr_history WHERE "end"<=?2 AND
			ino IN (SELECT ino FROM operation_records WHERE rev>?1 AND rev<=?2))`, s.base, o.upto)
		o.xattrs = n != 0
		return err
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
	for names := range slices.Chunk(o.names, pruneRows/4) {
		if err := s.update(ctx, "prune", func(w *conn) error {
			for _, n := range names {
				if err := w.script(`DELETE FROM dentry_history WHERE parent=? AND cookie=? AND name=? AND "end"<=?`,
					n.parent, int64(meta.NameCookie(n.name)), []byte(n.name), o.upto); err != nil {
					return err
				}
				removed += w.Changes()
			}
			return nil
		}); err != nil {
			return 0, removed, err
		}
	}
	err = s.update(ctx, "prune", func(w *conn) error {
		seen, err = s.removeRecords(w, &o)
		return err
	})
	return seen, removed + seen, err
}

// removeRecords removes the records and what belongs to them alone.
func (s *Store) removeRecords(w *conn, o *oldRecords) (removed int, err error) {
	if o.xattrs {
		if err := w.script(`DELETE FROM xattr_history WHERE "end"<=?2 AND
			ino IN (SELECT ino FROM operation_records WHERE rev>?1 AND rev<=?2)`, s.base, o.upto); err != nil {
			return 0, err
		}
	}
	if err := s.unindex(w, s.base, o.upto); err != nil {
		return 0, err
	}
	if err := w.script("DELETE FROM late_answers WHERE rev>? AND rev<=?", s.base, o.upto); err != nil {
		return 0, err
	}
	if err := w.script("DELETE FROM operation_records WHERE rev>? AND rev<=?", s.base, o.upto); err != nil {
		return 0, err
	}
	removed = w.Changes()
	if err := w.script("DELETE FROM chain_seals WHERE rev BETWEEN ? AND ?", s.base, s.base|keyMask); err != nil {
		return removed, err
	}
	return removed, w.script("INSERT INTO chain_seals(rev,head,time) VALUES(?,?,?)", o.upto, o.head, s.now().UnixNano())
}

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
