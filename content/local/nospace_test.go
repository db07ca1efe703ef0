package local

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"nexusfs/meta"
)

// mounted gives the test a small disk of its own. It takes root, which CI is.
func mounted(t *testing.T, fstype string, size int64) string {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("CI must run as root: this test mounts a small disk")
		}
		t.Skip("only root can mount a small disk")
	}
	dir := filepath.Join(t.TempDir(), "disk")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if fstype == "tmpfs" {
		if err := unix.Mount("none", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
			t.Fatal(err)
		}
	} else {
		image := filepath.Join(t.TempDir(), "image")
		if err := os.WriteFile(image, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(image, size); err != nil {
			t.Fatal(err)
		}
		run(t, "mkfs."+fstype, "-q", image)
		run(t, "mount", "-o", "loop", image, dir)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("umount: %v", err)
			unix.Unmount(dir, unix.MNT_DETACH)
		}
	})
	return dir
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
}

// A full disk: the Put says so and leaves nothing, what was stored stays, and
// when there is room again everything goes on.
func TestFullDisk(t *testing.T) {
	ctx := context.Background()
	for _, fstype := range []string{"tmpfs", "ext4"} {
		for _, size := range []int{60_000, 2 << 20, meta.BlobMax} {
			t.Run(fmt.Sprintf("%s, %d bytes", fstype, size), func(t *testing.T) {
				o := Options{Dir: filepath.Join(mounted(t, fstype, 24<<20), "s"), SegmentSize: 8 << 20}
				s := mustOpen(t, o)
				var all []blobData
				full := false
				for i := 0; i < 1000 && !full; i++ {
					data := randomBytes(uint64(i), size)
					b, err := s.Put(ctx, data)
					switch {
					case err == nil:
						all = append(all, blobData{b, data})
					case meta.KindOf(err) != meta.KindNoSpace || !errors.Is(err, unix.ENOSPC):
						t.Fatalf("put on a full disk: got %v, want no space", err)
					default:
						full = true
					}
				}
				if !full || len(all) < 3 {
					t.Fatalf("%d puts, full: %v", len(all), full)
				}
				fullDiskStill(t, s, o, all, size)
			})
		}
	}
}

func fullDiskStill(t *testing.T, s *Store, o Options, all []blobData, size int) {
	ctx := context.Background()
	if _, err := s.Put(ctx, randomBytes(5000, size)); meta.KindOf(err) != meta.KindNoSpace || err == nil {
		t.Errorf("second put on a full disk: got %v, want no space", err)
	}
	if names, _ := os.ReadDir(filepath.Join(o.Dir, "tmp")); len(names) > 0 {
		t.Errorf("left behind: %v", names)
	}
	if err := s.Sync(ctx); err != nil {
		t.Fatalf("sync on a full disk: %v", err)
	}
	if got := walkAll(t, s); len(got) != len(all) {
		t.Errorf("walk lists %d blobs, want the %d whose put succeeded", len(got), len(all))
	}
	n := len(all) / 2
	var drop []meta.Blob
	for _, b := range all[:n] {
		drop = append(drop, b.Blob)
	}
	if err := s.Free(ctx, drop); err != nil {
		t.Fatalf("free on a full disk: %v", err)
	}
	all = all[n:]
	if err := s.Sync(ctx); err != nil { // ext4 gives blocks back when its journal commits
		t.Fatal(err)
	}
	unix.Sync()
	for i := range max(n/2, 1) {
		data := randomBytes(uint64(6000+i), size)
		b, err := s.Put(ctx, data)
		if err != nil {
			t.Fatalf("put %d of %d after space was freed: %v", i, n/2, err)
		}
		all = append(all, blobData{b, data})
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = mustOpen(t, o)
	defer s.Close()
	for _, b := range all {
		mustRead(t, s, b)
	}
}

func TestReadOnlyDisk(t *testing.T) {
	ctx := context.Background()
	disk := mounted(t, "tmpfs", 16<<20)
	o := Options{Dir: filepath.Join(disk, "s")}
	s := mustOpen(t, o)
	b, f := mustPut(t, s, randomBytes(1, 50_000)), mustPut(t, s, randomBytes(2, 1<<20))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", disk, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(ctx, o); err == nil || meta.KindOf(err) != meta.KindReadOnly {
		t.Errorf("open on a read-only disk: got %v, want read-only", err)
	}
	o.ReadOnly = true
	s = mustOpen(t, o)
	defer s.Close()
	mustRead(t, s, b)
	mustRead(t, s, f)
}
