package meta

import (
	"bytes"
	"context"
	"slices"
	"sync"
	"testing"
	"time"
)

// fakePeers is what a store knows of its sessions. Leases end when the test
// says so.
type fakePeers struct {
	mu       sync.Mutex
	sessions map[int64]*fakeSession
	changed  chan struct{}
}

type fakeSession struct {
	shares, fenced, silent bool
}

func newFakePeers() *fakePeers {
	return &fakePeers{sessions: map[int64]*fakeSession{}, changed: make(chan struct{})}
}

func (p *fakePeers) notify() {
	close(p.changed)
	p.changed = make(chan struct{})
}

// silence lets a session's lease end.
func (p *fakePeers) silence(session int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sessions[session].silent = true
}

func (p *fakePeers) end(session int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.sessions, session)
	p.notify()
}

func (p *fakePeers) heartbeat(session int64, mode PeerMode) (st PeerState, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	me := p.sessions[session]
	if me == nil {
		me = &fakeSession{}
		p.sessions[session] = me
		p.notify()
	}
	if me.fenced {
		return st, E("session", 0, "", KindFenced, nil)
	}
	for id, s := range p.sessions {
		if id == session || s.fenced {
			continue
		}
		if s.silent {
			s.fenced = true
			continue
		}
		st.Others++
		if !s.shares {
			st.Unready++
		}
	}
	before := me.shares
	me.shares = me.shares && (mode == PeerShares || st.Others > 0) || mode == PeerShares
	if me.shares != before {
		p.notify()
	}
	st.Alone = !me.shares && st.Others == 0
	return st, nil
}

// peersOf is one daemon's side of fakePeers.
type peersOf struct {
	*fakePeers
	watching chan struct{} // closed by the first change since the watch before
}

func (p *peersOf) Heartbeat(_ context.Context, session, _ int64, mode PeerMode) (PeerState, error) {
	return p.heartbeat(session, mode)
}

func (p *peersOf) now() chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.changed
}

func (p *peersOf) WatchSessions(ctx context.Context) error {
	if p.watching == nil {
		p.watching = p.now()
		return nil
	}
	select {
	case <-p.watching:
		p.watching = p.now()
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// keptByKernel is a hook that stands for the kernel's caches.
type keptByKernel struct {
	mu    sync.Mutex
	drops int         // times that everything was dropped
	ops   []Committed // of others
}

func (*keptByKernel) Name() string { return "kernel" }
func (k *keptByKernel) Apply(_ context.Context, ops []Committed) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for i := range ops {
		if ops[i].Origin == OriginRemote {
			k.ops = append(k.ops, ops[i])
		}
	}
	return nil
}
func (k *keptByKernel) Forget(context.Context, bool) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.drops++
	return nil
}
func (k *keptByKernel) dropped() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.drops
}

// daemon is one of several on a store.
type daemon struct {
	*rig
	kernel *keptByKernel
	stop   func()
}

// joinZone starts a daemon beside others; it returns once it is admitted.
func joinZone(t *testing.T, store *fakeStore, p *fakePeers) *daemon {
	t.Helper()
	d := &daemon{kernel: &keptByKernel{}}
	d.rig = newRig(t, func(o *Options) {
		o.Store, o.History, o.Sessions, o.Upkeep = store, store, store, store
		o.Peers, o.Hooks = &peersOf{fakePeers: p}, []Hook{d.kernel}
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := d.Run(ctx); err != nil {
			t.Error(err)
		}
	}()
	d.stop = sync.OnceFunc(func() { cancel(); <-done; p.end(d.session.Load().number) })
	t.Cleanup(d.stop)
	return d
}

// until waits for a condition that another goroutine brings about.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

func TestADaemonIsAdmittedWhenTheOthersShare(t *testing.T) {
	store, p := newFakeStore(), newFakePeers()
	a := joinZone(t, store, p)
	if a.Shared() {
		t.Fatal("a daemon that is alone believes that others live")
	}
	b := joinZone(t, store, p)
	if !a.Shared() || !b.Shared() {
		t.Fatalf("shared: %v and %v, want both", a.Shared(), b.Shared())
	}
	if a.kernel.dropped() == 0 {
		t.Fatal("admitted before the first daemon's kernel has dropped what it kept")
	}
	b.stop()
	until(t, "alone again", func() bool { return !a.Shared() })
}

func TestASilentDaemonIsFenced(t *testing.T) {
	store, p := newFakeStore(), newFakePeers()
	a := newRig(t, func(o *Options) { // nobody renews its session: Run is not called
		o.Store, o.History, o.Sessions, o.Upkeep = store, store, store, store
		o.Peers = &peersOf{fakePeers: p}
	})
	p.silence(a.session.Load().number)
	b := joinZone(t, store, p)
	if b.Shared() {
		t.Error("the fenced daemon counts")
	}
	a.uncertain(t.Context(), a.meet(t.Context()))
	_, err := a.Mkdir(t.Context(), user, RootIno, "d", 0o755, 0)
	a.wantKind(err, KindFenced)
	if !a.Shared() {
		t.Error("a fenced daemon trusts what it knows")
	}
}

func TestAnUncertainLeaseDropsWhatTheKernelKeeps(t *testing.T) {
	store, p := newFakeStore(), newFakePeers()
	a := joinZone(t, store, p)
	a.stop()
	before := a.kernel.dropped()
	a.uncertain(t.Context(), errDisk)
	if a.Shared() || a.kernel.dropped() != before {
		t.Fatal("a heartbeat that failed once, long before the lease ends, changed the mode")
	}
	a.clock.Add(int64(DefaultLease))
	a.uncertain(t.Context(), errDisk)
	a.uncertain(t.Context(), errDisk)
	if !a.Shared() || a.kernel.dropped() != before+1 {
		t.Fatalf("shared %v, dropped %d times, want once", a.Shared(), a.kernel.dropped()-before)
	}
}

func TestWhatAnotherDaemonDidIsSeen(t *testing.T) {
	store, p := newFakeStore(), newFakePeers()
	a, b := joinZone(t, store, p), joinZone(t, store, p)
	ctx := t.Context()
	mkdir := func(d *daemon, parent Ino, name string) Ino {
		t.Helper()
		at, err := d.Mkdir(ctx, user, parent, name, 0o755, 0)
		if err != nil {
			t.Fatal(err)
		}
		return at.Ino
	}
	dir := mkdir(a, RootIno, "d")
	// a knows every name of d, so nothing but a look can tell it of this one.
	x := mkdir(b, dir, "x")
	if at, err := a.Lookup(ctx, dir, "x"); err != nil || at.Ino != x {
		t.Fatalf("a name made by another daemon: %v, %v", at.Ino, err)
	}
	if err := b.Rmdir(ctx, user, dir, "x"); err != nil {
		t.Fatal(err)
	}
	// a believes that x is there: the refusal has to be looked at twice.
	mkdir(a, dir, "x")
	if err := b.Rmdir(ctx, user, RootIno, "d"); KindOf(err) != KindNotEmpty {
		t.Fatalf("removing a directory that another daemon has filled: %v", err)
	}
	h := a.create("f")
	a.write(h, 0, []byte("one"))
	a.close(h)
	at, err := b.Lookup(ctx, RootIno, "f")
	if err != nil {
		t.Fatal(err)
	}
	hb := b.open(at.Ino)
	b.write(hb, 0, []byte("two!"))
	b.close(hb)
	h = a.open(at.Ino)
	if got := string(a.read(h, 0, 10)); got != "two!" {
		t.Errorf("close to open: read %q", got)
	}
	a.close(h)
	if err := b.Unlink(ctx, user, RootIno, "f"); err != nil {
		t.Fatal(err)
	}
	if _, err := a.OpenFile(ctx, user, at.Ino, OpenFlags{Read: true}); KindOf(err) != KindStale {
		t.Errorf("opening by a name that is gone: %v, want stale, so that the kernel looks again", err)
	}
}

// Operations of others between two of ours reach the hooks in revision order,
// and the counts of a directory that both change stay true.
func TestOperationsOfOthersAreAppliedInOrder(t *testing.T) {
	store, p := newFakeStore(), newFakePeers()
	a, b := joinZone(t, store, p), joinZone(t, store, p)
	for i := range 20 {
		for _, d := range []*daemon{a, b} {
			name := string(rune('a'+i)) + "of" + string(rune('a'+d.session.Load().number))
			if _, err := d.Mkdir(t.Context(), user, RootIno, name, 0o755, 0); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, d := range []*daemon{a, b} {
		if err := d.Fresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := d.stat(RootIno).Entries; got != 40 {
			t.Errorf("entries of the root: %d, want 40", got)
		}
		d.kernel.mu.Lock()
		if len(d.kernel.ops) != 20 || !slices.IsSortedFunc(d.kernel.ops, func(x, y Committed) int { return int(x.Rev - y.Rev) }) {
			t.Errorf("%d operations of the other daemon, in order: want 20", len(d.kernel.ops))
		}
		d.kernel.mu.Unlock()
	}
}

func TestNothingIsCollectedWhileOthersLive(t *testing.T) {
	store, p := newFakeStore(), newFakePeers()
	a := joinZone(t, store, p)
	joinZone(t, store, p)
	_, err := a.CollectNow(t.Context())
	a.wantKind(err, KindBusy)
	_, err = a.Purge(t.Context(), user, 0)
	a.wantKind(err, KindBusy)
}

func TestTooManyOperationsOfOthersDropEverything(t *testing.T) {
	store, p := newFakeStore(), newFakePeers()
	a, b := joinZone(t, store, p), joinZone(t, store, p)
	a.stop()
	before := a.kernel.dropped()
	store.mu.Lock()
	store.rev += followMax
	store.mu.Unlock()
	if _, err := b.Mkdir(t.Context(), user, RootIno, "d", 0o755, 0); err != nil {
		t.Fatal(err)
	}
	if err := a.look(t.Context()); err != nil {
		t.Fatal(err)
	}
	if a.kernel.dropped() != before+1 {
		t.Errorf("dropped %d times, want once", a.kernel.dropped()-before)
	}
}

// Appended bytes go to the end that the file has when they are committed,
// whatever was written between; bytes written at an offset stay there.
func TestP8AppendsLandAtTheTrueEnd(t *testing.T) {
	store, p := newFakeStore(), newFakePeers()
	a, b := joinZone(t, store, p), joinZone(t, store, p)
	h := a.create("f")
	a.write(h, 0, []byte("0123456789"))
	a.close(h)
	ino := h.Ino()
	ha, hb := a.open(ino), b.open(ino)
	a.write(ha, AtEnd, []byte("aaa"))
	a.write(ha, 2, []byte("XX"))
	a.write(ha, AtEnd, []byte("AAA"))
	b.write(hb, AtEnd, []byte("bbbbb"))
	b.flush(hb)
	b.write(hb, AtEnd, []byte("ccc"))
	a.close(ha)
	b.close(hb)
	h = a.open(ino)
	if got, want := string(a.read(h, 0, 100)), "01XX456789bbbbbaaaAAAccc"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	a.close(h)
	a.kernel.mu.Lock()
	defer a.kernel.mu.Unlock()
	moved := 0
	for _, changes := range store.batches {
		for _, ch := range changes {
			if ch.Moved {
				moved++
			}
		}
	}
	if moved != 2 {
		t.Errorf("%d changes say that they landed elsewhere, want 2", moved)
	}
}

// A long append whose first part was committed on its own goes on behind that
// part, wherever it landed.
func TestP8PartsOfALongAppendStayTogether(t *testing.T) {
	store, p := newFakeStore(), newFakePeers()
	a, b := joinZone(t, store, p), joinZone(t, store, p)
	h := a.create("f")
	a.close(h)
	ha, hb := a.open(h.Ino()), b.open(h.Ino())
	long := bytes.Repeat([]byte("0123456789abcdef"), (BlobMax+160)/16)
	a.write(ha, AtEnd, long)
	a.nodes.put.wg.Wait() // the full chunk is stored
	b.write(hb, AtEnd, []byte("bbb"))
	b.close(hb)
	if err := a.flush1(ha, flushReady); err != nil {
		t.Fatal(err)
	}
	a.close(ha)
	h = a.open(h.Ino())
	if got, want := a.read(h, 0, len(long)+100), append([]byte("bbb"), long...); !bytes.Equal(got, want) {
		t.Errorf("got %d bytes, want %d, the other's first", len(got), len(want))
	}
	a.close(h)
}

// flush1 commits what is staged in one way of several.
func (r *rig) flush1(h *Handle, mode flushMode) error {
	return r.FS.flush(r.t.Context(), user, h.n, mode)
}

// syncedFirst is a store whose commits must not name content that may be lost.
type syncedFirst struct {
	*fakeStore
	disk *fakeContent
	t    *testing.T
}

func (s *syncedFirst) Commit(ctx context.Context, b *Batch) ([]Outcome, error) {
	for _, ch := range b.Changes {
		if ch.Content == nil {
			continue
		}
		for _, blob := range ch.Content.Blobs {
			if blob.Place != PlaceInline && s.disk.syncs.Load() < s.disk.puts.Load() {
				s.t.Errorf("a commit names content before it is durable")
			}
		}
	}
	return s.fakeStore.Commit(ctx, b)
}

func TestP22ContentIsDurableBeforeACommitNamesIt(t *testing.T) {
	var disk *fakeContent
	r := newRig(t, func(o *Options) {
		disk = o.Content.(*fakeContent)
		o.Store, o.SyncFirst = &syncedFirst{o.Store.(*fakeStore), disk, t}, true
	})
	for i := range 4 {
		h := r.create(string(rune('a' + i)))
		r.write(h, 0, bytes.Repeat([]byte{byte(i)}, 100<<10))
		r.close(h)
	}
	if disk.puts.Load() != 4 {
		t.Fatalf("%d blobs were stored, want 4", disk.puts.Load())
	}
	if n := disk.syncs.Load(); n < 4 {
		t.Errorf("%d syncs", n)
	}
	disk.onSync = func() error { return errDisk }
	h := r.create("refused")
	r.write(h, 0, bytes.Repeat([]byte("x"), 100<<10))
	r.wantKind(h.Flush(t.Context(), user), KindIO)
	h.Release(t.Context())
}

// othersCome is a store in which another daemon comes while history is pruned.
type othersCome struct {
	*fakeStore
	come   func()
	pruned int
}

func (s *othersCome) Prune(ctx context.Context, p Retention, limit int) (int, bool, error) {
	s.come()
	s.pruned++
	_, _, err := s.fakeStore.Prune(ctx, p, limit)
	return 1, s.pruned > 9, err // there would be more
}

func TestACollectionEndsWhenOthersCome(t *testing.T) {
	var r *rig
	var store *othersCome
	r = newRig(t, func(o *Options) {
		store = &othersCome{fakeStore: o.Store.(*fakeStore)}
		store.come = func() { r.peers.sharing.Store(true) }
		o.Upkeep = store
	})
	h := r.create("f")
	for i := range 3 {
		r.write(h, 0, bytes.Repeat([]byte{byte(i)}, 50<<10))
		r.flush(h)
	}
	r.close(h)
	places := r.disk.count()
	if _, err := r.CollectNow(t.Context()); err != nil {
		t.Fatal(err)
	}
	if store.pruned != 1 {
		t.Errorf("history was pruned %d times, want no more once others came", store.pruned)
	}
	if got := r.disk.count(); got != places {
		t.Errorf("%d places of content were freed beside others", places-got)
	}
}
