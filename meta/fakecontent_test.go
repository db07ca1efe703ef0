package meta

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"sync"
	"sync/atomic"
)

// fakeContent keeps blobs in memory, each at a place of its own.
type fakeContent struct {
	mu     sync.Mutex
	places map[int64]fakePlace
	next   int64
	full   atomic.Bool   // Put gives KindNoSpace
	gate   chan struct{} // when set, Put waits for it
	puts   atomic.Int64
	onSync func() error
	syncs  atomic.Int64
	free   int64
}

type fakePlace struct {
	blob Blob
	data []byte
	torn bool
}

func newFakeContent() *fakeContent {
	return &fakeContent{places: map[int64]fakePlace{}, free: 1 << 40}
}

func (c *fakeContent) ID(data []byte) BlobID { return sha256.Sum256(data) }

func (c *fakeContent) Put(_ context.Context, data []byte) (Blob, error) {
	if c.gate != nil {
		<-c.gate
	}
	if len(data) <= InlineMax || len(data) > BlobMax {
		panic(fmt.Sprintf("put of %d bytes", len(data)))
	}
	if c.full.Load() {
		return Blob{}, E("put", 0, "", KindNoSpace, nil)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.puts.Add(1)
	c.next++
	b := Blob{ID: c.ID(data), Size: int64(len(data)), Place: PlacePack, Segment: 1, Offset: c.next}
	c.places[c.next] = fakePlace{blob: b, data: bytes.Clone(data)}
	return b, nil
}

func (c *fakeContent) Read(_ context.Context, b Blob, off int64, p []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	d, ok := c.places[b.Offset]
	if !ok || d.torn || d.blob.ID != b.ID {
		return E("read", 0, "", KindDamaged, nil)
	}
	copy(p, d.data[off:off+int64(len(p))])
	return nil
}
func (c *fakeContent) Prefetch(Blob) {}
func (c *fakeContent) Sync(context.Context) error {
	c.syncs.Add(1)
	if c.onSync != nil {
		return c.onSync()
	}
	return nil
}

func (c *fakeContent) Free(_ context.Context, blobs []Blob) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, b := range blobs {
		delete(c.places, b.Offset)
	}
	return nil
}
func (c *fakeContent) Space(context.Context) (Space, error) {
	return Space{Total: 1 << 40, Free: c.free}, nil
}

func (c *fakeContent) Compact(ctx context.Context, live func(Blob) (bool, error), moved func(from, to Blob) error) error {
	c.mu.Lock()
	var list []fakePlace
	for _, p := range c.places {
		list = append(list, p)
	}
	c.mu.Unlock()
	for _, p := range list {
		ok, err := live(p.blob)
		if err != nil {
			return err
		}
		to := p.blob
		if ok {
			c.mu.Lock()
			c.next++
			to.Offset = c.next
			c.places[to.Offset] = fakePlace{blob: to, data: p.data}
			c.mu.Unlock()
			if err := moved(p.blob, to); err != nil {
				c.Free(ctx, []Blob{to})
				continue
			}
		}
		c.mu.Lock()
		delete(c.places, p.blob.Offset)
		c.mu.Unlock()
	}
	return nil
}

func (c *fakeContent) Walk(_ context.Context, fn func(Blob) error) error {
	c.mu.Lock()
	var list []Blob
	for _, p := range c.places {
		list = append(list, p.blob)
	}
	c.mu.Unlock()
	for _, b := range list {
		if err := fn(b); err != nil {
			return err
		}
	}
	return nil
}
func (c *fakeContent) Backing(context.Context, Blob) (Backing, error) {
	return nil, E("backing", 0, "", KindNotSupported, nil)
}
func (c *fakeContent) Stats() ContentStats { return ContentStats{} }

func (c *fakeContent) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.places)
}
