package postgres

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"nexusfs/meta"
	"nexusfs/sqlssot/chain"
)

// unbroken is a condition: this server has every commit that it acknowledged.
// $1 is the zone. The row is in an unlogged table, which is empty after a crash,
// a promotion and a restored backup; commits, heartbeats and sessions ask for it.
const unbroken = `EXISTS (SELECT FROM nexusfs.unbroken WHERE zone = $1 AND made = tableoid)`

// lineageSQL names the server and the table: any role may read it. A promotion
// and a recovery to a point in time begin a timeline, a dump makes another table.
const lineageSQL = `SELECT (pg_control_system()).system_identifier || '/' || ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int || '/' || 'nexusfs.unbroken'::regclass::oid`

// How many numbers a recovery skips when another server took the place: how much
// that one lacks is not to be known, and what is missing may have moved the
// reserved numbers too. At a thousand operations a second it is seven weeks. A
// zone has room for 65,000 such recoveries.
const (
	skippedNumbers  = 1 << 32 // revisions, inode numbers
	skippedSessions = 1 << 20 // sessions, epochs
)

// fencedByLoss in session_rows.fenced: the session was ended because the server
// lost commits, so its daemon drops what it knows and goes on with a new one.
const fencedByLoss = 2

// loss says why commits may be missing.
type loss struct {
	cause   string
	known   meta.Rev // newest revision that a daemon has seen, if the server is behind it
	far     bool     // another server: what was written synchronously may be missing too
	lineage string   // of the server now
}

// survived finds out, with the zone held, whether the server still has all that
// was acknowledged; known is the newest revision that the caller has seen. If
// so it says so for the commits after; if not it returns why.
func (s *Store) survived(ctx context.Context, tx pgx.Tx, known meta.Rev) (*loss, error) {
	var whole bool
	var last int64
	if err := tx.QueryRow(ctx, `SELECT `+unbroken+`, rev FROM counters WHERE zone = $1 AND kind = 0 AND id = 0`, s.zone).Scan(&whole, &last); err != nil {
		return nil, err
	}
	last = unk(last)
	if whole && int64(known) <= last {
		return nil, nil
	}
	l := new(loss)
	var was string
	var relaxed bool
	if err := tx.QueryRow(ctx, `SELECT lineage, (`+lineageSQL+`), EXISTS (SELECT FROM session_rows
			WHERE session BETWEEN $2 AND $3 AND relaxed AND ended IS NULL AND fenced = 0)
		FROM zones WHERE zone = $1`, s.zone, s.base|1, s.base|keyMask).Scan(&was, &l.lineage, &relaxed); err != nil {
		return nil, err
	}
	if int64(known) > last {
		l.known = known
	}
	switch {
	case was != "" && was != l.lineage:
		l.far = true
		l.cause = fmt.Sprintf("another server, timeline or restored copy took the place: %s, before it %s", l.lineage, was)
	case relaxed && !whole:
		l.cause = "the server was stopped before it had flushed commits of level relaxed"
	case l.known != 0:
		l.far = true
		l.cause = "an older copy of the server's data took its place"
	default: // all is there, or the zone was made before this was kept, or copied here
		return nil, s.vouch(ctx, tx, l.lineage)
	}
	return l, nil
}

// vouch says that from now on the server has all that it acknowledges.
func (s *Store) vouch(ctx context.Context, tx pgx.Tx, lineage string) error {
	if _, err := exec(ctx, tx, `INSERT INTO unbroken(zone, made) VALUES ($1, 'nexusfs.unbroken'::regclass)
		ON CONFLICT (zone) DO UPDATE SET made = excluded.made`, s.zone); err != nil {
		return err
	}
	_, err := exec(ctx, tx, `UPDATE zones SET lineage = $2 WHERE zone = $1 AND lineage <> $2`, s.zone, lineage)
	return err
}

// recordLoss makes the zone go on after a loss: no number that may have been
// issued is issued again, every session is ended, and a recovery's record says
// which revisions may be missing. commitMu and the zone are held; the
// transaction is on a connection for commits.
func (s *Store) recordLoss(ctx context.Context, tx pgx.Tx, l *loss, now int64) error {
	var last, barrier, reserved, epoch int64
	var hash []byte
	if err := tx.QueryRow(ctx, headSQL, s.zone).Scan(&last, &hash, &barrier, &reserved, &epoch); err != nil {
		return err
	}
	last = unk(last)
	up := max(unk(reserved), int64(l.known), last)
	var inos int64
	if l.far {
		up, inos = up+skippedNumbers, skippedNumbers
	}
	if up >= keyMask {
		return meta.E("begin", 0, s.o.Zone, meta.KindNoSpace, errors.New("the zone's revisions are used up: copy it to a new zone (nexusfs migrate)"))
	}
	if err := s.vouch(ctx, tx, l.lineage); err != nil {
		return err
	}
	if _, err := exec(ctx, tx, `UPDATE session_rows SET fenced = $3, relaxed = false WHERE session BETWEEN $1 AND $2 AND ended IS NULL AND fenced = 0`,
		s.base|1, s.base|keyMask, fencedByLoss); err != nil {
		return err
	}
	if _, err := exec(ctx, tx, `UPDATE zones SET next_ino = least(next_ino + $2, $3) WHERE zone = $1`, s.zone, inos, int64(keyMask)); err != nil {
		return err
	}
	if _, err := exec(ctx, tx, `UPDATE counters SET reserved = $2 WHERE zone = $1 AND kind = 0 AND id = 0`, s.zone, s.base|up); err != nil {
		return err
	}
	rev := meta.Rev(up + 1)
	if err := s.recordRecovery(ctx, tx, chain.Lost{First: last + 1, Last: last, Reserved: up, Head: hex.EncodeToString(hash),
		Durable: unk(barrier), Known: int64(l.known), Cause: l.cause}, rev, now); err != nil {
		return err
	}
	s.o.Log.Warn("the database may have lost the newest operations; the zone goes on without them",
		"cause", l.cause, "first", last+1, "known", l.known, "recovery", rev)
	return nil
}

// lookAfter is called when a commit, a sync or a range of numbers met a server
// that does not vouch for what it has: nil when nothing is missing after all,
// else KindLost.
func (s *Store) lookAfter(ctx context.Context, op string, known meta.Rev) error {
	return s.update(ctx, op, func(tx pgx.Tx) error {
		l, err := s.survived(ctx, tx, known)
		if l != nil {
			err = meta.E(op, 0, "", meta.KindLost, errors.New(l.cause))
		}
		return err
	})
}

// whyFenced tells a session that was ended because of a loss, or is itself
// among what was lost (KindLost), from one that others ended (KindFenced).
func (s *Store) whyFenced(ctx context.Context, op string, session, epoch int64) error {
	var fenced, of int64
	err := s.borrow(ctx, s.pools.read, func(c *pgx.Conn) error {
		return c.QueryRow(ctx, `SELECT fenced, epoch FROM session_rows WHERE session = $1`, s.k(session)).Scan(&fenced, &of)
	})
	switch {
	case errors.Is(err, pgx.ErrNoRows) && session != 0: // no session is ever removed
		return meta.E(op, 0, "", meta.KindLost, fmt.Errorf("session %d is not there: %s", session, lostText))
	case err != nil && !errors.Is(err, pgx.ErrNoRows):
		return err
	case fenced == fencedByLoss && of == epoch:
		return meta.E(op, 0, "", meta.KindLost, errors.New(lostText))
	}
	return meta.E(op, 0, "", meta.KindFenced, fmt.Errorf("session %d of epoch %d has ended or was fenced", session, epoch))
}
