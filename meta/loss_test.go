package meta

import (
	"context"
	"strings"
	"testing"
)

// lose takes a name back that was acknowledged, with its revision, as a standby
// does that had not got it.
func (s *fakeStore) lose(parent Ino, name string, rev Rev) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := nameKey{parent, name}
	delete(s.inodes, s.names[key])
	delete(s.names, key)
	s.rev = rev
	s.lossy.Store(true)
}

// TestP15GoesOnAfterALoss: whatever notices that the store lost its tail, the
// daemon forgets the lost future, goes on with a new session above every
// revision that it has seen, and tells each descriptor once.
func TestP15GoesOnAfterALoss(t *testing.T) {
	for name, notice := range map[string]func(r *rig){
		"a commit": func(r *rig) { r.close(r.create("after")) },
		"a heartbeat": func(r *rig) {
			if err := r.lost(r.t.Context()); err != nil {
				r.t.Fatal(err)
			}
		},
		"a look that finds another's recovery": func(r *rig) {
			if _, _, _, err := r.store.Begin(r.t.Context(), SessionInfo{}); err != nil {
				r.t.Fatal(err)
			}
			if err := r.look(r.t.Context()); err != nil {
				r.t.Fatal(err)
			}
		},
		"a look at the head": func(r *rig) {
			if err := r.look(r.t.Context()); err != nil {
				r.t.Fatal(err)
			}
		},
		"a sync": func(r *rig) { r.wantKind(r.Sync(r.t.Context()), KindLost) },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			kept := r.create("kept")
			r.write(kept, 0, []byte("kept"))
			r.flush(kept)
			if err := r.Sync(t.Context()); err != nil {
				t.Fatal(err)
			}
			base := r.Status().Revision
			r.close(r.create("gone"))
			seen := r.Status().Revision
			r.store.onSync = func() error {
				if r.store.lossy.Load() {
					return E("sync", 0, "", KindLost, nil)
				}
				return nil
			}
			r.store.lose(RootIno, "gone", base)
			notice(r)
			st := r.Status()
			if st.Lost == nil || st.Lost.First != base+1 || st.Lost.Last != seen || st.Lost.Cause != "test" || st.Failed != "" {
				t.Errorf("status: lost %+v, failed %q; want %d to %d", st.Lost, st.Failed, base+1, seen)
			}
			began := r.store.began[len(r.store.began)-1]
			if st.Session != int64(len(r.store.began)) || began.Known != seen || began.Replaces != 1 {
				t.Errorf("session %d, began with %+v", st.Session, began)
			}
			if st.Revision <= seen || r.store.reserved <= st.Revision {
				t.Errorf("revision %d after %d, reserved up to %d", st.Revision, seen, r.store.reserved)
			}
			_, err := r.Lookup(t.Context(), RootIno, "gone")
			r.wantKind(err, KindNotExist)
			if got := string(r.read(kept, 0, 10)); got != "kept" {
				t.Errorf("the file reads %q", got)
			}
			r.wantKind(kept.Fsync(t.Context(), user, false), KindLost)
			if err := kept.Fsync(t.Context(), user, false); err != nil {
				t.Errorf("the second fsync: %v", err)
			}
			fresh := r.create("fresh")
			if err := fresh.Fsync(t.Context(), user, false); err != nil {
				t.Errorf("fsync of a file made later: %v", err)
			}
			r.close(fresh)
			r.close(kept)
			if !strings.Contains(r.logs.String(), "came back without its newest operations") {
				t.Error("the log has no word of it")
			}
		})
	}
}

// TestP15GoingOnFails: as long as no session can be had nothing is served from
// what was cached, changes are refused, and it is tried again.
func TestP15GoingOnFails(t *testing.T) {
	r := newRig(t)
	r.close(r.create("gone"))
	r.store.lose(RootIno, "gone", 1)
	sessions := r.o.Sessions
	r.o.Sessions = noSession{sessions}
	_, _, err := r.Create(t.Context(), user, RootIno, "x", CreateArgs{Mode: 0o644})
	r.wantKind(err, KindIO)
	_, err = r.Lookup(t.Context(), RootIno, "gone")
	r.wantKind(err, KindNotExist)
	r.o.Sessions = sessions
	r.close(r.create("x"))
	if st := r.Status(); st.Session != 2 || st.Lost == nil {
		t.Errorf("session %d, lost %+v", st.Session, st.Lost)
	}
}

// noSession is a store on which no session can begin.
type noSession struct{ Sessions }

func (noSession) Begin(context.Context, SessionInfo) (int64, int64, *PrevSession, error) {
	return 0, 0, nil, E("begin", 0, "", KindIO, errDisk)
}
