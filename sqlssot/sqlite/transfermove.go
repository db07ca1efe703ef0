package sqlite

import (
	"context"
	"errors"
	"fmt"

	"nexusfs/meta"
	"nexusfs/sqlssot/transfer"
	"zombiezen.com/go/sqlite"
)

// Mover is a zone whose content moves: transfer.Mover. From BeginMove to EndMove
// the database has two tables more: moves, with the new places of blobs, and
// move, with one row that says where to and whether they are in force. Until
// they are, Open refuses the zone.
type Mover struct{ *Store }

var _ transfer.Mover = (*Mover)(nil)

// OpenMover opens an existing zone to move its content. Nobody else may have
// the database open: KindBusy.
func OpenMover(ctx context.Context, o Options) (*Mover, error) {
	if err := interrupted(ctx, "migrate"); err != nil {
		return nil, err
	}
	if err := probe(o.Path); err != nil {
		return nil, err
	}
	s, err := openBulk(o, 0)
	if err != nil {
		return nil, err
	}
	found := false
	err = s.w.each("SELECT zone FROM zones WHERE name=?", func(st *sqlite.Stmt) error {
		s.setZone(st.ColumnInt64(0))
		found = true
		return nil
	}, s.zoneName)
	if err == nil && !found {
		err = meta.E("migrate", 0, s.zoneName, meta.KindNotExist, errors.New("the store has no such zone"))
	}
	if err != nil {
		return nil, errors.Join(s.openError(err), s.Close())
	}
	return &Mover{s}, nil
}

// moving reports a move that is not forgotten yet.
func moving(c *conn, zone int64) (to string, done, found bool, err error) {
	tables, err := c.number("SELECT count(*) FROM sqlite_schema WHERE name='move'")
	if err != nil || tables == 0 {
		return "", false, false, err
	}
	err = c.each("SELECT dest,done FROM move WHERE zone=?", func(st *sqlite.Stmt) error {
		to, done, found = st.ColumnText(0), st.ColumnInt64(1) != 0, true
		return nil
	}, zone)
	return to, done, found, err
}

// refuseMoving refuses a zone of whose blobs some have been copied elsewhere:
// what is changed now would be missed there.
func (s *Store) refuseMoving() error {
	to, done, found, err := moving(s.w, s.zone)
	if err != nil || !found || done {
		return err
	}
	return meta.E("open", 0, s.zoneName, meta.KindInvalid, fmt.Errorf("its content is being moved to %s: run nexusfs migrate again until that has come to its end", to))
}

// BeginMove implements transfer.Mover.
func (m *Mover) BeginMove(ctx context.Context, to string) (done bool, err error) {
	err = m.bulk(ctx, func(w *conn) error {
		old, finished, found, err := moving(w, m.zone)
		switch {
		case err != nil:
			return err
		case found && old != to && finished: // EndMove was not reached; nothing depends on it
			if err := w.script("DELETE FROM move WHERE zone=?", m.zone); err != nil {
				return err
			}
		case found && old != to:
			return meta.E("migrate", 0, m.zoneName, meta.KindExist, fmt.Errorf("its content is on its way to %s: let that come to its end first", old))
		case found:
			done = finished
			return nil
		}
		if err := w.script("CREATE TABLE IF NOT EXISTS move (zone INTEGER PRIMARY KEY, dest TEXT NOT NULL, done INTEGER NOT NULL)"); err != nil {
			return err
		}
		if err := w.script("CREATE TABLE IF NOT EXISTS moves (blob INTEGER PRIMARY KEY, place INTEGER NOT NULL, segment INTEGER NOT NULL, offset INTEGER NOT NULL)"); err != nil {
			return err
		}
		return w.script("INSERT INTO move(zone,dest,done) VALUES(?,?,0)", m.zone, to)
	})
	return done, err
}

// ofZone selects the rows of moves that belong to the zone.
const ofZone = ` FROM moves m JOIN blobs b ON b.blob=m.blob WHERE b.zone=?`

// LastMove implements transfer.Mover.
func (m *Mover) LastMove(ctx context.Context) (key transfer.Row, err error) {
	err = m.scan(ctx, "migrate", 0, func(c *conn) error {
		return c.each("SELECT max(m.blob)"+ofZone, func(st *sqlite.Stmt) error {
			if !st.ColumnIsNull(0) {
				key = transfer.Row{st.ColumnInt64(0)}
			}
			return nil
		}, m.zone)
	})
	return key, err
}

// NoteMoves implements transfer.Mover.
func (m *Mover) NoteMoves(ctx context.Context, list []transfer.Row) error {
	return m.bulk(ctx, func(w *conn) error {
		st, err := w.Prepare("INSERT INTO moves(blob,place,segment,offset) VALUES(?,?,?,?)")
		if err != nil {
			return err
		}
		for _, row := range list {
			if err := bindRow(st, append(transfer.Row{row[0]}, transfer.PlaceOf(row)...)); err != nil {
				return err
			}
			if _, err := w.run(st); err != nil {
				return err
			}
		}
		return nil
	})
}

// Placed implements transfer.Mover.
func (m *Mover) Placed(ctx context.Context, b meta.Blob) (found bool, err error) {
	err = m.scan(ctx, "migrate", 0, func(c *conn) error {
		n, err := c.number("SELECT count(*)"+ofZone+" AND b.id=? AND m.place=? AND m.segment=? AND m.offset=?",
			m.zone, b.ID[:], int64(b.Place), b.Segment, b.Offset)
		found = n > 0
		return err
	})
	return found, err
}

// Moves implements transfer.Mover.
func (m *Mover) Moves(ctx context.Context) (blobs, bytes int64, err error) {
	err = m.scan(ctx, "migrate", 0, func(c *conn) error {
		return c.each("SELECT count(*),coalesce(sum(b.size),0)"+ofZone, func(st *sqlite.Stmt) error {
			blobs, bytes = st.ColumnInt64(0), st.ColumnInt64(1)
			return nil
		}, m.zone)
	})
	return blobs, bytes, err
}

// FinishMove implements transfer.Mover.
func (m *Mover) FinishMove(ctx context.Context) error {
	return m.bulk(ctx, func(w *conn) error {
		for _, sql := range []string{
			"DELETE FROM blobs WHERE zone=?1 AND refs=0 AND place<>0",
			`UPDATE blobs SET place=m.place,segment=m.segment,offset=m.offset,condemned=NULL,removing=0
				FROM moves m WHERE m.blob=blobs.blob AND blobs.zone=?1`,
			"DELETE FROM moves WHERE blob IN (SELECT blob FROM blobs WHERE zone=?1)",
			"UPDATE move SET done=1 WHERE zone=?1",
		} {
			if err := w.script(sql, m.zone); err != nil {
				return err
			}
		}
		return nil
	})
}

// EndMove implements transfer.Mover.
func (m *Mover) EndMove(ctx context.Context) error {
	return m.bulk(ctx, func(w *conn) error {
		if err := w.script("DELETE FROM move WHERE zone=?", m.zone); err != nil {
			return err
		}
		left, err := w.number("SELECT count(*) FROM move")
		if err != nil || left > 0 {
			return err
		}
		return errors.Join(w.script("DROP TABLE move"), w.script("DROP TABLE moves"))
	})
}
