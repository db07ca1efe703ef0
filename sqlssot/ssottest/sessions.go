package ssottest

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"nexusfs/meta"
)

var sessionCases = []Case{
	{"SessionFenced", sessionFenced},
	{"SessionEnds", sessionEnds},
	{"SessionRecoveryDue", sessionRecoveryDue},
	{"InosAreNeverHandedOutTwice", inosOnce},
	{"ReserveAndBarrier", reserveAndBarrier},
	{"ContextEnded", contextEnded},
}

// sessionFenced: a new session ends the trust in those before it (P20).
func sessionFenced(tb testing.TB, f Factory) {
	w := newWorld(tb, f)
	w.must(w.create(1, "a"))
	c := w.create(1, "b")
	old, oldEpoch := w.session, w.epoch
	session, epoch, prev, err := w.s.Begin(ctx, meta.SessionInfo{Node: "other", PID: 2, BootID: "boot2", Mountpoint: "/m", Started: 5, Lease: 6})
	w.ok(err)
	want := meta.PrevSession{Session: old, SessionInfo: meta.SessionInfo{Node: "node", PID: 1, BootID: "boot", Started: prev.Started}}
	if session <= old || epoch <= oldEpoch || *prev != want {
		tb.Fatalf("session %d epoch %d after %+v", session, epoch, prev)
	}
	_, err = w.s.Commit(ctx, &meta.Batch{Session: old, Epoch: oldEpoch, Changes: []*meta.Change{c}})
	w.wantKind(err, meta.KindFenced)
	_, err = w.s.Commit(ctx, &meta.Batch{Session: session, Epoch: oldEpoch, Changes: []*meta.Change{c}})
	w.wantKind(err, meta.KindFenced)
	_, err = w.s.Commit(ctx, &meta.Batch{Changes: []*meta.Change{c}})
	w.wantKind(err, meta.KindFenced)
	w.compare()
	w.session, w.epoch = session, epoch
	w.must(c)
	w.compare()
}

func sessionEnds(tb testing.TB, f Factory) {
	w := newWorld(tb, f)
	w.must(w.create(1, "a"))
	w.ok(w.s.End(ctx, w.session))
	_, err := w.s.Commit(ctx, &meta.Batch{Session: w.session, Epoch: w.epoch, Changes: []*meta.Change{w.create(1, "b")}})
	w.wantKind(err, meta.KindFenced)
	_, _, prev, err := w.s.Begin(ctx, meta.SessionInfo{})
	w.ok(err)
	if prev == nil || !prev.Ended || prev.Session != w.session {
		tb.Fatalf("the session before is %+v", prev)
	}
}

func inosOnce(tb testing.TB, f Factory) {
	w := newWorld(tb, f)
	var mu sync.Mutex
	seen := map[meta.Ino]bool{meta.RootIno: true}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for n := range 10 {
				first, err := w.s.Inos(ctx, n+1)
				if err != nil {
					tb.Error(err)
					return
				}
				mu.Lock()
				for i := range meta.Ino(n + 1) {
					if seen[first+i] {
						tb.Errorf("inode number %d was handed out twice", first+i)
					}
					seen[first+i] = true
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	_, err := w.s.Inos(ctx, 0)
	w.wantKind(err, meta.KindInvalid)
}

func reserveAndBarrier(tb testing.TB, f Factory) {
	w := newWorld(tb, f)
	w.ok(w.s.Reserve(ctx, 500))
	w.ok(w.s.Reserve(ctx, 300))
	out, err := w.s.Commit(ctx, &meta.Batch{Session: w.session, Epoch: w.epoch, Barrier: 1, Changes: []*meta.Change{w.create(1, "a")}})
	w.ok(err)
	w.ok(w.s.Sync(ctx))
	head, err := w.s.Head(ctx)
	w.ok(err)
	if head.Reserved != 500 || head.Barrier != 1 || head.Rev != 2 || out[0].Rev != 2 {
		tb.Fatalf("the head is %+v", head)
	}
	out, err = w.s.Commit(ctx, &meta.Batch{Session: w.session, Epoch: w.epoch, Changes: []*meta.Change{w.mkdir(1, "b")}})
	w.ok(err)
	w.ok(out[0].Err)
	if head, err = w.s.Head(ctx); err != nil || head.Barrier != 1 {
		tb.Fatalf("the barrier went back: %+v, %v", head, err)
	}
}

// contextEnded: nothing was sent when the context had ended before.
func contextEnded(tb testing.TB, f Factory) {
	w := newWorld(tb, f)
	ended, cancel := context.WithCancel(ctx)
	cancel()
	_, err := w.s.Commit(ended, &meta.Batch{Session: w.session, Epoch: w.epoch, Changes: []*meta.Change{w.create(1, "a")}})
	w.wantKind(err, meta.KindInterrupted)
	_, err = w.s.Inode(ended, 1)
	w.wantKind(err, meta.KindInterrupted)
	_, err = w.s.List(ended, 1, 0, 1, false, nil)
	w.wantKind(err, meta.KindInterrupted)
	_, err = w.s.Inos(ended, 1)
	w.wantKind(err, meta.KindInterrupted)
	w.wantKind(w.s.Sync(ended), meta.KindInterrupted)
	w.compare()
}

var zoneCases = []Case{{"ZonesAreApart", zonesAreApart}}

// zonesAreApart: two zones of one database share nothing.
func zonesAreApart(tb testing.TB, f Factory) {
	db := f(tb)
	a, b := openWorld(tb, db.Zone(tb, "one")), openWorld(tb, db.Zone(tb, "two"))
	for i := range 3 {
		for j, w := range []*world{a, b} {
			name := fmt.Sprint("name", i)
			w.must(w.create(1, name))
			w.must(w.write(w.now.nodes[1].names[name], true, piece{data: []byte(fmt.Sprint("same", i))}))
			w.must(w.setxattr(w.now.nodes[1].names[name], "user.x", []byte{byte(j)}))
		}
	}
	b.must(b.remove(1, "name0"))
	b.ok(b.s.LateAnswer(ctx, 2, "late"))
	for _, w := range []*world{a, b} {
		w.compare()
		for rev := range w.past {
			w.compareAt(rev)
		}
		w.verify()
	}
	if n := len(b.records(meta.RecordFilter{})); n != 11 {
		tb.Errorf("zone two has %d records, want 11", n)
	}
	prunes(b, meta.Retention{Off: true, Barrier: b.now.rev})
	for _, n := range b.now.nodes {
		n.vers = n.vers[max(0, len(n.vers)-1):]
	}
	orphans, err := b.s.Orphans(ctx, meta.Retention{Off: true, Barrier: b.now.rev}, 10)
	b.ok(err)
	b.drop(orphans...)
	if _, err := b.s.Condemn(ctx, 1, 100); err != nil {
		tb.Fatal(err)
	}
	b.rewind(b.now.rev + 1)
	for _, w := range []*world{a, b} {
		w.must(w.create(1, "more"))
		w.compare()
		w.verify()
	}
	a.compareAt(3)
	for zone, w := range map[string]*world{"one": a, "two": b} {
		if got := w.rows("select path from files where zone = ? order by 1", zone); got[0] != "/" || got[len(got)-1] != "/name2" {
			tb.Errorf("zone %s has %q", zone, got)
		}
	}
}

// sessionRecoveryDue: a daemon that is killed while it recovers from a loss of
// power leaves the recovery to the next one, which starts in the same boot.
func sessionRecoveryDue(tb testing.TB, f Factory) {
	w := newWorld(tb, f)
	begin := func(want string) int64 {
		session, _, prev, err := w.s.Begin(ctx, meta.SessionInfo{Node: "node", PID: 2, BootID: "later"})
		w.ok(err)
		if prev == nil || prev.Ended || prev.BootID != want {
			tb.Fatalf("the session before: got %+v, want boot %q", prev, want)
		}
		return session
	}
	begin("boot")
	session := begin("boot") // the one before was killed before it had recovered
	w.ok(w.s.Recovered(ctx, session, "later"))
	begin("later")
}
