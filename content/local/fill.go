package local

import (
	"golang.org/x/sys/unix"
)

// A flush of bytes that replace zeros already on the disk is cheaper than one
// that also has to allocate blocks and move the end of the file. Zeros are
// therefore written ahead in the background, but only while the store is
// synced often and little at a time; a bulk load would only write twice.
const (
	fillStep   = 256 << 10 // written at a time
	fillMin    = 1 << 20   // ahead of a small segment
	fillMax    = 8 << 20   // ahead of a large one
	fillIfSync = 512 << 10 // a flush of at most this much makes filling worth it
	fillSpare  = 2 << 30   // not when the disk has less than this left
)

var zeros [fillStep]byte

// fillWant returns how far ahead of tail zeros should reach: as much again as
// the segment holds, so that a small store stays small.
func fillWant(tail int64) int64 { return min(max(tail, fillMin), fillMax) }

// needsFill reports whether less than half of what is wanted is left.
func (p *packs) needsFill() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.active
	return s != nil && s.tail < p.max && s.size-s.tail < fillWant(s.tail)/2 && s.size < p.max
}

// claimFill takes the next step of the active segment for writing zeros.
func (p *packs) claimFill() (s *segment, from, to int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s = p.active
	if s == nil || s.fillTo > s.fillFrom {
		return nil, 0, 0
	}
	from = max(s.size, s.tail)
	to = min(from+fillStep, p.max)
	if from-s.tail >= fillWant(s.tail) || to <= from {
		return nil, 0, 0
	}
	s.fillFrom, s.fillTo = from, to
	s.pending++
	return s, from, to
}

// endFill notes the end of a step.
func (p *packs) endFill(s *segment, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err == nil {
		p.grow(s, s.fillTo)
	}
	s.fillFrom, s.fillTo = 0, 0
	s.pending--
	p.filled.Broadcast()
	p.settle(s)
}

// fillAhead writes zeros until there are enough or the disk is short of space,
// and flushes them, so that the next Sync does not have to. A write that fails
// is not an error: appending works without. A flush that fails is one.
func (s *Store) fillAhead() {
	var last *openFD
	for s.broken() == nil && !s.work.stopping() {
		var st unix.Statfs_t
		if unix.Statfs(s.opts.Dir, &st) != nil || int64(st.Bavail)*st.Bsize < fillSpare {
			break
		}
		seg, from, to := s.packs.claimFill()
		if seg == nil {
			break
		}
		fd := seg.fd.hold() // held by the claim: a segment with pending work keeps its file
		err := pwriteFull(fd.fd, zeros[:to-from], from)
		s.packs.endFill(seg, err)
		if last != nil {
			last.release()
		}
		last = fd
		if err != nil {
			break
		}
	}
	if last == nil {
		return
	}
	defer last.release()
	if err := s.syncer.Fdatasync(last.fd); err != nil {
		s.fail(err)
	}
}
