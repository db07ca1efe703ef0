package postgres

import (
	"context"
	"errors"
	"strconv"

	"github.com/jackc/pgx/v5"
	"nexusfs/meta"
)

// Peers is the store as far as daemons that have the zone open together need
// it of each other.
type Peers struct {
	s    *Store
	conn *pgx.Conn // listens; nil until the first watch and after it broke
}

var _ meta.Peers = (*Peers)(nil)

// Peers returns the view of one daemon. Close it before the store.
func (s *Store) Peers() *Peers { return &Peers{s: s} }

// channel is the zone's notification channel: "sessions" when those changed.
func (s *Store) channel() string { return "nexusfs_" + strconv.FormatInt(s.zone, 10) }

// Heartbeat implements meta.Peers: one small durable transaction that waits for
// the zone, so it and a batch, and two heartbeats, see each other or not at all.
func (p *Peers) Heartbeat(ctx context.Context, session, epoch int64, mode meta.PeerMode) (st meta.PeerState, err error) {
	s := p.s
	err = s.update(ctx, "heartbeat", func(tx pgx.Tx) error {
		if l, err := s.survived(ctx, tx, 0); err != nil || l != nil {
			if l != nil {
				err = meta.E("heartbeat", 0, "", meta.KindLost, errors.New(l.cause))
			}
			return err
		}
		var before, after bool
		err := tx.QueryRow(ctx, `UPDATE session_rows SET until = `+serverNow+` + lease
			WHERE session = $1 AND epoch = $2 AND ended IS NULL AND fenced = 0 RETURNING shared`, s.k(session), epoch).Scan(&before)
		if errors.Is(err, pgx.ErrNoRows) {
			return s.whyFenced(ctx, "heartbeat", session, epoch)
		}
		if err != nil {
			return err
		}
		fenced, err := s.fence(ctx, tx, `lease > 0 AND until < `+serverNow)
		if err != nil {
			return err
		}
		if err := tx.QueryRow(ctx, `SELECT count(*), count(*) FILTER (WHERE NOT shared) FROM session_rows
			WHERE session BETWEEN $1 AND $2 AND session <> $3 AND ended IS NULL AND fenced = 0`,
			s.base|1, s.base|keyMask, s.k(session)).Scan(&st.Others, &st.Unready); err != nil {
			return err
		}
		after = before && st.Others > 0 || mode == meta.PeerShares
		st.Alone = !after && st.Others == 0
		if after != before {
			if _, err := exec(ctx, tx, `UPDATE session_rows SET shared = $2 WHERE session = $1`, s.k(session), after); err != nil {
				return err
			}
		}
		if after == before && fenced == 0 {
			return nil
		}
		return s.sessionsChanged(ctx, tx)
	})
	return st, err
}

// WatchSessions implements meta.Peers. It holds a connection of its own; when
// that is made anew it returns at once, for something may have been missed.
func (p *Peers) WatchSessions(ctx context.Context) error {
	if p.conn == nil {
		c, err := pgx.ConnectConfig(ctx, p.s.pools.long.Config().ConnConfig.Copy())
		if err != nil {
			return classify("watch", 0, "", err)
		}
		if _, err := c.Exec(ctx, "LISTEN "+pgx.Identifier{p.s.channel()}.Sanitize()); err != nil {
			_ = c.Close(context.WithoutCancel(ctx)) // it is of no use any more
			return classify("watch", 0, "", err)
		}
		p.conn = c
		return nil
	}
	for {
		n, err := p.conn.WaitForNotification(ctx)
		switch {
		case err != nil && ctx.Err() != nil && !p.conn.IsClosed():
			return ctx.Err()
		case err != nil:
			_ = p.Close() // what broke is not to be heard of again
			return classify("watch", 0, "", err)
		case n.Payload == "sessions":
			return nil
		}
	}
}

// Close ends the watch.
func (p *Peers) Close() error {
	c := p.conn
	p.conn = nil
	if c == nil {
		return nil
	}
	return c.Close(context.Background())
}
