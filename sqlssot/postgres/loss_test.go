package postgres

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"nexusfs/internal/pgtest"
	"nexusfs/meta"
)

// recoveries returns the recovery records of the zone, oldest first.
func (w *world) recoveries() (out []meta.Record) {
	w.tb.Helper()
	if err := w.Records(ctx, meta.RecordFilter{}, func(r *meta.Record) bool {
		if r.Kind == meta.OpRecovery {
			out = append(out, *r)
		}
		return true
	}); err != nil {
		w.tb.Fatal(err)
	}
	return out
}

// TestP15CrashOfTheServer: after a crash a level-relaxed zone goes on above
// every number that was issued, with one record of what may be missing, however
// many daemons begin at once; a strict one, which lost nothing, just goes on.
func TestP15CrashOfTheServer(t *testing.T) {
	s := pgtest.Start(t, pgtest.Options{Settings: []string{"autovacuum=off"}})
	crash := func() {
		if err := s.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := s.Start(); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("relaxed", func(t *testing.T) {
		name := s.Database(t)
		w := newWorld(t, Options{URL: s.SocketURL(name)}, lease)
		if err := w.Reserve(ctx, 5000); err != nil {
			t.Fatal(err)
		}
		s.HoldLog(t)
		lost := w.commit(w.mkdir())[0].Rev
		crash()
		var wg sync.WaitGroup
		begun := make([]*world, 4)
		for i := range begun {
			begun[i] = &world{Store: openOrCreate(t, w.o), tb: t, dir: meta.RootIno}
		}
		for _, b := range begun {
			wg.Go(func() {
				var err error
				if b.session, b.epoch, _, err = b.Begin(ctx, meta.SessionInfo{Node: "n", Lease: int64(lease)}); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		recs := w.recoveries()
		if len(recs) != 1 || recs[0].Rev != 5001 || !strings.Contains(recs[0].After, fmt.Sprintf(`"first":%d`, lost)) || !strings.Contains(recs[0].After, "relaxed") {
			t.Fatalf("the records of the recovery are %+v; revision %d was lost", recs, lost)
		}
		for _, b := range begun {
			if got := b.commit(b.mkdir())[0].Rev; got <= 5001 {
				t.Errorf("revision %d was issued again", got)
			}
		}
		_, err := w.send(w.mkdir())
		wantKind(t, err, meta.KindLost)
		_, err = w.Peers().Heartbeat(ctx, w.session, w.epoch, meta.PeerShares)
		wantKind(t, err, meta.KindLost)
		wantKind(t, w.Sync(ctx), meta.KindLost)
		begun[0].clean()
	})
	t.Run("strict", func(t *testing.T) {
		w := newWorld(t, Options{URL: s.SocketURL(s.Database(t)), Strict: true}, lease)
		first := w.commit(w.mkdir())[0].Rev
		crash()
		if got := w.commit(w.mkdir())[0].Rev; got != first+1 {
			t.Errorf("revision %d after %d", got, first)
		}
		crash()
		if _, err := w.Peers().Heartbeat(ctx, w.session, w.epoch, meta.PeerShares); err != nil {
			t.Error(err)
		}
		crash()
		if _, err := w.Inos(ctx, 1); err != nil {
			t.Error(err)
		}
		if recs := w.recoveries(); len(recs) != 0 {
			t.Errorf("recoveries without a loss: %+v", recs)
		}
		w.clean()
	})
	t.Run("stopped in order", func(t *testing.T) {
		w := newWorld(t, Options{URL: s.SocketURL(s.Database(t))}, lease)
		first := w.commit(w.mkdir())[0].Rev
		if err := s.Stop(); err != nil {
			t.Fatal(err)
		}
		if err := s.Start(); err != nil {
			t.Fatal(err)
		}
		if got := w.commit(w.mkdir())[0].Rev; got != first+1 {
			t.Errorf("revision %d after %d", got, first)
		}
		if recs := w.recoveries(); len(recs) != 0 {
			t.Errorf("recoveries without a loss: %+v", recs)
		}
		w.clean()
	})
}

// TestP15AnotherServer: a standby that lacks the tail is promoted, or a daemon
// has seen more than the server has: revisions, inode numbers, sessions and
// epochs go on where none was issued.
func TestP15AnotherServer(t *testing.T) {
	s := pgtest.Start(t, pgtest.Options{})
	name := s.Database(t)
	w := newWorld(t, Options{URL: s.SocketURL(name), Strict: true}, lease)
	w.commit(w.mkdir())
	b := s.Standby(t, "b")
	b.CaughtUp(t, s)
	b.StopFollowing(t)
	second := newWorld(t, w.o, lease) // its session is among what is lost
	lost := second.commit(second.mkdir())[0].Rev
	ino, err := second.Inos(ctx, 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := b.Promote(); err != nil {
		t.Fatal(err)
	}
	o := w.o
	o.URL = b.SocketURL(name)
	third := newWorld(t, o, lease)
	recs := third.recoveries()
	if len(recs) != 1 || recs[0].Rev <= lost || !strings.Contains(recs[0].After, "took the place") {
		t.Fatalf("the records of the recovery are %+v", recs)
	}
	if third.session <= second.session || third.epoch <= second.epoch {
		t.Errorf("session %d epoch %d after %d, %d", third.session, third.epoch, second.session, second.epoch)
	}
	if got := third.ino(); got <= ino {
		t.Errorf("inode number %d after %d", got, ino)
	}
	third.commit(third.mkdir())
	// The daemon of the lost session comes to the new server.
	second.Store = openOrCreate(t, o)
	_, err = second.send(second.mkdir())
	wantKind(t, err, meta.KindLost)
	known := meta.Rev(1 << 40)
	_, err = third.Commit(ctx, &meta.Batch{Session: third.session, Epoch: third.epoch, Known: known, Changes: []*meta.Change{third.mkdir()}})
	wantKind(t, err, meta.KindLost)
	if second.session, second.epoch, _, err = second.Begin(ctx, meta.SessionInfo{Node: "n", Lease: int64(lease), Known: known}); err != nil {
		t.Fatal(err)
	}
	if got := second.commit(second.mkdir())[0].Rev; got <= known {
		t.Errorf("revision %d after %d was seen", got, known)
	}
	second.clean()
}

// TestP15RestoredDump: a dump that is restored vouches for nothing.
func TestP15RestoredDump(t *testing.T) {
	s := server(t)
	name := s.Database(t)
	w := newWorld(t, Options{URL: s.SocketURL(name)}, lease)
	w.commit(w.mkdir())
	dump, err := s.Dump(name)
	if err != nil {
		t.Fatal(err)
	}
	lost := w.commit(w.mkdir())[0].Rev
	again := s.Database(t)
	s.MustSQL(t, again, dump)
	r := newWorld(t, Options{URL: s.SocketURL(again)}, lease)
	if recs := r.recoveries(); len(recs) != 1 || recs[0].Rev <= lost {
		t.Errorf("the records of the recovery are %+v", recs)
	}
	r.commit(r.mkdir())
	r.clean()
}
