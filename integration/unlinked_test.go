package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"nexusfs/integration/harness"
)

// TestUnlinkedOpenFile: a file without names works on through its handle, with
// nlink 0 and a ctime of the unlink, although its history is kept.
func TestUnlinkedOpenFile(t *testing.T) {
	harness.Targets(t, func(t *testing.T, dir string) {
		p := filepath.Join(dir, "f")
		data := pattern(1, 3<<20)
		write(t, p, data)
		f := open(t, p, os.O_RDWR)
		var before, st unix.Stat_t
		must(t, unix.Fstat(int(f.Fd()), &before))
		tick()
		must(t, os.Remove(p))
		must(t, unix.Fstat(int(f.Fd()), &st))
		if st.Nlink != 0 || ns(st.Ctim) <= ns(before.Ctim) || ns(st.Mtim) != ns(before.Mtim) || st.Size != int64(len(data)) {
			t.Errorf("after unlink: nlink %d ctime %v -> %v mtime %v -> %v size %d", st.Nlink, before.Ctim, st.Ctim, before.Mtim, st.Mtim, st.Size)
		}
		_, err := f.WriteAt([]byte("still here"), 1<<20)
		must(t, err)
		copy(data[1<<20:], "still here")
		must(t, f.Truncate(2<<20))
		must(t, f.Sync())
		must(t, unix.Fchmod(int(f.Fd()), 0o600))
		must(t, unix.Fsetxattr(int(f.Fd()), "user.late", []byte("x"), 0))
		got := make([]byte, 2<<20)
		_, err = f.ReadAt(got, 0)
		must(t, err)
		wantBytes(t, "content of an unlinked file", got, data[:2<<20])
		must(t, unix.Fstat(int(f.Fd()), &st))
		if st.Mode&0o777 != 0o600 || st.Size != 2<<20 || st.Nlink != 0 {
			t.Errorf("fstat: %+v", st)
		}
		// The same through /proc, as a second handle, and a new file of the name.
		again := open(t, fmt.Sprintf("/proc/self/fd/%d", f.Fd()), os.O_RDWR)
		_, err = again.WriteAt([]byte("proc"), 0)
		must(t, err)
		small := make([]byte, 4)
		_, err = f.ReadAt(small, 0)
		must(t, err)
		wantBytes(t, "written through /proc/self/fd", small, []byte("proc"))
		write(t, p, []byte("new"))
		wantContent(t, p, []byte("new"))
		if now := stat(t, p); now.Ino == st.Ino {
			t.Errorf("inode %d was given out again while its file is open", now.Ino)
		}
	})
}

func TestUnlinkOneOfTwoNames(t *testing.T) {
	harness.Targets(t, func(t *testing.T, dir string) {
		a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
		write(t, a, []byte("x"))
		must(t, os.Link(a, b))
		f := open(t, a, os.O_RDWR)
		before := stat(t, a)
		tick()
		must(t, os.Remove(a))
		st := stat(t, b)
		if st.Nlink != 1 || ns(st.Ctim) <= ns(before.Ctim) {
			t.Errorf("nlink %d, ctime %v -> %v", st.Nlink, before.Ctim, st.Ctim)
		}
		_, err := f.WriteAt([]byte("through the removed name's handle"), 0)
		must(t, err)
		wantContent(t, b, []byte("through the removed name's handle"))
		must(t, os.Remove(b))
		var after unix.Stat_t
		must(t, unix.Fstat(int(f.Fd()), &after))
		if after.Nlink != 0 {
			t.Errorf("nlink %d after the last name", after.Nlink)
		}
	})
}

// TestRemovedDirectory: a directory that is somebody's working directory.
func TestRemovedDirectory(t *testing.T) {
	harness.Targets(t, func(t *testing.T, dir string) {
		p := mkdir(t, filepath.Join(dir, "d"))
		d := open(t, p, os.O_RDONLY)
		must(t, os.Remove(p))
		var st unix.Stat_t
		must(t, unix.Fstat(int(d.Fd()), &st))
		if st.Nlink != 0 {
			t.Errorf("nlink of a removed directory: %d", st.Nlink)
		}
		_, err := unix.Openat(int(d.Fd()), "f", unix.O_CREAT|unix.O_WRONLY, 0o644)
		wantErrno(t, "create in a removed directory", err, unix.ENOENT)
		wantErrno(t, "mkdir in a removed directory", unix.Mkdirat(int(d.Fd()), "f", 0o755), unix.ENOENT)
		wantErrno(t, "symlink in a removed directory", unix.Symlinkat("x", int(d.Fd()), "f"), unix.ENOENT)
		write(t, filepath.Join(dir, "g"), nil)
		wantErrno(t, "rename into a removed directory",
			unix.Renameat(unix.AT_FDCWD, filepath.Join(dir, "g"), int(d.Fd()), "g"), unix.ENOENT)
		wantErrno(t, "link into a removed directory",
			unix.Linkat(unix.AT_FDCWD, filepath.Join(dir, "g"), int(d.Fd()), "g", 0), unix.ENOENT)
		if list, err := d.Readdirnames(-1); len(list) != 0 {
			t.Errorf("a removed directory lists %q, %v", list, err)
		}
	})
}
