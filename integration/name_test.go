package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"nexusfs/integration/harness"
)

// TestNamesOfAnyByte makes a file, a directory and a link for every byte that
// a name may hold, and reads all of them back.
func TestNamesOfAnyByte(t *testing.T) {
	harness.Targets(t, func(t *testing.T, dir string) {
		var want []string
		for c := 1; c < 256; c++ {
			if c == '/' {
				continue
			}
			name := string([]byte{byte(c)})
			if c == '.' {
				name = ".x"
			}
			for _, n := range []string{name, name + name + "\xff", "a" + name + "b"} {
				if slices.Contains(want, n) {
					continue
				}
				want = append(want, n)
				must(t, os.WriteFile(filepath.Join(dir, n), []byte(n), 0o600))
			}
		}
		wantNames(t, dir, want...)
		for _, n := range want {
			wantContent(t, dir+"/"+n, []byte(n))
		}
		sub := dir + "/\xf0\x28\x8c\x28 dir\n\x1b[31m"
		must(t, os.Mkdir(sub, 0o755))
		for i, n := range want {
			must(t, os.Rename(dir+"/"+n, sub+"/"+n))
			if i%3 == 0 {
				must(t, os.Symlink(n, sub+"/"+fmt.Sprintf("link-%d", i)))
				got, err := os.Readlink(sub + "/" + fmt.Sprintf("link-%d", i))
				if err != nil || got != n {
					t.Errorf("readlink: got %q, %v, want %q", got, err, n)
				}
			}
		}
		wantNames(t, dir, filepath.Base(sub))
		must(t, os.RemoveAll(sub))
	})
}

func TestNameLimits(t *testing.T) {
	harness.Targets(t, func(t *testing.T, dir string) {
		long := strings.Repeat("n", 255)
		p := filepath.Join(dir, long)
		write(t, p, []byte("x"))
		wantNames(t, dir, long)
		wantContent(t, p, []byte("x"))
		other := strings.Repeat("\xc3\xa4", 127) + "b" // 255 bytes of UTF-8
		must(t, os.Rename(p, filepath.Join(dir, other)))
		must(t, os.Mkdir(p, 0o755))
		must(t, os.Remove(p))
		p += "n"
		_, err := os.Stat(p)
		wantErrno(t, "stat of a 256-byte name", err, unix.ENAMETOOLONG)
		wantErrno(t, "create", os.WriteFile(p, nil, 0o644), unix.ENAMETOOLONG)
		wantErrno(t, "mkdir", os.Mkdir(p, 0o755), unix.ENAMETOOLONG)
		wantErrno(t, "rename", os.Rename(filepath.Join(dir, other), p), unix.ENAMETOOLONG)
		wantErrno(t, "symlink", os.Symlink("x", p), unix.ENAMETOOLONG)
		wantErrno(t, "link", os.Link(filepath.Join(dir, other), p), unix.ENAMETOOLONG)
		wantErrno(t, "unlink", os.Remove(p), unix.ENAMETOOLONG)

		target := strings.Repeat("t", 4095)
		must(t, os.Symlink(target, filepath.Join(dir, "l")))
		if got, err := os.Readlink(filepath.Join(dir, "l")); err != nil || got != target {
			t.Errorf("readlink of a 4,095-byte target: got %d bytes, %v", len(got), err)
		}
		wantErrno(t, "symlink to 4,096 bytes", os.Symlink(target+"t", filepath.Join(dir, "m")), unix.ENAMETOOLONG)
		wantErrno(t, "symlink to nothing", unix.Symlink("", filepath.Join(dir, "m")), unix.ENOENT)
	})
}

func TestSymlinkLoops(t *testing.T) {
	harness.Targets(t, func(t *testing.T, dir string) {
		a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
		must(t, os.Symlink("b", a))
		must(t, os.Symlink("a", b))
		_, err := os.Stat(a)
		wantErrno(t, "stat", err, unix.ELOOP)
		_, err = os.ReadFile(a + "/x")
		wantErrno(t, "open below", err, unix.ELOOP)
		// 40 links in a row are followed, 41 are not.
		write(t, filepath.Join(dir, "l0"), []byte("end"))
		for i := 1; i <= 41; i++ {
			must(t, os.Symlink(fmt.Sprintf("l%d", i-1), filepath.Join(dir, fmt.Sprintf("l%d", i))))
		}
		wantContent(t, filepath.Join(dir, "l40"), []byte("end"))
		_, err = os.ReadFile(filepath.Join(dir, "l41"))
		wantErrno(t, "41 links", err, unix.ELOOP)
		// Absolute, dangling and directory links.
		must(t, os.Symlink(dir, filepath.Join(dir, "abs")))
		wantContent(t, filepath.Join(dir, "abs", "abs", "l3"), []byte("end"))
		_, err = os.Stat(filepath.Join(dir, "l0", "x"))
		wantErrno(t, "file as directory", err, unix.ENOTDIR)
		if st := stat(t, a); st.Size != 1 || st.Mode&unix.S_IFMT != unix.S_IFLNK || st.Mode&0o777 != 0o777 {
			t.Errorf("symlink: size %d mode %o", st.Size, st.Mode)
		}
	})
}

// TestTooManyLinks makes 65,000 links.
func TestTooManyLinks(t *testing.T) {
	harness.OnlyLong(t)
	harness.Mounted(t, func(t *testing.T, dir string) {
		p := filepath.Join(dir, "f")
		write(t, p, nil)
		sub := mkdir(t, filepath.Join(dir, "links"))
		n := 1
		var err error
		for ; n <= 70000; n++ {
			if err = os.Link(p, filepath.Join(sub, fmt.Sprint(n))); err != nil {
				break
			}
		}
		wantErrno(t, fmt.Sprintf("link %d", n), err, unix.EMLINK)
		if st := stat(t, p); int(st.Nlink) != n {
			t.Errorf("nlink: got %d, want %d", st.Nlink, n)
		}
	})
}

func TestDeepDirectories(t *testing.T) {
	harness.Targets(t, func(t *testing.T, dir string) {
		fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		must(t, err)
		name := strings.Repeat("d", 200)
		for range 100 { // 20,000 bytes of path: far beyond PATH_MAX
			must(t, unix.Mkdirat(fd, name, 0o755))
			next, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
			must(t, err)
			must(t, unix.Close(fd))
			fd = next
		}
		f, err := unix.Openat(fd, "leaf", unix.O_CREAT|unix.O_WRONLY, 0o644)
		must(t, err)
		_, err = unix.Write(f, []byte("deep"))
		must(t, err)
		must(t, unix.Close(f))
		must(t, unix.Close(fd))
		_, err = os.Stat(filepath.Join(dir, strings.Repeat(name+"/", 30)))
		wantErrno(t, "a path beyond PATH_MAX", err, unix.ENAMETOOLONG)
		harness.Run(t, dir, "find", ".", "-name", "leaf", "-exec", "cat", "{}", ";")
		harness.Run(t, dir, "rm", "-r", name)
	})
}

func TestLinkRules(t *testing.T) {
	harness.Targets(t, func(t *testing.T, dir string) {
		a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
		write(t, a, []byte("one"))
		before := stat(t, a)
		tick()
		must(t, os.Link(a, b))
		st := stat(t, b)
		if st.Ino != before.Ino || st.Nlink != 2 || ns(st.Ctim) <= ns(before.Ctim) || ns(st.Mtim) != ns(before.Mtim) {
			t.Errorf("after link: %+v, before %+v", st, before)
		}
		write(t, b, []byte("two two"))
		wantContent(t, a, []byte("two two"))
		wantErrno(t, "link onto a name", os.Link(a, b), unix.EEXIST)
		wantErrno(t, "link to a directory", os.Link(dir, b+"x"), unix.EPERM)
		wantErrno(t, "link of nothing", os.Link(b+"x", b+"y"), unix.ENOENT)
		must(t, os.Symlink("a", filepath.Join(dir, "s")))
		must(t, unix.Linkat(unix.AT_FDCWD, filepath.Join(dir, "s"), unix.AT_FDCWD, filepath.Join(dir, "s2"), 0))
		if st := stat(t, filepath.Join(dir, "s2")); st.Mode&unix.S_IFMT != unix.S_IFLNK || st.Nlink != 2 {
			t.Errorf("hard link to a symlink: mode %o nlink %d", st.Mode, st.Nlink)
		}
		must(t, os.Remove(a))
		if st := stat(t, b); st.Nlink != 1 {
			t.Errorf("nlink after unlink: %d", st.Nlink)
		}
		wantContent(t, b, []byte("two two"))
	})
}

// TestDirectoryLinkCounts: nlink of a directory is 2 and one per subdirectory.
func TestDirectoryLinkCounts(t *testing.T) {
	harness.Targets(t, func(t *testing.T, dir string) {
		want := func(n uint64) {
			t.Helper()
			if st := stat(t, dir); uint64(st.Nlink) != n {
				t.Errorf("nlink: got %d, want %d", st.Nlink, n)
			}
		}
		want(2)
		mkdir(t, filepath.Join(dir, "a"))
		mkdir(t, filepath.Join(dir, "b"))
		write(t, filepath.Join(dir, "f"), nil)
		want(4)
		must(t, os.Rename(filepath.Join(dir, "a"), filepath.Join(dir, "b", "a")))
		want(3)
		must(t, os.Rename(filepath.Join(dir, "b", "a"), filepath.Join(dir, "a")))
		must(t, unix.Rename(filepath.Join(dir, "a"), filepath.Join(dir, "b"))) // over an empty directory
		want(3)
		wantErrno(t, "rmdir of a file", unix.Rmdir(filepath.Join(dir, "f")), unix.ENOTDIR)
		wantErrno(t, "unlink of a directory", unix.Unlink(filepath.Join(dir, "b")), unix.EISDIR)
		wantErrno(t, "rmdir of .", unix.Rmdir(filepath.Join(dir, "b")+"/."), unix.EINVAL)
		write(t, filepath.Join(dir, "b", "x"), nil)
		wantErrno(t, "rmdir of a full directory", unix.Rmdir(filepath.Join(dir, "b")), unix.ENOTEMPTY)
		must(t, os.Remove(filepath.Join(dir, "b", "x")))
		must(t, unix.Rmdir(filepath.Join(dir, "b")))
		want(2)
	})
}
