package meta

import (
	"context"
	"errors"
	"time"
)

// Named limits of background collection; each step is one short transaction.
const (
	pruneStep   = 256 // history rows
	condemnStep = 256 // blobs
	freeStep    = 128 // blobs freed at once
	orphanStep  = 256 // inodes
	keepSteps   = 256 // steps of a kind in one background pass; the next one goes on
	sweepSteps  = 4   // steps of the slow sweep over everything in one background pass
	keepPause   = 2 * time.Millisecond
	lowSpace    = 20 // below a 20th of the disk, history goes before its time
)

// CollectResult says what a collection has let go.
type CollectResult struct {
	History int64 `json:"history"` // rows of history
	Inodes  int64 `json:"inodes"`
	Blobs   int64 `json:"blobs"`
	Bytes   int64 `json:"bytes"` // of those blobs
}

// collector is one pass of retention and collection.
type collector struct {
	fs    *FS
	pause time.Duration // between steps, so that users' operations go first
	steps int           // of a kind; 0: until nothing is left
	res   CollectResult
}

// loop does steps until one says that nothing is left, or the pass is over.
func (c *collector) loop(ctx context.Context, step func() (more bool, err error)) error {
	for i := 0; c.steps == 0 || i < c.steps; i++ {
		if more, err := step(); err != nil {
			return err
		} else if !more || !c.rest(ctx) {
			break
		}
	}
	return ctx.Err()
}

// rest waits between two steps; false: the context ended.
func (c *collector) rest(ctx context.Context) bool {
	if c.fs.Shared() {
		return false // others have come: what nothing refers to may be about to be used
	}
	if c.pause == 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(c.pause)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// retention is the mount's policy as it applies now. Nothing that a recovery
// may need goes (P22), and what is open stays.
func (fs *FS) retention() Retention {
	p := Retention{Off: fs.o.Retention.Off, Versions: fs.o.Retention.MaxVersions,
		Barrier: fs.sync.durable(), Open: fs.nodes.openInos()}
	if age := fs.o.Retention.MaxAge; age > 0 {
		p.Before = fs.now().Add(-age).UnixNano()
	}
	return p
}

// run lets go what p does not protect, and what nothing refers to then.
func (c *collector) run(ctx context.Context, p Retention) error {
	if err := c.prune(ctx, p); err != nil {
		return err
	}
	if err := c.orphans(ctx, p); err != nil {
		return err
	}
	return c.reclaim(ctx)
}

// prune lets history go. In the background that is what was done lately or has
// become too old, and a piece of the slow sweep that finds everything else: what
// a policy protected that was another mount's, for one. At once and whole it is
// the sweep; as that goes on where the pass before ended, it has to come to its
// end twice to have looked at everything.
func (c *collector) prune(ctx context.Context, p Retention) error {
	up, ends := c.fs.o.Upkeep, 0
	whole := func() (bool, error) {
		n, done, err := up.Prune(ctx, p, pruneStep)
		c.pruned(n)
		if done {
			ends++
		}
		return ends < 2, err
	}
	if c.steps == 0 {
		return c.loop(ctx, whole)
	}
	err := c.loop(ctx, func() (bool, error) {
		n, done, err := up.PruneRecent(ctx, p, pruneStep)
		c.pruned(n)
		return !done, err
	})
	for i := 0; i < sweepSteps && err == nil && c.rest(ctx); i++ {
		_, err = whole()
	}
	return err
}

func (c *collector) pruned(n int) {
	c.res.History += int64(n)
	c.fs.counters.versionsPruned.Add(int64(n))
}

// orphans drops inodes that have no name and that nobody can reach: they lost
// it before this session, or the kernel has forgotten them.
func (c *collector) orphans(ctx context.Context, p Retention) error {
	fs := c.fs
	return c.loop(ctx, func() (bool, error) {
		list, err := fs.o.Upkeep.Orphans(ctx, p, orphanStep)
		if err != nil {
			return false, err
		}
		for _, ino := range list {
			if !fs.unreachable(ctx, ino) {
				p.Open = append(p.Open, ino) // not again in this pass
				continue
			}
			if err := c.drop(ctx, ino); err != nil {
				return false, err
			}
			if !c.rest(ctx) {
				return false, ctx.Err()
			}
		}
		return len(list) == orphanStep, nil
	})
}

// drop removes an inode that nobody can reach.
func (c *collector) drop(ctx context.Context, ino Ino) error {
	if err := c.fs.o.Upkeep.DropInode(ctx, ino); err != nil {
		return err
	}
	c.fs.cache.attr(ino).drop(ino)
	c.fs.nodes.forgotten.remove(ino)
	c.res.Inodes++
	return nil
}

// unreachableAfter is for how long the kernel is believed to know an inode
// that lost its last name in this session, when nobody saw it forget it.
const unreachableAfter = 24 * time.Hour

// unreachable reports whether nobody can ask for an inode without names: no
// handle is open, and the kernel does not know its number because it forgot
// it, or because the name went before the kernel was mounted.
func (fs *FS) unreachable(ctx context.Context, ino Ino) bool {
	if fs.nodes.get(ino) != nil {
		return false
	}
	a, err := fs.o.Store.Inode(ctx, ino)
	if err != nil || a.Nlink != 0 {
		return false
	}
	if a.Rev <= Rev(fs.nodes.upkeep.firstRev.Load()) || fs.nodes.forgotten.has(ino) {
		return true
	}
	return fs.now().UnixNano()-a.Ctime > int64(unreachableAfter)
}

// reclaim frees blobs that nothing refers to, in two phases (P28): they are
// condemned; after a barrier, so that no loss of power can bring a reference
// back, they are claimed, their content goes and then their rows. A commit
// that refers to a condemned blob takes it back into use, one that is about to
// has it pinned.
func (c *collector) reclaim(ctx context.Context) error {
	fs := c.fs
	err := c.loop(ctx, func() (bool, error) {
		n, err := fs.o.Upkeep.Condemn(ctx, fs.now().UnixNano(), condemnStep)
		return n == condemnStep, err
	})
	if err != nil {
		return err
	}
	// gofail: var afterCondemn struct{}
	before := fs.now().UnixNano() + 1
	if list, err := fs.o.Upkeep.Condemned(ctx, before, 1); err != nil || len(list) == 0 {
		return err
	}
	if err := fs.makeDurable(ctx); err != nil {
		return err
	}
	return c.loop(ctx, func() (bool, error) {
		if fs.Shared() {
			return false, nil
		}
		list, err := fs.o.Upkeep.Condemned(ctx, before, freeStep)
		if err != nil {
			return false, err
		}
		freed, err := c.free(ctx, list)
		return len(list) == freeStep && freed > 0, err
	})
}

// makeDurable is a barrier that also covers what upkeep changed: that takes no
// revision, so barrier.wait may see nothing to wait for.
func (fs *FS) makeDurable(ctx context.Context) error {
	if err := fs.sync.wait(); err != nil {
		return err
	}
	if err := fs.o.Store.Sync(ctx); err != nil {
		return fs.fail(err)
	}
	return nil
}

// free removes condemned blobs.
func (c *collector) free(ctx context.Context, list []Blob) (int, error) {
	fs := c.fs
	ids := make([]BlobID, 0, len(list))
	for _, b := range list {
		if !fs.nodes.pins.has(b.ID) {
			ids = append(ids, b.ID)
		}
	}
	if len(ids) == 0 {
		return 0, nil
	}
	claimed, err := fs.o.Upkeep.Claim(ctx, ids)
	if err != nil {
		return 0, err
	}
	// gofail: var afterClaim struct{}
	outside := make([]Blob, 0, len(claimed))
	ids = ids[:0]
	for _, b := range claimed {
		ids = append(ids, b.ID)
		if b.Place != PlaceInline {
			outside = append(outside, b)
		}
		c.res.Bytes += b.Size
	}
	if len(outside) > 0 {
		if err := fs.o.Content.Free(ctx, outside); err != nil {
			return 0, err
		}
	}
	// gofail: var afterFree struct{}
	if err := fs.o.Upkeep.Forget(ctx, ids); err != nil {
		return 0, err
	}
	c.res.Blobs += int64(len(ids))
	fs.counters.blobsFreed.Add(int64(len(ids)))
	return len(ids), nil
}

// mayCollect refuses to let anything go while other daemons have the zone open:
// one of them may have it open, or be about to use it.
func (fs *FS) mayCollect(op string) error {
	if err := fs.writable(op); err != nil {
		return err
	}
	if fs.Shared() {
		return E(op, 0, "", KindBusy, errors.New("other daemons have this zone open: nothing is removed until one of them has it alone"))
	}
	return nil
}

// CollectNow applies the retention policy and frees what nothing refers to, at
// once and whole. It runs beside everything else. KindBusy while other daemons
// have the zone open.
func (fs *FS) CollectNow(ctx context.Context) (CollectResult, error) {
	if err := fs.mayCollect("collect"); err != nil {
		return CollectResult{}, err
	}
	fs.nodes.upkeep.collecting.Lock()
	defer fs.nodes.upkeep.collecting.Unlock()
	if err := fs.sync.wait(); err != nil {
		return CollectResult{}, err
	}
	c := collector{fs: fs}
	if err := c.run(ctx, fs.retention()); err != nil {
		return c.res, err
	}
	return c.res, fs.compactHeld(ctx)
}

// Purge lets go the history of one file, or with ino 0 all history, whatever
// the retention policy says; what is current or open stays. It records that it
// was done, by whom.
func (fs *FS) Purge(ctx context.Context, c Caller, ino Ino) (CollectResult, error) {
	return fs.purge(ctx, c, ino, "", func(col *collector, p Retention) error {
		if ino == 0 {
			return col.run(ctx, p)
		}
		if err := col.purgeInode(ctx, p, ino); err != nil {
			return err
		}
		return col.reclaim(ctx)
	})
}

// PurgeTree is Purge for a directory and everything in it: of what is there
// the old versions go, and what was deleted in it goes whole.
func (fs *FS) PurgeTree(ctx context.Context, c Caller, dir Ino) (CollectResult, error) {
	var after object
	after.num("recursive", 1)
	return fs.purge(ctx, c, dir, after.String(), func(col *collector, p Retention) error {
		t := treePurger{collector: col, p: p, seen: map[Ino]bool{}}
		if err := t.tree(ctx, dir); err != nil {
			return err
		}
		return col.reclaim(ctx)
	})
}

// purge records that history goes on request, and lets it go.
func (fs *FS) purge(ctx context.Context, c Caller, ino Ino, after string, let func(*collector, Retention) error) (CollectResult, error) {
	if err := fs.mayCollect("purge"); err != nil {
		return CollectResult{}, err
	}
	_, err := fs.commit(ctx, c, OriginCommand, func(v *view) (*Change, error) {
		if ino != 0 {
			if _, err := v.inode(ino); err != nil {
				return nil, err
			}
		}
		return &Change{Record: Record{Kind: OpPurge, Ino: ino, After: after}}, nil
	})
	if err != nil {
		return CollectResult{}, err
	}
	fs.nodes.upkeep.collecting.Lock()
	defer fs.nodes.upkeep.collecting.Unlock()
	if err := fs.sync.wait(); err != nil {
		return CollectResult{}, err
	}
	p := fs.retention()
	p.Off, p.Before, p.Versions = true, 0, 0
	col := collector{fs: fs}
	err = let(&col, p)
	return col.res, err
}

// inodePruner is an Upkeep that can prune the history of one inode alone.
type inodePruner interface {
	PruneInode(ctx context.Context, ino Ino, p Retention, limit int) (n int, done bool, err error)
}

func (c *collector) purgeInode(ctx context.Context, p Retention, ino Ino) error {
	up, ok := c.fs.o.Upkeep.(inodePruner)
	if !ok {
		return E("purge", ino, "", KindNotSupported, nil)
	}
	return c.loop(ctx, func() (bool, error) {
		n, done, err := up.PruneInode(ctx, ino, p, pruneStep)
		c.pruned(n)
		return !done, err
	})
}
