package local

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"

	"golang.org/x/sys/unix"

	"nexusfs/content"
	"nexusfs/meta"
)

// Bounds of one Compact.
const (
	countMax  = 64      // segments whose records are counted for the first time
	moveBatch = 8 << 20 // bytes copied between two flushes
)

// callback carries an error of the caller's function through ours unchanged.
type callback struct{ err error }

func (c callback) Error() string { return c.err.Error() }

func (c callback) wrap() error {
	if c.err == nil {
		return nil
	}
	return c
}

// unwrapCallback returns the caller's own error, or ours as an *Error.
func unwrapCallback(op string, err error) error {
	var c callback
	if errors.As(err, &c) {
		return c.err
	}
	return diskError(op, err)
}

// Compact frees segments that are mostly waste: it copies the living records, flushes the copies, calls moved for each, and then removes the
// segment. The old place is readable until moved has returned; what moved
// recorded must be durable by then, for the old place goes next. An error of
// moved of kind KindConflict means that the blob changed meanwhile: its copy is
// dropped and the segment stays until another time. Any other error of live or
// moved ends Compact and is returned.
//
// live is asked about each record that was not freed. A record that this
// process has put and that is not alive yet may be on its way to its commit: it
// keeps its segment. The segment that this process appends to is left alone. The
// folders of writers that have ended are compacted too, into this process's
// own; what live does not know there is garbage, so live must say yes as long as
// the session that put a record could still commit it. A first
// Compact after the start counts the records of some segments; later ones go
// on with the next. One runs at a time; it may run beside everything else.
func (s *Store) Compact(ctx context.Context, live func(meta.Blob) (bool, error), moved func(from, to meta.Blob) error) error {
	if err := s.enterWrite(ctx, "compact content"); err != nil {
		return err
	}
	defer s.life.leave()
	s.compacting.Lock()
	defer s.compacting.Unlock()
	defer s.fds.dropUnlinked()
	c := compaction{s: s, live: live, moved: moved}
	if err := c.folder(ctx, s.folder); err != nil {
		return unwrapCallback("compact content", err)
	}
	others, err := s.others()
	if err != nil {
		return diskError("compact content", err)
	}
	for _, w := range others {
		if err := c.adopted(ctx, w); err != nil {
			return unwrapCallback("compact content", err)
		}
	}
	return nil
}

// compaction is one Compact.
type compaction struct {
	s       *Store
	live    func(meta.Blob) (bool, error)
	moved   func(from, to meta.Blob) error
	counted int // segments counted for the first time
}

// adopted compacts the folder of another writer, if nobody holds it.
func (c *compaction) adopted(ctx context.Context, writer int64) error {
	f, err := c.s.adopt(writer)
	if errors.Is(err, errLocked) || errors.Is(err, errNoFolder) {
		return nil
	}
	if err != nil {
		return err
	}
	defer c.s.letGo(f)
	f.packs.recall(c.s.counted)
	defer f.packs.remember(c.s.counted)
	return c.folder(ctx, f)
}

// folder works on the segments of a held folder.
func (c *compaction) folder(ctx context.Context, f *folder) error {
	if err := c.s.workOff(f); err != nil {
		return err
	}
	for _, n := range f.packs.sealed() {
		if ctx.Err() != nil {
			return meta.E("compact content", 0, "", meta.KindInterrupted, ctx.Err())
		}
		known, alive := f.packs.liveBytes(n)
		if known && !f.packs.wasteful(n, alive) {
			continue
		}
		if !known {
			if c.counted++; c.counted > countMax {
				continue
			}
		}
		one := segmentCompaction{compaction: c, f: f, n: n}
		if err := one.run(ctx); err != nil {
			return err
		}
	}
	return nil
}

// countedSegment is what is remembered of a segment in a folder that was held
// for the moment, and how its file looked then.
type countedSegment struct {
	stamp      fileStamp
	live, dead int64
}

// recall takes over counts of segments that look as they did.
func (p *packs) recall(counted map[int64]countedSegment) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for n, s := range p.segs {
		c, ok := counted[n]
		if stamp, err := stampOfPath(p.path(n)); ok && err == nil && stamp == c.stamp {
			s.live, s.dead, s.counted = c.live, c.dead, true
		}
	}
}

// remember keeps the counts of this writer's segments, and of no others that
// it had.
func (p *packs) remember(counted map[int64]countedSegment) {
	p.mu.Lock()
	defer p.mu.Unlock()
	maps.DeleteFunc(counted, func(n int64, _ countedSegment) bool { return n>>segmentBits == p.base>>segmentBits })
	for n, s := range p.segs {
		if stamp, err := stampOfPath(p.path(n)); s.counted && err == nil {
			counted[n] = countedSegment{stamp, s.live, s.dead}
		}
	}
}

// liveBytes reports whether a segment's records were counted, and how many
// bytes of it are alive.
func (p *packs) liveBytes(n int64) (known bool, live int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.segs[n]
	if s == nil {
		return true, math.MaxInt64
	}
	return s.counted, s.live
}

// wasteful reports whether copying the live bytes of a segment is worth what
// it gives back: at least half of what the segment occupies, without what was
// punched out of it already. A segment of which hardly anything is left goes
// too, so that the number of files stays in proportion.
func (p *packs) wasteful(n, live int64) bool {
	var st unix.Stat_t
	if unix.Stat(p.path(n), &st) != nil {
		return false
	}
	return st.Blocks*512/2 >= live || live <= p.max/16 && st.Size/2 >= live
}

// countState returns what a count needs to know before it begins.
func (p *packs) countState(n int64) (frees int64, mine, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.segs[n]
	if s == nil {
		return 0, false, false
	}
	return s.frees, s.mine, true
}

// setCount stores the result of a count, unless records were freed meanwhile.
func (p *packs) setCount(n, frees, live, dead int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s := p.segs[n]; s != nil && s.frees == frees {
		s.live, s.dead, s.counted = live, dead, true
	}
}

// segmentCompaction is the work on one segment of a held folder.
type segmentCompaction struct {
	*compaction
	f *folder
	n int64

	alive    []meta.Blob // records to keep
	unwanted []meta.Blob // records that nobody freed and nobody refers to
	keep     bool        // something in it must or could not be moved
	wait     bool        // something in it may be on its way to its commit
}

// run counts the segment and, when it is worth it, empties it.
func (c *segmentCompaction) run(ctx context.Context) error {
	frees, mine, ok := c.f.packs.countState(c.n)
	if !ok {
		return nil
	}
	liveBytes, deadBytes, err := c.count(ctx, mine)
	if err != nil {
		return err
	}
	c.f.packs.setCount(c.n, frees, liveBytes, deadBytes)
	if !c.f.packs.wasteful(c.n, liveBytes) || c.wait || !c.f.packs.seal(c.n) {
		return nil
	}
	for len(c.alive) > 0 {
		if ctx.Err() != nil {
			return meta.E("compact content", 0, "", meta.KindInterrupted, ctx.Err())
		}
		if err := c.moveBatch(); err != nil {
			return err
		}
	}
	if c.keep {
		// With damaged headers in the segment, what looks like a record may be
		// a part of a living blob that holds a copy of one.
		return nil
	}
	for _, b := range c.unwanted {
		if err := c.s.freeIn(c.f, b); err != nil {
			return err
		}
	}
	return c.s.removeSegment(c.f, c.n)
}

// count sorts the records.
func (c *segmentCompaction) count(ctx context.Context, mine bool) (liveBytes, deadBytes int64, err error) {
	strange, err := c.f.packs.scan(ctx, c.n, func(off int64, h header) error {
		if h.State != stateLive {
			deadBytes += h.length()
			return nil
		}
		b := blobOf(c.n, off, h)
		alive, err := c.live(b)
		switch {
		case err != nil:
			return callback{err}
		case alive:
			liveBytes += h.length()
			c.alive = append(c.alive, b)
		case mine:
			liveBytes += h.length()
			c.wait = true
		default:
			deadBytes += h.length()
			c.unwanted = append(c.unwanted, b)
		}
		return nil
	})
	// What cannot be read as records may be living ones with a damaged header,
	// whose bytes are still sound: such a segment is emptied but not removed.
	c.keep = c.keep || strange > 0
	return liveBytes + strange, deadBytes, err
}

// moveBatch moves the next few living records: copy, flush, tell, give back.
func (c *segmentCompaction) moveBatch() error {
	var from, to []meta.Blob
	for bytes := int64(0); len(c.alive) > 0 && bytes < moveBatch; c.alive = c.alive[1:] {
		b := c.alive[0]
		copied, err := c.s.copyBlob(b)
		if kind := kindOfRead(err); kind == meta.KindDamaged {
			c.keep = true // fsck and the reader say so; the rest is moved
			c.s.explain("compact content", b, err)
			continue
		}
		if err != nil {
			return err
		}
		bytes += b.Size
		from, to = append(from, b), append(to, copied)
	}
	if err := c.s.syncShared(context.Background()); err != nil {
		return err
	}
	for i := range from {
		// gofail: var contentBeforeMoved struct{}
		err := c.moved(from[i], to[i])
		// gofail: var contentAfterMoved struct{}
		drop, where := from[i], c.f
		if err != nil {
			c.keep = true
			drop, where = to[i], c.s.folder
		}
		if freeErr := c.s.freeIn(where, drop); freeErr != nil {
			return freeErr
		}
		if err != nil && meta.KindOf(err) != meta.KindConflict {
			for _, b := range to[i+1:] {
				c.s.freeIn(c.s.folder, b)
			}
			return callback{err}
		}
	}
	return nil
}

// kindOfRead classifies the plain error of a read.
func kindOfRead(err error) meta.Kind {
	if errors.Is(err, errDamaged) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, unix.ENOENT) {
		return meta.KindDamaged
	}
	return kindOf(err)
}

// copyBlob stores b's record once more, verified, and links its file, if it
// has one, to the new place.
func (s *Store) copyBlob(b meta.Blob) (meta.Blob, error) {
	table, err := s.table(b)
	if err != nil {
		return meta.Blob{}, err
	}
	if b.Size <= content.LeafSize {
		table = nil
	}
	h := header{Kind: kindData, State: stateLive, Size: b.Size, ID: b.ID}
	var data []byte
	if b.Place == meta.PlaceFile {
		h.Kind = kindLeaves
	} else {
		data = make([]byte, b.Size)
		if err := s.read(b, 0, data); err != nil {
			return meta.Blob{}, err
		}
	}
	n, off, early, err := s.packs.append(h, table, data)
	s.work.startWriting(early)
	if err != nil {
		return meta.Blob{}, err
	}
	to := blobOf(n, off, h)
	if b.Place == meta.PlaceFile {
		if err = s.files.ensureDir(n); err == nil {
			err = unix.Link(s.files.path(b), s.files.path(to))
		}
		if err != nil {
			s.giveBack(n, off, h)
			return meta.Blob{}, fmt.Errorf("link %s: %w", s.files.path(b), err)
		}
		s.files.added(to, nil)
	}
	return to, nil
}
