package raftnode

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"nexusfs/meta"
	"nexusfs/raftnode/kv"
	"nexusfs/raftnode/state"
)

func TestOneNode(t *testing.T) {
	r := newRig(t)
	n := r.nodes[0]
	for range 5 {
		rev := r.announce(n, 3)
		if got := n.zone.Prefix(); got != rev {
			t.Errorf("prefix %d after announcing %d", got, rev)
		}
	}
	if err := n.zone.Fresh(t.Context()); err != nil {
		t.Error(err)
	}
	if len(n.to.revs) != 0 {
		t.Errorf("the consumer was told of its own operations: %v", n.to.revs)
	}
	n.to.until(t, "the lease is held", func(c *fakeConsumer) bool { return c.lease })
	if st := n.Status(); !st.Alone || !st.Quorum || st.Leader != st.ID {
		t.Errorf("status of a node that is alone: %+v", st)
	}
}

// TestThreeNodes: announcements of each node reach the consumers of the others
// in order, and a read index sees what was acknowledged elsewhere.
func TestThreeNodes(t *testing.T) {
	r := newRig(t)
	r.announce(r.nodes[0], 2)
	r.grow(false, true)
	r.grow(false, true)
	for i := range 12 {
		n := r.nodes[i%3]
		rev := r.announce(n, 1+i%3)
		for _, other := range r.nodes {
			if err := other.zone.Fresh(t.Context()); err != nil {
				t.Fatal(err)
			}
			other.to.mu.Lock()
			seen := other.to.rev
			other.to.mu.Unlock()
			if other != n && seen < rev {
				t.Errorf("after a read index the consumer has %d, %d was acknowledged", seen, rev)
			}
		}
	}
	for i, n := range r.nodes {
		n.to.mu.Lock()
		if !slices.IsSorted(n.to.revs) || len(slices.Compact(slices.Clone(n.to.revs))) != len(n.to.revs) {
			t.Errorf("node %d was told out of order: %v", i, n.to.revs)
		}
		n.to.mu.Unlock()
	}
	if got := r.nodes[1].Status(); len(got.Members) != 3 || got.Alone {
		t.Errorf("status: %+v", got)
	}
}

// TestP9GapIsClosed: a node dies between COMMIT and announcement; the next
// announcement is answered all the same, once the gap was read from SQL.
func TestP9GapIsClosed(t *testing.T) {
	r := newRig(t)
	r.grow(false, true)
	r.grow(false, true)
	lost := r.sql.commit(2) // and dies
	began := time.Now()
	rev := r.announce(r.nodes[1], 1)
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("the gap delayed others by %v", took)
	}
	c := r.nodes[2].to
	c.until(t, "the gap's operations are told in order", func(c *fakeConsumer) bool {
		return slices.Contains(c.revs, lost.Ops[0].Rev) && slices.Contains(c.revs, rev) && slices.IsSorted(c.revs)
	})
	// A revision above the prefix that was seen in SQL: whoever saw it asks.
	b := r.sql.commit(1)
	if err := r.nodes[2].zone.Wait(t.Context(), b.Ops[0].Rev); err != nil {
		t.Error(err)
	}
}

// TestP9OutOfOrder: announcements in the wrong order; none is answered before
// those below it.
func TestP9OutOfOrder(t *testing.T) {
	r := newRig(t)
	r.grow(false, true)
	first, second := r.sql.commit(1), r.sql.commit(1)
	r.sql.mu.Lock()
	r.sql.err = errors.New("SQL is down") // nobody fills the gap
	r.sql.mu.Unlock()
	done := make(chan error, 1)
	go func() { done <- r.nodes[1].zone.Announce(t.Context(), second) }()
	r.eventually("the later one arrived", func() error {
		for _, z := range r.nodes[0].Status().Zones {
			if z.High == second.Ops[0].Rev {
				return nil
			}
		}
		return errors.New("it did not")
	})
	select {
	case err := <-done:
		t.Fatalf("answered before the revision below: %v", err)
	default:
	}
	if err := r.nodes[0].zone.Announce(t.Context(), first); err != nil {
		t.Error(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestP16StateIsDeleted: the state of a node that is alone is deleted, damaged,
// or left by a machine that stopped; everything goes on with higher revisions
// and higher tokens.
func TestP16StateIsDeleted(t *testing.T) {
	for name, harm := range map[string]func(t *testing.T, dir string){
		"deleted": func(t *testing.T, dir string) { check(t, os.Remove(filepath.Join(dir, storeFile))) },
		"damaged": func(t *testing.T, dir string) {
			check(t, os.WriteFile(filepath.Join(dir, storeFile), make([]byte, 64<<10), 0o600))
		},
		"another boot": func(t *testing.T, dir string) {
			id, err := ReadIdentity(dir)
			check(t, err)
			id.Boot = "another"
			check(t, id.write(dir))
		},
		"nothing": func(*testing.T, string) {},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			n := r.nodes[0]
			check(t, n.zone.BeginSession(t.Context(), 1, 1, time.Minute))
			token, err := n.zone.Lock(t.Context(), 7, state.FileLock{LockOwner: state.LockOwner{Session: 1}, Exclusive: true}, false)
			check(t, err)
			rev := r.announce(n, 3)
			n.kill()
			harm(t, n.dir)
			r.start(n)
			if n.zone.Prefix() < rev {
				t.Errorf("the prefix went from %d to %d", rev, n.zone.Prefix())
			}
			if next := r.announce(n, 1); next != rev+1 {
				t.Errorf("revision %d after %d", next, rev)
			}
			check(t, n.zone.BeginSession(t.Context(), 2, 1, time.Minute))
			again, err := n.zone.Acquire(t.Context(), Named{Name: "m", Limit: 1, Session: 2}, false)
			check(t, err)
			if again <= token {
				t.Errorf("token %d after %d", again, token)
			}
		})
	}
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestP16MemberLosesItsDisk: a member never begins anew under its old identity.
func TestP16MemberLosesItsDisk(t *testing.T) {
	r := newRig(t)
	second := r.grow(false, true)
	third := r.grow(false, true)
	r.announce(third, 1)
	r.announce(second, 1)
	lost := third.id.ID
	third.end(t) // and once more, so that it has heard from its group
	r.start(third)
	third.end(t)
	check(t, os.Remove(filepath.Join(third.dir, storeFile)))
	_, err := Open(r.options(third))
	wantErr(t, err, ErrRejoin, "join again")
	second.end(t)
	r.start(second)
	second.end(t)
	check(t, os.WriteFile(filepath.Join(second.dir, storeFile), make([]byte, 1<<16), 0o600))
	_, err = Open(r.options(second))
	wantErr(t, err, ErrRejoin, "damaged")
	var damaged *kv.DamagedError
	if !errors.As(err, &damaged) {
		t.Errorf("%v does not say where the damaged file is", err)
	}
	_ = lost
}

// TestP6QuorumLoss: without the quorum a node says so before COMMIT, and what
// was committed is answered late, within the bound; when the others are back,
// everything goes on.
func TestP6QuorumLoss(t *testing.T) {
	r := newRig(t, func(r *rig) { r.late = 2 * time.Second })
	second := r.grow(false, true)
	check(t, r.nodes[0].Ready())
	second.kill()
	r.eventually("the loss shows", func() error {
		if r.nodes[0].Ready() == nil {
			return errors.New("it does not")
		}
		return nil
	})
	wantErr(t, r.nodes[0].Ready(), ErrNoQuorum, "cluster members")
	b := r.sql.commit(1)
	err := r.nodes[0].zone.Announce(t.Context(), b)
	wantErr(t, err, ErrLate, "may have happened")
	if meta.KindOf(err) != meta.KindIO {
		t.Errorf("kind %v", meta.KindOf(err))
	}
	wantErr(t, r.nodes[0].zone.Fresh(t.Context()), ErrLate, "in time")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.nodes[0].zone.Fresh(ctx); meta.KindOf(err) != meta.KindInterrupted {
		t.Errorf("interrupted: %v", err)
	}
	r.nodes[0].to.until(t, "the cache lease lapses (P14)", func(c *fakeConsumer) bool { return !c.lease })
	if r.nodes[0].Leased() {
		t.Error("leased without a quorum")
	}
	r.start(second)
	check(t, second.zone.Wait(t.Context(), b.Ops[0].Rev))
	check(t, r.nodes[0].zone.Fresh(t.Context()))
	r.nodes[0].to.until(t, "the lease is held again", func(c *fakeConsumer) bool { return c.lease })
}
