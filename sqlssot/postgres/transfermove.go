package postgres

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"nexusfs/meta"
	"nexusfs/sqlssot/transfer"
)

// Mover is a zone whose content moves: transfer.Mover. From BeginMove until the
// new places are in force nobody else can open the zone.
type Mover struct {
	*Store
	lock *pgxpool.Conn
}

var _ transfer.Mover = (*Mover)(nil)

// OpenMover opens an existing zone to move its content. KindBusy when another
// migration of the zone is under way; else the errors of Open.
func OpenMover(ctx context.Context, o Options) (*Mover, error) {
	o.ReadOnly = false
	s, err := connect(ctx, o)
	if err != nil {
		return nil, err
	}
	m := &Mover{Store: s}
	if m.lock, err = s.lockMigration(ctx); err == nil {
		var n int64
		if err = s.pools.read.QueryRow(ctx, `SELECT zone FROM zones WHERE name = $1`, s.o.Zone).Scan(&n); errors.Is(err, pgx.ErrNoRows) {
			err = s.noZone(ctx)
		}
		s.setZone(n)
	}
	if err != nil {
		return nil, errors.Join(classify("open", 0, s.o.Zone, err), m.Close())
	}
	return m, nil
}

// Close ends the connections.
func (m *Mover) Close() error {
	m.unlockMigration(m.lock)
	m.lock = nil
	return m.Store.Close()
}

// moving reports a move that is not forgotten yet.
func (s *Store) moving(ctx context.Context, q querier) (to string, done, found bool, err error) {
	err = q.QueryRow(ctx, `SELECT dest,done FROM content_moves WHERE zone=$1`, s.zone).Scan(&to, &done)
	if errors.Is(err, pgx.ErrNoRows) {
		return "", false, false, nil
	}
	return to, done, err == nil, err
}

// refuseMoving refuses a zone of whose blobs some have been copied elsewhere:
// what is changed now would be missed there.
func (s *Store) refuseMoving(ctx context.Context, q querier) error {
	to, done, found, err := s.moving(ctx, q)
	if err != nil || !found || done {
		return err
	}
	return meta.E("open", 0, s.o.Zone, meta.KindInvalid, fmt.Errorf("its content is being moved to %s: run nexusfs migrate again until that has come to its end", to))
}

// BeginMove implements transfer.Mover. KindBusy while a daemon has the zone
// mounted; those whose lease has ended are fenced.
func (m *Mover) BeginMove(ctx context.Context, to string) (done bool, err error) {
	err = m.update(ctx, "migrate", func(tx pgx.Tx) error {
		old, finished, found, err := m.moving(ctx, tx)
		switch {
		case err != nil:
			return err
		case found && old != to && !finished:
			return meta.E("migrate", 0, m.o.Zone, meta.KindExist, fmt.Errorf("its content is on its way to %s: let that come to its end first", old))
		case found && old == to:
			done = finished
			return nil
		}
		if err := m.endSessions(ctx, tx); err != nil {
			return err
		}
		_, err = exec(ctx, tx, `INSERT INTO content_moves(zone,dest) VALUES($1,$2)
			ON CONFLICT (zone) DO UPDATE SET dest=excluded.dest,done=false`, m.zone, to) // EndMove was not reached; nothing depends on it
		return err
	})
	return done, err
}

// endSessions fences sessions whose lease has ended and refuses others.
func (m *Mover) endSessions(ctx context.Context, tx pgx.Tx) error {
	fenced, err := m.fence(ctx, tx, `lease > 0 AND until < `+serverNow)
	if err == nil && fenced > 0 {
		err = m.sessionsChanged(ctx, tx)
	}
	if err != nil {
		return err
	}
	left, err := number(ctx, tx, `SELECT count(*) FROM session_rows WHERE session BETWEEN $1 AND $2 AND ended IS NULL AND fenced=0`, m.base|1, m.base|keyMask)
	if err == nil && left > 0 {
		err = meta.E("migrate", 0, m.o.Zone, meta.KindBusy, fmt.Errorf("%d daemons have the zone mounted: unmount it there first", left))
	}
	return err
}

// ofZone selects the rows of moved_blobs that belong to the zone.
const ofZone = ` FROM moved_blobs m JOIN blobs b ON b.blob=m.blob WHERE b.zone=$1`

// LastMove implements transfer.Mover.
func (m *Mover) LastMove(ctx context.Context) (key transfer.Row, err error) {
	err = m.scan(ctx, "migrate", 0, func(tx pgx.Tx) error {
		last, err := number(ctx, tx, `SELECT coalesce(max(m.blob),0)`+ofZone, m.zone)
		if last > 0 {
			key = transfer.Row{last}
		}
		return err
	})
	return key, err
}

// NoteMoves implements transfer.Mover.
func (m *Mover) NoteMoves(ctx context.Context, list []transfer.Row) error {
	var cols [4][]int64
	for _, row := range list {
		for i, v := range append(transfer.Row{row[0]}, transfer.PlaceOf(row)...) {
			n, _ := v.(int64) // BlobTable has numbers there
			cols[i] = append(cols[i], n)
		}
	}
	return m.bulk(ctx, true, func(tx pgx.Tx) error {
		_, err := exec(ctx, tx, `INSERT INTO moved_blobs(blob,place,segment,"offset") SELECT * FROM unnest($1::bigint[],$2::bigint[],$3::bigint[],$4::bigint[])`,
			cols[0], cols[1], cols[2], cols[3])
		return err
	})
}

// Placed implements transfer.Mover.
func (m *Mover) Placed(ctx context.Context, b meta.Blob) (found bool, err error) {
	err = m.one(ctx, "migrate", 0, "", `SELECT EXISTS (SELECT `+ofZone+` AND b.id=$2 AND m.place=$3 AND m.segment=$4 AND m."offset"=$5)`,
		[]any{&found}, m.zone, b.ID[:], b.Place, b.Segment, b.Offset)
	return found, err
}

// Moves implements transfer.Mover.
func (m *Mover) Moves(ctx context.Context) (blobs, bytes int64, err error) {
	err = m.scan(ctx, "migrate", 0, func(tx pgx.Tx) error {
		return tx.QueryRow(ctx, `SELECT count(*),coalesce(sum(b.size),0)::bigint`+ofZone, m.zone).Scan(&blobs, &bytes)
	})
	return blobs, bytes, err
}

// FinishMove implements transfer.Mover. The zone's content lies at the
// destination from then on (ContentPlace).
func (m *Mover) FinishMove(ctx context.Context) error {
	return m.update(ctx, "migrate", func(tx pgx.Tx) error {
		for _, sql := range []string{
			`DELETE FROM blobs WHERE zone=$1 AND refs=0 AND place<>0`,
			`UPDATE blobs b SET place=m.place,segment=m.segment,"offset"=m."offset",condemned=NULL,removing=0
				FROM moved_blobs m WHERE m.blob=b.blob AND b.zone=$1`,
			`DELETE FROM moved_blobs m USING blobs b WHERE b.blob=m.blob AND b.zone=$1`,
			`UPDATE zones z SET content=m.dest FROM content_moves m WHERE m.zone=z.zone AND z.zone=$1`,
			`UPDATE content_moves SET done=true WHERE zone=$1`,
		} {
			if _, err := exec(ctx, tx, sql, m.zone); err != nil {
				return err
			}
		}
		return nil
	})
}

// EndMove implements transfer.Mover.
func (m *Mover) EndMove(ctx context.Context) error {
	return m.update(ctx, "migrate", func(tx pgx.Tx) error {
		_, err := exec(ctx, tx, `DELETE FROM content_moves WHERE zone=$1`, m.zone)
		return err
	})
}
