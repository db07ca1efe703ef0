package local

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"nexusfs/content"
	"nexusfs/meta"
)

// packs are the segments of a store: append-only files of records. Appenders
// take their place under mu and write outside of it.
type packs struct {
	root     string // the store's folder
	dir      string // of this writer's segments
	base     int64  // what this writer's segment numbers begin with
	max      int64  // bytes at which a segment is full
	readOnly bool
	fresh    bool // begin with a new segment: another machine may still write to the newest
	aside    bool // held for the moment: nothing is appended, bytes are not counted
	fds      *fdCache

	marking sync.Mutex // held over the 64 bytes that mark a record dead; taken alone

	mu       sync.Mutex
	filled   sync.Cond             // a step of writing zeros ahead has ended
	segs     map[int64]*segment    // guarded by mu
	active   *segment              // guarded by mu; nil before the first append
	last     int64                 // highest number in use or used; guarded by mu
	dirty    map[*segment]struct{} // with unsynced > 0; guarded by mu
	newNames bool                  // the directory has names that were not synced; guarded by mu
	retired  map[int64]struct{}    // removed by this process; guarded by mu
	bytes    int64                 // of all segments, on the disk; guarded by mu
	scratch  sync.Pool             // of *appendScratch
}

// segment is one segment file. All fields but n are guarded by packs.mu.
//
// INVARIANT: tail <= fillFrom <= fillTo while zeros are written ahead; nobody
// writes at or behind tail but the one who fills.
type segment struct {
	n        int64
	fd       *openFD // held while it is appended to or unsynced
	tail     int64   // where the next record goes
	size     int64   // written up to here, records or zeros
	fillFrom int64   // zeros are being written from here
	fillTo   int64   // to here; equal when they are not
	pending  int     // appends and fills under way
	unsynced int64   // bytes of records not synced yet
	live     int64   // bytes of records not given back, when counted
	dead     int64   // bytes of records given back, when counted
	frees    int64   // counts changes of dead, so that a count knows that it is old
	counted  bool    // live and dead are known
	mine     bool    // appended to by this process: records may not be referred to yet
	sealed   bool    // full
}

// appendScratch is the room for what surrounds a record's data.
type appendScratch struct {
	head   [headerSize]byte
	foot   [footerSize + recordAlign]byte
	pieces [4][]byte
}

func newPacks(o Options, writer int64, fds *fdCache) *packs {
	base := writer << segmentBits
	p := &packs{
		root: o.Dir, dir: filepath.Join(folderPath(o.Dir, writer), "segments"), base: base, last: base,
		max: o.SegmentSize, readOnly: o.ReadOnly, fds: fds,
		segs: make(map[int64]*segment), dirty: make(map[*segment]struct{}), retired: make(map[int64]struct{}),
	}
	p.filled.L = &p.mu
	p.scratch.New = func() any { return new(appendScratch) }
	return p
}

// path names a segment's file, whoever's it is.
func (p *packs) path(n int64) string { return segmentPath(p.root, n) }

// segmentNumber parses the name of a segment file.
func segmentNumber(name string) (int64, bool) {
	digits, ok := strings.CutSuffix(name, ".seg")
	n, err := strconv.ParseInt(digits, 10, 64)
	return n, ok && err == nil && n > 0 && n < 1<<segmentBits && name == fmt.Sprintf("%08d.seg", n)
}

// list returns the numbers of the segments that are on the disk, ascending.
func (p *packs) list() ([]int64, error) {
	f, err := os.Open(p.dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	var out []int64
	for _, name := range names {
		if n, ok := segmentNumber(name); ok {
			out = append(out, p.base|n)
		}
	}
	slices.Sort(out)
	return out, nil
}

// load lists the segments and finds the end of the newest.
func (p *packs) load() error {
	list, err := p.list()
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, n := range list {
		p.segs[n] = &segment{n: n, sealed: true}
		p.last = n
	}
	if p.aside {
		return nil
	}
	for _, s := range p.segs {
		var st unix.Stat_t
		if err := unix.Stat(p.path(s.n), &st); err == nil {
			p.bytes += st.Blocks * 512
		}
	}
	if p.last == p.base || p.readOnly || p.fresh {
		return nil
	}
	return p.resume(p.segs[p.last])
}

// resume makes the newest segment the active one, if there is room in it.
// What a stop in the middle of an append left is not looked at: SQL alone
// knows what exists, so all that counts is that no record is written over.
// mu is held (nobody else has the store yet).
func (p *packs) resume(s *segment) error {
	o, err := p.open(s.n)
	if err != nil {
		return err
	}
	s.size, s.tail, err = findTail(o.fd)
	if err == nil {
		s.tail, err = behindAbandoned(o.fd, s.tail)
	}
	if err != nil || s.tail+recordAlign > p.max {
		o.release()
		return err
	}
	s.sealed, s.fd = false, o
	p.active = s
	return nil
}

// open returns a segment's open file; the caller releases it.
func (p *packs) open(n int64) (*openFD, error) {
	key := fdKey{segment: n}
	if o := p.fds.get(key); o != nil {
		return o, nil
	}
	flags := unix.O_RDWR
	if p.readOnly || n&^(1<<segmentBits-1) != p.base {
		flags = unix.O_RDONLY
	}
	fd, err := openFile(p.path(n), flags)
	if err != nil {
		return nil, err
	}
	return p.fds.add(key, fd), nil
}

// append writes one record and returns its place. data is nil for kindLeaves,
// table for a blob of one leaf. early is not nil when enough has gathered for
// the kernel to begin writing; the caller releases it.
func (p *packs) append(h header, table, data []byte) (n, off int64, early *openFD, err error) {
	length := h.length()
	s, off, err := p.reserve(length)
	if err != nil {
		return 0, 0, nil, err
	}
	sc := p.scratch.Get().(*appendScratch)
	encodeHeader(sc.head[:], h)
	pad := length - headerSize - content.TableLen(h.Size) - int64(len(data)) - footerSize
	clear(sc.foot[:pad])
	encodeFooter(sc.foot[pad:], h)
	sc.pieces = [4][]byte{sc.head[:], table, data, sc.foot[:pad+footerSize]}
	// gofail: var contentBeforeAppend struct{}
	err = pwritevFull(s.fd.fd, sc.pieces[:], off)
	// gofail: var contentAfterAppend struct{}
	sc.pieces = [4][]byte{}
	p.scratch.Put(sc)
	early = p.finish(s, off, length, err)
	return s.n, off, early, err
}

// appendLarge writes a data record whose bytes go to the disk while hash names
// them. early is as in append.
func (p *packs) appendLarge(data []byte, hash func([]byte) (meta.BlobID, []byte)) (b meta.Blob, early *openFD, err error) {
	h := header{Kind: kindData, State: stateOpen, Size: int64(len(data))}
	length := h.length()
	s, off, err := p.reserve(length)
	if err != nil {
		return meta.Blob{}, nil, err
	}
	sc := p.scratch.Get().(*appendScratch)
	defer p.scratch.Put(sc)
	encodeHeader(sc.head[:], h)
	wrote := make(chan error, 1)
	go func() {
		err := pwriteFull(s.fd.fd, sc.head[:], off)
		if err == nil {
			// gofail: var contentBeforeAppendData struct{}
			err = pwriteFull(s.fd.fd, data, off+h.dataOffset())
		}
		wrote <- err
	}()
	id, table := hash(data)
	if err = <-wrote; err == nil {
		h.State, h.ID = stateLive, id
		encodeFooter(sc.foot[:], h)
		err = pwriteFull(s.fd.fd, sc.foot[:footerSize], off+length-footerSize)
	}
	if err == nil {
		// gofail: var contentBeforeAppendHeader struct{}
		encodeHeader(sc.head[:], h)
		sc.pieces = [4][]byte{sc.head[:], table}
		err = pwritevFull(s.fd.fd, sc.pieces[:2], off)
		sc.pieces = [4][]byte{}
	}
	early = p.finish(s, off, length, err)
	return blobOf(s.n, off, h), early, err
}

// reserve takes the next length bytes. The segment's file stays open until finish.
func (p *packs) reserve(length int64) (*segment, int64, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		s := p.active
		if s == nil || s.tail > 0 && s.tail+length > p.max {
			if err := p.roll(); err != nil {
				return nil, 0, err
			}
			continue
		}
		if s.fillTo > s.fillFrom && s.tail+length > s.fillFrom {
			p.filled.Wait() // the zeros must not land on the record
			continue
		}
		off := s.tail
		s.tail += length
		s.pending++
		s.mine = true
		return s, off, nil
	}
}

// roll begins the next segment and seals the one before. mu is held.
func (p *packs) roll() error {
	n := p.last + 1
	fd, err := openFile(p.path(n), unix.O_RDWR|unix.O_CREAT|unix.O_EXCL)
	if err != nil {
		return err
	}
	p.last = n
	p.newNames = true
	if old := p.active; old != nil {
		old.sealed = true
		p.settle(old)
	}
	p.active = &segment{n: n, fd: p.fds.add(fdKey{segment: n}, fd), counted: true, mine: true}
	p.segs[n] = p.active
	return nil
}

// writebackStep is how many bytes of records are gathered before the kernel
// is asked to begin writing them.
const writebackStep = 1 << 20

// finish ends an append. When enough has gathered it returns the file, whose
// writing may begin; the caller releases it.
func (p *packs) finish(s *segment, off, length int64, err error) (early *openFD) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s.pending--
	switch {
	case err == nil:
		s.unsynced += length
		s.live += length
		p.dirty[s] = struct{}{}
		p.grow(s, off+length)
		if off/writebackStep != (off+length)/writebackStep {
			early = s.fd.hold()
		}
	case s.tail == off+length:
		// Nobody came behind: the place is taken back. Otherwise it stays a
		// gap without a footer, which no scan takes for a record.
		s.tail = off
		if s.fillTo == s.fillFrom && s.size <= off {
			unix.Ftruncate(s.fd.fd, off) // gives back what a full disk took in part
		}
	}
	p.settle(s)
	return early
}

// grow notes that a segment was written up to end. mu is held.
func (p *packs) grow(s *segment, end int64) {
	if end > s.size {
		p.bytes += end - s.size
		s.size = end
	}
}

// settle cuts off the zeros behind a sealed segment that nobody writes to any
// more and lets its file go when it is synced. mu is held.
func (p *packs) settle(s *segment) {
	if !s.sealed || s.pending > 0 || s.fd == nil {
		return
	}
	if s.size > s.tail && unix.Ftruncate(s.fd.fd, s.tail) == nil {
		p.bytes -= s.size - s.tail
		s.size = s.tail
	}
	if s.unsynced == 0 {
		s.fd.release()
		s.fd = nil
	}
}

// dirtySegment is a segment with bytes to sync, its file held open.
type dirtySegment struct {
	s     *segment
	fd    *openFD
	bytes int64
}

// takeDirty returns what must be synced; synced follows for each.
func (p *packs) takeDirty() (segs []dirtySegment, newNames bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for s := range p.dirty {
		segs = append(segs, dirtySegment{s, s.fd.hold(), s.unsynced})
	}
	newNames, p.newNames = p.newNames, false
	return segs, newNames
}

// synced notes what a flush made durable.
func (p *packs) synced(d dirtySegment) {
	p.mu.Lock()
	defer p.mu.Unlock()
	d.s.unsynced -= d.bytes
	if d.s.unsynced <= 0 {
		d.s.unsynced = 0
		delete(p.dirty, d.s)
	}
	p.settle(d.s)
}

// dirtyCount returns how many segments have something to sync.
func (p *packs) dirtyCount() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.dirty)
}

// isRetired reports whether this process removed the segment.
func (p *packs) isRetired(n int64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, ok := p.retired[n]
	return ok
}

// retire takes a segment out of the table; false: it was out already, or must
// stay. remove follows. The number of a segment is never used twice, so the
// newest goes only when the next one is there; rolled says that it was made,
// and must be durable before remove.
func (p *packs) retire(n int64) (ok, rolled bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.segs[n]
	if s == nil || s == p.active || s.pending > 0 {
		return false, false
	}
	if n == p.last {
		if p.roll() != nil {
			return false, false // the disk is full, say: it goes another time
		}
		rolled = true
	}
	p.retired[n] = struct{}{}
	delete(p.segs, n)
	delete(p.dirty, s)
	s.unsynced = 0
	p.settle(s)
	return true, rolled
}

// remove deletes a retired segment's file.
func (p *packs) remove(n int64) error {
	var st unix.Stat_t
	if unix.Stat(p.path(n), &st) == nil {
		p.mu.Lock()
		p.bytes -= st.Blocks * 512
		p.mu.Unlock()
	}
	err := unix.Unlink(p.path(n))
	p.fds.drop(fdKey{segment: n})
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove %s: %w", p.path(n), err)
	}
	return nil
}

// sealed returns the numbers of the segments to which this process does not
// append, ascending.
func (p *packs) sealed() []int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []int64
	for n, s := range p.segs {
		if (s.sealed || !s.mine) && s.pending == 0 {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return out
}

// seal makes sure that nothing is appended to a segment any more; false: this
// process has begun to.
func (p *packs) seal(n int64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.segs[n]
	if s == nil || s.pending > 0 || s == p.active && s.mine {
		return false
	}
	if s == p.active {
		p.active = nil
		s.sealed = true
		p.settle(s)
	}
	return true
}

// stats returns the number of segments, their bytes on the disk and the
// unsynced bytes in them.
func (p *packs) stats() (count, bytes, unsynced int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for s := range p.dirty {
		unsynced += s.unsynced
	}
	return int64(len(p.segs)), max(p.bytes, 0), unsynced
}

// place returns where the next record goes, or a place before it.
func (p *packs) place() meta.Blob {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.active == nil {
		return meta.Blob{Segment: p.last + 1}
	}
	return meta.Blob{Segment: p.active.n, Offset: p.active.tail}
}

// trim cuts the zeros off the active segment, for an orderly end.
func (p *packs) trim() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s := p.active; s != nil && s.size > s.tail && unix.Ftruncate(s.fd.fd, s.tail) == nil {
		s.size = s.tail
	}
}

// close lets the files go.
func (p *packs) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.segs {
		if s.fd != nil {
			s.fd.release()
			s.fd = nil
		}
	}
}

// blobOf describes the blob of a record.
func blobOf(n, off int64, h header) meta.Blob {
	b := meta.Blob{ID: h.ID, Size: h.Size, Place: meta.PlacePack, Segment: n, Offset: off}
	if h.Kind == kindLeaves {
		b.Place = meta.PlaceFile
	}
	return b
}
