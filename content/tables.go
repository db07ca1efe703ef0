package content

import (
	"container/list"
	"sync"

	"nexusfs/meta"
)

// Tables keeps leaf tables that were verified against their blob's name,
// bounded in bytes, least recently used out first. Nobody modifies a table that
// it holds or gave out. Methods may run concurrently and do not block.
type Tables struct {
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

// NewTables makes room for limit bytes of tables.
func NewTables(limit int64) *Tables {
	return &Tables{max: limit, byID: make(map[meta.BlobID]*list.Element)}
}

// Get returns a table or nil.
func (c *Tables) Get(id meta.BlobID) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.byID[id]
	if e == nil {
		return nil
	}
	c.lru.MoveToFront(e)
	return e.Value.(tableEntry).table
}

// Put keeps a verified table.
func (c *Tables) Put(id meta.BlobID, table []byte) {
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

// Drop forgets a table.
func (c *Tables) Drop(id meta.BlobID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.byID[id]; e != nil {
		c.remove(e)
	}
}

// remove takes an entry out. mu is held.
func (c *Tables) remove(e *list.Element) {
	entry := c.lru.Remove(e).(tableEntry)
	delete(c.byID, entry.id)
	c.bytes -= int64(len(entry.table)) + tableOverhead
}
