package fusefs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"

	"nexusfs/meta"
)

type countHandler struct {
	slog.Handler
	n int
}

func (h *countHandler) Enabled(context.Context, slog.Level) bool  { return true }
func (h *countHandler) Handle(context.Context, slog.Record) error { h.n++; return nil }

// fakeKernel writes down notes. gate, when set, holds each note back until
// somebody receives from it.
type fakeKernel struct {
	gate   chan string // receives the note before it takes effect
	allow  chan struct{}
	epochs int
	noInc  bool

	mu   sync.Mutex
	told []string // guarded by mu
}

func (k *fakeKernel) tell(format string, args ...any) fuse.Status {
	note := fmt.Sprintf(format, args...)
	if k.gate != nil {
		k.gate <- note
		<-k.allow
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.told = append(k.told, note)
	return fuse.OK
}

func (k *fakeKernel) InodeNotify(node uint64, off, _ int64) fuse.Status {
	return k.tell("inode %d pages %t", node, off >= 0)
}
func (k *fakeKernel) EntryNotify(parent uint64, name string) fuse.Status {
	return k.tell("name %d/%s", parent, name)
}
func (k *fakeKernel) DeleteNotify(parent, child uint64, name string) fuse.Status {
	return k.tell("gone %d/%s %d", parent, name, child)
}
func (k *fakeKernel) IncEpoch() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.epochs++
	if k.noInc {
		return errors.New("invalid argument")
	}
	return nil
}

func (k *fakeKernel) notes() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return append([]string(nil), k.told...)
}

func runNotifier(t *testing.T, k kernel, open ...uint64) *Notifier {
	t.Helper()
	n := NewNotifier(nil)
	n.attach(k, func(fn func(uint64)) {
		for _, node := range open {
			fn(node)
		}
	})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { n.run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	return n
}

func drain(t *testing.T, n *Notifier) {
	t.Helper()
	if err := n.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestNotesOfOneDirectoryKeepTheirOrder(t *testing.T) {
	k := &fakeKernel{}
	n := runNotifier(t, k)
	var want []string
	for i := range 1000 {
		name := fmt.Sprint(i)
		if i%2 == 0 {
			n.InvalidateName(8, name, 0)
			want = append(want, "name 8/"+name)
		} else {
			n.InvalidateName(8, name, 9)
			want = append(want, "gone 8/"+name+" 9")
		}
	}
	drain(t, n)
	got := k.notes()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if n.Written() != 1000 || n.Overflows() != 0 {
		t.Errorf("written %d, overflows %d", n.Written(), n.Overflows())
	}
}

// TestP12OpenWaitsForItsInodesNote: an open must not be answered while a note
// of its inode is queued or being written; those of other inodes do not matter.
func TestP12OpenWaitsForItsInodesNote(t *testing.T) {
	k := &fakeKernel{gate: make(chan string), allow: make(chan struct{})}
	n := runNotifier(t, k)
	n.InvalidateInode(5, true)
	if note := <-k.gate; note != "inode 5 pages true" {
		t.Fatalf("got %q", note)
	}
	// Being written: further notes are notes of their own, and merged.
	n.InvalidateInode(5, false)
	n.InvalidateInode(5, true)

	opened := make(chan struct{})
	go func() { n.delivered(context.Background(), 5); close(opened) }()
	n.delivered(t.Context(), 6) // returns at once

	k.allow <- struct{}{}
	if note := <-k.gate; note != "inode 5 pages true" {
		t.Fatalf("got %q", note)
	}
	select {
	case <-opened:
		t.Error("answered before the second note was written")
	default:
	}
	k.allow <- struct{}{}
	<-opened
	if got := n.waiting.Load(); got != 0 {
		t.Errorf("%d notes are left", got)
	}
}

// TestP11NamesDoNotHoldBackInodes: a note for a name waits behind a lookup;
// an inode's note passes it.
func TestP11NamesDoNotHoldBackInodes(t *testing.T) {
	k := &slowNames{fakeKernel: &fakeKernel{}, release: make(chan struct{})}
	n := runNotifier(t, k)
	n.InvalidateName(4, "slow", 0)
	n.InvalidateInode(4, true)
	n.delivered(t.Context(), 4)
	if got := fmt.Sprint(k.notes()); got != "[inode 4 pages true]" {
		t.Errorf("got %v", got)
	}
	close(k.release)
	drain(t, n)
	if got := len(k.notes()); got != 2 {
		t.Errorf("%d notes written, want 2", got)
	}
}

type slowNames struct {
	*fakeKernel
	release chan struct{}
}

func (k *slowNames) EntryNotify(parent uint64, name string) fuse.Status {
	<-k.release
	return k.fakeKernel.EntryNotify(parent, name)
}

// TestP11SlowNamesDropAllNames: a name that cannot be told within its bound
// must not be served meanwhile.
func TestP11SlowNamesDropAllNames(t *testing.T) {
	k := &slowNames{fakeKernel: &fakeKernel{}, release: make(chan struct{})}
	epoch := make(chan struct{})
	n := runNotifier(t, &epochKernel{slowNames: k, epoch: epoch})
	n.InvalidateName(4, "slow", 0)
	<-epoch
	if n.Overflows() == 0 {
		t.Error("not counted")
	}
	close(k.release)
}

type epochKernel struct {
	*slowNames
	epoch chan struct{}
}

func (k *epochKernel) IncEpoch() error {
	k.epoch <- struct{}{}
	return nil
}

// TestOverflowMakesEverythingSuspect: after a note was lost, names are dropped
// at once, open files too, and any other file when it is opened.
func TestOverflowMakesEverythingSuspect(t *testing.T) {
	hold := &fakeKernel{gate: make(chan string), allow: make(chan struct{})}
	n := runNotifier(t, hold, 77)
	const first = 4 // all of one worker
	n.InvalidateInode(first, true)
	<-hold.gate
	for i := range maxInodeNotes {
		n.InvalidateInode(meta.Ino(first+(i+1)*inodeWorkers), true)
	}
	if n.Overflows() != 0 {
		t.Fatal("too early")
	}
	n.InvalidateInode(first+(maxInodeNotes+1)*inodeWorkers, true)
	if n.Overflows() != 1 {
		t.Fatal("the full queue was not noticed")
	}
	if !n.suspect.check(1234) {
		t.Error("a file that was not open is trusted")
	}
	// Let everything through.
	go func() {
		for range hold.gate {
			hold.allow <- struct{}{}
		}
	}()
	hold.allow <- struct{}{}
	n.delivered(t.Context(), 1234)
	if n.suspect.check(1234) {
		t.Error("an invalidated file is still suspect")
	}
	drain(t, n)
	seen := map[string]bool{}
	for _, note := range hold.notes() {
		seen[note] = true
	}
	for _, want := range []string{"inode 77 pages true", "inode 1234 pages true"} {
		if !seen[want] {
			t.Errorf("the kernel was not told %q", want)
		}
	}
	hold.mu.Lock()
	defer hold.mu.Unlock()
	if hold.epochs != 1 {
		t.Errorf("names were dropped %d times, want once", hold.epochs)
	}
}

func TestNothingIsQueuedWithoutAKernel(t *testing.T) {
	n := NewNotifier(nil)
	n.InvalidateInode(1, true)
	n.InvalidateName(1, "a", 0)
	if err := n.Drain(t.Context()); err != nil || n.waiting.Load() != 0 {
		t.Errorf("drain %v, waiting %d", err, n.waiting.Load())
	}
}

// TestEndReleasesWhoWaits: at the end of a mount nobody must wait for a note.
func TestEndReleasesWhoWaits(t *testing.T) {
	k := &fakeKernel{gate: make(chan string, 1), allow: make(chan struct{})}
	n := NewNotifier(nil)
	n.attach(k, func(func(uint64)) {})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { n.run(ctx); close(ended) }()
	n.InvalidateInode(4, true)
	<-k.gate
	n.InvalidateInode(8, true) // same worker: waits
	waited := make(chan struct{})
	go func() { n.delivered(context.Background(), 8); close(waited) }()
	cancel()
	close(k.allow)
	<-ended
	<-waited
}

// Whoever shares a zone from now on waits until the kernel was told.
func TestDropAllWaitsForTheKernel(t *testing.T) {
	k := &fakeKernel{}
	n := runNotifier(t, k, 5, 6)
	if err := n.DropAll(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	if got, want := fmt.Sprint(k.epochs, k.notes()), "1 [inode 5 pages true inode 6 pages true]"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	n.delivered(t.Context(), 7) // was not open: suspect
	if got := len(k.notes()); got != 3 {
		t.Errorf("%d notes after the open of another file, want 3", got)
	}
	k.noInc = true
	if err := n.DropAll(t.Context(), true); err == nil {
		t.Error("a kernel that keeps its names counts as told")
	}
}
