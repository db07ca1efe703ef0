package integration

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"nexusfs/integration/harness"
)

// smallDisk mounts a filesystem of some MiB for a store.
func smallDisk(t *testing.T, fstype string, mib int) string {
	t.Helper()
	harness.NeedRoot(t)
	base := harness.Scratch(t)
	dir := mkdir(t, filepath.Join(base, "disk"))
	if fstype == "tmpfs" {
		harness.Run(t, base, "mount", "-t", "tmpfs", "-o", fmt.Sprintf("size=%dm", mib), "none", dir)
	} else {
		harness.Need(t, "mkfs.ext4")
		harness.Shell(t, base, fmt.Sprintf("truncate -s %dM img && mkfs.ext4 -q -m 0 img && mount -o loop img disk && rmdir disk/lost+found", mib))
	}
	t.Cleanup(func() { harness.Run(t, base, "umount", dir) })
	return dir
}

// TestFullDisk fills the store's disk: the error reaches write, fsync or close
// of whoever wrote, what was acknowledged stays right, and after space is freed
// everything goes on.
func TestFullDisk(t *testing.T) {
	for _, fstype := range []string{"tmpfs", "ext4"} {
		t.Run(fstype, func(t *testing.T) {
			disk := smallDisk(t, fstype, 160)
			m := harness.New(t, harness.Options{Store: filepath.Join(disk, "store"), Args: []string{"-o", "history=off"}})
			kept := pattern(7, 1<<20)
			write(t, filepath.Join(m.Dir, "kept"), kept)
			m.CLI("sync", m.Dir)
			// Fill: each file is acknowledged whole, or refused with ENOSPC.
			var acked []int
			var refused error
			for i := 0; i < 600 && refused == nil; i++ {
				if refused = writeSynced(filepath.Join(m.Dir, fmt.Sprint("fill", i)), pattern(uint64(i), 1<<20)); refused == nil {
					acked = append(acked, i)
				}
			}
			if !errors.Is(refused, unix.ENOSPC) {
				t.Fatalf("after %d MiB on a disk of 160: %v, want ENOSPC", len(acked), refused)
			}
			if len(acked) < 40 {
				t.Errorf("only %d MiB of a disk of 160 could be used", len(acked))
			}
			for _, i := range acked {
				wantContent(t, filepath.Join(m.Dir, fmt.Sprint("fill", i)), pattern(uint64(i), 1<<20))
			}
			wantContent(t, filepath.Join(m.Dir, "kept"), kept)
			// Removing works on a full disk, and then there is room again.
			for _, i := range acked[:len(acked)*3/4] {
				must(t, os.Remove(filepath.Join(m.Dir, fmt.Sprint("fill", i))))
			}
			_ = os.Remove(filepath.Join(m.Dir, fmt.Sprint("fill", len(acked))))
			m.CLI("gc", m.Dir)
			for i := range 10 {
				must(t, writeSynced(filepath.Join(m.Dir, fmt.Sprint("again", i)), pattern(uint64(1000+i), 1<<20)))
			}
			m.Remount()
			for i := range 10 {
				wantContent(t, filepath.Join(m.Dir, fmt.Sprint("again", i)), pattern(uint64(1000+i), 1<<20))
			}
			wantContent(t, filepath.Join(m.Dir, "kept"), kept)
		})
	}
}

// writeSynced writes a file and returns the first error of write, fsync or close.
func writeSynced(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

// TestFullDiskByOthers: somebody else fills the disk and frees it again; the
// mount goes on without a remount.
func TestFullDiskByOthers(t *testing.T) {
	disk := smallDisk(t, "tmpfs", 120)
	m := harness.New(t, harness.Options{Store: filepath.Join(disk, "store")})
	write(t, filepath.Join(m.Dir, "before"), []byte("x"))
	m.CLI("sync", m.Dir)
	ballast := filepath.Join(disk, "ballast")
	harness.Try(harness.Cmd{Args: []string{"dd", "if=/dev/zero", "of=" + ballast, "bs=1M", "status=none"}})
	var refused error
	for i := 0; i < 300 && refused == nil; i++ {
		refused = writeSynced(filepath.Join(m.Dir, fmt.Sprint(i)), pattern(uint64(i), 300000))
	}
	if !errors.Is(refused, unix.ENOSPC) {
		t.Errorf("on a full disk: %v, want ENOSPC", refused)
	}
	wantContent(t, filepath.Join(m.Dir, "before"), []byte("x"))
	must(t, os.Remove(ballast))
	for i := range 5 {
		must(t, writeSynced(filepath.Join(m.Dir, fmt.Sprint("after", i)), pattern(uint64(i), 300000)))
		wantContent(t, filepath.Join(m.Dir, fmt.Sprint("after", i)), pattern(uint64(i), 300000))
	}
}

// contentFiles lists the files below the store's content folder, largest first
// found, with at least min bytes of data.
func contentFiles(t *testing.T, dir string, min int64) []string {
	t.Helper()
	var out []string
	must(t, filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if info, err := d.Info(); err == nil && info.Mode().IsRegular() && info.Size() >= min {
			out = append(out, p)
		}
		return nil
	}))
	return out
}

// TestDamagedBlob: a blob that was changed, cut or removed on the disk gives
// EIO for its file alone, never wrong bytes, and fsck finds it.
func TestDamagedBlob(t *testing.T) {
	for name, damage := range map[string]func(p string, at int64) error{
		"changed": func(p string, at int64) error { return flipByte(p, at) },
		"cut":     func(p string, at int64) error { return os.Truncate(p, at) },
		"removed": func(p string, _ int64) error { return os.Remove(p) },
	} {
		t.Run(name, func(t *testing.T) {
			m := harness.New(t, harness.Options{NoFsck: true})
			victim := pattern(1, 3<<20)
			write(t, filepath.Join(m.Dir, "victim"), victim)
			write(t, filepath.Join(m.Dir, "healthy"), pattern(2, 3<<20))
			write(t, filepath.Join(m.Dir, "small"), []byte("rides in SQL"))
			must(t, m.Stop())
			file, at := findBytes(t, m.Content, victim[1<<20:1<<20+64])
			must(t, damage(file, at))
			m.Restart()
			data, err := os.ReadFile(filepath.Join(m.Dir, "victim"))
			if !errors.Is(err, unix.EIO) {
				t.Errorf("reading the damaged file: %d bytes, %v, want EIO", len(data), err)
			}
			if !bytes.Equal(data, victim[:len(data)]) {
				t.Errorf("wrong bytes were read before the error")
			}
			wantContent(t, filepath.Join(m.Dir, "small"), []byte("rides in SQL"))
			wantContent(t, filepath.Join(m.Dir, "healthy"), pattern(2, 3<<20))
			if log := m.Log(); !strings.Contains(strings.ToLower(log), "damag") && !strings.Contains(log, "hash") && !strings.Contains(log, "missing") {
				t.Errorf("the log does not tell of the damage:\n%s", log)
			}
			if res := m.TryCLI("fsck", m.Dir); res.Code != 1 {
				t.Errorf("fsck of a damaged store: code %d\n%s%s", res.Code, res.Stdout, res.Stderr)
			}
			// Writing anew heals the file.
			write(t, filepath.Join(m.Dir, "victim"), victim)
			wantContent(t, filepath.Join(m.Dir, "victim"), victim)
			must(t, os.Remove(filepath.Join(m.Dir, "victim")))
		})
	}
}

// findBytes finds the content file that holds needle, and where.
func findBytes(t *testing.T, dir string, needle []byte) (string, int64) {
	t.Helper()
	for _, p := range contentFiles(t, dir, int64(len(needle))) {
		data, err := os.ReadFile(p)
		must(t, err)
		if i := bytes.Index(data, needle); i >= 0 {
			return p, int64(i)
		}
	}
	t.Fatalf("no content file holds the bytes; files: %q", contentFiles(t, dir, 0))
	return "", 0
}

func flipByte(path string, at int64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, at); err != nil {
		return err
	}
	b[0] ^= 0x40
	_, err = f.WriteAt(b, at)
	return err
}

// TestReadOnlyDisk: a store on a disk that takes no writes is refused with a
// sentence; a disk that turns read-only under a running mount gives errors to
// writers, not wrong answers to readers.
func TestReadOnlyDisk(t *testing.T) {
	harness.EmbeddedOnly(t, "the store is on a disk of its own")
	disk := smallDisk(t, "ext4", 64)
	m := harness.New(t, harness.Options{Store: filepath.Join(disk, "store"), NoFsck: true})
	write(t, filepath.Join(m.Dir, "f"), pattern(1, 100000))
	must(t, m.Stop())
	harness.Run(t, "/", "mount", "-o", "remount,ro", disk)
	res := m.TryCLI("mount", m.Store, m.Dir, "--background")
	if res.Code != 3 || !strings.Contains(res.Stderr, "read-only") {
		t.Errorf("mount of a store on a read-only disk: code %d, %q", res.Code, res.Stderr)
		if res.Code == 0 {
			m.CLI("umount", m.Dir)
		}
	}
	harness.Run(t, "/", "mount", "-o", "remount,rw", disk)
	m.Restart()
	wantContent(t, filepath.Join(m.Dir, "f"), pattern(1, 100000))
}

// TestBrokenDatabase: a store whose database is no database, or cut short.
func TestBrokenDatabase(t *testing.T) {
	harness.EmbeddedOnly(t, "breaks the database file")
	for name, breakIt := range map[string]func(db string) error{
		"garbage": func(db string) error { return os.WriteFile(db, bytes.Repeat([]byte("garbage "), 1000), 0o600) },
		"empty":   func(db string) error { return os.Truncate(db, 0) },
		"cut":     func(db string) error { return os.Truncate(db, 5000) },
		"removed": func(db string) error { return os.Remove(db) },
	} {
		t.Run(name, func(t *testing.T) {
			m := harness.New(t, harness.Options{NoFsck: true})
			write(t, filepath.Join(m.Dir, "f"), pattern(1, 100000))
			must(t, m.Stop())
			db := filepath.Join(m.Store, "meta.db")
			must(t, breakIt(db))
			res := m.TryCLI("mount", m.Store, m.Dir, "--background")
			if res.Code != 3 || res.Stderr == "" || strings.Contains(res.Stderr, "goroutine ") {
				t.Errorf("mount: code %d, %q", res.Code, res.Stderr)
			}
			if res.Code == 0 {
				m.CLI("umount", m.Dir)
			}
			if len(contentFiles(t, m.Content, 1000)) == 0 {
				t.Errorf("the content is gone")
			}
		})
	}
}

// TestForeignDatabase: somebody else's SQLite database is not touched.
func TestForeignDatabase(t *testing.T) {
	harness.NeedMount(t)
	harness.Need(t, "sqlite3")
	base := harness.Scratch(t)
	store, mnt := mkdir(t, filepath.Join(base, "store")), mkdir(t, filepath.Join(base, "mnt"))
	harness.Run(t, store, "sqlite3", "meta.db", "create table users(name); insert into users values('x');")
	before := tree(t, base)
	res := harness.Try(harness.Cmd{Args: []string{harness.Binary(t), "mount", store, mnt, "--background"}})
	if res.Code != 3 || res.Stderr == "" {
		t.Errorf("code %d, %q", res.Code, res.Stderr)
	}
	wantSameTree(t, tree(t, base), before)
}

// TestNewerSchema: a database of a newer nexusfs is refused and left alone.
func TestNewerSchema(t *testing.T) {
	harness.EmbeddedOnly(t, "writes to the database file")
	harness.Need(t, "sqlite3")
	m := harness.New(t, harness.Options{NoFsck: true})
	write(t, filepath.Join(m.Dir, "f"), []byte("x"))
	must(t, m.Stop())
	db := filepath.Join(m.Store, "meta.db")
	old := strings.TrimSpace(harness.Run(t, "/", "sqlite3", db, "pragma user_version"))
	harness.Run(t, "/", "sqlite3", db, "pragma user_version=9999")
	res := m.TryCLI("mount", m.Store, m.Dir, "--background")
	if res.Code != 3 || !strings.Contains(res.Stderr, "newer") {
		t.Errorf("code %d, %q", res.Code, res.Stderr)
		if res.Code == 0 {
			m.CLI("umount", m.Dir)
		}
	}
	harness.Run(t, "/", "sqlite3", db, "pragma user_version="+old)
	m.Restart()
	wantContent(t, filepath.Join(m.Dir, "f"), []byte("x"))
}

// TestNoFuse: without /dev/fuse the user is told so.
func TestNoFuse(t *testing.T) {
	harness.NeedRoot(t)
	harness.NeedMount(t)
	base := harness.Scratch(t)
	mkdir(t, filepath.Join(base, "mnt"))
	res := harness.Try(harness.Cmd{Dir: base, Args: []string{"unshare", "-m", "--propagation", "private", "sh", "-c",
		"mount -t tmpfs none /dev && mknod /dev/null c 1 3 && exec " + harness.Binary(t) + " mount store mnt --background"}})
	if res.Code != 4 || !strings.Contains(res.Stderr, "fuse") {
		t.Errorf("code %d, %q", res.Code, res.Stderr)
	}
}
