package local

import (
	"sync"

	"nexusfs/content"
	"nexusfs/meta"
)

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
