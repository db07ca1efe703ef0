package raftnode

import (
	"context"
	"sync"

	"nexusfs/meta"
	"nexusfs/raftnode/state"
)

// feedMost is how many operations wait for a consumer before it is told to drop
// everything instead.
const feedMost = 16_384

// feed hands a zone's applied announcements to its consumer, in order.
type feed struct {
	to  Consumer
	own state.NodeID

	mu      sync.Mutex
	queue   []event       // guarded by mu
	size    int           // operations in queue
	busy    bool          // the consumer has an event, or one is queued
	rev     meta.Rev      // the newest revision that was put in
	done    meta.Rev      // the newest that the consumer has taken
	changed chan struct{} // closed and replaced when done moves
	wake    chan struct{} // capacity 1
}

// event is one thing to tell a consumer.
type event struct {
	ops   []meta.Committed
	rev   meta.Rev // 0: nothing about revisions
	reset bool
	lease int8 // +1: held, -1: lapsed
	ended int64
}

func newFeed(to Consumer, own state.NodeID, rev meta.Rev) *feed {
	return &feed{to: to, own: own, rev: rev, done: rev, changed: make(chan struct{}), wake: make(chan struct{}, 1)}
}

// advanced puts a move of the prefix in. What this node announced itself its
// consumer has already: it only counts.
func (f *feed) advanced(a state.Advanced) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rev = a.To
	own := a.Node == f.own
	if own && !f.busy {
		f.setDone(a.To)
		return
	}
	e := event{rev: a.To, reset: a.Reset && !own}
	if !own {
		e.ops = a.Ops
	}
	f.put(e)
}

// put queues an event, or drops the queue where it is too long. f.mu is held.
func (f *feed) put(e event) {
	if f.size += len(e.ops); f.size > feedMost {
		kept := f.queue[:0]
		for _, q := range f.queue {
			if q.rev == 0 {
				kept = append(kept, q)
			}
		}
		f.queue, f.size = kept, 0
		e = event{rev: f.rev, reset: true}
	}
	f.queue = append(f.queue, e)
	f.busy = true
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

func (f *feed) lease(held bool) {
	e := event{lease: -1}
	if held {
		e.lease = 1
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.put(e)
}

func (f *feed) sessionEnded(id int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.put(event{ended: id})
}

func (f *feed) setDone(rev meta.Rev) {
	if rev > f.done {
		f.done = rev
		close(f.changed)
		f.changed = make(chan struct{})
	}
}

// run tells the consumer until ctx ends or the consumer fails.
func (f *feed) run(ctx context.Context) error {
	for {
		f.mu.Lock()
		if len(f.queue) == 0 {
			f.busy = false
			f.setDone(f.rev)
			f.mu.Unlock()
			select {
			case <-ctx.Done():
				return nil
			case <-f.wake:
			}
			continue
		}
		e := f.queue[0]
		f.queue = f.queue[1:]
		f.size = max(0, f.size-len(e.ops))
		f.mu.Unlock()
		if err := f.tell(ctx, e); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		f.mu.Lock()
		f.setDone(e.rev)
		f.mu.Unlock()
	}
}

func (f *feed) tell(ctx context.Context, e event) error {
	switch {
	case e.lease != 0:
		return f.to.Lease(ctx, e.lease > 0)
	case e.ended != 0:
		return f.to.SessionEnded(ctx, e.ended)
	case e.reset:
		return f.to.DropAll(ctx, e.rev)
	case len(e.ops) > 0:
		return f.to.Applied(ctx, e.ops, e.rev)
	}
	return nil
}

// wait returns when the consumer has taken everything up to rev.
func (f *feed) wait(ctx context.Context, rev meta.Rev) error {
	for {
		f.mu.Lock()
		done, changed := f.done, f.changed
		f.mu.Unlock()
		if done >= rev {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
