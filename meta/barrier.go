package meta

import (
	"context"
	"sync"
	"sync/atomic"
)

// barrier makes operations durable, for everybody who waits at once: while one
// round is at the disk, whoever comes joins the next one (P23).
type barrier struct {
	fs *FS

	mu      sync.Mutex
	running bool   // guarded by mu: a round is at the disk
	next    *round // guarded by mu: who waits for the round after it
	safe    atomic.Int64
	waiting atomic.Bool // something was committed since the last round began
}

// round is one pair of syncs that many wait for.
type round struct {
	done chan struct{}
	err  error // valid once done is closed
}

// dirty says that something was committed.
func (b *barrier) dirty() {
	if !b.waiting.Load() {
		b.waiting.Store(true)
	}
}

// durable returns the newest revision of which is known that it and all before
// it survive a loss of power.
func (b *barrier) durable() Rev { return Rev(b.safe.Load()) }

// wait returns when everything that was committed before the call is durable,
// content included. It costs nothing when it is already. A refusal by the disk
// is final (FS.fail).
func (b *barrier) wait() error {
	if e := b.fs.failed.Load(); e != nil {
		return e
	}
	if b.safe.Load() >= b.fs.head.Load() {
		return nil
	}
	b.mu.Lock()
	if b.running {
		if b.next == nil {
			b.next = &round{done: make(chan struct{})}
		}
		r := b.next
		b.mu.Unlock()
		<-r.done
		return r.err
	}
	b.running = true
	b.mu.Unlock()
	err := b.sync()
	b.handOn()
	return err
}

// handOn lets those who came during a round have theirs.
func (b *barrier) handOn() {
	b.mu.Lock()
	r := b.next
	b.next = nil
	b.running = r != nil
	b.mu.Unlock()
	if r == nil {
		return
	}
	go func() { // not on the goroutine whose caller is answered already
		r.err = b.sync()
		close(r.done)
		b.handOn()
	}()
}

// sync is one round. Content and store go to the disk side by side: nobody is
// answered before both are there, and if the power fails in between, recovery
// takes back what refers to content that did not arrive (P22).
func (b *barrier) sync() error {
	fs, ctx := b.fs, context.Background()
	if e := fs.failed.Load(); e != nil {
		return e
	}
	b.waiting.Store(false)
	losses, rev := fs.losses.count.Load(), fs.head.Load()
	if b.safe.Load() >= rev {
		return nil // the round before covered it
	}
	// gofail: var beforeBarrier struct{}
	content := make(chan error, 1)
	go func() { content <- fs.o.Content.Sync(ctx) }()
	err := fs.o.Store.Sync(ctx)
	if cerr := <-content; err == nil {
		err = cerr
	}
	switch {
	case err != nil:
		return fs.fail(err)
	case fs.losses.count.Load() != losses:
		return E("sync", 0, "", KindLost, errLost) // what was to be synced may be what was lost
	}
	// gofail: var afterBarrier struct{}
	fs.counters.barriers.Add(1)
	b.safe.Store(rev)
	return nil
}

// Sync commits the staged content of every file and makes everything durable;
// sync(2) never reaches a FUSE daemon, this is its place (P24).
func (fs *FS) Sync(ctx context.Context) error {
	err := fs.settleAll(ctx)
	if serr := fs.durable(ctx); err == nil {
		err = serr
	}
	return err
}

// SyncDir is fsync(2) of a directory: everything committed before is durable
// when it returns.
func (fs *FS) SyncDir(ctx context.Context, _ Ino) error { return fs.durable(ctx) }

// settleAll commits the staged content of every file and returns the first error.
func (fs *FS) settleAll(ctx context.Context) error {
	var first error
	for _, ino := range fs.nodes.all((*node).hasStaged) {
		if err := fs.settleStaged(ctx, Caller{}, ino); err != nil && first == nil {
			first = err
		}
	}
	return first
}
