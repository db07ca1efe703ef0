package integration

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"nexusfs/integration/harness"
)

func mapFile(t testing.TB, f *os.File, n, prot, flags int) []byte {
	t.Helper()
	m, err := unix.Mmap(int(f.Fd()), 0, n, prot, flags)
	must(t, err)
	t.Cleanup(func() { _ = unix.Munmap(m) })
	return m
}

func TestMmapShared(t *testing.T) {
	harness.Targets(t, func(t *testing.T, dir string) {
		p := filepath.Join(dir, "f")
		data := pattern(1, 1<<20)
		write(t, p, data)
		f := open(t, p, os.O_RDWR)
		m := mapFile(t, f, len(data), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		wantBytes(t, "mapped", m, data)
		copy(m[123456:], "through the mapping")
		copy(data[123456:], "through the mapping")
		must(t, unix.Msync(m, unix.MS_SYNC))
		wantContent(t, p, data)
		// A write(2) is seen in the mapping.
		_, err := f.WriteAt([]byte("by write"), 500000)
		must(t, err)
		copy(data[500000:], "by write")
		wantBytes(t, "mapping after write(2)", m, data)
		// What is written to the mapping and not synced reaches the file with munmap and close.
		copy(m[4090:], "across a page")
		copy(data[4090:], "across a page")
		must(t, unix.Munmap(m))
		must(t, f.Close())
		wantContent(t, p, data)
	})
}

// TestMmapOutlivesClose: the pages of a mapping reach the file although its
// descriptor is closed long before they are dirtied.
func TestMmapOutlivesClose(t *testing.T) {
	harness.Targets(t, func(t *testing.T, dir string) {
		p := filepath.Join(dir, "f")
		write(t, p, make([]byte, 100000))
		res := harness.Try(harness.HelperCmd("map-shared", p))
		if res.Err != nil {
			t.Fatalf("%v %s", res.Err, res.Stderr)
		}
		want := make([]byte, 100000)
		for off := 0; off < len(want); off += 1000 {
			copy(want[off:], fmt.Sprintf("mark %d", off))
		}
		wantContent(t, p, want)
	})
}

// helperMapShared PATH maps a file, closes it, dirties the mapping and exits.
func helperMapShared(args []string) error {
	f, err := os.OpenFile(args[0], os.O_RDWR, 0)
	if err != nil {
		return err
	}
	m, err := unix.Mmap(int(f.Fd()), 0, 100000, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	for off := 0; off < len(m); off += 1000 {
		copy(m[off:], fmt.Sprintf("mark %d", off))
	}
	return nil
}

func TestMmapPrivate(t *testing.T) {
	harness.Targets(t, func(t *testing.T, dir string) {
		p := filepath.Join(dir, "f")
		data := pattern(2, 50000)
		write(t, p, data)
		f := open(t, p, os.O_RDONLY)
		m := mapFile(t, f, len(data), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
		wantBytes(t, "private mapping", m, data)
		copy(m[100:], "only mine")
		wantContent(t, p, data)
		// Executing a program is a private mapping too.
		bin, err := os.ReadFile("/bin/true")
		must(t, err)
		exe := filepath.Join(dir, "true")
		must(t, os.WriteFile(exe, bin, 0o755))
		harness.Run(t, dir, "./true")
		w, err := os.OpenFile(exe, os.O_WRONLY, 0)
		must(t, err)
		must(t, w.Close())
	})
}

// TestMmapTwoProcessesSee: a mapping shared by several handles on one machine.
func TestMmapTwoHandles(t *testing.T) {
	harness.Targets(t, func(t *testing.T, dir string) {
		p := filepath.Join(dir, "f")
		write(t, p, make([]byte, 8192))
		a := mapFile(t, open(t, p, os.O_RDWR), 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		b := mapFile(t, open(t, p, os.O_RDWR), 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		copy(a[5000:], "seen at once")
		if !bytes.HasPrefix(b[5000:], []byte("seen at once")) {
			t.Errorf("the second mapping shows %q", b[5000:5012])
		}
		r := open(t, p, os.O_RDONLY)
		buf := make([]byte, 12)
		_, err := r.ReadAt(buf, 5000)
		must(t, err)
		wantBytes(t, "read(2) beside a dirty mapping", buf, []byte("seen at once"))
	})
}

// TestMmapAndTruncate: pages behind a shrunk end are gone; what is regrown is zero.
func TestMmapAndTruncate(t *testing.T) {
	harness.Targets(t, func(t *testing.T, dir string) {
		p := filepath.Join(dir, "f")
		data := pattern(3, 20000)
		write(t, p, data)
		f := open(t, p, os.O_RDWR)
		m := mapFile(t, f, 20000, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		m[19999] = 1
		must(t, f.Truncate(5000))
		must(t, f.Truncate(20000))
		clear(data[5000:])
		wantBytes(t, "mapping after shrink and growth", m, data)
		wantContent(t, p, data)
	})
}
