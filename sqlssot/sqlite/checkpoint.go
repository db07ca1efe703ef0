package sqlite

import (
	"context"
	"errors"
	"os"

	"nexusfs/meta"
	"zombiezen.com/go/sqlite"
)

// To begin the log anew the writer has to wait for what commits appended while
// the rest was copied: so that is copied first, up to ckptTurns times, until
// fewer than ckptRest frames are left.
const (
	ckptAt    = 8 << 20 // bytes
	ckptTurns = 4
	ckptRest  = 512
)

// Checkpoint implements meta.Upkeep. It copies the log into the database while
// commits go on, when the log has grown by ckptAt since the last time or the
// store is idle; only when the log has outgrown logBound the writer waits for
// the last part, so that the log starts again from its beginning.
func (s *Store) Checkpoint(ctx context.Context, idle bool) error {
	if err := interrupted(ctx, "checkpoint"); err != nil {
		return err
	}
	if s.readOnly {
		return nil
	}
	s.ckptMu.Lock()
	defer s.ckptMu.Unlock()
	end := s.logEnd.Load()
	if grown := end - s.ckptEnd; !idle && grown >= 0 && grown < ckptAt {
		return nil
	}
	s.ckptEnd = end
	if err := s.indexRecords(ctx); err != nil {
		return err
	}
	if err := s.syncer.failure(); err != nil {
		return err
	}
	if err := s.fillLog(); err != nil {
		return classify("checkpoint", 0, "", err)
	}
	if s.ckpt == nil {
		c, err := s.openConn(sqlite.OpenReadWrite, 256, busyWait)
		if err != nil {
			return classify("checkpoint", 0, "", err)
		}
		s.ckpt = c
	}
	for range ckptTurns {
		log, moved, err := checkpoint(s.ckpt, "PASSIVE")
		if err != nil || log*s.pageSize <= logBound {
			return classify("checkpoint", 0, "", err)
		}
		if log-moved < ckptRest {
			break
		}
	}
	s.writeMu.Lock()
	defer s.writeMu.Unlock()
	if s.w == nil {
		return meta.E("checkpoint", 0, "", meta.KindShutdown, nil)
	}
	// A reader may hold the log's end for a while; then the next call tries
	// again. RESTART waits for readers, so it is tried without waiting.
	s.ckpt.SetBusyTimeout(0)
	defer s.ckpt.SetBusyTimeout(busyWait)
	_, _, err := checkpoint(s.ckpt, "RESTART")
	if kindOf(err) == meta.KindBusy {
		err = nil
	}
	return classify("checkpoint", 0, "", err)
}

// checkpoint runs one and returns the frames of the log and how many of them
// are in the database now.
func checkpoint(c *conn, mode string) (log, moved int64, err error) {
	err = c.each("PRAGMA wal_checkpoint("+mode+")", func(st *sqlite.Stmt) error {
		log, moved = st.ColumnInt64(1), st.ColumnInt64(2)
		return nil
	})
	return log, moved, err
}

// closeWriter closes the connections that write.
func (s *Store) closeWriter() error {
	var errs []error
	s.ckptMu.Lock()
	if s.ckpt != nil {
		errs = append(errs, s.ckpt.Close())
		s.ckpt = nil
	}
	s.ckptMu.Unlock()
	s.writeMu.Lock()
	defer s.writeMu.Unlock()
	if s.w != nil && s.syncer.failure() == nil {
		_, _, err := checkpoint(s.w, "PASSIVE")
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// Stats implements meta.Upkeep.
func (s *Store) Stats(ctx context.Context) (meta.StoreStats, error) {
	scripts, err := migrations()
	if err != nil {
		return meta.StoreStats{}, err
	}
	st := meta.StoreStats{Path: s.path, Schema: len(scripts)} // no other is served
	for path, size := range map[string]*int64{s.path: &st.FileBytes, s.path + "-wal": &st.LogBytes} {
		if fi, err := os.Stat(path); err == nil {
			*size = fi.Size()
		}
	}
	err = s.read(ctx, "stats", 0, "", func(c *conn) error {
		err := c.query(stUsage, func(q *sqlite.Stmt) bool { st.Inodes = q.ColumnInt64(0); return true }, s.zone)
		if err != nil {
			return err
		}
		// Revisions are dense but for recoveries and what was pruned at the start.
		st.Records, err = c.number(`SELECT coalesce((SELECT max(rev) FROM operation_records WHERE rev BETWEEN ?1 AND ?2)
			-(SELECT min(rev) FROM operation_records WHERE rev BETWEEN ?1 AND ?2)+1,0)`, s.base, s.base|keyMask)
		return err
	})
	return st, err
}

const (
	// indexLag is how many of the newest records may be missing from
	// record_index: reading that many takes some ten milliseconds.
	indexLag = 1 << 16
	// indexChunk bounds the records of one transaction, so that commits wait
	// little, and indexRun those of one call.
	indexChunk = 64
	indexRun   = 1 << 15
)

// indexRecords lets record_index catch up. Indexing in bulk costs a fraction of
// what it would cost each commit.
func (s *Store) indexRecords(ctx context.Context) error {
	for range indexRun / indexChunk {
		more := false
		err := s.update(ctx, "index", func(w *conn) error {
			from, err := w.number("SELECT indexed FROM zones WHERE zone=?", s.zone)
			if err != nil {
				return err
			}
			if more = s.k(s.head.rev)-from > s.indexLag; !more {
				return nil
			}
			return s.indexUpTo(w, from, from+indexChunk)
		})
		if err != nil || !more {
			return err
		}
	}
	return nil
}

func (s *Store) indexUpTo(w *conn, from, to int64) error {
	if err := w.script(`INSERT OR IGNORE INTO record_index(ino,rev)
		SELECT ino,rev FROM operation_records WHERE rev>?1 AND rev<=?2 UNION ALL
		SELECT parent,rev FROM operation_records WHERE rev>?1 AND rev<=?2 AND parent<>0 UNION ALL
		SELECT new_parent,rev FROM operation_records WHERE rev>?1 AND rev<=?2 AND new_parent<>0`, from, to); err != nil {
		return err
	}
	return w.script("UPDATE zones SET indexed=? WHERE zone=?", to, s.zone)
}
