package local

import (
	"context"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"nexusfs/content"
	"nexusfs/content/contenttest"
	"nexusfs/meta"
)

// small makes every boundary of the store come early.
func small(o *Options) {
	o.SegmentSize = 256 << 10
	o.FileThreshold = 128 << 10
	o.FileLimit = meta.BlobMax + 1
	o.OpenFiles = 2
	o.UnsyncedFiles = 4
	o.TableCache = 4 << 10
	o.LeafCache = 64 << 10
}

func TestConformance(t *testing.T) {
	for name, set := range map[string]func(*Options){
		"defaults":  func(*Options) {},
		"small":     small,
		"all files": func(o *Options) { o.FileThreshold, o.FileLimit = 1, meta.BlobMax+1 },
		"all packs, no caches": func(o *Options) {
			o.FileThreshold, o.TableCache, o.LeafCache = meta.BlobMax+1, 1, -1
		},
	} {
		t.Run(name, func(t *testing.T) {
			contenttest.Run(t, func(t *testing.T) *contenttest.Harness { return newHarness(t, set) })
		})
	}
}

// newHarness opens a store in a new folder and checks at the end that it left
// no descriptor and no goroutine behind.
func newHarness(t *testing.T, set func(*Options)) *contenttest.Harness {
	o := Options{Dir: t.TempDir(), Log: slog.New(slog.DiscardHandler)}
	set(&o)
	s := mustOpen(t, o)
	h := &contenttest.Harness{Content: s}
	h.Reopen = func() (meta.Content, error) {
		if err := s.Close(); err != nil {
			return nil, err
		}
		next, err := Open(context.Background(), o)
		if err == nil {
			s = next
			t.Cleanup(func() { closeAll(t, next) })
		}
		return next, err
	}
	h.Damage = func(b meta.Blob, how contenttest.Damage) error { return damageStored(o.Dir, b, how) }
	return h
}

func mustOpen(t testing.TB, o Options) *Store {
	t.Helper()
	checkLeaks(t)
	return openBeside(t, o)
}

// openBeside is mustOpen while another store is open, whose files come and go.
func openBeside(t testing.TB, o Options) *Store {
	t.Helper()
	s, err := Open(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeAll(t, s) })
	return s
}

func closeAll(t testing.TB, s *Store) {
	if err := s.Close(); err != nil && s.broken() == nil {
		t.Errorf("close: %v", err)
	}
}

// checkLeaks compares goroutines and descriptors at the end with those now.
func checkLeaks(t testing.TB) {
	goroutines, fds := runtime.NumGoroutine(), openFDs()
	t.Cleanup(func() {
		deadline := time.Now().Add(5 * time.Second) // a goroutine that has done its work may still be counted
		for runtime.NumGoroutine() > goroutines && time.Now().Before(deadline) {
			runtime.Gosched()
		}
		if n := runtime.NumGoroutine(); n > goroutines {
			t.Errorf("%d goroutines, %d before", n, goroutines)
		}
		if n := openFDs(); n > fds {
			t.Errorf("%d open files, %d before", n, fds)
		}
	})
}

func openFDs() int {
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0
	}
	return len(names)
}

// place returns the file with b's bytes and the offset of the first.
func place(dir string, b meta.Blob) (string, int64) {
	if b.Place == meta.PlaceFile {
		return newFiles(dir, 0).path(b), 0
	}
	return segmentPath(dir, b.Segment), b.Offset + headerSize + content.TableLen(b.Size)
}

func damageStored(dir string, b meta.Blob, how contenttest.Damage) error {
	path, base := place(dir, b)
	switch how.Kind {
	case contenttest.Cut:
		return os.Truncate(path, base+how.Off)
	case contenttest.Remove:
		return os.Remove(path)
	}
	return flip(path, base+how.Off)
}

// flip inverts one bit.
func flip(path string, off int64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	var p [1]byte
	if _, err := f.ReadAt(p[:], off); err != nil {
		return err
	}
	p[0] ^= 0x10
	_, err = f.WriteAt(p[:], off)
	return err
}

// cloneDir copies the folder as it is now: what kill -9 at this moment leaves.
func cloneDir(t testing.TB, dir string) string {
	t.Helper()
	clone := filepath.Join(t.TempDir(), "clone")
	if out, err := exec.Command("cp", "-a", "--sparse=never", dir, clone).CombinedOutput(); err != nil {
		t.Fatalf("copy: %v: %s", err, out)
	}
	return clone
}
