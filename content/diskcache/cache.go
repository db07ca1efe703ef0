package diskcache

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"nexusfs/content/local"
	"nexusfs/meta"
)

// Options configure a Cache. Dir and Bytes are needed.
type Options struct {
	Dir   string           // the folder; Open makes it
	Bytes int64            // bound of what it holds, at least MinBytes
	Ahead int              // whole blobs fetched in the background at a time; 0: 8
	Log   *slog.Logger     // nil: discard
	Now   func() time.Time // nil: time.Now

	landed func() // tests learn that a fetch has ended
	tables int64  // bytes of leaf tables, living and dead, that a start leaves alone; 0: one in tablesPart of Bytes
}

// MinBytes is the least bound: a few of the largest blobs.
const MinBytes = 64 << 20

const (
	defaultAhead = 8
	// wholeFrom is the size of blobs from which on a read is answered before
	// the rest is fetched: a smaller one is quicker whole than asked for twice.
	wholeFrom = 256 << 10
	// recentBlobs is how many fetched blobs stay in memory for those who are
	// about to read them.
	recentBlobs = 4
	// writeQueue is how many fetched blobs wait in memory for the disk.
	writeQueue = 8
	// tablesPart is four times what leaf tables of large blobs take: one byte
	// in 128 or less.
	tablesPart = 32
	// pause is how long a disk is left alone that would not take a blob.
	pause = 30 * time.Second
)

// Cache is a content store with copies on a disk. It implements meta.Content.
//
// LOCK ORDER: mu alone; it is not held over reading or writing blobs.
type Cache struct {
	below meta.Content
	body  *local.Store
	lock  *os.File
	log   *slog.Logger
	o     Options

	ctx    context.Context // of the background work
	cancel context.CancelFunc
	wg     sync.WaitGroup
	slots  chan struct{} // one for each background fetch
	writes chan *flight  // fetched blobs on their way to the disk

	mu      sync.Mutex
	closed  bool                    // guarded by mu
	kept    *sieve                  // guarded by mu
	flights map[meta.BlobID]*flight // guarded by mu
	recent  []*flight               // ended, still in flights, oldest first; guarded by mu

	paused atomic.Int64 // until when the disk is left alone, ns
	warned atomic.Bool

	reads, readBytes atomic.Int64
	damaged          atomic.Int64
	hits, misses     atomic.Int64
}

var _ meta.Content = (*Cache)(nil)

// Open opens the cache in o.Dir in front of below, which stays the caller's to
// close, after the Cache. It lists what the folder holds and reads none of it:
// what is not whole shows when it is read. Errors: KindInvalid (the options),
// KindBusy (another process has the folder), KindNotSupported (the folder
// holds something else), KindNoSpace, KindIO, KindInterrupted.
func Open(ctx context.Context, below meta.Content, o Options) (*Cache, error) {
	if o.Bytes < MinBytes {
		return nil, meta.E("open cache", 0, o.Dir, meta.KindInvalid,
			fmt.Errorf("a bound of %d bytes is too small: give it at least %d", o.Bytes, MinBytes))
	}
	if o.Ahead <= 0 {
		o.Ahead = defaultAhead
	}
	if o.tables <= 0 {
		o.tables = o.Bytes / tablesPart
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	lock, err := takeLock(o.Dir)
	if err != nil {
		return nil, err
	}
	c := &Cache{
		below: below, lock: lock, log: o.Log, o: o, slots: make(chan struct{}, o.Ahead), writes: make(chan *flight, writeQueue),
		kept: newSieve(o.Bytes), flights: make(map[meta.BlobID]*flight),
	}
	if err := c.load(ctx); err != nil {
		lock.Close()
		return nil, err
	}
	c.ctx, c.cancel = context.WithCancel(context.WithoutCancel(ctx))
	if c.body.Stats().SegmentBytes > o.tables {
		c.wg.Go(c.tidy)
	}
	c.wg.Go(c.writeFetched)
	return c, nil
}

// takeLock makes the folder and locks it until the file is closed or the
// process ends.
func takeLock(dir string) (*os.File, error) {
	fail := func(kind meta.Kind, err error) (*os.File, error) { return nil, meta.E("open cache", 0, dir, kind, err) }
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fail(kindOf(err), err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fail(kindOf(err), err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		return f, nil
	}
	f.Close()
	if errors.Is(err, unix.EWOULDBLOCK) {
		return fail(meta.KindBusy, errors.New("another nexusfs uses this cache directory: give each its own"))
	}
	return fail(meta.KindIO, fmt.Errorf("lock: %w", err))
}

func kindOf(err error) meta.Kind {
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return meta.KindNoSpace
	case errors.Is(err, unix.EROFS):
		return meta.KindReadOnly
	}
	return meta.KindIO
}

// load opens the body and takes up what it holds, in the order in which it came.
func (c *Cache) load(ctx context.Context) error {
	body, err := local.Open(ctx, local.Options{
		Dir:           filepath.Join(c.o.Dir, "blobs"),
		FileThreshold: 1, FileLimit: meta.BlobMax + 1, // files alone: each is a backing, and goes without a compactor
		SegmentSize: 8 << 20, // of leaf tables
	})
	if err != nil {
		return err
	}
	c.body = body
	var found []meta.Blob
	if err := body.Walk(ctx, func(b meta.Blob) error { found = append(found, b); return nil }); err != nil {
		return errors.Join(err, body.Close())
	}
	slices.SortFunc(found, func(a, b meta.Blob) int {
		return cmp.Or(cmp.Compare(a.Segment, b.Segment), cmp.Compare(a.Offset, b.Offset))
	})
	var out []meta.Blob
	for _, b := range found {
		out = append(out, c.kept.add(b)...)
	}
	c.discard(out)
	return nil
}

// tidy lets the body give back leaf tables that died after the process that
// wrote them. It copies blobs, so it is left until there are many.
func (c *Cache) tidy() {
	live := func(b meta.Blob) (bool, error) {
		c.mu.Lock()
		defer c.mu.Unlock()
		e := c.kept.at[b.ID]
		return e != nil && e.Value.(*kept).place == b, nil
	}
	moved := func(from, to meta.Blob) error {
		c.mu.Lock()
		defer c.mu.Unlock()
		if !c.kept.move(from, to) {
			return meta.KindConflict.Err()
		}
		return nil
	}
	if err := c.body.Compact(c.ctx, live, moved); err != nil && c.ctx.Err() == nil {
		c.log.Warn("tidying up the disk cache failed; it takes somewhat more room", "dir", c.o.Dir, "err", err)
	}
}

// Close ends the background work and lets the folder go. Calls that come later
// go to the store below. A second Close does nothing.
func (c *Cache) Close() error {
	c.mu.Lock()
	closed := c.closed
	c.closed = true
	c.mu.Unlock()
	if closed {
		return nil
	}
	c.cancel()
	c.wg.Wait()
	return errors.Join(c.body.Close(), c.lock.Close())
}

// ID computes the name of a blob. Pure.
func (c *Cache) ID(data []byte) meta.BlobID { return c.below.ID(data) }

// Put stores data below and keeps a copy. Errors are those of the store below.
func (c *Cache) Put(ctx context.Context, data []byte) (meta.Blob, error) {
	copied := make(chan meta.Blob, 1)
	go func() { copied <- c.write(ctx, data) }()
	b, err := c.below.Put(ctx, data)
	place := <-copied
	switch {
	case place.Size == 0:
	case err != nil:
		c.discard([]meta.Blob{place})
	default:
		c.admit(place, nil)
	}
	return b, err
}

// Sync makes every Put that has returned durable: below.
func (c *Cache) Sync(ctx context.Context) error { return c.below.Sync(ctx) }

// Free frees blobs below and drops their copies.
func (c *Cache) Free(ctx context.Context, blobs []meta.Blob) error {
	var out []meta.Blob
	c.mu.Lock()
	for _, b := range blobs {
		delete(c.flights, b.ID)
		if e := c.kept.at[b.ID]; e != nil {
			out = append(out, e.Value.(*kept).place)
			c.kept.remove(e)
		}
	}
	c.mu.Unlock()
	c.discard(out)
	return c.below.Free(ctx, blobs)
}

// Space is that of the store below.
func (c *Cache) Space(ctx context.Context) (meta.Space, error) { return c.below.Space(ctx) }

// Compact is that of the store below; copies stay good when blobs move.
func (c *Cache) Compact(ctx context.Context, live func(meta.Blob) (bool, error), moved func(from, to meta.Blob) error) error {
	return c.below.Compact(ctx, live, moved)
}

// Walk lists the store below.
func (c *Cache) Walk(ctx context.Context, fn func(meta.Blob) error) error {
	return c.below.Walk(ctx, fn)
}

// Backing opens the copy of a blob that is an object or a file of its own,
// verified whole. Without a copy it asks the store below, and has the blob
// fetched for the next time. Errors: those of the store below.
func (c *Cache) Backing(ctx context.Context, b meta.Blob) (meta.Backing, error) {
	if b.Place != meta.PlaceFile {
		return c.below.Backing(ctx, b)
	}
	c.mu.Lock()
	place, ok := c.kept.get(b.ID)
	c.mu.Unlock()
	if !ok {
		c.fetch(b, true)
		return c.below.Backing(ctx, b)
	}
	f, err := c.body.Backing(ctx, place)
	if err == nil {
		return f, nil
	}
	c.spoiled(place, err)
	return c.below.Backing(ctx, b)
}

// Stats describes the store below; reads and damage are those that callers saw.
func (c *Cache) Stats() meta.ContentStats {
	st := c.below.Stats()
	st.Reads, st.ReadBytes, st.Damaged = c.reads.Load(), c.readBytes.Load(), c.damaged.Load()
	return st
}

// Figures are what the cache did since start and what it holds.
type Figures struct {
	Blobs        int   // kept
	Bytes, Limit int64 // that they take, and may
	Hits, Misses int64 // reads answered without the store below, and with it
}

// Figures returns them.
func (c *Cache) Figures() Figures {
	c.mu.Lock()
	defer c.mu.Unlock()
	return Figures{
		Blobs: c.kept.queue.Len(), Bytes: c.kept.bytes, Limit: c.o.Bytes,
		Hits: c.hits.Load(), Misses: c.misses.Load(),
	}
}
