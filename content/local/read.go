package local

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"sync"

	"golang.org/x/sys/unix"

	"nexusfs/content"
	"nexusfs/meta"
)

// errDamaged marks bytes that are not those that the blob's name promises.
var errDamaged = errors.New("damaged")

// readChunk is how much is read before it is verified: it stays in the CPU's
// cache between the two.
const readChunk = 256 << 10

// leafBuffers holds room for leaves of which a part is asked for.
var leafBuffers = sync.Pool{New: func() any { return new([content.LeafSize]byte) }}

// source is where a blob's bytes are.
type source struct {
	s     *Store
	b     meta.Blob
	fd    *openFD
	base  int64  // offset of the first byte
	table []byte // verified leaf hashes
}

// path names the file, for messages.
func (src *source) path() string { return src.s.blobPath(src.b) }

func (s *Store) blobPath(b meta.Blob) string {
	if b.Place == meta.PlaceFile {
		return s.files.path(b)
	}
	return s.packs.path(b.Segment)
}

// Read fills p with the bytes of b from off on. Each of them was verified
// against b.ID when it came from the disk. Errors: KindInvalid (range),
// KindDamaged (logged once for each place, and counted), KindStale (the place
// was given back or moved since b was looked up, or another writer's file is not
// there: look it up again, and if it is the same it is damaged), KindIO,
// KindInterrupted, KindShutdown. p's content is undefined after an error.
func (s *Store) Read(ctx context.Context, b meta.Blob, off int64, p []byte) error {
	if err := s.enter(ctx, "read content"); err != nil {
		return err
	}
	defer s.life.leave()
	if off < 0 || b.Size <= 0 || b.Size > meta.BlobMax || off > b.Size-int64(len(p)) || b.Place == meta.PlaceInline {
		return meta.E("read content", 0, "", meta.KindInvalid,
			fmt.Errorf("%d bytes at %d of a blob of %d", len(p), off, b.Size))
	}
	if len(p) == 0 {
		return nil
	}
	if err := s.read(b, off, p); err != nil {
		return s.explain("read content", b, err)
	}
	s.reads.Add(1)
	s.readBytes.Add(int64(len(p)))
	return nil
}

// read is Read inside a call; its errors are plain. What another writer has put
// is looked at twice before an error is believed: an open file may be one that
// he has removed, and a network client may show old pages of it.
func (s *Store) read(b meta.Blob, off int64, p []byte) error {
	err := s.readOnce(b, off, p)
	if err != nil && s.foreign(b.Segment) {
		s.forgetOpen(b)
		err = s.readOnce(b, off, p)
	}
	return err
}

func (s *Store) readOnce(b meta.Blob, off int64, p []byte) error {
	src, err := s.source(b)
	if err != nil {
		return err
	}
	defer src.fd.release()
	return src.read(off, p)
}

// source opens what holds b and loads its leaf table. The caller releases src.fd.
func (s *Store) source(b meta.Blob) (source, error) {
	if b.Segment <= 0 || b.Offset < 0 {
		return source{}, fmt.Errorf("no such place: segment %d offset %d: %w", b.Segment, b.Offset, errDamaged)
	}
	src := source{s: s, b: b, base: b.Offset + headerSize + content.TableLen(b.Size)}
	var err error
	if b.Place == meta.PlaceFile {
		src.base = 0
		src.fd, err = s.openBlobFile(b)
	} else {
		src.fd, err = s.packs.open(b.Segment)
	}
	if err != nil {
		return source{}, err
	}
	if src.table, err = s.table(b); err != nil {
		src.fd.release()
		return source{}, err
	}
	return src, nil
}

// openBlobFile opens a blob's own file for reading; the caller releases it.
func (s *Store) openBlobFile(b meta.Blob) (*openFD, error) {
	if o := s.fds.get(fileKey(b)); o != nil {
		return o, nil
	}
	fd, err := openFile(s.files.path(b), unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	return s.fds.add(fileKey(b), fd), nil
}

// table returns b's leaf hashes, verified against its name.
func (s *Store) table(b meta.Blob) ([]byte, error) {
	if b.Size <= content.LeafSize {
		return b.ID[:], nil
	}
	if t := s.tables.Get(b.ID); t != nil {
		return t, nil
	}
	o, err := s.packs.open(b.Segment)
	if err != nil {
		return nil, err
	}
	defer o.release()
	t := make([]byte, content.TableLen(b.Size))
	at := b.Offset + headerSize
	if err := preadFull(o.fd, t, at); err != nil {
		return nil, fmt.Errorf("leaf table in %s: %w", s.packs.path(b.Segment), err)
	}
	if content.TreeID(b.Size, t) != b.ID {
		return nil, fmt.Errorf("leaf table in %s at %d does not match: %w", s.packs.path(b.Segment), at, errDamaged)
	}
	s.tables.Put(b.ID, t)
	return t, nil
}

// read reads and verifies. Whole leaves go straight to p; where p begins or
// ends inside a leaf, that leaf is read beside it.
func (src *source) read(off int64, p []byte) error {
	for len(p) > 0 {
		leaf := int(off / content.LeafSize)
		start := int64(leaf) * content.LeafSize
		leafLen := min(content.LeafSize, src.b.Size-start)
		var n int
		var err error
		if off == start && int64(len(p)) >= leafLen {
			n = wholeLeaves(len(p), off, src.b.Size)
			err = src.readWhole(leaf, off, p[:n])
		} else {
			n = int(min(start+leafLen-off, int64(len(p))))
			err = src.readPart(leaf, leafLen, off-start, p[:n])
		}
		if err != nil {
			return err
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// wholeLeaves returns how many of the next n bytes to read at once: whole
// leaves, up to readChunk bytes.
func wholeLeaves(n int, off, size int64) int {
	n = min(n, readChunk)
	if off+int64(n) == size {
		return n
	}
	return n - n%content.LeafSize
}

// readWhole reads whole leaves to p.
func (src *source) readWhole(leaf int, off int64, p []byte) error {
	if err := preadFull(src.fd.fd, p, src.base+off); err != nil {
		return fmt.Errorf("%s: %w", src.path(), err)
	}
	for len(p) > 0 {
		n := min(len(p), content.LeafSize)
		if err := src.verify(leaf, p[:n]); err != nil {
			return err
		}
		p, leaf = p[n:], leaf+1
	}
	return nil
}

// readPart reads one leaf and copies its bytes from within on to p.
func (src *source) readPart(leaf int, leafLen, within int64, p []byte) error {
	if src.s.leaves.read(src.b.ID, leaf, within, p) {
		return nil
	}
	room := leafBuffers.Get().(*[content.LeafSize]byte)
	defer leafBuffers.Put(room)
	buf := room[:leafLen]
	if err := preadFull(src.fd.fd, buf, src.base+int64(leaf)*content.LeafSize); err != nil {
		return fmt.Errorf("%s: %w", src.path(), err)
	}
	if err := src.verify(leaf, buf); err != nil {
		return err
	}
	copy(p, buf[within:])
	src.s.leaves.put(src.b.ID, leaf, buf)
	return nil
}

// verify compares a leaf with its hash.
func (src *source) verify(leaf int, data []byte) error {
	got := content.LeafHash(data)
	if string(got[:]) == string(src.table[leaf*content.HashSize:(leaf+1)*content.HashSize]) {
		return nil
	}
	return fmt.Errorf("%s at %d: leaf %d does not match its hash: %w",
		src.path(), src.base+int64(leaf)*content.LeafSize, leaf, errDamaged)
}

// explain turns the plain error of a read into the one that callers get.
func (s *Store) explain(op string, b meta.Blob, err error) error {
	name := "blob " + hex.EncodeToString(b.ID[:8])
	missing := errors.Is(err, errDamaged) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ESTALE)
	switch {
	case missing && s.gaveBack(b):
		return meta.E(op, 0, name, meta.KindStale, err)
	case missing:
		err = meta.E(op, 0, name, meta.KindDamaged, err)
		s.damaged.Add(1)
	case kindOf(err) != meta.KindIO:
		return meta.E(op, 0, name, kindOf(err), err)
	default:
		err = meta.E(op, 0, name, meta.KindIO, err)
	}
	if s.damage.first(b) {
		s.log.Error("content cannot be read", "op", op, "dir", s.opts.Dir, "blob", hex.EncodeToString(b.ID[:]),
			"segment", b.Segment, "offset", b.Offset, "err", err)
	}
	return err
}

// gaveBack reports whether b's place was freed or moved on purpose. That a
// foreign segment was lost cannot be told from that its holder removed it.
func (s *Store) gaveBack(b meta.Blob) bool {
	if s.packs.isRetired(b.Segment) {
		return true
	}
	if s.foreign(b.Segment) {
		s.forgetOpen(b)
	}
	h, err := s.packs.readHeader(b.Segment, b.Offset)
	switch {
	case err == nil:
		return h.State == stateDead && h.ID == b.ID
	case s.foreign(b.Segment):
		return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESTALE)
	}
	return s.packs.isRetired(b.Segment) // removed just now
}

// damageMax bounds how many damaged places are remembered.
const damageMax = 4096

// damageLog remembers which places were reported.
type damageLog struct {
	mu   sync.Mutex
	seen map[meta.Blob]struct{} // guarded by mu
}

// first reports whether b was not seen before.
func (d *damageLog) first(b meta.Blob) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, ok := d.seen[b]; ok {
		return false
	}
	if d.seen == nil || len(d.seen) >= damageMax {
		d.seen = make(map[meta.Blob]struct{})
	}
	d.seen[b] = struct{}{}
	return true
}

// Prefetch asks the disk for b's bytes, in the background; when many are
// asked for already it does nothing.
func (s *Store) Prefetch(b meta.Blob) {
	if !s.life.enter() {
		return
	}
	defer s.life.leave()
	if b.Place == meta.PlaceInline || b.Size <= 0 || b.Size > meta.BlobMax {
		return
	}
	select {
	case s.work.prefetch <- b:
	default:
	}
}

// readAhead loads the leaf table and has the kernel read the bytes. What is
// wrong shows when they are read.
func (s *Store) readAhead(b meta.Blob) {
	src, err := s.source(b)
	if err != nil {
		return
	}
	defer src.fd.release()
	unix.Fadvise(src.fd.fd, src.base, b.Size, unix.FADV_WILLNEED)
}
