package fusefs

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"nexusfs/meta"
)

// TestHotPathsNeedNoRequests: what the kernel keeps it must not ask for again.
func TestHotPathsNeedNoRequests(t *testing.T) {
	m := mountMem(t, true)
	if err := os.Mkdir(m.dir+"/d", 0o755); err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		m.write(t, fmt.Sprintf("d/f%d", i), "content")
	}
	buf := make([]byte, 100)
	for _, c := range []struct {
		name string
		do   func()
		want string
	}{
		{"stat", func() { m.stat(t, "d/f1") }, "map[]"},
		{"stat of what is missing", func() {
			if _, err := os.Lstat(m.dir + "/d/none"); !errors.Is(err, fs.ErrNotExist) {
				t.Error(err)
			}
		}, "map[]"},
		{"open, read, close", func() {
			fd, err := unix.Open(m.dir+"/d/f1", unix.O_RDONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			if n, err := unix.Read(fd, buf); n != 7 || err != nil {
				t.Error(n, err)
			}
			unix.Close(fd)
		}, "map[OPEN:1]"},
		{"list", func() {
			if names, err := os.ReadDir(m.dir + "/d"); len(names) != 50 || err != nil {
				t.Error(len(names), err)
			}
		}, "map[]"},
		{"append, stat, close", func() {
			fd, err := unix.Open(m.dir+"/d/f2", unix.O_WRONLY|unix.O_APPEND, 0)
			if err != nil {
				t.Fatal(err)
			}
			unix.Write(fd, []byte("more"))
			unix.Close(fd)
		}, "map[FLUSH:1 OPEN:1 WRITE:1]"},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.do()
			for range 20 { // a second may pass, after which directories are asked for again
				m.reqs.count()
				c.do()
				got := m.reqs.count()
				delete(got, "RELEASE") // comes in the background
				if fmt.Sprint(got) == c.want {
					return
				}
				if got["GETATTR"] == 0 {
					t.Fatalf("got %v, want %s", got, c.want)
				}
			}
			t.Error("attributes are asked for each time")
		})
	}
}

// TestP12GrowthAndShrinkBehindTheKernel: whoever opens a file after it was
// changed by somebody else reads what it is now, at its new length, though the
// kernel keeps attributes and pages for hours.
func TestP12GrowthAndShrinkBehindTheKernel(t *testing.T) {
	m := mountMem(t, false)
	m.write(t, "f", "first")
	ino := m.ino(t, "f")
	for i, content := range []string{strings.Repeat("grown ", 5000), "small", "", strings.Repeat("x", 70000), "y"} {
		if m.stat(t, "f"); m.read(t, "f") == content {
			t.Fatal("nothing to see")
		}
		m.behind(ino, content)
		m.srv.Notifier().InvalidateInode(ino, true)
		if got := m.read(t, "f"); got != content {
			t.Errorf("step %d: got %d bytes, want %d", i, len(got), len(content))
		}
		if got := m.stat(t, "f").Size; got != int64(len(content)) {
			t.Errorf("step %d: size %d, want %d", i, got, len(content))
		}
	}
}

// TestOpenDescriptorFollowsTheFile: who has it open already reads the newest
// content too (P29).
func TestOpenDescriptorFollowsTheFile(t *testing.T) {
	m := mountMem(t, false)
	m.write(t, "f", "first")
	f, err := os.Open(m.dir + "/f")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	buf := make([]byte, 100)
	if n, _ := f.ReadAt(buf, 0); string(buf[:n]) != "first" {
		t.Fatalf("got %q", buf[:n])
	}
	m.behind(m.ino(t, "f"), "second, and longer")
	m.srv.Notifier().InvalidateInode(m.ino(t, "f"), true)
	drain(t, m.srv.Notifier())
	if n, _ := f.ReadAt(buf, 0); string(buf[:n]) != "second, and longer" {
		t.Errorf("got %q", buf[:n])
	}
}

// TestNamesChangeBehindTheKernel: created, removed and replaced by somebody
// else, with absence kept for hours.
func TestNamesChangeBehindTheKernel(t *testing.T) {
	m := mountMem(t, false)
	n := m.srv.Notifier()
	list := func() string {
		names, err := os.ReadDir(m.dir)
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, e := range names {
			out = append(out, e.Name())
		}
		return fmt.Sprint(out)
	}
	if _, err := os.Lstat(m.dir + "/new"); !errors.Is(err, fs.ErrNotExist) || list() != "[]" {
		t.Fatal(err, list())
	}
	if _, err := m.Mkdir(t.Context(), meta.Caller{}, meta.RootIno, "new", 0o755, 0); err != nil {
		t.Fatal(err)
	}
	n.InvalidateName(meta.RootIno, "new", 0)
	n.InvalidateInode(meta.RootIno, true)
	drain(t, n)
	ino := m.ino(t, "new")
	if got := list(); got != "[new]" {
		t.Errorf("after it was made: %s", got)
	}
	if err := m.Rmdir(t.Context(), meta.Caller{}, meta.RootIno, "new"); err != nil {
		t.Fatal(err)
	}
	n.InvalidateName(meta.RootIno, "new", ino)
	n.InvalidateInode(meta.RootIno, true)
	drain(t, n)
	if _, err := os.Lstat(m.dir + "/new"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after it was removed: %v", err)
	}
	if got := list(); got != "[]" {
		t.Errorf("after it was removed: %s", got)
	}
}

// TestP11NoteBehindALookup: a name's note that waits for a lookup in its
// directory keeps nobody from opening files.
func TestP11NoteBehindALookup(t *testing.T) {
	m := mountMem(t, false)
	m.write(t, "f", "x")
	if err := os.Mkdir(m.dir+"/d", 0o755); err != nil {
		t.Fatal(err)
	}
	dir, ino := m.ino(t, "d"), m.ino(t, "f")
	m.stat(t, "f")
	entered, leave := make(chan struct{}), make(chan struct{})
	hold := func(name string) {
		if name == "slow" {
			close(entered)
			<-leave
		}
	}
	m.beforeLookup.Store(&hold)
	looked := make(chan struct{})
	go func() { _, _ = os.Lstat(m.dir + "/d/slow"); close(looked) }()
	<-entered
	n := m.srv.Notifier()
	n.InvalidateName(dir, "slow", 0)
	n.InvalidateName(dir, "other", 0)
	m.behind(ino, "changed")
	n.InvalidateInode(ino, true)
	if got := m.read(t, "f"); got != "changed" {
		t.Errorf("got %q", got)
	}
	close(leave)
	<-looked
	drain(t, n)
}

// TestTruncatingOpenPassesANote: an open that truncates holds the file's page
// writes back; an invalidation that must write pages first may then not be
// waited for.
func TestTruncatingOpenPassesANote(t *testing.T) {
	m := mountMem(t, false)
	m.write(t, "f", "")
	ino := m.ino(t, "f")
	// Another process: a page fault of this one would stop the server with it.
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "FUSEFS_TEST_MMAP="+m.dir+"/f")
	done := make(chan struct{})
	go func() {
		defer close(done)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	}()
	n := m.srv.Notifier()
	for {
		select {
		case <-done:
			drain(t, n)
			return
		default:
			n.InvalidateInode(ino, true)
			drain(t, n)
		}
	}
}

// dirtyAndTruncate leaves mapped pages of a file dirty and opens it for truncation, again and again.
func dirtyAndTruncate(path string) error {
	const size = 1 << 20
	fd, err := unix.Open(path, unix.O_RDWR, 0)
	if err != nil {
		return err
	}
	if err := unix.Ftruncate(fd, size); err != nil {
		return err
	}
	mem, err := unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	for range 50 {
		for i := 0; i < size; i += 4096 {
			mem[i]++
		}
		tr, err := unix.Open(path, unix.O_WRONLY|unix.O_TRUNC, 0)
		if err != nil {
			return err
		}
		unix.Close(tr)
		if err := unix.Ftruncate(fd, size); err != nil {
			return err
		}
	}
	return nil
}

// TestP7SignalStorm: whatever signals come, a request that changes something
// is answered with its outcome, and never twice.
func TestP7SignalStorm(t *testing.T) {
	m := mountMem(t, false)
	stop := make(chan struct{})
	tids := make(chan int)
	stormed := make(chan struct{})
	pid := os.Getpid()
	go func() {
		defer close(stormed)
		tid := <-tids
		for {
			select {
			case <-stop:
				return
			default:
				_ = unix.Tgkill(pid, tid, unix.SIGURG)
			}
		}
	}()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	tids <- unix.Gettid()
	for i := range 1500 {
		path := fmt.Sprintf("%s/f%d", m.dir, i)
		fd, err := unix.Open(path, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY, 0o644)
		if err != nil {
			t.Fatalf("create %d: %v", i, err)
		}
		if n, err := unix.Write(fd, []byte("abc")); n != 3 || err != nil {
			t.Fatalf("write %d: %d, %v", i, n, err)
		}
		if err := unix.Fsync(fd); err != nil {
			t.Fatalf("fsync %d: %v", i, err)
		}
		if err := unix.Close(fd); err != nil {
			t.Fatalf("close %d: %v", i, err)
		}
		if err := unix.Rename(path, path+"r"); err != nil {
			t.Fatalf("rename %d: %v", i, err)
		}
	}
	close(stop)
	<-stormed
	names, err := os.ReadDir(m.dir)
	if err != nil || len(names) != 1500 {
		t.Errorf("%d names, %v", len(names), err)
	}
}

// TestListingWhileTheDirectoryChanges: every name that is there all the time
// is listed once, whatever comes and goes between the reads.
func TestListingWhileTheDirectoryChanges(t *testing.T) {
	m := mountMem(t, false)
	const stay = 3000
	for i := range stay {
		m.write(t, fmt.Sprintf("stay-%04d", i), "")
	}
	for round := range 3 {
		d, err := os.Open(m.dir)
		if err != nil {
			t.Fatal(err)
		}
		seen := map[string]int{}
		for i := 0; ; i++ {
			names, err := d.Readdirnames(100)
			for _, n := range names {
				seen[n]++
			}
			if err != nil {
				break
			}
			m.write(t, fmt.Sprintf("come-%d-%d", round, i), "")
			if i > 3 {
				if err := os.Remove(fmt.Sprintf("%s/come-%d-%d", m.dir, round, i-2)); err != nil {
					t.Fatal(err)
				}
			}
		}
		d.Close()
		for i := range stay {
			if n := seen[fmt.Sprintf("stay-%04d", i)]; n != 1 {
				t.Fatalf("round %d: stay-%04d was listed %d times", round, i, n)
			}
		}
	}
	// rm -rf lists and removes at once.
	if out, err := exec.Command("sh", "-c", "rm -rf "+m.dir+"/*-*").CombinedOutput(); err != nil {
		t.Fatal(err, string(out))
	}
	if names, _ := os.ReadDir(m.dir); len(names) != 0 {
		t.Errorf("%d names are left", len(names))
	}
}

// TestCollidingCookies: names that share a cookie are all listed, and a
// listing that stops among them goes on without losing one.
func TestCollidingCookies(t *testing.T) {
	m := mountMem(t, false)
	var want []string
	for i := range 30 {
		name := fmt.Sprintf("same%02d", i)
		if i%3 == 0 {
			name = fmt.Sprintf("plain%02d", i)
		}
		m.write(t, name, "")
		want = append(want, name)
	}
	slices.Sort(want)
	names, err := os.ReadDir(m.dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range names {
		got = append(got, e.Name())
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %v", got)
	}
	fd, err := unix.Open(m.dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	seen := map[string]bool{}
	buf := make([]byte, 96) // two or three entries at once
	for range 200 {
		n, err := unix.Getdents(fd, buf)
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			break
		}
		_, _, some := unix.ParseDirent(buf[:n], -1, nil)
		for _, name := range some {
			seen[name] = true
		}
	}
	for _, name := range want {
		if !seen[name] {
			t.Errorf("%s was not listed", name)
		}
	}
}

func TestTimesAndLimits(t *testing.T) {
	m := mountMem(t, false)
	m.write(t, "f", "x")
	path := m.dir + "/f"
	for _, want := range []time.Time{
		time.Unix(1234567890, 123456789), time.Unix(-1000, 5), time.Unix(0, 0), time.Unix(1<<33, 999999999),
	} {
		if err := os.Chtimes(path, want, want.Add(time.Nanosecond)); err != nil {
			t.Fatal(err)
		}
		st, err := os.Stat(path)
		if err != nil || !st.ModTime().Equal(want.Add(time.Nanosecond)) {
			t.Errorf("got %v, want %v", st.ModTime(), want.Add(time.Nanosecond))
		}
	}
	far := []unix.Timespec{{Sec: 1 << 40}, {Sec: -(1 << 40)}}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, path, far, 0); err != nil {
		t.Fatal(err)
	}
	if st := m.stat(t, "f"); st.Atim.Sec < 9e9 || st.Mtim.Sec > -9e9 {
		t.Errorf("times that do not fit: %d and %d", st.Atim.Sec, st.Mtim.Sec)
	}
	long := m.dir + "/" + strings.Repeat("n", 256)
	if _, err := os.Lstat(long); !errors.Is(err, unix.ENAMETOOLONG) {
		t.Errorf("lookup of a long name: %v", err)
	}
	fd, err := unix.Open(path, unix.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if _, err := unix.Seek(fd, 1<<40, unix.SEEK_DATA); !errors.Is(err, unix.ENXIO) {
		t.Errorf("SEEK_DATA behind the end: %v", err)
	}
	const top = 1<<63 - 1
	if n, err := unix.Pwrite(fd, []byte("a"), top-1); n != 1 || err != nil {
		t.Errorf("the last byte of the range: %d, %v", n, err)
	}
	if _, err := unix.Pwrite(fd, nil, top); err != nil {
		t.Errorf("nothing behind the last byte: %v", err)
	}
	if err := unix.Fallocate(fd, 0, top-5, 100); !errors.Is(err, unix.EFBIG) {
		t.Errorf("fallocate over the end of the range: %v", err)
	}
	if err := unix.Fallocate(fd, unix.FALLOC_FL_COLLAPSE_RANGE, 0, 4096); !errors.Is(err, unix.EOPNOTSUPP) {
		t.Errorf("collapse: %v", err)
	}
	if _, err := unix.IoctlGetInt(fd, unix.FS_IOC_GETFLAGS); !errors.Is(err, unix.ENOTTY) {
		t.Errorf("ioctl: %v", err)
	}
}

func TestStatxHasTheBirthTime(t *testing.T) {
	m := mountMem(t, false)
	before := time.Now()
	m.write(t, "f", "x")
	if err := os.Chtimes(m.dir+"/f", time.Unix(5, 0), time.Unix(5, 0)); err != nil {
		t.Fatal(err)
	}
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, m.dir+"/f", 0, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &st); err != nil {
		t.Fatal(err)
	}
	if st.Mask&unix.STATX_BTIME == 0 {
		t.Skip("this kernel does not ask for it")
	}
	born := time.Unix(st.Btime.Sec, int64(st.Btime.Nsec))
	if born.Before(before.Add(-time.Second)) || born.After(time.Now()) || st.Mtime.Sec != 5 || st.Size != 1 {
		t.Errorf("born %v, mtime %d, size %d", born, st.Mtime.Sec, st.Size)
	}
}

func TestCopyFileRange(t *testing.T) {
	m := mountMem(t, false)
	content := bytes.Repeat([]byte("0123456789"), 10000)
	m.write(t, "a", string(content))
	m.write(t, "b", "old")
	in, err := unix.Open(m.dir+"/a", unix.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(in)
	out, err := unix.Open(m.dir+"/b", unix.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(out)
	offIn, offOut := int64(5), int64(2)
	if n, err := unix.CopyFileRange(in, &offIn, out, &offOut, 1<<20, 0); n != len(content)-5 || err != nil {
		t.Fatalf("copied %d, %v", n, err)
	}
	if got := m.read(t, "b"); got != "ol"+string(content[5:]) {
		t.Errorf("got %d bytes", len(got))
	}
}

// TestStagedAttributesAreNotKept: between a write and its commit the kernel
// asks for attributes each time, after it they are kept.
func TestStagedAttributesAreNotKept(t *testing.T) {
	m := mountMem(t, true)
	f, err := os.Create(m.dir + "/f")
	if err != nil {
		t.Fatal(err)
	}
	f.WriteString("x")
	m.stat(t, "f")
	m.reqs.count()
	m.stat(t, "f")
	if n := m.reqs.count()["GETATTR"]; n == 0 {
		t.Error("staged attributes were kept")
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	m.stat(t, "f")
	m.reqs.count()
	m.stat(t, "f")
	if got := m.reqs.count(); got["GETATTR"] > 1 { // the root's own may be due
		t.Errorf("committed attributes are not kept: %v", got)
	}
}

// TestOpenByHandle: what an NFS server does.
func TestOpenByHandle(t *testing.T) {
	m := mountMem(t, false)
	if err := os.Mkdir(m.dir+"/d", 0o755); err != nil {
		t.Fatal(err)
	}
	m.write(t, "d/f", "by handle")
	handle, _, err := unix.NameToHandleAt(unix.AT_FDCWD, m.dir+"/d/f", 0)
	if err != nil {
		t.Skip(err)
	}
	if err := m.srv.IncEpoch(); err != nil { // the kernel must ask for it by number
		t.Log(err)
	}
	root, err := unix.Open(m.dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(root)
	fd, err := unix.OpenByHandleAt(root, handle, unix.O_RDONLY)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	buf := make([]byte, 100)
	if n, err := unix.Read(fd, buf); string(buf[:max(n, 0)]) != "by handle" {
		t.Errorf("got %q, %v", buf[:max(n, 0)], err)
	}
}

// While one daemon has a zone alone the kernel keeps names and attributes;
// when others come it asks again, and keeps them for a moment only.
func TestNamesAreKeptWhileAlone(t *testing.T) {
	m := mountMem(t, true, func(o *Options) { o.Shared = true })
	m.write(t, "f", "x")
	ask := func() int {
		t.Helper()
		m.reqs.count()
		for range 10 {
			m.stat(t, "f")
		}
		return m.reqs.count()["LOOKUP"]
	}
	ask()
	if got := ask(); got != 0 && !m.srv.raw.noEpoch {
		t.Errorf("alone: asked %d times for a name that is known", got)
	}
	m.shared.Store(true)
	if err := m.srv.Notifier().DropAll(t.Context(), true); err != nil && !m.srv.raw.noEpoch {
		t.Fatal(err)
	}
	if got := ask(); got == 0 {
		t.Error("others came, and the kernel did not ask again")
	}
	var out fuse.EntryOut
	m.srv.raw.fillEntry(&out, &meta.Attr{Ino: m.ino(t, "f"), Mode: meta.ModeRegular})
	if got := out.EntryTimeout(); got != meta.KernelTTLShared {
		t.Errorf("names are kept for %v, want %v", got, meta.KernelTTLShared)
	}
}
