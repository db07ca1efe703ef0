package sqlite

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"

	"nexusfs/meta"
	"nexusfs/sqlssot/transfer"
	"zombiezen.com/go/sqlite"
)

// Target is a zone that a migration fills: transfer.Target. Until Finish the
// zone has another name, so that Open does not find it, and the database a
// table more, migration, which says what it is filled from.
type Target struct {
	*Store
	origin transfer.Origin // after Begin
}

var _ transfer.Target = (*Target)(nil)

// unfinished is what the name of a zone that is not complete ends with.
const unfinished = " (migration not complete)"

const (
	bulkCacheKiB   = 128 << 10
	bulkCheckpoint = 32 << 10 // pages in the log
)

// OpenTarget opens a database, made when there is none, to fill a zone of it.
// Nobody else may have it open: KindBusy. The zone need not exist.
func OpenTarget(ctx context.Context, o Options) (*Target, error) {
	if err := interrupted(ctx, "migrate"); err != nil {
		return nil, err
	}
	if fi, err := os.Stat(o.Path); err == nil && fi.Size() > 0 {
		if err := probe(o.Path); err != nil {
			return nil, err
		}
	}
	s, err := openBulk(o, sqlite.OpenCreate)
	if err != nil {
		return nil, err
	}
	return &Target{Store: s}, nil
}

// openBulk opens a database for one writer who moves much: its commits are
// durable, and it checkpoints by itself.
func openBulk(o Options, create sqlite.OpenFlags) (*Store, error) {
	if err := registerVFS(); err != nil {
		return nil, meta.E("open", 0, o.Path, meta.KindIO, err)
	}
	o.ReadOnly = false
	s := newStore(o)
	s.uri = dbURI(s.path, false, false)
	s.readers.open = func() (*conn, error) { return s.openReader(sqlite.OpenReadWrite) }
	s.scanners.open = s.readers.open
	w, err := s.openConn(sqlite.OpenReadWrite|create, bulkCacheKiB, openWait)
	if err != nil {
		return nil, s.openError(err)
	}
	s.w = w
	if err = s.prepareWriter(); err == nil {
		err = w.script("PRAGMA synchronous=FULL")
	}
	if err == nil {
		err = w.script(fmt.Sprintf("PRAGMA wal_autocheckpoint=%d", bulkCheckpoint))
	}
	if err != nil {
		return nil, errors.Join(s.openError(err), s.Close())
	}
	w.SetBusyTimeout(busyWait)
	return s, nil
}

// bulk runs fn in a transaction of openBulk's writer.
func (s *Store) bulk(ctx context.Context, fn func(w *conn) error) error {
	if err := interrupted(ctx, "migrate"); err != nil {
		return err
	}
	s.writeMu.Lock()
	defer s.writeMu.Unlock()
	if err := s.writable("migrate"); err != nil {
		return err
	}
	err := s.w.do(stBegin)
	if err == nil {
		if err = fn(s.w); err == nil {
			err = s.w.do(stCommit)
		}
		if err != nil && !s.w.AutocommitEnabled() {
			err = errors.Join(err, s.w.do(stRollback))
		}
	}
	return classify("migrate", 0, s.path, err)
}

// Begin implements transfer.Target.
func (t *Target) Begin(ctx context.Context, o transfer.Origin, zone transfer.Row) (n transfer.Numbers, begun, done bool, err error) {
	t.origin = o
	err = t.bulk(ctx, func(w *conn) error {
		if n, begun, err = t.begun(w, o); err != nil || begun {
			return err
		}
		if done, err = t.finished(ctx, w, o); err != nil || done {
			return err
		}
		n, err = t.begin(w, o, zone)
		return err
	})
	return n, begun, done, err
}

// begun looks for what an earlier run has begun.
func (t *Target) begun(w *conn, o transfer.Origin) (n transfer.Numbers, found bool, err error) {
	if tables, err := w.number("SELECT count(*) FROM sqlite_schema WHERE name='migration'"); err != nil || tables == 0 {
		return n, false, err
	}
	var old transfer.Origin
	err = w.each(`SELECT m.zone,m.blob,m.origin FROM migration m JOIN zones z ON z.zone=m.zone WHERE z.name=?`, func(st *sqlite.Stmt) error {
		n, found = transfer.Numbers{Zone: st.ColumnInt64(0), Blob: st.ColumnInt64(1)}, true
		return json.Unmarshal([]byte(st.ColumnText(2)), &old)
	}, t.zoneName+unfinished)
	if err != nil || !found {
		return n, found, err
	}
	t.setZone(n.Zone)
	if !o.Same(old) {
		err = meta.E("migrate", 0, t.zoneName, meta.KindExist, fmt.Errorf(
			"the target was begun with another source, or the source has been changed since (it was at revision %d, it is at %d): remove the target and begin again", old.Rev, o.Rev))
	}
	return n, true, err
}

// finished reports whether the zone is there already.
func (t *Target) finished(ctx context.Context, w *conn, o transfer.Origin) (bool, error) {
	zone := int64(-1)
	if err := w.each("SELECT zone FROM zones WHERE name=?", func(st *sqlite.Stmt) error { zone = st.ColumnInt64(0); return nil }, t.zoneName); err != nil || zone < 0 {
		return false, err
	}
	t.setZone(zone)
	have, err := t.Origin(ctx)
	if err == nil && !o.Same(have) {
		err = meta.E("migrate", 0, t.zoneName, meta.KindExist, errors.New("the target holds another zone of this name: give a new target"))
	}
	return err == nil, err
}

// begin chooses the zone's numbers and writes its row.
func (t *Target) begin(w *conn, o transfer.Origin, zone transfer.Row) (n transfer.Numbers, err error) {
	n = o.Numbers
	next, err := w.number("SELECT coalesce(max(zone)+1,-1) FROM zones")
	if err != nil {
		return n, err
	}
	if next >= 0 { // others live here
		n.Zone = next
		if n.Blob, err = w.number("SELECT coalesce(max(blob),0) FROM blobs"); err != nil {
			return n, err
		}
	}
	if n.Zone >= maxZones {
		return n, meta.E("migrate", 0, t.zoneName, meta.KindNoSpace, fmt.Errorf("a store holds at most %d zones", maxZones))
	}
	table := transfer.ZoneTable()
	zone = slices.Clone(zone)
	if err := (transfer.Mapping{From: o.Numbers, To: n}).Row(table, zone); err != nil {
		return n, err
	}
	zone[1] = t.zoneName + unfinished
	if err := insertRows(w, table, []transfer.Row{zone}); err != nil {
		return n, err
	}
	origin, err := json.Marshal(o)
	if err != nil {
		return n, err
	}
	if err := w.script("CREATE TABLE IF NOT EXISTS migration (zone INTEGER PRIMARY KEY, blob INTEGER NOT NULL, origin TEXT NOT NULL)"); err != nil {
		return n, err
	}
	t.setZone(n.Zone)
	return n, w.script("INSERT INTO migration(zone,blob,origin) VALUES(?,?,?)", n.Zone, n.Blob, string(origin))
}

func insertRows(w *conn, t *transfer.Table, list []transfer.Row) error {
	st, err := w.Prepare(t.Insert())
	if err != nil {
		return err
	}
	for _, row := range list {
		if err := bindRow(st, row); err != nil {
			return err
		}
		if _, err := w.run(st); err != nil {
			return err
		}
	}
	return nil
}

// Last implements transfer.Target.
func (t *Target) Last(ctx context.Context, table *transfer.Table) (key transfer.Row, err error) {
	err = t.scan(ctx, "migrate", 0, func(c *conn) error {
		return c.each(table.SelectLast(t.zone, transfer.Dialect{}), func(st *sqlite.Stmt) (err error) {
			key, err = scanRow(st, table.Columns[:table.Keys])
			return err
		})
	})
	return key, err
}

// Import implements transfer.Target. The rows are durable when it returns.
func (t *Target) Import(ctx context.Context, table *transfer.Table, list []transfer.Row) error {
	return t.bulk(ctx, func(w *conn) error { return insertRows(w, table, list) })
}

// VerifyChain implements transfer.Target.
func (t *Target) VerifyChain(ctx context.Context, first meta.Rev, report func(meta.Finding)) (checked int64, err error) {
	return t.verifyChain(ctx, t.origin.Name, first, report)
}

// Finish implements transfer.Target.
func (t *Target) Finish(ctx context.Context) error {
	return t.bulk(ctx, func(w *conn) error {
		if err := w.script("UPDATE zones SET name=? WHERE zone=?", t.zoneName, t.zone); err != nil {
			return err
		}
		if t.origin.Name != t.zoneName && t.origin.Rev > 0 { // unless nothing was chained under that name
			if err := w.script("INSERT OR IGNORE INTO zone_names(rev,name) VALUES(?,?)", t.k(int64(t.origin.Rev)), t.origin.Name); err != nil {
				return err
			}
		}
		if err := w.script("DELETE FROM migration WHERE zone=?", t.zone); err != nil {
			return err
		}
		left, err := w.number("SELECT count(*) FROM migration")
		if err != nil || left > 0 {
			return err
		}
		return w.script("DROP TABLE migration")
	})
}
