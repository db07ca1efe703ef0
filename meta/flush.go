package meta

import (
	"context"
	"slices"
	"strconv"
)

// packPieces is how many small pieces of one commit ride in its transaction
// each on their own; more are packed into common blobs.
const packPieces = 32

// flushMode says what a flush commits.
type flushMode uint8

const (
	flushWrite  flushMode = iota // everything, as a version of the writing handle
	flushStream                  // everything, without a version: the handle stays open
	flushReady                   // what is stored already, without a version
)

// flight is staged content on its way into a commit. While it is under way its
// bytes do not change; reads see it below what was staged since.
type flight struct {
	n      *node
	stage  stage // guarded by n.mu
	kind   OpKind
	caller Caller

	owner   uint64 // whose version ownerN is, as this flight found it
	ownerN  int64
	version int64 // that plan made or moved; 0: none

	// Filled by prepare, read by plan.
	extents []Extent
	ranges  []RangeChange
	blobs   []NewBlob
	held    []heldBlob // blobs stored by prepare
	scratch []*buffer
	end     int64
}

// heldBlob is a blob that is pinned until the flight ends.
type heldBlob struct {
	blob  Blob
	fresh bool
}

// settleStaged commits what is staged of a file; nothing to do costs nothing.
func (fs *FS) settleStaged(ctx context.Context, c Caller, ino Ino) error {
	if fs.nodes.dirty.Load() == 0 {
		return nil
	}
	n := fs.useNode(ino)
	if n == nil {
		return nil
	}
	defer fs.closeNode(n)
	return fs.flush(ctx, c, n, flushWrite)
}

// flush commits what was staged of a file before the call. On an error the
// content is staged as before. It cannot be interrupted (P7).
func (fs *FS) flush(ctx context.Context, c Caller, n *node, mode flushMode) error {
	f := fs.takeOff(n, c, mode)
	if f == nil {
		return nil
	}
	ctx = context.WithoutCancel(ctx)
	err := f.prepare(ctx, fs)
	if err == nil {
		err = fs.syncFirst(ctx, f.blobs)
	}
	if err == nil {
		// gofail: var beforeFlushCommit struct{}
		_, err = fs.commit(ctx, f.caller, OriginKernel, f.plan)
		// gofail: var afterFlushCommit struct{}
	}
	fs.land(ctx, f, err)
	return err
}

// syncFirst makes content durable before a commit names it, on a store whose
// commits nobody takes back (P22, P23). Blobs that ride in the transaction need
// nothing.
func (fs *FS) syncFirst(ctx context.Context, blobs []NewBlob) error {
	outside := func(b NewBlob) bool { return b.Place != PlaceInline }
	if !fs.o.SyncFirst || !slices.ContainsFunc(blobs, outside) {
		return nil
	}
	if err := fs.o.Content.Sync(ctx); err != nil {
		return fs.fail(err)
	}
	return nil
}

// takeOff waits for a flush under way and takes what is staged; nil when there
// is nothing to commit.
func (fs *FS) takeOff(n *node, c Caller, mode flushMode) *flight {
	n.mu.Lock()
	defer n.mu.Unlock()
	for n.flight != nil {
		if n.landed == nil {
			n.landed = make(chan struct{})
		}
		landed := n.landed
		n.mu.Unlock()
		<-landed
		n.mu.Lock()
	}
	if len(n.staged.runs) == 0 && (mode != flushWrite || n.streamed == 0) {
		return nil
	}
	f := &flight{n: n, kind: OpWrite, caller: c}
	if c.PID == 0 && c.Resolve == nil || c.PID != 0 && c.same(n.staged.caller) {
		f.caller = n.staged.caller // nobody asked for it, or the last writer, of whom more is known
		f.caller.Calling = false
	}
	if mode == flushReady {
		if f.stage = n.staged.splitReady(); len(f.stage.runs) == 0 {
			return nil
		}
	} else {
		f.stage, n.staged = n.staged, stage{}
	}
	if mode != flushWrite {
		f.kind = OpWriteStream
	}
	f.owner, f.ownerN = n.owner, n.ownerN
	if f.stage.writer == 0 {
		f.stage.writer = n.streamed
	}
	n.putErr = nil
	n.flight = f
	fs.nodes.account(n)
	return f
}

// splitReady moves the stored chunks to a stage of their own.
func (s *stage) splitReady() stage {
	ready := stage{mtime: s.mtime, since: s.since, writer: s.writer, caller: s.caller, others: s.others, appends: s.appends, tail: s.tail}
	kept := s.runs[:0]
	for _, r := range s.runs {
		if r.seal != nil && r.seal.stored {
			ready.runs = append(ready.runs, r)
			ready.mem += runOverhead
		} else {
			kept = append(kept, r)
		}
	}
	clear(s.runs[len(kept):])
	s.runs = kept
	s.mem -= ready.mem
	if len(kept) == 0 {
		*s = stage{}
	}
	s.follow(&ready)
	return ready
}

// follow says where the appended bytes of s begin once those of ready, which
// were taken out of it, are committed: behind them. Where they lie among each
// other neither can be moved.
func (s *stage) follow(ready *stage) {
	if !s.appends || len(ready.runs) == 0 {
		return
	}
	end := max(ready.end(), s.tail)
	for i := range s.runs {
		if r := &s.runs[i]; r.end() > s.tail && r.off < end {
			s.appends, ready.appends = false, false
			return
		}
	}
	s.tail = end
}

// prepare stores what has to be stored before the commit (I6) and builds the
// rows.
func (f *flight) prepare(ctx context.Context, fs *FS) error {
	runs := f.stage.runs
	if len(runs) == 0 {
		return nil
	}
	f.end = f.stage.end()
	for i := range runs { // what is stored already has its room
		if runs[i].seal == nil {
			if err := fs.takeRoom(ctx, "write", f.n.ino, runs[i].n); err != nil {
				return err
			}
		}
	}
	if len(runs) == 1 && runs[0].seal == nil && runs[0].n <= InlineMax {
		f.inline(fs, runs[0].off, runs[0].bytes()) // a small file, or one small write: the way of most
	} else {
		small, bytes := countSmall(runs)
		p := packer{f: f, fs: fs}
		if small > packPieces {
			p.size = min(bytes, BlobMax)
		}
		for i := 0; i < len(runs); {
			j := pieceEnd(runs, i)
			if err := p.add(ctx, runs[i:j]); err != nil {
				return err
			}
			i = j
		}
		if err := p.close(ctx); err != nil {
			return err
		}
	}
	f.ranges = rangesOf(f.extents)
	return nil
}

// pieceEnd returns where the piece that begins at run i ends: a piece is a
// sealed run, or runs without a gap inside one chunk.
func pieceEnd(runs []run, i int) int {
	j := i + 1
	if runs[i].seal != nil {
		return j
	}
	for j < len(runs) && runs[j].seal == nil && runs[j].off == runs[j-1].end() && chunkOf(runs[j].off) == chunkOf(runs[i].off) {
		j++
	}
	return j
}

// countSmall counts the pieces that may ride in the transaction, and their bytes.
func countSmall(runs []run) (small int, bytes int64) {
	for i := 0; i < len(runs); {
		j := pieceEnd(runs, i)
		if runs[i].seal == nil && runs[j-1].end()-runs[i].off <= InlineMax {
			small++
			bytes += runs[j-1].end() - runs[i].off
		}
		i = j
	}
	return small, bytes
}

// inline adds a piece whose bytes ride in the transaction.
func (f *flight) inline(fs *FS, off int64, data []byte) {
	b := Blob{ID: fs.o.Content.ID(data), Size: int64(len(data)), Place: PlaceInline}
	f.extents = append(f.extents, Extent{Off: off, Len: b.Size, Blob: b})
	for i := range f.blobs {
		if f.blobs[i].ID == b.ID {
			return
		}
	}
	f.blobs = append(f.blobs, NewBlob{Blob: b, Data: data})
}

// put stores a piece's bytes outside of the transaction.
func (f *flight) put(ctx context.Context, fs *FS, data []byte) (Blob, error) {
	b, fresh, err := fs.keep(ctx, data)
	if err != nil {
		return Blob{}, err
	}
	f.held = append(f.held, heldBlob{b, fresh})
	f.blobs = append(f.blobs, NewBlob{Blob: b})
	return b, nil
}

// packer turns pieces into blobs and extents. Many small pieces far from each
// other (a database's pages) share blobs: one hash and one place for megabytes
// of them.
type packer struct {
	f    *flight
	fs   *FS
	size int64   // of a pack, 0: pieces are not packed
	buf  *buffer // bytes of the pack being filled
	n    int64
	from int // first extent that lies in it
}

// add adds one piece.
func (p *packer) add(ctx context.Context, runs []run) error {
	f, r := p.f, &runs[0]
	if r.seal != nil {
		return p.sealed(ctx, r)
	}
	n := runs[len(runs)-1].end() - r.off
	if p.size > 0 && n <= InlineMax {
		return p.small(ctx, runs, n)
	}
	data := r.bytes()
	if len(runs) > 1 {
		buf := newBuffer(n)
		f.scratch = append(f.scratch, buf)
		data = join(buf.b[:0], runs)
	}
	if n <= InlineMax {
		f.inline(p.fs, r.off, data)
		return nil
	}
	b, err := f.put(ctx, p.fs, data)
	if err != nil {
		return err
	}
	f.extents = append(f.extents, Extent{Off: r.off, Len: n, Blob: b})
	return nil
}

// join appends the bytes of runs to b.
func join(b []byte, runs []run) []byte {
	for i := range runs {
		b = append(b, runs[i].bytes()...)
	}
	return b
}

func (p *packer) sealed(ctx context.Context, r *run) error {
	if err := p.fs.storeSealed(ctx, r.seal); err != nil {
		return err
	}
	f := p.f
	f.extents = append(f.extents, Extent{Off: r.off, Len: r.n, Blob: r.seal.blob, BlobOff: r.lo})
	f.blobs = append(f.blobs, NewBlob{Blob: r.seal.blob})
	return nil
}

// small adds a piece to the pack.
func (p *packer) small(ctx context.Context, runs []run, n int64) error {
	if p.buf != nil && p.n+n > p.size {
		if err := p.close(ctx); err != nil {
			return err
		}
	}
	if p.buf == nil {
		p.buf, p.n, p.from = newBuffer(p.size), 0, len(p.f.extents)
	}
	join(p.buf.b[:p.n], runs)
	// Size -1 marks what close gives its blob.
	p.f.extents = append(p.f.extents, Extent{Off: runs[0].off, Len: n, BlobOff: p.n, Blob: Blob{Size: -1}})
	p.n += n
	return nil
}

// close stores the pack.
func (p *packer) close(ctx context.Context) error {
	if p.buf == nil {
		return nil
	}
	f, data := p.f, p.buf.b[:p.n]
	var b Blob
	if len(data) <= InlineMax {
		b = Blob{ID: p.fs.o.Content.ID(data), Size: int64(len(data)), Place: PlaceInline}
		f.blobs = append(f.blobs, NewBlob{Blob: b, Data: data})
		f.scratch = append(f.scratch, p.buf)
	} else {
		var err error
		b, err = f.put(ctx, p.fs, data)
		p.buf.free()
		if err != nil {
			p.buf = nil
			return err
		}
	}
	p.buf = nil
	for i := p.from; i < len(f.extents); i++ {
		if f.extents[i].Blob.Size == -1 {
			f.extents[i].Blob = b
		}
	}
	return nil
}

// rangesOf groups extents without gaps between them.
func rangesOf(extents []Extent) []RangeChange {
	var out []RangeChange
	for i := 0; i < len(extents); {
		j, end := i+1, extents[i].Off+extents[i].Len
		for j < len(extents) && extents[j].Off == end {
			end += extents[j].Len
			j++
		}
		out = append(out, RangeChange{Off: extents[i].Off, Len: end - extents[i].Off, Extents: extents[i:j:j]})
		i = j
	}
	return out
}

// written is one content operation's rows in one piece of memory.
type written struct {
	change  Change
	inode   [1]InodeChange
	content ContentChange
	version VersionChange
}

// plan is the rule of a flush: the file is as long as before or as what is
// written reaches, and its times are those of the last write(2).
func (f *flight) plan(v *view) (*Change, error) {
	n := f.n
	before, err := v.inode(n.ino)
	if err != nil {
		return nil, err
	}
	w := new(written)
	ch := &w.change
	after := *before
	if len(f.extents) > 0 {
		ranges, end, moved := f.landing(before.Size)
		if end > SizeMax {
			return nil, E("write", n.ino, "", KindTooBig, nil)
		}
		after.Size = max(before.Size, end)
		ch.Moved = moved
		after.Mtime, after.Ctime = f.stage.mtime, max(before.Ctime, f.stage.mtime)
		after.ContentRev = RevPending
		w.content = ContentChange{Ino: n.ino, Ranges: ranges, Blobs: f.blobs, Fresh: before.Size == 0}
		ch.Content = &w.content
	}
	if f.kind == OpWrite {
		w.version = nextVersion(before, f.stage.writer, f.owner, f.ownerN)
		w.version.Size, after.Version = after.Size, w.version.N
		ch.Version, f.version = &w.version, w.version.N
	}
	w.inode[0] = InodeChange{Before: before, After: after}
	ch.Inodes = w.inode[:]
	b, a := diff(before, &after)
	f.writers(&a)
	ch.Record = Record{Kind: f.kind, Ino: n.ino, Version: after.Version, Size: after.Size, Before: b.String(), After: a.String()}
	return ch, nil
}

// landing says where the content goes in a file of the given size: where it was
// written, but for appended bytes when the end is elsewhere by now (P8).
func (f *flight) landing(size int64) (ranges []RangeChange, end int64, moved bool) {
	delta := size - f.stage.tail
	if !f.stage.appends || delta == 0 || f.end <= f.stage.tail {
		return f.ranges, f.end, false
	}
	extents := append(shiftExtents(f.extents, 0, f.stage.tail, 0),
		shiftExtents(f.extents, f.stage.tail, SizeMax-f.stage.tail, delta)...)
	return rangesOf(extents), f.end + delta, true
}

// nextVersion says which version a content change of a handle makes or moves:
// a handle's first one makes a version, its later ones move it as long as
// nobody made a newer one (P1). Handle 0 makes a version of its own.
func nextVersion(before *Attr, handle, owner uint64, ownerN int64) VersionChange {
	if handle != 0 && owner == handle && ownerN == before.Version {
		return VersionChange{Ino: before.Ino, N: ownerN}
	}
	return VersionChange{Ino: before.Ino, N: before.Version + 1, New: true}
}

// writers names in the record who wrote besides the caller (P1).
func (f *flight) writers(o *object) {
	c, list := f.caller, ""
	for _, w := range f.stage.others {
		if w.uid == c.UID {
			continue // processes of one user: the caller speaks for them
		}
		if list != "" {
			list += ","
		}
		list += strconv.FormatUint(uint64(w.uid), 10) + "/" + strconv.FormatUint(uint64(w.pid), 10)
	}
	if list != "" {
		o.key("writers")
		o.b = append(append(append(o.b, '"'), list...), '"')
	}
}

// land ends a flight: what was committed is let go, what was not is staged
// again below what was written since.
func (fs *FS) land(ctx context.Context, f *flight, err error) {
	n := f.n
	n.mu.Lock()
	n.flight = nil
	if err == nil {
		switch {
		case f.version != 0:
			n.owner, n.ownerN, n.streamed = f.stage.writer, f.version, 0
		case f.stage.writer != 0:
			n.streamed = f.stage.writer
		}
		f.letGo()
		fs.unmap(n)
	} else {
		n.staged.under(&f.stage)
		if f.kind == OpWriteStream {
			n.putErr = err
		}
	}
	fs.nodes.account(n)
	landed := n.landed
	n.landed = nil
	n.mu.Unlock()
	if landed != nil {
		close(landed)
	}
	for _, b := range f.scratch {
		b.free()
	}
	var free []Blob
	for _, h := range f.held {
		if fs.superfluous(ctx, h, err == nil) {
			free = append(free, h.blob)
		}
	}
	fs.freeBlobs(ctx, free)
	fs.sweep(ctx, n)
}

// superfluous takes one pin back and says whether the blob's place is to be
// freed: when nothing was committed, and when the row names the place of
// another writer of the same bytes.
func (fs *FS) superfluous(ctx context.Context, h heldBlob, committed bool) bool {
	shared := fs.nodes.pins.done(h.blob.ID)
	if !h.fresh {
		return false
	}
	if !committed {
		return true
	}
	if !shared {
		return false
	}
	row, err := fs.o.Store.Blob(ctx, h.blob.ID)
	return err == nil && !samePlace(row, h.blob)
}

// letGo drops committed content; sealed chunks join what land takes the pins
// of. The caller holds n.mu.
func (f *flight) letGo() {
	s := &f.stage
	for i := range s.runs {
		r := &s.runs[i]
		if r.seal == nil {
			r.buf.free()
			continue
		}
		if r.seal.refs--; r.seal.refs == 0 {
			f.held = append(f.held, heldBlob{r.seal.blob, r.seal.fresh})
		}
	}
	*s = stage{}
}
