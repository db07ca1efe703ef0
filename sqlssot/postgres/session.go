package postgres

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"nexusfs/meta"
)

// update runs fn in one durable transaction that holds the zone: no batch and no
// other update of the zone runs meanwhile. It is sent again when the server
// could not serialize it, or a connection was dead before it began.
func (s *Store) update(ctx context.Context, op string, fn func(tx pgx.Tx) error) error {
	return s.updateOn(ctx, s.pools.long, op, fn)
}

// updateOn is update on a connection of a given pool.
func (s *Store) updateOn(ctx context.Context, pool *pgxpool.Pool, op string, fn func(tx pgx.Tx) error) error {
	if err := interrupted(ctx, op); err != nil {
		return err
	}
	if err := s.writable(op); err != nil {
		return err
	}
	for try := 0; ; try++ {
		err := s.updateOnce(ctx, pool, fn)
		if code := codeOf(err); try == maxRetries || code != codeSerialization && code != codeDeadlock {
			return classify(op, 0, "", err)
		}
	}
}

func (s *Store) updateOnce(ctx context.Context, pool *pgxpool.Pool, fn func(tx pgx.Tx) error) error {
	c, err := s.fresh(ctx, pool)
	if err != nil {
		return err
	}
	defer c.Release()
	return pgx.BeginFunc(ctx, c, func(tx pgx.Tx) error {
		if err := s.lockZone(ctx, tx); err != nil {
			return err
		}
		return fn(tx)
	})
}

// lockZone waits until nothing else changes the zone.
func (s *Store) lockZone(ctx context.Context, tx pgx.Tx) error {
	n, err := exec(ctx, tx, `SELECT FROM counters WHERE zone = $1 AND kind = 0 AND id = 0 FOR NO KEY UPDATE`, s.zone)
	if err == nil && n != 1 {
		err = meta.E("open", 0, s.o.Zone, meta.KindDamaged, errors.New("the zone has no counters"))
	}
	return err
}

// serverNow is the server's clock in nanoseconds since 1970: leases are judged
// by it alone.
const serverNow = `(extract(epoch FROM clock_timestamp()) * 1000000000)::bigint`

// Begin implements meta.Sessions. A session without a lease (Lease 0) has the
// zone to itself: it fences every other one, and is fenced by the next that
// begins. Sessions with a lease live side by side: those whose lease has ended
// are fenced, the others stay. What a loss of power tears on an embedded store is
// whole here (P22), so the new one gets a PrevSession only to tidy up: the newest
// that did not end in order, while nobody else lives, until Recovered says that
// it was done. See Peers for what it has to do.
//
// It finds out first whether the server may have lost commits since the session
// before, or is behind info.Known (loss.go, P15). Then it writes a recovery's
// record, and no session from before goes on. Who begins later finds that done.
func (s *Store) Begin(ctx context.Context, info meta.SessionInfo) (session, epoch int64, prev *meta.PrevSession, err error) {
	s.commitMu.Lock()
	defer s.commitMu.Unlock()
	// Of numbers and rows that it had before a loss nothing is to be relied on.
	s.batches, s.actors = batchState{}, actorTable{}
	err = s.updateOn(ctx, s.pools.commit, "begin", func(tx pgx.Tx) error {
		prev, session, epoch = nil, 1, 0
		if err := s.refuseMoving(ctx, tx); err != nil {
			return err
		}
		l, err := s.survived(ctx, tx, info.Known)
		if err != nil {
			return err
		}
		if l != nil {
			if err := s.recordLoss(ctx, tx, l, s.o.Now().UnixNano()); err != nil {
				return err
			}
		}
		if err := s.newest(ctx, tx, "true", &prev, &epoch); err != nil {
			return err
		}
		epoch++
		if l != nil && l.far {
			session, epoch = skippedSessions, epoch+skippedSessions
		}
		boot := info.BootID
		if prev != nil {
			session += prev.Session
			// Until Recovered says that it is done, a recovery is still due: whoever
			// starts after a kill in the middle of it has to see the old boot.
			if info.Lease == 0 && !prev.Ended && prev.BootID != boot {
				boot = prev.BootID
			}
		}
		gone := fmt.Sprintf("lease = 0 OR session = %d OR until < %s", s.k(info.Replaces), serverNow)
		if info.Lease == 0 {
			gone = `true`
		}
		if _, err := s.fence(ctx, tx, gone); err != nil {
			return err
		}
		if _, err := exec(ctx, tx, `INSERT INTO session_rows(session, epoch, node, pid, boot_id, mountpoint, lease, started, until, shared, relaxed)
			SELECT $1, $2, $3, $4, $5, $6, $7, $8, CASE $7::bigint WHEN 0 THEN 0 ELSE `+serverNow+` + $7 END, live > 0, $10
			FROM counters WHERE zone = $9 AND kind = 0 AND id = 0`, s.k(session), epoch, []byte(info.Node), info.PID, []byte(boot), []byte(info.Mountpoint),
			info.Lease, info.Started, s.zone, !s.o.Strict); err != nil {
			return err
		}
		if err := s.sessionsChanged(ctx, tx); err != nil || info.Lease == 0 || prev == nil || prev.Lease == 0 {
			return err
		}
		prev = nil
		return s.untidy(ctx, tx, &prev)
	})
	return session, epoch, prev, err
}

// untidy finds the newest session that did not end in order and left perhaps
// something behind; none while another one than the caller's lives.
func (s *Store) untidy(ctx context.Context, tx pgx.Tx, prev **meta.PrevSession) error {
	return s.newest(ctx, tx, `ended IS NULL AND fenced <> 0
		AND (SELECT live FROM counters WHERE zone = session >> 48 AND kind = 0 AND id = 0) = 1`, prev, new(int64))
}

// newest reads the newest session of the zone for which a condition over
// session_rows holds, if there is one.
func (s *Store) newest(ctx context.Context, tx pgx.Tx, condition string, prev **meta.PrevSession, epoch *int64) error {
	return each(ctx, tx, `SELECT session, epoch, node, pid, boot_id, mountpoint, lease, started, ended IS NOT NULL FROM session_rows
		WHERE session BETWEEN $1 AND $2 AND (`+condition+`) ORDER BY session DESC LIMIT 1`, func(r pgx.Rows) error {
		var p meta.PrevSession
		var node, boot, mountpoint []byte
		err := r.Scan(&p.Session, epoch, &node, &p.PID, &boot, &mountpoint, &p.Lease, &p.Started, &p.Ended)
		p.Session, p.Node, p.BootID, p.Mountpoint = unk(p.Session), string(node), string(boot), string(mountpoint)
		*prev = &p
		return err
	}, s.base|1, s.base|keyMask)
}

// fence ends the living sessions for which a condition over session_rows holds
// and returns how many those were. The zone is held, so none of them has a batch
// under way, and none will commit one. What they committed is on the server's
// disk when this transaction is.
func (s *Store) fence(ctx context.Context, tx pgx.Tx, condition string) (int, error) {
	return exec(ctx, tx, `UPDATE session_rows SET fenced = 1, relaxed = false WHERE session BETWEEN $1 AND $2
		AND ended IS NULL AND fenced = 0 AND (`+condition+`)`, s.base|1, s.base|keyMask)
}

// sessionsChanged counts the living sessions anew and tells them.
func (s *Store) sessionsChanged(ctx context.Context, tx pgx.Tx) error {
	_, err := exec(ctx, tx, `UPDATE counters SET sessions = sessions + 1, live = (SELECT count(*) FROM session_rows
			WHERE session BETWEEN $2 AND $3 AND ended IS NULL AND fenced = 0)
		WHERE zone = $1 AND kind = 0 AND id = 0`, s.zone, s.base|1, s.base|keyMask)
	if err == nil {
		_, err = exec(ctx, tx, `SELECT pg_notify($1, 'sessions')`, s.channel())
	}
	return err
}

// Recovered implements meta.Sessions.
func (s *Store) Recovered(ctx context.Context, session int64, bootID string) error {
	return s.update(ctx, "recovered", func(tx pgx.Tx) error {
		if _, err := exec(ctx, tx, `UPDATE session_rows SET boot_id = $1 WHERE session = $2`, []byte(bootID), s.k(session)); err != nil {
			return err
		}
		_, err := exec(ctx, tx, `UPDATE session_rows SET ended = $3 WHERE session BETWEEN $1 AND $2 AND fenced <> 0 AND ended IS NULL`,
			s.base|1, s.k(session)-1, s.o.Now().UnixNano())
		return err
	})
}

// End implements meta.Sessions.
func (s *Store) End(ctx context.Context, session int64) error {
	return s.update(ctx, "end", func(tx pgx.Tx) error {
		if _, err := exec(ctx, tx, `UPDATE session_rows SET ended = $1 WHERE session = $2 AND ended IS NULL`, s.o.Now().UnixNano(), s.k(session)); err != nil {
			return err
		}
		return s.sessionsChanged(ctx, tx)
	})
}

// Inos implements meta.Sessions: one round trip, durable. KindLost when the
// server may have lost ranges that were handed out.
func (s *Store) Inos(ctx context.Context, n int) (first meta.Ino, err error) {
	if n <= 0 {
		return 0, meta.E("inos", 0, "", meta.KindInvalid, nil)
	}
	if err := s.writable("inos"); err != nil {
		return 0, err
	}
	next, err := s.inos(ctx, int64(n))
	if errors.Is(err, errBroken) {
		if err = s.lookAfter(ctx, "inos", 0); err == nil {
			next, err = s.inos(ctx, int64(n))
		}
	}
	return meta.Ino(next), classify("inos", 0, "", err)
}

func (s *Store) inos(ctx context.Context, n int64) (next int64, err error) {
	err = s.read(ctx, "inos", 0, "", func(ctx context.Context, c *pgx.Conn) error {
		var whole bool
		err := c.QueryRow(ctx, `UPDATE zones SET next_ino = next_ino + CASE WHEN `+unbroken+` THEN $2 ELSE 0 END
			WHERE zone = $1 AND next_ino <= $3 RETURNING next_ino - $2, `+unbroken, s.zone, n, keyMask-n).Scan(&next, &whole)
		switch {
		case errors.Is(err, pgx.ErrNoRows):
			err = meta.E("inos", 0, "", meta.KindNoSpace, errors.New("the zone's inode numbers are used up"))
		case err == nil && !whole:
			err = errBroken
		}
		return err
	})
	return next, err
}

// Reserve implements meta.Sessions.
func (s *Store) Reserve(ctx context.Context, rev meta.Rev) error {
	if int64(rev) > keyMask {
		return meta.E("reserve", 0, "", meta.KindNoSpace, fmt.Errorf("revision %d is out of range", rev))
	}
	return s.update(ctx, "reserve", func(tx pgx.Tx) error {
		_, err := exec(ctx, tx, `UPDATE counters SET reserved = greatest(reserved, $2) WHERE zone = $1 AND kind = 0 AND id = 0`, s.zone, s.k(int64(rev)))
		return err
	})
}

// Sync implements meta.Store: what was committed before the call is on the
// server's disk, whoever committed it. The server may be restarted meanwhile;
// if it has lost commits of this store by then, that is the failure: KindLost.
func (s *Store) Sync(ctx context.Context) error {
	if err := interrupted(ctx, "sync"); err != nil {
		return err
	}
	if s.o.ReadOnly {
		return nil
	}
	s.commitMu.Lock()
	st := s.batches
	s.commitMu.Unlock()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.o.Settle)
	defer cancel()
	var seq int64
	var whole bool
	err := patiently(ctx, s.pools.read, unreachable, func() error {
		return s.borrow(ctx, s.pools.read, func(c *pgx.Conn) error {
			return c.QueryRow(ctx, `SELECT coalesce((SELECT CASE fenced WHEN $3 THEN -1 ELSE seq END FROM session_rows WHERE session = $2), -1), `+unbroken+`
				FROM make_durable()`, s.zone, s.k(st.session), fencedByLoss).Scan(&seq, &whole)
		})
	})
	switch {
	case err != nil:
	case st.session != 0 && seq < st.seq:
		err = meta.E("sync", 0, "", meta.KindLost, errors.New(lostText))
	case !whole:
		err = s.lookAfter(ctx, "sync", 0)
	}
	return classify("sync", 0, "", err)
}
