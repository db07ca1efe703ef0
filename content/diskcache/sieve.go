package diskcache

import (
	"container/list"

	"nexusfs/meta"
)

// sieve decides which blobs stay, within a bound in bytes, by the policy of
// that name: blobs stand in a queue in the order in which they came; a hit
// leaves a mark and moves nothing; a hand goes from the oldest to the newest,
// takes marks away, and evicts the first blob without one. Blobs that are read
// once go early, so that a scan does not empty the cache. Its methods must not
// run concurrently.
type sieve struct {
	limit, bytes int64
	at           map[meta.BlobID]*list.Element
	queue        list.List     // of *kept, newest in front
	hand         *list.Element // where to look next; nil: at the oldest
}

// kept is a blob in the cache.
type kept struct {
	place  meta.Blob // in the body
	marked bool      // read since the hand came by
}

func newSieve(limit int64) *sieve {
	return &sieve{limit: limit, at: make(map[meta.BlobID]*list.Element)}
}

// cost is what a blob takes on the disk, roughly: whole blocks, and one for its
// leaf table and inode.
func cost(b meta.Blob) int64 {
	const block = 4096
	return (b.Size+block-1)/block*block + block
}

// has reports whether a blob is kept, without a mark.
func (s *sieve) has(id meta.BlobID) bool { return s.at[id] != nil }

// get returns where a blob is and marks it as read.
func (s *sieve) get(id meta.BlobID) (meta.Blob, bool) {
	e := s.at[id]
	if e == nil {
		return meta.Blob{}, false
	}
	k := e.Value.(*kept)
	k.marked = true
	return k.place, true
}

// add takes in a blob and returns which places are not needed any more: those
// of evicted blobs, or the new one if the blob is kept already.
func (s *sieve) add(place meta.Blob) (out []meta.Blob) {
	if s.at[place.ID] != nil {
		return []meta.Blob{place}
	}
	for s.bytes+cost(place) > s.limit && s.queue.Len() > 0 {
		out = append(out, s.evict())
	}
	s.at[place.ID] = s.queue.PushFront(&kept{place: place})
	s.bytes += cost(place)
	return out
}

// evict takes out the blob that the hand finds.
func (s *sieve) evict() meta.Blob {
	for {
		e := s.hand
		if e == nil {
			e = s.queue.Back()
		}
		k := e.Value.(*kept)
		if !k.marked {
			s.hand = e // remove moves it on
			s.remove(e)
			return k.place
		}
		k.marked = false
		s.hand = e.Prev()
	}
}

// drop takes out a blob, if it is at this place.
func (s *sieve) drop(place meta.Blob) bool {
	e := s.at[place.ID]
	if e == nil || e.Value.(*kept).place != place {
		return false
	}
	s.remove(e)
	return true
}

// move gives a blob another place, if it is at the old one.
func (s *sieve) move(from, to meta.Blob) bool {
	e := s.at[from.ID]
	if e == nil || e.Value.(*kept).place != from {
		return false
	}
	e.Value.(*kept).place = to
	return true
}

func (s *sieve) remove(e *list.Element) {
	if s.hand == e {
		s.hand = e.Prev()
	}
	k := s.queue.Remove(e).(*kept)
	delete(s.at, k.place.ID)
	s.bytes -= cost(k.place)
}
