package fusefs

import (
	"sync"
	"sync/atomic"
)

// openFile is what a file handle of the protocol stands for.
type openFile struct {
	file    file         // an open file of the tree, or
	virtual virtualFile  // an open file under .nexusfs
	backing *backingFile // the kernel reads this file itself (P27)
	node    uint64
	dirty   atomic.Bool // written to since its last commit began
}

// Handle numbers are slots of an array that grows in chunks, so that finding
// a handle takes two loads and no lock.
const (
	handleChunk  = 1 << 10
	handleChunks = 1 << 12 // 4 million open files
)

// handles maps handle numbers to open files.
type handles struct {
	chunks [handleChunks]atomic.Pointer[[handleChunk]atomic.Pointer[openFile]]

	mu   sync.Mutex
	free []uint32 // guarded by mu: slots that were given back
	next uint32   // guarded by mu: slots below were handed out at least once
}

// add stores f and returns its number, never 0; it returns false when all
// numbers are taken.
func (t *handles) add(f *openFile) (uint64, bool) {
	t.mu.Lock()
	var slot uint32
	if n := len(t.free); n > 0 {
		slot, t.free = t.free[n-1], t.free[:n-1]
	} else if t.next < handleChunk*handleChunks {
		slot = t.next
		t.next++
		if slot%handleChunk == 0 {
			t.chunks[slot/handleChunk].Store(new([handleChunk]atomic.Pointer[openFile]))
		}
	} else {
		t.mu.Unlock()
		return 0, false
	}
	t.mu.Unlock()
	t.chunks[slot/handleChunk].Load()[slot%handleChunk].Store(f)
	return uint64(slot) + 1, true
}

func (t *handles) slot(fh uint64) *atomic.Pointer[openFile] {
	fh--
	if fh >= handleChunk*handleChunks {
		return nil
	}
	chunk := t.chunks[fh/handleChunk].Load()
	if chunk == nil {
		return nil
	}
	return &chunk[fh%handleChunk]
}

// get returns the open file with a number, nil when there is none.
func (t *handles) get(fh uint64) *openFile {
	if s := t.slot(fh); s != nil {
		return s.Load()
	}
	return nil
}

// remove takes a number out of use and returns what it stood for.
func (t *handles) remove(fh uint64) *openFile {
	s := t.slot(fh)
	if s == nil {
		return nil
	}
	f := s.Swap(nil)
	if f != nil {
		t.mu.Lock()
		t.free = append(t.free, uint32(fh-1))
		t.mu.Unlock()
	}
	return f
}

// open counts the handles in use.
func (t *handles) open() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return int(t.next) - len(t.free)
}

// nodes calls fn for the node of every open file.
func (t *handles) nodes(fn func(node uint64)) {
	t.mu.Lock()
	next := t.next
	t.mu.Unlock()
	for fh := uint64(1); fh <= uint64(next); fh++ {
		if f := t.get(fh); f != nil {
			fn(f.node)
		}
	}
}

// drain takes every handle out of use, for the end of a mount: the kernel
// sends no RELEASE once a mount was cut off.
func (t *handles) drain(fn func(*openFile)) {
	t.mu.Lock()
	next := t.next
	t.mu.Unlock()
	for fh := uint64(1); fh <= uint64(next); fh++ {
		if f := t.remove(fh); f != nil {
			fn(f)
		}
	}
}

// dirtySet counts, per inode, the handles with writes that are not committed.
type dirtySet struct {
	total  atomic.Int64 // spares the lock while nobody writes
	shards [16]struct {
		mu    sync.Mutex
		nodes map[uint64]int // guarded by mu
	}
}

// add changes an inode's count.
func (d *dirtySet) add(node uint64, n int) {
	s := &d.shards[node%uint64(len(d.shards))]
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.nodes == nil {
		s.nodes = make(map[uint64]int)
	}
	if s.nodes[node] += n; s.nodes[node] == 0 {
		delete(s.nodes, node)
	}
	d.total.Add(int64(n))
}

func (d *dirtySet) has(node uint64) bool {
	if d.total.Load() == 0 {
		return false
	}
	s := &d.shards[node%uint64(len(d.shards))]
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.nodes[node] > 0
}

// wrote notes a write through a handle, before it is staged.
func (d *dirtySet) wrote(of *openFile) {
	if !of.dirty.Load() && of.dirty.CompareAndSwap(false, true) {
		d.add(of.node, 1)
	}
}

// commit runs fn, which commits what was written through a handle. A write
// that comes meanwhile counts anew.
func (d *dirtySet) commit(of *openFile, fn func() error) error {
	was := of.dirty.Swap(false)
	err := fn()
	if was && (err == nil || !of.dirty.CompareAndSwap(false, true)) {
		d.add(of.node, -1)
	}
	return err
}
