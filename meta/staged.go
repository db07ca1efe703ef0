package meta

import "sort"

// Staged content is what write(2) has left in memory: an ordered list of runs
// that do not overlap. A run lies inside one BlobMax-aligned chunk of the file,
// so that a blob never spans a chunk's border. A chunk that was filled is
// sealed: its bytes no longer change and are stored early, in the background,
// so that a close has little left to do; writing over a sealed chunk cuts it.

// Named limits of staging.
const (
	runsMax     = 4096 // runs of one file; more are committed
	runOverhead = 128  // what a run costs besides its bytes
)

// run is one piece of staged content.
type run struct {
	off, n int64
	buf    *buffer // of bytes that may change; nil for a part of a sealed chunk
	lo     int64   // where the run begins in buf, or in the sealed chunk
	seal   *sealed
}

func (r *run) end() int64 { return r.off + r.n }

// bytes returns the run's bytes; nil when they are only in the content store.
func (r *run) bytes() []byte {
	b := r.buf
	if r.seal != nil {
		b = r.seal.buf
	}
	if b == nil {
		return nil
	}
	return b.b[r.lo : r.lo+r.n]
}

// sealed is a filled chunk on its way to the content store, or there already.
// Fields are guarded by the node's mu; the bytes of buf do not change.
type sealed struct {
	n      *node
	buf    *buffer  // nil once stored
	refs   int      // runs that show parts of it
	work   *putting // under way; nil otherwise
	stored bool     // blob is valid
	blob   Blob
	fresh  bool // this chunk was stored for us; otherwise the zone had the blob
}

// putting is one attempt to store a sealed chunk.
type putting struct {
	done chan struct{}
	err  error // valid once done is closed
}

// stage is the staged content of one file, or the part of it that is being
// committed. Guarded by the node's mu.
type stage struct {
	runs   []run      // ascending
	mem    int64      // bytes of memory held, sealed chunks left out
	mtime  int64      // of the last write
	since  int64      // when the oldest byte was written; 0: nothing is staged
	writer uint64     // handle of the last write
	caller Caller     // who made it
	others []writerID // who wrote besides, for the record

	// Bytes from tail on were all appended to what was the file's end: they go to
	// where that is when they are committed, should another daemon have moved it (P8).
	appends bool
	tail    int64
}

// writerID names a writer in records.
type writerID struct{ uid, pid uint32 }

// search returns the first run that ends at or behind off.
func (s *stage) search(off int64) int {
	return sort.Search(len(s.runs), func(i int) bool { return s.runs[i].end() >= off })
}

// end is the end of the last byte.
func (s *stage) end() int64 {
	if len(s.runs) == 0 {
		return 0
	}
	return s.runs[len(s.runs)-1].end()
}

func chunkOf(off int64) int64 { return off / BlobMax }

// chunkEnd is where off's chunk ends; the last chunk of all is cut at SizeMax.
func chunkEnd(off int64) int64 {
	if c := chunkOf(off); c < SizeMax/BlobMax {
		return (c + 1) * BlobMax
	}
	return SizeMax
}

// write stages data at off. All of it lies inside one chunk. It returns the
// index of the run that now holds it.
func (s *stage) write(off int64, data []byte) int {
	end := off + int64(len(data))
	i := s.search(off)
	for ; i < len(s.runs) && s.runs[i].off <= off; i++ { // at most two: one that ends at off, one that begins there
		if r := &s.runs[i]; r.seal == nil && chunkOf(r.off) == chunkOf(off) && r.end() >= off {
			if end > r.end() {
				s.clear(i+1, r.end(), end)
				s.extend(&s.runs[i], end)
			}
			r = &s.runs[i]
			copy(r.buf.b[r.lo+off-r.off:], data)
			return i
		}
	}
	i = s.clear(s.search(off), off, end)
	sequential := i > 0 && s.runs[i-1].end() == off && off%BlobMax == 0
	need := int64(len(data))
	if sequential {
		need = BlobMax
	}
	buf := newBuffer(grown(need, chunkEnd(off)-off))
	copy(buf.b, data)
	s.insert(i, run{off: off, n: int64(len(data)), buf: buf})
	return i
}

// appended notes a write at the file's end; committed is the size that the file
// has without what is staged.
func (s *stage) appended(off, committed int64) {
	if !s.appends && off == committed {
		s.appends, s.tail = true, off
	}
}

// placed notes a write at an offset of the caller's choice.
func (s *stage) placed(end int64) {
	if s.appends && end > s.tail {
		s.appends = false
	}
}

// extend makes room up to end in a run and lengthens it; the new bytes are the
// caller's to fill.
func (s *stage) extend(r *run, end int64) {
	need := end - r.off
	if r.lo+need > r.buf.size() {
		buf := newBuffer(grown(need, chunkEnd(r.off)-r.off))
		copy(buf.b, r.bytes())
		s.mem += buf.size() - r.buf.size()
		r.buf.free()
		r.buf, r.lo = buf, 0
	}
	r.n = need
}

func (s *stage) insert(i int, r run) {
	s.runs = append(s.runs, run{})
	copy(s.runs[i+1:], s.runs[i:])
	s.runs[i] = r
	s.mem += runOverhead
	if r.buf != nil {
		s.mem += r.buf.size()
	}
}

// clear takes [a, b) out of the runs from index i on and returns the index at
// which a run beginning at a belongs.
func (s *stage) clear(i int, a, b int64) int {
	for i < len(s.runs) && s.runs[i].end() <= a {
		i++
	}
	if i < len(s.runs) && s.runs[i].off < a {
		if s.runs[i].end() > b {
			s.split(i, b)
		}
		s.runs[i].n = a - s.runs[i].off
		i++
	}
	j := i
	for ; j < len(s.runs) && s.runs[j].end() <= b; j++ {
		s.drop(&s.runs[j])
	}
	if j > i {
		kept := copy(s.runs[i:], s.runs[j:])
		clear(s.runs[i+kept:])
		s.runs = s.runs[:i+kept]
	}
	if i < len(s.runs) && s.runs[i].off < b {
		r := &s.runs[i]
		cut := b - r.off
		r.off, r.lo, r.n = b, r.lo+cut, r.n-cut
	}
	return i
}

// split cuts run i in two at off.
func (s *stage) split(i int, off int64) {
	r := s.runs[i]
	right := run{off: off, n: r.end() - off, lo: r.lo + off - r.off, seal: r.seal}
	if r.seal != nil {
		r.seal.refs++
	} else {
		right.buf = newBuffer(right.n)
		copy(right.buf.b, r.bytes()[off-r.off:])
		right.lo = 0
	}
	s.insert(i+1, right)
	s.runs[i].n = off - r.off
}

// drop releases what a run holds; the caller takes it out of the list.
func (s *stage) drop(r *run) {
	s.mem -= runOverhead
	if r.seal != nil {
		r.seal.refs--
		if r.seal.refs == 0 {
			r.seal.n.unused = append(r.seal.n.unused, r.seal)
		}
		return
	}
	s.mem -= r.buf.size()
	r.buf.free()
}

// sealRun turns a run that fills its chunk into a sealed one.
func (s *stage) sealRun(i int, n *node) *sealed {
	r := &s.runs[i]
	p := &sealed{n: n, buf: r.buf, refs: 1}
	s.mem -= r.buf.size()
	r.seal, r.buf = p, nil
	return p
}

// full reports whether run i fills its chunk and may still change.
func (s *stage) full(i int) bool {
	r := &s.runs[i]
	return r.seal == nil && r.n == BlobMax && r.lo == 0
}

// under puts an older stage below s: where both have bytes, those of s count.
// The older one is empty after.
func (s *stage) under(old *stage) {
	merged := stage{runs: old.runs, mem: old.mem, mtime: old.mtime, since: old.since,
		writer: old.writer, caller: old.caller, others: old.others,
		appends: old.appends && (len(s.runs) == 0 || s.appends), tail: old.tail}
	for i := range s.runs {
		r := &s.runs[i]
		if r.seal != nil {
			merged.insert(merged.clear(merged.search(r.off), r.off, r.end()), *r)
			continue
		}
		merged.write(r.off, r.bytes())
		r.buf.free()
	}
	if s.since != 0 {
		merged.mtime = s.mtime
		for _, w := range s.others {
			merged.wrote(w)
		}
		if s.writer != 0 {
			merged.writer, merged.caller = s.writer, s.caller
		}
	}
	*s, *old = merged, stage{}
}

// othersMax bounds the writers that a record names.
const othersMax = 8

// wrote notes a writer.
func (s *stage) wrote(w writerID) {
	for _, o := range s.others {
		if o == w {
			return
		}
	}
	if len(s.others) < othersMax {
		s.others = append(s.others, w)
	}
}

// release drops everything.
func (s *stage) release() {
	for i := range s.runs {
		s.drop(&s.runs[i])
	}
	*s = stage{}
}
