package meta

import (
	"bytes"
	"fmt"
	"strings"
	"sync"
	"testing"
)

// While one round is at the disk, all who come share the next; nobody is
// answered by a round that began before its commit.
func TestBarrierIsShared(t *testing.T) {
	r := newRig(t)
	entered, leave := make(chan struct{}), make(chan struct{})
	r.store.onSync = func() error {
		entered <- struct{}{}
		<-leave
		return nil
	}
	commit := func(name string) { r.create(name).Release(t.Context()) }
	commit("a")
	var wg sync.WaitGroup
	wg.Go(func() { r.sync.wait() })
	<-entered
	before := r.Status().Revision
	commit("b") // behind the round at the disk
	const waiters = 10
	for range waiters {
		wg.Go(func() {
			if err := r.sync.wait(); err != nil {
				t.Error(err)
			}
			if r.sync.durable() <= before {
				t.Error("answered before its commit was durable")
			}
		})
	}
	for { // until all of them wait for the next round
		r.sync.mu.Lock()
		next := r.sync.next != nil
		r.sync.mu.Unlock()
		if next {
			break
		}
	}
	leave <- struct{}{}
	<-entered
	leave <- struct{}{}
	go func() { // late ones may have their own round
		for range entered {
			leave <- struct{}{}
		}
	}()
	wg.Wait()
	close(entered)
	if got := r.store.syncs.Load(); got > 4 {
		t.Fatalf("%d syncs for %d callers", got, waiters+1)
	}
	if got := r.sync.durable(); got != Rev(r.head.Load()) {
		t.Fatalf("durable %d, head %d", got, r.head.Load())
	}
}

// fsync returns only when content and store are both on the disk, and the next
// commit stores how far.
func TestBarrierCoversBoth(t *testing.T) {
	r := newRig(t)
	h := r.create("f")
	r.write(h, 0, bytes.Repeat([]byte("x"), 100<<10))
	if err := h.Fsync(t.Context(), user, true); err != nil {
		t.Fatal(err)
	}
	if r.disk.syncs.Load() != 1 || r.store.syncs.Load() != 1 {
		t.Fatalf("%d, %d", r.disk.syncs.Load(), r.store.syncs.Load())
	}
	durable := r.sync.durable()
	r.close(h)
	r.create("g").Release(t.Context())
	if r.store.barrier != durable {
		t.Fatalf("barrier in the store %d, want %d", r.store.barrier, durable)
	}
}

// A disk that refuses a sync is not trusted again (design section 6).
func TestRefusedSyncIsFinal(t *testing.T) {
	for _, where := range []string{"content", "store"} {
		r := newRig(t)
		h := r.create("f")
		r.write(h, 0, []byte("x"))
		fail := true
		refuse := func() error {
			if fail {
				return errDisk
			}
			return nil
		}
		if where == "content" {
			r.disk.onSync = refuse
		} else {
			r.store.onSync = refuse
		}
		r.wantKind(h.Fsync(t.Context(), user, false), KindIO)
		fail = false
		r.wantKind(h.Fsync(t.Context(), user, false), KindIO)
		_, err := h.Write(t.Context(), user, 0, []byte("y"), false)
		r.wantKind(err, KindIO)
		if got := r.read(h, 0, 5); string(got) != "x" {
			t.Fatalf("reads must go on: %q", got)
		}
		if r.Status().Failed == "" {
			t.Fatal("status does not say it")
		}
		h.Release(t.Context())
	}
}

// Recovery takes back exactly from the first operation whose content is gone,
// and only after the machine itself stopped (P22).
func TestRecovery(t *testing.T) {
	build := func(t *testing.T) (*rig, []Rev, []Blob) {
		r := newRig(t)
		var revs []Rev
		var blobs []Blob
		for i := range 4 {
			h := r.create(fmt.Sprint("f", i))
			r.write(h, 0, bytes.Repeat([]byte{byte(i)}, 50<<10))
			r.flush(h)
			revs = append(revs, Rev(r.head.Load()))
			blobs = append(blobs, r.store.extents[h.Ino()][0].Blob)
			h.Release(t.Context())
			if i == 0 {
				if err := r.Sync(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
		}
		return r, revs, blobs
	}
	for _, tc := range []struct {
		name   string
		boot   string
		ended  bool
		lost   []int // blobs that did not survive
		rewind int   // index of the operation from which on; -1: nothing
	}{
		{"nothing lost", "other", false, nil, -1},
		{"one lost", "other", false, []int{2}, 2},
		{"the first of two counts", "other", false, []int{3, 1}, 1},
		{"kill -9 on the same boot", "boot", false, []int{2}, -1},
		{"ended in order", "other", true, []int{2}, -1},
		{"before the barrier is not looked at", "other", false, []int{0}, -1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r, revs, blobs := build(t)
			for _, i := range tc.lost {
				r.disk.Free(t.Context(), blobs[i:i+1])
			}
			r.store.prev = &PrevSession{Session: 1, SessionInfo: SessionInfo{BootID: tc.boot}, Ended: tc.ended}
			head, again := r.store.rev, New(r.o)
			if err := again.Open(t.Context()); err != nil {
				t.Fatal(err)
			}
			want := Rev(0)
			switch {
			case tc.rewind >= 0:
				want = revs[tc.rewind]
			case tc.boot == "other" && !tc.ended:
				want = head + 1 // nothing, but the numbers that may be lost are skipped
			}
			if r.store.rewound != want {
				t.Fatalf("taken back from %d, want %d (of %v)", r.store.rewound, want, revs)
			}
			if r.store.reserved < r.store.rev+revReserve/2 {
				t.Fatalf("reserved %d at %d", r.store.reserved, r.store.rev)
			}
		})
	}
}

// What a killed session stored and never committed is freed, and nothing else.
func TestLeftovers(t *testing.T) {
	r := newRig(t)
	h := r.create("f")
	r.write(h, 0, bytes.Repeat([]byte("a"), 50<<10))
	r.flush(h)
	r.disk.Put(t.Context(), bytes.Repeat([]byte("left"), 10<<10)) // stored, no row
	r.disk.Put(t.Context(), bytes.Repeat([]byte("a"), 50<<10))    // a second copy
	r.write(h, 8<<20, bytes.Repeat([]byte("b"), BlobMax))         // stored early, staged
	r.nodes.put.wg.Wait()
	r.nodes.upkeep.unclean.Store(true)
	r.leftovers(t.Context())
	if got := r.disk.count(); got != 2 {
		t.Fatalf("%d places left, want 2", got)
	}
	r.close(h)
	h = r.open(h.Ino())
	if got := r.read(h, 8<<20, 1); string(got) != "b" {
		t.Fatalf("%q", got)
	}
	if got := r.read(h, 0, 1); string(got) != "a" {
		t.Fatalf("%q", got)
	}
	r.close(h)
}

// History that is not kept is collected with its blobs; what is current, open
// or staged stays (I7).
func TestCollect(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Retention = RetentionPolicy{Off: true} })
	h := r.create("f")
	for i := range 5 {
		r.write(h, 0, bytes.Repeat([]byte{byte(i)}, 50<<10))
		r.flush(h)
	}
	if got := r.disk.count(); got != 5 {
		t.Fatalf("%d blobs", got)
	}
	// Content that was current once is staged again: it must not go before
	// that is committed.
	r.write(h, BlobMax, bytes.Repeat([]byte("s"), BlobMax))
	r.nodes.put.wg.Wait()
	res, err := r.CollectNow(t.Context())
	if err != nil || res.Blobs != 4 || res.Bytes != 200<<10 {
		t.Fatalf("%+v, %v", res, err)
	}
	if got := r.disk.count(); got != 2 {
		t.Fatalf("%d blobs after", got)
	}
	r.close(h)
	h = r.open(h.Ino())
	if got := r.read(h, 0, 1); got[0] != 4 {
		t.Fatalf("%v", got)
	}
	r.close(h)
}

// A blob that a writer found and relies on is not collected before it commits (P28).
func TestCollectAgainstDeduplication(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Retention = RetentionPolicy{Off: true} })
	a := r.create("a")
	chunk := bytes.Repeat([]byte("k"), BlobMax)
	r.write(a, 0, chunk)
	r.flush(a)
	b := r.create("b")
	r.write(b, 0, chunk) // found, pinned, not committed
	r.nodes.put.wg.Wait()
	if _, err := r.SetAttr(t.Context(), user, a.Ino(), SetAttr{Valid: SetSize, Handle: a}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.CollectNow(t.Context()); err != nil { // condemned by this, not removed
		t.Fatal(err)
	}
	r.close(a)
	r.close(b)
	h := r.open(b.Ino())
	if got := r.read(h, 0, BlobMax); !bytes.Equal(got, chunk) {
		t.Fatal("content differs")
	}
	r.close(h)
}

// Inodes without names go when nobody can reach them any more.
func TestOrphans(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Retention = RetentionPolicy{Off: true} })
	open, known, gone := r.create("open"), r.create("known"), r.create("gone")
	for _, name := range []string{"open", "known", "gone"} {
		if err := r.Unlink(t.Context(), user, RootIno, name); err != nil {
			t.Fatal(err)
		}
	}
	known.Release(t.Context())
	gone.Release(t.Context())
	r.Forget(gone.Ino())
	r.store.orphaned = []Ino{open.Ino(), known.Ino(), gone.Ino()}
	if _, err := r.CollectNow(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := r.store.dropped; len(got) != 1 || got[0] != gone.Ino() {
		t.Fatalf("dropped %v, want %d", got, gone.Ino())
	}
	open.Release(t.Context())
	r.Forget(open.Ino())
	r.Forget(known.Ino())
	if _, err := r.CollectNow(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := len(r.store.dropped); got != 3 {
		t.Fatalf("dropped %v", r.store.dropped)
	}
}

// An orderly end commits, makes durable and says so.
func TestClose(t *testing.T) {
	r := newRig(t)
	h := r.create("f")
	r.write(h, 0, []byte("last words"))
	if err := r.FS.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !r.store.ended || r.sync.durable() != Rev(r.head.Load()) || r.store.inodes[h.Ino()].Size != 10 {
		t.Fatal("not in order")
	}
	_, err := h.Write(t.Context(), user, 0, []byte("x"), false)
	r.wantKind(err, KindShutdown)
	h.Release(t.Context())
}

// When the disk is nearly full the oldest history goes first.
func TestLowSpaceSqueezesHistory(t *testing.T) {
	r := newRig(t)
	r.disk.free = 1 << 20
	k := keeper{fs: r.FS}
	for range 20 {
		k.look(t.Context())
	}
	if !strings.Contains(r.logs.String(), "nearly full") || k.squeeze != 20 {
		t.Fatalf("squeeze %d", k.squeeze)
	}
	r.disk.free = 1 << 40
	k.look(t.Context())
	if k.squeeze != 0 {
		t.Fatal("it does not end")
	}
}
