package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nexusfs/integration/harness"
)

func TestUtimensat(t *testing.T) {
	harness.Targets(t, func(t *testing.T, dir string) {
		p := filepath.Join(dir, "f")
		write(t, p, []byte("x"))
		set := func(a, m unix.Timespec) unix.Stat_t {
			t.Helper()
			must(t, unix.UtimesNanoAt(unix.AT_FDCWD, p, []unix.Timespec{a, m}, 0))
			return stat(t, p)
		}
		st := set(unix.Timespec{Sec: 1234567890, Nsec: 123456789}, unix.Timespec{Sec: 987654321, Nsec: 987654321})
		if ns(st.Atim) != 1234567890123456789 || ns(st.Mtim) != 987654321987654321 {
			t.Errorf("times: atime %d mtime %d", ns(st.Atim), ns(st.Mtim))
		}
		omit := unix.Timespec{Nsec: unix.UTIME_OMIT}
		now := unix.Timespec{Nsec: unix.UTIME_NOW}
		st = set(omit, unix.Timespec{Sec: 5})
		if ns(st.Atim) != 1234567890123456789 || ns(st.Mtim) != 5e9 {
			t.Errorf("OMIT: atime %d mtime %d", ns(st.Atim), ns(st.Mtim))
		}
		start := time.Now().Add(-time.Second).UnixNano()
		st = set(now, omit)
		if ns(st.Atim) < start || ns(st.Mtim) != 5e9 || ns(st.Ctim) < start {
			t.Errorf("NOW: atime %d mtime %d ctime %d", ns(st.Atim), ns(st.Mtim), ns(st.Ctim))
		}
		c := ns(st.Ctim)
		tick()
		if st = set(omit, omit); ns(st.Ctim) != c {
			t.Errorf("OMIT twice moved ctime")
		}
		// Before 1970 and beyond 2038.
		st = set(unix.Timespec{Sec: -86400 * 365 * 10, Nsec: 5}, unix.Timespec{Sec: 5000000000, Nsec: 7})
		if st.Atim.Sec != -86400*365*10 || st.Atim.Nsec != 5 || st.Mtim.Sec != 5000000000 || st.Mtim.Nsec != 7 {
			t.Errorf("far times: %+v %+v", st.Atim, st.Mtim)
		}
		// A symlink's own times.
		l := filepath.Join(dir, "l")
		must(t, os.Symlink("f", l))
		must(t, unix.UtimesNanoAt(unix.AT_FDCWD, l, []unix.Timespec{{Sec: 11}, {Sec: 22}}, unix.AT_SYMLINK_NOFOLLOW))
		if ls := stat(t, l); ls.Mtim.Sec != 22 || stat(t, p).Mtim.Sec != 5000000000 {
			t.Errorf("times through a symlink: link %d, file %d", ls.Mtim.Sec, stat(t, p).Mtim.Sec)
		}
	})
}

// TestTimesOfContent: writes move mtime and ctime, a write after utimes wins.
func TestTimesOfContent(t *testing.T) {
	harness.Targets(t, func(t *testing.T, dir string) {
		p := filepath.Join(dir, "f")
		f := open(t, p, os.O_RDWR|os.O_CREATE)
		a := stat(t, p)
		tick()
		_, err := f.WriteString("x")
		must(t, err)
		b := stat(t, p)
		if ns(b.Mtim) <= ns(a.Mtim) || ns(b.Ctim) <= ns(a.Ctim) {
			t.Errorf("a write did not move mtime and ctime: %v %v", a.Mtim, b.Mtim)
		}
		// tar's order: write, set the time, close: the time stays.
		must(t, unix.UtimesNanoAt(unix.AT_FDCWD, p, []unix.Timespec{{Sec: 100}, {Sec: 100}}, 0))
		must(t, f.Close())
		if c := stat(t, p); c.Mtim.Sec != 100 {
			t.Errorf("close changed the mtime that utimes set: %v", c.Mtim)
		}
		d0 := stat(t, dir)
		tick()
		write(t, filepath.Join(dir, "g"), nil)
		if d1 := stat(t, dir); ns(d1.Mtim) <= ns(d0.Mtim) || ns(d1.Ctim) <= ns(d0.Ctim) {
			t.Errorf("create did not move the directory's times")
		}
	})
}

func TestStatxBirthTime(t *testing.T) {
	harness.Targets(t, func(t *testing.T, dir string) {
		p := filepath.Join(dir, "f")
		start := coarse()
		write(t, p, []byte("x"))
		tick()
		write(t, p, []byte("y"))
		var stx unix.Statx_t
		must(t, unix.Statx(unix.AT_FDCWD, p, 0, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &stx))
		if stx.Mask&unix.STATX_BTIME == 0 {
			t.Fatal("no birth time")
		}
		birth := stx.Btime.Sec*1e9 + int64(stx.Btime.Nsec)
		mod := stx.Mtime.Sec*1e9 + int64(stx.Mtime.Nsec)
		if birth < start || birth >= mod {
			t.Errorf("birth %d: want between %d and the mtime %d", birth, start, mod)
		}
	})
}

func TestModesAndUmask(t *testing.T) {
	harness.Targets(t, func(t *testing.T, dir string) {
		old := unix.Umask(0o027)
		defer unix.Umask(old)
		p := filepath.Join(dir, "f")
		f, err := os.OpenFile(p, os.O_CREATE|os.O_WRONLY, 0o666)
		must(t, err)
		must(t, f.Close())
		must(t, os.Mkdir(filepath.Join(dir, "d"), 0o777))
		must(t, unix.Mkfifo(filepath.Join(dir, "p"), 0o666))
		for name, want := range map[string]uint32{"f": 0o640, "d": 0o750, "p": 0o640} {
			if got := stat(t, filepath.Join(dir, name)).Mode & 0o7777; got != want {
				t.Errorf("mode of %s under umask 027: got %o, want %o", name, got, want)
			}
		}
		for _, m := range []uint32{0, 0o7777, 0o4755, 0o1777, 0o644} {
			before := stat(t, p)
			tick()
			must(t, unix.Chmod(p, m))
			st := stat(t, p)
			if st.Mode&0o7777 != m || ns(st.Ctim) <= ns(before.Ctim) || ns(st.Mtim) != ns(before.Mtim) {
				t.Errorf("chmod %o: got %o, ctime %v -> %v", m, st.Mode&0o7777, before.Ctim, st.Ctim)
			}
		}
		// A file made without write permission is writable through its handle.
		ro, err := os.OpenFile(filepath.Join(dir, "ro"), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o400)
		must(t, err)
		_, err = ro.WriteString("git does this")
		must(t, err)
		must(t, ro.Close())
		wantContent(t, filepath.Join(dir, "ro"), []byte("git does this"))
	})
}

func TestSetgidDirectories(t *testing.T) {
	harness.Targets(t, func(t *testing.T, dir string) {
		harness.NeedRoot(t)
		d := mkdir(t, filepath.Join(dir, "d"))
		must(t, os.Chown(d, 1000, 2000))
		must(t, unix.Chmod(d, 0o2777))
		asUser(t, 1000, 1000, nil, func() {
			write(t, filepath.Join(d, "f"), nil)
			mkdir(t, filepath.Join(d, "sub"))
			must(t, os.Symlink("f", filepath.Join(d, "l")))
			// Setgid on a file of a group one is not in falls away.
			fd, err := unix.Open(filepath.Join(d, "g"), unix.O_CREAT|unix.O_WRONLY, 0o2755)
			must(t, err)
			must(t, unix.Close(fd))
		})
		for name, wantMode := range map[string]uint32{"f": 0o644, "sub": 0o2755, "l": 0o777, "g": 0o755} {
			st := stat(t, filepath.Join(d, name))
			if st.Gid != 2000 || st.Uid != 1000 || st.Mode&0o7777 != wantMode {
				t.Errorf("%s: owner %d:%d mode %o, want 1000:2000 %o", name, st.Uid, st.Gid, st.Mode&0o7777, wantMode)
			}
		}
	})
}

func TestStickyDirectories(t *testing.T) {
	harness.Targets(t, func(t *testing.T, dir string) {
		harness.NeedRoot(t)
		d := mkdir(t, filepath.Join(dir, "d"))
		must(t, unix.Chmod(d, 0o1777))
		f := filepath.Join(d, "f")
		asUser(t, 1000, 1000, nil, func() {
			write(t, f, []byte("mine"))
			mkdir(t, filepath.Join(d, "sub"))
		})
		asUser(t, 1001, 1001, nil, func() {
			wantErrno(t, "unlink", os.Remove(f), unix.EPERM)
			wantErrno(t, "rename away", os.Rename(f, f+"x"), unix.EPERM)
			write(t, filepath.Join(d, "own"), nil)
			wantErrno(t, "rename over", os.Rename(filepath.Join(d, "own"), f), unix.EPERM)
			wantErrno(t, "rmdir", unix.Rmdir(filepath.Join(d, "sub")), unix.EPERM)
			must(t, os.Remove(filepath.Join(d, "own")))
		})
		asUser(t, 1000, 1000, nil, func() { must(t, os.Remove(f)) })
	})
}

// TestSetuidFallsAway: writing, truncating and giving away a file drops setuid
// and, where the group may execute, setgid; root keeps them when writing.
func TestSetuidFallsAway(t *testing.T) {
	harness.Targets(t, func(t *testing.T, dir string) {
		harness.NeedRoot(t)
		must(t, unix.Chmod(dir, 0o777))
		for what, change := range map[string]func(p string) error{
			"write": func(p string) error { return appendTo(p, "x") },
			"truncate": func(p string) error {
				return os.Truncate(p, 3)
			},
			"open with O_TRUNC": func(p string) error {
				fd, err := unix.Open(p, unix.O_WRONLY|unix.O_TRUNC, 0)
				if err != nil {
					return err
				}
				return unix.Close(fd)
			},
			"fallocate": func(p string) error {
				fd, err := unix.Open(p, unix.O_WRONLY, 0)
				if err != nil {
					return err
				}
				defer unix.Close(fd)
				return unix.Fallocate(fd, 0, 0, 10000)
			},
			"copy_file_range": func(p string) error {
				return copyOnto(filepath.Join(dir, "source"), p)
			},
		} {
			write(t, filepath.Join(dir, "source"), pattern(1, 5000))
			p := filepath.Join(dir, "f")
			write(t, p, []byte("content"))
			must(t, os.Chown(p, 1000, 1000))
			must(t, unix.Chmod(p, 0o6777))
			asUser(t, 1001, 1001, nil, func() {
				if err := change(p); err != nil {
					t.Errorf("%s: %v", what, err)
				}
			})
			if m := stat(t, p).Mode & 0o7777; m != 0o777 {
				t.Errorf("mode after %s by another user: got %o, want 777", what, m)
			}
			must(t, os.Remove(p))
		}
		p := filepath.Join(dir, "f")
		write(t, p, []byte("content"))
		must(t, unix.Chmod(p, 0o6755))
		must(t, appendTo(p, "by root"))
		if m := stat(t, p).Mode & 0o7777; m != 0o6755 {
			t.Errorf("mode after a write by root: got %o, want 6755", m)
		}
		must(t, os.Chown(p, 1000, 1000))
		if m := stat(t, p).Mode & 0o7777; m != 0o755 {
			t.Errorf("mode after chown: got %o, want 755", m)
		}
		must(t, unix.Chmod(p, 0o2745)) // setgid without group execute: mandatory locking's mark
		asUser(t, 1000, 1000, nil, func() { must(t, os.Chown(p, -1, 1000)) })
	})
}

func appendTo(p, s string) error {
	fd, err := unix.Open(p, unix.O_WRONLY|unix.O_APPEND, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, err = unix.Write(fd, []byte(s))
	return err
}

func copyOnto(from, to string) error {
	in, err := unix.Open(from, unix.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(in)
	out, err := unix.Open(to, unix.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(out)
	_, err = unix.CopyFileRange(in, nil, out, nil, 1000, 0)
	return err
}

func TestChownRules(t *testing.T) {
	harness.Targets(t, func(t *testing.T, dir string) {
		harness.NeedRoot(t)
		must(t, unix.Chmod(dir, 0o777))
		p := filepath.Join(dir, "f")
		asUser(t, 1000, 1000, []int{3000}, func() {
			write(t, p, nil)
			must(t, os.Chown(p, -1, 3000))
			wantErrno(t, "chgrp to a foreign group", os.Chown(p, -1, 4000), unix.EPERM)
			wantErrno(t, "giving a file away", os.Chown(p, 1001, -1), unix.EPERM)
			// chmod by an owner outside of the file's group drops setgid.
		})
		asUser(t, 1001, 1001, nil, func() {
			wantErrno(t, "chmod by a stranger", unix.Chmod(p, 0o777), unix.EPERM)
			wantErrno(t, "chown by a stranger", os.Chown(p, 1001, 1001), unix.EPERM)
			wantErrno(t, "utimes by a stranger", unix.UtimesNanoAt(unix.AT_FDCWD, p, []unix.Timespec{{Sec: 1}, {Sec: 1}}, 0), unix.EPERM)
		})
		asUser(t, 1000, 1000, nil, func() {
			must(t, unix.Chmod(p, 0o2755))
		})
		if st := stat(t, p); st.Mode&0o7777 != 0o755 || st.Gid != 3000 {
			t.Errorf("setgid by an owner outside of the group: mode %o gid %d", st.Mode&0o7777, st.Gid)
		}
		must(t, os.Lchown(p, 4294967294-1, 77))
		if st := stat(t, p); st.Uid != 4294967293 || st.Gid != 77 {
			t.Errorf("large ids: %d:%d", st.Uid, st.Gid)
		}
	})
}

// TestPermissions: allow_other with the kernel's permission checks.
func TestPermissions(t *testing.T) {
	harness.Targets(t, func(t *testing.T, dir string) {
		harness.NeedRoot(t)
		secret := filepath.Join(dir, "secret")
		group := filepath.Join(dir, "group")
		closed := mkdir(t, filepath.Join(dir, "closed"))
		write(t, secret, []byte("s"))
		write(t, group, []byte("g"))
		write(t, filepath.Join(closed, "f"), nil)
		must(t, os.Chown(secret, 1000, 1000))
		must(t, unix.Chmod(secret, 0o600))
		must(t, os.Chown(group, 0, 3000))
		must(t, unix.Chmod(group, 0o060))
		must(t, unix.Chmod(closed, 0o700))
		asUser(t, 1000, 1000, nil, func() {
			wantContent(t, secret, []byte("s"))
			_, err := os.ReadFile(group)
			wantErrno(t, "group file outside of the group", err, unix.EACCES)
			_, err = os.Stat(filepath.Join(closed, "f"))
			wantErrno(t, "behind a closed directory", err, unix.EACCES)
			_, err = os.ReadDir(closed)
			wantErrno(t, "listing a closed directory", err, unix.EACCES)
			wantErrno(t, "create in a directory of root", os.WriteFile(filepath.Join(dir, "x"), nil, 0o644), unix.EACCES)
			wantErrno(t, "unlink in a directory of root", os.Remove(secret), unix.EACCES)
			wantErrno(t, "mkdir", os.Mkdir(filepath.Join(dir, "x"), 0o755), unix.EACCES)
			wantErrno(t, "truncate", os.Truncate(group, 0), unix.EACCES)
		})
		asUser(t, 1001, 1001, []int{3000}, func() {
			_, err := os.ReadFile(secret)
			wantErrno(t, "another user's file", err, unix.EACCES)
			wantContent(t, group, []byte("g"))
			must(t, appendTo(group, "+"))
		})
	})
}

func TestDeviceNodes(t *testing.T) {
	harness.Targets(t, func(t *testing.T, dir string) {
		harness.NeedRoot(t)
		for name, c := range map[string]struct {
			mode uint32
			dev  uint64
		}{
			"fifo": {unix.S_IFIFO | 0o600, 0}, "sock": {unix.S_IFSOCK | 0o755, 0},
			"chr": {unix.S_IFCHR | 0o666, unix.Mkdev(1, 3)}, "blk": {unix.S_IFBLK | 0o660, unix.Mkdev(259, 70000)},
			"file": {unix.S_IFREG | 0o600, 0},
		} {
			p := filepath.Join(dir, name)
			if err := unix.Mknod(p, c.mode, int(c.dev)); err != nil {
				t.Fatalf("mknod %s: %v", name, err)
			}
			if st := stat(t, p); st.Mode&^0o022 != c.mode&^0o022 || st.Rdev != c.dev || st.Nlink != 1 {
				t.Errorf("%s: mode %o rdev %x, want %o %x", name, st.Mode, st.Rdev, c.mode, c.dev)
			}
			wantErrno(t, "mknod again", unix.Mknod(p, c.mode, int(c.dev)), unix.EEXIST)
		}
		must(t, unix.Chmod(dir, 0o777))
		asUser(t, 1000, 1000, nil, func() {
			wantErrno(t, "mknod of a device by a user", unix.Mknod(filepath.Join(dir, "c2"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))), unix.EPERM)
			must(t, unix.Mkfifo(filepath.Join(dir, "p2"), 0o600))
		})
		// A fifo carries data.
		out := make(chan string, 1)
		go func() {
			data, err := os.ReadFile(filepath.Join(dir, "fifo"))
			out <- fmt.Sprint(string(data), err)
		}()
		must(t, os.WriteFile(filepath.Join(dir, "fifo"), []byte("through"), 0))
		if got := <-out; got != "through<nil>" {
			t.Errorf("fifo: %s", got)
		}
	})
}

func TestStatfs(t *testing.T) {
	harness.Targets(t, func(t *testing.T, dir string) {
		var before, after unix.Statfs_t
		must(t, unix.Statfs(dir, &before))
		if before.Namelen != 255 || before.Bsize == 0 || before.Blocks == 0 || before.Bavail == 0 || before.Bavail > before.Bfree || before.Bfree > before.Blocks || before.Ffree == 0 {
			t.Errorf("statfs: %+v", before)
		}
		f := open(t, filepath.Join(dir, "f"), os.O_RDWR|os.O_CREATE)
		_, err := f.Write(pattern(1, 32<<20))
		must(t, err)
		must(t, f.Sync())
		must(t, unix.Statfs(dir, &after))
		free := func(s unix.Statfs_t) int64 { return int64(s.Bfree) * s.Bsize }
		// Others may write to the same disk meanwhile: only the direction is sure.
		if used := free(before) - free(after); used < 16<<20 {
			t.Logf("free space shrank by %d bytes for 32 MiB written", used)
		}
	})
}
