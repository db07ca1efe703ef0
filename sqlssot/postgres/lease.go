package postgres

import (
	"context"

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
