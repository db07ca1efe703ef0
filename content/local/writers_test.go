package local

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"nexusfs/content"
	"nexusfs/meta"
)

func TestPlacesAndNames(t *testing.T) {
	tests := []struct {
		segment int64
		want    string
	}{
		{1, "root/segments/00000001.seg"},
		{123456789, "root/segments/123456789.seg"},
		{1<<segmentBits | 1, "root/w0001/segments/00000001.seg"},
		{12345<<segmentBits | 42, "root/w12345/segments/00000042.seg"},
	}
	for _, test := range tests {
		if got := segmentPath("root", test.segment); got != test.want {
			t.Errorf("segment %#x: got %s, want %s", test.segment, got, test.want)
		}
	}
	for name, want := range map[string]int64{"w0001": 1, "w12345": 12345, "w0000": -1, "w1": -1, "w00001": -1, "w65536": -1, "x0001": -1, "w000x": -1} {
		if n, ok := folderWriter(name); ok != (want > 0) || ok && n != want {
			t.Errorf("%s: got %d, %v; want %d", name, n, ok, want)
		}
	}
}

// A store from before there were several writers opens as it is and stays so.
func TestStoreOfOneWriterStaysAsItIs(t *testing.T) {
	o := Options{Dir: filepath.Join(t.TempDir(), "s")}
	s := mustOpen(t, o)
	b, f := mustPut(t, s, randomBytes(1, 50_000)), mustPut(t, s, randomBytes(2, 2<<20))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for _, added := range []string{"locks", "notes"} {
		if err := os.RemoveAll(filepath.Join(o.Dir, added)); err != nil {
			t.Fatal(err)
		}
	}
	s = mustOpen(t, o)
	mustRead(t, s, b)
	mustRead(t, s, f)
	next := mustPut(t, s, randomBytes(3, 50_000))
	if b.Segment != 1 || next.Segment != 1 || next.Offset <= b.Offset || s.writer != 0 {
		t.Errorf("a new blob lies at %d/%d behind %d/%d, of writer %d", next.Segment, next.Offset, b.Segment, b.Offset, s.writer)
	}
	if list, err := writers(o.Dir); err != nil || len(list) != 1 {
		t.Errorf("one writer has the folders of %v: %v", list, err)
	}
}

// Temporary files are their writer's alone: they go when the next one takes
// the folder, and stay while somebody has it.
func TestTemporaryFilesOfOthersStay(t *testing.T) {
	a, b := two(t, nil)
	of := func(f *folder) string { return filepath.Join(f.dir, "tmp", "left") }
	for _, s := range []*Store{a, b} {
		if err := os.WriteFile(of(s.folder), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	openBeside(t, Options{Dir: a.opts.Dir})
	if _, err := os.Stat(of(a.folder)); err != nil {
		t.Errorf("a running writer's file: %v", err)
	}
	if _, err := os.Stat(of(b.folder)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file of a writer that has ended: %v, want it gone", err)
	}
}

// Places are never used twice: not even when a segment is emptied, removed,
// and the store opened again.
func TestSegmentNumbersNeverComeAgain(t *testing.T) {
	ctx := context.Background()
	o := Options{Dir: filepath.Join(t.TempDir(), "s")}
	nothing := func(meta.Blob) (bool, error) { return false, nil }
	for name, empty := range map[string]func(*Store, meta.Blob) error{
		"freed":           func(s *Store, b meta.Blob) error { return s.Free(ctx, []meta.Blob{b}) },
		"never committed": func(*Store, meta.Blob) error { return nil },
	} {
		for _, tended := range []string{"by the next writer", "by another"} {
			t.Run(name+", "+tended, func(t *testing.T) {
				checkLeaks(t)
				seen := make(map[meta.Blob]bool)
				for range 4 {
					holder := openBeside(t, o)
					s := holder
					if tended == "by another" {
						s = openBeside(t, o)
					}
					b := mustPut(t, holder, randomBytes(1, 50_000))
					if seen[b.Blob] {
						t.Fatalf("the place %d/%d was used before", b.Segment, b.Offset)
					}
					seen[b.Blob] = true
					if err := errors.Join(holder.Close(), s.Close()); err != nil {
						t.Fatal(err)
					}
					// The folder of the holder is tended by whoever comes now.
					var between *Store
					if tended == "by another" {
						lock, err := lockWriter(o.Dir, 0)
						if err != nil {
							t.Fatal(err)
						}
						between = openBeside(t, o) // writer 1
						lock.unlock()
					} else {
						between = openBeside(t, o)
					}
					err := errors.Join(empty(between, b.Blob), between.Compact(ctx, nothing, neverMoved))
					if err != nil {
						t.Fatal(err)
					}
					if len(walkAll(t, between)) != 0 {
						t.Error("the segment was not emptied")
					}
					if err := between.Close(); err != nil {
						t.Fatal(err)
					}
				}
			})
		}
	}
}

// A reader beside the writer who frees and compacts, and beside one who
// compacts what that one left: the right bytes or KindStale, never damage.
func TestReadersOfOtherWritersRaceWithCompact(t *testing.T) {
	owner, c := sparseStore(t, true)
	reader, third := openBeside(t, owner.opts), openBeside(t, owner.opts)
	ids := make([]meta.BlobID, 0, len(c.at))
	for id := range c.at {
		ids = append(ids, id)
	}
	var stop atomic.Bool
	var wg sync.WaitGroup
	for w := range 3 {
		wg.Go(func() {
			buf := make([]byte, meta.BlobMax)
			for i := w; !stop.Load(); i++ {
				b := c.get(ids[i%len(ids)])
				err := reader.Read(context.Background(), b.Blob, 0, buf[:b.Size])
				for err != nil && meta.KindOf(err) == meta.KindStale && c.get(b.ID).Blob != b.Blob {
					b = c.get(b.ID)
					err = reader.Read(context.Background(), b.Blob, 0, buf[:b.Size])
				}
				if err != nil || !bytes.Equal(buf[:b.Size], b.data) {
					t.Errorf("reader beside another writer's compact: %v", err)
					return
				}
			}
		})
	}
	before := c.all()
	for _, s := range []*Store{owner, third} {
		if err := s.Compact(context.Background(), c.live, c.moved); err != nil {
			t.Error(err)
		}
		if s == owner {
			if err := owner.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	stop.Store(true)
	wg.Wait()
	if n := reader.Stats().Damaged; n != 0 {
		t.Errorf("%d reads count as damaged", n)
	}
	moved := 0
	for _, b := range before {
		if c.get(b.ID).Blob != b.Blob {
			moved++
		}
	}
	if moved == 0 {
		t.Error("nothing was moved: this test has tested nothing")
	}
}

// A network client may have an old file open and show old pages of it: before
// an error about another writer's place is believed, the file is opened anew.
func TestOldPictureOfAnothersFileIsNotBelieved(t *testing.T) {
	ctx := context.Background()
	owner, reader := two(t, nil)
	record, file := mustPut(t, owner, randomBytes(1, 100_000)), mustPut(t, owner, randomBytes(2, 2<<20))
	old := func() { // what the reader has open shows nothing of what was put
		for _, key := range []fdKey{{segment: record.Segment}, fileKey(file.Blob)} {
			fd, err := openFile(filepath.Join(t.TempDir(), "old"), unix.O_RDWR|unix.O_CREAT)
			if err != nil {
				t.Fatal(err)
			}
			reader.fds.drop(key)
			reader.fds.add(key, fd).release()
		}
	}
	for _, b := range []blobData{record, file} {
		old()
		mustRead(t, reader, b)
	}
	mustFree(t, owner, record.Blob)
	old()
	reader.tables, reader.leaves = content.NewTables(1), newLeafCache(0)
	err := reader.Read(ctx, record.Blob, 0, make([]byte, 10))
	if err == nil || meta.KindOf(err) != meta.KindStale || reader.Stats().Damaged != 0 {
		t.Errorf("read of a freed place: got %v, %d damaged, want stale", err, reader.Stats().Damaged)
	}
}

func (c *catalog) all() (out []blobData) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, b := range c.at {
		out = append(out, b)
	}
	return out
}

// Three writers put, free each other's blobs and compact, all at once.
func TestWritersAtOnce(t *testing.T) {
	ctx := context.Background()
	o := Options{Dir: filepath.Join(t.TempDir(), "s"), SegmentSize: 256 << 10, OpenFiles: 8}
	c := &catalog{at: make(map[meta.BlobID]blobData)}
	var stores []*Store
	checkLeaks(t)
	for range 3 {
		stores = append(stores, openBeside(t, o))
	}
	var wg sync.WaitGroup
	for w, s := range stores {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(w), 7))
			for i := range 80 {
				size := 17_000 + i%9*7_000
				if i%10 == 9 {
					size = 1<<20 + i
				}
				b := mustPut(t, s, randomBytes(uint64(w*1000+i), size))
				c.add(b)
				victim, ok := c.take(rnd.IntN(3) > 0)
				if ok {
					if err := s.Free(ctx, []meta.Blob{victim.Blob}); err != nil {
						t.Error(err)
					}
				}
				if i%20 == 19 {
					if err := errors.Join(s.Sync(ctx), s.Compact(ctx, c.live, c.moved)); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	for _, s := range stores {
		mustFree(t, s) // what was noted last
	}
	all := c.all()
	for _, s := range stores {
		for _, b := range all {
			mustRead(t, s, b)
		}
		if got := walkAll(t, s); len(got) != len(all) {
			t.Errorf("writer %d lists %d blobs, want %d", s.writer, len(got), len(all))
		}
	}
}

func (c *catalog) add(b blobData) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at[b.ID] = b
}

// take takes some blob out.
func (c *catalog) take(really bool) (blobData, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, b := range c.at {
		if !really {
			break
		}
		delete(c.at, id)
		return b, true
	}
	return blobData{}, false
}

// Segments of others take no more descriptors than one's own, and none for
// long once they are removed.
func TestOpenFilesOfOtherWritersAreBounded(t *testing.T) {
	ctx := context.Background()
	owner, reader := two(t, func(o *Options) { o.OpenFiles, o.SegmentSize = 10, 64<<10 })
	var all []blobData
	var list []meta.Blob
	for i := range 40 {
		b := mustPut(t, owner, randomBytes(uint64(i), 20_000))
		all, list = append(all, b), append(list, b.Blob)
	}
	if err := owner.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	before := openFDs()
	for range 2 {
		for _, b := range all {
			mustRead(t, reader, b)
		}
	}
	if n := openFDs() - before; n > 10 {
		t.Errorf("reading another writer's segments keeps %d files open, want 10 at most", n)
	}
	mustFree(t, owner, list...)
	if err := errors.Join(owner.Close(), reader.Compact(ctx, everything, neverMoved)); err != nil {
		t.Fatal(err)
	}
	reader.fds.mu.Lock()
	defer reader.fds.mu.Unlock()
	for _, o := range reader.fds.open {
		if unlinked(o.fd) {
			t.Error("a removed segment is held open")
		}
	}
}

// Compact remembers what it counted in folders that it holds for the moment.
func TestCompactCountsOthersOnce(t *testing.T) {
	owner, other := two(t, func(o *Options) { o.SegmentSize = 256 << 10 })
	for i := range 40 {
		mustPut(t, owner, randomBytes(uint64(i), 30_000))
	}
	if err := owner.Close(); err != nil {
		t.Fatal(err)
	}
	var asked []int
	for range 3 {
		n := 0
		live := func(meta.Blob) (bool, error) { n++; return true, nil }
		if err := other.Compact(context.Background(), live, neverMoved); err != nil {
			t.Fatal(err)
		}
		asked = append(asked, n)
	}
	if asked[0] != 40 || asked[1] != 0 || asked[2] != 0 {
		t.Errorf("three compacts ask about %v records, want 40, then none", asked)
	}
}

// A power loss after the Sync of a second writer, which has made its folder.
func TestPowerLossKeepsWhatASecondWriterSynced(t *testing.T) {
	disk := newPowerCut()
	first := mustOpen(t, Options{Dir: filepath.Join(t.TempDir(), "s"), syncer: disk, Shared: true})
	second := openBeside(t, first.opts)
	lost := mustPut(t, first, randomBytes(1, 50_000))
	record, file := mustPut(t, second, randomBytes(2, 50_000)), mustPut(t, second, randomBytes(3, 2<<20))
	if err := second.Sync(context.Background()); err != nil {
		t.Fatal(err)
	}
	after := openBeside(t, Options{Dir: disk.restore(t, first.opts.Dir)})
	mustRead(t, after, record)
	mustRead(t, after, file)
	if err := after.Read(context.Background(), lost.Blob, 0, make([]byte, 10)); err == nil {
		t.Error("a Sync covers what another process has put: this test's disk does not forget")
	}
}

// The embedded store's rows come before its blobs are synced: what a killed
// writer of any number has put is behind the next writer's first Sync (P22).
func TestSyncCoversWhatAnyKilledWriterWrote(t *testing.T) {
	first, second := two(t, nil)
	b := mustPut(t, second, randomBytes(1, 100_000))
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	disk := newPowerCut()
	killed := cloneDir(t, first.opts.Dir)
	s := openBeside(t, Options{Dir: killed, syncer: disk})
	if s.writer != 0 {
		t.Fatalf("writer %d", s.writer)
	}
	if err := s.Sync(context.Background()); err != nil {
		t.Fatal(err)
	}
	mustRead(t, openBeside(t, Options{Dir: disk.restore(t, killed)}), b)
}

func TestLockErrorsSayWhatToDo(t *testing.T) {
	tests := []struct {
		err  error
		kind meta.Kind
		want string
	}{
		{unix.ENOLCK, meta.KindNotSupported, "mount it with locks"},
		{unix.ENOSYS, meta.KindNotSupported, "mount it with locks"},
		{unix.EOPNOTSUPP, meta.KindNotSupported, "mount it with locks"},
		{unix.EIO, meta.KindIO, "flock here"},
	}
	for _, test := range tests {
		err := lockError("here", test.err)
		if openKind(err) != test.kind || !strings.Contains(err.Error(), test.want) || !errors.Is(err, test.err) {
			t.Errorf("%v: got %v (%v), want %v and %q", test.err, err, openKind(err), test.kind, test.want)
		}
	}
	if err := lockError("here", unix.EWOULDBLOCK); !errors.Is(err, errLocked) {
		t.Errorf("a lock that another has: got %v", err)
	}
}

// Another machine is given the lock that this one believes to have: this one
// notices before its caller commits, and neither writes to the other's files.
func TestLostLockIsNoticedAtSync(t *testing.T) {
	ctx := context.Background()
	o := Options{Dir: filepath.Join(t.TempDir(), "s"), remote: true}
	a := mustOpen(t, o)
	safe := mustPut(t, a, randomBytes(1, 50_000))
	if err := a.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	// As if the server had given the lock up: its file is another one now, which
	// the kernel lets be locked once more.
	if err := os.Remove(lockPath(o.Dir, 0)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(lockPath(o.Dir, 0), []byte("another-boot TOKEN"), 0o600); err != nil {
		t.Fatal(err)
	}
	b := openBeside(t, o)
	if b.writer != 0 {
		t.Fatalf("the second is writer %d: this test tests nothing", b.writer)
	}
	mine, theirs := mustPut(t, a, randomBytes(2, 50_000)), mustPut(t, b, randomBytes(3, 50_000))
	if mine.Segment == theirs.Segment {
		t.Errorf("both append to segment %d", mine.Segment)
	}
	if err := b.Sync(ctx); err != nil {
		t.Errorf("sync of who has the lock: %v", err)
	}
	err := a.Sync(ctx)
	if err == nil || meta.KindOf(err) != meta.KindIO || !strings.Contains(err.Error(), lockPath(o.Dir, 0)) {
		t.Errorf("sync of who has lost it: got %v, want an error that names the lock", err)
	}
	if _, err := a.Put(ctx, mine.data); err == nil {
		t.Error("who has lost the lock goes on putting")
	}
	for _, blob := range []blobData{safe, theirs} {
		mustRead(t, a, blob)
		mustRead(t, b, blob)
	}
}

func TestNewSegmentAfterAnotherBoot(t *testing.T) {
	tests := map[string]struct {
		remote bool
		boot   string
		same   bool // the segment is continued
	}{
		"local disk, another boot":   {false, "another-boot", true},
		"local disk, this boot":      {false, bootID(), true},
		"network, this boot":         {true, bootID(), true},
		"network, another boot":      {true, "another-boot", false},
		"network, nobody knows whom": {true, "", false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			o := Options{Dir: filepath.Join(t.TempDir(), "s"), remote: test.remote}
			s := mustOpen(t, o)
			b := mustPut(t, s, randomBytes(1, 50_000))
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(lockPath(o.Dir, 0), []byte(test.boot+" TOKEN"), 0o600); err != nil {
				t.Fatal(err)
			}
			s = mustOpen(t, o)
			next := mustPut(t, s, randomBytes(2, 50_000))
			if (next.Segment == b.Segment) != test.same {
				t.Errorf("the next blob lies in segment %d, the one before in %d", next.Segment, b.Segment)
			}
			mustRead(t, s, b)
		})
	}
}

func TestMountsThatKeepLocksLocal(t *testing.T) {
	const table = `22 1 253:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
40 22 0:50 / /mnt/a\040b rw,relatime shared:9 - nfs4 server:/a rw,vers=4.2,hard,local_lock=none,addr=10.0.0.1
41 22 0:51 / /mnt/b rw,relatime - nfs server:/b rw,vers=3,nolock,local_lock=all
42 22 0:52 / /mnt/c rw - nfs server:/c rw,vers=3,local_lock=flock
43 22 0:53 / /mnt/d rw - lustre server:/d rw,localflock
44 22 0:54 / /mnt/e rw - ceph 10.0.0.1:/ rw,acl
45 22 0:55 / /mnt/f rw - ext4 /dev/vdb rw,nolock
bad line
`
	for device, want := range map[string]string{
		"253:0": "", "0:50": "", "0:51": "nolock", "0:52": "local_lock=flock", "0:53": "localflock", "0:54": "", "0:55": "", "9:9": "",
	} {
		m, err := findMount(strings.NewReader(table), device)
		if got := m.localLocks(); err != nil || got != want {
			t.Errorf("device %s (%+v): got %q, %v; want %q", device, m, got, err, want)
		}
	}
	if m, err := mountOf(t.TempDir()); err != nil || m.fstype == "" {
		t.Errorf("this disk: got %+v, %v", m, err)
	}
}
