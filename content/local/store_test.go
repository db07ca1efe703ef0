package local

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nexusfs/content"
	"nexusfs/content/contenttest"
	"nexusfs/meta"
)

func TestOpenRefusesWhatIsNotAStore(t *testing.T) {
	tests := map[string]struct {
		files    map[string]string
		readOnly bool
		want     meta.Kind
	}{
		"newer format":       {files: map[string]string{"format": "nexusfs content, format 2\n"}, want: meta.KindNotSupported},
		"another product":    {files: map[string]string{"PG_VERSION": "15"}, want: meta.KindNotSupported},
		"read-only, nothing": {readOnly: true, want: meta.KindNotExist},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for f, text := range test.files {
				if err := os.WriteFile(filepath.Join(dir, f), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			_, err := Open(context.Background(), Options{Dir: dir, ReadOnly: test.readOnly})
			if err == nil || meta.KindOf(err) != test.want {
				t.Errorf("got %v, want %q", err, test.want)
			}
			names, _ := os.ReadDir(dir)
			if len(names) != len(test.files) {
				t.Errorf("the folder was changed: %v", names)
			}
		})
	}
}

func TestReadOnlyChangesNothing(t *testing.T) {
	ctx := context.Background()
	dir := filepath.Join(t.TempDir(), "s")
	s := mustOpen(t, Options{Dir: dir})
	b, f := mustPut(t, s, randomBytes(1, 50_000)), mustPut(t, s, randomBytes(2, 1<<20))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "tmp", "1"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	before := treeOf(t, dir)
	s = mustOpen(t, Options{Dir: dir, ReadOnly: true})
	mustRead(t, s, b)
	mustRead(t, s, f)
	if len(walkAll(t, s)) != 2 || s.Stats().Files != 1 {
		t.Errorf("walk lists %v, stats say %+v", walkAll(t, s), s.Stats())
	}
	_, putErr := s.Put(ctx, b.data)
	for what, err := range map[string]error{
		"put": putErr, "free": s.Free(ctx, []meta.Blob{b.Blob}), "compact": s.Compact(ctx, nil, nil),
	} {
		if meta.KindOf(err) != meta.KindReadOnly || err == nil {
			t.Errorf("%s: got %v, want read-only", what, err)
		}
	}
	if err := s.Sync(ctx); err != nil {
		t.Errorf("sync: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if after := treeOf(t, dir); after != before {
		t.Errorf("the folder was changed:\n%s\nwant\n%s", after, before)
	}
}

func treeOf(t *testing.T, dir string) string {
	var out strings.Builder
	err := filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err == nil {
			out.WriteString(path + " " + info.ModTime().String() + "\n")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func TestCallsAfterClose(t *testing.T) {
	ctx := context.Background()
	s := mustOpen(t, Options{Dir: filepath.Join(t.TempDir(), "s")})
	b := mustPut(t, s, randomBytes(1, 50_000))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	_, putErr := s.Put(ctx, b.data)
	for what, err := range map[string]error{
		"put": putErr, "sync": s.Sync(ctx), "read": s.Read(ctx, b.Blob, 0, make([]byte, 1)),
	} {
		if err == nil || meta.KindOf(err) != meta.KindShutdown {
			t.Errorf("%s after close: got %v, want shutdown", what, err)
		}
	}
	s.Prefetch(b.Blob)
	if err := s.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
}

// countingDisk counts flushes and can hold them up.
type countingDisk struct {
	kernelSyncer
	flushes atomic.Int64
	gate    chan struct{} // nil, or each flush takes one from it
	started chan struct{}
}

func (c *countingDisk) Fdatasync(fd int) error {
	c.flushes.Add(1)
	if c.gate != nil {
		c.started <- struct{}{}
		<-c.gate
	}
	return c.kernelSyncer.Fdatasync(fd)
}

func TestConcurrentSyncsShareRounds(t *testing.T) {
	disk := &countingDisk{gate: make(chan struct{}), started: make(chan struct{}, 100)}
	s := mustOpen(t, Options{Dir: filepath.Join(t.TempDir(), "s"), syncer: disk})
	const callers = 50
	errs := make(chan error, callers+1)
	mustPut(t, s, randomBytes(1, 20_000))
	go func() { errs <- s.Sync(context.Background()) }()
	<-disk.started // the first round is under way; all others share the second
	var asked sync.WaitGroup
	for i := range callers {
		asked.Add(1)
		go func() {
			_, err := s.Put(context.Background(), randomBytes(uint64(i), 20_000))
			asked.Done()
			if err == nil {
				err = s.Sync(context.Background())
			}
			errs <- err
		}()
	}
	asked.Wait()
	close(disk.gate)
	for range callers + 1 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	// One flush for the first round, one for the second; who put while the
	// second was already taken makes a third. Filling ahead adds its own.
	if n := disk.flushes.Load(); n > 6 {
		t.Errorf("%d flushes for %d syncs", n, callers+1)
	}
}

func TestSyncOfNothingFlushesNothing(t *testing.T) {
	disk := &countingDisk{}
	s := mustOpen(t, Options{Dir: filepath.Join(t.TempDir(), "s"), syncer: disk})
	for range 3 {
		if err := s.Sync(context.Background()); err != nil {
			t.Error(err)
		}
	}
	if n := disk.flushes.Load(); n > 0 {
		t.Errorf("%d flushes", n)
	}
}

func TestSmallStoreStaysSmall(t *testing.T) {
	s := mustOpen(t, Options{Dir: filepath.Join(t.TempDir(), "s")})
	for i := range 4 {
		mustPut(t, s, randomBytes(uint64(i), 20_000))
		if err := s.Sync(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	s.fillAhead()
	if n := s.Stats().SegmentBytes; n < fillMin || n > 2*fillMin {
		t.Errorf("80 KB stored and synced take %d bytes, want zeros written ahead, but %d at most", n, 2*fillMin)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(s.packs.path(1), &st); err != nil || st.Size > 100_000 {
		t.Errorf("after close the segment has %d bytes (%v), want no zeros behind", st.Size, err)
	}
}

// Appends while zeros are written ahead must never be overwritten by them.
func TestFillAheadRacesWithPuts(t *testing.T) {
	s := mustOpen(t, Options{Dir: filepath.Join(t.TempDir(), "s"), SegmentSize: 2 << 20})
	var wg sync.WaitGroup
	var mu sync.Mutex
	var all []blobData
	for w := range 4 {
		wg.Go(func() {
			for i := range 60 {
				b := mustPut(t, s, randomBytes(uint64(w*1000+i), 17_000+i*500))
				if w == 0 {
					s.fillAhead()
				}
				mu.Lock()
				all = append(all, b)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	s.leaves, s.tables = newLeafCache(0), content.NewTables(0)
	for _, b := range all {
		mustRead(t, s, b)
	}
}

// A put that reaches into the zeros being written waits for their end.
func TestPutWaitsForFill(t *testing.T) {
	s := mustOpen(t, Options{Dir: filepath.Join(t.TempDir(), "s")})
	first := mustPut(t, s, randomBytes(1, 20_000))
	seg, from, to := s.packs.claimFill()
	if seg == nil {
		t.Fatal("nothing to fill")
	}
	put := make(chan blobData)
	go func() {
		data := randomBytes(2, 100_000)
		b, err := s.Put(context.Background(), data)
		if err != nil {
			t.Error(err)
		}
		put <- blobData{b, data}
	}()
	select {
	case <-put:
		t.Fatal("put did not wait")
	case <-time.After(50 * time.Millisecond):
	}
	s.packs.endFill(seg, pwriteFull(seg.fd.fd, zeros[:to-from], from))
	mustRead(t, s, <-put)
	mustRead(t, s, first)
}

func TestOpenFilesAreBounded(t *testing.T) {
	o := Options{Dir: filepath.Join(t.TempDir(), "s"), OpenFiles: 10, UnsyncedFiles: 8, SegmentSize: 64 << 10}
	before := openFDs()
	s := mustOpen(t, o)
	var all []blobData
	for i := range 60 {
		all = append(all, mustPut(t, s, randomBytes(uint64(i), 20_000)), mustPut(t, s, randomBytes(uint64(i), 1<<20)))
		if n := openFDs() - before; n > 10+8+unsyncedSegments {
			t.Fatalf("%d files are open while nobody calls Sync", n)
		}
	}
	if err := s.Sync(context.Background()); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for _, b := range all {
				mustRead(t, s, b)
			}
		})
	}
	wg.Wait()
	if n := openFDs() - before; n > 10+8+4 {
		t.Errorf("%d files are open", n)
	}
}

// Damage that happens while the store runs is found once the small caches
// have let go of what they verified.
func TestDamageWhileRunning(t *testing.T) {
	ctx := context.Background()
	var logs bytes.Buffer
	o := Options{
		Dir: filepath.Join(t.TempDir(), "s"), TableCache: 1 << 10, LeafCache: 64 << 10,
		Log: slog.New(slog.NewTextHandler(&logs, nil)),
	}
	s := mustOpen(t, o)
	for _, size := range []int{50_000, 2 << 20} {
		b := mustPut(t, s, randomBytes(uint64(size), size))
		other := mustPut(t, s, randomBytes(uint64(size+1), size))
		buf := make([]byte, 100)
		if err := s.Read(ctx, b.Blob, 20_000, buf); err != nil {
			t.Fatal(err)
		}
		if err := damageStored(o.Dir, b.Blob, contenttest.Damage{Kind: contenttest.Flip, Off: 20_050}); err != nil {
			t.Fatal(err)
		}
		if err := s.Read(ctx, b.Blob, 20_000, buf); err == nil && !bytes.Equal(buf, b.data[20_000:20_100]) {
			t.Fatal("wrong bytes")
		}
		for off := int64(0); off+100 < other.Size; off += content.LeafSize / 2 { // push it out
			if err := s.Read(ctx, other.Blob, off, buf); err != nil {
				t.Fatal(err)
			}
		}
		logs.Reset()
		for range 3 {
			if err := s.Read(ctx, b.Blob, 20_000, buf); meta.KindOf(err) != meta.KindDamaged || err == nil {
				t.Fatalf("size %d: got %v, want damaged", size, err)
			}
		}
		path, _ := place(o.Dir, b.Blob)
		if text := logs.String(); strings.Count(text, "level=ERROR") != 1 || !strings.Contains(text, path) {
			t.Errorf("want one error that names %s, got:\n%s", path, text)
		}
	}
	if n := s.Stats().Damaged; n != 6 {
		t.Errorf("stats count %d damaged reads, want 6", n)
	}
}

func TestFreeGivesSpaceBack(t *testing.T) {
	ctx := context.Background()
	s := mustOpen(t, Options{Dir: filepath.Join(t.TempDir(), "s"), SegmentSize: 4 << 20})
	var all []meta.Blob
	for i := range 60 {
		all = append(all, mustPut(t, s, randomBytes(uint64(i), 200_000)).Blob)
	}
	all = append(all, mustPut(t, s, randomBytes(1, 2<<20)).Blob)
	if err := s.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	if err := s.Free(ctx, all); err != nil {
		t.Fatal(err)
	}
	st := s.Stats()
	if st.Segments != 1 || st.Files != 0 || st.FileBytes != 0 {
		t.Errorf("everything was freed, stats say %+v; want the active segment alone", st)
	}
	var stat unix.Stat_t
	if err := unix.Stat(s.packs.path(s.packs.last), &stat); err != nil || stat.Blocks*512 > 500_000 {
		t.Errorf("the active segment holds %d bytes on the disk (%v), want few", stat.Blocks*512, err)
	}
}

func TestBackingIsVerifiedAgainWhenTheFileChanged(t *testing.T) {
	ctx := context.Background()
	o := Options{Dir: filepath.Join(t.TempDir(), "s")}
	s := mustOpen(t, o)
	b := mustPut(t, s, randomBytes(1, 2<<20))
	f, err := s.Backing(ctx, b.Blob)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := damageStored(o.Dir, b.Blob, contenttest.Damage{Kind: contenttest.Flip, Off: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Backing(ctx, b.Blob); err == nil || meta.KindOf(err) != meta.KindDamaged {
		t.Errorf("backing of a file that was changed: got %v, want damaged", err)
	}
}

func TestCountsSurviveOrderlyAndUncleanStops(t *testing.T) {
	o := Options{Dir: filepath.Join(t.TempDir(), "s")}
	s := mustOpen(t, o)
	for i := range 5 {
		mustPut(t, s, randomBytes(uint64(i), 1<<20+i))
	}
	want := s.Stats()
	clone := cloneDir(t, o.Dir)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = mustOpen(t, o)
	if got := s.Stats(); got.Files != want.Files || got.FileBytes != want.FileBytes {
		t.Errorf("after an orderly end: %+v, want %+v", got, want)
	}
	unclean := mustOpen(t, Options{Dir: clone})
	mustPut(t, unclean, randomBytes(9, 1<<20)) // is not counted twice
	for deadline := time.Now().Add(10 * time.Second); unclean.files.stale.Load() && time.Now().Before(deadline); {
		runtime.Gosched() // the background counts
	}
	if got := unclean.Stats(); got.Files != 6 || got.FileBytes != want.FileBytes+1<<20 {
		t.Errorf("after an unclean end: %d files, %d bytes; want 6, %d", got.Files, got.FileBytes, want.FileBytes+1<<20)
	}
}

// When the disk does not keep up, putting waits: what is unsynced is bounded.
func TestPutWaitsForASlowDisk(t *testing.T) {
	const limit = 4
	disk := &countingDisk{gate: make(chan struct{}), started: make(chan struct{}, 1000)}
	s := mustOpen(t, Options{Dir: filepath.Join(t.TempDir(), "s"), UnsyncedFiles: limit, syncer: disk})
	puts := make(chan error)
	go func() {
		defer close(puts)
		for i := range 3 * limit {
			_, err := s.Put(context.Background(), randomBytes(uint64(i), 1<<20))
			puts <- err
		}
	}()
	done := 0
	for blocked := false; !blocked; {
		select {
		case err, ok := <-puts:
			if done++; err != nil || !ok || done >= limit {
				t.Fatalf("put %d with a disk that hangs: %v", done, err)
			}
		case <-time.After(100 * time.Millisecond):
			blocked = true
		}
	}
	close(disk.gate)
	for err := range puts {
		if done++; err != nil {
			t.Error(err)
		}
	}
	if done != 3*limit {
		t.Errorf("%d puts, want %d", done, 3*limit)
	}
}

func TestPrefetchLoadsTheTable(t *testing.T) {
	o := Options{Dir: filepath.Join(t.TempDir(), "s")}
	s := mustOpen(t, o)
	blobs := []blobData{mustPut(t, s, randomBytes(1, 100_000)), mustPut(t, s, randomBytes(2, 2<<20))}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = mustOpen(t, o)
	s.Prefetch(meta.Blob{ID: blobs[0].ID, Size: 100_000, Place: meta.PlacePack, Segment: 77}) // nothing there: no harm
	for _, b := range blobs {
		s.Prefetch(b.Blob)
		for deadline := time.Now().Add(10 * time.Second); s.tables.Get(b.ID) == nil; {
			if time.Now().After(deadline) {
				t.Fatal("the leaf table was not loaded")
			}
			runtime.Gosched()
		}
	}
	if n := s.Stats().Damaged; n != 0 {
		t.Errorf("%d reads count as damaged", n)
	}
}
