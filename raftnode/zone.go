package raftnode

import (
	"context"
	"fmt"
	"time"

	"nexusfs/meta"
	"nexusfs/raftnode/state"
)

// Zone is a node's part in one zone: announcements, reads, sessions and locks.
type Zone struct {
	n    *Node
	name string
	feed *feed
}

// OpenZone begins to follow a zone: it announces SQL's highest revision, if
// the group does not have it, and from then on hands what others change to the
// consumer, which begins with an empty cache. Zone.Run must run. It waits for
// the group and for SQL; KindIO when they do not answer within the bound. A
// zone is opened once.
func (n *Node) OpenZone(ctx context.Context, name string, to Consumer) (*Zone, error) {
	if n.o.Truth == nil {
		return nil, meta.E("open zone", 0, name, meta.KindNotSupported, fmt.Errorf("a witness has no zones"))
	}
	z := &Zone{n: n, name: name}
	if err := n.read(ctx, "open zone"); err != nil {
		return nil, err
	}
	if err := n.agree(ctx, name); err != nil {
		return nil, refused("open zone", err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.zones[name] != nil {
		return nil, meta.E("open zone", 0, name, meta.KindBusy, fmt.Errorf("this node has it open already"))
	}
	st := n.core.st.Zones[name]
	if st == nil {
		return nil, meta.E("open zone", 0, name, meta.KindIO, ErrEpoch)
	}
	z.feed = newFeed(to, n.id.ID, st.Prefix)
	n.zones[name] = z
	if n.leased {
		z.feed.lease(true)
	}
	return z, nil
}

// Run tells the consumer what happens until ctx ends or the consumer fails. It
// is called once.
func (z *Zone) Run(ctx context.Context) error { return z.feed.run(ctx) }

// Close ends following the zone. Its sessions go on until they are ended.
func (z *Zone) Close() {
	z.n.mu.Lock()
	defer z.n.mu.Unlock()
	delete(z.n.zones, z.name)
}

// Batch is what one SQL transaction committed.
type Batch struct {
	Epoch   int64 // the zone's, in which it was committed
	Ops     []meta.Committed
	Head    [32]byte // the chain's head after the last; zeros: not known
	Durable meta.Rev // everything up to here survives a loss of power of the database
}

// Announce makes a committed batch known to every node. It returns when a
// quorum has it and the zone's gap-free prefix reached its last revision here
// (P9). Batches may be announced at the same time and in any order. An error
// undoes nothing: the operations are committed, not acknowledged (P6), and are
// announced in the end by whoever sees that they are missing; KindIO with
// ErrLate after the bound, with ErrEpoch when the database lost them (P15). The
// consumer is not told: its caller knows.
func (z *Zone) Announce(ctx context.Context, b Batch) error {
	if len(b.Ops) == 0 {
		return nil
	}
	first, last := b.Ops[0].Rev, b.Ops[len(b.Ops)-1].Rev
	if int64(last-first)+1 != int64(len(b.Ops)) {
		return meta.E("announce", 0, "", meta.KindInvalid, fmt.Errorf("revisions %d to %d are not one run", first, last))
	}
	a := &state.Announce{Zone: z.name, Epoch: b.Epoch, Span: state.Span{First: first, Last: last, Ops: b.Ops, Hash: b.Head, Durable: b.Durable}}
	cl := newCall(a)
	cl.until = prefixWait{z.name, last, b.Epoch}
	n := z.n
	n.mu.Lock()
	if n.core.alone {
		a.Ops = nil // nobody else is there to be told
		if n.core.announceAlone(a) {
			n.spread()
			n.mu.Unlock()
			return nil
		}
	}
	n.core.propose(cl)
	n.pump(pumpOwn)
	n.mu.Unlock()
	if err := n.await(ctx, "announce", cl.done); err != nil {
		return err
	}
	return outcome("announce", cl)
}

// announceAlone announces at once where no other member has to know (P16).
func (c *core) announceAlone(a *state.Announce) bool {
	if c.failed != nil || !c.leading || !c.mayAnswerReads() {
		return false
	}
	eff, ok := c.st.AnnounceAlone(c.id, a)
	if ok {
		c.settle(eff)
	}
	return ok
}

// Fresh returns when everything that any node has acknowledged before the call
// is applied here and the consumer has taken it (the read index of an open).
// All who wait at one moment share one round. Errors: KindInterrupted; KindIO
// with ErrLate.
func (z *Zone) Fresh(ctx context.Context) error {
	if err := z.n.read(ctx, "read index"); err != nil {
		return err
	}
	return z.taken(ctx, z.Prefix())
}

// Wait returns when the prefix has reached rev here and the consumer has taken
// it; what is missing below is read from SQL (P9). Errors as those of Fresh.
func (z *Zone) Wait(ctx context.Context, rev meta.Rev) error {
	if z.Prefix() < rev {
		// Nobody may have announced it, so that nobody misses it.
		if err := z.n.agree(ctx, z.name); err != nil {
			return refused("wait for a revision", err)
		}
	}
	if err := z.n.awaitPrefix(ctx, "wait for a revision", z.name, rev); err != nil {
		return err
	}
	return z.taken(ctx, rev)
}

// taken waits for the consumer.
func (z *Zone) taken(ctx context.Context, rev meta.Rev) error {
	bounded, cancel := context.WithTimeout(ctx, z.n.o.Late)
	defer cancel()
	if err := z.feed.wait(bounded, rev); err != nil {
		if ctx.Err() != nil {
			return interrupted("read index", ctx.Err())
		}
		return refused("read index", ErrLate)
	}
	return nil
}

// Prefix returns the zone's gap-free prefix here.
func (z *Zone) Prefix() meta.Rev {
	z.n.mu.Lock()
	defer z.n.mu.Unlock()
	if st := z.n.core.st.Zones[z.name]; st != nil {
		return st.Prefix
	}
	return 0
}

// Ready says whether an operation may be committed (P6): nil, or KindIO with
// ErrNoQuorum while the quorum was not heard within the election time-out. It
// waits for nothing.
func (n *Node) Ready() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case n.core.failed != nil:
		return refused("quorum", n.core.failed)
	case !n.core.heardQuorum():
		return refused("quorum", ErrNoQuorum)
	}
	return nil
}

// read waits for a read index, shared with whoever else waits.
func (n *Node) read(ctx context.Context, op string) error {
	r := newRead()
	n.mu.Lock()
	n.core.read(r)
	n.pump(pumpOwn)
	n.mu.Unlock()
	if err := n.await(ctx, op, r.done); err != nil {
		return err
	}
	if r.err != nil {
		return refused(op, r.err)
	}
	return nil
}

// CacheLease is for how long after it confirmed its prefix a node may trust its
// caches (P14). A session's lease is longer.
const CacheLease = 2 * time.Second

// Leased reports whether what this node and its kernel have cached may be
// trusted now (P14): it confirmed its prefix with the quorum within CacheLease.
// Consumers are told when that changes.
func (n *Node) Leased() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.core.leased(sinceBoot())
}

// leased is Leased at a moment of the core's clock.
func (c *core) leased(now time.Duration) bool {
	switch {
	case c.failed != nil, c.leaves != 0:
		return false
	case c.alone:
		return c.leading && c.mayAnswerReads()
	}
	return c.reads.ever && now-c.reads.confirmed < CacheLease
}

// keepLease confirms the prefix in time, and tells the consumers whether the
// lease holds. n.mu is held.
func (n *Node) keepLease() {
	c := n.core
	if len(n.zones) > 0 && !c.alone && c.failed == nil && (!c.reads.ever || c.now-c.reads.confirmed > CacheLease/4) && c.reads.number == 0 {
		c.read(newRead())
	}
	if held := c.leased(sinceBoot()); held != n.leased {
		n.leased = held
		for _, z := range n.zones {
			z.feed.lease(held)
		}
	}
}
