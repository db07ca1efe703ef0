package integration

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"nexusfs/integration/harness"
)

func TestOpenFlags(t *testing.T) {
	harness.Targets(t, func(t *testing.T, dir string) {
		p := filepath.Join(dir, "f")
		_, err := os.OpenFile(p, os.O_RDWR, 0)
		wantErrno(t, "open of a missing name", err, unix.ENOENT)
		f, err := os.OpenFile(p, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o640)
		must(t, err)
		_, err = f.WriteString("hello world")
		must(t, err)
		must(t, f.Close())
		_, err = os.OpenFile(p, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o640)
		wantErrno(t, "O_EXCL on an existing name", err, unix.EEXIST)
		must(t, os.Symlink("nowhere", filepath.Join(dir, "dangling")))
		_, err = os.OpenFile(filepath.Join(dir, "dangling"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o640)
		wantErrno(t, "O_EXCL through a dangling symlink", err, unix.EEXIST)
		wantContent(t, p, []byte("hello world"))

		a := open(t, p, os.O_WRONLY|os.O_APPEND)
		_, err = a.WriteString("!")
		must(t, err)
		wantContent(t, p, []byte("hello world!"))
		tr := open(t, p, os.O_WRONLY|os.O_TRUNC)
		if st := stat(t, p); st.Size != 0 {
			t.Errorf("size after O_TRUNC: got %d, want 0", st.Size)
		}
		_, err = a.WriteString("tail")
		must(t, err)
		_, err = tr.WriteAt([]byte("TA"), 0)
		must(t, err)
		wantContent(t, p, []byte("TAil"))

		_, err = os.OpenFile(dir, os.O_WRONLY, 0)
		wantErrno(t, "writing open of a directory", err, unix.EISDIR)
		_, err = unix.Open(p, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		wantErrno(t, "O_DIRECTORY on a file", err, unix.ENOTDIR)
		_, err = unix.Open(filepath.Join(dir, "dangling"), unix.O_RDONLY|unix.O_NOFOLLOW, 0)
		wantErrno(t, "O_NOFOLLOW on a symlink", err, unix.ELOOP)
		_, err = os.Open(p + "/x")
		wantErrno(t, "a file as a directory", err, unix.ENOTDIR)
		r := open(t, p, os.O_RDONLY)
		_, err = r.Write([]byte("x"))
		wantErrno(t, "write to a reading handle", err, unix.EBADF)
		_, err = tr.Read(make([]byte, 1))
		wantErrno(t, "read from a writing handle", err, unix.EBADF)
	})
}

// TestReadWriteAnywhere mixes handles, offsets and sizes and compares with a
// buffer in memory.
func TestReadWriteAnywhere(t *testing.T) {
	harness.Targets(t, func(t *testing.T, dir string) {
		p := filepath.Join(dir, "f")
		w := open(t, p, os.O_RDWR|os.O_CREATE)
		r := open(t, p, os.O_RDONLY)
		var model []byte
		put := func(off int, data []byte) {
			t.Helper()
			if n, err := w.WriteAt(data, int64(off)); err != nil || n != len(data) {
				t.Fatalf("pwrite %d at %d: %d, %v", len(data), off, n, err)
			}
			if need := off + len(data); need > len(model) {
				model = append(model, make([]byte, need-len(model))...)
			}
			copy(model[off:], data)
		}
		for i, c := range []struct{ off, n int }{
			{0, 1}, {4095, 2}, {100000, 4096}, {65536, 131072}, {3, 10}, {1 << 20, 1}, {1<<20 - 5, 4 << 20}, {4 << 20, 100}, {12345, 54321},
		} {
			put(c.off, pattern(uint64(i), c.n))
			got := make([]byte, len(model))
			n, err := r.ReadAt(got, 0)
			must(t, err)
			wantBytes(t, "read through another handle", got[:n], model)
			if st := stat(t, p); st.Size != int64(len(model)) {
				t.Errorf("size: got %d, want %d", st.Size, len(model))
			}
		}
		must(t, w.Sync())
		must(t, w.Close())
		wantContent(t, p, model)
		buf := make([]byte, 10)
		if n, err := r.ReadAt(buf, int64(len(model))); n != 0 || err != io.EOF {
			t.Errorf("read at the end: got %d, %v", n, err)
		}
		if n, _ := r.ReadAt(buf, int64(len(model))-3); n != 3 {
			t.Errorf("read across the end: got %d, want 3", n)
		}
		_, err := unix.Pread(int(r.Fd()), buf, -1)
		wantErrno(t, "pread at a negative offset", err, unix.EINVAL)
	})
}

func TestTruncateBothWays(t *testing.T) {
	harness.Targets(t, func(t *testing.T, dir string) {
		p := filepath.Join(dir, "f")
		data := pattern(1, 300000)
		write(t, p, data)
		must(t, os.Truncate(p, 100001))
		wantContent(t, p, data[:100001])
		must(t, os.Truncate(p, 200000))
		want := append(bytes.Clone(data[:100001]), make([]byte, 99999)...)
		wantContent(t, p, want)
		f := open(t, p, os.O_RDWR)
		must(t, f.Truncate(5))
		must(t, f.Truncate(4096))
		wantContent(t, p, append(bytes.Clone(data[:5]), make([]byte, 4091)...))
		wantErrno(t, "negative truncate", f.Truncate(-1), unix.EINVAL)
		r := open(t, p, os.O_RDONLY)
		wantErrno(t, "ftruncate of a reading handle", r.Truncate(1), unix.EINVAL)
		wantErrno(t, "truncate of a directory", unix.Truncate(dir, 0), unix.EISDIR)
		wantErrno(t, "truncate of a missing file", unix.Truncate(p+"x", 0), unix.ENOENT)

		before := stat(t, p)
		tick()
		must(t, os.Truncate(p, 4096))
		if after := stat(t, p); ns(after.Ctim) < ns(before.Ctim) {
			t.Errorf("ctime went back by a truncate to the same size")
		}
		tick()
		must(t, os.Truncate(p, 4095))
		if after := stat(t, p); ns(after.Mtim) <= ns(before.Mtim) || ns(after.Ctim) <= ns(before.Ctim) {
			t.Errorf("truncate did not move mtime and ctime")
		}
	})
}

// TestHugeSparse writes at the end of a file of more than 1 TiB and beyond
// what offsets can say.
func TestHugeSparse(t *testing.T) {
	harness.Targets(t, func(t *testing.T, dir string) {
		p := filepath.Join(dir, "f")
		f := open(t, p, os.O_RDWR|os.O_CREATE)
		const far = 5 << 40
		data := pattern(9, 10000)
		_, err := f.WriteAt(data, far)
		must(t, err)
		must(t, f.Sync())
		st := stat(t, p)
		if st.Size != far+10000 {
			t.Errorf("size: got %d, want %d", st.Size, int64(far+10000))
		}
		if st.Blocks*512 > 1<<20 {
			t.Errorf("a sparse file holds %d bytes", st.Blocks*512)
		}
		got := make([]byte, 10000)
		_, err = f.ReadAt(got, far)
		must(t, err)
		wantBytes(t, "data far out", got, data)
		_, err = f.ReadAt(got, 1<<40)
		must(t, err)
		wantBytes(t, "hole", got, make([]byte, 10000))
		off, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_DATA)
		must(t, err)
		if off > far || off < far-1<<20 {
			t.Errorf("SEEK_DATA from 0: got %d, want about %d", off, int64(far))
		}
		must(t, f.Truncate(far/2))
		must(t, f.Truncate(0))
	})
}

// TestOffsetLimits: 2^63 is answered as the man pages say.
func TestOffsetLimits(t *testing.T) {
	harness.Mounted(t, func(t *testing.T, dir string) {
		p := filepath.Join(dir, "f")
		f := open(t, p, os.O_RDWR|os.O_CREATE)
		const last = 1<<63 - 1
		if err := f.Truncate(last); err != nil && harness.Plain() {
			t.Skipf("the plain directory's files end earlier: %v", err)
		} else {
			must(t, err)
		}
		if st := stat(t, p); st.Size != last {
			t.Errorf("size: got %d, want 2^63-1", st.Size)
		}
		if _, err := unix.Pwrite(int(f.Fd()), []byte("x"), last); err != unix.EFBIG && err != unix.EINVAL {
			t.Errorf("write past the largest offset: got %v, want EFBIG, or EINVAL where the kernel answers", err)
		}
		if n, err := unix.Pwrite(int(f.Fd()), []byte("x"), last-1); n != 1 || err != nil {
			t.Errorf("write of the last byte: got %d, %v", n, err)
		}
		got := make([]byte, 1)
		if n, err := unix.Pread(int(f.Fd()), got, last-1); n != 1 || err != nil || got[0] != 'x' {
			t.Errorf("read of the last byte: %d, %v, %q", n, err, got)
		}
		wantErrno(t, "fallocate past 2^63", unix.Fallocate(int(f.Fd()), 0, last-1, 10), unix.EFBIG)
		must(t, f.Truncate(0))
	})
}

func TestSeekDataHole(t *testing.T) {
	harness.Targets(t, func(t *testing.T, dir string) {
		f := open(t, filepath.Join(dir, "f"), os.O_RDWR|os.O_CREATE)
		const mib = 1 << 20
		_, err := f.WriteAt(pattern(1, mib), 4*mib)
		must(t, err)
		_, err = f.WriteAt(pattern(2, mib), 8*mib)
		must(t, err)
		must(t, f.Truncate(16*mib))
		fd := int(f.Fd())
		for _, sync := range []bool{false, true} {
			if sync {
				must(t, f.Sync())
			}
			for _, c := range []struct {
				from   int64
				whence int
				want   int64
			}{
				{0, unix.SEEK_DATA, 4 * mib}, {0, unix.SEEK_HOLE, 0},
				{4*mib + 5, unix.SEEK_DATA, 4*mib + 5}, {4*mib + 5, unix.SEEK_HOLE, 5 * mib},
				{5 * mib, unix.SEEK_DATA, 8 * mib}, {8 * mib, unix.SEEK_HOLE, 9 * mib},
				{15 * mib, unix.SEEK_HOLE, 15 * mib},
			} {
				if got, err := unix.Seek(fd, c.from, c.whence); err != nil || got != c.want {
					t.Errorf("synced %v: lseek(%d, %d): got %d, %v, want %d", sync, c.from, c.whence, got, err, c.want)
				}
			}
			_, err = unix.Seek(fd, 9*mib, unix.SEEK_DATA)
			wantErrno(t, "SEEK_DATA behind the last data", err, unix.ENXIO)
			_, err = unix.Seek(fd, 16*mib, unix.SEEK_HOLE)
			wantErrno(t, "SEEK_HOLE at the end", err, unix.ENXIO)
		}
	})
}

func TestFallocateModes(t *testing.T) {
	harness.Targets(t, func(t *testing.T, dir string) {
		p := filepath.Join(dir, "f")
		data := pattern(3, 256<<10)
		write(t, p, data)
		f := open(t, p, os.O_RDWR)
		fd := int(f.Fd())
		must(t, unix.Fallocate(fd, unix.FALLOC_FL_KEEP_SIZE, 0, 1<<20))
		wantContent(t, p, data)
		must(t, unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 10000, 100000))
		clear(data[10000:110000])
		wantContent(t, p, data)
		must(t, unix.Fallocate(fd, unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, 250<<10, 100<<10))
		clear(data[250<<10:])
		wantContent(t, p, data)
		must(t, unix.Fallocate(fd, unix.FALLOC_FL_ZERO_RANGE, 200<<10, 100<<10))
		clear(data[200<<10:])
		data = append(data, make([]byte, 44<<10)...)
		wantContent(t, p, data)
		must(t, unix.Fallocate(fd, 0, 0, 400<<10))
		data = append(data, make([]byte, 100<<10)...)
		wantContent(t, p, data)
		must(t, unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 1<<30, 4096))
		wantContent(t, p, data)
		must(t, f.Sync())
		wantContent(t, p, data)
		wantErrno(t, "length 0", unix.Fallocate(fd, 0, 0, 0), unix.EINVAL)
		wantErrno(t, "negative offset", unix.Fallocate(fd, 0, -1, 10), unix.EINVAL)
		wantErrno(t, "punch without keep", unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE, 0, 10), unix.EOPNOTSUPP)
		r := open(t, p, os.O_RDONLY)
		wantErrno(t, "reading handle", unix.Fallocate(int(r.Fd()), 0, 0, 10), unix.EBADF)
		before := stat(t, p)
		tick()
		must(t, unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 4096))
		if after := stat(t, p); ns(after.Mtim) <= ns(before.Mtim) || ns(after.Ctim) <= ns(before.Ctim) {
			t.Errorf("punch did not move mtime and ctime")
		}
	})
}

func TestCopyFileRange(t *testing.T) {
	harness.Targets(t, func(t *testing.T, dir string) {
		src, dst := filepath.Join(dir, "src"), filepath.Join(dir, "dst")
		data := pattern(5, 3<<20+777)
		write(t, src, data)
		in := open(t, src, os.O_RDWR)
		out := open(t, dst, os.O_RDWR|os.O_CREATE)
		copyRange(t, in, 0, out, 0, len(data))
		wantContent(t, dst, data)
		// A piece at odd offsets over existing bytes, from dirty data.
		_, err := in.WriteAt([]byte("dirty"), 1000)
		must(t, err)
		copy(data[1000:], "dirty")
		copyRange(t, in, 900, out, 2<<20+13, 100000)
		want := bytes.Clone(data)
		copy(want[1000:], pattern(5, 3<<20)[1000:1005])
		copy(want[2<<20+13:], data[900:100900])
		wantContent(t, dst, want)
		// Inside one file, past the end, and from behind the end.
		copyRange(t, out, 0, out, len(want)+4096, 5000)
		grown := append(bytes.Clone(want), make([]byte, 4096)...)
		grown = append(grown, want[:5000]...)
		wantContent(t, dst, grown)
		off := int64(len(data)) + 5
		n, err := unix.CopyFileRange(int(in.Fd()), &off, int(out.Fd()), nil, 10, 0)
		if n != 0 || err != nil {
			t.Errorf("copy from behind the end: got %d, %v, want 0", n, err)
		}
		a, b := int64(0), int64(10)
		_, err = unix.CopyFileRange(int(out.Fd()), &a, int(out.Fd()), &b, 100, 0)
		wantErrno(t, "overlapping copy", err, unix.EINVAL)
		wantContent(t, src, data)
	})
}

// copyRange copies n bytes; the call may copy fewer at a time.
func copyRange(t testing.TB, in *os.File, inOff int, out *os.File, outOff, n int) {
	t.Helper()
	a, b := int64(inOff), int64(outOff)
	for left := n; left > 0; {
		got, err := unix.CopyFileRange(int(in.Fd()), &a, int(out.Fd()), &b, left, 0)
		if err != nil || got == 0 {
			t.Fatalf("copy_file_range: %d of %d left: %d, %v", left, n, got, err)
		}
		left -= got
	}
}

func TestSyncAndDirectOpens(t *testing.T) {
	harness.Targets(t, func(t *testing.T, dir string) {
		for name, flag := range map[string]int{"O_SYNC": unix.O_SYNC, "O_DSYNC": unix.O_DSYNC} {
			p := filepath.Join(dir, name)
			f := open(t, p, os.O_RDWR|os.O_CREATE|flag)
			for i := range 5 {
				_, err := f.Write(pattern(uint64(i), 5000))
				must(t, err)
			}
			must(t, f.Close())
			if st := stat(t, p); st.Size != 25000 {
				t.Errorf("%s: size %d", name, st.Size)
			}
		}
		p := filepath.Join(dir, "direct")
		fd, err := unix.Open(p, unix.O_RDWR|unix.O_CREAT|unix.O_DIRECT, 0o644)
		if err == unix.EINVAL {
			t.Skip("no O_DIRECT on the control filesystem")
		}
		must(t, err)
		defer unix.Close(fd)
		buf := aligned(8192)
		copy(buf, pattern(4, 8192))
		_, err = unix.Pwrite(fd, buf, 4096)
		must(t, err)
		got := aligned(8192)
		n, err := unix.Pread(fd, got, 4096)
		must(t, err)
		wantBytes(t, "O_DIRECT read", got[:n], buf)
		wantContent(t, p, append(make([]byte, 4096), buf...))
		must(t, unix.Fdatasync(fd))
		d := open(t, dir, os.O_RDONLY)
		must(t, d.Sync())
		must(t, unix.Fdatasync(int(d.Fd())))
	})
}

// aligned returns n zero bytes at an address that O_DIRECT accepts.
func aligned(n int) []byte {
	raw := make([]byte, n+4096)
	skip := int(-uintptrOf(&raw[0]) & 4095)
	return raw[skip : skip+n]
}

func TestReadvWritevAndSplice(t *testing.T) {
	harness.Targets(t, func(t *testing.T, dir string) {
		p := filepath.Join(dir, "f")
		f := open(t, p, os.O_RDWR|os.O_CREATE)
		parts := [][]byte{pattern(1, 10), pattern(2, 5000), pattern(3, 1)}
		_, err := unix.Pwritev(int(f.Fd()), parts, 7)
		must(t, err)
		want := append(make([]byte, 7), bytes.Join(parts, nil)...)
		wantContent(t, p, want)
		r := [][]byte{make([]byte, 8), make([]byte, 5010)}
		_, err = unix.Preadv(int(f.Fd()), r, 0)
		must(t, err)
		wantBytes(t, "preadv", bytes.Join(r, nil), want)

		out := open(t, filepath.Join(dir, "out"), os.O_RDWR|os.O_CREATE)
		off := int64(0)
		n, err := unix.Sendfile(int(out.Fd()), int(f.Fd()), &off, len(want))
		must(t, err)
		wantContent(t, out.Name(), want[:n])
	})
}
