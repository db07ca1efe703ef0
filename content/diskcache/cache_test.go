package diskcache

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nexusfs/content/contenttest"
	"nexusfs/meta"
)

const large = 2 << 20

func TestWhatWasReadOrPutIsOnTheDisk(t *testing.T) {
	r := newRig(t, nil)
	small, smallData := r.far(60_000)
	big, bigData := r.far(large)
	r.read(small, smallData, 100, 200, 1) // whole, at once
	r.read(small, smallData, 0, len(smallData), 0)
	r.land(1)
	r.read(big, bigData, 500_000, 4096, anyReads) // what was asked for, the whole behind it
	r.land(1)
	if got := r.store.bytes.Load(); got != 60_000+4096+large {
		t.Errorf("got %d bytes read below, want the small blob, the range and the large blob", got)
	}
	put, err := r.Put(t.Context(), bytesOf(large)[:large-1])
	if err != nil {
		t.Fatal(err)
	}
	putData := make([]byte, put.Size)
	if err := r.store.Content.Read(t.Context(), put, 0, putData); err != nil {
		t.Fatal(err)
	}
	r.reopen() // nothing is in memory
	r.read(small, smallData, 0, len(smallData), 0)
	r.read(big, bigData, 0, len(bigData), 0)
	r.read(put, putData, 0, len(putData), 0)
	if f := r.Figures(); f.Blobs != 3 || f.Hits != 3 || f.Misses != 0 {
		t.Errorf("got %+v, want 3 blobs and 3 hits", f)
	}
}

// Damage of whatever kind to a copy costs one more fetch and is never seen.
func TestDamagedCopiesAreFetchedAgain(t *testing.T) {
	zero := func(path string) error { return os.WriteFile(path, make([]byte, large), 0o600) }
	empty := func(path string) error { return os.Truncate(path, 0) }
	damage := func(how contenttest.Damage) func(string) error {
		return func(path string) error { return damageFile(path, 0, how) }
	}
	tests := []struct {
		name string
		do   func(path string) error
	}{
		{"a flipped bit", damage(contenttest.Damage{Kind: contenttest.Flip, Off: 700_000})},
		{"a torn end", damage(contenttest.Damage{Kind: contenttest.Cut, Off: 700_000})},
		{"no bytes, as after a power loss", empty},
		{"zeros, as after a power loss", zero},
		{"no file", os.Remove},
	}
	for _, test := range tests {
		for _, open := range []bool{false, true} {
			t.Run(test.name, func(t *testing.T) {
				var log bytes.Buffer
				r := newRig(t, func(o *Options) { o.Log = slog.New(slog.NewTextHandler(&log, nil)) })
				b, data := r.far(large)
				r.Prefetch(b)
				r.land(1)
				hurt := func() {
					for _, path := range copiesOf(t, r.opts.Dir, b) {
						if err := test.do(path); err != nil {
							t.Fatal(err)
						}
					}
				}
				if open {
					r.reopen()
					hurt()
				} else {
					if err := r.Close(); err != nil {
						t.Fatal(err)
					}
					hurt()
					r.open()
				}
				p := make([]byte, large)
				if err := r.Read(t.Context(), b, 0, p); err != nil || !bytes.Equal(p, data) {
					t.Fatalf("read with a damaged copy: %v, right bytes: %v", err, bytes.Equal(p, data))
				}
				r.land(1)
				r.reopen()
				r.read(b, data, 0, large, 0)
				if n := len(copiesOf(t, r.opts.Dir, b)); n != 1 {
					t.Errorf("%d copies, want one", n)
				}
				if n := strings.Count(log.String(), "level=WARN"); n > 1 {
					t.Errorf("%d warnings, want at most one: %s", n, log.String())
				}
			})
		}
	}
}

func TestBoundHolds(t *testing.T) {
	r := newRig(t, nil)
	const size, n = 3 << 20, 30
	var blobs []meta.Blob
	var datas [][]byte
	for range n {
		data := bytesOf(size)
		b, err := r.Put(t.Context(), data)
		if err != nil {
			t.Fatal(err)
		}
		blobs, datas = append(blobs, b), append(datas, data)
		if f := r.Figures(); f.Bytes > r.opts.Bytes {
			t.Fatalf("%d bytes kept, the bound is %d", f.Bytes, r.opts.Bytes)
		}
	}
	if got := diskUse(t, r.opts.Dir); got > r.opts.Bytes {
		t.Errorf("%d bytes on the disk, the bound is %d", got, r.opts.Bytes)
	}
	r.read(blobs[n-1], datas[n-1], 0, size, 0)
	r.read(blobs[0], datas[0], 0, 4096, anyReads)
	if r.Figures().Misses != 1 {
		t.Error("the blob that came first was not evicted")
	}
}

// Dead leaf tables of former processes go, and blobs are there before, while
// and after they move.
func TestTidy(t *testing.T) {
	r := newRig(t, func(o *Options) { o.tables = 1 << 40 })
	var blobs []meta.Blob
	var datas [][]byte
	for range 60 {
		data := bytesOf(300_000)
		b, err := r.Put(t.Context(), data)
		if err != nil {
			t.Fatal(err)
		}
		blobs, datas = append(blobs, b), append(datas, data)
	}
	r.reopen()
	if err := r.Free(t.Context(), blobs[6:]); err != nil {
		t.Fatal(err)
	}
	r.opts.tables = 1
	r.reopen()
	p := make([]byte, 300_000)
	moved := func() bool {
		_, err := os.Stat(filepath.Join(r.opts.Dir, "blobs", "segments", "00000001.seg"))
		return errors.Is(err, os.ErrNotExist)
	}
	for deadline := time.Now().Add(30 * time.Second); !moved() && time.Now().Before(deadline); {
		for i, b := range blobs[:6] {
			if err := r.Read(t.Context(), b, 0, p); err != nil || !bytes.Equal(p, datas[i]) {
				t.Fatalf("read while blobs move: %v", err)
			}
		}
	}
	if !moved() {
		t.Error("the segment with the dead leaf tables is still there")
	}
	r.opts.tables = 1 << 40
	r.reopen()
	for i, b := range blobs[:6] {
		r.read(b, datas[i], 0, 300_000, 0)
	}
}

// A bound that was lowered holds from the start.
func TestLowerBound(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Bytes = 2 * MinBytes })
	for range 40 {
		if _, err := r.Put(t.Context(), bytesOf(3<<20)); err != nil {
			t.Fatal(err)
		}
	}
	r.opts.Bytes = MinBytes
	r.reopen()
	if got := diskUse(t, r.opts.Dir); got > MinBytes || got < MinBytes/2 {
		t.Errorf("%d bytes on the disk, the bound is %d", got, MinBytes)
	}
}

func diskUse(t *testing.T, dir string) (total int64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		var st unix.Stat_t
		err = unix.Stat(path, &st)
		total += st.Blocks * 512
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return total
}

func TestOneDirectoryOneProcess(t *testing.T) {
	r := newRig(t, nil)
	_, err := Open(t.Context(), r.store, r.opts)
	if meta.KindOf(err) != meta.KindBusy || !strings.Contains(err.Error(), "give each its own") {
		t.Errorf("second open: got %v, want busy and what to do", err)
	}
	// Another process holds it, and is killed.
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("flock", filepath.Join(r.opts.Dir, "lock"), "sh", "-c", "echo held; read line")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), r.store, r.opts); meta.KindOf(err) != meta.KindBusy {
		t.Errorf("open beside another process: got %v, want busy", err)
	}
	in.Close()
	if err := cmd.Wait(); err == nil {
		t.Error("the other process did not end by the end of its input")
	}
	r.open()
}

func TestOptionsAreChecked(t *testing.T) {
	_, err := Open(t.Context(), nil, Options{Dir: t.TempDir(), Bytes: MinBytes - 1})
	if meta.KindOf(err) != meta.KindInvalid {
		t.Errorf("a bound that is too small: got %v, want invalid", err)
	}
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "blobs", "photos"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err = Open(t.Context(), nil, Options{Dir: dir, Bytes: MinBytes}); meta.KindOf(err) != meta.KindNotSupported {
		t.Errorf("somebody else's folder: got %v, want not supported", err)
	}
}

// Many readers of a blob fetch it once.
func TestReadersShareAFetch(t *testing.T) {
	r := newRig(t, nil)
	r.store.gate = make(chan struct{}, 100)
	b, data := r.far(100_000)
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			p := make([]byte, 1000)
			if err := r.Read(t.Context(), b, int64(i)*1000, p); err != nil || !bytes.Equal(p, data[i*1000:][:1000]) {
				t.Errorf("reader %d: %v", i, err)
			}
		})
	}
	r.store.gate <- struct{}{}
	wg.Wait()
	r.land(1)
	if n := r.store.reads.Load(); n != 1 {
		t.Errorf("%d reads below, want one", n)
	}
}

// A reader in sequence finds what was asked for ahead, in memory, and no blob
// is fetched twice.
func TestSequentialRead(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Bytes = MinBytes })
	var blobs []meta.Blob
	var datas [][]byte
	for range 8 {
		b, data := r.far(meta.BlobMax)
		blobs, datas = append(blobs, b), append(datas, data)
	}
	for i, b := range blobs {
		r.Prefetch(b)
		if i+1 < len(blobs) {
			r.Prefetch(blobs[i+1])
		}
		for off := 0; off < len(datas[i]); off += 1 << 20 {
			p := make([]byte, 1<<20)
			if err := r.Read(t.Context(), b, int64(off), p); err != nil || !bytes.Equal(p, datas[i][off:][:1<<20]) {
				t.Fatalf("blob %d at %d: %v", i, off, err)
			}
		}
	}
	r.land(len(blobs))
	if n := r.store.reads.Load(); n != int64(len(blobs)) {
		t.Errorf("%d reads below, want %d", n, len(blobs))
	}
}

func TestReadAheadIsBounded(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Ahead = 3 })
	r.store.gate = make(chan struct{}, 100)
	for range 10 {
		b, _ := r.far(large)
		r.Prefetch(b)
	}
	for range 3 {
		r.store.gate <- struct{}{}
	}
	r.land(3)
	if n := r.store.reads.Load(); n != 3 {
		t.Errorf("%d fetches of 10 that were asked for at once, want 3", n)
	}
}

// A fetch that fails costs its readers nothing but time.
func TestFailedFetch(t *testing.T) {
	r := newRig(t, nil)
	b, data := r.far(100_000)
	away := error(meta.E("read", 0, "", meta.KindIO, errors.New("the server is away")))
	r.store.err.Store(&away)
	if err := r.Read(t.Context(), b, 0, make([]byte, 10)); !errors.Is(err, away) {
		t.Errorf("got %v, want the error from below", err)
	}
	r.land(1)
	r.store.err.Store(nil)
	r.read(b, data, 0, 10, 1)
	r.land(1)
}

// Who waits for a fetch goes when his context ends, and the fetch goes on.
func TestWaitingEndsWithItsContext(t *testing.T) {
	r := newRig(t, nil)
	r.store.gate = make(chan struct{}, 1)
	b, data := r.far(100_000)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- r.Read(ctx, b, 0, make([]byte, 10)) }()
	<-r.store.at
	cancel()
	if err := <-done; meta.KindOf(err) != meta.KindInterrupted {
		t.Errorf("got %v, want interrupted", err)
	}
	r.store.gate <- struct{}{}
	r.land(1)
	r.store.gate = nil
	r.read(b, data, 0, 10, 0)
}

// A blob that is freed while it is fetched leaves no copy.
func TestFreeBesideAFetch(t *testing.T) {
	r := newRig(t, nil)
	r.store.gate = make(chan struct{})
	b, _ := r.far(large)
	r.Prefetch(b)
	<-r.store.at
	freed := meta.Blob{ID: b.ID, Place: meta.PlaceInline} // the store below keeps its place, so that the fetch goes well
	if err := r.Free(t.Context(), []meta.Blob{freed}); err != nil {
		t.Fatal(err)
	}
	r.store.gate <- struct{}{}
	r.land(1)
	if n := len(copiesOf(t, r.opts.Dir, b)); n != 0 || r.Figures().Blobs != 0 {
		t.Errorf("%d copies of a blob that was freed", n)
	}
}

func TestBackingOfACopy(t *testing.T) {
	r := newRig(t, nil)
	b, data := r.far(large)
	if err := r.store.Free(t.Context(), []meta.Blob{b}); err != nil { // as in S3: no file below
		t.Fatal(err)
	}
	if _, err := r.Put(t.Context(), data); err != nil {
		t.Fatal(err)
	}
	f, err := r.Backing(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, large+1)
	n, err := unix.Pread(int(f.Fd()), got, 0)
	if err != nil || !bytes.Equal(got[:n], data) {
		t.Errorf("the backing file has %d bytes that are not the blob's %d: %v", n, len(data), err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}

// A full disk: one warning, no error, and caching again when there is room.
func TestFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("run this test as root: it mounts a small disk")
	}
	disk := filepath.Join(t.TempDir(), "disk")
	if err := os.Mkdir(disk, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("none", disk, "tmpfs", 0, "size=16m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(disk, 0); err != nil {
			t.Errorf("umount: %v", err)
		}
	})
	var log bytes.Buffer
	var now atomic.Int64
	now.Store(1e18)
	r := newRig(t, func(o *Options) {
		o.Dir, o.Log, o.Now = filepath.Join(disk, "cache"), slog.New(slog.NewTextHandler(&log, nil)), func() time.Time { return time.Unix(0, now.Load()) }
	})
	var blobs []meta.Blob
	var datas [][]byte
	for range 12 {
		data := bytesOf(large)
		b, err := r.Put(t.Context(), data)
		if err != nil {
			t.Fatalf("put with a full cache disk: %v", err)
		}
		blobs, datas = append(blobs, b), append(datas, data)
		now.Add(int64(pause)) // so that the next Put tries the disk again
	}
	p := make([]byte, large)
	for i, b := range blobs {
		if err := r.Read(t.Context(), b, 0, p); err != nil || !bytes.Equal(p, datas[i]) {
			t.Fatalf("read %d with a full cache disk: %v", i, err)
		}
	}
	if n := strings.Count(log.String(), "level=WARN"); n != 1 {
		t.Errorf("%d warnings, want one: %s", n, log.String())
	}
	if err := r.Free(t.Context(), blobs[:6]); err != nil {
		t.Fatal(err)
	}
	now.Add(int64(pause))
	b, err := r.Put(t.Context(), datas[0])
	if err != nil {
		t.Fatal(err)
	}
	r.read(b, datas[0], 0, large, 0)
	if !strings.Contains(log.String(), "takes blobs again") {
		t.Errorf("nothing says that the cache works again: %s", log.String())
	}
}
