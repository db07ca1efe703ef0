package local

import (
	"bytes"
	"context"
	"errors"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"nexusfs/content"
	"nexusfs/meta"
)

// catalog stands for SQL.
type catalog struct {
	mu sync.Mutex
	at map[meta.BlobID]blobData
}

func (c *catalog) live(b meta.Blob) (bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at[b.ID].Blob == b, nil
}

func (c *catalog) moved(from, to meta.Blob) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.at[from.ID].Blob != from {
		return meta.KindConflict.Err()
	}
	c.at[from.ID] = blobData{to, c.at[from.ID].data}
	return nil
}

func (c *catalog) get(id meta.BlobID) blobData {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at[id]
}

// sparseStore fills several segments and frees most of each.
func sparseStore(t *testing.T, reopen bool) (*Store, *catalog) {
	t.Helper()
	o := Options{Dir: filepath.Join(t.TempDir(), "s"), SegmentSize: 256 << 10}
	s := mustOpen(t, o)
	c := &catalog{at: make(map[meta.BlobID]blobData)}
	var drop []meta.Blob
	for i := range 120 {
		size := 17_000 + i%11*500
		if i%8 == 0 {
			size = 1<<20 + i
		}
		b := mustPut(t, s, randomBytes(uint64(i), size))
		if i%5 == 0 {
			c.at[b.ID] = b
		} else {
			drop = append(drop, b.Blob)
		}
	}
	if reopen {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = mustOpen(t, o)
	}
	if err := s.Free(context.Background(), drop); err != nil {
		t.Fatal(err)
	}
	return s, c
}

func TestCompactSegmentsOfThisProcess(t *testing.T) {
	s, c := sparseStore(t, false)
	before := s.Stats().Segments
	if err := s.Compact(context.Background(), c.live, c.moved); err != nil {
		t.Fatal(err)
	}
	var alive int64
	for _, b := range c.at {
		if b.Place == meta.PlacePack {
			alive += b.Size
		}
	}
	if st := s.Stats(); st.Segments >= before || st.SegmentBytes > 2*alive+2*s.opts.SegmentSize {
		t.Errorf("%d bytes are alive; %d of %d segments are left with %d bytes", alive, st.Segments, before, st.SegmentBytes)
	}
	for _, b := range c.at {
		mustRead(t, s, b)
	}
	if got := walkAll(t, s); len(got) != len(c.at) {
		t.Errorf("walk lists %d blobs, want %d", len(got), len(c.at))
	}
}

// A blob that was put a moment ago and that SQL does not know yet is on its
// way to its commit: compaction must not take it.
func TestCompactSparesWhatIsNotCommittedYet(t *testing.T) {
	s, c := sparseStore(t, false)
	waiting := c.at
	c.at = nil // nothing is committed
	if err := s.Compact(context.Background(), c.live, func(_, _ meta.Blob) error { return errors.New("nothing is alive") }); err != nil {
		t.Fatal(err)
	}
	for _, b := range waiting {
		mustRead(t, s, b)
	}
	c.at = waiting // now it is
	if err := s.Compact(context.Background(), c.live, c.moved); err != nil {
		t.Fatal(err)
	}
	for _, b := range c.at {
		mustRead(t, s, b)
	}
}

// Readers that looked a blob up before it moved get its bytes or KindStale,
// and then find it at its new place.
func TestReadersRaceWithCompact(t *testing.T) {
	s, c := sparseStore(t, true)
	ids := make([]meta.BlobID, 0, len(c.at))
	for id := range c.at {
		ids = append(ids, id)
	}
	var stop atomic.Bool
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			buf := make([]byte, meta.BlobMax)
			for i := w; !stop.Load(); i++ {
				b := c.get(ids[i%len(ids)])
				err := s.Read(context.Background(), b.Blob, 0, buf[:b.Size])
				for err != nil && meta.KindOf(err) == meta.KindStale {
					b = c.get(b.ID)
					err = s.Read(context.Background(), b.Blob, 0, buf[:b.Size])
				}
				if err != nil || !bytes.Equal(buf[:b.Size], b.data) {
					t.Errorf("reader beside compact: %v", err)
					return
				}
			}
		})
	}
	for range 3 {
		if err := s.Compact(context.Background(), c.live, c.moved); err != nil {
			t.Error(err)
		}
	}
	stop.Store(true)
	wg.Wait()
	if n := s.Stats().Damaged; n != 0 {
		t.Errorf("%d reads count as damaged", n)
	}
}

func TestMovedPlaceIsStaleNotDamaged(t *testing.T) {
	s, c := sparseStore(t, true)
	var old []blobData
	for _, b := range c.at {
		old = append(old, b)
	}
	if err := s.Compact(context.Background(), c.live, c.moved); err != nil {
		t.Fatal(err)
	}
	stale := 0
	s.tables, s.leaves = content.NewTables(1), newLeafCache(0)
	for _, b := range old {
		err := s.Read(context.Background(), b.Blob, 0, make([]byte, b.Size))
		if b.Blob == c.get(b.ID).Blob {
			continue
		}
		if stale++; err == nil || meta.KindOf(err) != meta.KindStale {
			t.Errorf("read at a place that was left: got %v, want stale", err)
		}
	}
	if stale == 0 || s.Stats().Damaged != 0 {
		t.Errorf("%d blobs moved, %d reads count as damaged", stale, s.Stats().Damaged)
	}
}

// A record whose header is damaged is still readable: its segment may be
// emptied, but must not go.
func TestCompactKeepsWhatItCannotRecognise(t *testing.T) {
	ctx := context.Background()
	o := Options{Dir: filepath.Join(t.TempDir(), "s"), SegmentSize: 1 << 20}
	s := mustOpen(t, o)
	keep := mustPut(t, s, randomBytes(1, 20_000))
	var drop []meta.Blob
	for i := range 20 {
		drop = append(drop, mustPut(t, s, randomBytes(uint64(10+i), 100_000)).Blob)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := flip(segmentPath(o.Dir, keep.Segment), keep.Offset+10); err != nil {
		t.Fatal(err)
	}
	s = mustOpen(t, o)
	if err := s.Free(ctx, drop); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		err := s.Compact(ctx, func(b meta.Blob) (bool, error) { return b == keep.Blob, nil }, func(_, _ meta.Blob) error { return nil })
		if err != nil {
			t.Fatal(err)
		}
		mustRead(t, s, keep)
	}
}

// A living record whose bytes are damaged stays where it is; the others move.
func TestCompactLeavesDamagedRecords(t *testing.T) {
	ctx := context.Background()
	o := Options{Dir: filepath.Join(t.TempDir(), "s"), SegmentSize: 1 << 20}
	s := mustOpen(t, o)
	c := &catalog{at: make(map[meta.BlobID]blobData)}
	bad, good := mustPut(t, s, randomBytes(1, 20_000)), mustPut(t, s, randomBytes(2, 20_000))
	file := mustPut(t, s, randomBytes(3, 1<<20))
	c.at[bad.ID], c.at[good.ID], c.at[file.ID] = bad, good, file
	var drop []meta.Blob
	for i := range 9 {
		drop = append(drop, mustPut(t, s, randomBytes(uint64(10+i), 100_000)).Blob)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := flip(segmentPath(o.Dir, 1), bad.Offset+5000); err != nil {
		t.Fatal(err)
	}
	if err := unix.Unlink(newFiles(o.Dir, 0).path(file.Blob)); err != nil {
		t.Fatal(err)
	}
	s = mustOpen(t, o)
	if err := s.Free(ctx, drop); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.Compact(ctx, c.live, c.moved); err != nil {
			t.Fatal(err)
		}
	}
	mustRead(t, s, c.get(good.ID))
	for _, b := range []blobData{bad, file} {
		err := s.Read(ctx, c.get(b.ID).Blob, 0, make([]byte, b.Size))
		if err == nil || meta.KindOf(err) != meta.KindDamaged {
			t.Errorf("damaged blob after compact: got %v, want damaged", err)
		}
	}
}

// What moved is told of must survive a power loss at that very moment.
func TestCompactTellsOnlyOfWhatIsDurable(t *testing.T) {
	ctx := context.Background()
	disk := newPowerCut()
	o := Options{Dir: filepath.Join(t.TempDir(), "s"), SegmentSize: 256 << 10, syncer: disk}
	s := mustOpen(t, o)
	c := &catalog{at: make(map[meta.BlobID]blobData)}
	var drop []meta.Blob
	for i := range 60 {
		size := 17_000 + i*100
		if i%10 == 0 {
			size = 1<<20 + i
		}
		b := mustPut(t, s, randomBytes(uint64(i), size))
		if i%5 == 0 {
			c.at[b.ID] = b
		} else {
			drop = append(drop, b.Blob)
		}
	}
	if err := s.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	if err := s.Free(ctx, drop); err != nil {
		t.Fatal(err)
	}
	moved := 0
	err := s.Compact(ctx, c.live, func(from, to meta.Blob) error {
		moved++
		after := mustOpen(t, Options{Dir: disk.restore(t, o.Dir)})
		mustRead(t, after, blobData{to, c.get(to.ID).data})
		return errors.Join(c.moved(from, to), after.Close())
	})
	if err != nil || moved < 5 {
		t.Fatalf("%d blobs moved: %v", moved, err)
	}
}
