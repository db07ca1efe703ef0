package raftnode

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"nexusfs/meta"
	"nexusfs/raftnode/kv"
	"nexusfs/raftnode/state"
)

// TestP17EveryOrder plays, for each leader of two data nodes and a witness: the
// leader commits with the witness alone, and dies; also when so much was
// committed that the log of it was compacted away. The other must lead, with
// everything that was acknowledged, and the witness must not stay leader.
func TestP17EveryOrder(t *testing.T) {
	for _, keep := range []int{0, 2} {
		for _, leader := range []state.NodeID{1, 2} {
			for _, commits := range []int{1, 40} {
				s := newSim(uint64(commits)+uint64(leader), twoAndWitness()...)
				s.keep = keep
				other := 3 - leader
				s.settle()
				s.lead(t, leader)
				s.cut[[2]state.NodeID{leader, other}] = true
				s.cut[[2]state.NodeID{other, leader}] = true
				for range commits {
					s.commit(s.nodes[leader], true)
					for range 6 {
						s.step()
					}
				}
				acked := s.acked
				if acked < s.sql.rev {
					t.Fatalf("keep %d, leader %v: %d acknowledged of %d with the witness", keep, leader, acked, s.sql.rev)
				}
				s.nodes[leader].stop(true)
				within := 8 * simTiming.election
				for range within {
					s.step()
				}
				n := s.nodes[other].core
				if !n.leading || n.st.Zones[simZone].Prefix < acked {
					t.Errorf("keep %d, leader %v died: %d ticks later node %v leads %v with prefix %d of %d", keep, leader, within, other, n.leading, n.st.Zones[simZone].Prefix, acked)
				}
				s.commit(s.nodes[other], true)
				s.ask(s.nodes[other])
				for range 20 {
					s.step()
				}
				if s.acked != s.sql.rev {
					t.Errorf("keep %d: the survivor and the witness acknowledge nothing: %d of %d", keep, s.acked, s.sql.rev)
				}
				s.settle()
				s.report(t)
			}
		}
	}
}

// lead makes a node the leader.
func (s *sim) lead(t *testing.T, id state.NodeID) {
	t.Helper()
	for range 400 {
		if c := s.nodes[id].core; c.leading && c.mayAnswerReads() {
			return
		}
		for _, n := range s.each() {
			if n.core.leading && n.id != id {
				n.core.rn.TransferLeader(uint64(id))
				n.drive()
			}
		}
		s.step()
	}
	t.Fatalf("node %v does not come to lead", id)
}

// TestP16NewLeaderLooksFirst: the leader dies between COMMIT and announcement.
// Its successor answers no read before it has announced what SQL has.
func TestP16NewLeaderLooksFirst(t *testing.T) {
	r := newRig(t)
	r.grow(false, true)
	r.grow(false, true)
	old := r.leader()
	gate := make(chan struct{})
	r.sql.mu.Lock()
	r.sql.gate = gate
	r.sql.mu.Unlock()
	lost := r.sql.commit(2)
	old.kill()
	var reader *rigNode
	for _, n := range r.nodes {
		if n.Node != nil {
			reader = n
		}
	}
	r.eventually("another leads", func() error {
		if st := reader.Status(); st.Leader == 0 || !st.Quorum {
			return errors.New("nobody")
		}
		return nil
	})
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := reader.zone.Fresh(ctx); err == nil {
		t.Error("a read index was answered before the new leader had looked into SQL")
	}
	close(gate)
	check(t, reader.zone.Fresh(t.Context()))
	if got, want := reader.zone.Prefix(), lost.Ops[1].Rev; got < want {
		t.Errorf("prefix %d, %d was committed", got, want)
	}
}

// TestP15NodesDropTheLostFuture: the database loses its tail. Whoever notices
// asks the group to agree: a new epoch begins, caches are dropped, and what was
// committed in the old epoch is not acknowledged.
func TestP15NodesDropTheLostFuture(t *testing.T) {
	r := newRig(t)
	second := r.grow(false, true)
	first := r.nodes[0]
	r.announce(first, 5)
	announced := r.announce(second, 1)
	r.sql.mu.Lock()
	r.sql.rev -= 3
	late := Batch{Epoch: 1, Ops: []meta.Committed{fakeOp(announced + 1)}}
	r.sql.mu.Unlock()
	check(t, second.zone.Agree(t.Context()))
	for _, n := range r.nodes {
		n.to.until(t, "told to drop everything", func(c *fakeConsumer) bool { return c.drops > 0 || n == second })
	}
	err := first.zone.Announce(t.Context(), late)
	wantErr(t, err, ErrEpoch, "may be lost")
	z := second.Status().Zones[0]
	if z.Epoch != 2 || z.Prefix <= announced {
		t.Errorf("epoch %d at %d, %d was announced before", z.Epoch, z.Prefix, announced)
	}
	if rev := r.announce(first, 1); rev <= announced {
		t.Errorf("revision %d again", rev)
	}
}

// TestP14LeaseEndsInTime: a node that cannot confirm its prefix stops trusting
// its caches within CacheLease, by its own clock.
func TestP14LeaseEndsInTime(t *testing.T) {
	c := &core{reads: reads{ever: true, confirmed: 10 * time.Second}}
	for _, tc := range []struct {
		at   time.Duration
		want bool
	}{{10 * time.Second, true}, {12*time.Second - 1, true}, {12 * time.Second, false}, {time.Hour, false}} {
		if got := c.leased(tc.at); got != tc.want {
			t.Errorf("leased at %v: %v, want %v", tc.at, got, tc.want)
		}
	}
	c.leaves = 1
	if c.leased(10 * time.Second) {
		t.Error("leased after it was removed")
	}
}

// TestP11SlowConsumer: what comes while a consumer is busy waits for it; when
// that is too much it is told to drop everything, once, and nothing blocks.
func TestP11SlowConsumer(t *testing.T) {
	to := newFakeConsumer()
	to.gate = make(chan struct{})
	f := newFeed(to, 1, 10)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- f.run(ctx) }()
	rev := meta.Rev(10)
	put := func(n int, node state.NodeID) {
		ops := make([]meta.Committed, n)
		from := rev
		for i := range ops {
			rev++
			ops[i] = simOp(rev)
		}
		f.advanced(state.Advanced{From: from, To: rev, Node: node, Ops: ops})
	}
	put(1, 1) // its own, before anything: it has it
	check(t, f.wait(t.Context(), 11))
	put(2, 2)
	put(1, 1)
	put(1, 2)
	short, stop := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer stop()
	if err := f.wait(short, 12); err == nil {
		t.Error("taken by a consumer that does not answer")
	}
	for range 2 * feedMost / 100 {
		put(100, 2)
	}
	f.lease(true)
	close(to.gate)
	check(t, f.wait(t.Context(), rev))
	to.until(t, "told of the lease", func(c *fakeConsumer) bool { return c.lease })
	to.mu.Lock()
	if to.drops == 0 || to.rev != rev || !slices.IsSorted(to.revs) || len(to.revs) > feedMost {
		t.Errorf("%d drops, last %d of %d, %d operations", to.drops, to.rev, rev, len(to.revs))
	}
	to.mu.Unlock()
	cancel()
	check(t, <-done)
}

// TestP18CacheIsOutsideOfSnapshots: a snapshot that is taken in replaces the
// replicated state and leaves the node's cache alone.
func TestP18CacheIsOutsideOfSnapshots(t *testing.T) {
	store, err := kv.OpenTemp(t.TempDir())
	check(t, err)
	defer func() { check(t, store.Close()) }()
	c := Cache{store, "z"}
	if rev, err := c.CompleteTo(); rev != 0 || err != nil {
		t.Errorf("an empty cache is complete to %d, %v", rev, err)
	}
	check(t, c.Write(20, []CacheRow{{[]byte("a"), 20, []byte("new")}, {[]byte("b"), 5, []byte("old")}}))
	st := state.Found(state.Version, state.Member{ID: 1, Role: state.Voter, Supports: state.Version}, 1)
	check(t, boltDisk{store}.save(&write{rows: st.All(), before: entryID{9, 2}, reset: true, sync: true}))
	check(t, c.Write(21, []CacheRow{{[]byte("a"), 19, []byte("older")}, {[]byte("b"), 21, nil}}))
	a, ok, err := c.Get([]byte("a"))
	if err != nil || !ok || string(a.Value) != "new" || a.Rev != 20 {
		t.Errorf("row a: %+v, %v, %v", a, ok, err)
	}
	if _, ok, err := c.Get([]byte("b")); ok || err != nil {
		t.Errorf("row b is there: %v", err)
	}
	other := Cache{store, "zz"}
	check(t, other.Write(7, nil))
	check(t, c.Drop())
	if rev, err := c.CompleteTo(); rev != 0 || err != nil {
		t.Errorf("after Drop: %d, %v", rev, err)
	}
	if rev, err := other.CompleteTo(); rev != 7 || err != nil {
		t.Errorf("another zone's: %d, %v", rev, err)
	}
}
