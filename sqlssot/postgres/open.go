package postgres

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"nexusfs/meta"
)

const (
	// zoneShift is where the zone's number begins in keys of the tables.
	zoneShift = 48
	keyMask   = 1<<zoneShift - 1
	// maxZones bounds the number of zones of one database (keys stay positive).
	maxZones = 1 << 14
)

// Store is one zone of one database: meta.Store, meta.Sessions, meta.History
// and meta.Upkeep. Reads and upkeep may run concurrently; Commit takes turns.
//
// LOCK ORDER: sweepMu, commitMu. Both are held over SQL: they order the callers
// of one duty, and no reader takes them.
type Store struct {
	o     Options
	pools *pools
	trips trips

	zone     int64
	base     int64  // zone << zoneShift
	chained  []byte // the zone's part of the chain
	address  string // without the password
	indexLag int64

	closed atomic.Bool

	commitMu sync.Mutex
	enc      encoder    // guarded by commitMu
	batches  batchState // guarded by commitMu
	actors   actorTable // guarded by commitMu

	sweepMu    sync.Mutex
	sweep      sweep    // guarded by sweepMu: where Prune goes on
	recent     int64    // guarded by sweepMu: up to where PruneRecent has looked
	fragmented meta.Ino // guarded by sweepMu: where Fragmented goes on
}

// k makes the key of an inode number or revision; 0 stays 0.
func (s *Store) k(n int64) int64 {
	if n == 0 {
		return 0
	}
	return s.base | n
}

// unk takes the zone out of a key.
func unk(k int64) int64 { return k & keyMask }

// Open opens an existing zone and brings the schema up to date. KindNotExist
// when there is no such database or zone, KindInvalid when the database is not
// ours, was written by a newer version, the server is too old, or a migration of
// the zone has not come to its end (nothing is changed then), KindAccess when the login or a right is refused, KindIO when
// the server cannot be reached.
func Open(ctx context.Context, o Options) (*Store, error) {
	return open(ctx, o, func(s *Store) error { return s.findZone(ctx) })
}

// Create makes a zone with its root directory, and the schema around it when
// there is none. KindExist when the zone is there already.
func Create(ctx context.Context, o Options) (*Store, error) {
	o.ReadOnly = false
	return open(ctx, o, func(s *Store) error { return s.createZone(ctx) })
}

// open connects, looks at the schema and lets zone find or make the zone.
func open(ctx context.Context, o Options, zone func(*Store) error) (*Store, error) {
	s, err := connect(ctx, o)
	if err != nil {
		return nil, err
	}
	if err = zone(s); err == nil {
		var h meta.Head
		if h, err = s.Head(ctx); err == nil {
			s.recent = s.base | int64(h.Barrier) // the sessions before have looked at the rest; Prune looks at everything
			return s, nil
		}
	}
	s.pools.close()
	return nil, classify("open", 0, s.o.Zone, err)
}

// connect looks at the schema and makes a Store that has no zone yet.
func connect(ctx context.Context, o Options) (*Store, error) {
	o = o.withDefaults()
	if err := checkZone(o.Zone); err != nil {
		return nil, err
	}
	if err := withConn(ctx, o, func(c *pgx.Conn) error { return ready(ctx, c, o.ReadOnly) }); err != nil {
		return nil, err
	}
	s := &Store{o: o, indexLag: indexLag}
	s.enc.s = s
	config, err := pgx.ParseConfig(o.URL)
	if err != nil {
		return nil, meta.E("open", 0, "", meta.KindInvalid, parseError(err))
	}
	s.address = address(config)
	s.chained = append(binary.BigEndian.AppendUint64(nil, uint64(len(o.Zone))), o.Zone...)
	if s.pools, err = openPools(&s.o, &s.trips); err != nil {
		return nil, err
	}
	return s, nil
}

// ready brings the schema up to date, or refuses one that is not where it may
// not be changed.
func ready(ctx context.Context, c *pgx.Conn, readOnly bool) error {
	if !readOnly {
		return migrate(ctx, c)
	}
	version, err := schemaVersion(ctx, c)
	switch {
	case err != nil:
		return err
	case version == 0:
		return meta.E("open", 0, "", meta.KindNotExist, errors.New("there is no store in this database"))
	case version < lastVersion():
		return meta.E("open", 0, "", meta.KindInvalid, fmt.Errorf(
			"the store has schema version %d, this nexusfs needs %d: mount it writable once", version, lastVersion()))
	}
	return nil
}

// findZone looks the zone up by name.
func (s *Store) findZone(ctx context.Context) error {
	var n int64
	err := s.pools.read.QueryRow(ctx, `SELECT zone FROM zones WHERE name = $1`, s.o.Zone).Scan(&n)
	if errors.Is(err, pgx.ErrNoRows) {
		return s.noZone(ctx)
	}
	s.setZone(n)
	if err == nil {
		err = s.refuseMoving(ctx, s.pools.read)
	}
	return err
}

func (s *Store) setZone(n int64) { s.zone, s.base = n, n<<zoneShift }

// createZone inserts the zone's rows and its first operation.
func (s *Store) createZone(ctx context.Context) error {
	s.commitMu.Lock()
	defer s.commitMu.Unlock()
	c, err := s.acquire(ctx, s.pools.commit)
	if err != nil {
		return err
	}
	defer c.Release()
	return pgx.BeginFunc(ctx, c, func(tx pgx.Tx) error {
		if _, err := exec(ctx, tx, `SELECT pg_advisory_xact_lock($1)`, int64(migrationLock)); err != nil {
			return err
		}
		n, err := number(ctx, tx, `SELECT count(*) FROM zones WHERE name = $1`, s.o.Zone)
		if err != nil {
			return err
		}
		if n > 0 {
			return meta.E("create", 0, s.o.Zone, meta.KindExist, errors.New("the store has this zone already"))
		}
		next, err := number(ctx, tx, `SELECT coalesce(max(zone)+1, 0) FROM zones`)
		if err != nil {
			return err
		}
		if next >= maxZones {
			return meta.E("create", 0, s.o.Zone, meta.KindNoSpace, fmt.Errorf("a store holds at most %d zones", maxZones))
		}
		s.setZone(next)
		now := s.o.Now().UnixNano()
		if _, err := exec(ctx, tx, `INSERT INTO zones(zone, name, epoch, next_ino, created, indexed) VALUES ($1, $2, 1, 2, $3, $4)`,
			next, s.o.Zone, now, s.base); err != nil {
			return err
		}
		if _, err := exec(ctx, tx, `INSERT INTO counters(zone, kind, id, history, rev, head, barrier, reserved, topology, sessions, live)
			VALUES ($1, 0, 0, 0, $2, $3, $2, $2, 0, 0, 0)`, next, s.base, make([]byte, 32)); err != nil {
			return err
		}
		var lineage string
		if err := tx.QueryRow(ctx, lineageSQL).Scan(&lineage); err != nil {
			return err
		}
		if err := s.vouch(ctx, tx, lineage); err != nil {
			return err
		}
		return s.createRoot(ctx, tx, now)
	})
}

// createRoot writes the root directory through the code of every other change,
// under a session of the number 0 that exists only meanwhile.
func (s *Store) createRoot(ctx context.Context, tx pgx.Tx, now int64) error {
	root := meta.Attr{Ino: meta.RootIno, Mode: meta.ModeDir | s.o.Mode&meta.ModePerm, UID: s.o.UID, GID: s.o.GID,
		Nlink: 2, Atime: now, Mtime: now, Ctime: now, Btime: now, Parent: meta.RootIno, Creator: int64(s.o.UID)}
	c := &meta.Change{
		Record: meta.Record{Kind: meta.OpInit, Ino: meta.RootIno, Time: now,
			Actor: meta.Actor{UID: s.o.UID, GID: s.o.GID, PID: uint32(os.Getpid())},
			After: fmt.Sprintf(`{"mode":%d,"uid":%d,"gid":%d}`, root.Mode, root.UID, root.GID)},
		Inodes: []meta.InodeChange{{After: root}},
	}
	return s.commitIn(ctx, tx, c)
}

// commitIn commits one change of the store's own in a transaction, outside of
// any session. commitMu is held.
func (s *Store) commitIn(ctx context.Context, tx pgx.Tx, c *meta.Change) error {
	const own = 0 // sessions have numbers from 1 on
	if _, err := exec(ctx, tx, `INSERT INTO session_rows(session, epoch, node, pid, boot_id, mountpoint, lease, started)
		VALUES ($1, 0, '', 0, '', '', 0, 0)`, int64(own)); err != nil {
		return err
	}
	kept := s.batches
	s.batches = batchState{}
	defer func() { s.batches = kept }()
	b := &meta.Batch{Changes: []*meta.Change{c}}
	if err := s.enc.encode(b, false); err != nil {
		return err
	}
	if _, err := s.callOn(ctx, tx.Conn().PgConn(), b, 1, false); err != nil {
		return err
	}
	if _, err := exec(ctx, tx, `DELETE FROM session_rows WHERE session = $1`, int64(own)); err != nil {
		return err
	}
	_, err := exec(ctx, tx, `SELECT set_config('synchronous_commit', 'on', true)`) // the batch turned it off for the transaction
	return err
}

// writable refuses writes that must not happen.
func (s *Store) writable(op string) error {
	if s.o.ReadOnly {
		return meta.E(op, 0, "", meta.KindReadOnly, nil)
	}
	if s.closed.Load() {
		return meta.E(op, 0, "", meta.KindShutdown, nil)
	}
	return nil
}

// Close waits for running calls and closes the connections. Later calls of
// Close do nothing.
func (s *Store) Close() error {
	if s.closed.Swap(true) {
		return nil
	}
	s.commitMu.Lock()
	defer s.commitMu.Unlock()
	s.pools.close()
	return nil
}

// checkZone refuses names of zones that the database cannot hold.
func checkZone(name string) error {
	if !utf8.ValidString(name) || strings.IndexByte(name, 0) >= 0 {
		return meta.E("open", 0, name, meta.KindInvalid, errors.New("a zone's name is UTF-8 text"))
	}
	return nil
}
