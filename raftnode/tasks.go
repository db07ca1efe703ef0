package raftnode

import (
	"context"
	"fmt"
	"slices"
	"time"

	"nexusfs/meta"
	"nexusfs/raftnode/state"
)

// Bounds of what is read back from SQL.
const (
	gapMost   = 4096                   // revisions that are told one by one; of more it is said that everything changed
	gapPart   = 256                    // revisions in one announcement
	taskRetry = 200 * time.Millisecond // until what SQL refused is tried again
)

// doTask does one thing with SQL. Whether it worked shows in the state: what is
// still to be done comes again.
func (n *Node) doTask(ctx context.Context, t task) {
	bounded, cancel := context.WithTimeout(ctx, n.o.Late)
	defer cancel()
	var err error
	switch t.kind {
	case taskTruth:
		err = n.agreeAll(bounded, t.term)
	case taskGap:
		err = n.closeGap(bounded, t)
	case taskFence:
		err = n.fence(bounded, t)
	}
	if err != nil && ctx.Err() == nil {
		n.complain(t, err)
		select {
		case <-ctx.Done():
		case <-time.After(taskRetry):
		}
	}
	n.mu.Lock()
	delete(n.tasks, t)
	n.mu.Unlock()
}

// complain logs why a task did not work, once for each reason in a row.
func (n *Node) complain(t task, err error) {
	n.mu.Lock()
	again := n.complaint == err.Error()
	n.complaint = err.Error()
	n.mu.Unlock()
	if !again {
		n.log.Warn("the group and SQL were not brought together; tried again", "task", t.kind.String(), "zone", t.zone, "err", err)
	}
}

func (k taskKind) String() string {
	return [...]string{"announce the newest revisions", "close a gap", "fence a session"}[k]
}

// agreeAll brings every zone's announced revisions up to SQL's: then a new
// leader may answer reads (P16).
func (n *Node) agreeAll(ctx context.Context, term uint64) error {
	n.mu.Lock()
	var zones []string
	for name := range n.core.st.Zones {
		zones = append(zones, name)
	}
	n.mu.Unlock()
	for _, z := range zones {
		if err := n.agree(ctx, z); err != nil {
			return err
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.core.agreed(term)
	n.pump(pumpOwn)
	return nil
}

// standing is how far a zone is announced.
func (n *Node) standing(zone string) (prefix, high meta.Rev, epoch int64, known bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	z := n.core.st.Zones[zone]
	if z == nil {
		return 0, 0, 0, false
	}
	return z.Prefix, max(z.Prefix, z.High), z.Epoch, true
}

// agree brings a zone's announced revisions up to SQL's. Where SQL is behind
// what was announced it has lost its tail: a new epoch begins (P15).
func (n *Node) agree(ctx context.Context, zone string) error {
	prefix, high, epoch, known := n.standing(zone) // before SQL is asked: it can only be ahead of it
	head, err := n.o.Truth.Head(ctx, zone)
	if err != nil {
		return err
	}
	if known && head.Epoch <= epoch && head.Rev < high {
		n.log.Error("the database is behind what was announced: it has lost operations", "zone", zone, "newest", head.Rev, "announced", high)
		if head, err = n.o.Truth.Recover(ctx, zone, high); err != nil {
			return err
		}
		if head.Epoch <= epoch && head.Rev < high {
			return fmt.Errorf("zone %s: the database is at revision %d of %d announced, and did not recover", zone, head.Rev, high)
		}
	}
	switch {
	case !known || head.Epoch != epoch:
		return n.do(ctx, "announce", newCall(&state.Advance{Zone: zone, Epoch: head.Epoch, Rev: head.Rev, Hash: head.Hash, Durable: head.Barrier}))
	case head.Rev > prefix:
		if err := n.announceRange(ctx, zone, epoch, prefix+1, head.Rev); err != nil {
			return err
		}
	}
	return n.awaitPrefix(ctx, "announce", zone, head.Rev)
}

// Agree is for whoever notices that SQL may have lost its tail: after every new
// connection to another server, timeline or start of it (P15). It returns when
// the group and SQL agree on the zone's newest revision.
func (z *Zone) Agree(ctx context.Context) error {
	if err := z.n.read(ctx, "agree"); err != nil {
		return err
	}
	if err := z.n.agree(ctx, z.name); err != nil {
		return refused("agree", err)
	}
	return nil
}

// awaitPrefix waits until a zone's prefix has reached rev here.
func (n *Node) awaitPrefix(ctx context.Context, op, zone string, rev meta.Rev) error {
	cl := newCall(nil)
	cl.until = prefixWait{zone: zone, rev: rev}
	n.mu.Lock()
	n.core.awaitPrefix(cl)
	n.mu.Unlock()
	if err := n.await(ctx, op, cl.done); err != nil {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.core.waits[zone] = slices.DeleteFunc(n.core.waits[zone], func(w *call) bool { return w == cl })
		return err
	}
	return outcome(op, cl)
}

// announceRange announces operations that SQL has. Those that it has no records
// of, and more than are worth telling, are announced as 'anything may have
// changed'.
func (n *Node) announceRange(ctx context.Context, zone string, epoch int64, first, last meta.Rev) error {
	if int64(last-first) >= gapMost {
		return n.announceSpan(ctx, zone, epoch, state.Span{First: first, Last: last})
	}
	for first <= last {
		to := min(first+gapPart-1, last)
		ops, err := n.o.Truth.Committed(ctx, zone, first, to)
		if err != nil {
			return err
		}
		span := state.Span{First: first, Last: to}
		if whole(ops, first, to) {
			span.Ops = ops
		}
		if err := n.announceSpan(ctx, zone, epoch, span); err != nil {
			return err
		}
		first = to + 1
	}
	return nil
}

// whole reports whether ops are first..last, each once.
func whole(ops []meta.Committed, first, last meta.Rev) bool {
	if int64(len(ops)) != int64(last-first)+1 {
		return false
	}
	for i := range ops {
		if ops[i].Rev != first+meta.Rev(i) || ops[i].Change == nil {
			return false
		}
	}
	return true
}

func (n *Node) announceSpan(ctx context.Context, zone string, epoch int64, s state.Span) error {
	s.Node = state.Nobody
	return n.do(ctx, "announce", newCall(&state.Announce{Zone: zone, Epoch: epoch, Span: s}))
}

// closeGap reads what is missing below an announcement and announces it (P9).
func (n *Node) closeGap(ctx context.Context, t task) error {
	head, err := n.o.Truth.Head(ctx, t.zone)
	if err != nil {
		return err
	}
	prefix, _, epoch, known := n.standing(t.zone)
	switch {
	case !known || prefix >= t.last:
		return nil // somebody was faster
	case head.Epoch != epoch || head.Rev < t.last:
		return n.agree(ctx, t.zone) // what was announced is not there: P15
	}
	return n.announceRange(ctx, t.zone, epoch, max(t.first, prefix+1), t.last)
}

// fence ends a session in SQL; the group gives its locks on when what it
// committed is announced (P20).
func (n *Node) fence(ctx context.Context, t task) error {
	rev, err := n.o.Truth.Fence(ctx, t.zone, t.session, t.epoch)
	if err != nil {
		return err
	}
	return n.do(ctx, "fence", newCall(&state.Fenced{SessionKey: state.SessionKey{Zone: t.zone, ID: t.session}, Rev: rev}))
}
