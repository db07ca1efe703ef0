package postgres

import (
	"crypto/sha256"
	"fmt"
	"strings"
	"testing"
	"time"

	"nexusfs/internal/pgtest"
	"nexusfs/meta"
	"nexusfs/sqlssot/transfer"
	"nexusfs/sqlssot/transfer/transfertest"
)

// databases are those that the suite numbers, of one test.
type databases map[string]string

func (d databases) options(t *testing.T, s *pgtest.Server, database int, zone string) Options {
	t.Helper()
	key := fmt.Sprint(t.Name(), database)
	if d[key] == "" {
		d[key] = s.Database(t)
	}
	return Options{URL: s.SocketURL(d[key]), Zone: zone}
}

// write makes a file whose content rides in SQL.
func (w *world) write(name string) *meta.Change {
	c := w.make(w.dir, name, false)
	b := meta.NewBlob{Blob: meta.Blob{ID: sha256.Sum256([]byte(name)), Size: int64(len(name))}, Data: []byte(name)}
	a := &c.Inodes[0].After
	a.Size, a.Bytes, a.Version = b.Size, b.Size, 1
	c.Content = &meta.ContentChange{Ino: a.Ino, Fresh: true, Blobs: []meta.NewBlob{b},
		Ranges: []meta.RangeChange{{Len: b.Size, Extents: []meta.Extent{{Len: b.Size, Blob: b.Blob}}}}}
	return c
}

func TestTransfer(t *testing.T) {
	s, all := server(t), databases{}
	transfertest.Run(t, transfertest.Engine{
		Target: func(t *testing.T, database int, zone string) (transfer.Target, func() error) {
			t.Helper()
			target, err := OpenTarget(ctx, all.options(t, s, database, zone), "/content")
			if err != nil {
				t.Fatal(err)
			}
			return target, target.Close
		},
		Source: func(t *testing.T, database int, zone string) (transfer.Source, func() error, error) {
			o := all.options(t, s, database, zone)
			o.ReadOnly = true
			source, err := Open(ctx, o)
			if err != nil {
				return nil, nil, err
			}
			return source, source.Close, nil
		},
	})
}

// TestATargetTakesNobodysNumbers: what a zone that lives in the database makes
// during and after a migration beside it gets numbers of its own.
func TestATargetTakesNobodysNumbers(t *testing.T) {
	d := newDatabase(t).(*database)
	lives := d.options()
	lives.Zone = "living"
	living := newWorld(t, lives, lease)
	blobs := transfertest.NewContent()
	o := d.options()
	o.Zone = "new"
	target, err := OpenTarget(ctx, o, "/content")
	if err != nil {
		t.Fatal(err)
	}
	impatient := o
	impatient.Statement = 100 * time.Millisecond
	if _, err := OpenTarget(ctx, impatient, "/content"); meta.KindOf(err) != meta.KindBusy {
		t.Errorf("two migrations into one zone: %v", err)
	}
	source := transfertest.NewZone("old", transfer.Numbers{}, blobs)
	_, err = transfer.Run(ctx, transfer.Options{Source: source, Target: target, From: blobs, To: transfertest.NewContent(),
		Progress: func(phase string, done, total int64) {
			if phase == "rows" {
				living.commit(living.write(fmt.Sprintf("during %d", done)))
			}
		}})
	if err != nil {
		t.Fatal(err)
	}
	id := target.ContentID()
	if err := target.Close(); err != nil {
		t.Fatal(err)
	}
	living.commit(living.write("after"))
	d.s.MustSQL(t, d.name, `DO $$ BEGIN ASSERT (SELECT count(DISTINCT zone) FROM nexusfs.blobs) = 2 AND (SELECT count(*) FROM nexusfs.blobs) > 302; END $$`)
	migrated, err := Open(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	defer migrated.Close()
	if place, have, err := migrated.ContentPlace(ctx); err != nil || place != "/content" || have != id {
		t.Errorf("the content lies at %q, %q (%v), want /content and %q", place, have, err, id)
	}
	if err := living.Verify(ctx, func(f meta.Finding) { t.Errorf("the zone beside: %+v", f) }); err != nil {
		t.Error(err)
	}
	for _, tc := range []struct{ content, zone string }{{"/content", "new"}, {"/elsewhere", "begun"}} {
		o.Zone = tc.zone
		if tc.zone == "begun" {
			d.s.MustSQL(t, d.name, `INSERT INTO nexusfs.zones(zone,name,epoch,next_ino,created,indexed,content) VALUES (9,'begun`+unfinished+`',1,2,3,0,'/content')`)
			if _, err := Open(ctx, o); meta.KindOf(err) != meta.KindInvalid || !strings.Contains(err.Error(), "run nexusfs migrate again") {
				t.Errorf("a zone that is not whole was opened: %v", err)
			}
		}
		target, err := OpenTarget(ctx, o, tc.content)
		if err == nil {
			err = target.Close()
			if !target.Whole() {
				t.Error("the zone that is there is not")
			}
		}
		if (err == nil) != (tc.zone == "new") || err != nil && meta.KindOf(err) != meta.KindExist {
			t.Errorf("%+v: %v", tc, err)
		}
	}
}

// TestNobodyOpensAZoneWhoseContentMoves, from the first step to the last, and
// nothing moves under a daemon.
func TestNobodyOpensAZoneWhoseContentMoves(t *testing.T) {
	d := newDatabase(t).(*database)
	w := newWorld(t, d.options(), lease)
	m, err := OpenMover(ctx, d.options())
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if _, err := m.BeginMove(ctx, "/new"); meta.KindOf(err) != meta.KindBusy {
		t.Errorf("a zone that is mounted: %v", err)
	}
	d.s.MustSQL(t, d.name, `UPDATE nexusfs.session_rows SET until = 1`) // its lease has ended
	if o, err := w.Origin(ctx); err != nil || o.Open != 0 {
		t.Errorf("a session whose lease has ended is one of %d (%v)", o.Open, err)
	}
	if done, err := m.BeginMove(ctx, "/new"); err != nil || done {
		t.Fatal(done, err)
	}
	if _, err := w.send(w.mkdir()); meta.KindOf(err) != meta.KindFenced {
		t.Errorf("the session whose lease had ended commits: %v", err)
	}
	if _, err := m.BeginMove(ctx, "/other"); meta.KindOf(err) != meta.KindExist {
		t.Errorf("a move to another place: %v", err)
	}
	opened := func() error {
		s, err := Open(ctx, d.options())
		if err == nil {
			err = s.Close()
		}
		return err
	}
	begun := func() error {
		_, _, _, err := w.Begin(ctx, meta.SessionInfo{Lease: int64(lease)})
		return err
	}
	for what, err := range map[string]error{"Open": opened(), "Begin": begun()} {
		if meta.KindOf(err) != meta.KindInvalid || !strings.Contains(err.Error(), "moved to /new") {
			t.Errorf("%s while content moves: %v", what, err)
		}
	}
	if err := m.FinishMove(ctx); err != nil {
		t.Fatal(err)
	}
	if done, err := m.BeginMove(ctx, "/new"); err != nil || !done {
		t.Errorf("a second run: %v, %v", done, err)
	}
	if place, _, err := m.ContentPlace(ctx); err != nil || place != "/new" {
		t.Errorf("the content lies at %q, %v", place, err)
	}
	for what, err := range map[string]error{"EndMove": m.EndMove(ctx), "Open": opened(), "Begin": begun()} {
		if err != nil {
			t.Errorf("%s afterwards: %v", what, err)
		}
	}
}
