package meta

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"
)

// How often background duties look whether there is something to do.
const (
	barrierEvery    = time.Second      // bounds what a power loss takes (P22)
	checkpointEvery = 30 * time.Second // though the log is short
	keepEvery       = 10 * time.Second
	collectEvery    = time.Minute
	compactEvery    = 10 * time.Minute
)

// upkeepState is what background duties remember.
type upkeepState struct {
	reserved   atomic.Int64 // revisions up to here are never issued again
	firstRev   atomic.Int64 // newest revision when the session began
	unclean    atomic.Bool  // the session before did not end in order
	collecting sync.Mutex   // one collection at a time; held over SQL, by upkeep alone
}

// Run does the background duties until ctx ends: it commits what is staged for
// long, makes commits durable about every second, reserves revisions, moves
// the log, and lets history and content go. A duty that fails is logged and
// tried again. Call it once, between Open and Close.
func (fs *FS) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	if fs.o.Peers != nil {
		wg.Go(func() { every(ctx, peerLook, fs.keepLooking) })
	}
	if fs.o.ReadOnly {
		<-ctx.Done()
		wg.Wait()
		return nil
	}
	if fs.o.Peers != nil {
		wg.Go(func() { fs.keepSession(ctx) })
	}
	wg.Go(func() { every(ctx, max(fs.o.StageAge/5, 10*time.Millisecond), fs.streamOld) })
	wg.Go(func() { every(ctx, barrierEvery, fs.keepDurable) })
	ckpt := checkpointer{fs: fs}
	wg.Go(func() { every(ctx, barrierEvery, ckpt.look) })
	keep := keeper{fs: fs}
	wg.Go(func() {
		fs.leftovers(ctx)
		every(ctx, keepEvery, keep.look)
	})
	wg.Wait()
	return nil
}

// every calls fn again and again until ctx ends.
func every(ctx context.Context, d time.Duration, fn func(context.Context)) {
	t := time.NewTicker(d)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			fn(ctx)
		}
	}
}

// streamOld commits what has been staged for longer than StageAge (P1).
func (fs *FS) streamOld(ctx context.Context) {
	if fs.nodes.dirty.Load() == 0 {
		return
	}
	old := fs.now().Add(-fs.o.StageAge).UnixNano()
	list := fs.nodes.all(func(n *node) bool {
		return n.flight == nil && n.staged.since != 0 && n.staged.since <= old
	})
	for _, ino := range list {
		n := fs.useNode(ino)
		if n == nil {
			continue
		}
		if err := fs.flush(ctx, Caller{}, n, flushStream); err != nil {
			fs.log.Warn("written content could not be committed; it stays staged", "ino", ino, "err", err)
		}
		fs.closeNode(n)
	}
}

// keepDurable is the barrier that bounds what a power loss takes.
func (fs *FS) keepDurable(ctx context.Context) {
	if fs.failed.Load() != nil {
		return
	}
	if fs.sync.waiting.Load() || fs.losses.suspected.Load() {
		if err := fs.durable(ctx); err != nil {
			return // FS.fail or rejoin has said it
		}
	}
	if err := fs.reserve(ctx); err != nil && ctx.Err() == nil {
		fs.log.Warn("reserving revisions failed", "err", err)
	}
}

// checkpointer moves the store's log into the database.
type checkpointer struct {
	fs   *FS
	ops  int64     // operations up to when it was moved however short it was
	last time.Time // of that
}

func (c *checkpointer) look(ctx context.Context) {
	ops, now := c.fs.counters.ops.Load(), c.fs.now()
	if ops == c.ops {
		return
	}
	idle := now.Sub(c.last) >= checkpointEvery
	if idle {
		c.ops, c.last = ops, now
	}
	if err := c.fs.o.Upkeep.Checkpoint(ctx, idle); err != nil && ctx.Err() == nil {
		c.fs.log.Warn("checkpoint failed", "err", err)
	}
}

// keeper lets history and content go, and mends fragmented files.
type keeper struct {
	fs                 *FS
	collected, compact time.Time
	ops                int64 // operations up to the last collection
	squeeze            int   // how often the age limit is halved for want of space
}

func (k *keeper) look(ctx context.Context) {
	fs, now := k.fs, k.fs.now()
	if fs.failed.Load() != nil || fs.Shared() {
		return // others may be about to use what nothing refers to
	}
	space, err := fs.o.Content.Space(ctx)
	if err != nil {
		return
	}
	low := space.Free < space.Total/lowSpace
	if !low {
		k.squeeze = 0
	}
	wait, ops := collectEvery, fs.counters.ops.Load()
	switch {
	case low:
		wait = 0
	case ops == k.ops: // only time can have made something old
		wait = compactEvery
	case fs.o.Retention.Off:
		wait = 0
	}
	if now.Sub(k.collected) < wait {
		return
	}
	k.collected, k.ops = now, ops
	err = k.collect(ctx, low)
	if err == nil {
		err = fs.defragmentSome(ctx)
	}
	if err == nil && (low || now.Sub(k.compact) >= compactEvery) {
		k.compact = now
		err = fs.compactContent(ctx)
	}
	if err != nil && ctx.Err() == nil {
		fs.log.Warn("collection failed", "err", err)
	}
}

// collect applies the retention policy. While the disk is nearly full, each
// pass keeps half as much as the one before: the oldest history goes first,
// and it goes before a write is refused (P26).
func (k *keeper) collect(ctx context.Context, low bool) error {
	fs := k.fs
	fs.nodes.upkeep.collecting.Lock()
	defer fs.nodes.upkeep.collecting.Unlock()
	p := fs.retention()
	if low && !p.Off {
		k.squeeze++
		age := fs.o.Retention.MaxAge
		if age == 0 {
			age = defaultRetention.MaxAge
		}
		if age >>= min(k.squeeze, 40); age < time.Minute {
			p.Off = true
		}
		p.Before = fs.now().Add(-age).UnixNano()
		fs.log.Warn("the disk is nearly full: history goes before its time", "kept", age)
	}
	c := collector{fs: fs, pause: keepPause, steps: keepSteps}
	err := c.run(ctx, p)
	if c.res != (CollectResult{}) {
		fs.log.Debug("collected", "history", c.res.History, "inodes", c.res.Inodes, "blobs", c.res.Blobs, "bytes", c.res.Bytes)
	}
	return err
}

// compactContent lets the content store give back the space of dead blobs.
func (fs *FS) compactContent(ctx context.Context) error {
	fs.nodes.upkeep.collecting.Lock()
	defer fs.nodes.upkeep.collecting.Unlock()
	return fs.compactHeld(ctx)
}

// compactHeld is compactContent for who excludes other collections already.
func (fs *FS) compactHeld(ctx context.Context) error {
	// A blob that is stored but not committed yet has no row: it counts as
	// living as long as it is pinned.
	live := func(b Blob) (bool, error) {
		if fs.nodes.pins.has(b.ID) || fs.Shared() {
			return true, nil
		}
		return fs.o.Upkeep.Placed(ctx, b)
	}
	return fs.o.Content.Compact(ctx, live, func(from, to Blob) error { return fs.moved(ctx, from, to) })
}

// moved records durably that a blob has a new place, for the old one goes next.
// A writer who has seen the old place is about to name it in a row: it stays.
func (fs *FS) moved(ctx context.Context, from, to Blob) error {
	if fs.o.SyncFirst {
		if err := fs.o.Content.Sync(ctx); err != nil {
			return fs.fail(err)
		}
	}
	gate := &fs.nodes.put.gate
	gate.Lock()
	err := E("move", 0, "", KindConflict, nil)
	if !fs.nodes.pins.has(from.ID) && !fs.Shared() {
		err = fs.o.Upkeep.Move(ctx, from, to)
	}
	gate.Unlock()
	if err != nil {
		return err
	}
	if err := fs.o.Store.Sync(ctx); err != nil {
		return fs.fail(err)
	}
	return nil
}

// errOthers ends a walk when other daemons come: what has no row may be about
// to get one.
var errOthers = errors.New("other daemons have the zone open")

// leftoverStep is how many blobs without a row are looked at again at once.
const leftoverStep = 1024

// leftovers frees content that a killed session stored and never committed. It
// runs beside everything else, once.
func (fs *FS) leftovers(ctx context.Context) {
	if !fs.nodes.upkeep.unclean.Load() || fs.Shared() {
		return
	}
	var found []Blob
	freed, looked := 0, 0
	err := fs.o.Content.Walk(ctx, func(b Blob) error {
		if fs.Shared() {
			return errOthers
		}
		if looked++; looked%leftoverStep == 0 {
			c := collector{fs: fs, pause: keepPause}
			if !c.rest(ctx) {
				return ctx.Err()
			}
		}
		if fs.referred(ctx, b) {
			return nil
		}
		if found = append(found, b); len(found) == leftoverStep {
			freed += fs.freeLeftovers(ctx, found)
			found = found[:0]
		}
		return nil
	})
	freed += fs.freeLeftovers(ctx, found)
	if err == nil && fs.o.SyncFirst && !fs.Shared() {
		err = fs.o.Sessions.Recovered(ctx, fs.session.Load().number, fs.o.BootID)
	}
	switch {
	case ctx.Err() != nil || errors.Is(err, errOthers): // whoever has the zone alone next begins anew
	case err != nil:
		fs.log.Warn("looking for content that was never committed failed", "err", err)
	}
	if freed > 0 {
		fs.log.Info("content that was stored and never committed was freed", "blobs", freed)
	}
}

// referred reports whether a row names this place; when in doubt, it does.
func (fs *FS) referred(ctx context.Context, b Blob) bool {
	if fs.nodes.pins.has(b.ID) {
		return true
	}
	placed, err := fs.o.Upkeep.Placed(ctx, b)
	return placed || err != nil
}

// freeLeftovers frees those of the blobs that are still without a row once all
// stores under way have pinned theirs.
func (fs *FS) freeLeftovers(ctx context.Context, found []Blob) int {
	fs.nodes.upkeep.collecting.Lock()
	defer fs.nodes.upkeep.collecting.Unlock()
	if fs.Shared() {
		return 0
	}
	fs.nodes.put.gate.Lock()
	//lint:ignore SA2001 who held the gate has pinned its blob now
	fs.nodes.put.gate.Unlock()
	var free []Blob
	for _, b := range found {
		if !fs.referred(ctx, b) {
			free = append(free, b)
		}
	}
	fs.freeBlobs(ctx, free)
	return len(free)
}
