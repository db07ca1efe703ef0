package local

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"nexusfs/meta"
)

// scan calls fn for each whole record of a segment in order, dead and abandoned
// ones included. Bytes that are no record (a torn end, a gap, damage) are stepped over;
// strange counts them where they are not zero. A segment that is gone has no
// records.
func (p *packs) scan(ctx context.Context, n int64, fn func(off int64, h header) error) (strange int64, err error) {
	o, err := p.open(n)
	if errors.Is(err, unix.ENOENT) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer o.release()
	end, err := p.end(n, o.fd)
	if err != nil {
		return 0, err
	}
	var head [headerSize]byte
	for off := int64(0); off+headerSize+footerSize <= end; {
		if ctx.Err() != nil {
			return strange, meta.E("scan", 0, p.path(n), meta.KindInterrupted, ctx.Err())
		}
		if err := preadFull(o.fd, head[:], off); err != nil {
			return strange, fmt.Errorf("%s: %w", p.path(n), err)
		}
		h, err := decodeHeader(head[:])
		if err == nil && (h.State == stateOpen || off+h.length() <= end && hasFooter(o.fd, off, h)) {
			if err := fn(off, h); err != nil {
				return strange, err
			}
			off += h.length()
			continue
		}
		next, odd, err := nextMagic(o.fd, off, end)
		if err != nil {
			return strange, fmt.Errorf("%s: %w", p.path(n), err)
		}
		off, strange = next, strange+odd
	}
	return strange, nil
}

// end returns where a segment's records end.
func (p *packs) end(n int64, fd int) (int64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, fmt.Errorf("%s: %w", p.path(n), err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.active != nil && p.active.n == n {
		return min(st.Size, p.active.tail), nil
	}
	return st.Size, nil
}

func hasFooter(fd int, off int64, h header) bool {
	var foot [footerSize]byte
	err := preadFull(fd, foot[:], off+h.length()-footerSize)
	return err == nil && isFooter(foot[:], h)
}

// nextMagic finds the next place behind off where a record may begin, and how
// many bytes from off to there belong to lines that are not zero.
func nextMagic(fd int, off, end int64) (next, strange int64, err error) {
	var zero [recordAlign]byte
	buf := make([]byte, 64<<10)
	for start := off; off < end; off += int64(len(buf)) {
		part := buf[:min(end-off, int64(len(buf)))]
		if err := preadFull(fd, part, off); err != nil {
			return 0, 0, err
		}
		for i := 0; i < len(part); i += recordAlign {
			line := part[i:min(i+recordAlign, len(part))]
			if off+int64(i) > start && bytes.HasPrefix(line, []byte(headerMagic)) {
				return off + int64(i), strange, nil
			}
			if !bytes.Equal(line, zero[:len(line)]) {
				strange += int64(len(line))
			}
		}
	}
	return end, strange, nil
}

// readHeader reads the header at a place.
func (p *packs) readHeader(n, off int64) (header, error) {
	o, err := p.open(n)
	if err != nil {
		return header{}, err
	}
	defer o.release()
	var head [headerSize]byte
	if err := preadFull(o.fd, head[:], off); err != nil {
		return header{}, err
	}
	return decodeHeader(head[:])
}

// markDead gives back the place of a record: its header says so from now on
// and its blocks go back to the disk. What lies there must be the record that
// want describes, else nothing is done: after a power loss a place may hold
// another record than the one that SQL remembers. empty says that nothing
// alive is left in the segment, which may then be removed.
func (p *packs) markDead(n, off int64, want header) (empty bool, err error) {
	o, err := p.open(n)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer o.release()
	want.State = stateLive
	if marked, err := p.replaceHeader(o.fd, off, want); !marked || err != nil {
		return false, err
	}
	h := want
	// gofail: var contentBeforePunch struct{}
	freed := punch(o.fd, off+headerSize, off+h.length()-footerSize)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.bytes -= freed
	s := p.segs[n]
	if s == nil {
		return false, nil
	}
	s.live -= h.length()
	s.dead += h.length()
	s.frees++
	return s.counted && s.live <= 0 && s.sealed && s.pending == 0, nil
}

// replaceHeader marks the record at off dead if it is the one that want
// describes. Of two calls for one record one does it: its bytes are counted once.
func (p *packs) replaceHeader(fd int, off int64, want header) (marked bool, err error) {
	p.marking.Lock()
	defer p.marking.Unlock()
	var head [headerSize]byte
	if err := preadFull(fd, head[:], off); err != nil {
		return false, nil // the place is not there
	}
	h, err := decodeHeader(head[:])
	if err != nil || h != want {
		return false, nil
	}
	h.State = stateDead
	encodeHeader(head[:], h)
	if err := pwriteFull(fd, head[:], off); err != nil {
		return false, err
	}
	return true, nil
}

// punch gives back the blocks that lie wholly in [from, to) and returns how
// many bytes that was. A filesystem that cannot do it keeps them until the
// segment is compacted.
func punch(fd int, from, to int64) int64 {
	const block = 4096
	from, to = alignUp(from, block), alignDown(to, block)
	if to <= from {
		return 0
	}
	if unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, from, to-from) != nil {
		return 0
	}
	return to - from
}

// findTail returns the length of a segment and where what was written to it
// ends: behind the last byte that is not zero.
func findTail(fd int) (size, tail int64, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, 0, err
	}
	buf := make([]byte, 256<<10)
	for end := st.Size; end > 0; {
		from := max(end-int64(len(buf)), 0)
		part := buf[:end-from]
		if err := preadFull(fd, part, from); err != nil {
			return 0, 0, err
		}
		for i := len(part) - 1; i >= 0; i-- {
			if part[i] != 0 {
				return st.Size, alignUp(from+int64(i)+1, recordAlign), nil
			}
		}
		end = from
	}
	return st.Size, 0, nil
}

// behindAbandoned returns the tail behind records that a stop left half
// written. Their headers say how long they were to be, and a scan steps over
// that much: nothing may be put into it.
func behindAbandoned(fd int, tail int64) (int64, error) {
	longest := header{Kind: kindData, Size: meta.BlobMax}.length()
	from := max(tail-longest, 0)
	buf := make([]byte, tail-from)
	if err := preadFull(fd, buf[:max(min(int64(len(buf)), fileSize(fd)-from), 0)], from); err != nil {
		return 0, err
	}
	for i := 0; i+headerSize <= len(buf); i += recordAlign {
		if h, err := decodeHeader(buf[i:]); err == nil && h.State == stateOpen {
			tail = max(tail, from+int64(i)+h.length())
		}
	}
	return tail, nil
}

func fileSize(fd int) int64 {
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil {
		return 0
	}
	return st.Size
}

func alignUp(n, to int64) int64   { return (n + to - 1) &^ (to - 1) }
func alignDown(n, to int64) int64 { return n &^ (to - 1) }
