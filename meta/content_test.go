package meta

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"
)

// TestFileAgainstModel does random operations on one file through two handles
// and compares every read, size and seek with an array.
func TestFileAgainstModel(t *testing.T) {
	for seed := range uint64(5) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := newRig(t)
			m := fileModel{rig: r, rnd: rand.New(rand.NewPCG(seed, 7))}
			m.handles[0] = r.create("f")
			m.handles[1] = r.open(m.handles[0].Ino())
			for range 250 {
				m.step(t)
			}
			for _, h := range m.handles {
				r.close(h)
			}
			r.nodes.put.wg.Wait()
			h := r.open(m.handles[0].Ino())
			if got := r.read(h, 0, len(m.data)+1); !bytes.Equal(got, m.data) {
				t.Fatal("content differs at the end")
			}
			r.close(h)
		})
	}
}

type fileModel struct {
	*rig
	rnd     *rand.Rand
	handles [2]*Handle
	data    []byte
}

const modelMax = 10 << 20

func (m *fileModel) grow(n int64) {
	if int64(len(m.data)) < n {
		m.data = append(m.data, make([]byte, n-int64(len(m.data)))...)
	}
}

func (m *fileModel) step(t *testing.T) {
	h, rnd, ctx := m.handles[m.rnd.IntN(2)], m.rnd, t.Context()
	off, n := rnd.Int64N(modelMax), rnd.Int64N(1<<rnd.IntN(21))+1
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	switch rnd.IntN(12) {
	case 0, 1, 2, 3:
		p := bytes.Repeat([]byte{byte(rnd.Uint32())}, int(n))
		p[0] ^= 0xff
		m.write(h, off, p)
		m.grow(off + n)
		copy(m.data[off:], p)
	case 4: // a chunk as a sequential writer fills it
		off = rnd.Int64N(2) * BlobMax
		p := make([]byte, BlobMax)
		p[rnd.IntN(BlobMax)] = byte(rnd.Uint32())
		m.write(h, off, p)
		m.grow(off + BlobMax)
		copy(m.data[off:], p)
	case 5:
		m.flush(h)
	case 6:
		_, err := m.SetAttr(ctx, user, h.Ino(), SetAttr{Valid: SetSize, Size: off, Handle: h})
		must(err)
		m.grow(off)
		m.data = m.data[:off]
	case 7:
		must(h.Fallocate(ctx, user, off, n, FallocPunchHole|FallocKeepSize))
		for i := off; i < min(off+n, int64(len(m.data))); i++ {
			m.data[i] = 0
		}
	case 8:
		must(h.Fallocate(ctx, user, off, n, FallocZeroRange))
		m.grow(off + n)
		clear(m.data[off : off+n])
	case 9:
		to := rnd.Int64N(modelMax)
		if off < to+n && to < off+n {
			return
		}
		got, err := m.CopyRange(ctx, user, h, off, m.handles[0], to, n)
		must(err)
		want := max(0, min(n, int64(len(m.data))-off))
		if got != want {
			t.Fatalf("copied %d, want %d", got, want)
		}
		if want > 0 {
			src := bytes.Clone(m.data[off : off+want])
			m.grow(to + want)
			copy(m.data[to:], src)
		}
	case 10:
		m.clock.Add(int64(time.Hour))
		m.streamOld(ctx)
	case 11:
		must(m.defragmentSome(ctx))
	}
	m.check(t, h)
}

func (m *fileModel) check(t *testing.T, h *Handle) {
	t.Helper()
	if a := m.stat(h.Ino()); a.Size != int64(len(m.data)) {
		t.Fatalf("size %d, want %d", a.Size, len(m.data))
	}
	for range 3 {
		off := m.rnd.Int64N(modelMax)
		n := m.rnd.IntN(1<<m.rnd.IntN(22)) + 1
		want := m.data[min(off, int64(len(m.data))):min(off+int64(n), int64(len(m.data)))]
		if got := m.read(h, off, n); !bytes.Equal(got, want) {
			t.Fatalf("read of %d at %d differs", n, off)
		}
		m.checkSeek(t, h, off)
	}
}

// checkSeek: a hole that is reported is zero, and what follows is found.
func (m *fileModel) checkSeek(t *testing.T, h *Handle, off int64) {
	t.Helper()
	size := int64(len(m.data))
	hole, err := h.Seek(t.Context(), off, true)
	if off >= size {
		m.wantKind(err, KindNoDevice)
		return
	}
	if err != nil || hole < off || hole > size {
		t.Fatalf("hole behind %d: %d, %v", off, hole, err)
	}
	data, err := h.Seek(t.Context(), off, false)
	if err != nil {
		m.wantKind(err, KindNoDevice)
		data = size
	}
	if data < off || data > off && hole != off || data == off && hole == off {
		t.Fatalf("behind %d: data %d, hole %d", off, data, hole)
	}
	for i := off; i < data; i++ {
		if m.data[i] != 0 {
			t.Fatalf("byte %d of a hole is not zero", i)
		}
	}
}

// Many small pieces share blobs; few ride in the transaction.
func TestSmallPiecesArePacked(t *testing.T) {
	r := newRig(t)
	h := r.create("db")
	page := make([]byte, 4096)
	for i := range 20 {
		page[0] = byte(i)
		r.write(h, int64(i)*3*4096, page)
	}
	r.flush(h)
	if r.disk.puts.Load() != 0 {
		t.Fatal("few pages went to the content store")
	}
	for i := range 2000 {
		page[0], page[1] = byte(i), byte(i>>8)
		r.write(h, int64(i)*3*4096, page)
	}
	r.flush(h)
	if got := r.disk.puts.Load(); got != 2 {
		t.Fatalf("8 MB of pages took %d blobs", got)
	}
	for i := range 2000 {
		if got := r.read(h, int64(i)*3*4096, 2); got[0] != byte(i) || got[1] != byte(i>>8) {
			t.Fatalf("page %d: %v", i, got)
		}
	}
	r.close(h)
}

// The same content is stored once.
func TestDeduplication(t *testing.T) {
	r := newRig(t)
	data := bytes.Repeat([]byte("0123456789"), 1<<20)
	for _, name := range []string{"a", "b", "c"} {
		h := r.create(name)
		for off := 0; off < len(data); off += 1 << 20 {
			r.write(h, int64(off), data[off:min(off+1<<20, len(data))])
		}
		r.close(h)
		r.nodes.put.wg.Wait()
	}
	if got := r.disk.count(); got != 3 {
		t.Fatalf("%d blobs for three copies of 10 MB", got)
	}
}

// Two writers of the same bytes at the same time leave one copy.
func TestDeduplicationRace(t *testing.T) {
	r := newRig(t)
	data := bytes.Repeat([]byte("z"), 100<<10)
	var handles []*Handle
	for i := range 8 {
		h := r.create(fmt.Sprint(i))
		r.write(h, 0, data)
		handles = append(handles, h)
	}
	var wg sync.WaitGroup
	for _, h := range handles {
		wg.Go(func() {
			if err := h.Flush(t.Context(), user); err != nil {
				t.Error(err)
			}
			h.Release(t.Context())
		})
	}
	wg.Wait()
	if got := r.disk.count(); got != 1 {
		t.Fatalf("%d copies", got)
	}
}

// A fragmented file is rewritten; readers and versions see no change.
func TestDefragment(t *testing.T) {
	r := newRig(t)
	h := r.create("log")
	var want []byte
	for i := range 300 {
		line := []byte(fmt.Sprintf("line %d\n", i))
		r.write(h, AtEnd, line)
		r.flush(h)
		want = append(want, line...)
	}
	if got := len(r.store.extents[h.Ino()]); got != 300 {
		t.Fatalf("%d extents", got)
	}
	r.read(h, 0, 100)
	before := r.stat(h.Ino())
	if err := r.defragmentSome(t.Context()); err != nil {
		t.Fatal(err)
	}
	after := r.stat(h.Ino())
	if got := len(r.store.extents[h.Ino()]); got != 1 {
		t.Fatalf("%d extents after", got)
	}
	if after.Mtime != before.Mtime || after.ContentRev != before.ContentRev || after.Version != before.Version {
		t.Fatalf("%+v became %+v", before, after)
	}
	if got := r.read(h, 0, len(want)+1); !bytes.Equal(got, want) {
		t.Fatal("content differs")
	}
	r.wantVersions(h.Ino(), 1)
	r.close(h)
}

// A blob that compaction moved is found again; one that is damaged is EIO for
// that file, and the log says which.
func TestMovedAndDamagedBlobs(t *testing.T) {
	r := newRig(t)
	h := r.create("f")
	data := bytes.Repeat([]byte("q"), 200<<10)
	r.write(h, 0, data)
	r.flush(h)
	r.read(h, 0, 10)
	r.read(h, 5, 10) // the mapping is kept
	if err := r.compactContent(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := r.read(h, 0, len(data)); !bytes.Equal(got, data) {
		t.Fatal("content differs after compaction")
	}
	r.disk.mu.Lock()
	for off, p := range r.disk.places {
		p.torn = true
		r.disk.places[off] = p
	}
	r.disk.mu.Unlock()
	_, err := h.Read(t.Context(), 0, make([]byte, 100))
	r.wantKind(err, KindDamaged)
	if want := fmt.Sprintf("ino=%d", h.Ino()); !bytes.Contains(r.logs.Bytes(), []byte(want)) {
		t.Fatalf("log: %s", r.logs)
	}
	r.close(h)
}

// Extents of a huge, fragmented file are read once, not for every read, and
// no file keeps more than its share.
func TestMappingIsKept(t *testing.T) {
	r := newRig(t)
	h := r.create("f")
	big := make([]byte, 64<<10)
	for i := range 200 {
		big[0] = byte(i)
		r.write(h, int64(i)*(1<<20), big)
	}
	r.flush(h)
	rnd := rand.New(rand.NewPCG(3, 3))
	before := r.store.reads.Load()
	for range 1000 {
		i := rnd.Int64N(200)
		if got := r.read(h, i<<20, 4096); got[0] != byte(i) {
			t.Fatalf("block %d: %d", i, got[0])
		}
	}
	if got := r.store.reads.Load() - before; got > 4 {
		t.Fatalf("extents were read %d times", got)
	}
	r.close(h)
}

// Fallocate answers as on ext4.
func TestFallocate(t *testing.T) {
	r := newRig(t)
	h := r.create("f")
	ctx := t.Context()
	r.write(h, 0, bytes.Repeat([]byte("a"), 10000))
	if err := h.Fallocate(ctx, user, 0, 20000, FallocKeepSize); err != nil {
		t.Fatal(err)
	}
	if a := r.stat(h.Ino()); a.Size != 10000 {
		t.Fatalf("size %d", a.Size)
	}
	if err := h.Fallocate(ctx, user, 5000, 20000, 0); err != nil {
		t.Fatal(err)
	}
	if a := r.stat(h.Ino()); a.Size != 25000 {
		t.Fatalf("size %d", a.Size)
	}
	r.wantKind(h.Fallocate(ctx, user, 0, 2<<40, 0), KindNoSpace)
	r.wantKind(h.Fallocate(ctx, user, SizeMax-5, 10, 0), KindTooBig)
	r.wantKind(h.Fallocate(ctx, user, 0, 10, FallocPunchHole), KindNotSupported)
	r.wantKind(h.Fallocate(ctx, user, 0, 10, 0x08), KindNotSupported)
	r.wantKind(h.Fallocate(ctx, user, 0, 0, 0), KindInvalid)
	if err := h.Fallocate(ctx, user, 100, 50, FallocPunchHole|FallocKeepSize); err != nil {
		t.Fatal(err)
	}
	got := r.read(h, 0, 200)
	if got[99] != 'a' || got[100] != 0 || got[149] != 0 || got[150] != 'a' {
		t.Fatalf("%q", got)
	}
	r.wantVersions(h.Ino(), 1)
	r.close(h)
}

// CopyRange shares blobs and copies no bytes.
func TestCopyRangeShares(t *testing.T) {
	r := newRig(t)
	a, b := r.create("a"), r.create("b")
	data := bytes.Repeat([]byte("shared "), 1<<20)
	for off := 0; off < len(data); off += 1 << 20 {
		r.write(a, int64(off), data[off:min(off+1<<20, len(data))])
	}
	r.flush(a)
	puts := r.disk.puts.Load()
	n, err := r.CopyRange(t.Context(), user, a, 100, b, 0, SizeMax)
	if err != nil || n != int64(len(data)-100) {
		t.Fatalf("%d, %v", n, err)
	}
	if r.disk.puts.Load() != puts {
		t.Fatal("bytes were copied")
	}
	if got := r.read(b, 0, len(data)); !bytes.Equal(got, data[100:]) {
		t.Fatal("content differs")
	}
	_, err = r.CopyRange(t.Context(), user, a, 0, a, 50, 100)
	r.wantKind(err, KindInvalid)
	n, err = r.CopyRange(t.Context(), user, a, int64(len(data)), b, 0, 10)
	if n != 0 || err != nil {
		t.Fatalf("behind the end: %d, %v", n, err)
	}
	r.close(a)
	r.close(b)
}

// A deleted file comes back with its content.
func TestUndelete(t *testing.T) {
	r := newRig(t)
	h := r.create("f")
	r.write(h, 0, []byte("precious"))
	r.close(h)
	if err := r.Unlink(t.Context(), user, RootIno, "f"); err != nil {
		t.Fatal(err)
	}
	a, err := r.Undelete(t.Context(), user, RootIno, DeletedName{Name: "f", Ino: h.Ino()}, "g")
	if err != nil || a.Nlink != 1 {
		t.Fatalf("%+v, %v", a, err)
	}
	h = r.open(a.Ino)
	if got := r.read(h, 0, 10); string(got) != "precious" {
		t.Fatalf("%q", got)
	}
	r.close(h)
	_, err = r.Undelete(t.Context(), user, RootIno, DeletedName{Name: "f", Ino: h.Ino()}, "h")
	r.wantKind(err, KindExist)
}
