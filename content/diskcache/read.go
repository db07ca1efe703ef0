package diskcache

import (
	"context"
	"encoding/hex"
	"fmt"

	"nexusfs/meta"
)

// flight is a blob on its way from the store below, and in memory for a while
// after it has come. data and err belong to run until done is closed and are
// never changed after.
type flight struct {
	b    meta.Blob
	done chan struct{}
	data []byte
	err  error
}

// Read fills p with the bytes of b from off on, from memory or the disk where
// they are. Otherwise it reads below: a small blob whole; of a large one what
// it was asked for, and the whole of it in the background. Errors: those of the
// store below, KindInvalid (range).
func (c *Cache) Read(ctx context.Context, b meta.Blob, off int64, p []byte) error {
	switch {
	case ctx.Err() != nil:
		return meta.E("read content", 0, "", meta.KindInterrupted, ctx.Err())
	case off < 0 || b.Size <= 0 || off > b.Size-int64(len(p)):
		return meta.E("read content", 0, "", meta.KindInvalid, fmt.Errorf("%d bytes at %d of a blob of %d", len(p), off, b.Size))
	case len(p) == 0:
		return nil
	}
	if err := c.read(ctx, b, off, p); err != nil {
		if meta.KindOf(err) == meta.KindDamaged {
			c.damaged.Add(1)
		}
		return err
	}
	c.reads.Add(1)
	c.readBytes.Add(int64(len(p)))
	return nil
}

func (c *Cache) read(ctx context.Context, b meta.Blob, off int64, p []byte) error {
	f := c.flying(b.ID)
	if f == nil && c.readKept(ctx, b, off, p) || f != nil && f.read(ctx, b, off, p) {
		c.hits.Add(1)
		return nil
	}
	c.misses.Add(1)
	small := b.Size < wholeFrom && f == nil // else it was tried just now
	if small {
		if f = c.fetch(b, false); f != nil && f.read(ctx, b, off, p) {
			return nil
		}
	}
	err := c.below.Read(ctx, b, off, p)
	if err == nil && !c.resting() {
		c.fetch(b, true)
	}
	return err
}

// flying returns the flight of a blob that is under way or has just come.
func (c *Cache) flying(id meta.BlobID) *flight {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.flights[id]
}

// read waits for the flight and copies from it; false: there is nothing to copy.
func (f *flight) read(ctx context.Context, b meta.Blob, off int64, p []byte) bool {
	select {
	case <-f.done:
	case <-ctx.Done():
		return false
	}
	if f.err != nil || f.b.Size != b.Size {
		return false
	}
	copy(p, f.data[off:])
	return true
}

// readKept reads from the disk. A copy that cannot be read is dropped.
func (c *Cache) readKept(ctx context.Context, b meta.Blob, off int64, p []byte) bool {
	c.mu.Lock()
	place, ok := c.kept.get(b.ID)
	c.mu.Unlock()
	if !ok {
		return false
	}
	if place.Size != b.Size {
		c.spoiled(place, fmt.Errorf("it has %d bytes, not %d", place.Size, b.Size))
		return false
	}
	err := c.body.Read(ctx, place, off, p)
	if err != nil {
		c.spoiled(place, err)
	}
	return err == nil
}

// spoiled drops a copy that could not be read. One that was evicted or moved
// meanwhile is as it should be.
func (c *Cache) spoiled(place meta.Blob, err error) {
	switch meta.KindOf(err) {
	case meta.KindInterrupted, meta.KindShutdown:
		return
	}
	c.mu.Lock()
	dropped := c.kept.drop(place)
	c.mu.Unlock()
	if dropped {
		c.log.Warn("a blob in the disk cache is damaged; it is fetched again", "dir", c.o.Dir, "blob", hex.EncodeToString(place.ID[:]), "err", err)
		c.discard([]meta.Blob{place})
	}
}

// Prefetch has b fetched in the background. While Options.Ahead blobs are on
// their way it does nothing. It does not block.
func (c *Cache) Prefetch(b meta.Blob) {
	if b.Place != meta.PlaceInline && b.Size > 0 && b.Size <= meta.BlobMax {
		c.fetch(b, true)
	}
}

// fetch has a blob fetched whole, unless that is under way, and returns its
// flight. In the background it may be nil: the blob is here, or too many are
// on their way.
func (c *Cache) fetch(b meta.Blob, background bool) *flight {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f := c.flights[b.ID]; f != nil || c.closed {
		return f
	}
	if background {
		if c.kept.has(b.ID) {
			return nil
		}
		select {
		case c.slots <- struct{}{}:
		default:
			return nil
		}
	}
	f := &flight{b: b, done: make(chan struct{})}
	c.flights[b.ID] = f
	c.wg.Go(func() {
		c.run(f)
		if background {
			<-c.slots
		}
	})
	return f
}

// run fetches a blob, answers who waits for it, and hands it to the writer. If
// the disk does not keep up, the blob is left out.
func (c *Cache) run(f *flight) {
	f.data = make([]byte, f.b.Size)
	f.err = c.below.Read(c.ctx, f.b, 0, f.data)
	close(f.done)
	if f.err == nil {
		select {
		case c.writes <- f:
			return
		default:
		}
	}
	c.land(f)
}

// writeFetched writes what was fetched to the disk until the cache is closed.
func (c *Cache) writeFetched() {
	for {
		select {
		case f := <-c.writes:
			if place := c.write(c.ctx, f.data); place.Size > 0 {
				c.admit(place, f)
			}
			c.land(f)
		case <-c.ctx.Done():
			return
		}
	}
}

// land keeps the newest flights in memory and lets the others go.
func (c *Cache) land(f *flight) {
	if c.o.landed != nil {
		defer c.o.landed()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	forget := f
	if f.err == nil {
		if c.recent = append(c.recent, f); len(c.recent) <= recentBlobs {
			return
		}
		forget = c.recent[0]
		c.recent = append(c.recent[:0], c.recent[1:]...)
	}
	if c.flights[forget.b.ID] == forget {
		delete(c.flights, forget.b.ID)
	}
}

// write puts bytes into the body. The place is empty when the disk does not
// take them; it is left alone for a while then.
func (c *Cache) write(ctx context.Context, data []byte) meta.Blob {
	if c.resting() || len(data) == 0 || len(data) > meta.BlobMax {
		return meta.Blob{}
	}
	place, err := c.body.Put(ctx, data)
	switch kind := meta.KindOf(err); {
	case err == nil:
		if c.warned.CompareAndSwap(true, false) {
			c.log.Info("the disk cache takes blobs again", "dir", c.o.Dir)
		}
		return place
	case kind == meta.KindInterrupted || kind == meta.KindShutdown:
	default:
		c.paused.Store(c.o.Now().Add(pause).UnixNano())
		if c.warned.CompareAndSwap(false, true) {
			c.log.Warn("the disk cache takes no more blobs for now; reads go to the store: make room on its disk, or check it", "dir", c.o.Dir, "err", err)
		}
	}
	return meta.Blob{}
}

// resting reports whether the disk is being left alone.
func (c *Cache) resting() bool { return c.o.Now().UnixNano() < c.paused.Load() }

// admit takes up a copy that was written, unless the flight that brought it was
// cut off by Free, and evicts what it displaces.
func (c *Cache) admit(place meta.Blob, f *flight) {
	c.mu.Lock()
	out := []meta.Blob{place}
	if f == nil || c.flights[place.ID] == f {
		out = c.kept.add(place)
	}
	c.mu.Unlock()
	c.discard(out)
}

// discard removes copies that nothing refers to. Who reads one of them meanwhile
// learns that it is gone and reads below.
func (c *Cache) discard(places []meta.Blob) {
	if len(places) == 0 {
		return
	}
	if err := c.body.Free(context.Background(), places); err != nil && meta.KindOf(err) != meta.KindShutdown {
		c.log.Warn("the disk cache could not remove blobs; they are found at the next start", "dir", c.o.Dir, "err", err)
	}
}
