package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"nexusfs/meta"
	"nexusfs/sqlssot/transfer"
)

// unfinished is what the name of a zone that is not complete ends with.
const unfinished = " (migration not complete)"

// Target is a zone that a migration fills: transfer.Target. Until Finish the
// zone has another name, so that Open does not find it.
type Target struct {
	*Store
	lock    *pgxpool.Conn   // its connection keeps other migrations of the zone away
	content string          // where the zone's content goes
	id      string          // what marks it
	whole   bool            // the zone is there already
	origin  transfer.Origin // after Begin
}

var _ transfer.Target = (*Target)(nil)

// OpenTarget opens a database, with the schema made when there is none, to fill
// a zone of it whose content goes to a place (as ContentPlace returns it). The
// zone need not exist. KindBusy when another migration of the zone is under way,
// KindExist when one was begun with its content at another place; else the
// errors of Open.
func OpenTarget(ctx context.Context, o Options, content string) (*Target, error) {
	o.ReadOnly = false
	s, err := connect(ctx, o)
	if err != nil {
		return nil, err
	}
	t := &Target{Store: s, content: content}
	if t.lock, err = s.lockMigration(ctx); err == nil {
		err = t.look(ctx)
	}
	if err != nil {
		return nil, errors.Join(classify("open", 0, s.o.Zone, err), t.Close())
	}
	return t, nil
}

// look finds out how far the zone is.
func (t *Target) look(ctx context.Context) error {
	return t.scan(ctx, "migrate", 0, func(tx pgx.Tx) error {
		var zone int64
		var at string
		err := tx.QueryRow(ctx, `SELECT zone,name=$1,content,uid::text FROM zones WHERE name IN ($1,$2)`, t.o.Zone, t.o.Zone+unfinished).
			Scan(&zone, &t.whole, &at, &t.id)
		t.setZone(zone)
		switch {
		case errors.Is(err, pgx.ErrNoRows):
			return tx.QueryRow(ctx, `SELECT gen_random_uuid()::text`).Scan(&t.id)
		case err == nil && !t.whole && at != t.content:
			err = meta.E("migrate", 0, t.o.Zone, meta.KindExist, fmt.Errorf("a migration into it was begun with its content at %s: give the same place", at))
		}
		return err
	})
}

// Whole reports whether the zone was there, and complete, when it was opened.
// It may be read then.
func (t *Target) Whole() bool { return t.whole }

// ContentID is what marks the zone's content as its own (ContentPlace).
func (t *Target) ContentID() string { return t.id }

// Discard removes what an earlier run has copied, so that Begin begins anew.
// Blobs that it stored are for the next run to free. KindInvalid when the zone is
// whole.
func (t *Target) Discard(ctx context.Context) error {
	if t.whole {
		return meta.E("migrate", 0, t.o.Zone, meta.KindInvalid, errors.New("the zone is whole, and stays"))
	}
	return t.bulk(ctx, true, func(tx pgx.Tx) error {
		var zone int64
		err := tx.QueryRow(ctx, `SELECT zone FROM zones WHERE name=$1`, t.o.Zone+unfinished).Scan(&zone)
		if errors.Is(err, pgx.ErrNoRows) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, table := range append(transfer.Tables(), transfer.ZoneTable()) {
			if _, err := exec(ctx, tx, "DELETE FROM "+table.Name+" WHERE "+table.Where(zone)); err != nil {
				return err
			}
		}
		_, err = exec(ctx, tx, `DELETE FROM migrations WHERE zone=$1`, zone)
		return err
	})
}

// Close ends the connections.
func (t *Target) Close() error {
	t.unlockMigration(t.lock)
	t.lock = nil
	return t.Store.Close()
}

// migrationClass is the advisory lock's first number, beside the zone's: "nxmg".
const migrationClass = 0x6e786d67

// migrationWait bounds waiting for that lock: the server may take a moment to
// notice that a process was killed.
const migrationWait = 10 * time.Second

// lockMigration keeps other migrations of the zone away until the connection is
// given back.
func (s *Store) lockMigration(ctx context.Context) (*pgxpool.Conn, error) {
	c, err := s.fresh(ctx, s.pools.long)
	if err != nil {
		return nil, err
	}
	_, err = c.Exec(ctx, fmt.Sprintf("SET lock_timeout = %d", min(migrationWait, s.o.Statement).Milliseconds()))
	if err == nil {
		_, err = c.Exec(ctx, "SELECT pg_advisory_lock($1, hashtext($2))", int32(migrationClass), s.o.Zone)
	}
	if codeOf(err) == codeLockTimeout {
		err = meta.E("migrate", 0, s.o.Zone, meta.KindBusy, errors.New("another nexusfs migrate works on this zone: wait until it is done, or end it"))
	}
	if err != nil {
		s.unlockMigration(c)
		return nil, err
	}
	return c, nil
}

// unlockMigration gives the lock back, if there is one, with its connection.
func (s *Store) unlockMigration(c *pgxpool.Conn) {
	if c != nil {
		_ = c.Hijack().Close(context.Background()) // the server drops the lock with the connection, however that ends
	}
}

// bulk runs fn in a transaction; without durable its rows are on the disk when
// those of a later transaction are that is durable.
func (s *Store) bulk(ctx context.Context, durable bool, fn func(tx pgx.Tx) error) error {
	if err := interrupted(ctx, "migrate"); err != nil {
		return err
	}
	if err := s.writable("migrate"); err != nil {
		return err
	}
	c, err := s.fresh(ctx, s.pools.long)
	if err == nil {
		defer c.Release()
		err = pgx.BeginFunc(ctx, c, func(tx pgx.Tx) error {
			if !durable {
				if _, err := exec(ctx, tx, "SET LOCAL synchronous_commit = off"); err != nil {
					return err
				}
			}
			return fn(tx)
		})
	}
	if err != nil && ctx.Err() != nil {
		return meta.E("migrate", 0, "", meta.KindInterrupted, ctx.Err())
	}
	return classify("migrate", 0, s.o.Zone, err)
}

// Begin implements transfer.Target.
func (t *Target) Begin(ctx context.Context, o transfer.Origin, zone transfer.Row) (n transfer.Numbers, begun, done bool, err error) {
	t.origin = o
	err = t.bulk(ctx, true, func(tx pgx.Tx) error {
		if _, err := exec(ctx, tx, `SELECT pg_advisory_xact_lock($1)`, int64(migrationLock)); err != nil {
			return err
		}
		if n, begun, err = t.begun(ctx, tx, o); err != nil || begun {
			return err
		}
		if done, err = t.finished(ctx, tx, o); err != nil || done {
			return err
		}
		n, err = t.begin(ctx, tx, o, zone)
		return err
	})
	return n, begun, done, err
}

// begun looks for what an earlier run has begun.
func (t *Target) begun(ctx context.Context, tx pgx.Tx, o transfer.Origin) (n transfer.Numbers, found bool, err error) {
	var text string
	err = tx.QueryRow(ctx, `SELECT m.zone,m.blob,m.origin FROM migrations m JOIN zones z ON z.zone=m.zone WHERE z.name=$1`, t.o.Zone+unfinished).
		Scan(&n.Zone, &n.Blob, &text)
	if errors.Is(err, pgx.ErrNoRows) {
		return n, false, nil
	}
	var old transfer.Origin
	if err == nil {
		err = json.Unmarshal([]byte(text), &old)
	}
	t.setZone(n.Zone)
	if err == nil && !o.Same(old) {
		err = meta.E("migrate", 0, t.o.Zone, meta.KindExist, fmt.Errorf(
			"the target was begun with another source, or the source has been changed since (it was at revision %d, it is at %d): begin anew (--restart), or give the target another zone name", old.Rev, o.Rev))
	}
	return n, true, err
}

// finished reports whether the zone is there already.
func (t *Target) finished(ctx context.Context, tx pgx.Tx, o transfer.Origin) (bool, error) {
	var zone int64
	err := tx.QueryRow(ctx, `SELECT zone FROM zones WHERE name=$1`, t.o.Zone).Scan(&zone)
	if errors.Is(err, pgx.ErrNoRows) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	t.setZone(zone)
	have, err := t.Origin(ctx)
	if err == nil && !o.Same(have) {
		err = meta.E("migrate", 0, t.o.Zone, meta.KindExist, errors.New("the target holds another zone of this name: give a new one"))
	}
	return err == nil, err
}

// begin chooses the zone's numbers and writes its row.
func (t *Target) begin(ctx context.Context, tx pgx.Tx, o transfer.Origin, zone transfer.Row) (n transfer.Numbers, err error) {
	n = o.Numbers
	next, err := number(ctx, tx, `SELECT coalesce(max(zone)+1,-1) FROM zones`)
	if err != nil {
		return n, err
	}
	if next >= 0 { // others live here
		n.Zone = next
	}
	if n.Zone >= maxZones {
		return n, meta.E("migrate", 0, t.o.Zone, meta.KindNoSpace, fmt.Errorf("a store holds at most %d zones", maxZones))
	}
	if n.Blob, err = number(ctx, tx, `SELECT reserve_blobs($1,$2)`, o.Numbers.Blob, o.LastBlob); err != nil {
		return n, err
	}
	if _, err := exec(ctx, tx, `SELECT skip_actors($1)`, o.LastActor/actorBlock); err != nil {
		return n, err
	}
	table := transfer.ZoneTable()
	zone = slices.Clone(zone)
	if err := (transfer.Mapping{From: o.Numbers, To: n}).Row(table, zone); err != nil {
		return n, err
	}
	zone[1] = t.o.Zone + unfinished
	if err := copyRows(ctx, tx, table, []transfer.Row{zone}); err != nil {
		return n, err
	}
	if _, err := exec(ctx, tx, `UPDATE zones SET uid=$2::text::uuid,content=$3 WHERE zone=$1`, n.Zone, t.id, t.content); err != nil {
		return n, err
	}
	origin, err := json.Marshal(o)
	if err != nil {
		return n, err
	}
	t.setZone(n.Zone)
	_, err = exec(ctx, tx, `INSERT INTO migrations(zone,blob,origin) VALUES($1,$2,$3)`, n.Zone, n.Blob, string(origin))
	return n, err
}

// Last implements transfer.Target.
func (t *Target) Last(ctx context.Context, table *transfer.Table) (key transfer.Row, err error) {
	err = t.scan(ctx, "migrate", 0, func(tx pgx.Tx) error {
		return exportRows(ctx, tx, table.SelectLast(t.zone, dialect), nil, table.Columns[:table.Keys], func(row transfer.Row) error {
			key = row
			return nil
		})
	})
	return key, err
}

// Import implements transfer.Target. A crash of the server may take back the
// rows of the last second; the run that goes on copies them again.
func (t *Target) Import(ctx context.Context, table *transfer.Table, list []transfer.Row) error {
	return t.bulk(ctx, false, func(tx pgx.Tx) error { return copyRows(ctx, tx, table, list) })
}

// VerifyChain implements transfer.Target.
func (t *Target) VerifyChain(ctx context.Context, first meta.Rev, report func(meta.Finding)) (checked int64, err error) {
	return t.verifyChain(ctx, t.origin.Name, first, report)
}

// Finish implements transfer.Target. What the other engine has no rows for is
// made here: the list of inodes without names, and how many sessions live.
func (t *Target) Finish(ctx context.Context) error {
	return t.bulk(ctx, true, func(tx pgx.Tx) error {
		if _, err := exec(ctx, tx, `INSERT INTO nameless(ino,rev,born) SELECT ino,rev,cookie<>0 FROM inodes WHERE nlink=0 AND ino BETWEEN $1 AND $2`,
			t.base, t.base|keyMask); err != nil {
			return err
		}
		if _, err := exec(ctx, tx, `UPDATE counters SET live=(SELECT count(*) FROM session_rows
				WHERE session BETWEEN $2::bigint+1 AND $3 AND ended IS NULL AND fenced=0)
			WHERE zone=$1 AND kind=0 AND id=0`, t.zone, t.base, t.base|keyMask); err != nil {
			return err
		}
		if t.origin.Name != t.o.Zone && t.origin.Rev > 0 {
			if _, err := exec(ctx, tx, `INSERT INTO zone_names(rev,name) VALUES($1,$2) ON CONFLICT DO NOTHING`, // unless nothing was chained under that name
				t.k(int64(t.origin.Rev)), t.origin.Name); err != nil {
				return err
			}
		}
		if _, err := exec(ctx, tx, `UPDATE zones SET name=$2 WHERE zone=$1`, t.zone, t.o.Zone); err != nil {
			return err
		}
		_, err := exec(ctx, tx, `DELETE FROM migrations WHERE zone=$1`, t.zone)
		return err
	})
}

// noZone says why there is no zone of the name that was asked for.
func (s *Store) noZone(ctx context.Context) error {
	var begun bool
	err := s.pools.read.QueryRow(ctx, `SELECT EXISTS (SELECT FROM zones WHERE name=$1)`, s.o.Zone+unfinished).Scan(&begun)
	switch {
	case err != nil:
		return err
	case begun:
		return meta.E("open", 0, s.o.Zone, meta.KindInvalid, errors.New("a migration into it has not come to its end: run nexusfs migrate again with the same source"))
	}
	return meta.E("open", 0, s.o.Zone, meta.KindNotExist, errors.New("the store has no such zone"))
}
