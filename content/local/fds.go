package local

import (
	"container/list"
	"sync"

	"golang.org/x/sys/unix"
)

// fdKey names an open file: a segment (Offset is zero), or the file of
// the blob whose leaf record lies at Segment, Offset.
type fdKey struct {
	segment int64
	offset  int64
	file    bool
}

// openFD is an open file that several readers may use; the last one to release
// it closes it once the cache let it go.
type openFD struct {
	fd    int
	cache *fdCache
	key   fdKey
	refs  int           // guarded by cache.mu; the cache itself counts as one
	elem  *list.Element // guarded by cache.mu; nil once the cache let it go
}

// hold begins another use of a file that is in use, and returns it.
func (o *openFD) hold() *openFD {
	o.cache.mu.Lock()
	o.refs++
	o.cache.mu.Unlock()
	return o
}

// release ends one use.
func (o *openFD) release() {
	o.cache.mu.Lock()
	last := o.unref()
	o.cache.mu.Unlock()
	if last {
		unix.Close(o.fd)
	}
}

// unref reports whether the caller must close the file. cache.mu is held.
func (o *openFD) unref() bool {
	o.refs--
	return o.refs == 0
}

// fdCache keeps a bounded number of files open, the least recently used go
// first. Files in use stay open beyond the bound until they are released.
type fdCache struct {
	max int

	mu   sync.Mutex
	open map[fdKey]*openFD // guarded by mu
	lru  list.List         // of *openFD, newest in front; guarded by mu
}

func newFDCache(limit int) *fdCache {
	return &fdCache{max: limit, open: make(map[fdKey]*openFD)}
}

// get returns the open file of key, which the caller releases, or nil: then
// the caller opens it and calls add.
func (c *fdCache) get(key fdKey) *openFD {
	c.mu.Lock()
	defer c.mu.Unlock()
	o := c.open[key]
	if o != nil {
		o.refs++
		c.lru.MoveToFront(o.elem)
	}
	return o
}

// add puts an open file into the cache and returns it, in use once. When the
// key is there already that one is returned and fd is closed.
func (c *fdCache) add(key fdKey, fd int) *openFD {
	c.mu.Lock()
	if o := c.open[key]; o != nil {
		o.refs++
		c.mu.Unlock()
		unix.Close(fd)
		return o
	}
	o := &openFD{fd: fd, cache: c, key: key, refs: 2}
	o.elem = c.lru.PushFront(o)
	c.open[key] = o
	var victim *openFD
	if c.lru.Len() > c.max {
		victim = c.lru.Back().Value.(*openFD)
		if !c.forget(victim) {
			victim = nil
		}
	}
	c.mu.Unlock()
	if victim != nil {
		unix.Close(victim.fd)
	}
	return o
}

// forget takes o out of the cache and reports whether the caller must close
// it. mu is held.
func (c *fdCache) forget(o *openFD) bool {
	delete(c.open, o.key)
	c.lru.Remove(o.elem)
	o.elem = nil
	return o.unref()
}

// drop takes a file out of the cache; who reads from it may go on.
func (c *fdCache) drop(key fdKey) {
	c.mu.Lock()
	o := c.open[key]
	last := o != nil && c.forget(o)
	c.mu.Unlock()
	if last {
		unix.Close(o.fd)
	}
}

// dropUnlinked takes files out whose names are gone, so that the disk gets
// their space back: another process has removed them.
func (c *fdCache) dropUnlinked() {
	c.mu.Lock()
	var last []*openFD
	for _, o := range c.open {
		if unlinked(o.fd) && c.forget(o) {
			last = append(last, o)
		}
	}
	c.mu.Unlock()
	for _, o := range last {
		unix.Close(o.fd)
	}
}

// closeAll takes every file out of the cache.
func (c *fdCache) closeAll() {
	c.mu.Lock()
	var last []*openFD
	for _, o := range c.open {
		if c.forget(o) {
			last = append(last, o)
		}
	}
	c.mu.Unlock()
	for _, o := range last {
		unix.Close(o.fd)
	}
}
