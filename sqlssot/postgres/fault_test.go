package postgres

import (
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"nexusfs/internal/pgtest"
	"nexusfs/meta"
)

// behindProxy is a store behind a proxy that has committed once.
func behindProxy(t *testing.T) (*proxy, *world, *database) {
	t.Helper()
	s := server(t)
	d := &database{s, s.Database(t)}
	p := newProxy(t, s.Port)
	w := newWorld(t, Options{URL: p.url(d.name), Strict: true, Settle: 20 * time.Second}, 0)
	w.commit(w.mkdir())
	return p, w, d
}

// once fails unless exactly the given operations were committed, besides the
// root and the first directory.
func (w *world) once(outs ...meta.Outcome) {
	w.tb.Helper()
	n := 0
	if err := w.Records(ctx, meta.RecordFilter{Since: 2}, func(r *meta.Record) bool { n++; return true }); err != nil {
		w.tb.Fatal(err)
	}
	if n != len(outs) {
		w.tb.Errorf("%d operations were committed, want %d", n, len(outs))
	}
	for _, o := range outs {
		if o.Err != nil || o.Rev == 0 {
			w.tb.Errorf("the outcome is %+v", o)
		}
	}
	w.clean()
}

// waiting returns when so many of a database's connections wait for a lock.
func waiting(t *testing.T, d *database, n int) {
	for start := time.Now(); time.Since(start) < 10*time.Second; {
		out, err := d.s.SQL(d.name, `SELECT count(*) FROM pg_stat_activity WHERE datname=current_database() AND wait_event_type='Lock'`)
		if err != nil {
			t.Error(err)
			return
		}
		if have, err := strconv.Atoi(out); err == nil && have >= n {
			return
		}
	}
	t.Errorf("nobody waits:\n%s", d.s.MustSQL(t, d.name, `SELECT pid,state,wait_event_type,wait_event,query FROM pg_stat_activity WHERE datname=current_database()`))
}

// TestCutAfterCommit: the server commits, the connection breaks before the
// answer. The caller gets the true outcome and nothing is applied twice (P5).
func TestCutAfterCommit(t *testing.T) {
	p, w, _ := behindProxy(t)
	p.onCommit(func(piece []byte, c *proxied) {
		c.mu.Lock()
		c.swallow = make(chan struct{})
		c.mu.Unlock()
		if _, err := c.server.Write(piece); err != nil {
			t.Error(err)
		}
		<-c.swallow // it was committed
		c.client.Close()
	})
	first, second := w.mkdir(), w.mkdir()
	clash := w.make(w.dir, first.Record.Name, true)
	out, err := w.send(first, second)
	if err != nil {
		t.Fatal(err)
	}
	w.once(out...)
	if out, err = w.send(clash); err != nil || out[0].Err == nil {
		t.Errorf("the name was free: %v", err)
	}
}

// attribute builds a change of a directory's attribute user.a.
func (w *world) attribute(a meta.Attr, value string) *meta.Change {
	w.seq++
	after := a
	after.Flags |= meta.FlagXattrs
	return &meta.Change{Record: meta.Record{Kind: meta.OpSetxattr, Ino: a.Ino, Time: 1, Seq: w.seq},
		Inodes: []meta.InodeChange{{Before: &a, After: after}}, Xattrs: []meta.XattrChange{{Ino: a.Ino, Name: "user.a", Value: []byte(value)}}}
}

// TestCommitArrivesLate: the connection breaks and the server gets the batch
// only after the store has reconnected and settled: it must not be applied then,
// though no guard would refuse it.
func TestCommitArrivesLate(t *testing.T) {
	p, w, d := behindProxy(t)
	first := w.commit(w.attribute(w.inode(w.dir), "1"))
	again := w.attribute(w.inode(w.dir), "2")
	type batch struct {
		piece []byte
		c     *proxied
	}
	held := make(chan batch, 1)
	p.onCommit(func(piece []byte, c *proxied) {
		c.mu.Lock()
		c.swallow = make(chan struct{})
		c.mu.Unlock()
		held <- batch{piece, c}
		c.client.Close()
	})
	out := append(first, w.commit(again)...) // settled as abandoned, sent again
	w.once(out...)
	late := <-held
	if _, err := late.c.server.Write(late.piece); err != nil {
		t.Fatal(err)
	}
	<-late.c.swallow // the server has answered
	w.once(out...)
	if log := d.s.Log(); !strings.Contains(log, "the batch was abandoned") {
		t.Error("the server's log has no word of the late batch")
	}
}

// TestCutWhileCommitting: the connection breaks while the transaction waits for
// a lock; the store settles only after it has ended.
func TestCutWhileCommitting(t *testing.T) {
	p, w, d := behindProxy(t)
	blocker, err := pgx.Connect(ctx, d.s.SocketURL(d.name))
	if err != nil {
		t.Fatal(err)
	}
	defer blocker.Close(ctx)
	tx, err := blocker.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(ctx, `SELECT FROM nexusfs.counters WHERE kind=0 FOR UPDATE`); err != nil {
		t.Fatal(err)
	}
	p.onCommit(func(piece []byte, c *proxied) {
		c.mu.Lock()
		c.swallow = make(chan struct{})
		c.mu.Unlock()
		if _, err := c.server.Write(piece); err != nil {
			t.Error(err)
		}
		waiting(t, d, 1)
		c.client.Close()
	})
	done := make(chan []meta.Outcome)
	go func() {
		out, err := w.send(w.mkdir())
		if err != nil {
			t.Error(err)
		}
		done <- out
	}()
	waiting(t, d, 2) // the batch, and who wants to know what became of it
	if err := tx.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	w.once(<-done...)
}

// TestUnknownOutcomeIsBounded: when the server stays away the caller gets KindIO
// after the stated bound; a later commit finds out and says so (P6).
func TestUnknownOutcomeIsBounded(t *testing.T) {
	s := pgtest.Start(t, pgtest.Options{})
	name := s.Database(t)
	p := newProxy(t, s.Port)
	w := newWorld(t, Options{URL: p.url(name), Strict: true, Settle: 300 * time.Millisecond, Connect: 300 * time.Millisecond}, 0)
	w.commit(w.mkdir())
	stopped := make(chan struct{})
	p.onCommit(func(piece []byte, c *proxied) {
		c.mu.Lock()
		c.swallow = make(chan struct{})
		c.mu.Unlock()
		if _, err := c.server.Write(piece); err != nil {
			t.Error(err)
		}
		<-c.swallow
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
		close(stopped)
		c.client.Close()
	})
	start := time.Now()
	_, err := w.send(w.mkdir())
	wantKind(t, err, meta.KindIO)
	if !strings.Contains(err.Error(), "may have happened") || time.Since(start) > 20*time.Second {
		t.Errorf("after %v: %v", time.Since(start), err)
	}
	_, err = w.send(w.mkdir()) // still away
	wantKind(t, err, meta.KindIO)
	_, err = w.Lookup(ctx, 1, "x")
	wantKind(t, err, meta.KindIO)
	<-stopped
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	w.commit(w.mkdir())
	var late []any
	if err := w.Query(ctx, `SELECT revision FROM operations WHERE not_acknowledged IS NOT NULL`, nil, func([]string) error { return nil },
		func(v []any) error { late = append(late, v...); return nil }); err != nil || fmt.Sprint(late) != "[3]" {
		t.Errorf("late answers %v, %v", late, err)
	}
	w.clean()
}

// TestServerRestartsUnderLoad: daemons commit while the server is stopped in
// order, then killed; what was acknowledged is there, exactly once.
func TestServerRestartsUnderLoad(t *testing.T) {
	s := pgtest.Start(t, pgtest.Options{})
	name := s.Database(t)
	var fleet []*world
	for range 3 {
		fleet = append(fleet, newWorld(t, Options{URL: s.SocketURL(name), Strict: true, Connect: 20 * time.Second, Settle: 20 * time.Second}, lease))
	}
	var mu sync.Mutex
	acked := map[string]meta.Ino{}
	count := func() int { mu.Lock(); defer mu.Unlock(); return len(acked) }
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for _, w := range fleet {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				c := w.mkdir()
				out, err := w.send(c)
				if err != nil || out[0].Err != nil {
					t.Errorf("commit: %v %+v", err, out)
					return
				}
				mu.Lock()
				acked[c.Record.Name] = c.Record.Ino
				mu.Unlock()
			}
		})
	}
	for _, end := range []func() error{s.Stop, s.Kill} {
		before := count()
		for count() < before+30 && !t.Failed() {
			time.Sleep(time.Millisecond) // lets the daemons work
		}
		if err := end(); err != nil {
			t.Error(err)
		}
		if err := s.Start(); err != nil {
			t.Error(err)
		}
	}
	before := count()
	for count() < before+30 && !t.Failed() {
		time.Sleep(time.Millisecond)
	}
	close(stop)
	wg.Wait()
	list, err := fleet[0].List(ctx, meta.RootIno, 0, 1<<20, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		if acked[e.Name] != e.Attr.Ino {
			t.Errorf("%q is inode %d, acknowledged was %d", e.Name, e.Attr.Ino, acked[e.Name])
		}
		delete(acked, e.Name)
	}
	if len(acked) > 0 {
		t.Errorf("lost: %v", acked)
	}
	fleet[0].clean()
}

// TestLostTail: commits that the server lost because they were not on its disk
// yet are noticed by the next sync and the next commit (P15); what Sync covered
// is there.
func TestLostTail(t *testing.T) {
	s := pgtest.Start(t, pgtest.Options{Settings: []string{"autovacuum=off"}})
	name := s.Database(t)
	w := newWorld(t, Options{URL: s.SocketURL(name)}, 0)
	kept := w.mkdir()
	w.commit(kept)
	if err := w.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	s.HoldLog(t)
	lost := w.mkdir()
	w.commit(lost)
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Lookup(ctx, w.dir, kept.Record.Name); err != nil {
		t.Error(err)
	}
	_, err := w.Lookup(ctx, w.dir, lost.Record.Name)
	wantKind(t, err, meta.KindNotExist)
	_, err = w.send(w.mkdir())
	wantKind(t, err, meta.KindLost)
	wantKind(t, w.Sync(ctx), meta.KindLost)
	w.clean()
}

// TestDeadlockIsRetried: the server ends one of two transactions that wait for
// each other; the store sends its batch again.
func TestDeadlockIsRetried(t *testing.T) {
	s := server(t)
	name := s.Database(t)
	d := &database{s, name}
	w := newWorld(t, Options{URL: s.SocketURL(name)}, 0)
	w.commit(w.mkdir())
	other, err := pgx.Connect(ctx, s.SocketURL(name))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close(ctx)
	tx, err := other.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	// The directory's row, which a batch locks behind the zone's.
	if _, err := tx.Exec(ctx, `SET LOCAL deadlock_timeout='1h'; SELECT FROM nexusfs.inodes WHERE ino=1 FOR UPDATE`); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() {
		out, err := w.send(w.mkdir())
		if err == nil {
			err = out[0].Err
		}
		done <- err
	}()
	waiting(t, d, 1) // for the directory
	if _, err := tx.Exec(ctx, `SELECT FROM nexusfs.counters WHERE kind=0 FOR UPDATE`); err != nil {
		t.Fatal(err)
	}
	if err := tx.Rollback(ctx); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if !strings.Contains(s.Log(), "deadlock detected") {
		t.Error("there was no deadlock")
	}
	w.clean()
}
