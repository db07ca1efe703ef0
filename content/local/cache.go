package local

import (
	"container/list"
	"sync"

	"nexusfs/content"
	"nexusfs/meta"
)

// tableCache keeps leaf tables that were verified against their blob's name,
// bounded in bytes, least recently used out first. Tables are never modified.
type tableCache struct {
	max int64

	mu    sync.Mutex
	byID  map[meta.BlobID]*list.Element // guarded by mu
	lru   list.List                     // of tableEntry, newest in front; guarded by mu
	bytes int64                         // guarded by mu
}

type tableEntry struct {
	id    meta.BlobID
	table []byte
}

// tableOverhead is what an entry costs beside its table, roughly.
const tableOverhead = 160

func newTableCache(limit int64) *tableCache {
	return &tableCache{max: limit, byID: make(map[meta.BlobID]*list.Element)}
}

// get returns a table or nil.
func (c *tableCache) get(id meta.BlobID) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.byID[id]
	if e == nil {
		return nil
	}
	c.lru.MoveToFront(e)
	return e.Value.(tableEntry).table
}

// put keeps a verified table.
func (c *tableCache) put(id meta.BlobID, table []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.byID[id] != nil {
		return
	}
	c.byID[id] = c.lru.PushFront(tableEntry{id, table})
	c.bytes += int64(len(table)) + tableOverhead
	for c.bytes > c.max && c.lru.Len() > 0 {
		c.remove(c.lru.Back())
	}
}

// drop forgets a table.
func (c *tableCache) drop(id meta.BlobID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.byID[id]; e != nil {
		c.remove(e)
	}
}

// remove takes an entry out. mu is held.
func (c *tableCache) remove(e *list.Element) {
	entry := c.lru.Remove(e).(tableEntry)
	delete(c.byID, entry.id)
	c.bytes -= int64(len(entry.table)) + tableOverhead
}

// leafCache keeps verified leaves of which only a part was asked for, in a
// ring of slots: the oldest goes first.
type leafCache struct {
	mu    sync.Mutex
	at    map[leafKey]int // slot; guarded by mu
	slots []leafSlot      // guarded by mu
	next  int             // slot to fill next; guarded by mu
}

type leafKey struct {
	id   meta.BlobID
	leaf int32
}

type leafSlot struct {
	key  leafKey
	data []byte // LeafSize bytes of room, made when first used
}

func newLeafCache(limit int64) *leafCache {
	n := int(limit / content.LeafSize)
	return &leafCache{at: make(map[leafKey]int), slots: make([]leafSlot, n)}
}

// read copies the leaf's bytes from offset off on to p, if it has the leaf.
func (c *leafCache) read(id meta.BlobID, leaf int, off int64, p []byte) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	i, ok := c.at[leafKey{id, int32(leaf)}]
	if !ok {
		return false
	}
	copy(p, c.slots[i].data[off:])
	return true
}

// put keeps a copy of a verified leaf.
func (c *leafCache) put(id meta.BlobID, leaf int, data []byte) {
	if len(c.slots) == 0 {
		return
	}
	key := leafKey{id, int32(leaf)}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.at[key]; ok {
		return
	}
	s := &c.slots[c.next]
	if s.data == nil {
		s.data = make([]byte, 0, content.LeafSize)
	} else if c.at[s.key] == c.next {
		delete(c.at, s.key)
	}
	s.key, s.data = key, append(s.data[:0], data...)
	c.at[key] = c.next
	c.next = (c.next + 1) % len(c.slots)
}
