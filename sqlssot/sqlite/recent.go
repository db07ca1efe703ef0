package sqlite

import (
	"context"
	"errors"
	"slices"

	"nexusfs/meta"
	"zombiezen.com/go/sqlite"
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
