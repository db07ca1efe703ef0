package integration

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"nexusfs/integration/harness"
)

func rename2(from, to string, flags uint) error {
	return unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, flags)
}

func TestRenameReplace(t *testing.T) {
	harness.Targets(t, func(t *testing.T, dir string) {
		p := func(s string) string { return filepath.Join(dir, s) }
		write(t, p("a"), []byte("a"))
		write(t, p("b"), []byte("b"))
		held := open(t, p("b"), os.O_RDONLY)
		must(t, os.Rename(p("a"), p("b")))
		wantNames(t, dir, "b")
		wantContent(t, p("b"), []byte("a"))
		buf := make([]byte, 4)
		n, _ := held.ReadAt(buf, 0)
		wantBytes(t, "the replaced file, still open", buf[:n], []byte("b"))
		var st unix.Stat_t
		must(t, unix.Fstat(int(held.Fd()), &st))
		if st.Nlink != 0 {
			t.Errorf("nlink of a replaced open file: %d", st.Nlink)
		}
		// Two names of one inode: rename does nothing.
		must(t, os.Link(p("b"), p("c")))
		must(t, os.Rename(p("b"), p("c")))
		wantNames(t, dir, "b", "c")
		wantErrno(t, "rename of nothing", os.Rename(p("x"), p("y")), unix.ENOENT)
		wantErrno(t, "into a missing directory", os.Rename(p("b"), p("x/y")), unix.ENOENT)
		wantErrno(t, "below a file", os.Rename(p("b"), p("c/y")), unix.ENOTDIR)

		mkdir(t, p("d1"))
		mkdir(t, p("d2"))
		write(t, p("d2/f"), nil)
		wantErrno(t, "file over directory", unix.Rename(p("b"), p("d1")), unix.EISDIR)
		wantErrno(t, "directory over file", unix.Rename(p("d1"), p("b")), unix.ENOTDIR)
		wantErrno(t, "directory over a full one", unix.Rename(p("d1"), p("d2")), unix.ENOTEMPTY)
		must(t, unix.Rename(p("d2"), p("d1")))
		wantNames(t, p("d1"), "f")
		wantErrno(t, "into itself", unix.Rename(p("d1"), p("d1/sub")), unix.EINVAL)
		mkdir(t, p("d1/e"))
		wantErrno(t, "over its ancestor", unix.Rename(p("d1/e"), p("d1")), unix.ENOTEMPTY)
	})
}

func TestRenameFlags(t *testing.T) {
	harness.Targets(t, func(t *testing.T, dir string) {
		p := func(s string) string { return filepath.Join(dir, s) }
		write(t, p("a"), []byte("a"))
		write(t, p("b"), []byte("b"))
		wantErrno(t, "NOREPLACE onto a name", rename2(p("a"), p("b"), unix.RENAME_NOREPLACE), unix.EEXIST)
		must(t, rename2(p("a"), p("c"), unix.RENAME_NOREPLACE))
		wantNames(t, dir, "b", "c")
		must(t, rename2(p("b"), p("c"), unix.RENAME_EXCHANGE))
		wantContent(t, p("b"), []byte("a"))
		wantContent(t, p("c"), []byte("b"))
		wantErrno(t, "EXCHANGE with nothing", rename2(p("b"), p("x"), unix.RENAME_EXCHANGE), unix.ENOENT)
		wantErrno(t, "both flags", rename2(p("b"), p("c"), unix.RENAME_EXCHANGE|unix.RENAME_NOREPLACE), unix.EINVAL)

		// A file and a full directory change places, link counts follow.
		mkdir(t, p("d"))
		mkdir(t, p("d/sub"))
		write(t, p("d/sub/f"), []byte("deep"))
		mkdir(t, p("e"))
		must(t, rename2(p("d/sub"), p("c"), unix.RENAME_EXCHANGE))
		wantContent(t, p("c/f"), []byte("deep"))
		wantContent(t, p("d/sub"), []byte("b"))
		if n := stat(t, p("d")).Nlink; n != 2 {
			t.Errorf("nlink of the directory that gave its child: %d", n)
		}
		if n := stat(t, dir).Nlink; n != 5 { // c d e
			t.Errorf("nlink of the parent: %d", n)
		}
		dotdot := stat(t, p("c/.."))
		if self := stat(t, dir); dotdot.Ino != self.Ino {
			t.Errorf("'..' of an exchanged directory is inode %d, want %d", dotdot.Ino, self.Ino)
		}
		wantErrno(t, "exchange with an ancestor", rename2(p("c"), p("c/f"), unix.RENAME_EXCHANGE), unix.EINVAL)
	})
}

// TestRenameDirectory moves directories with everything below, while files in
// them are open.
func TestRenameDirectory(t *testing.T) {
	harness.Targets(t, func(t *testing.T, dir string) {
		p := func(s string) string { return filepath.Join(dir, s) }
		must(t, os.MkdirAll(p("a/b/c"), 0o755))
		mkdir(t, p("other"))
		write(t, p("a/b/c/f"), []byte("content"))
		f := open(t, p("a/b/c/f"), os.O_RDWR|os.O_APPEND)
		d := open(t, p("a/b/c"), os.O_RDONLY)
		before := stat(t, p("a/b"))
		tick()
		must(t, os.Rename(p("a/b"), p("other/moved")))
		_, err := f.WriteString(" more")
		must(t, err)
		wantContent(t, p("other/moved/c/f"), []byte("content more"))
		fd, err := unix.Openat(int(d.Fd()), "g", unix.O_CREAT|unix.O_WRONLY, 0o644)
		must(t, err)
		must(t, unix.Close(fd))
		wantNames(t, p("other/moved/c"), "f", "g")
		wantNames(t, p("a"))
		if st := stat(t, p("other/moved")); st.Ino != before.Ino {
			t.Errorf("inode changed by rename: %d, was %d", st.Ino, before.Ino)
		}
		up := stat(t, p("other/moved/.."))
		if other := stat(t, p("other")); up.Ino != other.Ino {
			t.Errorf("'..' of the moved directory is %d, want %d", up.Ino, other.Ino)
		}
		_, err = os.Stat(p("a/b"))
		wantErrno(t, "the old name", err, unix.ENOENT)
	})
}

func TestRenameTimes(t *testing.T) {
	harness.Targets(t, func(t *testing.T, dir string) {
		p := func(s string) string { return filepath.Join(dir, s) }
		mkdir(t, p("from"))
		mkdir(t, p("to"))
		write(t, p("from/f"), nil)
		f0, from0, to0 := stat(t, p("from/f")), stat(t, p("from")), stat(t, p("to"))
		tick()
		must(t, os.Rename(p("from/f"), p("to/f")))
		f1, from1, to1 := stat(t, p("to/f")), stat(t, p("from")), stat(t, p("to"))
		if ns(from1.Mtim) <= ns(from0.Mtim) || ns(to1.Mtim) <= ns(to0.Mtim) {
			t.Errorf("rename did not move the directories' mtime")
		}
		if ns(f1.Mtim) != ns(f0.Mtim) || ns(f1.Ctim) <= ns(f0.Ctim) {
			t.Errorf("file after rename: mtime %d -> %d, ctime %d -> %d", ns(f0.Mtim), ns(f1.Mtim), ns(f0.Ctim), ns(f1.Ctim))
		}
	})
}
