package sqlite

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
	"nexusfs/meta"
	"zombiezen.com/go/sqlite"
)

// childCommits commits until it is killed and prints what was acknowledged.
func childCommits(path string) {
	s, err := Open(ctx, Options{Path: path})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	w := &world{Store: s, dir: meta.RootIno}
	if w.session, w.epoch, _, err = s.Begin(ctx, meta.SessionInfo{}); err != nil {
		os.Exit(1)
	}
	w.next, _ = s.Inos(ctx, 1<<16)
	w.last = w.next + 1<<16
	for n := 0; ; n++ {
		batch := make([]*meta.Change, 1+rand.IntN(3))
		for i := range batch {
			batch[i] = w.create(rand.IntN(2) == 0)
		}
		out, err := s.Commit(ctx, &meta.Batch{Session: w.session, Epoch: w.epoch, Changes: batch})
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println(out[len(out)-1].Rev)
		if n%100 == 99 {
			s.Checkpoint(ctx, true)
		}
	}
}

// After kill -9 every acknowledged operation is there and nothing is torn.
func TestKill(t *testing.T) {
	w := newWorld(t)
	path := w.path
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	for round := range 5 {
		c := child(t, "commit", path)
		out, err := c.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		// A small pipe: the child runs ahead of what is read by little.
		if _, err := unix.FcntlInt(out.(*os.File).Fd(), unix.F_SETPIPE_SZ, 4096); err != nil {
			t.Fatal(err)
		}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		var acked int64
		buf, read := make([]byte, 1<<16), 0
		for target := 2000 + rand.IntN(4000); read < target; {
			n, err := out.Read(buf)
			if err != nil {
				t.Fatalf("the child ended: %v", err)
			}
			read += n
			if lines := strings.Split(strings.TrimSuffix(string(buf[:n]), "\n"), "\n"); len(lines) > 2 {
				if _, err := fmt.Sscan(lines[len(lines)-2], &acked); err != nil {
					t.Fatalf("the child says %q", lines)
				}
			}
		}
		c.Process.Kill()
		c.Wait()
		s, err := Open(ctx, Options{Path: path})
		if err != nil {
			t.Fatal(err)
		}
		head, err := s.Head(ctx)
		if err != nil || int64(head.Rev) < acked {
			t.Errorf("round %d: revision %d was acknowledged, %d is there (%v)", round, acked, head.Rev, err)
		}
		clean(t, s)
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

// clean fails when fsck or SQLite find something.
func clean(t testing.TB, s *Store) {
	t.Helper()
	if err := s.Verify(ctx, func(f meta.Finding) { t.Errorf("fsck: %+v", f) }); err != nil {
		t.Error(err)
	}
	err := s.scan(ctx, "check", 0, func(c *conn) error {
		return c.each("SELECT count(*) FROM sqlite_schema", func(*sqlite.Stmt) error { return nil })
	})
	if err != nil {
		t.Error(err)
	}
	s.writeMu.Lock()
	defer s.writeMu.Unlock()
	if err := s.w.each("PRAGMA integrity_check", func(st *sqlite.Stmt) error {
		if st.ColumnText(0) != "ok" {
			t.Errorf("integrity_check: %s", st.ColumnText(0))
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

// At any moment the files on disk, as kill -9 would leave them, hold all that
// was acknowledged: also after transactions that were too large for the page
// cache, were rolled back, or filled the disk.
func TestCrashClones(t *testing.T) {
	w := newWorld(t)
	for round := range 6 {
		switch round % 4 {
		case 0:
			w.commit(w.create(true))
		case 1, 3: // larger than the writer's page cache
			var batch []*meta.Change
			for i := range 100 {
				c := w.create(false)
				var pieces []meta.Extent
				cc := &meta.ContentChange{Ino: c.Record.Ino, Fresh: true}
				for j := range 8 {
					data := bytes.Repeat([]byte{byte(i), byte(j), byte(round)}, 5000)
					b := meta.Blob{ID: meta.BlobID{byte(round), byte(i), byte(j)}, Size: int64(len(data))}
					cc.Blobs = append(cc.Blobs, meta.NewBlob{Blob: b, Data: data})
					pieces = append(pieces, meta.Extent{Off: int64(j) << 14, Len: b.Size, Blob: b})
				}
				cc.Ranges = []meta.RangeChange{{Len: 1 << 17, Extents: pieces}}
				c.Content, c.Inodes[0].After.Size = cc, 1<<17
				batch = append(batch, c)
			}
			if round%4 == 1 {
				w.commit(batch...)
				break
			}
			limited(t, w.Store, func() {
				_, err := w.Commit(ctx, &meta.Batch{Session: w.session, Epoch: w.epoch, Changes: batch})
				wantKind(t, err, meta.KindNoSpace)
			})
		case 2: // rolled back and repeated with savepoints
			good, bad := w.create(false), w.create(false)
			bad.Names[0].Name, bad.Record.Name = good.Names[0].Name, good.Names[0].Name
			out, err := w.Commit(ctx, &meta.Batch{Session: w.session, Epoch: w.epoch, Changes: []*meta.Change{good, bad}})
			if err != nil || out[0].Err != nil || meta.KindOf(out[1].Err) != meta.KindConflict {
				t.Fatalf("%+v, %v", out, err)
			}
		}
		if round%5 == 4 {
			w.checkpoint()
		}
		crashClone(t, w)
	}
	clean(t, w.Store)
}

// limited lets the database not grow while fn runs.
func limited(t *testing.T, s *Store, fn func()) {
	t.Helper()
	set := func(n int64) {
		s.writeMu.Lock()
		defer s.writeMu.Unlock()
		if err := s.w.script(fmt.Sprintf("PRAGMA max_page_count=%d", n)); err != nil {
			t.Fatal(err)
		}
	}
	s.writeMu.Lock()
	pages, err := s.w.number("PRAGMA page_count")
	s.writeMu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	set(pages + 1500)
	fn()
	set(1 << 30)
}

func crashClone(t *testing.T, w *world) {
	t.Helper()
	want, err := w.Head(ctx)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, suffix := range []string{"", "-wal"} {
		b, err := os.ReadFile(w.path + suffix)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "meta.db"+suffix), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	s, err := Open(ctx, Options{Path: filepath.Join(dir, "meta.db")})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if got, err := s.Head(ctx); err != nil || got != want {
		t.Fatalf("the clone's head is %+v, want %+v (%v)", got, want, err)
	}
	clean(t, s)
}

// A full disk refuses the batch whole; when there is room again all goes on.
func TestDiskFull(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=3m"); err != nil {
		t.Skipf("no small disk to fill without root: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	s, err := Create(ctx, Options{Path: filepath.Join(dir, "meta.db"), Mode: 0o755})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	w := &world{Store: s, tb: t, dir: meta.RootIno}
	if w.session, w.epoch, _, err = s.Begin(ctx, meta.SessionInfo{}); err != nil {
		t.Fatal(err)
	}
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	w.ino()
	commit := func(c *meta.Change) error {
		_, err := w.Commit(ctx, &meta.Batch{Session: w.session, Epoch: w.epoch, Changes: []*meta.Change{c}})
		return err
	}
	var refused *meta.Change
	for refused == nil {
		if c := w.create(false); commit(c) != nil {
			refused = c
		}
	}
	before, err := s.Head(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		wantKind(t, commit(refused), meta.KindNoSpace)
	}
	if after, err := s.Head(ctx); err != nil || after != before {
		t.Fatalf("the head is %+v, was %+v (%v)", after, before, err)
	}
	_, err = s.Inode(ctx, refused.Record.Ino)
	wantKind(t, err, meta.KindNotExist)
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	if err := commit(refused); err != nil {
		t.Fatalf("with room again: %v", err)
	}
	if err := s.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	clean(t, s)
}

// A sync that failed is final: nobody may believe that a later one, which the
// kernel might let succeed, covers what the first one lost.
func TestSyncFailureIsFinal(t *testing.T) {
	w := newWorld(t)
	w.commit(w.create(false))
	r, pw, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	w.syncer.mu.Lock()
	good := w.syncer.file
	w.syncer.file = pw // fdatasync of a pipe fails
	w.syncer.mu.Unlock()
	wantKind(t, w.Sync(ctx), meta.KindIO)
	w.syncer.mu.Lock()
	w.syncer.file = good
	w.syncer.mu.Unlock()
	pw.Close()
	wantKind(t, w.Sync(ctx), meta.KindIO)
	_, err = w.Commit(ctx, &meta.Batch{Session: w.session, Epoch: w.epoch, Changes: []*meta.Change{w.create(false)}})
	wantKind(t, err, meta.KindIO)
	wantKind(t, w.Checkpoint(ctx, true), meta.KindIO)
	if _, err := w.Inode(ctx, 1); err != nil {
		t.Errorf("reads go on, but: %v", err)
	}
}

// Whoever asks for a sync after its commit gets a round that began after it.
func TestSyncRounds(t *testing.T) {
	w := newWorld(t)
	w.commit(w.create(false))
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range 20 {
				if err := w.Sync(ctx); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	w.syncer.mu.Lock()
	defer w.syncer.mu.Unlock()
	if w.syncer.running || w.syncer.next != nil {
		t.Error("a round is left over")
	}
}
