package local

import (
	"context"
	"errors"
	"fmt"
	"io"
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
// keeps its segment. The segment that this process appends to is left alone. A first
// Compact after the start counts the records of some segments; later ones go
// on with the next. One runs at a time; it may run beside everything else.
func (s *Store) Compact(ctx context.Context, live func(meta.Blob) (bool, error), moved func(from, to meta.Blob) error) error {
	if err := s.enterWrite(ctx, "compact content"); err != nil {
		return err
	}
	defer s.life.leave()
	s.compacting.Lock()
	defer s.compacting.Unlock()
	counted := 0
	for _, n := range s.packs.sealed() {
		if ctx.Err() != nil {
			return meta.E("compact content", 0, "", meta.KindInterrupted, ctx.Err())
		}
		known, alive := s.packs.liveBytes(n)
		if known && !s.packs.wasteful(n, alive) {
			continue
		}
		if !known {
			if counted++; counted > countMax {
				continue
			}
		}
		c := compaction{s: s, n: n, live: live, moved: moved}
		if err := c.run(ctx); err != nil {
			return unwrapCallback("compact content", err)
		}
	}
	return nil
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

// compaction is the work on one segment.
type compaction struct {
	s     *Store
	n     int64
	live  func(meta.Blob) (bool, error)
	moved func(from, to meta.Blob) error

	alive    []meta.Blob // records to keep
	unwanted []meta.Blob // records that nobody freed and nobody refers to
	keep     bool        // something in it must or could not be moved
	wait     bool        // something in it may be on its way to its commit
}

// run counts the segment and, when it is worth it, empties it.
func (c *compaction) run(ctx context.Context) error {
	frees, mine, ok := c.s.packs.countState(c.n)
	if !ok {
		return nil
	}
	liveBytes, deadBytes, err := c.count(ctx, mine)
	if err != nil {
		return err
	}
	c.s.packs.setCount(c.n, frees, liveBytes, deadBytes)
	if !c.s.packs.wasteful(c.n, liveBytes) || c.wait || !c.s.packs.seal(c.n) {
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
		if err := c.s.free(b); err != nil {
			return err
		}
	}
	return c.s.removeSegment(c.n)
}

// count sorts the records.
func (c *compaction) count(ctx context.Context, mine bool) (liveBytes, deadBytes int64, err error) {
	strange, err := c.s.packs.scan(ctx, c.n, func(off int64, h header) error {
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
func (c *compaction) moveBatch() error {
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
		drop := from[i]
		if err != nil {
			c.keep = true
			drop = to[i]
		}
		if freeErr := c.s.free(drop); freeErr != nil {
			return freeErr
		}
		if err != nil && meta.KindOf(err) != meta.KindConflict {
			for _, b := range to[i+1:] {
				c.s.free(b)
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
