package sqlite

import (
	"context"
	"errors"
	"fmt"

	"nexusfs/meta"
	"zombiezen.com/go/sqlite"
)

// update runs fn in a transaction of the writer's connection.
func (s *Store) update(ctx context.Context, op string, fn func(w *conn) error) error {
	if err := interrupted(ctx, op); err != nil {
		return err
	}
	s.writeMu.Lock()
	defer s.writeMu.Unlock()
	return s.updateLocked(op, fn)
}

// updateLocked is update with writeMu held.
func (s *Store) updateLocked(op string, fn func(w *conn) error) error {
	if err := s.writable(op); err != nil {
		return err
	}
	err := s.w.do(stBegin)
	if err != nil {
		return classify(op, 0, "", err)
	}
	if err = fn(s.w); err == nil {
		if err = s.w.do(stCommit); err == nil {
			return nil
		}
	}
	if !s.w.AutocommitEnabled() {
		if rerr := s.w.do(stRollback); rerr != nil {
			err = errors.Join(err, rerr)
		}
	}
	s.actors = actorTable{} // rows that fn inserted are gone
	if herr := s.loadHead(); herr != nil {
		err = errors.Join(err, herr)
	}
	return classify(op, 0, "", err)
}

// Begin implements meta.Sessions. Every session before this one that has not
// ended is fenced: on an embedded store there is one daemon at a time.
func (s *Store) Begin(ctx context.Context, info meta.SessionInfo) (session, epoch int64, prev *meta.PrevSession, err error) {
	err = s.update(ctx, "begin", func(w *conn) error {
		if err := w.each(`SELECT session,epoch,node,pid,boot_id,mountpoint,lease,started,ended IS NOT NULL FROM session_rows
			WHERE session BETWEEN ?1 AND ?2 ORDER BY session DESC LIMIT 1`, func(st *sqlite.Stmt) error {
			prev = &meta.PrevSession{Session: unk(st.ColumnInt64(0)), Ended: st.ColumnInt64(8) != 0,
				SessionInfo: meta.SessionInfo{Node: st.ColumnText(2), PID: int(st.ColumnInt64(3)), BootID: st.ColumnText(4),
					Mountpoint: st.ColumnText(5), Lease: st.ColumnInt64(6), Started: st.ColumnInt64(7)}}
			epoch = st.ColumnInt64(1)
			return nil
		}, s.base, s.base|keyMask); err != nil {
			return err
		}
		epoch++
		session = 1
		if prev != nil {
			session = prev.Session + 1
		}
		// Until Recovered says that it is done, a recovery is still due: whoever
		// starts after a kill in the middle of it has to see the old boot.
		boot := info.BootID
		if prev != nil && !prev.Ended && prev.BootID != boot {
			boot = prev.BootID
		}
		if err := w.script("UPDATE session_rows SET fenced=1 WHERE session BETWEEN ? AND ? AND ended IS NULL AND NOT fenced",
			s.base, s.base|keyMask); err != nil {
			return err
		}
		if err := w.script(`INSERT INTO session_rows(session,epoch,node,pid,boot_id,mountpoint,lease,started)
			VALUES(?,?,?,?,?,?,?,?)`, s.k(session), epoch, info.Node, info.PID, boot, info.Mountpoint, info.Lease, info.Started); err != nil {
			return err
		}
		return s.sessionsChanged(w)
	})
	if err == nil {
		err = s.Sync(ctx)
	}
	return session, epoch, prev, err
}

// Recovered implements meta.Sessions.
func (s *Store) Recovered(ctx context.Context, session int64, bootID string) error {
	err := s.update(ctx, "recovered", func(w *conn) error {
		return w.script("UPDATE session_rows SET boot_id=? WHERE session=?", bootID, s.k(session))
	})
	if err != nil {
		return err
	}
	return s.Sync(ctx)
}

// sessionsChanged makes the next commit look at the sessions again.
func (s *Store) sessionsChanged(w *conn) error {
	s.head.sessions++
	return w.script("UPDATE counters SET sessions=? WHERE zone=? AND kind=0 AND id=0", s.head.sessions, s.zone)
}

// End implements meta.Sessions.
func (s *Store) End(ctx context.Context, session int64) error {
	err := s.update(ctx, "end", func(w *conn) error {
		if err := w.script("UPDATE session_rows SET ended=? WHERE session=? AND ended IS NULL", s.now().UnixNano(), s.k(session)); err != nil {
			return err
		}
		return s.sessionsChanged(w)
	})
	if err != nil {
		return err
	}
	return s.Sync(ctx)
}

// Inos implements meta.Sessions.
func (s *Store) Inos(ctx context.Context, n int) (first meta.Ino, err error) {
	if n <= 0 {
		return 0, meta.E("inos", 0, "", meta.KindInvalid, nil)
	}
	err = s.update(ctx, "inos", func(w *conn) error {
		next, err := w.number("SELECT next_ino FROM zones WHERE zone=?", s.zone)
		if err != nil {
			return err
		}
		if next > keyMask-int64(n) {
			return meta.E("inos", 0, "", meta.KindNoSpace, errors.New("the zone's inode numbers are used up"))
		}
		first = meta.Ino(next)
		return w.script("UPDATE zones SET next_ino=? WHERE zone=?", next+int64(n), s.zone)
	})
	if err == nil {
		err = s.Sync(ctx)
	}
	return first, err
}

// Reserve implements meta.Sessions.
func (s *Store) Reserve(ctx context.Context, rev meta.Rev) error {
	if int64(rev) > keyMask {
		return meta.E("reserve", 0, "", meta.KindNoSpace, fmt.Errorf("revision %d is out of range", rev))
	}
	err := s.update(ctx, "reserve", func(w *conn) error {
		if int64(rev) <= s.head.reserved {
			return nil
		}
		if err := w.script("UPDATE counters SET reserved=? WHERE zone=? AND kind=0 AND id=0", s.k(int64(rev)), s.zone); err != nil {
			return err
		}
		s.head.reserved = int64(rev)
		return nil
	})
	if err != nil {
		return err
	}
	return s.Sync(ctx)
}
