package postgres

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"nexusfs/meta"
)

// LiveSession is a session that may commit.
type LiveSession struct {
	Session int64
	Epoch   int64
	meta.SessionInfo
	Left   int64 // ns of its lease that are left by the server's clock; 0 without a lease
	Shared bool  // it said that it keeps nothing cached that others may change
}

// LiveSessions lists the zone's living sessions, oldest first, also those whose
// lease has ended and whom nobody has fenced yet.
func (s *Store) LiveSessions(ctx context.Context) (out []LiveSession, err error) {
	err = s.read(ctx, "sessions", 0, "", func(ctx context.Context, c *pgx.Conn) error {
		out = out[:0]
		rows, err := c.Query(ctx, `SELECT session, epoch, node, pid, boot_id, mountpoint, lease, started,
				CASE lease WHEN 0 THEN 0 ELSE until - `+serverNow+` END, shared
			FROM session_rows WHERE session BETWEEN $1 AND $2 AND ended IS NULL AND fenced = 0 ORDER BY session`, s.base|1, s.base|keyMask)
		if err != nil {
			return err
		}
		var l LiveSession
		var node, boot, mountpoint []byte
		_, err = pgx.ForEachRow(rows, []any{&l.Session, &l.Epoch, &node, &l.PID, &boot, &mountpoint, &l.Lease, &l.Started, &l.Left, &l.Shared}, func() error {
			l.Session, l.Node, l.BootID, l.Mountpoint = unk(l.Session), string(node), string(boot), string(mountpoint)
			out = append(out, l)
			return nil
		})
		return err
	})
	return out, err
}

// Heartbeat renews a session's lease from now on and fences every other session
// whose lease has ended; fenced is how many. KindFenced when the session itself
// was fenced or has ended: it can commit nothing any more. It is one small
// durable transaction that waits for the zone; call it a few times per lease.
func (s *Store) Heartbeat(ctx context.Context, session, epoch int64) (fenced int, err error) {
	err = s.update(ctx, "heartbeat", func(tx pgx.Tx) error {
		n, err := exec(ctx, tx, `UPDATE session_rows SET until = `+serverNow+` + lease
			WHERE session = $1 AND epoch = $2 AND ended IS NULL AND fenced = 0`, s.k(session), epoch)
		if err != nil {
			return err
		}
		if n == 0 {
			return meta.E("heartbeat", 0, "", meta.KindFenced, fmt.Errorf("session %d has ended or was fenced", session))
		}
		if fenced, err = s.fence(ctx, tx, `lease > 0 AND until < `+serverNow); err != nil || fenced == 0 {
			return err
		}
		return s.sessionsChanged(ctx, tx)
	})
	return fenced, err
}

// Share records that a session keeps nothing cached, in its kernel or in
// itself, that another session may change (shared), or that it does so again.
// The latter is KindBusy while another session lives. A session begins as shared
// when others live already.
func (s *Store) Share(ctx context.Context, session, epoch int64, shared bool) error {
	return s.update(ctx, "share", func(tx pgx.Tx) error {
		others, err := number(ctx, tx, `SELECT count(*) FROM session_rows
			WHERE session BETWEEN $1 AND $2 AND session <> $3 AND ended IS NULL AND fenced = 0`, s.base|1, s.base|keyMask, s.k(session))
		if err != nil {
			return err
		}
		if !shared && others > 0 {
			return meta.E("share", 0, "", meta.KindBusy, errors.New("other sessions have the zone mounted"))
		}
		n, err := exec(ctx, tx, `UPDATE session_rows SET shared = $3 WHERE session = $1 AND epoch = $2 AND ended IS NULL AND fenced = 0`,
			s.k(session), epoch, shared)
		if err != nil {
			return err
		}
		if n == 0 {
			return meta.E("share", 0, "", meta.KindFenced, fmt.Errorf("session %d has ended or was fenced", session))
		}
		return s.sessionsChanged(ctx, tx)
	})
}

// Admitted reports whether a session may serve: every other living session has
// said that it shares. Until then a new session waits, watching, and fences
// silent ones by its Heartbeat. One point select.
func (s *Store) Admitted(ctx context.Context, session int64) (ok bool, err error) {
	err = s.read(ctx, "admitted", 0, "", func(ctx context.Context, c *pgx.Conn) error {
		return c.QueryRow(ctx, `SELECT NOT EXISTS (SELECT FROM session_rows
			WHERE session BETWEEN $1 AND $2 AND session <> $3 AND ended IS NULL AND fenced = 0 AND NOT shared)`,
			s.base|1, s.base|keyMask, s.k(session)).Scan(&ok)
	})
	return ok, err
}

// Event is what Watch tells: that the zone has a new revision, or (Sessions)
// that its sessions changed. An event may stand for several, and one with
// neither says that some may have been missed. It carries no data to rely on:
// who wakes reads from its cursor.
type Event struct {
	Rev      meta.Rev // newest revision at that time; 0: not told
	Sessions bool
}

// channel is the zone's notification channel.
func (s *Store) channel() string { return "nexusfs_" + strconv.FormatInt(s.zone, 10) }

// Watch calls fn for each event of the zone until ctx ends (nil) or fn returns
// an error (that one). It holds a connection of its own; when that breaks it
// makes another and tells fn an empty event. Revisions are told only while more
// than one session lives.
func (s *Store) Watch(ctx context.Context, fn func(Event) error) error {
	for {
		told, err := s.watchOnce(ctx, fn)
		switch {
		case ctx.Err() != nil:
			return nil
		case told || !unreachable(err):
			return classify("watch", 0, "", err)
		}
		if err := pause(ctx, firstPause); err != nil {
			return nil
		}
	}
}

// watchOnce watches over one connection; told says that the error is fn's.
func (s *Store) watchOnce(ctx context.Context, fn func(Event) error) (told bool, err error) {
	config := s.pools.long.Config().ConnConfig.Copy()
	c, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return false, err
	}
	defer c.Close(context.WithoutCancel(ctx))
	if _, err := c.Exec(ctx, "LISTEN "+pgx.Identifier{s.channel()}.Sanitize()); err != nil {
		return false, err
	}
	if err := fn(Event{}); err != nil {
		return true, err
	}
	for {
		n, err := c.WaitForNotification(ctx)
		if err != nil {
			return false, err
		}
		e := Event{Sessions: n.Payload == "sessions"}
		if rev, ok := strings.CutPrefix(n.Payload, "rev "); ok {
			v, err := strconv.ParseInt(rev, 10, 64)
			if err != nil {
				return false, errFormat
			}
			e.Rev = meta.Rev(v)
		}
		if err := fn(e); err != nil {
			return true, err
		}
	}
}
