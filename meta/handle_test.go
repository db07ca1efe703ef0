package meta

import (
	"bytes"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"
)

func (r *rig) versions(ino Ino) (out []int64) {
	for _, v := range r.store.versions[ino] {
		out = append(out, v.N)
	}
	return out
}

func (r *rig) wantVersions(ino Ino, want int) {
	r.t.Helper()
	if got := r.versions(ino); len(got) != want {
		r.t.Fatalf("versions %v, want %d of them", got, want)
	}
}

// Creating, writing and closing a small file is two operations, one version,
// and its bytes ride in the second.
func TestCreateWriteClose(t *testing.T) {
	r := newRig(t)
	h := r.create("a")
	data := bytes.Repeat([]byte("x"), 4096)
	r.write(h, 0, data)
	if a := r.stat(h.Ino()); a.Size != 4096 || a.Mtime <= a.Btime {
		t.Fatalf("stat does not see what is staged: %+v", a)
	}
	if got := len(r.store.records); got != 1 {
		t.Fatalf("write(2) made an operation: %d", got)
	}
	r.close(h)
	if got := len(r.store.records); got != 2 || r.store.records[1].Kind != OpWrite {
		t.Fatalf("records: %+v", r.store.records)
	}
	r.wantVersions(h.Ino(), 1)
	if r.disk.puts.Load() != 0 {
		t.Fatal("a small file went to the content store")
	}
	h = r.open(h.Ino())
	if got := r.read(h, 0, 8192); !bytes.Equal(got, data) {
		t.Fatalf("read %d bytes", len(got))
	}
	r.close(h)
	if got := len(r.store.records); got != 2 {
		t.Fatal("closing a clean file made an operation")
	}
}

// A version belongs to a writing handle (P1).
func TestVersionOwnership(t *testing.T) {
	r := newRig(t)
	a := r.create("f")
	ino := a.Ino()
	sync := func(h *Handle, text string) {
		t.Helper()
		r.write(h, 0, []byte(text))
		if err := h.Fsync(t.Context(), user, false); err != nil {
			t.Fatal(err)
		}
	}
	sync(a, "one")
	sync(a, "two")
	r.wantVersions(ino, 1) // create's own, moved
	b := r.open(ino)
	sync(b, "three")
	r.wantVersions(ino, 2)
	sync(b, "four")
	r.wantVersions(ino, 2)
	sync(a, "five") // somebody made a newer one
	r.wantVersions(ino, 3)
	if _, err := r.SetAttr(t.Context(), user, ino, SetAttr{Valid: SetSize, Size: 2}); err != nil {
		t.Fatal(err)
	}
	r.wantVersions(ino, 4) // by path: of its own
	if _, err := r.SetAttr(t.Context(), user, ino, SetAttr{Valid: SetSize, Size: 1, Handle: b}); err != nil {
		t.Fatal(err)
	}
	r.wantVersions(ino, 5)
	sync(b, "six")
	r.wantVersions(ino, 5)
	r.close(a)
	r.close(b)
	c := r.open(ino)
	sync(c, "seven")
	r.wantVersions(ino, 6)
	r.close(c)
	for i, want := range []string{"two", "foure", "fivee", "fi", "six", "seven"} {
		v, err := r.OpenVersion(t.Context(), ino, int64(i+1))
		if err != nil {
			t.Fatal(err)
		}
		p := make([]byte, 10)
		n, err := v.Read(t.Context(), 0, p)
		if err != nil || string(p[:n]) != want {
			t.Fatalf("version %d: %q, %v; want %q", i+1, p[:n], err, want)
		}
		v.Close()
	}
	if err := r.Restore(t.Context(), user, ino, 2); err != nil {
		t.Fatal(err)
	}
	r.wantVersions(ino, 7)
	h := r.open(ino)
	if got := r.read(h, 0, 10); string(got) != "foure" {
		t.Fatalf("restored: %q", got)
	}
	r.close(h)
}

// O_TRUNC and what is written after are one version.
func TestTruncatingOpenIsOneVersion(t *testing.T) {
	r := newRig(t)
	h := r.create("f")
	r.write(h, 0, []byte("old content"))
	r.close(h)
	h, err := r.OpenFile(t.Context(), user, h.Ino(), OpenFlags{Write: true, Trunc: true})
	if err != nil {
		t.Fatal(err)
	}
	if a := r.stat(h.Ino()); a.Size != 0 {
		t.Fatalf("size %d", a.Size)
	}
	r.write(h, 0, []byte("new"))
	r.close(h)
	r.wantVersions(h.Ino(), 2)
}

// Content that a stream commit wrote gets its version at close.
func TestStreamThenClose(t *testing.T) {
	r := newRig(t)
	h := r.create("f")
	r.close(h)
	h = r.open(h.Ino())
	r.write(h, 0, []byte("abc"))
	r.clock.Add(int64(time.Minute))
	r.streamOld(t.Context())
	last := r.store.records[len(r.store.records)-1]
	if last.Actor.UID != user.UID || last.Actor.PID != user.PID {
		t.Fatalf("nobody asked for the commit, but somebody wrote: %+v", last.Actor)
	}
	if last.Kind != OpWriteStream || r.nodes.dirty.Load() != 0 {
		t.Fatalf("after the age limit: %+v", last)
	}
	r.wantVersions(h.Ino(), 1)
	r.close(h)
	r.wantVersions(h.Ino(), 2)
	if v := r.store.versions[h.Ino()][1]; v.Size != 3 {
		t.Fatalf("version: %+v", v)
	}
}

// A long write goes to the content store as it comes, in whole chunks, with
// little in memory, and its close commits rows only.
func TestLongWrite(t *testing.T) {
	r := newRig(t, func(o *Options) { o.StageLimit = 16 << 20 })
	h := r.create("big")
	const total = 80<<20 + 777
	part := make([]byte, 1<<20)
	rnd := rand.NewChaCha8([32]byte{1})
	rnd.Read(part)
	for off := int64(0); off < total; off += int64(len(part)) {
		part[0] = byte(off >> 20)
		r.write(h, off, part[:min(int64(len(part)), total-off)])
		if got := r.nodes.staged.Load(); got > 16<<20+BlobMax+1<<20 {
			t.Fatalf("%d bytes staged", got)
		}
	}
	for _, off := range []int64{0, 3 << 20, total - 777} { // over every layer
		want := min(1<<20, total-off)
		got := r.read(h, off, 1<<20)
		if int64(len(got)) != want || got[0] != byte(off>>20) || !bytes.Equal(got[1:], part[1:want]) {
			t.Fatalf("read at %d: %d bytes", off, len(got))
		}
	}
	r.close(h)
	r.nodes.put.wg.Wait()
	r.wantVersions(h.Ino(), 1)
	if a := r.stat(h.Ino()); a.Size != total || a.Bytes != total {
		t.Fatalf("%+v", a)
	}
	if got := int(r.disk.puts.Load()); got != total/BlobMax || r.disk.count() != got {
		t.Fatalf("%d puts, %d kept, for %d chunks", got, r.disk.count(), total/BlobMax)
	}
}

// Writing over a chunk that is stored, or being stored, wastes nothing.
func TestWriteOverSealedChunk(t *testing.T) {
	r := newRig(t)
	r.disk.gate = make(chan struct{})
	h := r.create("f")
	chunk := bytes.Repeat([]byte("a"), BlobMax)
	r.write(h, 0, chunk)                              // being stored
	r.write(h, 1000, []byte("hello"))                 // cuts it
	r.write(h, 0, bytes.Repeat([]byte("b"), BlobMax)) // covers both: the first is of no use
	r.write(h, BlobMax, chunk)                        // another, cut in the middle
	r.write(h, BlobMax+7, bytes.Repeat([]byte("c"), 9))
	close(r.disk.gate)
	want := bytes.Repeat([]byte("b"), BlobMax)
	want = append(want, chunk...)
	copy(want[BlobMax+7:], "ccccccccc")
	if got := r.read(h, 0, len(want)); !bytes.Equal(got, want) {
		t.Fatal("staged content differs")
	}
	r.close(h)
	r.nodes.put.wg.Wait()
	h = r.open(h.Ino())
	if got := r.read(h, 0, len(want)); !bytes.Equal(got, want) {
		t.Fatal("committed content differs")
	}
	r.close(h)
	if got := r.disk.count(); got != 2 {
		t.Fatalf("%d blobs kept, want 2", got)
	}
}

// ENOSPC reaches the writer, nothing is lost, and when there is space again
// everything goes on.
func TestNoSpaceKeepsData(t *testing.T) {
	for _, where := range []string{"content", "store"} {
		t.Run(where, func(t *testing.T) {
			r := newRig(t, func(o *Options) { o.StageLimit = 24 << 20 })
			fill := func(full bool) {
				if where == "content" {
					r.disk.full.Store(full)
				} else if full {
					r.store.commitErr.Store(&Error{Op: "commit", Kind: KindNoSpace})
				} else {
					r.store.commitErr.Store(nil)
				}
			}
			h := r.create("f")
			r.write(h, 0, bytes.Repeat([]byte("a"), 100<<10))
			fill(true)
			r.wantKind(h.Flush(t.Context(), user), KindNoSpace)
			r.wantKind(h.Fsync(t.Context(), user, false), KindNoSpace)
			if a := r.stat(h.Ino()); a.Size != 100<<10 {
				t.Fatalf("size %d", a.Size)
			}
			off, failed := int64(100<<10), false
			for !failed && off < 200<<20 {
				n, err := h.Write(t.Context(), user, off, make([]byte, 1<<20), false)
				if failed = err != nil; failed {
					r.wantKind(err, KindNoSpace)
				}
				off += int64(n)
			}
			if !failed || r.nodes.staged.Load() > 40<<20 {
				t.Fatalf("no error until %d, %d staged", off, r.nodes.staged.Load())
			}
			fill(false)
			r.write(h, off, []byte("end"))
			r.close(h)
			r.nodes.put.wg.Wait()
			h = r.open(h.Ino())
			if got := r.read(h, 0, 100<<10); !bytes.Equal(got, bytes.Repeat([]byte("a"), 100<<10)) {
				t.Fatal("content was lost")
			}
			if got := r.read(h, off, 10); string(got) != "end" || r.stat(h.Ino()).Size != off+3 {
				t.Fatalf("end: %q", got)
			}
			r.close(h)
		})
	}
}

// What cannot be committed at the last close is dropped, loudly.
func TestReleaseDropsWhatFails(t *testing.T) {
	r := newRig(t)
	h := r.create("f")
	r.write(h, 0, bytes.Repeat([]byte("a"), 100<<10))
	r.disk.full.Store(true)
	r.wantKind(h.Flush(t.Context(), user), KindNoSpace)
	h.Release(t.Context())
	if !strings.Contains(r.logs.String(), "bytes=102400") {
		t.Fatalf("log: %s", r.logs)
	}
	if a := r.stat(h.Ino()); a.Size != 0 {
		t.Fatalf("size %d", a.Size)
	}
}

// Pages that were mapped arrive after the last close: the opener wrote them.
func TestReleaseCommitsMappedPages(t *testing.T) {
	r := newRig(t)
	h := r.create("f")
	r.flush(h)
	if _, err := h.Write(t.Context(), Caller{}, 0, []byte("page"), false); err != nil {
		t.Fatal(err)
	}
	h.Release(t.Context())
	last := r.store.records[len(r.store.records)-1]
	if last.Kind != OpWrite || last.Actor.UID != user.UID || last.Size != 4 {
		t.Fatalf("%+v", last)
	}
}

// The record names who else wrote.
func TestRecordNamesOtherWriters(t *testing.T) {
	r := newRig(t)
	h := r.create("f")
	r.write(h, 0, []byte("a"))
	if _, err := h.Write(t.Context(), Caller{UID: 7, PID: 8}, 1, []byte("b"), false); err != nil {
		t.Fatal(err)
	}
	r.close(h)
	if last := r.store.records[len(r.store.records)-1]; !strings.Contains(last.After, `"writers":"7/8"`) {
		t.Fatalf("%s", last.After)
	}
}

// Appends of many handles are placed at the end as it is: none is lost and
// each stays whole (P8).
func TestAppends(t *testing.T) {
	r := newRig(t)
	first := r.create("log")
	const writers, lines = 8, 200
	var wg sync.WaitGroup
	for w := range writers {
		h := r.open(first.Ino())
		wg.Go(func() {
			line := append(bytes.Repeat([]byte{byte('a' + w)}, 20+w), '\n')
			for i := range lines {
				if n, err := h.Write(t.Context(), user, AtEnd, line, false); err != nil || n != len(line) {
					t.Error(n, err)
				}
				if i%17 == 0 {
					if err := h.Flush(t.Context(), user); err != nil {
						t.Error(err)
					}
				}
			}
			h.Flush(t.Context(), user)
			h.Release(t.Context())
		})
	}
	wg.Wait()
	got := r.read(first, 0, 1<<20)
	r.close(first)
	counts := map[string]int{}
	for line := range strings.Lines(string(got)) {
		counts[line]++
	}
	for w := range writers {
		line := strings.Repeat(string(rune('a'+w)), 20+w) + "\n"
		if counts[line] != lines {
			t.Errorf("%d lines of writer %d", counts[line], w)
		}
		delete(counts, line)
	}
	if len(counts) != 0 {
		t.Errorf("torn lines: %v", counts)
	}
}

// Writing takes setuid and setgid away, at once.
func TestWriteKillsPrivileges(t *testing.T) {
	r := newRig(t)
	h := r.create("f")
	if _, err := r.SetAttr(t.Context(), user, h.Ino(), SetAttr{Valid: SetMode, Mode: 0o6755}); err != nil {
		t.Fatal(err)
	}
	r.write(h, 0, []byte("x"))
	if a := r.stat(h.Ino()); a.Mode&ModePerm != 0o6755 {
		t.Fatalf("mode %o", a.Mode)
	}
	if _, err := h.Write(t.Context(), user, 0, []byte("x"), true); err != nil {
		t.Fatal(err)
	}
	if a := r.stat(h.Ino()); a.Mode&ModePerm != 0o755 {
		t.Fatalf("mode %o", a.Mode)
	}
	r.close(h)
}

// A file without names is not committed at close, but stays readable.
func TestUnlinkedFileIsNotCommitted(t *testing.T) {
	r := newRig(t)
	h := r.create("tmp")
	if err := r.Unlink(t.Context(), user, RootIno, "tmp"); err != nil {
		t.Fatal(err)
	}
	before := len(r.store.records)
	r.write(h, 0, []byte("scratch"))
	r.flush(h)
	if got := r.read(h, 0, 10); string(got) != "scratch" {
		t.Fatalf("%q", got)
	}
	if a := r.stat(h.Ino()); a.Nlink != 0 || a.Size != 7 {
		t.Fatalf("%+v", a)
	}
	h.Release(t.Context())
	if got := len(r.store.records); got != before {
		t.Fatalf("%d operations for nothing", got-before)
	}
}

// O_SYNC is durable when write returns; fsync of what is durable costs nothing.
func TestSyncWrites(t *testing.T) {
	r := newRig(t)
	h := r.create("f")
	h.flags.Sync = true
	r.write(h, 0, []byte("x"))
	if r.sync.durable() != Rev(r.head.Load()) || r.nodes.dirty.Load() != 0 {
		t.Fatal("not durable")
	}
	syncs := r.store.syncs.Load()
	if err := h.Fsync(t.Context(), user, false); err != nil {
		t.Fatal(err)
	}
	if r.store.syncs.Load() != syncs {
		t.Fatal("a clean fsync went to the disk")
	}
	r.close(h)
}

// Handles that may not, and offsets that cannot be, are refused.
func TestWriteRefusals(t *testing.T) {
	r := newRig(t)
	h := r.create("f")
	_, err := h.Write(t.Context(), user, SizeMax, []byte("x"), false)
	r.wantKind(err, KindTooBig)
	r.write(h, SizeMax-1, []byte("x"))
	_, err = h.Write(t.Context(), user, AtEnd, []byte("x"), false)
	r.wantKind(err, KindTooBig)
	r.close(h)
	if a := r.stat(h.Ino()); a.Size != SizeMax {
		t.Fatalf("size %d", a.Size)
	}
	ro, err := r.OpenFile(t.Context(), user, h.Ino(), OpenFlags{Read: true})
	if err != nil {
		t.Fatal(err)
	}
	_, err = ro.Write(t.Context(), user, 0, []byte("x"), false)
	r.wantKind(err, KindBadHandle)
	r.close(ro)
	_, err = r.OpenFile(t.Context(), user, RootIno, OpenFlags{Read: true})
	r.wantKind(err, KindIsDir)
}

// stat never shows a file shorter than a write that has returned, whatever is
// being committed meanwhile.
func TestStatNeverGoesBack(t *testing.T) {
	r := newRig(t)
	h := r.create("f")
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				h.Flush(t.Context(), user)
			}
		}
	})
	for size := int64(0); size < 20000; size++ {
		r.write(h, size, []byte{byte(size)})
		if a := r.stat(h.Ino()); a.Size != size+1 {
			t.Errorf("size %d after %d bytes", a.Size, size+1)
			break
		}
		if got := r.read(h, size, 2); len(got) != 1 || got[0] != byte(size) {
			t.Errorf("read %v at %d", got, size)
			break
		}
	}
	close(stop)
	wg.Wait()
	r.close(h)
}

func BenchmarkCreateWrite4KClose(b *testing.B) {
	store, disk := newFakeStore(), newFakeContent()
	fs := New(Options{Store: store, History: store, Sessions: store, Upkeep: store, Content: disk})
	if err := fs.Open(b.Context()); err != nil {
		b.Fatal(err)
	}
	a, h, err := fs.Create(b.Context(), user, RootIno, "f", CreateArgs{Flags: OpenFlags{Write: true}})
	if err != nil {
		b.Fatal(err)
	}
	h.Release(b.Context())
	data := make([]byte, 4096)
	b.ReportAllocs()
	for b.Loop() {
		h, _ := fs.OpenFile(b.Context(), user, a.Ino, OpenFlags{Write: true})
		h.Write(b.Context(), user, 0, data, false)
		h.Flush(b.Context(), user)
		h.Release(b.Context())
	}
}

// The record of a commit names the program that wrote, as it was in write(2):
// the thread may run another one when it closes. Somebody else's close is his.
func TestRecordNamesWhoWrote(t *testing.T) {
	r := newRig(t)
	asked := 0
	by := func(pid uint32, exe string, calling bool) Caller {
		return Caller{PID: pid, Calling: calling, Resolve: func(c Caller) Actor { asked++; return Actor{PID: c.PID, Exe: exe} }}
	}
	for _, tt := range []struct {
		name   string
		writer Caller
		closer Caller
		want   string
	}{
		{"the writer's thread runs another program", by(7, "writer", true), by(7, "closer", false), "writer"},
		{"another thread closes", by(7, "writer", true), by(8, "closer", false), "closer"},
		{"a writer who was not looked at", by(7, "writer", false), by(7, "closer", false), "writer"},
	} {
		h := r.create(tt.name)
		asked = 0
		for i := range 3 {
			if _, err := h.Write(t.Context(), tt.writer, int64(i), []byte("x"), false); err != nil {
				t.Fatal(err)
			}
		}
		if err := h.Flush(t.Context(), tt.closer); err != nil {
			t.Fatal(err)
		}
		if got := r.store.records[len(r.store.records)-1]; got.Kind != OpWrite || got.Actor.Exe != tt.want {
			t.Errorf("%s: the record names %q, want %q", tt.name, got.Actor.Exe, tt.want)
		}
		if asked > 2 {
			t.Errorf("%s: asked %d times", tt.name, asked)
		}
		r.close(h)
	}
}
