package meta

import "sync"

// cache holds attributes and names that were read from the store or changed by
// operations. It may forget, it may not lie (I5): an entry is replaced only by
// a newer revision, and a row read from SQL is dropped when anything in its
// shard was applied since the read began (P10). It is small on purpose: the
// kernel keeps names and attributes for as long as it likes, so this cache
// serves what operations need to know, not what users look at.
type cache struct {
	attrs [cacheShards]shard[Ino, *Attr]
	names [cacheShards]shard[nameKey, nameVal]
}

const cacheShards = 16

type nameKey struct {
	parent Ino
	name   string
}

// nameVal is what a name refers to; ino 0: the name is absent.
type nameVal struct {
	ino  Ino
	mode uint32 // type bits
}

// shard keeps at most two generations of entries: when the hot one is full the
// cold one is dropped and the hot one becomes cold.
type shard[K comparable, V any] struct {
	mu        sync.Mutex
	hot, cold map[K]V // guarded by mu
	limit     int
	applied   uint64 // guarded by mu; counts operations applied to any key here
}

func (c *cache) init() {
	for i := range c.attrs {
		c.attrs[i].limit = cachedAttrs / cacheShards / 2
		c.names[i].limit = cachedNames / cacheShards / 2
	}
}

func (s *shard[K, V]) get(k K) (v V, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if v, ok = s.hot[k]; ok {
		return v, true
	}
	if v, ok = s.cold[k]; ok {
		s.put(k, v)
	}
	return v, ok
}

// put stores an entry; the caller holds mu.
func (s *shard[K, V]) put(k K, v V) {
	if s.hot == nil || len(s.hot) >= s.limit {
		s.cold, s.hot = s.hot, make(map[K]V, 16)
	}
	s.hot[k] = v
}

// begin returns the stamp that fill needs: take it before reading from SQL.
func (s *shard[K, V]) begin() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.applied
}

// fill stores a row that was read from SQL, unless something was applied here
// since begin (P10).
func (s *shard[K, V]) fill(k K, v V, stamp uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.applied == stamp {
		s.put(k, v)
	}
}

// apply stores what a committed operation made.
func (s *shard[K, V]) apply(k K, v V) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.applied++
	delete(s.cold, k)
	s.put(k, v)
}

// drop forgets an entry and any fill under way.
func (s *shard[K, V]) drop(k K) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.applied++
	delete(s.hot, k)
	delete(s.cold, k)
}

// clear forgets all entries and any fill under way.
func (s *shard[K, V]) clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.applied++
	s.hot, s.cold = nil, nil
}

func (s *shard[K, V]) size() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.hot) + len(s.cold)
}

func (c *cache) clear() {
	for i := range c.attrs {
		c.attrs[i].clear()
		c.names[i].clear()
	}
}

func (c *cache) attr(ino Ino) *shard[Ino, *Attr] { return &c.attrs[ino%cacheShards] }

func (c *cache) name(parent Ino, name string) *shard[nameKey, nameVal] {
	return &c.names[nameShard(parent, name)]
}

func nameShard(parent Ino, name string) uint64 {
	return (NameCookie(name) + uint64(parent)) % cacheShards
}

// sizes returns how many attributes and names are held.
func (c *cache) sizes() (attrs, names int) {
	for i := range c.attrs {
		attrs += c.attrs[i].size()
		names += c.names[i].size()
	}
	return attrs, names
}
