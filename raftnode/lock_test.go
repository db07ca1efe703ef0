package raftnode

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"nexusfs/meta"
	"nexusfs/raftnode/state"
)

// lockOf is an exclusive POSIX lock on [start, end].
func lockOf(session int64, owner, start, end uint64) state.FileLock {
	return state.FileLock{LockOwner: state.LockOwner{Session: session, Kind: state.POSIX, ID: owner}, Handle: owner, Exclusive: true, Start: start, End: end}
}

// lockGroup is a group of three with a session on each node: 1, 2, 3.
func lockGroup(t *testing.T, lease time.Duration) *rig {
	r := newRig(t)
	r.grow(false, true)
	r.grow(false, true)
	for i, n := range r.nodes {
		check(t, n.zone.BeginSession(t.Context(), int64(i+1), 1, lease))
	}
	return r
}

func TestLocksAcrossNodes(t *testing.T) {
	r := lockGroup(t, time.Minute)
	a, b := r.nodes[1].zone, r.nodes[2].zone
	first, err := a.Lock(t.Context(), 9, lockOf(2, 1, 0, 9), false)
	check(t, err)
	_, err = b.Lock(t.Context(), 9, lockOf(3, 1, 5, 5), false)
	wantErr(t, err, ErrWouldBlock, "held")
	_, err = b.Lock(t.Context(), 9, lockOf(3, 1, 10, 20), false)
	check(t, err)
	blocker, err := b.Blocker(t.Context(), 9, lockOf(3, 1, 0, 100))
	if err != nil || blocker == nil || blocker.Session != 2 || blocker.End != 9 {
		t.Errorf("blocker %+v, %v", blocker, err)
	}
	// Two wait; they get it in the order in which they came.
	type got struct {
		who   int
		token uint64
		err   error
	}
	answers := make(chan got, 2)
	wait := func(who int, z *Zone, session int64) {
		token, err := z.Lock(t.Context(), 9, lockOf(session, 2, 0, 0), true)
		answers <- got{who, token, err}
	}
	go wait(1, b, 3)
	r.queued(9, 1)
	go wait(2, r.nodes[0].zone, 1)
	r.queued(9, 2)
	rev := r.announce(r.nodes[1], 1)
	check(t, a.Unlock(t.Context(), 9, state.LockOwner{Session: 2, Kind: state.POSIX, ID: 1}, 0, state.LockEnd))
	one := <-answers
	if one.who != 1 || one.err != nil || one.token <= first {
		t.Errorf("first %+v after token %d", one, first)
	}
	if got := b.Prefix(); got < rev {
		t.Errorf("the lock was given at prefix %d, its holder before had announced %d", got, rev)
	}
	check(t, b.ReleaseHandle(t.Context(), 9, 3, 2))
	if two := <-answers; two.who != 2 || two.err != nil || two.token <= one.token {
		t.Errorf("second %+v after %+v", two, one)
	}
}

// queued waits until a file has that many waiting requests.
func (r *rig) queued(ino meta.Ino, want int) {
	r.t.Helper()
	r.eventually("queued", func() error {
		for _, f := range r.nodes[0].zone.Locks().Files {
			if f.Ino == ino && len(f.Waiting) == want {
				return nil
			}
		}
		return errors.New("not so many wait")
	})
}

// TestP21Interrupted: who waits and is interrupted does not get the lock, nor
// does his place stay; one whose lock came first has it.
func TestP21Interrupted(t *testing.T) {
	r := lockGroup(t, time.Minute)
	_, err := r.nodes[1].zone.Lock(t.Context(), 9, lockOf(2, 1, 0, 9), false)
	check(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := r.nodes[2].zone.Lock(ctx, 9, lockOf(3, 1, 0, 9), true)
		done <- err
	}()
	r.queued(9, 1)
	cancel()
	if err := <-done; meta.KindOf(err) != meta.KindInterrupted {
		t.Errorf("interrupted: %v", err)
	}
	r.queued(9, 0)
	if _, err := r.nodes[2].zone.Lock(ctx, 10, lockOf(3, 1, 0, 9), true); err != nil {
		t.Errorf("a free lock is taken though the caller was interrupted: %v", err)
	}
}

func TestDeadlockAcrossNodes(t *testing.T) {
	r := lockGroup(t, time.Minute)
	a, b := r.nodes[1].zone, r.nodes[2].zone
	_, err := a.Lock(t.Context(), 9, lockOf(2, 1, 0, 0), false)
	check(t, err)
	_, err = b.Lock(t.Context(), 10, lockOf(3, 1, 0, 0), false)
	check(t, err)
	done := make(chan error, 1)
	go func() {
		_, err := a.Lock(t.Context(), 10, lockOf(2, 1, 0, 0), true)
		done <- err
	}()
	r.queued(10, 1)
	_, err = b.Lock(t.Context(), 9, lockOf(3, 1, 0, 0), true)
	wantErr(t, err, ErrDeadlock, "dead-lock")
	check(t, b.Unlock(t.Context(), 10, state.LockOwner{Session: 3, Kind: state.POSIX, ID: 1}, 0, state.LockEnd))
	check(t, <-done)
}

// TestP20FencedBeforeItsLocksAreGiven: a node dies with a lock, after a COMMIT
// that it did not announce. The next holder gets the lock only when SQL refuses
// the dead session, and sees its last operation.
func TestP20FencedBeforeItsLocksAreGiven(t *testing.T) {
	r := lockGroup(t, 600*time.Millisecond)
	dead := r.nodes[2]
	_, err := dead.zone.Lock(t.Context(), 9, lockOf(3, 1, 0, 9), false)
	check(t, err)
	last := r.sql.commit(1)
	dead.kill()
	began := time.Now()
	_, err = r.nodes[1].zone.Lock(t.Context(), 9, lockOf(2, 1, 0, 9), true)
	check(t, err)
	if took := time.Since(began); took < 300*time.Millisecond {
		t.Errorf("given on after %v, the lease is 600 ms", took)
	}
	r.sql.mu.Lock()
	fenced := r.sql.fenced[3]
	r.sql.mu.Unlock()
	if !fenced {
		t.Error("the lock was given on before SQL refused the session")
	}
	r.nodes[1].to.mu.Lock()
	defer r.nodes[1].to.mu.Unlock()
	if !slices.Contains(r.nodes[1].to.revs, last.Ops[0].Rev) {
		t.Errorf("the new holder has not seen revision %d: %v", last.Ops[0].Rev, r.nodes[1].to.revs)
	}
}

// TestP20PausedNodeLearnsOfItsEnd: a node that was silent for longer than its
// lease is told that its session ended, and gets nothing any more.
func TestP20PausedNodeLearnsOfItsEnd(t *testing.T) {
	r := lockGroup(t, time.Minute)
	n := r.nodes[2]
	n.mu.Lock()
	delete(n.sessions, state.SessionKey{Zone: "z", ID: 3}) // it renews no more
	n.mu.Unlock()
	check(t, n.zone.BeginSession(t.Context(), 4, 1, 300*time.Millisecond))
	k := state.SessionKey{Zone: "z", ID: 4}
	n.mu.Lock()
	own := n.sessions[k]
	own.lease = time.Hour // nor this one
	n.sessions[k] = own
	n.mu.Unlock()
	n.to.until(t, "told of the session's end", func(c *fakeConsumer) bool { return slices.Contains(c.ended, 4) })
	_, err := n.zone.Lock(t.Context(), 9, lockOf(4, 1, 0, 9), false)
	wantErr(t, err, ErrNoSession, "mount again")
	if meta.KindOf(err) != meta.KindFenced {
		t.Errorf("kind %v", meta.KindOf(err))
	}
}

// TestNamedLocks: a mutex and a semaphore with times to live, in order, with
// rising tokens.
func TestNamedLocks(t *testing.T) {
	r := lockGroup(t, time.Minute)
	a, b := r.nodes[1].zone, r.nodes[2].zone
	first, err := a.Acquire(t.Context(), Named{Name: "deploy", Limit: 1, Session: 2, TTL: 300 * time.Millisecond}, false)
	check(t, err)
	_, err = b.Acquire(t.Context(), Named{Name: "deploy", Limit: 1, Session: 3}, false)
	wantErr(t, err, ErrWouldBlock, "held")
	_, err = b.Acquire(t.Context(), Named{Name: "deploy", Limit: 2, Session: 3}, false)
	if meta.KindOf(err) != meta.KindInvalid {
		t.Errorf("another limit: %v", err)
	}
	check(t, a.Renew(t.Context(), "deploy", first))
	second, err := b.Acquire(t.Context(), Named{Name: "deploy", Limit: 1, Session: 3}, true) // when the first has expired
	check(t, err)
	if second <= first {
		t.Errorf("token %d after %d", second, first)
	}
	if err := a.Renew(t.Context(), "deploy", first); meta.KindOf(err) != meta.KindNotExist {
		t.Errorf("renewed after it ended: %v", err)
	}
	check(t, b.Release(t.Context(), "deploy", second))
	for i := range 3 {
		_, err := a.Acquire(t.Context(), Named{Name: "pool", Limit: 3, Session: 2, Note: "job"}, false)
		if err != nil {
			t.Errorf("place %d: %v", i, err)
		}
	}
	_, err = b.Acquire(t.Context(), Named{Name: "pool", Limit: 3, Session: 3}, false)
	wantErr(t, err, ErrWouldBlock, "held")
	check(t, a.EndSession(t.Context(), 2))
	_, err = b.Acquire(t.Context(), Named{Name: "pool", Limit: 3, Session: 3}, false)
	check(t, err)
	if l := b.Locks(); len(l.Named) != 1 || len(l.Named[0].Holders) != 1 || len(l.Sessions) != 2 {
		t.Errorf("locks: %+v", l)
	}
}

func TestBreak(t *testing.T) {
	r := lockGroup(t, time.Minute)
	_, err := r.nodes[1].zone.Lock(t.Context(), 9, lockOf(2, 1, 0, 9), false)
	check(t, err)
	check(t, r.nodes[2].zone.Break(t.Context(), 9, 0))
	if err := r.nodes[2].zone.Break(t.Context(), 9, 0); meta.KindOf(err) != meta.KindNotExist {
		t.Errorf("broken twice: %v", err)
	}
	_, err = r.nodes[2].zone.Lock(t.Context(), 9, lockOf(3, 1, 0, 9), false)
	check(t, err)
}
