package meta

import (
	"context"
	"sync"
	"sync/atomic"
)

const nodeShards = 16

// nodes holds what is known of files that are open: one node per inode, shared
// by all its handles and mappings.
type nodes struct {
	shards [nodeShards]nodeShard
	cache  atomic.Pointer[cache] // the FS's; set when the first node is made
	ids    atomic.Uint64         // handle numbers
	dirty  atomic.Int64          // nodes that have staged content or are committing some
	staged atomic.Int64          // bytes of memory held by staged content
	mapped atomic.Int64          // extents held by mappings

	put       putter
	pins      pins
	forgotten forgotten
	upkeep    upkeepState
}

type nodeShard struct {
	mu sync.Mutex
	m  map[Ino]*node // guarded by mu
}

func (ns *nodes) init() {
	for i := range ns.shards {
		ns.shards[i].m = make(map[Ino]*node)
	}
	ns.pins.m = make(map[BlobID]*pin)
	ns.forgotten.m = make(map[Ino]struct{})
}

// node is one open file.
type node struct {
	ino  Ino
	refs int // guarded by the shard's mu: handles and passing users

	mu       sync.Mutex
	handles  int           // guarded by mu, as everything below
	staged   stage         // written, not committed
	flight   *flight       // being committed; nil otherwise
	landed   chan struct{} // closed when flight ends; nil: nobody waits
	held     int64         // bytes of memory that sealed chunks hold
	unused   []*sealed     // sealed chunks that were written over; to be dropped by sweep
	putErr   error         // storing or committing in the background failed: the next write says so
	counted  bool          // in nodes.dirty
	charged  int64         // bytes of this node in nodes.staged
	owner    uint64        // handle whose version ownerN is, 0: sealed
	ownerN   int64
	streamed uint64   // handle whose content was committed without a version; 0: none
	mapping  *mapping // cached extents
	mapMiss  int      // reads in a row that the mapping did not serve
}

func (ns *nodes) shard(ino Ino) *nodeShard { return &ns.shards[ino%nodeShards] }

// get returns an open node, nil when the file is not open. It does not hold it.
func (ns *nodes) get(ino Ino) *node {
	s := ns.shard(ino)
	s.mu.Lock()
	n := s.m[ino]
	s.mu.Unlock()
	return n
}

// openNode returns the node of an inode and holds it until closeNode.
func (fs *FS) openNode(ino Ino) *node {
	if fs.nodes.cache.Load() == nil {
		fs.nodes.cache.Store(&fs.cache)
	}
	s := fs.nodes.shard(ino)
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.m[ino]
	if n == nil {
		n = &node{ino: ino}
		s.m[ino] = n
	}
	n.refs++
	return n
}

// useNode holds a node that is open already; nil when it is not.
func (fs *FS) useNode(ino Ino) *node {
	s := fs.nodes.shard(ino)
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.m[ino]
	if n != nil {
		n.refs++
	}
	return n
}

// closeNode lets a node go.
func (fs *FS) closeNode(n *node) {
	s := fs.nodes.shard(n.ino)
	s.mu.Lock()
	n.refs--
	last := n.refs == 0
	if last {
		delete(s.m, n.ino)
	}
	s.mu.Unlock()
	if last {
		n.mu.Lock()
		fs.unmap(n)
		n.staged.release() // Release has said what was lost
		fs.nodes.account(n)
		n.mu.Unlock()
		fs.sweep(context.Background(), n)
	}
}

// hasHandles reports whether a file is open.
func (fs *FS) hasHandles(ino Ino) bool {
	n := fs.nodes.get(ino)
	if n == nil {
		return false
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.handles > 0
}

// all returns the inodes of all nodes for which pick says yes.
func (ns *nodes) all(pick func(*node) bool) []Ino {
	var out []Ino
	for i := range ns.shards {
		s := &ns.shards[i]
		s.mu.Lock()
		list := make([]*node, 0, len(s.m))
		for _, n := range s.m {
			list = append(list, n)
		}
		s.mu.Unlock()
		for _, n := range list {
			n.mu.Lock()
			if pick(n) {
				out = append(out, n.ino)
			}
			n.mu.Unlock()
		}
	}
	return out
}

// count returns how many nodes there are.
func (ns *nodes) count() int {
	total := 0
	for i := range ns.shards {
		s := &ns.shards[i]
		s.mu.Lock()
		total += len(s.m)
		s.mu.Unlock()
	}
	return total
}

// openInos lists inodes with open handles.
func (ns *nodes) openInos() []Ino {
	return ns.all(func(n *node) bool { return n.handles > 0 })
}

// hasStaged reports whether the node has content that is not committed; the
// caller holds mu.
func (n *node) hasStaged() bool { return len(n.staged.runs) > 0 || n.flight != nil }

// account brings the counters that span all nodes up to date; the caller holds mu.
func (ns *nodes) account(n *node) {
	mem := n.staged.mem + n.held
	if n.flight != nil {
		mem += n.flight.stage.mem
	}
	if mem != n.charged {
		ns.staged.Add(mem - n.charged)
		n.charged = mem
	}
	if dirty := n.hasStaged(); dirty != n.counted {
		n.counted = dirty
		if dirty {
			ns.dirty.Add(1)
		} else {
			ns.dirty.Add(-1)
		}
	}
}

// overlay puts what is staged of a file over its committed attributes. An
// attribute that was read before a commit and is answered after it would show
// neither: so the newest image known is taken first, under the node's lock,
// under which staged content comes and goes.
func (ns *nodes) overlay(a *Attr) {
	c := ns.cache.Load()
	if c == nil || !a.IsRegular() {
		return
	}
	if ns.dirty.Load() > 0 {
		if n := ns.get(a.Ino); n != nil {
			n.mu.Lock()
			defer n.mu.Unlock()
			c.newer(a)
			if n.flight != nil {
				n.flight.stage.over(a)
			}
			n.staged.over(a)
			return
		}
	}
	c.newer(a)
}

// newer replaces a by the cached image if that is newer.
func (c *cache) newer(a *Attr) {
	if b, ok := c.attr(a.Ino).get(a.Ino); ok && b.Rev > a.Rev {
		*a = *b
	}
}

// over puts a stage over attributes.
func (s *stage) over(a *Attr) {
	if len(s.runs) == 0 {
		return
	}
	before := a.Size
	a.Size = max(a.Size, s.end())
	a.Mtime, a.Ctime = s.mtime, max(a.Ctime, s.mtime)
	if grown := a.Size - before; grown > 0 { // what overwrites adds nothing, what appends does: near enough until it is committed
		a.Bytes = min(a.Bytes+grown, a.Size)
	}
}

// sizeWithout is the file's size without what is staged and not yet being
// committed; the caller holds mu. known is the newest committed image that the
// caller has read.
func (n *node) sizeWithout(fs *FS, known *Attr) int64 {
	size := known.Size
	if a, ok := fs.cache.attr(n.ino).get(n.ino); ok && a.Rev >= known.Rev {
		size = a.Size
	}
	if n.flight != nil {
		size = max(size, n.flight.stage.end())
	}
	return size
}

// forgotten remembers unlinked inodes that the kernel does not know any more:
// without open handles they can go before the next mount (Upkeep.Orphans).
type forgotten struct {
	mu sync.Mutex
	m  map[Ino]struct{} // guarded by mu
}

// forgottenMax bounds the set. When it is full it starts anew: what falls out
// of it goes a day later, or at the next mount.
const forgottenMax = 1 << 16

func (f *forgotten) add(ino Ino) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.m) >= forgottenMax {
		clear(f.m)
	}
	f.m[ino] = struct{}{}
}

func (f *forgotten) has(ino Ino) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, ok := f.m[ino]
	return ok
}

func (f *forgotten) remove(ino Ino) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.m, ino)
}

// Forget says that the kernel has dropped an inode and will not ask for it by
// number again.
func (fs *FS) Forget(ino Ino) {
	if a, ok := fs.cache.attr(ino).get(ino); ok && a.Nlink == 0 {
		fs.nodes.forgotten.add(ino)
	}
}
